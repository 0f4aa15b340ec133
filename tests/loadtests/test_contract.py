"""Prepared requests of every task against the real service around tiny models: read, graded, costed."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest
from starlette.testclient import TestClient

from loadtests.outcome import Reply, read_reply
from loadtests.requests import prepare_requests
from loadtests.scenario import Scenario
from service.settings import load_settings
from tests.serving.conftest import ready_client

if TYPE_CHECKING:
    from madtp_core.checkpoint import Checkpoint

ARRIVALS = {"kind": "poisson", "rate": 1.0, "duration_s": 10.0}


@pytest.fixture(scope="module")
def client(vqa_checkpoint: "Checkpoint") -> Iterator[TestClient]:
    from tests.serving.tiny import make_models  # Hugging Face's models take a while to import

    settings = load_settings(env_file=None, warm_up_s=0)
    with ready_client(settings, make_models(vqa_checkpoint)) as ready:
        yield ready


@pytest.mark.parametrize("encoding", ["multipart", "json"])
@pytest.mark.parametrize("task", ["vqa", "caption", "reasoning", "retrieval", "embeddings"])
def test_every_task_is_accepted_and_its_reply_is_graded(client: TestClient, task: str, encoding: str) -> None:
    content: dict[str, Any] = {
        "name": "contract",
        "description": "A test.",
        "arrivals": ARRIVALS,
        "tasks": {task: 1},
        "texts": 3,
        "encoding": encoding,
        "quality": {"fast": 1},
        "distinct_requests": 2,
    }
    for request in prepare_requests(Scenario.model_validate(content)):
        response = client.post(
            request.path, content=request.body, headers={"content-type": request.content_type}
        )
        outcome = read_reply(Reply(0, 0.0, 0.0, 0.1, response.status_code, response.content), request)
        assert (outcome.status, outcome.problem) == (200, None), response.text
        assert (outcome.is_right is None) == (task == "embeddings")
        assert outcome.flops
        assert outcome.batch_size == 1
