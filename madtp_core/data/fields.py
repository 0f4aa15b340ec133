"""One object of a JSON file, whose fields are checked as they are taken; errors name its place."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from madtp_core.errors import ConfigError


class Fields:
    """The fields of an object at a place such as `data.jsonl:3`; null is as if it were not there.

    Raises ConfigError for what is no object.
    """

    def __init__(self, where: str, data: Any) -> None:
        if not isinstance(data, dict):
            raise ConfigError(f"{where}: must be an object, got {data!r}")
        self.where = where
        self._left = {name: value for name, value in data.items() if value is not None}

    def has(self, name: str) -> bool:
        """Whether a field is there and has not been taken."""
        return name in self._left

    def take(self, name: str, kind: type, what: str) -> Any:
        """A field of a type; raises ConfigError where it is missing or of another."""
        if name not in self._left:
            raise ConfigError(f"{self.where}: no {name!r}; there is {', '.join(self._left) or 'nothing'}")
        value = self._left.pop(name)
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise ConfigError(f"{self.where}: {name!r} must be {what}, got {value!r}")
        return value

    def text(self, name: str) -> str:
        """A text with words in it, without the space around it."""
        return self.checked_text(name, self.take(name, str, "a text"))

    def texts(self, name: str, what: str) -> tuple[str, ...]:
        """A list of texts with words in them, at least one; what: what an error calls the list."""
        found = self.take(name, list, what)
        if not found:
            raise ConfigError(f"{self.where}: {name!r} must be {what}, got none")
        return tuple(self.checked_text(name, text) for text in found)

    def checked_text(self, name: str, value: Any) -> str:
        """The value, if it is a text with words in it."""
        if not isinstance(value, str) or not value.strip():
            raise ConfigError(f"{self.where}: {name!r} must be a text that is not empty, got {value!r}")
        return value.strip()

    def pictures(self, name: str, count: int | None) -> tuple[str, ...]:
        """The paths of so many pictures; None: of one or more."""
        paths = self.take(name, list, "a list of paths")
        if not paths or count not in (None, len(paths)):
            raise ConfigError(f"{self.where}: {name!r} must have {count or 'some'} paths, got {len(paths)}")
        return tuple(self.checked_path(path) for path in paths)

    def checked_path(self, path: Any) -> str:
        """The value, if it can be the path of a picture."""
        if not isinstance(path, str) or not path:
            raise ConfigError(f"{self.where}: an image must be a path, got {path!r}")
        return path

    def rest(self) -> Mapping[str, Any]:
        """What has not been taken."""
        return self._left


def read_json(path: Path) -> Any:
    """The contents of a JSON file; raises ConfigError for one that is not there, or naming the bad line."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{str(path)!r} cannot be read: {error.strerror}") from error
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path}:{error.lineno}: not JSON: {error}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8: {error}") from error
