"""The account of a conversion: every tensor of the source and every tensor of ours is in it once."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from madtp_core.convert.names import TIED, Origin, left_behind
from madtp_core.errors import CheckpointError


class Ledger:
    """What has been taken from a source, what is fresh, and everything that is wrong with it."""

    def __init__(self, source: Mapping[str, Tensor]) -> None:
        self.source = source
        self.used: set[str] = set()
        self.fresh: list[str] = []
        self._missing: list[str] = []
        self._misshapen: list[str] = []

    def fill(
        self, module: nn.Module, origin_of: Callable[[str], Origin], fresh: tuple[str, ...] = ()
    ) -> None:
        """Copy the source's tensors into a module of ours; `close` tells of all misfits together.

        fresh: parts of names; tensors of such names keep their values where the source lacks them.
        """
        taken: dict[str, Tensor] = {}
        for name, ours in module.state_dict().items():
            origin = origin_of(name)
            key = origin.key(self.source)
            if key is None:
                is_fresh = any(part in name for part in fresh)
                (self.fresh if is_fresh else self._missing).append(name if is_fresh else origin.keys[0])
                continue
            self.used.add(key)
            found, wanted = tuple(self.source[key].shape), origin.shape(ours)
            if found == wanted:
                taken[name] = origin.ours(self.source[key])
            else:
                self._misshapen.append(f"{key} {found}, wanted {wanted}")
        module.load_state_dict(taken, strict=False)

    def close(self) -> dict[str, tuple[str, ...]]:
        """What of the source stays behind, by the reason.

        Raises CheckpointError naming whatever is missing, unexpected, of another shape or untied.
        """
        dropped: dict[str, list[str]] = defaultdict(list)
        unexpected: list[str] = []
        parts = {key.split(".")[0] for key in self.used}
        for key in sorted(set(self.source) - self.used):
            reason = left_behind(key, parts)
            (unexpected if reason is None else dropped[reason]).append(key)
        wrong = {
            "missing": self._missing,
            "unexpected": unexpected,
            "of another shape": self._misshapen,
            "one tensor in BLIP, but different here": self._untied(),
        }
        if any(wrong.values()):
            told = "; ".join(
                f"{what}: {', '.join(dict.fromkeys(keys))}" for what, keys in wrong.items() if keys
            )
            raise CheckpointError(f"the checkpoint does not fit the model that its shapes describe; {told}")
        return {reason: tuple(keys) for reason, keys in dropped.items()}

    def _untied(self) -> list[str]:
        return [
            f"{first} and {second}"
            for first, second in TIED
            if {first, second} <= self.used and not torch.equal(self.source[first], self.source[second])
        ]
