"""No pruning: every token is needed, nothing is scored."""

from __future__ import annotations

import torch
from torch import Tensor

from madtp_core.attention import Signals
from madtp_core.pruning.base import Pruner, PruneStep
from madtp_core.tokens import Tokens


class NonePruner(Pruner):
    """The dense model behind the same seam."""

    def decide(self, tokens: Tokens, signals: Signals, step: PruneStep) -> tuple[Tensor, Tensor]:
        behind_class = torch.zeros(tokens.batch_size, tokens.width - 1, device=tokens.position.device)
        return behind_class, tokens.lengths() - 1
