"""The tasks: one file each, found by the name that metrics and logs call it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from service.tasks.base import Task
from service.tasks.caption import CAPTION
from service.tasks.embeddings import EMBEDDINGS
from service.tasks.reasoning import REASONING
from service.tasks.retrieval import RETRIEVAL
from service.tasks.vqa import VQA

if TYPE_CHECKING:
    from starlette.types import Scope

TASKS: Mapping[str, Task] = {task.name: task for task in (VQA, CAPTION, REASONING, RETRIEVAL, EMBEDDINGS)}
_BY_PATH = {task.path: name for name, task in TASKS.items()}


def asked_task(scope: Scope) -> str | None:
    """The name of the task that an ASGI request asks for; None where it asks for something else."""
    if scope["type"] != "http" or scope["method"] != "POST":
        return None
    return _BY_PATH.get(scope["path"])
