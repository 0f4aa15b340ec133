"""BLIP captioning: parity with Hugging Face, prompts, batch invariance, costs and bad input."""

import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import BlipForConditionalGeneration

from madtp_core.backbones.blip import blip_config, build_blip_caption, scramble
from madtp_core.checkpoint import build_alignment
from madtp_core.config import MadtpConfig, PruningConfig
from madtp_core.decoding import beam_search, greedy, rank
from madtp_core.encoder import BatchPruning, Pruning
from madtp_core.errors import ConfigError
from madtp_core.flops import decoder_macs, greedy_passes, vision_macs
from madtp_core.pruning import KEEP_MODES, MAX_KEEP, PER_INSTANCE, VISION, build_pruner
from madtp_core.tasks import load_model
from madtp_core.tasks.caption import ORIGINAL_PROMPT, BlipCaption, CaptionQuery
from madtp_core.tasks.caption_network import CaptionNetwork
from tests.core.counting import counted, traces_of, uncounted

PRUNE_TEMPERATURE = 0.7
PROMPT = (7, 9, 5)  # token ids behind the start token


@pytest.fixture(scope="module")
def checkpoint(vqa_checkpoint):
    """A tiny scrambled captioner, its vision wider than its text, its end token likely."""
    tokenizer = vqa_checkpoint.tokenizer
    config = blip_config(
        width=48, text_width=32, heads=2, vision_blocks=2, text_blocks=2, image_size=64, patch_size=8,
        vocabulary=len(tokenizer), max_text_tokens=40,
        bos_token_id=tokenizer.bos_token_id, sep_token_id=tokenizer.sep_token_id,
    )  # fmt: skip
    blip = build_blip_caption(config).eval()
    scramble(blip, std=0.2)
    with torch.no_grad():
        blip.text_decoder.cls.predictions.bias[tokenizer.sep_token_id] += 4
        blip.text_decoder.bert.embeddings.position_embeddings.weight *= 10
    alignment_config = vqa_checkpoint.config.alignment
    alignment = build_alignment(alignment_config, config)
    scramble(alignment, seed=1, std=1.0)
    madtp = MadtpConfig(
        task="caption", max_text_tokens=40, alignment=alignment_config, pruning=PruningConfig()
    )
    return replace(vqa_checkpoint, model=blip, alignment=alignment, config=madtp)


@pytest.fixture(scope="module")
def model(checkpoint):
    return BlipCaption(checkpoint)


def query(index: int = 0, **options) -> CaptionQuery:
    pixels = np.random.default_rng(index).standard_normal((3, 64, 64), dtype=np.float32)
    return CaptionQuery(pixels, **{"max_new_tokens": 5, **options})


def pixels(count: int) -> torch.Tensor:
    return torch.from_numpy(np.stack([query(index).pixel_values for index in range(count)]))


# --- Parity with Hugging Face


@torch.no_grad()
def test_dense_logits_are_hugging_faces(model):
    ids = torch.randint(3, len(model.codec.tokenizer), (3, 6))
    theirs = model.network.blip(pixels(3), ids)
    image = model.network.encode_image(pixels(3))
    torch.testing.assert_close(image.tokens.hidden, theirs.image_embeds, atol=1e-5, rtol=0)
    decoder = model.network.decoder()
    ours, _ = decoder.forward(ids, decoder.remember(image.tokens))
    torch.testing.assert_close(ours, theirs.logits, atol=1e-5, rtol=1e-5)


def hf_captions(model, count, prompt, **options):
    """Token ids behind the prompt, up to the end token, and the scores of a beam search."""
    blip, end = model.network.blip, model._decoder.end_id
    ids = torch.tensor([[0, *prompt, end]] * count)  # generate() replaces the first and drops the last
    out = blip.generate(
        pixels(count), ids, do_sample=False, return_dict_in_generate=True, output_scores=True, **options
    )
    rows = [row[1 + len(prompt) :] for row in out.sequences.tolist()]
    texts = [tuple(row[: row.index(end)] if end in row else row) for row in rows]
    return texts, out.get("sequences_scores")


@torch.no_grad()
@pytest.mark.parametrize("prompt", [(), PROMPT])
@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("shortest", [0, 3])
def test_dense_captions_are_hugging_faces(model, prompt, beams, shortest):
    longest, count = 6, 6
    options = {"num_beams": beams, "max_new_tokens": longest, "min_new_tokens": shortest}
    theirs, scores = hf_captions(model, count, prompt, **options)
    decoder = model.network.decoder()
    memory = decoder.remember(model.network.encode_image(pixels(count)).tokens)
    if beams == 1:
        prompts = torch.tensor([prompt] * count, dtype=torch.int64)
        ours = greedy(decoder, memory, torch.arange(count), longest, shortest, prompts)
    else:
        ours = [beam_search(decoder, memory, row, beams, longest, shortest, prompt) for row in range(count)]
        assert [text.score for text in ours] == pytest.approx(scores.tolist(), abs=1e-4)
    assert [text.token_ids for text in ours] == theirs
    assert len({len(text) for text in theirs}) > 1
    assert min(map(len, theirs)) >= shortest


def test_predicted_captions_are_hugging_faces_without_the_prompt(model):
    prompt = model.codec.prompt_ids(ORIGINAL_PROMPT)
    assert model.codec.text(prompt) == ORIGINAL_PROMPT.strip()
    theirs, _ = hf_captions(model, 3, prompt, max_new_tokens=5)
    answers = model.predict([query(i, prompt=ORIGINAL_PROMPT) for i in range(3)], prune_temperature=0.0)
    assert [answer.caption for answer in answers] == [model.codec.text(ids) for ids in theirs]


def test_a_caption_may_be_kept_from_ending_early(model):
    early, longer = model.predict([query(3), query(3, min_new_tokens=3)], prune_temperature=0.0)
    assert early.caption == "" != longer.caption
    assert early.spent.cost.flops < longer.spent.cost.flops


def test_the_training_loss_is_hugging_faces_with_the_prompt_masked(model):
    start, end = model._decoder.start_id, model._decoder.end_id
    captions = torch.tensor([[start, 7, 9, 30, 31, end], [start, 7, 9, 40, end, -100]])
    labels = captions.clone()
    labels[:, :3] = -100
    expected = model.network.blip(pixels(2), captions.clamp_min(0), labels=labels).loss
    ours = model.network(pixels(2), captions, 3, torch.arange(2)).caption_loss
    assert ours.item() == pytest.approx(expected.item(), abs=1e-5)


def test_the_training_loss_is_smoothed_as_the_configuration_says(checkpoint):
    blip = build_blip_caption(checkpoint.model.config)
    blip.load_state_dict(checkpoint.model.state_dict())
    blip.text_decoder.config.label_smoothing = blip.text_decoder.label_smoothing = 0.1
    captions = torch.tensor([[blip.decoder_input_ids, 7, 9, 30, 31]])
    ours = CaptionNetwork(blip)(pixels(1), captions, 1, torch.tensor([0])).caption_loss
    labels = captions.clone()
    labels[:, 0] = -100
    assert ours.item() == pytest.approx(blip(pixels(1), captions, labels=labels).loss.item(), abs=1e-5)


# --- Pruning


MIX = (
    query(0),
    query(1, prompt=ORIGINAL_PROMPT),
    query(2, num_beams=2),
    query(3, candidates=("a red star", "two circles"), prompt=ORIGINAL_PROMPT),
    query(4, prompt="a small", num_beams=3, min_new_tokens=2),
    query(5, min_new_tokens=4),
)


@pytest.mark.parametrize("prune_temperature", [0.0, PRUNE_TEMPERATURE])
def test_per_instance_captions_do_not_depend_on_the_batch(model, prune_temperature):
    together = model.predict(MIX, prune_temperature=prune_temperature, keep_mode=PER_INSTANCE)
    for own, answer in zip(MIX, together, strict=True):
        alone = model.predict([own], prune_temperature=prune_temperature, keep_mode=PER_INSTANCE)[0]
        assert (alone.caption, alone.spent.traces) == (answer.caption, answer.spent.traces)
        assert alone.score == pytest.approx(answer.score, abs=1e-5)
        assert alone.spent.cost.flops == answer.spent.cost.flops
    lengths = {answer.spent.traces[VISION][0].kept for answer in together}
    assert prune_temperature == 0 or len(lengths) > 1  # the batch was ragged


def test_per_instance_captions_are_the_same_in_any_company(model):
    def caption(queries):
        return model.predict(queries, prune_temperature=PRUNE_TEMPERATURE, keep_mode=PER_INSTANCE)

    expected = {id(own): caption([own])[0].caption for own in MIX}
    shuffler = random.Random(0)
    for _ in range(50):
        batch = shuffler.sample(MIX, k=shuffler.randint(2, 3))
        assert [answer.caption for answer in caption(batch)] == [expected[id(own)] for own in batch]


def test_max_keep_keeps_what_the_neediest_needs(model):
    answers = model.predict([query(i) for i in range(4)], prune_temperature=PRUNE_TEMPERATURE)
    traces = [answer.spent.traces[VISION][0] for answer in answers]
    assert len({trace.kept for trace in traces}) == 1
    assert traces[0].kept[0] == max(trace.needed[0] for trace in traces) < traces[0].dense


def test_each_query_may_have_its_own_temperature(model):
    mixed = model.predict(MIX[:2], prune_temperature=[0.0, PRUNE_TEMPERATURE], keep_mode=PER_INSTANCE)
    assert mixed[0].spent.traces[VISION][0].kept == (64, 64)
    assert mixed[1].spent.traces[VISION][0].kept[-1] < 64


@pytest.mark.parametrize("keep_mode", KEEP_MODES)
def test_training_through_pruned_images_gives_finite_gradients(model, keep_mode):
    start, end = model._decoder.start_id, model._decoder.end_id
    captions = torch.tensor([[start, 7, 30, 31, end], [start, 7, 40, end, -100], [start, 7, 8, 9, end]])
    pruning = BatchPruning(build_pruner("madtp"), torch.tensor([0.5, 1.0, 2.0]), keep_mode)
    out = model.network(pixels(2), captions, 2, torch.tensor([0, 1, 0]), pruning)
    assert (out.vision.kept < out.vision.tokens_in).any()
    used = {name: p for name, p in model.network.blip.named_parameters() if "pooler" not in name}
    for name, gradient in zip(used, torch.autograd.grad(out.caption_loss, list(used.values())), strict=True):
        assert gradient.isfinite().all(), name


# --- Candidates


def test_candidates_are_ranked_best_first_behind_the_prompt(model):
    candidates = ("red star", "two circles", "a large blue square")
    own = query(1, prompt=ORIGINAL_PROMPT, candidates=candidates)
    answer = model.predict([own], prune_temperature=0.0)[0]
    scores = [score for _, score in answer.ranked]
    assert scores == sorted(scores, reverse=True) and (answer.caption, answer.score) == answer.ranked[0]
    assert dict(answer.ranked).keys() == set(candidates)


@torch.no_grad()
def test_a_candidate_scores_by_its_own_tokens_only(model):
    decoder = model.network.decoder()
    memory = decoder.remember(model.network.encode_image(pixels(2)).tokens)
    ids = (30, 31)
    text = [decoder.start_id, *PROMPT, *ids, decoder.end_id]
    logits, _ = decoder.forward(torch.tensor([text]), memory.read_by(torch.tensor([1])))
    log_probs = logits[0].log_softmax(-1)
    behind = range(1 + len(PROMPT), len(text))
    by_hand = sum(log_probs[step - 1, text[step]].item() for step in behind) / len(behind)
    ranked = rank(decoder, memory, 1, [ids, (8, 9, 10, 11)], PROMPT)[0]
    assert ranked.score == pytest.approx(by_hand, abs=1e-5)
    assert ranked.passes == ((6, 6),) and ranked.padded_passes == ((8, 8),)


# --- Cost


@torch.no_grad()
@pytest.mark.parametrize("pruned", [False, True])
@pytest.mark.parametrize("beams", [1, 3])
def test_a_captions_multiply_adds_are_fvcores(model, pruned, beams):
    """One image of 48 wide, projected once for its beams, and a search behind a prompt, with its cache."""
    steps, first = 3, 1 + len(PROMPT)
    pruning = Pruning(build_pruner("madtp"), torch.tensor([PRUNE_TEMPERATURE]), MAX_KEEP) if pruned else None
    network = model.network
    decoder = network.decoder()

    def run(image: torch.Tensor) -> torch.Tensor:
        memory = decoder.remember(network.encode_image(image, pruning).tokens)
        ids, cache = torch.full((beams, first), 9), None
        for _ in range(steps):
            logits, cache = decoder.forward(ids, memory.read_by(torch.zeros(beams, dtype=torch.int64)), cache)
            ids = logits[:, -1:].argmax(-1)
        return logits

    (trace,) = traces_of(network.encode_image(pixels(1), pruning))
    cost, scoring = model.cost_model, model.cost_model.alignment if pruned else None
    expected = cost.macs({VISION: (trace,)}, greedy_passes(steps, beams, first), {VISION: scoring})
    if pruned:
        assert trace.kept[-1] < trace.dense
        expected += uncounted(trace, scoring, 48, is_mapped=True)
    with torch.enable_grad():
        assert counted(network, run, pixels(1)) == expected


@pytest.mark.parametrize("beams", [1, 3])
def test_a_caption_pays_for_its_prompt_and_beams_and_projects_its_image_once(model, beams):
    own = query(0, prompt=ORIGINAL_PROMPT, num_beams=beams, max_new_tokens=3, min_new_tokens=3)
    answer = model.predict([own], prune_temperature=0.0)[0]
    first = 1 + len(model.codec.prompt_ids(ORIGINAL_PROMPT))
    passes = [(first, first)] + [(1, first + 1)] * beams + [(1, first + 2)] * beams
    trace, cost = answer.spent.traces[VISION][0], model.cost_model
    macs = vision_macs(cost.vision, trace) + decoder_macs(cost.text, passes, 65, memory_width=48)
    assert answer.spent.cost.flops == 2 * macs == answer.spent.cost.dense_flops


def test_pruning_costs_less_and_padding_more(model):
    dense, pruned = (model.predict(MIX, prune_temperature=t) for t in (0.0, PRUNE_TEMPERATURE))
    for answer in dense:
        assert answer.spent.cost.flops_ratio == 1 and answer.spent.difficulty is None
        assert answer.spent.cost.padded_flops >= answer.spent.cost.flops
    for answer in pruned:
        cost = answer.spent.cost
        assert cost.needed_flops <= cost.flops <= cost.padded_flops and cost.flops < cost.dense_flops
        assert 0 < answer.spent.difficulty < 1


# --- Checkpoints and bad input


def test_save_and_load_answer_alike(model, tmp_path):
    model.save_pretrained(tmp_path / "saved")
    loaded = load_model(tmp_path / "saved")
    assert isinstance(loaded, BlipCaption)
    theirs, ours = (
        each.predict([query()], prune_temperature=PRUNE_TEMPERATURE)[0] for each in (loaded, model)
    )
    assert (theirs.caption, theirs.spent) == (ours.caption, ours.spent)


def test_a_plain_hugging_face_directory_is_dense(model, tmp_path):
    model.save_pretrained(tmp_path / "saved")
    for name in ("madtp.json", "mag.safetensors"):
        (tmp_path / "saved" / name).unlink()
    blip = BlipForConditionalGeneration.from_pretrained(tmp_path / "saved")
    plain = load_model(tmp_path / "saved")
    assert isinstance(plain, BlipCaption) and plain.pruning is None
    assert torch.equal(plain.network.blip.vision_model.post_layernorm.weight,
                       blip.vision_model.post_layernorm.weight)  # fmt: skip
    ours, theirs = (each.predict([query()], prune_temperature=0.0)[0].caption for each in (model, plain))
    assert ours == theirs
    with pytest.raises(ConfigError, match="no pruning"):
        plain.predict([query()], prune_temperature=0.5)


def test_captioning_must_prune_the_image(checkpoint):
    config = replace(checkpoint.config, pruning=PruningConfig(branches=("text",)))
    with pytest.raises(ConfigError, match="text"):
        BlipCaption(replace(checkpoint, config=config))


def test_an_empty_batch_has_no_captions(model):
    assert model.predict([], prune_temperature=0.0) == []


@pytest.mark.parametrize(
    ("bad", "named"),
    [
        (CaptionQuery(np.zeros((3, 32, 32), np.float32)), "32"),
        (query(num_beams=0), "num_beams"),
        (query(max_new_tokens=0), "max_new_tokens"),
        (query(max_new_tokens=40), "max_new_tokens"),
        (query(max_new_tokens=33, prompt=ORIGINAL_PROMPT), r"1\.\.32"),
        (query(min_new_tokens=6), "min_new_tokens"),
        (query(prompt="red " * 60), "prompt"),
        (query(candidates=()), "candidates"),
        (query(candidates=("",)), "empty"),
        (query(candidates=("red " * 32,), prompt=ORIGINAL_PROMPT), "at most 31"),
    ],
)
def test_bad_values_are_refused_before_anything_runs(model, bad, named, monkeypatch):
    monkeypatch.setattr(model.network, "encode_image", None)
    with pytest.raises(ConfigError, match=named):
        model.predict([query(), bad], prune_temperature=0.0)
