"""The tasks: one file each, found by the name that metrics and logs call it."""

from collections.abc import Mapping

from service.tasks.base import Task
from service.tasks.caption import CAPTION
from service.tasks.embeddings import EMBEDDINGS
from service.tasks.reasoning import REASONING
from service.tasks.retrieval import RETRIEVAL
from service.tasks.vqa import VQA

TASKS: Mapping[str, Task] = {task.name: task for task in (VQA, CAPTION, REASONING, RETRIEVAL, EMBEDDINGS)}
