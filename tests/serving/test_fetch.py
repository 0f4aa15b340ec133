"""Images from URLs: what is fetched, from whom, and what never is."""

import asyncio
from collections.abc import Iterable, Sequence
from typing import Any

import httpcore
import pytest

from service.errors import ApiError
from service.fetch import ImageFetcher, is_public
from service.job import Job
from service.runtime import Runtime
from tests.serving.conftest import MakeSettings, Serve
from tests.serving.test_errors import check

PUBLIC = "93.184.215.14"


def _reply(body: bytes = b"picture", status: str = "200 OK", *headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status}", f"content-length: {len(body)}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


class FakeNetwork(httpcore.AsyncNetworkBackend):
    """Answers by the address that is connected to; an address without an answer hangs."""

    def __init__(self, answers: dict[str, list[bytes]]) -> None:
        self.answers = answers
        self.connected: list[tuple[str, int]] = []

    async def connect_tcp(self, host: str, port: int, *_: Any, **__: Any) -> httpcore.AsyncNetworkStream:
        self.connected.append((host, port))
        if host not in self.answers:
            await asyncio.sleep(60)
        return httpcore.AsyncMockStream([self.answers[host].pop(0)])


def _fetch(
    url: str,
    network: FakeNetwork,
    hosts: Iterable[str] = ("img.example",),
    addresses: dict[str, Sequence[str]] | None = None,
    max_bytes: int = 100,
) -> bytes:
    names = addresses or {"img.example": [PUBLIC]}

    async def resolve(host: str, port: int) -> Sequence[str]:
        if host not in names:
            raise OSError("no such host")
        return names[host]

    fetcher = ImageFetcher(hosts, max_bytes=max_bytes, timeout_s=0.05, network=network, resolve=resolve)
    return asyncio.run(fetcher.fetch(url))


def _code(url: str, network: FakeNetwork, **options: Any) -> str:
    with pytest.raises(ApiError) as caught:
        _fetch(url, network, **options)
    return caught.value.code


def test_a_host_of_the_list_is_connected_to_at_the_address_that_was_checked() -> None:
    network = FakeNetwork({PUBLIC: [_reply()]})
    assert _fetch("http://img.example/a.png?size=3", network) == b"picture"
    assert network.connected == [(PUBLIC, 80)]


def test_hosts_below_one_that_is_allowed_with_a_star() -> None:
    network = FakeNetwork({PUBLIC: [_reply()]})
    names = {"a.b.example": [PUBLIC]}
    assert _fetch("http://a.b.example/", network, ["*.b.example"], names) == b"picture"
    assert _code("http://b.example/", network, hosts=["*.b.example"]) == "image_url_not_allowed"


@pytest.mark.parametrize(
    "url",
    [
        "http://other.example/a.png",
        "http://img.example.evil.example/a.png",
        "http://user@img.example/a.png",
        "http://img.example:8080/a.png",
        "http://img.example:99999/a.png",
        "http://[::1/a.png",
        "http://127.0.0.1/a.png",
        "http:///a.png",
        "http://img.example/ü.png",
        "http://IMG.example\\@other.example/",
    ],
)
def test_what_is_not_allowed_is_not_even_looked_up(url: str) -> None:
    network = FakeNetwork({})
    assert _code(url, network) == "image_url_not_allowed"
    assert network.connected == []


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "10.0.0.8",
        "192.168.1.1",
        "169.254.169.254",
        "100.64.0.1",
        "0.0.0.0",
        "224.0.0.1",
        "::1",
        "fe80::1%eth0",
        "fc00::1",
        "::ffff:10.0.0.1",
        "64:ff9b::a00:1",
        "2002:a00:1::",
    ],
)
def test_addresses_that_are_not_public_are_never_connected_to(address: str) -> None:
    assert not is_public(address)
    network = FakeNetwork({})
    names = {"img.example": [PUBLIC, address]}
    assert _code("http://img.example/", network, addresses=names) == "image_url_not_allowed"
    assert network.connected == []


def test_redirects_are_followed_within_the_list() -> None:
    replies = [_reply(b"", "302 Found", "location: /b.png"), _reply()]
    network = FakeNetwork({PUBLIC: replies})
    assert _fetch("http://img.example/a.png", network) == b"picture"


@pytest.mark.parametrize(
    "location", ["http://other.example/", "http://169.254.169.254/", "file:///etc/passwd", "//evil.example/"]
)
def test_a_redirect_is_checked_as_the_first_url_was(location: str) -> None:
    network = FakeNetwork({PUBLIC: [_reply(b"", "302 Found", f"location: {location}")]})
    assert _code("http://img.example/", network) == "image_url_not_allowed"
    assert len(network.connected) == 1


def test_a_redirect_to_a_host_whose_address_has_become_private() -> None:
    network = FakeNetwork({PUBLIC: [_reply(b"", "302 Found", "location: http://inner.example/")]})
    names = {"img.example": [PUBLIC], "inner.example": ["10.1.2.3"]}
    code = _code("http://img.example/", network, hosts=["img.example", "inner.example"], addresses=names)
    assert code == "image_url_not_allowed"
    assert network.connected == [(PUBLIC, 80)]


def test_redirects_in_a_circle_end() -> None:
    network = FakeNetwork({PUBLIC: [_reply(b"", "302 Found", "location: /a") for _ in range(9)]})
    assert _code("http://img.example/a", network) == "image_url_failed"
    assert len(network.connected) <= 4


def test_more_bytes_than_allowed() -> None:
    assert _code("http://img.example/", FakeNetwork({PUBLIC: [_reply(b"x" * 101)]})) == "image_too_large"


@pytest.mark.parametrize(
    "answer", [b"", b"nonsense\r\n\r\n", _reply(b"", "404 Not Found"), _reply(b"", "302 Found")]
)
def test_answers_that_are_no_image(answer: bytes) -> None:
    assert _code("http://img.example/", FakeNetwork({PUBLIC: [answer]})) == "image_url_failed"


def test_a_host_that_does_not_answer() -> None:
    assert _code("http://img.example/", FakeNetwork({})) == "image_url_failed"


def test_a_host_that_does_not_exist() -> None:
    names = {"other.example": [PUBLIC]}
    assert _code("http://img.example/", FakeNetwork({}), addresses=names) == "image_url_failed"


@pytest.mark.parametrize("host", ["a..img.example", "x" * 64 + ".img.example"])
def test_a_host_that_cannot_even_be_looked_up(host: str) -> None:
    fetcher = ImageFetcher(["*.img.example"], max_bytes=9, timeout_s=5.0, network=FakeNetwork({}))
    with pytest.raises(ApiError, match="image_url_failed"):
        asyncio.run(fetcher.fetch(f"http://{host}/"))


def test_a_redirect_that_is_no_url() -> None:
    network = FakeNetwork({PUBLIC: [_reply(b"", "302 Found", "location: http://[")]})
    assert _code("http://img.example/", network) == "image_url_failed"


def test_when_one_image_fails_the_others_are_not_fetched_on(
    make_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = []

    async def fetch(self: ImageFetcher, url: str) -> bytes:
        if "bad" in url:
            raise ApiError("image_url_failed")
        try:
            return await asyncio.sleep(60, b"")
        finally:
            ended.append(url)

    async def both() -> None:
        runtime = Runtime(make_settings(image_url_hosts="img.example"), {})
        job = Job("r", "reasoning", "none", arrived_s=0.0, deadline_s=1.0)
        with pytest.raises(ApiError) as caught:
            await runtime._fetched(job, [("images.0", "http://slow/"), ("images.1", "http://bad/")])
        assert caught.value.param == "images.1"
        await asyncio.sleep(0)
        assert ended == ["http://slow/"]

    monkeypatch.setattr(ImageFetcher, "fetch", fetch)
    asyncio.run(both())


def test_a_request_with_a_url(
    serve: Serve, question: dict[str, Any], png: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fetch(self: ImageFetcher, url: str) -> bytes:
        if "bad" in url:
            raise ApiError("image_url_failed")
        return png

    monkeypatch.setattr(ImageFetcher, "fetch", fetch)
    client = serve(image_url_hosts="img.example")
    response = client.post("/v1/vqa", json=question | {"image": " https://img.example/a.png"})
    assert response.status_code == 200
    check(client.post("/v1/vqa", json=question | {"image": "http://bad/"}), "image_url_failed", "image")
