"""Calibrations of request shapes that were not measured: fewer texts, an image alone, a text alone."""

from dataclasses import replace

import pytest

from madtp_core.calibration import NATURAL, Calibration, CalibrationRow
from madtp_core.config import PruningConfig
from madtp_core.evaluate import ShapesSamples, evaluate
from madtp_core.pruning import MAX_KEEP, PER_INSTANCE, TEXT, VISION
from madtp_core.tasks.cost import MATCH
from madtp_core.tasks.embedding import EmbeddingQuery
from madtp_core.tasks.ranking import RetrievalQuery
from tests.core.tiny_models import IMAGE_SIZE, tiny_model

PRUNE_TEMPERATURE = 3.0


def samples(task, texts=8):
    every = ShapesSamples(task, "validation", 12, image_size=IMAGE_SIZE)[:]
    return [replace(each, fields={"texts": list(each.fields["texts"])[:texts]}, truth=None) for each in every]


def measured(model, requests):
    return evaluate(
        model, requests, batch_size=12, prune_temperature=PRUNE_TEMPERATURE, keep_mode=PER_INSTANCE
    )


@pytest.fixture(scope="module", params=["retrieval", "clip"])
def model(request, vqa_checkpoint):
    """Calibrated at one temperature, on an image with eight texts; only images are pruned."""
    model = tiny_model(request.param, vqa_checkpoint)
    config = replace(model.checkpoint.config, pruning=PruningConfig(branches=(VISION,)))
    model = type(model)(replace(model.checkpoint, config=config))
    found = measured(model, samples(request.param))
    row = CalibrationRow(
        PER_INSTANCE, 1, PRUNE_TEMPERATURE, found.flops_ratio(), None, 12, sequences=found.sequences()
    )
    model.checkpoint = replace(model.checkpoint, calibration=Calibration((row,)))
    return model


def shape(model, texts):
    counts = {VISION: 1, TEXT: texts, MATCH: texts}
    return counts if model.task == "retrieval" else {kind: counts[kind] for kind in (VISION, TEXT)}


def ratio(model, counts):
    return model.calibration_of(counts, PER_INSTANCE).rows[0].flops_ratio


def test_what_was_measured_stays_as_it_was(model):
    assert model.calibration_of({}, PER_INSTANCE) == model.calibration
    assert ratio(model, shape(model, 8)) == pytest.approx(ratio(model, {}), rel=1e-12)


@pytest.mark.parametrize("texts", [1, 2, 5])
def test_fewer_texts_spend_what_is_expected_of_them(model, texts):
    wanted = measured(model, samples(model.task, texts)).flops_ratio()
    assert abs(wanted - ratio(model, {})) > 0.02  # or nothing is shown
    assert ratio(model, shape(model, texts)) == pytest.approx(wanted, rel=0.02)


def test_an_image_alone_and_a_text_alone_lie_on_either_side(model):
    image, text = (ratio(model, {VISION: images, TEXT: texts}) for images, texts in [(1, 0), (0, 1)])
    assert image < ratio(model, {}) < text == pytest.approx(1, rel=0.01)


def test_only_rows_of_the_keep_mode_and_the_natural_mix_are_asked_for(model):
    row = model.calibration.rows[0]
    rows = (row, replace(row, mix="hard"), replace(row, keep_mode=MAX_KEEP))
    model = type(model)(replace(model.checkpoint, calibration=Calibration(rows)))
    (found,) = model.calibration_of(shape(model, 1), PER_INSTANCE).rows
    assert (found.keep_mode, found.mix) == (PER_INSTANCE, NATURAL)


def test_rows_that_tell_no_sequences_stay_as_they_are(model):
    row = replace(model.calibration.rows[0], sequences={})
    model = type(model)(replace(model.checkpoint, calibration=Calibration((row,))))
    assert model.calibration_of(shape(model, 1), PER_INSTANCE).rows == (row,)


def test_the_shape_of_a_query(model):
    image = model.image_geometry
    pixels = [[[[0.0] * image.width] * image.height] * 3]
    counts = {VISION: 1, TEXT: 3}
    matches = model.task == "retrieval"
    for rerank, matched in [(None, 3), (2, 2), (0, 0), (9, 3)]:
        query = RetrievalQuery(pixels, ("a", "b", "c"), rerank)
        assert model.shape_of(query) == counts | ({MATCH: matched} if matches else {})
    query = EmbeddingQuery(tuple(pixels), ())
    assert model.shape_of(query) == {VISION: 1, TEXT: 0} | ({MATCH: 0} if matches else {})


def test_other_tasks_know_one_shape_only(vqa_checkpoint):
    model = tiny_model("vqa", vqa_checkpoint)
    assert model.shape_of(object()) == {} and model.calibration_of({}, PER_INSTANCE) is model.calibration
