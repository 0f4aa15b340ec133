"""Records of a run: written batch by batch, taken up after a crash, refused where they are another run's."""

import json

import pytest

from madtp_core.errors import ConfigError
from madtp_core.evaluate import Journal, ShapesSamples, evaluate, evaluate_gallery, shapes_gallery
from madtp_core.evaluate.records import Record
from madtp_core.evaluate.samples import Asked
from tests.core.tiny_models import IMAGE_SIZE, TASKS, tiny_model

ABOUT = {"task": "vqa", "batch_size": 4}


@pytest.fixture(scope="module")
def models(vqa_checkpoint):
    return {task: tiny_model(task, vqa_checkpoint) for task in TASKS}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run" / "records.jsonl"


class Opened(ShapesSamples):
    """Samples that note which of them were made, and crash at one."""

    made: list[int]
    crash_at: int | None

    def item(self, index):
        if index == self.crash_at:
            raise MemoryError("the machine went away")
        self.made.append(index)
        return super().item(index)


def opened(task="vqa", crash_at=None):
    samples = Opened(task, "validation", 10, image_size=IMAGE_SIZE)
    object.__setattr__(samples, "made", [])
    object.__setattr__(samples, "crash_at", crash_at)
    return samples


@pytest.mark.parametrize("task", TASKS)
def test_a_run_that_broke_goes_on_where_it_stopped(models, path, task):
    options = {"batch_size": 4, "prune_temperature": 1.0}
    expected = evaluate(models[task], opened(task), **options)
    with pytest.raises(MemoryError):
        evaluate(models[task], opened(task, crash_at=9), journal=Journal(path, ABOUT), **options)
    samples = opened(task)
    resumed = evaluate(models[task], samples, journal=Journal(path, ABOUT, is_resumed=True), **options)
    assert sorted(samples.made) == [8, 9]
    assert resumed.figures() == expected.figures() and resumed.outlays == expected.outlays
    again = evaluate(models[task], opened(task, crash_at=0), journal=Journal(path, ABOUT, is_resumed=True))
    assert again.figures() == expected.figures()


def test_half_a_line_and_half_a_batch_are_asked_again(models, path):
    evaluate(models["vqa"], opened(), batch_size=4, journal=Journal(path, ABOUT))
    head, *lines = path.read_text().splitlines(keepends=True)
    path.write_text(head + "".join(lines[:6]) + lines[6][:30])
    samples = opened()
    done = []
    evaluate(
        models["vqa"],
        samples,
        batch_size=4,
        journal=Journal(path, ABOUT, is_resumed=True),
        on_batch=done.append,
    )
    assert sorted(samples.made) == [4, 5, 6, 7, 8, 9] and done == [4, 4, 2]
    assert path.read_text() == head + "".join(lines)


def test_searches_of_a_gallery_are_taken_up_too(models, path):
    gallery = shapes_gallery("validation", 5, image_size=IMAGE_SIZE)
    options = {"batch_size": 4, "rerank": 2, "text_queries": 6}
    expected = evaluate_gallery(models["retrieval"], gallery, journal=Journal(path, ABOUT), **options)
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:6]))
    journal = Journal(path, ABOUT, is_resumed=True)
    assert (
        evaluate_gallery(models["retrieval"], gallery, journal=journal, **options).figures()
        == expected.figures()
    )
    assert path.read_text() == "".join(lines)


def test_a_record_is_its_line(models):
    for task in TASKS:
        for record in evaluate(models[task], opened(task)[:2]).records:
            again = Record.from_line(record.to_line())
            assert again.to_line() == record.to_line() and again.outlay == record.outlay


def test_a_run_is_not_overwritten(path):
    Journal(path, ABOUT)
    with pytest.raises(ConfigError, match="resume it"):
        Journal(path, ABOUT)


def test_records_of_another_run_are_refused(path):
    Journal(path, ABOUT)
    with pytest.raises(ConfigError, match=r"'batch_size': \(4, 8\)"):
        Journal(path, ABOUT | {"batch_size": 8}, is_resumed=True)


@pytest.mark.parametrize("text", ["", "x", '{"about": {}}\n{"said": 1}\n', json.dumps({"outcomes": {}})])
def test_a_file_without_records_is_refused(tmp_path, text):
    path = tmp_path / "records.jsonl"
    path.write_text(text)
    with pytest.raises(ConfigError, match="no records"):
        Journal(path, {}, is_resumed=True)


def test_a_new_run_may_be_said_to_resume(path):
    assert Journal(path, ABOUT, is_resumed=True).records == []


def test_some_samples_are_spread_evenly():
    some = Asked(opened(), {"num_beams": 2}, 4)
    assert [sample.fields["question"] for sample in some] == [
        opened()[row].fields["question"] for row in (0, 2, 5, 7)
    ]
    assert all(sample.fields["num_beams"] == 2 for sample in some)
    assert len(Asked(opened(), {}, 40)) == 10
