"""The engines of a process together."""

from typing import cast

import pytest

from service.engine import Engine
from service.fleet import STOP_TIMEOUT_S, Fleet


class Sleepers:
    """Engines whose threads never end, so whoever joins one waits as long as he may, and their clock."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.told: list[str] = []

    def close(self) -> None:
        self.told.append("close")

    def join(self, timeout_s: float) -> None:
        self.told.append("join")
        self.now_s += timeout_s


def test_all_engines_together_are_waited_for_as_long_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    sleepers = Sleepers()
    monkeypatch.setattr("service.fleet.time.monotonic", lambda: sleepers.now_s)
    Fleet(dict.fromkeys("abc", cast(Engine, sleepers))).stop()
    assert sleepers.told == ["close"] * 3 + ["join"] * 3
    assert sleepers.now_s == 100.0 + STOP_TIMEOUT_S
