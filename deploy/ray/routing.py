"""Ray Serve's router by predicted tokens, instead of its own by the number of requests."""

from __future__ import annotations

from typing import Any

from ray.serve.request_router import FIFOMixin, PendingRequest, ReplicaID, RequestRouter, RunningReplica

from deploy.ray.loads import Loads


class LeastTokensRouter(FIFOMixin, RequestRouter):  # type: ignore[misc]
    """Sends a request where the fewest predicted tokens are inside; a full engine is passed over."""

    def initialize_state(self, **_: Any) -> None:
        """Called by Serve in place of a constructor."""
        self._token_loads = Loads()

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """Give ranks of one replica each, in the order in which they are tried."""
        replicas = {replica.replica_id: replica for replica in candidate_replicas}
        if pending_request is not None:
            pending_request.routing_context.should_backoff = (
                True  # every replica was offered: when full, wait
            )
        self._token_loads.forget_all_but(replicas)
        ranked = self._token_loads.ranked({key: each.routing_stats for key, each in replicas.items()})
        return [[replicas[key]] for key in ranked]

    def on_request_routed(self, pending_request: PendingRequest, replica_id: ReplicaID, result: Any) -> None:
        """Called by Serve once a replica has accepted a request."""
        self._token_loads.note_sent(replica_id)
