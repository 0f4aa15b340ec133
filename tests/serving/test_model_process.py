"""A model in a process of its own: what it answers, how its errors travel, and who ends with whom."""

import gc
import os
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from multiprocessing import Pipe
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pytest

from madtp_core.checkpoint import save_checkpoint
from madtp_core.errors import CheckpointError, MadtpError
from madtp_core.tasks import load_model
from madtp_core.tasks.embedding import EmbeddingQuery
from madtp_core.tasks.plain import plain_task
from madtp_core.tasks.vqa import VqaQuery
from service.controller import EXACT
from service.device import is_out_of_memory
from service.engine import Engine
from service.errors import ApiError
from service.job import Job, Prepared
from service.local_model import LocalModel
from service.model import Model, ModelLost, tasks_of, trial_query
from service.model_process import Connected, ModelHost, ModelProcess
from service.remote_model import RemoteError, RemoteModel
from service.settings import ModelSource, Settings
from tests.serving.conftest import MakeSettings, ready_client, wait_until
from tests.serving.fakes import FakeModel

if TYPE_CHECKING:
    from madtp_core.checkpoint import Checkpoint
    from madtp_core.tasks.base import PrunedModel

SOURCE = ModelSource("fake", "nowhere")
DENSE: dict[str, Any] = {"prune_temperature": 0.0, "keep_mode": "max_keep"}


class ProcessOfThreads:
    """Stands for `ModelProcess`: its models compute in threads of this process."""

    def __init__(self, models: Mapping[str, Any]) -> None:
        self.hosts: dict[str, ModelHost] = {}
        self._models = models
        self.ours: dict[str, Connected] = {}

    def connect(self, name: str) -> Connected:
        self.ours[name], theirs = Pipe()
        self.hosts[name] = host = ModelHost(theirs, self._load)
        for work in (host.read, host.compute):
            threading.Thread(target=work, daemon=True).start()
        return self.ours[name]

    def leave(self, name: str) -> None:
        self.ours[name].close()

    def _load(self, source: ModelSource, settings: Settings) -> LocalModel:
        model = self._models[source.name]
        if isinstance(model, Exception):
            raise model
        return LocalModel(model)


@contextmanager
def remote(settings: Settings, model: Any) -> Iterator[tuple[RemoteModel, ModelHost]]:
    process = ProcessOfThreads({"fake": model})
    loaded = RemoteModel.load(cast(ModelProcess, process), SOURCE, settings)
    try:
        yield loaded, process.hosts["fake"]
    finally:
        loaded.close()


def ask(question: str, side: int = 16) -> VqaQuery:
    return VqaQuery(pixel_values=np.zeros((3, side, side), np.float32), question=question)


@pytest.fixture(autouse=True)
def _logs_stay_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.model_process.configure_logging", lambda level: None)


def test_held_and_sent_queries_are_answered_in_the_order_of_the_batch(
    make_settings: MakeSettings, model: FakeModel
) -> None:
    with remote(make_settings(), model) as (far, _):
        first, last = far.hold(ask("is it red")), far.hold(ask("is it blue"))
        answers, _ = far.run("vqa", [last, ask("is it green"), first], **DENSE)
    assert [answer.answer for answer in answers] == ["blue", "green", "red"]
    assert (far.task, far.image_geometry, far.describe()) == (
        model.task,
        model.image_geometry,
        model.describe(),
    )


def test_a_query_is_held_for_as_long_as_somebody_may_ask_for_it(
    make_settings: MakeSettings, model: FakeModel
) -> None:
    with remote(make_settings(), model) as (far, host):
        held, dropped = far.hold(ask("is it red")), far.hold(ask("is it blue"))
        far.run("vqa", [held, dropped], **DENSE)
        del dropped
        gc.collect()
        far.run("vqa", [held], **DENSE)  # tells what was let go before
        wait_until(lambda: len(host._queries) == 1)
        assert far.run("vqa", [held], **DENSE)[0][0].answer == "red"


def test_errors_keep_their_kind_and_the_next_batch_is_answered(
    make_settings: MakeSettings, model: FakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    with remote(make_settings(), model) as (far, _):
        with pytest.raises(MadtpError, match="at most 20 are allowed"):
            far.run("vqa", [ask("refuse it")], **DENSE)
        with pytest.raises(RemoteError, match="RuntimeError: secret text"):
            far.run("vqa", [ask("break it")], **DENSE)
        with monkeypatch.context() as patched:
            full = RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")
            patched.setattr(model, "_answer", lambda query: (_ for _ in ()).throw(full))
            with pytest.raises(MemoryError) as caught:
                far.run("vqa", [ask("is it red")], **DENSE)
        assert is_out_of_memory(caught.value)
        assert far.run("vqa", [ask("is it red")], **DENSE)[0][0].answer == "red"


def test_a_model_that_cannot_be_loaded_says_why(make_settings: MakeSettings) -> None:
    process = ProcessOfThreads({"fake": CheckpointError("there is no config.json")})
    with pytest.raises(MadtpError, match=r"there is no config\.json"):
        RemoteModel.load(cast(ModelProcess, process), SOURCE, make_settings())
    assert process.ours["fake"].closed  # so that the process can end


def test_an_engine_whose_model_is_lost_answers_everyone_and_ends(
    make_settings: MakeSettings, model: FakeModel
) -> None:
    process = ProcessOfThreads({"fake": model})
    settings, deaths = make_settings(warm_up_s=0), []
    engine = Engine(
        "fake",
        lambda: RemoteModel.load(cast(ModelProcess, process), SOURCE, settings),
        settings,
        on_death=lambda: deaths.append(1),
    )
    engine.start()
    wait_until(lambda: engine.phase == "ready")
    jobs = []
    for question in ("is it red", "kill it"):  # which ends the thread that computes
        job = Job("r", "vqa", "fake", 0.0, float("inf"), EXACT)
        job.note_prepared(Prepared(engine.hold(ask(question)), 1, 16.0, None, 0.0, 0.0, 0.0))
        engine.submit(job)
        jobs.append(job)
    ends = [job.future.exception(10) for job in jobs]
    assert isinstance(ends[1], ApiError) and ends[1].code == "engine_failed"
    wait_until(lambda: deaths == [1])
    assert engine.phase == "failed"
    with pytest.raises(ApiError) as caught:
        engine.hold(ask("is it red"))
    assert caught.value.code == "engine_failed"


@pytest.mark.parametrize("name", ["vqa", "caption", "reasoning", "retrieval", "clip"])
def test_every_task_is_answered_as_in_the_servers_process(
    make_settings: MakeSettings, tiny_models: "dict[str, PrunedModel]", name: str
) -> None:
    here = cast(Model, tiny_models[name])
    with remote(make_settings(), here) as (far, _):
        for task in tasks_of(far):
            query = trial_query(far, task)
            answers, _ = far.run(task, [far.hold(query), query], **DENSE)
            expected, _ = LocalModel(here).run(task, [query, query], **DENSE)
            shown = plain_task(task).shown
            assert [shown(answer) for answer in answers] == [shown(answer) for answer in expected]


def test_what_temperatures_cost_is_asked_of_the_process_by_shape(
    make_settings: MakeSettings, tiny_models: "dict[str, PrunedModel]"
) -> None:
    here = tiny_models["retrieval"]
    pixels = np.random.default_rng(0).standard_normal((3, 64, 64), dtype=np.float32)
    query = EmbeddingQuery((pixels,), ("a red circle", "two squares"))
    with remote(make_settings(), here) as (far, _):
        held = far.hold(query)
        shape = far.shape_of(held)
        assert shape == here.shape_of(query)
        assert far.calibration_of(shape, "max_keep") == here.calibration_of(shape, "max_keep")


def test_the_process_serves_over_http_and_the_service_fails_with_it(
    make_settings: MakeSettings, vqa_checkpoint: "Checkpoint", tmp_path: Path, question: dict[str, Any]
) -> None:
    save_checkpoint(vqa_checkpoint, tmp_path / "tiny")
    settings = make_settings(
        models=f"tiny={tmp_path / 'tiny'}", warm_up_s=0, probe_interval_s=0.2, model_process="on"
    )
    with ready_client(settings) as client:
        reply = client.post("/v1/vqa", json=question).json()
        expected = load_model(tmp_path / "tiny")
        assert reply["report"]["dense_flops"] > 0 and isinstance(reply["answer"], str)
        assert (
            client.get("/v1/models").json()["models"][0]["description"]["parameters"]
            == (expected.describe()["parameters"])
        )
        metrics = client.get("/metrics").text
        assert "\nmodel_process_cpu_seconds_total " in metrics
        pid = client.app.state.model_process.pid()  # type: ignore[attr-defined]
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: client.app.state.runtime.has_failed)  # type: ignore[attr-defined]
        assert client.post("/v1/vqa", json=question).json()["error"]["code"] == "engine_failed"
    wait_until(lambda: not Path(f"/proc/{pid}").exists())


def test_the_process_ends_when_the_server_has_left_all_its_models(
    make_settings: MakeSettings, vqa_checkpoint: "Checkpoint", tmp_path: Path
) -> None:
    save_checkpoint(vqa_checkpoint, tmp_path / "tiny")
    process = ModelProcess(["a", "b", "never asked for"])
    source = str(tmp_path / "tiny")
    a, b = (RemoteModel.load(process, ModelSource(name, source), make_settings()) for name in "ab")
    a.close()
    os.kill(process.pid() or 0, signal.SIGTERM)  # a supervisor may signal everyone: the server drains first
    assert b.run("vqa", [ask("is it red", side=64)], **DENSE)
    b.close()
    assert not Path(f"/proc/{process.pid()}").exists()
    with pytest.raises(ModelLost):
        b.run("vqa", [ask("is it red", side=64)], **DENSE)
