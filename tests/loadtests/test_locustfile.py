"""The Locust file, against a stand-in for Locust: it sends our requests and grades the replies."""

import json
import runpy
import sys
from contextlib import nullcontext
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from loadtests.requests import PreparedRequest
from loadtests.scenario import Scenario

PATH = Path(__file__).parents[2] / "loadtests" / "locustfile.py"


@pytest.fixture
def made() -> list[str]:
    """The scenarios whose requests were made."""
    return []


@pytest.fixture
def visitor(monkeypatch: pytest.MonkeyPatch, made: list[str]) -> Any:
    locust = ModuleType("locust")
    locust.HttpUser = object  # type: ignore[attr-defined]
    locust.between = lambda least, most: (least, most)  # type: ignore[attr-defined]
    locust.task = lambda function: function  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "locust", locust)

    def prepare(scenario: Scenario) -> list[PreparedRequest]:
        made.append(scenario.name)
        return [PreparedRequest("vqa", "/v1/vqa", "text/plain", b"body", "red", "easy")]

    monkeypatch.setattr("loadtests.requests.prepare_requests", prepare)
    user = runpy.run_path(str(PATH))["Visitor"]()
    user.on_start()
    return user


def test_requests_are_made_once_for_all_users(visitor: Any, made: list[str]) -> None:
    type(visitor)().on_start()
    assert made == ["uniform"]


@pytest.mark.parametrize(("answer", "failures"), [("red", []), ("blue", ["wrong answer"])])
def test_it_sends_our_requests_and_fails_wrong_answers(
    visitor: Any, answer: str, failures: list[str]
) -> None:
    told: list[str] = []
    reply = SimpleNamespace(status_code=200, text=json.dumps({"answer": answer}), failure=told.append)
    sent: list[tuple[str, bytes]] = []

    def post(path: str, *, data: bytes, headers: dict[str, str], catch_response: bool) -> Any:
        sent.append((path, data))
        return nullcontext(reply)

    visitor.client = SimpleNamespace(post=post)
    visitor.ask()
    assert sent == [("/v1/vqa", b"body")]
    assert told == failures
