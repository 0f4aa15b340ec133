"""Logs are JSON lines that follow a request and never show what it contained."""

import io
import json
import logging
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
from PIL import Image
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser
from starlette.testclient import TestClient

from service.logs import JsonFormatter, configure_logging


def _lines(caplog: pytest.LogCaptureFixture, *, with_messages: bool = False) -> list[dict[str, Any]]:
    formatter = JsonFormatter(with_messages=with_messages)
    return [json.loads(formatter.format(record)) for record in caplog.records]


def _access(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    return [line for line in _lines(caplog) if line["message"] == "request"]


def test_one_line_follows_a_request(
    client: TestClient, question: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "service"):
        client.post("/v1/vqa?report=none", json=question, headers={"x-request-id": "mine"})
    (line,) = _access(caplog)
    seconds = {"seconds", "queue_s", "decode_s", "preprocess_s", "inference_s", "postprocess_s"}
    assert seconds < set(line)
    assert line["time"].endswith("Z")
    told = {name: line[name] for name in ("level", "logger", "request_id", "method", "route", "status")}
    assert told == {
        "level": "info",
        "logger": "service.middleware",
        "request_id": "mine",
        "method": "POST",
        "route": "/v1/vqa",
        "status": 200,
    }
    assert (line["model"], line["outcome"], line["code"], line["batch_size"]) == ("fake", "ok", None, 1)


def test_an_error_is_logged_with_its_code(
    client: TestClient, question: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "service"):
        client.post("/v1/vqa", json=question | {"image": "?"})
    (line,) = _access(caplog)
    assert (line["status"], line["outcome"], line["code"]) == (422, "invalid", "invalid_base64")


def test_probes_are_not_logged_at_info(client: TestClient, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "service"):
        client.get("/livez")
    assert _access(caplog) == []


def test_neither_texts_nor_images_are_logged(
    client: TestClient, question: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    marker = "topsecret"
    with caplog.at_level(logging.INFO):
        for text in (f"is it {marker}?", f"break {marker}", f"refuse {marker}"):
            client.post("/v1/vqa", json=question | {"question": text, "candidates": [marker]})
        client.post(f"/v1/{marker}?{marker}={marker}", json={marker: marker})
    lines = [line for line in _lines(caplog) if line["logger"].startswith("service")]
    assert any("exception" in line for line in lines)
    text = json.dumps(lines)
    assert marker not in text
    assert question["image"] not in text


@pytest.fixture
def configured(monkeypatch: pytest.MonkeyPatch) -> Iterator[io.StringIO]:
    """What the service writes once its logs are set up; all is as it was afterwards."""
    stream, root, parser = io.StringIO(), logging.getLogger(), logging.getLogger("python_multipart")
    before = root.handlers, root.level, parser.level
    monkeypatch.setattr("sys.stderr", stream)
    with warnings.catch_warnings():
        logging.captureWarnings(capture=False)  # another test may have left them captured
        configure_logging("info")
        yield stream
        logging.captureWarnings(capture=False)
    root.handlers, root.level, parser.level = before


def test_warnings_are_lines_too(configured: io.StringIO) -> None:
    warnings.warn("mind the gap", stacklevel=1)
    assert json.loads(configured.getvalue())["level"] == "warning"


def test_what_libraries_remark_on_a_clients_bytes_is_not_logged(configured: io.StringIO) -> None:
    picture = Image.Exif()
    picture.load(b"Exif\0\0II*\0\x08\0\0\0\xff\xff")
    assert dict(picture) == {}
    with pytest.raises(FormParserError):
        MultipartParser(b"x").write(b"--y")
    assert configured.getvalue() == ""


def _raised() -> logging.LogRecord:
    try:
        try:
            raise KeyError("inner text")
        except KeyError as error:
            raise RuntimeError("outer text") from error
    except RuntimeError:
        import sys

        return logging.getLogger("x").makeRecord("x", logging.ERROR, "f", 1, "failed", (), sys.exc_info())


def test_an_exception_is_its_type_its_place_and_its_cause() -> None:
    line = json.loads(JsonFormatter().format(_raised()))
    exception = line["exception"]
    assert (exception["type"], exception["cause"]["type"]) == ("RuntimeError", "KeyError")
    assert exception["at"][-1].startswith("test_logs.py:")
    assert "text" not in json.dumps(line)


def test_at_level_debug_an_exception_has_its_message() -> None:
    line = json.loads(JsonFormatter(with_messages=True).format(_raised()))
    assert line["exception"]["message"] == "outer text"
