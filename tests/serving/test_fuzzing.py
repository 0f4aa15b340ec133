"""Requests made from the API's own description, good and bad: no route may fail on any of them."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from starlette.testclient import TestClient

from service.app import create_app
from service.errors import ERRORS
from service.settings import load_settings
from service.tasks.base import EXAMPLE_IMAGE
from tests.serving.conftest import ready_client

requests = pytest.importorskip("requests")
schemathesis = pytest.importorskip("schemathesis")

if TYPE_CHECKING:
    from madtp_core.tasks.base import PrunedModel

EXAMPLES = 16
ARGUMENTS = ("method", "url", "headers", "files", "data", "params", "json")


def _operations() -> dict[str, Any]:
    description = create_app(load_settings(None, models="none=none")).openapi()
    schema = schemathesis.openapi.from_dict(description)
    found = (result.ok() for result in schema.get_all_operations())
    return {operation.label: operation for operation in found}


def _plain(case: Any) -> dict[str, Any]:
    """A case as the arguments of a request; where it has an image of JSON's right form, a real one."""
    sent: dict[str, Any] = case.as_transport_kwargs(base_url="http://testserver")
    body = sent.get("json")
    if isinstance(body, dict) and isinstance(body.get("image"), str):
        body["image"] = EXAMPLE_IMAGE
    if isinstance(body, dict) and isinstance(body.get("images"), list):
        body["images"] = [EXAMPLE_IMAGE] * len(body["images"])
    return {name: sent[name] for name in sent if name in ARGUMENTS}


OPERATIONS = _operations()
GOOD, BAD = schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE
# A route without parameters has no bad request.
CASES = {f"{label} good": (operation, GOOD) for label, operation in OPERATIONS.items()} | {
    f"{label} bad": (operation, BAD) for label, operation in OPERATIONS.items() if label.startswith("POST")
}


@pytest.fixture(scope="module")
def client(tiny_models: "Mapping[str, PrunedModel]") -> Iterator[TestClient]:
    with ready_client(load_settings(None, warm_up_s=0, max_images=3), tiny_models) as client:
        yield client


@pytest.mark.parametrize(("operation", "mode"), CASES.values(), ids=CASES)
def test_no_request_makes_a_route_fail(client: TestClient, operation: Any, mode: Any) -> None:
    @settings(
        max_examples=EXAMPLES,
        phases=[Phase.generate],
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def check(case: Any) -> None:
        sent = requests.Request(**_plain(case)).prepare()  # which knows more forms of a body than httpx
        response = client.request(sent.method, sent.url, headers=dict(sent.headers), content=sent.body)
        assert response.status_code < 500, response.text
        if response.status_code >= 400:
            assert response.json()["error"]["code"] in ERRORS

    check()
