"""Logs as JSON lines. Images and texts never get in: exceptions are logged without their message."""

import json
import logging
import sys
import time
import traceback
import warnings
from pathlib import Path
from typing import Any

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "color_message", "taskName"}


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, logger, message, and whatever was passed as `extra`.

    Of an exception only its type and where it was raised: its message may quote what a client sent. A logger
    at level debug shows that too (`with_messages`).
    """

    def __init__(self, *, with_messages: bool = False) -> None:
        super().__init__()
        self._with_messages = with_messages

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
            + f".{int(record.msecs):03}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= {name: value for name, value in vars(record).items() if name not in _STANDARD}
        if record.exc_info and record.exc_info[1] is not None:
            line["exception"] = self._exception(record.exc_info[1])
        return json.dumps(line, default=str, ensure_ascii=False)

    def _exception(self, error: BaseException) -> dict[str, Any]:
        frames = traceback.extract_tb(error.__traceback__)
        facts: dict[str, Any] = {
            "type": type(error).__name__,
            "at": [f"{Path(frame.filename).name}:{frame.lineno} {frame.name}" for frame in frames],
        }
        if self._with_messages:
            facts["message"] = str(error)
        if error.__cause__ is not None:
            facts["cause"] = self._exception(error.__cause__)
        return facts


def configure_logging(level: str) -> None:
    """Sends everything, warnings included, to stderr as JSON lines of at least this level.

    But what libraries remark on the bytes that a client sent: it quotes them, and anyone could fill the log.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter(with_messages=level == "debug"))
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level.upper())
    logging.captureWarnings(capture=True)
    warnings.filterwarnings("ignore", module=r"PIL\.")  # which Python would also remember one by one
    logging.getLogger("python_multipart").setLevel(logging.ERROR)
