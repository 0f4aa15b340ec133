"""Writes `.env.example` from the settings: `python -m deploy.env_example`."""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path
from typing import Any

from pydantic_core import PydanticUndefined

from service.settings import PREFIX, Settings

PATH = Path(__file__).parents[1] / ".env.example"
_WIDTH = 110
_HEAD = """\
# Every setting of the service with its default; docs/api.md says more. Copy this file to .env and take away
# the # of a line to change it. `make serve` and `docker compose up` both read .env, after the environment.

# Of docker compose alone: where packages come from at build time (empty: pip's default), the ports on this
# machine, and what the service may use (0 processors: all; set MADTP_THREADS to as many as you allow).
#PIP_INDEX_URL=
#TORCH_INDEX_URL=
#SERVICE_PORT=8000
#PROMETHEUS_PORT=9090
#GRAFANA_PORT=3000
#SERVICE_CPUS=0
#SERVICE_MEMORY=4g
"""
_SET_BY_COMPOSE = {"host", "port", "state_dir"}


def text() -> str:
    """Give the whole file."""
    return "\n".join([_HEAD, *(_entry(name, field) for name, field in Settings.model_fields.items())])


def _entry(name: str, field: Any) -> str:
    words = field.description + ("; docker compose sets its own" if name in _SET_BY_COMPOSE else "")
    about = textwrap.fill(words, _WIDTH, initial_indent="# ", subsequent_indent="# ")
    return f"{about}\n#{PREFIX}{name.upper()}={_shown(field.default)}\n"


def _shown(default: Any) -> str:
    """Give a default as it is written in a file; nothing where there is none."""
    if default is None or default is PydanticUndefined or default == ():
        return ""
    return str(default)


def main() -> int:
    """Write the file."""
    PATH.write_text(text(), "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
