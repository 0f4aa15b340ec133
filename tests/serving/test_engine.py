"""The engine without HTTP: one answer or one error for every job, whatever the model does."""

import random
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from madtp_core.difficulty import REQUEST_FEATURES
from madtp_core.errors import CheckpointError
from madtp_core.tasks.vqa import VqaQuery
from service.controller import EXACT, TargetClass
from service.engine import Engine
from service.errors import ApiError
from service.job import Job, Prepared
from service.local_model import LocalModel
from service.model import BatchRecord
from tests.serving.conftest import MakeSettings, wait_until
from tests.serving.fakes import FakeModel


class Clock:
    """Stands still until it is moved."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


BALANCED = TargetClass("balanced", 0.5, may_degrade=True)


def _job(
    question: str,
    deadline_s: float = float("inf"),
    target: TargetClass = BALANCED,
    dense_tokens: float = 16.0,
    features: tuple[float, ...] | None = None,
    priority: int = 0,
) -> Job:
    job = Job(
        request_id="r",
        task="vqa",
        model="fake",
        arrived_s=0.0,
        deadline_s=deadline_s,
        target=target,
        priority=priority,
    )
    query = VqaQuery(pixel_values=np.zeros((3, 16, 16), np.float32), question=question)
    job.note_prepared(
        Prepared(query, 1, dense_tokens, features, thread_wait_s=0.0, decode_s=0.0, preprocess_s=0.0)
    )
    return job


def _answer(job: Job) -> str:
    answer: str = job.future.result(10).shown["answer"]
    return answer


def _code(job: Job) -> str:
    error = job.future.exception(10)
    assert isinstance(error, ApiError)
    return error.code


class Start:
    """Starts engines that are stopped at the end of the test."""

    def __init__(self, make_settings: MakeSettings, stack: ExitStack) -> None:
        self._make_settings = make_settings
        self._stack = stack
        self.batches: list[BatchRecord] = []
        self.died = threading.Event()

    def __call__(self, model: FakeModel, **options: Any) -> Engine:
        clock = options.pop("clock", None)
        settings = self._make_settings(**{"max_batch_wait_s": 0.0, "warm_up_s": 0.0} | options)
        clocks = {"clock": clock} if clock else {}
        engine = Engine(
            "fake",
            lambda: LocalModel(model, **clocks),
            settings,
            on_batch=self.batches.append,
            on_death=self.died.set,
            **clocks,
        )
        engine.start()
        self._stack.callback(engine.stop, 10.0)
        wait_until(lambda: engine.phase == "ready")
        model.forget_warm_up()
        return engine


@pytest.fixture
def start(make_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    monkeypatch.setattr("service.health.MIN_PROBE_GAP_S", 0.01)
    with ExitStack() as stack:
        yield Start(make_settings, stack)


@contextmanager
def _one_batch(engine: Engine, model: FakeModel) -> Iterator[None]:
    """What is submitted in the block waits until its end behind a batch that is held."""
    with model.held():
        first = _job("first")
        engine.submit(first)
        assert model.has_begun.wait(10)
        yield
    _answer(first)


def _submit_batch(engine: Engine, model: FakeModel, *questions: str) -> list[Job]:
    jobs = [_job(question) for question in questions]
    with _one_batch(engine, model):
        for job in jobs:
            engine.submit(job)
    return jobs


def test_a_batch_gives_each_job_its_own_answer(start: Start, model: FakeModel) -> None:
    jobs = _submit_batch(start(model), model, "is a", "is b", "is c")
    assert [_answer(job) for job in jobs] == ["a", "b", "c"]
    assert model.batches == [["first"], ["is a", "is b", "is c"]]


def test_the_batch_stands_on_the_answer_and_in_the_record(start: Start, model: FakeModel) -> None:
    job, *_ = _submit_batch(start(model, keep_mode="per_instance"), model, "is a", "is b")
    served = job.future.result(10)
    assert (served.batch_size, served.keep_mode) == (2, "per_instance")
    wait_until(lambda: len(start.batches) == 2)
    record = BatchRecord("vqa", "fake", 2, tokens=2 * (16 + 6), prune_temperature=0, flops_target=0.5)
    assert replace(start.batches[1], prune_temperature=0) == record


@pytest.mark.parametrize(
    ("model", "settings", "wanted"),
    [
        (FakeModel(), {}, 2.5),  # the fake calibration: batch size + target
        (FakeModel(), {"controller": "off"}, 32.5),
        (FakeModel(), {"prune_temperature": 0.9}, 0.9),
        (FakeModel(is_calibrated=False), {}, 0.0),
        (FakeModel(is_calibrated=False), {"prune_temperature": 0.9}, 0.9),
        (FakeModel(is_pruned=False), {"prune_temperature": 0.9}, 0.0),
    ],
)
def test_prune_temperature(start: Start, model: FakeModel, settings: dict[str, Any], wanted: float) -> None:
    _submit_batch(start(model, **settings), model, "is a", "is b")[0].future.result(10)
    assert model.temperatures[1] == pytest.approx(wanted, abs=0.01)  # the first batch has corrected it a bit


def test_packed_every_request_has_its_own_temperature(start: Start, model: FakeModel) -> None:
    engine = start(model, keep_mode="per_instance")
    jobs = [_job("is a", target=TargetClass(f"{ratio}", ratio, False)) for ratio in (0.25, 0.5)]
    with _one_batch(engine, model):
        for job in jobs:
            engine.submit(job)
    served = [job.future.result(10) for job in jobs]
    assert model.temperatures[1] == pytest.approx([1.25, 1.5], abs=0.01)
    assert [one.setting.prune_temperature for one in served] == model.temperatures[1]


def test_under_max_keep_a_batch_holds_one_target_class(start: Start, model: FakeModel) -> None:
    engine = start(model)
    jobs = [_job("is a"), _job("is exact", target=EXACT), _job("is b")]
    with _one_batch(engine, model):
        for job in jobs:
            engine.submit(job)
    assert [_answer(job) for job in jobs] == ["a", "exact", "b"]
    assert sorted(model.batches[1:]) == [["is a", "is b"], ["is exact"]]
    assert model.temperatures[1 + model.batches[1:].index(["is exact"])] == 0.0


def test_under_max_keep_a_batch_holds_one_shape_unless_it_runs_dense(start: Start, model: FakeModel) -> None:
    engine = start(model)
    jobs = [_job("is a"), _job("is several b"), _job("is c"), _job("is d", target=EXACT)]
    jobs.append(_job("is several e", target=EXACT))
    with _one_batch(engine, model):
        for job in jobs:
            engine.submit(job)
    assert [_answer(job) for job in jobs] == ["a", "b", "c", "d", "e"]
    assert sorted(model.batches[1:]) == [["is a", "is c"], ["is d", "is several e"], ["is several b"]]


def test_alike_requests_run_together(start: Start, model: FakeModel) -> None:
    engine = start(model, max_batch_size=2)
    sizes = {"is large 1": 90.0, "is small 1": 10.0, "is large 2": 91.0, "is small 2": 11.0}
    jobs = [_job(question, dense_tokens=tokens) for question, tokens in sizes.items()]
    with _one_batch(engine, model):
        for job in jobs:
            engine.submit(job)
    assert [_answer(job) for job in jobs] == ["1", "1", "2", "2"]
    assert sorted(model.batches[1:]) == [["is large 1", "is large 2"], ["is small 1", "is small 2"]]


def test_in_order_of_arrival_if_the_operator_wants_it(start: Start, model: FakeModel) -> None:
    engine = start(model, max_batch_size=2, batching="fifo")
    jobs = [_job(f"is {tokens}", dense_tokens=tokens) for tokens in (90.0, 10.0, 91.0, 11.0)]
    with _one_batch(engine, model):
        for job in jobs:
            engine.submit(job)
    [_answer(job) for job in jobs]
    assert model.batches[1:] == [["is 90.0", "is 10.0"], ["is 91.0", "is 11.0"]]


def test_the_urgent_run_first(start: Start, model: FakeModel) -> None:
    engine = start(model, max_batch_size=1)
    jobs = [_job(f"is {priority}", priority=priority) for priority in (0, -1, 1)]
    with _one_batch(engine, model):
        for job in jobs:
            engine.submit(job)
    [_answer(job) for job in jobs]
    assert model.batches[1:] == [["is 1"], ["is 0"], ["is -1"]]


def test_what_was_measured_is_predicted(start: Start, model: FakeModel) -> None:
    engine = start(model)
    features = tuple(float(number) for number in range(len(REQUEST_FEATURES)))
    first, second = _job("is a", features=features), _job("is b", features=features)
    for job in (first, second):
        engine.submit(job)
        _answer(job)
        wait_until(lambda: engine.needs.mean < 1)
    assert (first.predicted_difficulty, second.predicted_difficulty) == (None, pytest.approx(0.4))


def test_what_ran_dense_says_nothing_of_difficulty(start: Start, model: FakeModel) -> None:
    engine = start(model)
    features = (0.0,) * len(REQUEST_FEATURES)
    for target in (EXACT, BALANCED):
        job = _job("is a", features=features, target=target)
        engine.submit(job)
        _answer(job)
    engine.stop(10)
    assert engine.needs._predictor.observations == 1


def test_the_predictors_state_survives_a_restart(start: Start, model: FakeModel, tmp_path: Path) -> None:
    engine = start(model, state_dir=tmp_path)
    job = _job("is a", features=(0.0,) * len(REQUEST_FEATURES))
    engine.submit(job)
    _answer(job)
    engine.stop(10)
    assert start(FakeModel(), state_dir=tmp_path).needs.mean == pytest.approx(0.4)


def test_a_state_directory_that_cannot_be_written_harms_nobody(
    start: Start, model: FakeModel, tmp_path: Path
) -> None:
    engine = start(model, state_dir=tmp_path / "not there")
    job = _job("is a", features=(0.0,) * len(REQUEST_FEATURES))
    engine.submit(job)
    assert _answer(job) == "a"
    engine.stop(10)
    assert engine.phase == "stopped"


def test_out_of_memory_runs_smaller_batches_until_it_heals(start: Start, model: FakeModel) -> None:
    engine = start(model, max_batch_tokens=64)
    predict = model.predict

    def with_little_memory(queries: Any, **options: Any) -> Any:
        answers = predict(queries, **options)
        if len(queries) > 2:
            raise MemoryError
        return answers

    model.predict = with_little_memory  # type: ignore[method-assign]
    jobs = _submit_batch(engine, model, *(f"is {number}" for number in range(4)))
    assert [_answer(job) for job in jobs] == ["0", "1", "2", "3"]
    assert [len(batch) for batch in model.batches[1:]] == [4, 2, 2]
    model.forget_warm_up()
    jobs = _submit_batch(engine, model, *(f"is {number}" for number in range(4)))
    assert [_answer(job) for job in jobs] == ["0", "1", "2", "3"]
    assert [len(batch) for batch in model.batches[1:]] == [2, 2]


def test_no_batch_is_larger_than_the_limit(start: Start, model: FakeModel) -> None:
    jobs = _submit_batch(start(model, max_batch_size=2), model, "a", "b", "c")
    assert [_answer(job) for job in jobs] == ["a", "b", "c"]
    assert model.batches[1:] == [["a", "b"], ["c"]]


def test_one_broken_job_fails_alone_within_two_log_b_more_passes(start: Start, model: FakeModel) -> None:
    questions = [f"is {number}" for number in range(31)]
    jobs = _submit_batch(start(model), model, *questions[:13], "break it", *questions[13:])
    codes = [None if job.future.exception(10) is None else _code(job) for job in jobs]
    assert codes == [None] * 13 + ["internal"] + [None] * 18
    assert len(model.batches) <= 2 + 2 * 5


def test_one_poison_in_a_thousand_costs_few_passes_and_999_are_answered(
    start: Start, model: FakeModel
) -> None:
    questions = [f"is {number}" for number in range(999)]
    engine = start(model, max_queue=2000)
    jobs = _submit_batch(engine, model, *questions[:517], "break it", *questions[517:])
    failed = [job for job in jobs if job.future.exception(10) is not None]
    assert [job.query.question for job in failed] == ["break it"]
    assert len(model.batches) <= 1 + 32 + 2 * 5  # the first, 1,000 in batches of 32, 2 log2 32


def test_of_ten_thousand_jobs_half_cancelled_nothing_is_left(start: Start, model: FakeModel) -> None:
    engine = start(model, max_queue=10_000)
    rng = random.Random(0)
    jobs = [_job(f"is {number}") for number in range(10_000)]
    keys: dict[int, Job] = {}
    cancelled, latest = [], []
    for job in jobs:
        key = engine.submit(job)
        keys[key] = job
        latest = [*latest[-100:], key]
        if rng.random() < 0.5:  # one of those before, which waits, runs or has run
            key = latest.pop(rng.randrange(len(latest)))
            gone = keys.pop(key)
            gone.future.cancel()
            engine.cancel(key)
            cancelled.append(gone)
    assert [_answer(job) for job in keys.values()] == [job.query.question.split()[1] for job in keys.values()]
    assert all(job.is_settled for job in cancelled)
    assert len(cancelled) > 4_000
    engine.stop(10)
    assert (engine.depth(), engine.queued_tokens(), engine._queue._jobs) == (0, 0, {})


def test_a_job_that_the_model_refuses_gets_its_reason(start: Start, model: FakeModel) -> None:
    good, bad = _submit_batch(start(model), model, "is a", "refuse it")
    assert _answer(good) == "a"
    error = bad.future.exception(10)
    assert isinstance(error, ApiError)
    assert (error.code, error.message) == (
        "rejected_by_model",
        "the question has 99 tokens, at most 20 are allowed",
    )


def test_what_an_exception_says_never_reaches_the_client(start: Start, model: FakeModel) -> None:
    (job,) = _submit_batch(start(model), model, "break it")
    assert "secret" not in str(job.future.exception(10))


def test_a_score_that_is_not_finite_is_an_error_of_its_job(start: Start, model: FakeModel) -> None:
    bad, good = _submit_batch(start(model), model, "not finite", "is a")
    assert (_code(bad), _answer(good)) == ("internal", "a")


def test_a_batch_with_too_few_answers_is_asked_again_in_parts(
    start: Start, model: FakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, predict = start(model), model.predict
    monkeypatch.setattr(model, "predict", lambda queries, **options: predict(queries[:1], **options))
    assert [_answer(job) for job in _submit_batch(engine, model, "is a", "is b")] == ["a", "b"]


def test_the_loop_goes_on_after_every_kind_of_bad_batch(start: Start, model: FakeModel) -> None:
    engine = start(model)
    _submit_batch(engine, model, "break it", "refuse it", "not finite")
    later = _job("is alive")
    engine.submit(later)
    assert _answer(later) == "alive"


def test_a_metric_that_fails_does_not_end_the_engine(start: Start, model: FakeModel) -> None:
    engine = start(model)
    engine._on_batch = lambda record: 1 / 0  # type: ignore[assignment, return-value]
    for _ in range(2):
        job = _job("is a")
        engine.submit(job)
        assert _answer(job) == "a"


def test_a_cancelled_job_does_not_run(start: Start, model: FakeModel) -> None:
    engine = start(model)
    with _one_batch(engine, model):
        engine.cancel(engine.submit(_job("is cancelled")))
        kept = _job("is kept")
        engine.submit(kept)
    assert _answer(kept) == "kept"
    assert model.batches[1:] == [["is kept"]]


def test_a_job_that_nobody_waits_for_does_not_run(start: Start, model: FakeModel) -> None:
    engine = start(model)
    left, kept = _job("is left"), _job("is kept")
    with _one_batch(engine, model):
        engine.submit(left)
        engine.submit(kept)
        left.future.cancel()
    assert _answer(kept) == "kept"
    assert model.batches[1:] == [["is kept"]]


def test_an_expired_job_is_told_and_does_not_run(start: Start, model: FakeModel) -> None:
    clock = Clock()
    engine = start(model, clock=clock, probe_interval_s=1e9)
    late = _job("is late", deadline_s=101.0)
    with _one_batch(engine, model):
        engine.submit(late)
        clock.now_s = 102.0
    assert _code(late) == "deadline_exceeded"
    assert model.batches == [["first"]]


def test_a_full_queue_refuses(start: Start, model: FakeModel) -> None:
    engine = start(model, max_queue=1)
    with _one_batch(engine, model):
        engine.submit(_job("is waiting"))
        with pytest.raises(ApiError, match="overloaded"):
            engine.submit(_job("is too much"))


def test_warm_up_runs_growing_batches_dense_ones_too_and_no_more_than_allowed(
    make_settings: MakeSettings,
) -> None:
    model = FakeModel()
    engine = Engine("fake", lambda: LocalModel(model), make_settings(max_batch_size=6))
    engine.start()
    wait_until(lambda: engine.phase == "ready")
    engine.stop(10.0)
    assert [len(batch) for batch in model.batches] == [1, 1, 2, 4]
    assert sorted(model.temperatures[:2]) == [0.0, 1.5]


def test_stopping_answers_who_still_waits(start: Start, model: FakeModel) -> None:
    engine = start(model)
    running, waiting = _job("is running"), _job("is waiting")
    with model.held():
        engine.submit(running)
        assert model.has_begun.wait(10)
        engine.submit(waiting)
        engine.stop(0.0)
    assert (_answer(running), _code(waiting)) == ("running", "draining")


def test_a_dying_engine_answers_everyone_and_says_so(start: Start, model: FakeModel) -> None:
    engine = start(model)
    waiting = _job("is waiting")
    with _one_batch(engine, model):
        dying = _job("kill it")
        engine.submit(dying)
        engine.submit(waiting)
    assert (_code(dying), _code(waiting)) == ("engine_failed", "engine_failed")
    assert start.died.wait(10)
    health = engine.health()
    assert health is not None
    assert health.code == "engine_failed"
    with pytest.raises(ApiError, match="engine_failed"):
        engine.submit(_job("is late"))


def test_a_checkpoint_that_does_not_load_is_a_dead_engine(make_settings: MakeSettings) -> None:
    def load() -> LocalModel:
        raise CheckpointError("no such directory")

    died = threading.Event()
    engine = Engine("fake", load, make_settings(), on_death=died.set)
    engine.start()
    assert died.wait(10)
    assert engine.phase == "failed"


def test_an_idle_engine_probes_itself(start: Start, model: FakeModel) -> None:
    engine = start(model, probe_interval_s=0.01)
    model.is_broken = True
    wait_until(lambda: engine.health() is not None)
    model.is_broken = False
    wait_until(lambda: engine.health() is None)


def test_a_job_that_breaks_an_engine_for_good_makes_it_not_ready(start: Start, model: FakeModel) -> None:
    engine = start(model, probe_interval_s=1e9)
    model.is_broken = True
    job = _job("is a")
    engine.submit(job)
    assert _code(job) == "internal"
    wait_until(lambda: engine.health() is not None)


def test_a_job_that_fails_by_itself_leaves_the_engine_ready(start: Start, model: FakeModel) -> None:
    engine = start(model)
    job = _job("break it")
    engine.submit(job)
    assert _code(job) == "internal"
    wait_until(lambda: len(model.batches) == 2)  # the job, and the probe that clears the engine
    assert engine.health() is None


def test_a_batch_that_stalls_makes_it_not_ready(start: Start, model: FakeModel) -> None:
    clock = Clock()
    engine = start(model, clock=clock, engine_stall_s=60.0, probe_interval_s=1e9)
    with model.held():
        job = _job("is slow")
        engine.submit(job)
        assert model.has_begun.wait(10)
        assert engine.health() is None
        clock.now_s += 61.0
        health, may_recover = engine.health(), not engine.is_hung
        clock.now_s += 60.0
        is_hung = engine.is_hung
    assert health is not None
    assert health.code == "engine_failed"
    assert may_recover and is_hung
    assert _answer(job) == "slow"
    assert engine.health() is None and not engine.is_hung


def test_a_probe_that_stalls_makes_it_not_ready(start: Start, model: FakeModel) -> None:
    clock = Clock()
    engine = start(model, clock=clock, engine_stall_s=60.0, probe_interval_s=10.0)
    with model.held():
        clock.now_s += 11.0
        engine.cancel(engine.submit(_job("wakes the engine")))
        assert model.has_begun.wait(10)
        assert engine.health() is None
        clock.now_s += 61.0
        assert engine.health() is not None
    wait_until(lambda: engine.health() is None)


def test_queue_time_and_inference_time_come_from_the_clock(start: Start, model: FakeModel) -> None:
    clock = Clock()
    engine = start(model, clock=clock, probe_interval_s=1e9)
    job = _job("is a")
    with _one_batch(engine, model):
        engine.submit(job)
        clock.now_s += 3.0
    job.note_served(job.future.result(10))
    assert job.seconds["queue"] == pytest.approx(3.0)
    assert job.seconds["inference"] == pytest.approx(0.0)
