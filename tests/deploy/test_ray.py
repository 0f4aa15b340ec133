"""The Ray application: gateway, in-process HTTP, loads and scaling without Ray; and what Ray is given."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
import yaml
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.testclient import TestClient

from deploy.ray.engine import EngineReplica
from deploy.ray.exchange import Forwarded, Reply, answer
from deploy.ray.gateway import EngineLostError, Gateway
from deploy.ray.loads import Loads
from deploy.ray.scaling import QUEUED_TOKENS, QueuedTokensPolicy
from service.settings import Settings, load_settings
from tests.serving.fakes import FakeModel

ROOT = Path(__file__).parents[2]
RAY = ROOT / "deploy" / "ray"
GOOD = Reply(200, ((b"content-type", b"text/plain"), (b"x-own", b"1")), b"answer")
BUSY = Reply(503, ((b"content-type", b"text/plain"),), b"draining")
Ask = Callable[[Forwarded], Awaitable[Reply]]


def asking(*outcomes: Reply | Exception) -> tuple[Ask, list[Forwarded]]:
    """Give an `ask` that has these outcomes in turn, the last for ever, and the list of what it was asked."""
    asked: list[Forwarded] = []

    async def ask(request: Forwarded) -> Reply:
        asked.append(request)
        outcome = outcomes[min(len(asked), len(outcomes)) - 1]
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    return ask, asked


def client_of(ask: Ask, **changes: Any) -> TestClient:
    options: dict[str, Any] = {"max_body_bytes": 100, "deadline_s": 5.0, "attempts": 3, "retry_wait_s": 0.0}
    gateway = Gateway(ask, **(options | changes))

    async def endpoint(request: Request) -> Response:
        return await gateway(request)

    return TestClient(Starlette(routes=[Route("/{path:path}", endpoint, methods=["GET", "POST"])]))


def test_the_gateway_passes_a_request_and_its_answer_on() -> None:
    ask, asked = asking(GOOD)
    response = client_of(ask).post("/v1/vqa?report=none", content=b"body", headers={"x-request-id": "mine"})
    assert (response.status_code, response.content, response.headers["x-own"]) == (200, b"answer", "1")
    (request,) = asked
    assert (request.method, request.path, request.query, request.body) == (
        "POST",
        "/v1/vqa",
        b"report=none",
        b"body",
    )
    assert dict(request.headers)[b"x-request-id"] == b"mine"
    assert dict(request.headers)[b"content-length"] == b"4"


@pytest.mark.parametrize("first", [EngineLostError(), BUSY], ids=["engine died", "engine drains"])
def test_what_an_engine_lost_is_asked_again(first: Reply | Exception) -> None:
    ask, asked = asking(first, GOOD)
    assert client_of(ask).post("/v1/vqa", content=b"x").content == b"answer"
    assert asked[0] == asked[1]


def test_an_answer_that_is_no_success_is_not_asked_again() -> None:
    ask, asked = asking(Reply(429, ((b"retry-after", b"7"),), b"later"))
    response = client_of(ask).post("/v1/vqa", content=b"x")
    assert (response.status_code, response.headers["retry-after"], len(asked)) == (429, "7", 1)


def test_attempts_end() -> None:
    ask, asked = asking(EngineLostError())
    response = client_of(ask).post("/v1/vqa", content=b"x", headers={"x-request-id": "mine"})
    assert (response.status_code, len(asked)) == (503, 3)
    assert response.json()["error"]["code"] == "engine_failed"
    assert response.json()["error"]["request_id"] == "mine"
    ask, _ = asking(EngineLostError(), BUSY)
    assert client_of(ask).post("/v1/vqa", content=b"x").content == b"draining"


def test_the_deadline_holds_for_all_attempts_together() -> None:
    async def ask(request: Forwarded) -> Reply:
        await asyncio.sleep(10)
        return GOOD

    response = client_of(ask, deadline_s=0.02).post("/v1/vqa", content=b"x")
    assert (response.status_code, response.json()["error"]["code"]) == (504, "deadline_exceeded")


def test_a_large_body_reaches_no_engine() -> None:
    ask, asked = asking(GOOD)
    response = client_of(ask).post("/v1/vqa", content=b"x" * 101)
    assert (response.status_code, response.json()["error"]["code"], asked) == (413, "body_too_large", [])


def test_a_cancelled_caller_is_a_client_that_went_away() -> None:
    seen: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append((await receive())["type"])
        seen.append((await receive())["type"])

    async def talk() -> None:
        work = asyncio.ensure_future(answer(app, Forwarded("POST", "/", b"", (), b"x")))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        work.cancel()
        with pytest.raises(asyncio.CancelledError):
            await work

    asyncio.run(talk())
    assert seen == ["http.request", "http.disconnect"]


def test_a_replica_answers_as_the_service_does_and_reports_its_load() -> None:
    async def talk() -> tuple[Reply, dict[str, float], dict[str, float]]:
        replica = EngineReplica(load_settings(env_file=None, warm_up_s=0), {"fake": FakeModel()})
        try:
            await replica.ready()
            replica.check_health()
            reply = await replica.serve(Forwarded("GET", "/readyz", b"", ((b"x-request-id", b"mine"),), b""))
            return reply, replica.record_autoscaling_stats(), replica.record_routing_stats()
        finally:
            replica.stop()

    reply, waiting, report = asyncio.run(talk())
    assert (reply.status, dict(reply.headers)[b"x-request-id"]) == (200, b"mine")
    assert waiting == {QUEUED_TOKENS: 0.0}
    assert (report["report"], report["inside_tokens"]) == (1, 0.0)
    assert report["typical_tokens"] > 0


def test_a_replica_whose_model_cannot_be_loaded_says_so() -> None:
    async def talk() -> None:
        replica = EngineReplica(load_settings(env_file=None, models="demo=no-such-directory"))
        try:
            await replica.ready()
        finally:
            replica.stop()

    with pytest.raises(RuntimeError, match="failed"):
        asyncio.run(talk())


def report(number: int, inside: float, typical: float = 10.0) -> dict[str, float]:
    return {"report": number, "inside_tokens": inside, "typical_tokens": typical}


def test_the_fewest_tokens_come_first_and_what_was_sent_counts_until_the_next_report() -> None:
    loads = Loads()
    reports = {"a": report(1, 15.0), "b": report(1, 0.0)}
    assert loads.ranked(reports) == ["b", "a"]
    loads.note_sent("b")
    assert loads.ranked(reports) == ["b", "a"]
    loads.note_sent("b")
    assert loads.ranked(reports) == ["a", "b"]
    assert loads.ranked(reports | {"b": report(2, 5.0)}) == ["b", "a"]


def test_an_engine_without_a_report_is_idle_and_one_that_is_gone_is_forgotten() -> None:
    loads = Loads()
    assert loads.ranked({"a": report(1, 15.0), "new": {}}) == ["new", "a"]
    loads.forget_all_but(["new"])
    assert loads.ranked({"a": report(0, 0.0), "new": report(0, 1.0)}) == ["a", "new"]


@pytest.mark.parametrize(("tokens", "wanted"), [((0, 0), 2), ((4000, 1), 3), ((1e9, 0), 4)])
def test_engines_follow_the_queued_tokens_within_bounds(tokens: tuple[float, float], wanted: int) -> None:
    context = SimpleNamespace(
        aggregated_metrics={QUEUED_TOKENS: dict(enumerate(tokens))},
        capacity_adjusted_min_replicas=2,
        capacity_adjusted_max_replicas=4,
    )
    assert QueuedTokensPolicy(2000)(context) == (wanted, {})


def ray_service() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((RAY / "rayservice.yaml").read_text("utf-8"))
    return found


def test_the_ray_service_is_hardened_and_bounded_and_of_one_image_and_version() -> None:
    cluster = ray_service()["spec"]["rayClusterConfig"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    dockerfile = (RAY / "Dockerfile").read_text("utf-8")
    assert f"ray[serve]=={cluster['rayVersion']}" in dockerfile
    for group in groups:
        spec = group["template"]["spec"]
        (container,) = spec["containers"]
        assert spec["enableServiceLinks"] is False
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        assert container["image"] == "madtp-serve-ray:cpu"
        assert {"cpu", "memory"} <= set(container["resources"]["limits"])
        names = {each["name"] for each in container["env"]}
        assert {name.removeprefix("MADTP_").lower() for name in names} <= set(Settings.model_fields)


def test_the_pods_of_the_ray_service_are_valid_by_kubernetes_schema() -> None:
    validator = pytest.importorskip("kubernetes_validate")
    cluster = ray_service()["spec"]["rayClusterConfig"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        assert set(group) <= {
            "groupName", "replicas", "minReplicas", "maxReplicas", "rayStartParams", "template",
        }  # fmt: skip
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "any"}, **group["template"]}
        validator.validate(pod, validator.latest_version(), strict=True)


def test_the_ray_service_gives_options_that_exist() -> None:
    pytest.importorskip("ray.serve")
    from deploy.ray import application

    (found,) = yaml.safe_load(ray_service()["spec"]["serveConfigV2"])["applications"]
    module, _, name = found["import_path"].partition(":")
    assert (module, name) == (application.__name__, application.build.__name__)
    application.Options.model_validate(found["args"])


@pytest.mark.slow
def test_two_replicas_answer_on_the_loopback(tmp_path: Path) -> None:
    """Starts a Ray of its own; half a minute on two processors."""
    pytest.importorskip("ray.serve")
    checkpoint = ROOT / "checkpoints" / "blip-vqa-shapes"
    port, environment = 8763, {"MADTP_MODELS": f"demo={checkpoint}", "MADTP_WARM_UP_S": "0"}
    process = subprocess.Popen(
        [sys.executable, "-m", "deploy.ray", "--port", str(port)], cwd=ROOT, env={**os.environ, **environment}
    )
    try:
        for _ in range(180):
            time.sleep(1)
            try:
                if httpx.get(f"http://127.0.0.1:{port}/readyz").status_code == 200:
                    break
            except httpx.TransportError:
                assert process.poll() is None
        with (ROOT / "examples" / "scene-1.png").open("rb") as picture:
            response = httpx.post(
                f"http://127.0.0.1:{port}/v1/vqa",
                data={"question": "how many objects are there"},
                files={"image": picture},
            )
        assert response.status_code == 200
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(90) == 0
