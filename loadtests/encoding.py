"""Fields as the bytes of a request: multipart or JSON, as docs/api.md has it."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence

Field = tuple[str, str | float | bytes]  # bytes are a picture

REPEATED = ("images", "texts")  # lists in JSON, repeated parts in multipart
_BOUNDARY = b"loadtests-3f7c1b52d0a94e68"  # 64 bits of chance: no picture holds it


def encode_multipart(fields: Sequence[Field], picture_format: str) -> tuple[str, bytes]:
    """Give the content type and the body; pictures are files of the media type image/<picture_format>."""
    parts = []
    for name, value in fields:
        head = f'Content-Disposition: form-data; name="{name}"'
        if isinstance(value, bytes):
            head += f'; filename="scene.{picture_format}"\r\nContent-Type: image/{picture_format}'
        content = value if isinstance(value, bytes) else str(value).encode()
        parts.append(b"--" + _BOUNDARY + b"\r\n" + head.encode() + b"\r\n\r\n" + content + b"\r\n")
    body = b"".join([*parts, b"--" + _BOUNDARY + b"--\r\n"])
    return f"multipart/form-data; boundary={_BOUNDARY.decode()}", body


def encode_json(fields: Sequence[Field], picture_format: str) -> tuple[str, bytes]:
    """Give the content type and the body; pictures are base64, whose format the server sees by its bytes."""
    content: dict[str, str | float] = {}
    lists: dict[str, list[str | float]] = {}
    for name, value in fields:
        plain = base64.b64encode(value).decode() if isinstance(value, bytes) else value
        if name in REPEATED:
            lists.setdefault(name, []).append(plain)
        else:
            content[name] = plain
    return "application/json", json.dumps(content | lists).encode()


ENCODINGS = {"multipart": encode_multipart, "json": encode_json}
