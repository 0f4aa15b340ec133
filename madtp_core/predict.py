"""Answers many requests from files: what `madtp predict` does, without a server.

A request is a line of JSON with the fields of a route, its images as paths; or a picture of a folder. Every
request gets one record, an answer with its cost or an error, and a bad one harms no other.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from PIL import Image

from madtp_core.errors import ConfigError, MadtpError
from madtp_core.images import ImageGeometry, preprocess_image, upright_rgb
from madtp_core.tasks.plain import PlainTask

if TYPE_CHECKING:
    from madtp_core.tasks.base import PrunedModel
    from madtp_core.tasks.cost import Spent

PICTURES: Final = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff")
Record = dict[str, Any]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Request:
    """One request as it was found. problem: why it cannot be asked, None if it can."""

    key: str
    fields: Mapping[str, Any]
    images: tuple[Path, ...] = ()
    problem: str | None = None


def read_requests(source: Path, shared: Mapping[str, Any]) -> list[Request]:
    """The requests of a JSONL file, or one for every picture of a folder.

    A request is called by its `id`, else by the number of its line or the name of its file. Images are found
    beside the file. shared: fields of every request that does not have them. Raises ConfigError where there
    are none to read.
    """
    if source.is_dir():
        files = sorted(file for file in source.iterdir() if file.suffix.lower() in PICTURES)
        requests = [Request(file.name, shared, (file,)) for file in files]
    else:
        try:
            lines = source.read_text("utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{source} is neither a folder nor a file of JSON lines: {error}") from error
        numbered = [(number, line) for number, line in enumerate(lines, start=1) if line.strip()]
        requests = [_parsed(number, line, source.parent, shared) for number, line in numbered]
    if not requests:
        raise ConfigError(f"{source} holds no requests")
    keys: set[str] = set()
    for place, request in enumerate(requests):
        if request.key in keys:
            requests[place] = Request(f"{request.key} ({place + 1})", {}, problem="its id was given before")
        keys.add(request.key)
    return requests


def _parsed(number: int, line: str, folder: Path, shared: Mapping[str, Any]) -> Request:
    try:
        given = json.loads(line)
    except ValueError as error:
        return Request(str(number), {}, problem=f"not JSON: {error}")
    if not isinstance(given, dict):
        return Request(str(number), {}, problem="not a JSON object")
    key = str(given.get("id", number))
    fields = {**shared, **given}
    names = [fields[name] for name in ("image",) if name in fields] + list(fields.get("images") or ())
    if not all(isinstance(name, str) for name in names):
        return Request(key, fields, problem="image and images must be paths")
    return Request(key, fields, tuple(folder / name for name in names))


def answer_requests(
    model: PrunedModel,
    task: PlainTask,
    requests: Sequence[Request],
    *,
    batch_size: int,
    prune_temperature: Callable[[Sequence[Any]], float | list[float]],
    keep_mode: str,
) -> Iterator[list[Record]]:
    """The records of one batch after the other; while one runs, the images of the next are read.

    prune_temperature: of a batch of these queries, one for all or one each.
    """
    batches = [requests[start : start + batch_size] for start in range(0, len(requests), batch_size)]

    def ready(batch: Sequence[Request]) -> list[Any]:
        return [_query(request, task, model.image_geometry) for request in batch]

    def ask(queries: Sequence[Any]) -> list[Any]:
        temperature = prune_temperature(queries)
        return task.predict(model, queries, prune_temperature=temperature, keep_mode=keep_mode)

    with ThreadPoolExecutor(1) as reader:
        following = reader.submit(ready, batches[0]) if batches else None
        for place, batch in enumerate(batches):
            assert following is not None, "every batch is made ready before its turn"
            queries = following.result()
            if place + 1 < len(batches):
                following = reader.submit(ready, batches[place + 1])
            yield _records(batch, queries, task, ask)


def _query(request: Request, task: PlainTask, geometry: ImageGeometry) -> Any:
    """A request's query, or the exception that says why there is none."""
    if request.problem is not None:
        return ConfigError(request.problem)
    try:
        pixels = [preprocess_image(_picture(path), geometry) for path in request.images]
        return task.query(request.fields, pixels)
    except KeyError as error:
        return ConfigError(f"the field {error} is missing")
    except MadtpError as error:
        return error
    except Exception as error:  # decoders and bad fields raise nearly every type
        return ConfigError(f"it cannot be read: {error}")


def _picture(path: Path) -> Image.Image:
    with Image.open(path) as picture:
        return upright_rgb(picture)


def _records(
    batch: Sequence[Request],
    queries: Sequence[Any],
    task: PlainTask,
    ask: Callable[[Sequence[Any]], list[Any]],
) -> list[Record]:
    good = [place for place, query in enumerate(queries) if not isinstance(query, Exception)]
    outcomes = list(queries)
    try:
        answers: list[Any] = ask([queries[place] for place in good]) if good else []
    except Exception:  # one spoils the batch: each by itself then
        answers = [_alone(queries[place], ask) for place in good]
    for place, answer in zip(good, answers, strict=True):
        outcomes[place] = answer
    return [_record(request.key, outcome, task) for request, outcome in zip(batch, outcomes, strict=True)]


def _alone(query: Any, ask: Callable[[Sequence[Any]], list[Any]]) -> Any:
    try:
        return ask([query])[0]
    except Exception as error:
        if not isinstance(error, MadtpError):
            logger.warning("a request failed", exc_info=error)
        return error


def _record(key: str, outcome: Any, task: PlainTask) -> Record:
    if isinstance(outcome, Exception):
        return {"id": key, "error": {"type": type(outcome).__name__, "message": str(outcome)}}
    return {"id": key, **task.shown(outcome), "cost": _cost(outcome.spent)}


def _cost(spent: Spent) -> Record:
    return {
        "flops": spent.cost.flops,
        "dense_flops": spent.cost.dense_flops,
        "flops_ratio": spent.cost.flops_ratio,
        "token_density": spent.token_density,
        "difficulty": spent.difficulty,
    }


def answered_keys(records: Path) -> set[str]:
    """The requests that a file of records holds already; a last line that was cut off is taken away first."""
    if not records.exists():
        return set()
    text = records.read_text("utf-8")
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        records.write_text(whole, "utf-8")
    try:
        return {json.loads(line)["id"] for line in whole.splitlines()}
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{records} is not a file of records; name another one") from error
