"""Our dense forward is Hugging Face's, on scrambled weights: towers, gradients, logits and answers.

Questions have equal lengths where images or answers are read: Hugging Face's BLIP drops the mask of its
cross-attention.
"""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from madtp_core.decoding import beam_search, greedy
from madtp_core.encoder import Pruning
from madtp_core.pruning import KEEP_MODES, MAX_KEEP, build_pruner
from madtp_core.tasks.vqa_network import VqaNetwork

TOLERANCE = 1e-5


def assert_close(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, atol=TOLERANCE, rtol=0)


@pytest.fixture(scope="module")
def answers() -> Tensor:
    """Three teacher-forced answers: start 39, four tokens."""
    return torch.tensor([[39, 5, 6, 7, 8], [39, 7, 8, 9, 2], [39, 9, 3, 2, 2]])


def hf_question(network: VqaNetwork, pixel_values: Tensor, token_ids: Tensor, mask: Tensor) -> Tensor:
    image = network.blip.vision_model(pixel_values).last_hidden_state
    states: Tensor = network.blip.text_encoder(
        token_ids, attention_mask=mask, encoder_hidden_states=image
    ).last_hidden_state
    return states


@torch.no_grad()
def test_the_scrambled_network_is_not_close_to_zero(network: VqaNetwork, pixel_values: Tensor) -> None:
    hidden = network.blip.vision_model(pixel_values).last_hidden_state
    attention = network.blip.vision_model(pixel_values, output_attentions=True).attentions[0]
    assert hidden.std() > 0.5
    assert (hidden[:, 1] - hidden[:, 2]).abs().mean() > 0.1  # tokens differ
    assert attention.amax(-1).mean() > 2 / attention.shape[-1]  # attention chooses


@torch.no_grad()
def test_vision(network: VqaNetwork, pixel_values: Tensor) -> None:
    theirs = network.blip.vision_model(pixel_values).last_hidden_state
    assert_close(network.encode_image(pixel_values).tokens.hidden, theirs)


@pytest.mark.parametrize("with_grad", [True, False])
def test_vision_is_bitwise_equal_where_signals_are_asked_for(
    make_network: Callable[..., VqaNetwork], pixel_values: Tensor, with_grad: bool
) -> None:
    network = make_network(heads=2)  # of width 16, as BLIP's 64 a power of four: scaling loses no bit
    scored_but_dense = Pruning(build_pruner("madtp"), torch.zeros(3), MAX_KEEP)
    with torch.set_grad_enabled(with_grad):
        theirs = network.blip.vision_model(pixel_values).last_hidden_state
        ours = network.encode_image(pixel_values, scored_but_dense).tokens.hidden
    assert torch.equal(ours, theirs)


@torch.no_grad()
@pytest.mark.parametrize("size", [(48, 48), (32, 56)])
def test_vision_of_another_image_size(network: VqaNetwork, size: tuple[int, int]) -> None:
    pixel_values = torch.randn(2, 3, *size)
    theirs = network.blip.vision_model(pixel_values, interpolate_pos_encoding=True).last_hidden_state
    assert_close(network.encode_image(pixel_values).tokens.hidden, theirs)


@torch.no_grad()
def test_question_encoder(
    network: VqaNetwork, pixel_values: Tensor, questions: tuple[Tensor, Tensor]
) -> None:
    ours = network.encode_question(*questions, network.encode_image(pixel_values)).tokens.hidden
    assert_close(ours, hf_question(network, pixel_values, *questions))


@torch.no_grad()
def test_question_encoder_with_padding(
    network: VqaNetwork, pixel_values: Tensor, ragged_questions: tuple[Tensor, Tensor]
) -> None:
    _, mask = ragged_questions
    ours = network.encode_question(*ragged_questions, network.encode_image(pixel_values)).tokens.hidden
    assert_close(ours[mask], hf_question(network, pixel_values, *ragged_questions)[mask])


@torch.no_grad()
def test_teacher_forced_logits(
    network: VqaNetwork, pixel_values: Tensor, questions: tuple[Tensor, Tensor], answers: Tensor
) -> None:
    states = hf_question(network, pixel_values, *questions)
    theirs = network.blip.text_decoder(answers, encoder_hidden_states=states).logits
    text = network.encode_question(*questions, network.encode_image(pixel_values))
    decoder = network.decoder()
    ours, _ = decoder.forward(answers, decoder.remember(text.tokens))
    torch.testing.assert_close(ours, theirs, atol=TOLERANCE, rtol=TOLERANCE)


def network_and_hf_loss(
    network: VqaNetwork, pixel_values: Tensor, questions: tuple[Tensor, Tensor], answers: Tensor
) -> tuple[Tensor, Tensor]:
    token_ids, mask = questions
    ours = network(pixel_values, token_ids, mask, torch.arange(3), answers).answer_loss
    theirs = network.blip(
        input_ids=token_ids,
        attention_mask=mask,
        pixel_values=pixel_values,
        decoder_input_ids=answers.clamp_min(0),
        labels=answers,
    ).loss
    return ours, theirs


def test_training_loss_with_answers_of_different_lengths(
    network: VqaNetwork, pixel_values: Tensor, questions: tuple[Tensor, Tensor]
) -> None:
    answers = torch.tensor([[39, 5, 6, 7, 2], [39, 7, 2, -100, -100], [39, 9, 3, 2, -100]])
    ours, theirs = network_and_hf_loss(network, pixel_values, questions, answers)
    assert ours.item() == pytest.approx(theirs.item(), abs=TOLERANCE)


def test_gradients(
    network: VqaNetwork, pixel_values: Tensor, questions: tuple[Tensor, Tensor], answers: Tensor
) -> None:
    parameters = dict(network.blip.named_parameters())
    ours, theirs = (
        torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
        for loss in network_and_hf_loss(network, pixel_values, questions, answers)
    )
    compared = 0
    for name, our, their in zip(parameters, ours, theirs, strict=True):
        assert (our is None) == (their is None), name
        if our is not None and their is not None:
            torch.testing.assert_close(
                our, their, atol=TOLERANCE, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}"
            )
            compared += 1
    assert compared > 100


@pytest.fixture(scope="module")
def talkative(make_network: Callable[..., VqaNetwork]) -> list[VqaNetwork]:
    """Networks whose steps differ and whose end token is likely: answers end at several steps, or never."""
    networks = [make_network(seed) for seed in range(20, 28)]
    for network in networks:
        text = network.blip.text_decoder
        with torch.no_grad():
            text.cls.predictions.decoder.bias[2] += 2
            text.bert.embeddings.position_embeddings.weight *= 10
    return networks


def theirs_generated(
    network: VqaNetwork, pixel_values: Tensor, questions: tuple[Tensor, Tensor], beams: int
) -> tuple[list[tuple[int, ...]], list[float] | None]:
    """Hugging Face's answers without start, end and padding, and for beams their scores."""
    out = network.blip.generate(
        input_ids=questions[0],
        pixel_values=pixel_values,
        attention_mask=questions[1],
        num_beams=beams,
        do_sample=False,
        max_new_tokens=6,
        return_dict_in_generate=True,
        output_scores=True,
    )
    texts = []
    for row in out.sequences[:, 1:].tolist():
        texts.append(tuple(row[: row.index(2)] if 2 in row else row))
    return texts, out.sequences_scores.tolist() if beams > 1 else None


@torch.no_grad()
@pytest.mark.parametrize("beams", [1, 2, 3])
def test_answers(
    talkative: list[VqaNetwork], pixel_values: Tensor, questions: tuple[Tensor, Tensor], beams: int
) -> None:
    lengths = set()
    for network in talkative:
        theirs, scores = theirs_generated(network, pixel_values, questions, beams)
        decoder = network.decoder()
        text = network.encode_question(*questions, network.encode_image(pixel_values)).tokens
        memory = decoder.remember(text)
        if beams == 1:
            ours = greedy(decoder, memory, torch.arange(3), 6)
        else:
            ours = [beam_search(decoder, memory, row, beams, 6) for row in range(3)]
        assert [decoded.token_ids for decoded in ours] == theirs
        if scores is not None:
            assert [decoded.score for decoded in ours] == pytest.approx(scores, abs=1e-4)
        lengths |= {len(answer) for answer in theirs}
    assert {0, 6} < lengths  # ended at once, later, and never


@torch.no_grad()
@pytest.mark.parametrize("keep_mode", [None, *KEEP_MODES])
def test_bfloat16_runs_and_stays_near_float32(
    make_network: Callable[..., VqaNetwork],
    pixel_values: Tensor,
    ragged_questions: tuple[Tensor, Tensor],
    keep_mode: str | None,
) -> None:
    network = make_network()
    pruning = None if keep_mode is None else Pruning(build_pruner("madtp"), torch.full((3,), 4.0), keep_mode)
    float32 = network.encode_image(pixel_values, pruning)
    network.bfloat16()
    image = network.encode_image(pixel_values.bfloat16(), pruning)
    text = network.encode_question(*ragged_questions, image, None, pruning)
    decoder = network.decoder()
    answers = greedy(decoder, decoder.remember(text.tokens), torch.arange(3), 3)
    assert image.tokens.hidden.dtype == text.tokens.hidden.dtype == torch.bfloat16
    assert text.tokens.hidden.isfinite().all() and len(answers) == 3
    classes = image.tokens.unpack().hidden[:, 0].float(), float32.tokens.unpack().hidden[:, 0]
    assert (classes[0] - classes[1]).abs().mean() < 0.05 * classes[1].abs().mean()
