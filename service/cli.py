"""`madtp-serve`: flags over the environment over defaults, and a server that drains before it ends."""

from __future__ import annotations

import argparse
import gc
import sys
import time
from collections.abc import Mapping, Sequence
from types import FrameType

import uvicorn

from service.app import create_app
from service.logs import configure_logging
from service.model import Model
from service.runtime import Runtime
from service.settings import PREFIX, Settings, SettingsError, load_settings

CLOSE_TIMEOUT_S = 1


class DrainingServer(uvicorn.Server):
    """On SIGTERM or SIGINT: not ready, then serve what is inside, then exit 0; a second signal exits at once.

    uvicorn itself would close its sockets first and, having finished, end the process by the signal again.
    When an engine dies, the server stops too.
    """

    def __init__(self, config: uvicorn.Config, runtime: Runtime) -> None:
        super().__init__(config)
        self._runtime = runtime
        self._drain_began_s: float | None = None
        self._is_frozen = False

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Called by the signal."""
        if self._drain_began_s is not None:
            self.should_exit = self.force_exit = True
        else:
            self._drain_began_s = time.monotonic()
            self._runtime.begin_drain()

    async def on_tick(self, counter: int) -> bool:
        """Called ten times a second; True ends the server."""
        if self._runtime.has_failed or self._is_drained():
            self.should_exit = True
        if not self._is_frozen and self._runtime.phase == "ready":
            gc.freeze()  # to search all that torch and transformers made for garbage stops everyone for long
            self._is_frozen = True
        return await super().on_tick(counter)

    def _is_drained(self) -> bool:
        if self._drain_began_s is None:
            return False
        drained_s = time.monotonic() - self._drain_began_s
        settings = self._runtime.settings
        is_empty = self._runtime.fleet.inside == 0
        return drained_s >= settings.drain_timeout_s or (is_empty and drained_s >= settings.drain_delay_s)


def serve(settings: Settings, models: Mapping[str, Model] | None = None) -> int:
    """Serves until a signal or the engine's death; gives the exit status, 0 or 1."""
    configure_logging(settings.log_level)
    app = create_app(settings, models)
    runtime: Runtime = app.state.runtime
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        log_config=None,
        access_log=False,
        server_header=False,
        ws="none",  # there are none, and its refusals are logged with the path as sent
        lifespan="on",
        timeout_graceful_shutdown=CLOSE_TIMEOUT_S,
    )
    DrainingServer(config, runtime).run()
    return 1 if runtime.has_failed else 0


def main(arguments: Sequence[str] | None = None) -> int:
    """The console script; gives the exit status, 2 for settings that are not allowed."""
    parser = _parser()
    given = {name: value for name, value in vars(parser.parse_args(arguments)).items() if value is not None}
    try:
        return serve(load_settings(**given))
    except SettingsError as error:
        parser.error(str(error))
    finally:
        gc.freeze()  # to collect all that torch and transformers made takes the interpreter's end seconds


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="madtp-serve",
        description="Serves pruned vision-language models over HTTP.",
        allow_abbrev=False,
        epilog=f"Every flag is also a variable: --max-queue is {PREFIX}MAX_QUEUE; a .env file is read too.",
    )
    for name, field in Settings.model_fields.items():
        parser.add_argument(f"--{name.replace('_', '-')}", metavar="X", help=field.description)
    return parser


if __name__ == "__main__":
    sys.exit(main())
