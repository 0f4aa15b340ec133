"""Whether a reply is right: the label that was made with the request against what the service answered."""

from __future__ import annotations

from typing import Any

from loadtests.requests import Label
from loadtests.scenario import Task


def is_right(task: Task, label: Label, reply: dict[str, Any]) -> bool | None:
    """Grade a reply of status 200; None where there is no right one (embeddings).

    An answer or a truth must be equal, a caption one of the scene's five, the right text ranked first.
    """
    match task:
        case "vqa" | "reasoning":
            return bool(reply["answer"] == label)
        case "caption":
            assert isinstance(label, tuple), "captions are labelled with all five"
            return reply["caption"] in label
        case "retrieval":
            best = min(reply["ranked"], key=lambda item: item["rank"])
            return bool(best["index"] == label)
        case "embeddings":
            return None
