"""What a pruner may ask of the block that it prunes, by name, and what attention tells it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

RECEIVED = "received"
CLASS_ROW = "class_row"
HEAD_NORMS = "head_norms"
KEYS = "keys"
MEAN_MAP = "mean_map"
ATTENTION_SIGNALS = frozenset({RECEIVED, CLASS_ROW, HEAD_NORMS, KEYS, MEAN_MAP})
PROPORTIONAL = "proportional"  # no signal: a token counts as often as the tokens that it stands for
GUIDANCE = "guidance"  # from the alignment tokens, not from here

FROM_PROBABILITIES = frozenset({RECEIVED, CLASS_ROW, MEAN_MAP})


@dataclass(frozen=True, eq=False)
class Signals:
    """What one block's self-attention tells a pruner; always float32 and padded. None: not asked for.

    received: [B, N], sum over real queries behind the protected token of max over heads of P[h, query, i].
    class_row: [B, H, N], the protected token's attention P[h, 0, i].
    head_norms: [B, H, N], norm of each head's output at token i, before the output projection.
    keys: [B, N, D], mean over heads of the keys; zero at padding.
    mean_map: [B, N, N], mean over heads of P[h, query, i]; padding's rows and columns are zero.
    """

    received: Tensor | None = None
    class_row: Tensor | None = None
    head_norms: Tensor | None = None
    keys: Tensor | None = None
    mean_map: Tensor | None = None
