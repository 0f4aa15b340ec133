"""Liveness, start-up and readiness while models load, fail and recover."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from starlette.testclient import TestClient

from service.app import create_app
from service.health import CheckRecord
from tests.serving.conftest import MakeSettings, Serve, wait_until
from tests.serving.fakes import FakeModel
from tests.serving.test_errors import check


@contextmanager
def _starting(make_settings: MakeSettings, model: FakeModel) -> Iterator[TestClient]:
    """An app whose model is held in its warm-up for the time of the block."""
    app = create_app(make_settings(), {"fake": model})
    with model.held(), TestClient(app, raise_server_exceptions=False) as client:
        assert model.has_begun.wait(10)
        yield client
        model.release()


def test_a_starting_server_answers_probes_and_tells_its_phase(
    make_settings: MakeSettings, model: FakeModel, question: dict[str, Any]
) -> None:
    with _starting(make_settings, model) as client:
        assert client.get("/livez").json() == {"status": "alive"}
        response = client.get("/startupz")
        body = response.json()
        assert response.status_code == 503
        assert (body["phase"], body["models"]) == ("warming", {"fake": "warming"})
        assert body["error"]["code"] == "not_ready"
        check(client.get("/readyz"), "not_ready")
        check(client.post("/v1/vqa", json=question), "not_ready")
        assert client.get("/v1/models").json()["models"][0]["phase"] == "warming"


def test_a_server_that_still_loads_says_so(make_settings: MakeSettings) -> None:
    may_load = threading.Event()
    app = create_app(make_settings(), {"fake": FakeModel()})
    engine = app.state.runtime.fleet.engines["fake"]
    load = engine._load
    engine._load = lambda: may_load.wait(10) and load()
    with TestClient(app) as client:
        assert client.get("/startupz").json()["phase"] == "loading"
        may_load.set()
        wait_until(lambda: client.get("/startupz").json()["phase"] == "ready")
        assert client.get("/startupz").status_code == 200


def test_a_ready_server(client: TestClient) -> None:
    assert client.get("/readyz").json() == {"status": "ready"}
    assert client.get("/startupz").json() == {"phase": "ready", "models": {"fake": "ready"}}


def test_an_engine_that_breaks_and_heals(serve: Serve, model: FakeModel) -> None:
    client = serve(probe_interval_s=0.01)
    model.is_broken = True
    wait_until(lambda: client.get("/readyz").status_code == 503)
    check(client.get("/readyz"), "engine_failed")
    assert client.get("/livez").status_code == 200
    model.is_broken = False
    wait_until(lambda: client.get("/readyz").status_code == 200)


def test_a_server_whose_batch_hangs_for_good_asks_to_be_restarted(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = serve()
    monkeypatch.setattr(CheckRecord, "is_hung", property(lambda _: True))
    check(client.get("/livez"), "engine_failed")


def test_one_model_that_cannot_serve_makes_the_server_not_ready_but_the_other_serves(
    serve: Serve, question: dict[str, Any]
) -> None:
    good, bad = FakeModel(), FakeModel()
    client = serve({"good": good, "bad": bad}, probe_interval_s=0.01)
    bad.is_broken = True
    wait_until(lambda: client.get("/readyz").status_code == 503)
    assert client.post("/v1/vqa", json=question | {"model": "good"}).status_code == 200
    check(client.post("/v1/vqa", json=question | {"model": "bad"}), "engine_failed")


def test_a_model_that_does_not_load_is_a_failure(make_settings: MakeSettings) -> None:
    app = create_app(make_settings(models="gone=no/such/checkpoint"))
    with TestClient(app) as client:
        wait_until(lambda: app.state.runtime.has_failed)
        assert client.get("/startupz").json()["phase"] == "failed"
        check(client.get("/readyz"), "engine_failed")
