"""Images from URLs: hosts of a list, addresses checked and pinned at every hop, bytes and time bounded."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Iterable, Sequence
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address
from typing import Any
from urllib.parse import SplitResult, urljoin, urlsplit

import httpcore

from service.errors import ApiError

MAX_REDIRECTS = 3
_PORTS = {"http": 80, "https": 443}
_REDIRECTS = (301, 302, 303, 307, 308)
_HEADERS = (("accept", "image/*"), ("accept-encoding", "identity"), ("user-agent", "madtp-serve"))
_TRANSLATED = IPv6Network("64:ff9b::/96")  # stands for an IPv4 address, perhaps a private one
_FAILURES = (
    httpcore.TimeoutException,
    httpcore.NetworkError,
    httpcore.ProtocolError,
    httpcore.UnsupportedProtocol,
    OSError,
    ValueError,  # a host that has no form to look up, a redirect that is no URL
)

Resolve = Callable[[str, int], Awaitable[Sequence[str]]]


class ImageFetcher:
    """Fetches images of a list of hosts; `*.host` allows every host below one.

    network, resolve: how to connect and to look up, for tests.
    """

    def __init__(
        self,
        hosts: Iterable[str],
        *,
        max_bytes: int,
        timeout_s: float,
        network: httpcore.AsyncNetworkBackend | None = None,
        resolve: Resolve | None = None,
    ) -> None:
        self._hosts = frozenset(host.lower() for host in hosts)
        self._max_bytes = max_bytes
        self._timeout_s = timeout_s
        self._network = PinnedNetwork(network or httpcore.AnyIOBackend(), resolve or look_up)

    async def fetch(self, url: str) -> bytes:
        """The body of a URL. Raises ApiError: not allowed, failed, or too large; none says what was found."""
        try:
            async with asyncio.timeout(self._timeout_s):
                return await self._follow(url.strip())
        except TimeoutError as error:
            raise ApiError("image_url_failed", "The image's URL took too long.") from error
        except _FAILURES as error:
            raise ApiError("image_url_failed") from error

    async def _follow(self, url: str) -> bytes:
        # No connection outlives its fetch: every one is looked up and checked anew.
        async with httpcore.AsyncConnectionPool(network_backend=self._network, http2=False) as pool:
            for _ in range(MAX_REDIRECTS + 1):
                target = self._checked(url)
                async with pool.stream("GET", target, headers=list(_HEADERS)) as response:
                    location = dict(response.headers).get(b"location")
                    if response.status in _REDIRECTS and location is not None:
                        url = urljoin(url, location.decode("latin-1"))
                    elif response.status == 200:
                        return await self._read(response)
                    else:
                        raise ApiError("image_url_failed")
        raise ApiError("image_url_failed", "The image's URL redirects too often.")

    async def _read(self, response: httpcore.Response) -> bytes:
        body = bytearray()
        async for chunk in response.aiter_stream():
            body += chunk
            if len(body) > self._max_bytes:
                raise ApiError("image_too_large", f"The image has more than {self._max_bytes} bytes.")
        return bytes(body)

    def _checked(self, url: str) -> httpcore.URL:
        """The URL in the parts that were checked, so that nobody reads it in another way."""
        try:
            parts = urlsplit(url)
            port = parts.port or _PORTS.get(parts.scheme)
        except ValueError as error:
            raise ApiError("image_url_not_allowed") from error
        host = (parts.hostname or "").lower()
        is_usual = url.isascii() and parts.scheme in _PORTS and port in _PORTS.values()
        if not is_usual or parts.username is not None or not self._allows(host):
            raise ApiError("image_url_not_allowed")
        return httpcore.URL(scheme=parts.scheme, host=host, port=port, target=_target(parts))

    def _allows(self, host: str) -> bool:
        labels = host.split(".")
        parents = (f"*.{'.'.join(labels[place:])}" for place in range(1, len(labels)))
        return host in self._hosts or any(parent in self._hosts for parent in parents)


class PinnedNetwork(httpcore.AsyncNetworkBackend):
    """Looks a host up once, refuses it unless all its addresses are public, and connects to one of those.

    So what was checked is what is connected to, whatever the next lookup would say.
    """

    def __init__(self, network: httpcore.AsyncNetworkBackend, resolve: Resolve) -> None:
        self._network = network
        self._resolve = resolve

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Connects to a checked address of the host; raises ApiError when one is not public."""
        addresses = await self._resolve(host, port)
        if not addresses or not all(map(is_public, addresses)):
            raise ApiError("image_url_not_allowed")
        return await self._network.connect_tcp(addresses[0], port, timeout, local_address, socket_options)

    async def connect_unix_socket(
        self, path: str, timeout: float | None = None, socket_options: Iterable[Any] | None = None
    ) -> httpcore.AsyncNetworkStream:
        """Never."""
        raise ApiError("image_url_not_allowed")

    async def sleep(self, seconds: float) -> None:
        await self._network.sleep(seconds)


async def look_up(host: str, port: int) -> list[str]:
    """Every address of a host; raises OSError where there is none."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


def is_public(address: str) -> bool:
    """Whether an address is of the open internet: not private, local, shared, multicast, nor in disguise."""
    number: IPv4Address | IPv6Address = ip_address(address.partition("%")[0])
    if isinstance(number, IPv6Address):
        if number.sixtofour or number.teredo or number in _TRANSLATED:
            return False
        number = number.ipv4_mapped or number
    return number.is_global and not number.is_multicast


def _target(parts: SplitResult) -> str:
    return (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
