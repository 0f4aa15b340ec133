"""Keys: who is let in with which, on which route; and pages of other origins."""

import logging

import pytest
from starlette.testclient import TestClient

from service.logs import JsonFormatter
from service.tasks import TASKS
from tests.serving.conftest import Serve
from tests.serving.test_errors import check

KEYS = ("first-key-0123456789", "second-key-0123456789")
MONITORING = "monitoring-0123456789"
API_ROUTES = [("POST", task.path) for task in TASKS.values()] + [("GET", "/v1/models"), ("GET", "/v1/none")]
OPEN_ROUTES = ["/livez", "/readyz", "/startupz", "/metrics", "/docs", "/openapi.json"]


def _bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


@pytest.fixture
def locked(serve: Serve) -> TestClient:
    return serve(api_keys=",".join(KEYS))


@pytest.mark.parametrize(("method", "path"), API_ROUTES)
def test_every_api_route_wants_a_key(locked: TestClient, method: str, path: str) -> None:
    response = locked.request(method, path, json={})
    check(response, "unauthorized")
    assert response.headers["www-authenticate"] == "Bearer"
    assert locked.request(method, path, json={}, headers=_bearer(KEYS[1])).status_code != 401


def test_who_has_no_key_is_counted(locked: TestClient) -> None:
    locked.post("/v1/vqa", json={})
    metrics = locked.get("/metrics").text
    assert 'madtp_requests_total{model="fake",outcome="invalid",task="vqa"} 1.0' in metrics


@pytest.mark.parametrize(
    "header",
    ["", "Bearer", "Bearer ", f"Basic {KEYS[0]}", f"Bearer {KEYS[0][:-1]}", f"Bearer {KEYS[0]}x", "Bearer ü"],
)
def test_anything_but_a_key_is_refused(locked: TestClient, header: str) -> None:
    check(locked.get("/v1/models", headers={"authorization": header.encode("latin-1")}), "unauthorized")


def test_keys_are_never_logged(locked: TestClient, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        locked.get("/v1/models", headers=_bearer("a-wrong-key-0123456789"))
        locked.get("/v1/models", headers=_bearer(KEYS[0]))
    text = "\n".join(JsonFormatter(with_messages=True).format(record) for record in caplog.records)
    assert '"status": 401' in text
    assert "0123456789" not in text


@pytest.mark.parametrize("path", OPEN_ROUTES)
def test_probes_metrics_and_docs_are_open(locked: TestClient, path: str) -> None:
    assert locked.get(path).status_code == 200


def test_they_may_have_a_key_of_their_own(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.serving.conftest.wait_until", lambda condition: None)  # it asks /readyz
    client = serve(monitoring_key=MONITORING, api_keys=KEYS[0])
    check(client.get("/metrics"), "unauthorized")
    check(client.get("/metrics", headers=_bearer(KEYS[0])), "unauthorized")
    check(client.get("/v1/models", headers=_bearer(MONITORING)), "unauthorized")
    assert client.get("/metrics", headers=_bearer(MONITORING)).status_code == 200


def test_without_the_setting_other_origins_learn_nothing(serve: Serve) -> None:
    response = serve().get("/v1/models", headers={"origin": "https://page.example"})
    assert [name for name in response.headers if name.startswith("access-control")] == []


def test_an_allowed_origin_may_ask_first_without_a_key(serve: Serve) -> None:
    client = serve(cors_origins="https://page.example", api_keys=KEYS[0])
    asked = {
        "origin": "https://page.example",
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization",
    }
    assert client.options("/v1/vqa", headers=asked).headers["access-control-allow-origin"] == asked["origin"]
    refused = client.options("/v1/vqa", headers=asked | {"origin": "https://other.example"})
    assert "access-control-allow-origin" not in refused.headers
    answer = client.get("/v1/models", headers=_bearer(KEYS[0]) | {"origin": asked["origin"]})
    assert answer.headers["access-control-allow-origin"] == asked["origin"]
