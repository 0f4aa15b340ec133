"""The errors a user can meet; everything else is a bug of ours."""

from collections.abc import Iterable


class MadtpError(Exception):
    """Base of every error that a caller can cause or repair."""


class ConfigError(MadtpError, ValueError):
    """A value is outside what the model or the configuration allows."""


class CheckpointError(MadtpError):
    """A checkpoint is missing, incomplete, of another geometry, or of a newer schema."""


class UnknownNameError(ConfigError):
    """A name is not in its registry; the message lists the names that are."""

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        super().__init__(f"unknown {kind} {name!r}; known: {', '.join(sorted(known))}")
        self.kind, self.name = kind, name
