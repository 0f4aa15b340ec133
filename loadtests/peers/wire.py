"""What a peer is sent and what it answers; no framework, no torch."""

from __future__ import annotations

import base64
from typing import Any


def picture_bytes(value: Any) -> bytes:
    """Give a request's image: an uploaded file, or base64 in JSON."""
    if isinstance(value, str):
        return base64.b64decode(value, validate=True)
    data: bytes = value.file.read()
    return data


def reply(answer: str, batch_size: int) -> dict[str, Any]:
    """Give what the load test reads of an answer; a peer reports no cost."""
    return {"answer": answer, "report": {"batch_size": batch_size}}
