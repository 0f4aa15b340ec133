"""What a request may spend: quality, its own target, the floor, and what the report says of it."""

import json
from collections.abc import Sequence
from typing import Any

import pytest
from starlette.testclient import TestClient

from service.admission import Admission
from service.controller import EXACT, TargetClass
from service.job import Job
from service.steering import OneSetting
from tests.serving.conftest import Serve
from tests.serving.fakes import FakeModel
from tests.serving.test_errors import check


def _target(client: TestClient, fields: dict[str, Any]) -> tuple[float, float, str | None]:
    report = client.post("/v1/vqa", json=fields).json()["report"]
    return tuple(report["flops_target"][name] for name in ("asked", "served", "reason"))


@pytest.mark.parametrize(
    ("fields", "temperature"),
    [
        ({"quality": "exact"}, 0.0),
        ({"quality": "balanced"}, 1.5),  # the fake calibration: batch size + ratio
        ({"quality": "fast"}, 1.3),
        ({"flops_target": 0.71}, 1.71),
        ({"flops_target": 1}, 0.0),
        ({}, 1.5),
    ],
)
def test_the_temperature_follows_what_was_asked(
    serve: Serve, model: FakeModel, question: dict[str, Any], fields: dict[str, Any], temperature: float
) -> None:
    client = serve(flops_floor=0.3)
    assert client.post("/v1/vqa", json=question | fields).status_code == 200
    assert model.temperatures == [pytest.approx(temperature)]


def test_a_form_may_ask_for_it_too(client: TestClient, model: FakeModel, png: bytes) -> None:
    fields = {"question": "is it red?", "flops_target": "0.6", "quality": ""}
    assert client.post("/v1/vqa", data=fields, files={"image": png}).status_code == 200
    assert model.temperatures == [pytest.approx(1.6)]


@pytest.mark.parametrize("value", [-6, 6, 0.5, "1", True])
def test_priorities_out_of_range(client: TestClient, question: dict[str, Any], value: object) -> None:
    check(client.post("/v1/vqa", json=question | {"priority": value}), "invalid_value", "priority")


def test_the_priority_of_a_request_is_its_jobs(client: TestClient, model: FakeModel, png: bytes) -> None:
    engine = client.app.state.runtime.fleet.engines["fake"]  # type: ignore[attr-defined]
    submit, submitted = engine.submit, list[Job]()

    def noted(job: Job) -> Any:
        submitted.append(job)
        return submit(job)

    engine.submit = noted
    for priority in ("-5", "5", ""):
        fields = {"question": "is it red?", "priority": priority}
        assert client.post("/v1/vqa", data=fields, files={"image": png}).status_code == 200
    assert [job.priority for job in submitted] == [-5, 5, 0]


def test_a_target_below_the_reachable_is_served_at_the_floor_and_told(
    client: TestClient, question: dict[str, Any]
) -> None:
    assert _target(client, question | {"flops_target": 0.05}) == (0.05, 0.1, "floor")


def test_both_together_are_refused(client: TestClient, question: dict[str, Any]) -> None:
    both = {"quality": "fast", "flops_target": 0.5}
    check(client.post("/v1/vqa", json=question | both), "conflicting_fields", "flops_target")


@pytest.mark.parametrize("value", [0, -1, 1.01, "0.5", "high", True])
def test_values_out_of_range(client: TestClient, question: dict[str, Any], value: object) -> None:
    check(client.post("/v1/vqa", json=question | {"flops_target": value}), "invalid_value", "flops_target")


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_not_a_number_is_no_target(client: TestClient, png: bytes, value: str) -> None:
    fields = {"question": "is it red?", "flops_target": value}
    response = client.post("/v1/vqa", data=fields, files={"image": png})
    check(response, "invalid_value", "flops_target")


@pytest.mark.parametrize("value", ["NaN", "Infinity", "1e999"])
def test_nor_is_it_in_json(client: TestClient, question: dict[str, Any], value: str) -> None:
    content = json.dumps(question)[:-1] + f', "flops_target": {value}}}'
    response = client.post("/v1/vqa", content=content, headers={"content-type": "application/json"})
    check(response, "invalid_value", "flops_target")


def test_a_model_that_is_not_pruned_says_that_it_goes_no_lower(
    serve: Serve, question: dict[str, Any]
) -> None:
    client = serve({"dense": FakeModel(is_pruned=False)})
    assert _target(client, question) == (0.5, 1.0, "floor")
    assert _target(client, question | {"quality": "exact"}) == (1.0, 1.0, None)


def test_a_model_that_was_never_calibrated_says_so(serve: Serve, question: dict[str, Any]) -> None:
    client = serve({"new": FakeModel(is_calibrated=False)})
    assert _target(client, question) == (0.5, 1.0, "uncalibrated")
    assert _target(client, question | {"quality": "exact"}) == (1.0, 1.0, None)


def test_a_prune_temperature_that_the_operator_has_fixed_is_told(
    serve: Serve, model: FakeModel, question: dict[str, Any]
) -> None:
    client = serve(prune_temperature=0.7)
    assert _target(client, question) == (0.5, 0.5, None)
    assert _target(client, question | {"flops_target": 0.3}) == (0.3, 0.5, "fixed")
    assert _target(client, question | {"flops_target": 0.8}) == (0.8, 0.5, "fixed")
    assert model.temperatures == [0.7] * 3


def test_a_method_without_training_has_one_setting() -> None:
    low, high = (TargetClass("", ratio, may_degrade=False) for ratio in (0.4, 0.9))
    settings = OneSetting(1.0, 0.6, "method").settings([low, high, EXACT])
    assert [(one.prune_temperature, one.flops_ratio, one.reason) for one in settings] == [
        (1.0, 0.6, "method"),
        (1.0, 0.6, "method"),
        (0.0, 1.0, None),
    ]


def test_a_full_server_lowers_the_target_before_it_sheds(
    serve: Serve, model: FakeModel, question: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    client = serve(flops_floor=0.3)
    monkeypatch.setattr(Admission, "pressure", 1.0)
    targets: Sequence[Any] = [_target(client, question) for _ in range(3)]
    assert targets[-1] == (0.5, pytest.approx(0.3), "load")
    assert _target(client, question | {"flops_target": 0.5}) == (0.5, 0.5, None)
    assert _target(client, question | {"quality": "exact"}) == (1.0, 1.0, None)
