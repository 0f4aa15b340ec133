"""What is learned of difficulty from a batch: each request's own need, whoever it ran with."""

from typing import Any

import pytest

from madtp_core.difficulty import REQUEST_FEATURES
from madtp_core.flops import BranchTrace
from madtp_core.tasks.cost import Spent
from service.controller import Setting
from service.job import Job, Prepared, Served
from service.needs import Needs, first_need
from tests.serving.fakes import COST

EASY, HARD = 10, 40  # of 100 tokens, by the first block


def _features(first: int) -> tuple[float, ...]:
    return (float(first), *[0.0] * (len(REQUEST_FEATURES) - 1))


def _job(first: int) -> Job:
    job = Job(request_id="r", task="vqa", model="fake", arrived_s=0.0, deadline_s=1.0)
    times: dict[str, Any] = {"thread_wait_s": 0.0, "decode_s": 0.0, "preprocess_s": 0.0}
    job.note_prepared(Prepared(None, 1, 100.0, _features(first), **times))
    return job


def _served(first: int, need: float, keep_mode: str) -> Served:
    trace = BranchTrace(dense=100, tokens_in=(100, 40), needed=(first, 20), kept=(40, 20))
    return Served(
        shown={},
        spent=Spent({"vision": (trace,)}, COST, need),
        started_s=0.0,
        batch_size=2,
        keep_mode=keep_mode,
        setting=Setting(0.5, 0.5, 0.5),
        inference_s=0.0,
        postprocess_s=0.0,
    )


def _learned(keep_mode: str) -> Needs:
    """Of batches of an easy and a hard request that came out alike: 0.2 and 0.4 in turn, for both."""
    needs = Needs("fake", None)
    for number in range(200):
        need = (0.2, 0.4)[number % 2]
        pair = (EASY, HARD)
        needs.observe([_job(one) for one in pair], [_served(one, need, keep_mode) for one in pair])
    return needs


def test_under_max_keep_the_first_block_tells_requests_apart_whatever_their_mates() -> None:
    needs = _learned("max_keep")
    easy, hard = needs.predict(_features(EASY)), needs.predict(_features(HARD))
    assert (easy, hard) == (pytest.approx(0.12, abs=0.02), pytest.approx(0.48, abs=0.02))


def test_packed_what_was_measured_is_a_requests_own() -> None:
    needs = _learned("per_instance")
    assert needs.predict(_features(EASY)) == pytest.approx(needs.predict(_features(HARD)), abs=0.01)


@pytest.mark.parametrize("keep_mode", ["max_keep", "per_instance"])
def test_the_mean_is_that_of_what_was_measured(keep_mode: str) -> None:
    assert _learned(keep_mode).mean == pytest.approx(0.3, abs=0.01)


def test_the_first_blocks_of_all_sequences_count() -> None:
    one, other = BranchTrace(90, (90, 9), (30, 3), (30, 3)), BranchTrace(10, (10, 9), (9, 3), (9, 3))
    assert first_need(Spent({"vision": (one, one), "text": (other,)}, COST, 0.5)) == 69 / 190
