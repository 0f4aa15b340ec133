"""The sentences of docs/architecture.md as failures: who imports whom, what a module may do, what lies where.

Everything is read from the source with `ast` and from git; nothing is imported.
"""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from itertools import accumulate
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("madtp_core", "service")
MAP = ROOT / "docs" / "architecture.md"

CORE_LIBRARIES = {
    "torch", "transformers", "tokenizers", "safetensors", "numpy", "PIL", "tqdm", "yaml",
    "matplotlib", "pycocoevalcap",
}  # fmt: skip
SERVICE_LIBRARIES = {
    "fastapi", "starlette", "uvicorn", "anyio", "pydantic", "pydantic_settings", "prometheus_client",
    "torch", "numpy", "PIL", "yaml", "httpcore", "opentelemetry",
    "pydantic_core",
}  # fmt: skip
# Libraries that only these files and folders (ending in "/") import; others are free within their package.
ONLY_IN = {
    "transformers": (
        "madtp_core/backbones/",
        "madtp_core/tasks/",
        "madtp_core/checkpoint.py",
        "madtp_core/convert/",
        "madtp_core/data/shapes/vocabulary.py",
    ),
    "tokenizers": ("madtp_core/data/shapes/vocabulary.py",),
    "tqdm": ("madtp_core/train/", "madtp_core/cli/"),
    "yaml": ("madtp_core/train/", "madtp_core/cli/", "service/settings.py"),
    "prometheus_client": ("service/metrics.py",),
    "pydantic_settings": ("service/settings.py",),
    "uvicorn": ("service/cli.py",),
    "matplotlib": ("madtp_core/study/",),
    "pycocoevalcap": ("madtp_core/evaluate/captions.py",),
    "httpcore": ("service/fetch.py",),
    "opentelemetry": ("service/tracing.py",),
}
TORCH_IN_SERVICE = ("service/device.py", "service/local_model.py", "service/preprocess.py")
ENVIRONMENT_IN = ("service/settings.py", "madtp_core/train/")
# Decide on integers, floats and clocks: not even through another module of the service do they load torch.
_PLAIN = "batcher waiting cut budget isolation controller control degradation job job_queue difficulty"
PLAIN_NUMBERS = tuple(f"service/{name}.py" for name in _PLAIN.split())

MAX_TRACKED_BYTES = 20_000_000
# Written in pieces, so that this file does not find itself.
MACHINE_PATH = re.compile(r"(?<![\w.~/-])/(?:wor" + r"k|roo" + r"t|hom" + r"e)/")
REGISTRY_HOST = re.compile(
    r"py" + r"pi\.org|pythonh" + r"osted\.org|registry\.n" + r"pmjs|deb\.deb" + r"ian|download\.pyt" + r"orch"
)
SECRET = re.compile(
    r"-----BEGIN [A-Z ]*PRIVATE K" + r"EY-----|\bAKIA[0-9A-Z]{16}\b|\bgh[pousr]_[A-Za-z0-9]{36}|"
    r"\bhf_[A-Za-z0-9]{30,}|\bsk-[A-Za-z0-9_-]{30,}|\bxox[abprs]-[A-Za-z0-9-]{10,}"
)


def is_within(path: str, places: tuple[str, ...]) -> bool:
    """Say whether a file is one of the places or lies in one that ends in a slash."""
    return any(path.startswith(place) if place.endswith("/") else path == place for place in places)


@cache
def sources() -> dict[str, ast.Module]:
    """Parse every module of both packages; keys are paths from the root, with slashes."""
    files = sorted(file for package in PACKAGES for file in (ROOT / package).rglob("*.py"))
    return {file.relative_to(ROOT).as_posix(): ast.parse(file.read_text("utf-8")) for file in files}


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) in {"TYPE_CHECKING", "typing.TYPE_CHECKING"}


def walk(node: ast.AST, *, run_time_only: bool) -> Iterator[ast.AST]:
    """Walk a tree; with `run_time_only`, leave out what only the type checker reads."""
    for child in ast.iter_child_nodes(node):
        if run_time_only and is_type_checking(child):
            continue
        yield child
        yield from walk(child, run_time_only=run_time_only)


def imports(path: str, *, run_time_only: bool = False) -> set[str]:
    """Give the dotted names that a module imports, made absolute: `from a import b` gives a and a.b."""
    package = path.removesuffix(".py").split("/")[:-1]
    names: set[str] = set()
    for node in walk(sources()[path], run_time_only=run_time_only):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*parents, *([node.module] if node.module else [])])
            names.update({base, *(f"{base}.{alias.name}" for alias in node.names)})
    return names


def libraries(path: str, *, run_time_only: bool = False) -> set[str]:
    """Give the top-level packages that a module imports, without the standard library and its own package."""
    tops = {name.split(".")[0] for name in imports(path, run_time_only=run_time_only)}
    return tops - sys.stdlib_module_names - {path.split("/")[0]}


def loaded_by(name: str) -> set[str]:
    """Give our files that importing a dotted name loads: the module and the `__init__` of its parents."""
    stems = list(accumulate(name.split("."), lambda parent, child: f"{parent}/{child}"))
    return {path for stem in stems for path in (f"{stem}.py", f"{stem}/__init__.py") if path in sources()}


def reached(path: str) -> set[str]:
    """Give every file of ours that importing this one loads, itself included."""
    seen: set[str] = set()
    todo = {path}
    while todo:
        seen |= todo
        names = {name for file in todo for name in imports(file, run_time_only=True)}
        todo = {file for name in names for file in loaded_by(name)} - seen
    return seen


def test_both_packages_are_seen() -> None:
    assert {path.split("/")[0] for path in sources()} == set(PACKAGES)


def test_the_core_never_imports_the_service_or_the_web() -> None:
    wrong = {path: libraries(path) - CORE_LIBRARIES for path in sources() if path.startswith("madtp_core/")}
    assert {path: names for path, names in wrong.items() if names} == {}


def test_the_service_imports_only_the_core_and_its_libraries() -> None:
    allowed = SERVICE_LIBRARIES | {"madtp_core"}
    wrong = {path: libraries(path) - allowed for path in sources() if path.startswith("service/")}
    assert {path: names for path, names in wrong.items() if names} == {}


@pytest.mark.parametrize("library", ONLY_IN)
def test_a_library_stays_where_it_belongs(library: str) -> None:
    users = [path for path in sources() if library in libraries(path)]
    assert [path for path in users if not is_within(path, ONLY_IN[library])] == []


def test_in_the_service_only_engine_and_preprocess_import_torch() -> None:
    users = [path for path in sources() if path.startswith("service/") and "torch" in libraries(path)]
    assert [path for path in users if path not in TORCH_IN_SERVICE] == []


@pytest.mark.parametrize("path", [path for path in PLAIN_NUMBERS if (ROOT / path).exists()])
def test_what_decides_on_plain_numbers_loads_no_torch(path: str) -> None:
    heavy = {"torch", "transformers"}
    assert [file for file in sorted(reached(path)) if libraries(file, run_time_only=True) & heavy] == []


def test_only_settings_and_training_read_the_environment() -> None:
    def reads_environment(node: ast.AST) -> bool:
        if isinstance(node, ast.ImportFrom) and node.module == "os":
            return any(alias.name in {"environ", "getenv"} for alias in node.names)
        return isinstance(node, ast.Attribute) and ast.unparse(node).startswith(("os.environ", "os.getenv"))

    users = [path for path, tree in sources().items() if any(map(reads_environment, ast.walk(tree)))]
    assert [path for path in users if not is_within(path, ENVIRONMENT_IN)] == []


def test_only_command_lines_print() -> None:
    def prints(node: ast.AST) -> bool:
        return isinstance(node, ast.Call) and ast.unparse(node.func) == "print"

    users = [path for path, tree in sources().items() if any(map(prints, ast.walk(tree)))]
    assert [path for path in users if Path(path).name != "cli.py" and "/cli/" not in path] == []


def test_importing_does_no_work() -> None:
    """Names and definitions stand at the top level of a module: no call for its effect, no loop, no file."""
    work = []
    for path, tree in sources().items():
        for node in tree.body:
            is_call = isinstance(node, ast.Expr) and not isinstance(node.value, ast.Constant)
            is_loop = isinstance(node, ast.For | ast.While | ast.With | ast.Delete)
            if is_call or is_loop:
                work.append(f"{path}:{node.lineno}")
    assert work == []


def rooms(text: str) -> set[str]:
    """Read the paths of the first fenced tree, in which a name stands under its folder, indented.

    The first word of a line counts if it ends in "/" (a folder) or has a suffix (a file); right after a file,
    more files of the same line count too (`engine.py preprocess.py  the two that touch torch`).
    """
    fence = re.search(r"^```\w*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert fence, "docs/architecture.md has no fenced tree of the rooms"
    found: set[str] = set()
    folders: list[tuple[int, str]] = []
    for line in fence[1].splitlines():
        indent = len(line) - len(line.lstrip())
        folders = [folder for folder in folders if folder[0] < indent]
        parent = folders[-1][1] if folders else ""
        for word in line.replace(",", " ").split():
            if not re.fullmatch(r"[\w./-]+/|[\w./-]*\w\.\w+", word):
                break
            found.add(parent + word)
            if word.endswith("/"):
                folders.append((indent, parent + word))
                break
    return found


def test_rooms_reads_a_tree() -> None:
    tree = "```\na/   b.py is elsewhere\n  b.py, c.py  two. files\n  d/\n    e.yaml\nf/\n  g.py  x\n```\n"
    assert rooms(tree) == {"a/", "a/b.py", "a/c.py", "a/d/", "a/d/e.yaml", "f/", "f/g.py"}


def test_every_room_on_the_map_exists() -> None:
    listed = rooms(MAP.read_text("utf-8"))
    assert sorted(path for path in listed if not (ROOT / path).exists()) == []


def test_every_module_is_on_the_map() -> None:
    """A module counts as listed by its own line or by that of a folder below its package."""
    listed = rooms(MAP.read_text("utf-8"))
    folders = tuple(path for path in listed if path.endswith("/") and path.rstrip("/") not in PACKAGES)
    assert [path for path in sources() if path not in listed and not is_within(path, folders)] == []


@cache
def tracked_files() -> tuple[Path, ...]:
    """List what git tracks or would track: everything that is not ignored."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        output = subprocess.run(command, cwd=ROOT, capture_output=True, check=True, text=True).stdout
    except (FileNotFoundError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    return tuple(path for name in sorted(set(output.split("\0")) - {""}) if (path := ROOT / name).is_file())


def test_no_tracked_file_is_large() -> None:
    assert [str(path) for path in tracked_files() if path.stat().st_size > MAX_TRACKED_BYTES] == []


@pytest.mark.parametrize(
    "pattern",
    [
        pytest.param(MACHINE_PATH, id="path of a machine"),
        pytest.param(REGISTRY_HOST, id="host of a package registry"),
        pytest.param(SECRET, id="secret"),
    ],
)
def test_no_tracked_file_holds_a(pattern: re.Pattern[str]) -> None:
    found = []
    for path in tracked_files():
        content = path.read_bytes()
        if b"\0" in content[:8192]:
            continue  # binary
        for number, line in enumerate(content.decode("utf-8", errors="replace").splitlines(), start=1):
            if pattern.search(line):
                found.append(f"{path.relative_to(ROOT)}:{number}")
    assert found == []
