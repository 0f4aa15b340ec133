"""Around a request: ids, the size of a body as it streams, connections, clients that go away."""

import asyncio
import json
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from starlette.testclient import TestClient

from service.errors import ApiError
from service.middleware import RequestGuard, error_response
from tests.serving.conftest import Serve, wait_until
from tests.serving.fakes import FakeModel
from tests.serving.test_errors import check

Message = dict[str, Any]


def test_the_clients_id_is_kept(client: TestClient) -> None:
    assert client.get("/livez", headers={"x-request-id": "a.B-1:2_3"}).headers["x-request-id"] == "a.B-1:2_3"


@pytest.mark.parametrize("given", ["", "has space", "x" * 129, "<script>", "ä"])
def test_another_id_is_replaced(client: TestClient, given: str) -> None:
    found = client.get("/livez", headers={"x-request-id": given.encode("latin-1")}).headers["x-request-id"]
    assert len(found) == 32
    assert found.isalnum()


def test_every_request_without_an_id_gets_a_new_one(client: TestClient) -> None:
    assert len({client.get("/livez").headers["x-request-id"] for _ in range(3)}) == 3


def test_a_body_that_announces_too_much_is_refused_unread(serve: Serve, question: Message) -> None:
    client = serve(max_body_bytes=100)
    check(client.post("/v1/vqa", json=question), "body_too_large")
    response = client.post("/v1/vqa", json=question | {"question": "is it? " * 10_000})
    check(response, "body_too_large")
    assert response.headers["connection"] == "close"


def test_a_body_that_streams_too_much_is_refused(serve: Serve, png: bytes) -> None:
    client = serve(max_body_bytes=100)
    chunks = (b"x" * 30 for _ in range(10))  # no content-length
    response = client.post("/v1/vqa", content=chunks, headers={"content-type": "application/json"})
    check(response, "body_too_large")


def test_a_multipart_body_that_streams_too_much_is_refused(serve: Serve) -> None:
    client = serve(max_body_bytes=200)
    head = b'--b\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n'
    chunks = iter([head, *[b"x" * 50] * 10])
    headers = {"content-type": "multipart/form-data; boundary=b"}
    check(client.post("/v1/vqa", content=chunks, headers=headers), "body_too_large")


def test_bodies_inside_have_room_for_so_many_bytes_together(
    serve: Serve, model: FakeModel, question: Message
) -> None:
    size = len(json.dumps(question).encode())
    client = serve(max_body_bytes=size, max_bytes_inside=size + 10)
    with model.held():
        first = threading.Thread(target=client.post, args=("/v1/vqa",), kwargs={"json": question})
        first.start()
        assert model.has_begun.wait(10)
        response = client.post("/v1/vqa", json=question)
        check(response, "overloaded")
        assert int(response.headers["retry-after"]) >= 1
    first.join(10)
    assert client.post("/v1/vqa", json=question).status_code == 200


def test_a_body_that_is_alone_always_has_room(serve: Serve, question: Message) -> None:
    client = serve(max_bytes_inside=1)
    assert [client.post("/v1/vqa", json=question).status_code for _ in range(2)] == [200, 200]


def test_a_large_file_never_touches_the_disk(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", "no/such/directory")
    response = client.post("/v1/vqa", data={"question": "is it?"}, files={"image": b"\0" * 3_000_000})
    check(response, "unsupported_image", "image")


def test_a_body_of_exactly_the_limit_is_read(serve: Serve, question: Message) -> None:
    client = serve(max_body_bytes=len(json.dumps(question).encode()))
    response = client.post(
        "/v1/vqa", content=json.dumps(question), headers={"content-type": "application/json"}
    )
    assert response.status_code == 200


def test_an_answered_body_keeps_the_connection(client: TestClient, question: Message) -> None:
    assert "connection" not in client.post("/v1/vqa", json=question).headers


class Exchange:
    """Drives an ASGI app by hand; `sent` are its messages, each with how many chunks it had read by then."""

    def __init__(self, chunks: list[bytes], headers: dict[str, str], path: str = "/v1/vqa") -> None:
        self.scope: Message = {
            "type": "http",
            "method": "POST",
            "path": path,
            "query_string": b"",
            "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
        }
        self._chunks = chunks
        self.read = 0
        self.has_left = asyncio.Event()
        self.sent: list[tuple[int, Message]] = []

    async def receive(self) -> Message:
        if self.read < len(self._chunks):
            self.read += 1
            return {
                "type": "http.request",
                "body": self._chunks[self.read - 1],
                "more_body": self.read < len(self._chunks),
            }
        await self.has_left.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        self.sent.append((self.read, message))

    async def run(self, app: Callable[..., Awaitable[None]]) -> None:
        await app(self.scope, self.receive, self.send)


def _guard(app: Any, **options: float) -> RequestGuard:
    return RequestGuard(app, max_body_bytes=100, max_bytes_inside=100, **options)


async def _refusing(scope: Message, receive: Any, send: Any) -> None:
    await error_response(ApiError("overloaded"), "r")(scope, receive, send)


def _messages(exchange: Exchange) -> list[Message]:
    return [message for _, message in exchange.sent]


def test_a_small_body_is_read_away_and_the_connection_stays_open() -> None:
    exchange = Exchange([b"x"] * 5, {"content-length": "5"})
    asyncio.run(exchange.run(_guard(_refusing)))
    start, answer = _messages(exchange)
    assert b"connection" not in dict(start["headers"])
    assert b"overloaded" in answer["body"]
    assert [read for read, _ in exchange.sent] == [5, 5]


def test_a_large_unread_body_is_answered_first_then_read_away_then_closed() -> None:
    exchange = Exchange([b"x"] * 5, {"content-length": "70000"})
    asyncio.run(exchange.run(_guard(_refusing)))
    start, answer, end = _messages(exchange)
    assert (b"connection", b"close") in start["headers"]
    assert b"overloaded" in answer["body"]
    assert answer["more_body"] is True
    assert [read for read, _ in exchange.sent] == [0, 0, 5]
    assert end == {"type": "http.response.body", "body": b""}


def test_reading_away_ends_after_a_while() -> None:
    exchange = Exchange([], {"content-length": "70000"})  # announces a body and sends nothing
    asyncio.run(exchange.run(_guard(_refusing, linger_s=0.01)))
    assert len(exchange.sent) == 3


def test_a_small_body_that_does_not_come_is_not_waited_for_long() -> None:
    exchange = Exchange([], {"content-length": "5"})
    asyncio.run(exchange.run(_guard(_refusing, linger_s=0.01)))
    start, *_ = _messages(exchange)
    assert (b"connection", b"close") in start["headers"]


def test_a_client_that_expects_to_be_told_to_continue_is_not_read_at_all() -> None:
    exchange = Exchange([b"x"] * 5, {"content-length": "5", "expect": "100-continue"})
    asyncio.run(exchange.run(_guard(_refusing)))
    assert exchange.read == 0
    assert len(exchange.sent) == 2


def test_an_error_after_the_answer_began_closes_the_connection() -> None:
    async def breaking(scope: Message, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise RuntimeError("half way")

    exchange = Exchange([], {})
    with pytest.raises(RuntimeError, match="half way"):
        asyncio.run(exchange.run(_guard(breaking)))


def test_a_request_that_the_server_waits_no_longer_for_is_told_that_it_drains() -> None:
    async def hanging(scope: Message, receive: Any, send: Any) -> None:
        await asyncio.sleep(60)

    async def abandon(exchange: Exchange) -> None:
        task = asyncio.ensure_future(exchange.run(_guard(hanging)))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    exchange = Exchange([], {})
    asyncio.run(abandon(exchange))
    start, answer = _messages(exchange)
    assert start["status"] == 503
    assert b"draining" in answer["body"]


@pytest.mark.parametrize(("is_draining", "outcome"), [(True, "unavailable"), (False, "cancelled")])
def test_a_handler_that_is_cancelled_frees_its_place_and_is_counted(
    client: TestClient, is_draining: bool, outcome: str
) -> None:
    runtime = client.app.state.runtime  # type: ignore[attr-defined]
    job = runtime.open_job("vqa", "r", {})

    async def abandon() -> None:
        async with runtime.serving(job):
            assert runtime.fleet.inside == 1
            runtime.is_draining = is_draining
            raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(abandon())
    assert (runtime.fleet.inside, job.outcome) == (0, outcome)


def test_a_client_that_goes_away_cancels_its_job(
    client: TestClient, model: FakeModel, question: Message
) -> None:
    """The job waits behind one that is held; its client leaves; it never runs."""
    app: Any = client.app
    engine = app.state.runtime.fleet.engines["fake"]
    content = json.dumps(question | {"question": "is left"}).encode()
    headers = {"content-type": "application/json", "content-length": str(len(content))}

    async def leave() -> Exchange:
        exchange = Exchange([content], headers)
        task = asyncio.ensure_future(exchange.run(app))
        while engine.depth() == 0:
            await asyncio.sleep(0.002)
        exchange.has_left.set()
        await task
        return exchange

    with model.held():
        first = threading.Thread(target=client.post, args=("/v1/vqa",), kwargs={"json": question})
        first.start()
        assert model.has_begun.wait(10)
        exchange = asyncio.run(leave())
        assert engine.depth() == 0
    first.join(10)
    assert _messages(exchange)[0]["status"] == 499
    assert [questions for batch in model.batches for questions in batch] == ["is it red?"]
    wait_until(lambda: app.state.runtime.fleet.inside == 0)
    outcome = 'madtp_requests_total{model="fake",outcome="cancelled",task="vqa"} 1.0'
    assert outcome in client.get("/metrics").text
