"""The levels of docs/architecture.md: imports go down, never round; nothing heavy comes early."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
from helpers import REPOSITORY

PACKAGE = REPOSITORY / "gpt2cli"
PAGE = REPOSITORY / "docs" / "architecture.md"
# The table of the page: "level | rooms", from the top down.
LEVELS = [
    re.findall(r"`(\w+)`", row) for row in re.findall(r"^\| \d+ \|(.*)\|$", PAGE.read_text(), re.M)
]
TORCH_ROOMS = ("model/", "training/", "decoders/torch_decoder.py", "decoders/graphs.py")
INSIDES = [
    f"analysis/{name}.py" for name in ("attending", "effects", "inspection", "patching", "heads")
]
FILES = sorted(PACKAGE.rglob("*.py"))


def imports(path: Path, *, top_only: bool = False) -> Iterator[str]:
    """The modules that a file imports; types alone are looked at by no running program."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    typing = {
        id(n) for n in ast.walk(tree) if isinstance(n, ast.If) and "TYPE_CHECKING" in ast.dump(n)
    }
    skipped = {id(n) for node in ast.walk(tree) if id(node) in typing for n in ast.walk(node)}
    for node in tree.body if top_only else ast.walk(tree):
        if id(node) not in skipped and isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif id(node) not in skipped and isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def room(module: str) -> str:
    """The folder of a module, or its own name."""
    return module.split(".")[1]


def level(name: str) -> int:
    """How far below the top a room is."""
    return next(i for i, rooms in enumerate(LEVELS) if name in rooms)


def test_every_room_has_its_level() -> None:
    rooms = {path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in FILES}
    assert sorted(name for names in LEVELS for name in names) == sorted(
        rooms - {"__init__", "__main__", "bundled"}
    )


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_down_only(path: Path) -> None:
    own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if own in ("__init__", "__main__"):
        return
    for module in imports(path):
        if module.startswith("gpt2cli.") and room(module) != own:
            assert level(room(module)) > level(own), f"{own} imports {module}"


def test_no_module_imports_itself_by_way_of_others() -> None:
    named = {path.relative_to(REPOSITORY).with_suffix("").parts: path for path in FILES}
    modules = {".".join(parts).removesuffix(".__init__"): path for parts, path in named.items()}
    graph = {
        name: [found if found in modules else found.rpartition(".")[0] for found in imports(path)]
        for name, path in modules.items()
    }
    TopologicalSorter(graph).prepare()  # raises CycleError, which shows the circle


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_torch_is_imported_early_only_where_it_computes(path: Path) -> None:
    name = path.relative_to(PACKAGE).as_posix()
    if not name.startswith(TORCH_ROOMS) and name not in INSIDES:
        assert not any(m.split(".")[0] == "torch" for m in imports(path, top_only=True))


@pytest.mark.parametrize(
    "command",
    [
        ["--help"],
        ["generate", "--help"],
        ["info", "-m", "bard"],
        ["tokenize", "-m", "bard", "--text", "a"],
        ["generate", "-m", "bard", "-n", "2", "--device", "cpu", "A"],
        ["score", "-m", "bard", "--text", "ROMEO:", "--device", "cpu"],
    ],
    ids=" ".join,
)
def test_commands_import_neither_torch_nor_pydantic_needlessly(command: list[str]) -> None:
    script = (
        "import sys; from gpt2cli.cli import main; sys.argv = ['gpt2', *sys.argv[1:]]\n"
        "try: main()\n"
        "finally: print({'torch', 'pydantic'} & {*sys.modules}, file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, *command],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        check=True,
    )
    assert done.stderr.splitlines()[-1] == "set()"
