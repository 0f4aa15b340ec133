"""A Ray of our own, against a stand-in for Ray: what its processes are told, and how it ends."""

import importlib
import os
import signal
import sys
from types import ModuleType
from typing import Any

import pytest

NICENESS = "RAY_worker_niceness"


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What Ray was asked, in order; `init` takes the signals, as Ray's does."""
    asked: list[str] = []
    ray, serve = ModuleType("ray"), ModuleType("ray.serve")

    def init(**_: Any) -> None:
        asked.append(f"init at niceness {os.environ[NICENESS]}")
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

    ray.init = init  # type: ignore[attr-defined]
    ray.shutdown = lambda: asked.append("ray shutdown")  # type: ignore[attr-defined]
    ray.serve = serve  # type: ignore[attr-defined]
    serve.start = lambda http_options: asked.append(f"start {http_options}")  # type: ignore[attr-defined]
    serve.shutdown = lambda: asked.append("serve shutdown")  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "ray", ray)
    monkeypatch.setitem(sys.modules, "ray.serve", serve)
    monkeypatch.delitem(sys.modules, "deploy.ray.local", raising=False)
    monkeypatch.setattr(os, "environ", os.environ.copy())
    monkeypatch.delenv(NICENESS, raising=False)
    return asked


@pytest.fixture(autouse=True)
def handlers() -> Any:
    """Put the signals' handlers back."""
    kept = {each: signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)}
    yield
    for each, handler in kept.items():
        signal.signal(each, handler)


def test_its_processes_run_at_our_priority_and_sigterm_ends_it_in_order(calls: list[str]) -> None:
    local_ray = importlib.import_module("deploy.ray.local").local_ray
    with local_ray(cpus=1, port=8123) as stop:
        assert not stop.is_set()
        signal.raise_signal(signal.SIGTERM)
        assert stop.is_set()
    assert calls == [
        "init at niceness 0",
        "start {'host': '127.0.0.1', 'port': 8123}",
        "serve shutdown",
        "ray shutdown",
    ]


def test_a_niceness_that_was_chosen_stays(calls: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(NICENESS, "5")
    with importlib.import_module("deploy.ray.local").local_ray(cpus=1, port=8123):
        pass
    assert calls[0] == "init at niceness 5"
