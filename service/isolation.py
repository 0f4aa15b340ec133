"""Finds who spoils a batch: runs it whole, and what fails in halves, until every culprit is alone."""

from collections.abc import Sequence
from typing import Generic, TypeVar

Item = TypeVar("Item")


class Isolation(Generic[Item]):
    """The parts of one batch to run, one after the other; the first is the whole batch.

    One culprit among B costs at most 2 ceil(log2 B) passes more than the first.
    """

    def __init__(self, batch: Sequence[Item]) -> None:
        self._parts: list[tuple[Item, ...]] = [tuple(batch)] if batch else []

    def next(self) -> tuple[Item, ...]:
        """The part to run now; empty when every item has passed or was found guilty."""
        return self._parts[-1] if self._parts else ()

    def passed(self) -> None:
        """The part of `next` was answered."""
        self._parts.pop()

    def failed(self) -> tuple[Item, ...]:
        """The part of `next` failed: gives the culprit if it was alone; else both halves come next."""
        part = self._parts.pop()
        if len(part) == 1:
            return part
        middle = len(part) // 2
        self._parts += [part[middle:], part[:middle]]
        return ()
