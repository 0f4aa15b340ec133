"""Every task is known to all who must know it."""

import pytest

from madtp_core.backbones import MODEL_CLASSES
from madtp_core.config import TASKS
from madtp_core.errors import CheckpointError
from madtp_core.tasks import load_model, model_class


def test_every_task_has_a_hugging_face_model() -> None:
    assert set(MODEL_CLASSES) == set(TASKS)


@pytest.mark.parametrize("task", TASKS)
def test_every_task_has_a_class_of_its_name(task: str) -> None:
    assert model_class(task).task == task


def test_a_name_that_leads_nowhere_is_an_error() -> None:
    with pytest.raises(CheckpointError, match="no-such/model"):
        load_model("no-such/model")
