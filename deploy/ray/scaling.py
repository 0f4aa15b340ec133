"""How many engines there should be: the tokens that wait over what one engine may have waiting."""

from __future__ import annotations

import math
from typing import Any

QUEUED_TOKENS = "queued_tokens"  # the name of the metric that replicas report


class QueuedTokensPolicy:
    """Ray Serve's autoscaling policy; bounds and delays are Serve's own, of its AutoscalingConfig."""

    def __init__(self, tokens_per_replica: float) -> None:
        if not tokens_per_replica > 0:
            raise ValueError(f"tokens_per_replica must be above 0, got {tokens_per_replica}")
        self._tokens_per_replica = tokens_per_replica

    def __call__(self, context: Any) -> tuple[int, dict[str, Any]]:
        """Give the number of replicas wanted, and no state; `context` is Ray's AutoscalingContext."""
        waiting = (context.aggregated_metrics or {}).get(QUEUED_TOKENS, {})
        wanted = math.ceil(sum(waiting.values()) / self._tokens_per_replica)
        least, most = context.capacity_adjusted_min_replicas, context.capacity_adjusted_max_replicas
        return min(most, max(least, wanted)), {}
