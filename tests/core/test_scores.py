"""Every formula of MADTP's scores and threshold against the float64 loops of `reference`."""

import pytest
import torch
from torch import Tensor

from madtp_core.pruning.scores import (
    class_attention_score,
    self_attention_score,
    threshold,
    token_attention_score,
    token_importance,
)
from tests.core import reference

BATCH, HEADS, TOKENS, WIDTH, ALIGNMENT_TOKENS = 3, 4, 11, 6, 7
LENGTHS = (11, 5, 8)


class Scene:
    """Three instances: probabilities and head outputs with the class token, guidance without it."""

    def __init__(self) -> None:
        self.probs = (3 * torch.randn(BATCH, HEADS, 1 + TOKENS, 1 + TOKENS)).softmax(-1)
        self.context = torch.randn(BATCH, HEADS, 1 + TOKENS, WIDTH)
        self.guidance = 2 * torch.randn(BATCH, TOKENS, ALIGNMENT_TOKENS) + 1

    @property
    def received(self) -> Tensor:
        return self.probs.amax(1)[:, 1:].sum(1)[:, 1:]

    @property
    def class_row(self) -> Tensor:
        return self.probs[:, :, 0, 1:]

    @property
    def head_norms(self) -> Tensor:
        return self.context.norm(dim=-1)[:, :, 1:]

    def importance(self, mask: Tensor | None = None) -> Tensor:
        return token_importance(self.received, self.guidance, self.class_row, self.head_norms, mask)


@pytest.fixture
def scene() -> Scene:
    return Scene()


@pytest.fixture
def mask() -> Tensor:
    return torch.arange(TOKENS) < torch.tensor(LENGTHS).unsqueeze(1)


def test_self_attention_score_equals_the_loop(scene: Scene) -> None:
    scores = self_attention_score(scene.received)
    for row in range(BATCH):
        assert scores[row].tolist() == pytest.approx(reference.self_score(scene.probs[row]), abs=1e-6)


def test_token_attention_score_equals_the_loop(scene: Scene) -> None:
    scores = token_attention_score(scene.guidance, None)
    for row in range(BATCH):
        assert scores[row].tolist() == pytest.approx(reference.token_score(scene.guidance[row]), abs=1e-6)


def test_class_attention_score_equals_the_loop(scene: Scene) -> None:
    scores = class_attention_score(scene.class_row, scene.head_norms)
    for row in range(BATCH):
        expected = reference.class_score(scene.probs[row], scene.context[row])
        assert scores[row].tolist() == pytest.approx(expected, abs=1e-6)


def test_importance_is_the_mean_of_the_three_scores(scene: Scene) -> None:
    scores = scene.importance()
    for row in range(BATCH):
        expected = reference.importance(scene.probs[row], scene.context[row], scene.guidance[row])
        assert scores[row].tolist() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("terms", [("self",), ("token",), ("cls",), ("self", "token"), ("token", "cls")])
def test_importance_is_the_mean_of_the_terms_that_are_on(scene: Scene, terms: tuple[str, ...]) -> None:
    scores = token_importance(
        scene.received if "self" in terms else None,
        scene.guidance if "token" in terms else None,
        scene.class_row if "cls" in terms else None,
        scene.head_norms if "cls" in terms else None,
        None,
        terms,
    )
    for row in range(BATCH):
        expected = reference.importance(scene.probs[row], scene.context[row], scene.guidance[row], terms)
        assert scores[row].tolist() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("prune_temperature", [0.05, 0.7, 3.0, 40.0])
def test_threshold_equals_the_loop(scene: Scene, prune_temperature: float) -> None:
    importance = scene.importance()
    theta = threshold(importance, scene.guidance, torch.full((BATCH,), prune_temperature), None)
    for row in range(BATCH):
        expected = reference.threshold(importance[row].tolist(), scene.guidance[row], prune_temperature)
        assert theta[row].item() == pytest.approx(expected, rel=1e-5)


def test_every_row_has_its_own_prune_temperature(scene: Scene) -> None:
    importance, temperatures = scene.importance(), torch.tensor([0.1, 1.0, 10.0])
    mixed = threshold(importance, scene.guidance, temperatures, None)
    for row, temperature in enumerate(temperatures):
        alone = threshold(importance, scene.guidance, temperature.expand(BATCH), None)
        assert mixed[row] == alone[row]


def test_padding_does_not_count(scene: Scene, mask: Tensor) -> None:
    received = scene.received * mask  # attention gives padding nothing
    scores = token_importance(received, scene.guidance, scene.class_row, scene.head_norms, mask)
    theta = threshold(scores, scene.guidance, torch.full((BATCH,), 2.0), mask)
    assert (scores[~mask] == 0).all()
    for row, n in enumerate(LENGTHS):
        own = slice(row, row + 1)
        alone = token_importance(
            received[own, :n],
            scene.guidance[own, :n],
            scene.class_row[own, :, :n],
            scene.head_norms[own, :, :n],
            None,
        )
        torch.testing.assert_close(scores[own, :n], alone, atol=1e-7, rtol=1e-6)
        alone_theta = threshold(alone, scene.guidance[own, :n], torch.tensor([2.0]), None)
        torch.testing.assert_close(theta[own], alone_theta, atol=1e-7, rtol=1e-6)


def test_at_a_small_temperature_the_threshold_ties_with_a_token(scene: Scene) -> None:
    importance = scene.importance()
    theta = threshold(importance, scene.guidance, torch.full((BATCH,), 1e-3), None)
    winners = scene.guidance.argmax(1)  # [B, K]
    assert torch.equal(theta, importance.gather(1, winners).amin(1))


def test_at_a_large_temperature_the_threshold_is_the_mean(scene: Scene) -> None:
    importance = scene.importance()
    theta = threshold(importance, scene.guidance, torch.full((BATCH,), 1e6), None)
    torch.testing.assert_close(theta, importance.mean(1), atol=0, rtol=1e-5)


@pytest.mark.parametrize(
    ("best", "expected"),
    [
        ([-1.0, -3.0, -2.0], [2 / 3, 0.0, 1 / 3]),  # all negative
        ([1.0, -1.0, 0.0], [2 / 3, 0.0, 1 / 3]),  # vanishing sum
        ([1.0, -0.9, 0.0], [1.9 / 2.8, 0.0, 0.9 / 2.8]),  # 0.1 of 1.9: not clearly positive
    ],
)
def test_a_row_whose_sum_is_not_clearly_positive_is_shifted(best: list[float], expected: list[float]) -> None:
    # Differs from the reference, whose shares explode or turn over here.
    guidance = torch.tensor(best).view(1, 3, 1) - torch.tensor([0.0, 5.0])
    assert token_attention_score(guidance, None)[0].tolist() == pytest.approx(expected, abs=1e-6)


def test_a_row_whose_sum_is_clearly_positive_is_left_as_the_reference_has_it() -> None:
    guidance = torch.tensor([3.0, -1.0, 2.0]).view(1, 3, 1)
    assert token_attention_score(guidance, None)[0].tolist() == pytest.approx([0.75, -0.25, 0.5])


def test_the_shift_looks_at_real_tokens_only() -> None:
    guidance = torch.tensor([[-1.0, -3.0, -2.0, -99.0, 99.0]]).unsqueeze(-1)
    mask = torch.tensor([[True, True, True, False, False]])
    expected = [2 / 3, 0.0, 1 / 3, 0.0, 0.0]
    assert token_attention_score(guidance, mask)[0].tolist() == pytest.approx(expected, abs=1e-6)


def test_a_row_of_equal_negative_scores_stays_finite() -> None:
    assert token_attention_score(torch.full((1, 4, 2), -3.0), None).tolist() == [[0.0] * 4]
