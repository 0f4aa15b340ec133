"""What a route must know of its task: fields, reply, examples; the rest is `madtp_core.tasks.plain`."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from service.schemas import Reply, RequestFields

# A red disc and a blue square on white, 48 x 48, 191 bytes: the JSON examples work as they stand.
EXAMPLE_IMAGE = (
    "iVBORw0KGgoAAAANSUhEUgAAADAAAAAwAgMAAAAqbBEUAAAADFBMVEX////cKCgoUMgAAAC8azABAAAAbklEQVR42r3QsQ2DQAyF4Y/LDUBDn1EY"
    "IQ1SZswALEXDAChJYe4QUToQT7Ll388ubM5WN6xFouk9KmRyhZamQi+CFN22OJtSLOd/zmFYEOnX+cAMbkx3xjI2C5fEUvb3P9hpPdiL9/PsE66B"
    "w/oCLPcN6xB5iH8AAAAASUVORK5CYII="
)


@dataclass(frozen=True)
class Task:
    """One task as HTTP sees it.

    name: also that of its `PlainTask`. examples: JSON bodies that work as they stand, the values of the first
    stand in the form of the docs too.
    """

    name: str
    path: str
    summary: str
    description: str
    fields: type[RequestFields]
    reply: type[Reply]
    examples: Mapping[str, Mapping[str, Any]]
