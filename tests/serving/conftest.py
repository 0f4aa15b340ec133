"""Apps around fake models, and pictures to send."""

import base64
import io
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image
from starlette.testclient import TestClient

from service.app import create_app
from service.model import Model
from service.settings import Settings, load_settings
from tests.serving.fakes import FakeModel, solid_picture

if TYPE_CHECKING:
    from madtp_core.checkpoint import Checkpoint
    from madtp_core.tasks.base import PrunedModel

MakeSettings = Callable[..., Settings]
Serve = Callable[..., TestClient]


@pytest.fixture
def make_settings() -> MakeSettings:
    """Settings by keyword; neither the shell's nor a .env file's."""
    return lambda **changes: load_settings(env_file=None, **changes)


@pytest.fixture
def model() -> FakeModel:
    return FakeModel()


@pytest.fixture(scope="session")
def tiny_models(vqa_checkpoint: "Checkpoint") -> "dict[str, PrunedModel]":
    """A tiny model of every task by its task's name."""
    from tests.serving.tiny import make_models  # Hugging Face's models take a while to import

    return make_models(vqa_checkpoint)


@contextmanager
def ready_client(settings: Settings, models: Mapping[str, Any] | None = None) -> Iterator[TestClient]:
    """A ready app around these models, or those of the settings."""
    with TestClient(create_app(settings, models), raise_server_exceptions=False) as client:
        wait_until(lambda: client.get("/readyz").status_code == 200)
        yield client


@pytest.fixture
def serve(make_settings: MakeSettings, model: FakeModel, monkeypatch: pytest.MonkeyPatch) -> Iterator[Serve]:
    """Starts an app and waits until it is ready: `serve(max_queue=3)`, or `serve({"name": model})`."""
    monkeypatch.setattr("service.health.MIN_PROBE_GAP_S", 0.01)
    with ExitStack() as stack:

        def start(models: Mapping[str, Model] | None = None, **settings: Any) -> TestClient:
            client = stack.enter_context(ready_client(make_settings(**settings), models or {"fake": model}))
            for each in (models or {"fake": model}).values():
                if isinstance(each, FakeModel):
                    each.forget_warm_up()
            return client

        yield start


@pytest.fixture
def client(serve: Serve) -> TestClient:
    """A ready app with one fake model."""
    return serve()


@pytest.fixture
def png() -> bytes:
    return encode(Image.fromarray(solid_picture()), "PNG")


@pytest.fixture
def question(png: bytes) -> dict[str, Any]:
    """The JSON of a good request."""
    return {"image": base64.b64encode(png).decode(), "question": "is it red?"}


def encode(picture: Image.Image, image_format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, image_format, **options)
    return buffer.getvalue()


def wait_until(condition: Callable[[], bool], timeout_s: float = 10.0) -> None:
    """Waits for another thread; the limit is only there so that a broken build ends."""
    end_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end_s, "waited too long"
        time.sleep(0.002)
