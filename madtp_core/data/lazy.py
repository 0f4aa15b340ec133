"""Sequences whose items are made when they are asked for."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import TypeVar, overload

Item = TypeVar("Item", covariant=True)


class Lazy(Sequence[Item]):
    """Items made anew whenever they are asked for, one by one or a slice of them; subclasses make one."""

    @abstractmethod
    def item(self, index: int) -> Item:
        """The item at an index from 0 to the length - 1."""

    @overload
    def __getitem__(self, index: int) -> Item: ...

    @overload
    def __getitem__(self, index: slice) -> list[Item]: ...

    def __getitem__(self, index: int | slice) -> Item | list[Item]:
        """Raises IndexError for an index that is not from 0 to the length - 1."""
        if isinstance(index, slice):
            return [self.item(row) for row in range(*index.indices(len(self)))]
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} is not in 0..{len(self) - 1}")
        return self.item(index)
