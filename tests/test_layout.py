"""What methods and metrics may import, and that every source says what it is; import-linter holds the layers."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterable, Iterator
from importlib import import_module
from pathlib import Path

import pytest

import unlearnbench
from tests.support.small_world import ROOT, python

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ENGINE = sorted((ROOT / "unlearnbench").rglob("*.py"))
METHODS, METRICS = sorted((ROOT / "methods").glob("*.py")), sorted((ROOT / "metrics").glob("*.py"))
SOURCES = [*ENGINE, *METHODS, *METRICS]
DEFINITIONS = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
HELPERS = {
    "errors",
    "feature_distances",
    "hashing",
    "table_metrics",
    "statistics",
    "training",
    "attacks",
    "techniques",
    "testing",
}
"""Modules and packages of the engine that a method or metric may use besides the public names."""
SHARED = {
    name: f"`unlearnbench.{name}` is public, and `unlearnbench {name}` is the command of the same work"
    for name in ("compare", "leaderboard", "run", "samples")
}
"""Top-level names that two modules may define, and why."""


def shown(path: Path) -> str:
    return str(path.relative_to(ROOT))


def imports(path: Path) -> Iterator[tuple[str, list[str]]]:
    """Module and names of every import that runs, those in functions included, `TYPE_CHECKING` blocks not."""

    def walk(node: ast.AST) -> Iterator[tuple[str, list[str]]]:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            return
        if isinstance(node, ast.Import):
            yield from ((alias.name, []) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield "." * node.level + (node.module or ""), [alias.name for alias in node.names]
        for child in ast.iter_child_nodes(node):
            yield from walk(child)

    return walk(ast.parse(path.read_text()))


def test_the_reader_of_imports_sees_what_it_must(tmp_path):
    path = tmp_path / "a.py"
    path.write_text(
        "from typing import TYPE_CHECKING\nimport unlearnbench.storage\nfrom unlearnbench import Method, run\n"
        "if TYPE_CHECKING:\n    from unlearnbench.cli import app\n"
        "def f():\n    from unlearnbench.records import schema\nfrom . import sibling\n"
    )
    assert list(imports(path)) == [
        ("typing", ["TYPE_CHECKING"]),
        ("unlearnbench.storage", []),
        ("unlearnbench", ["Method", "run"]),
        ("unlearnbench.records", ["schema"]),
        (".", ["sibling"]),
    ]


def offences(path: Path) -> list[str]:
    """Imports that a method's or metric's file may not have."""
    bad = []
    short = len(path.read_text().splitlines()) <= 20  # one that is another with other settings
    kind = path.parent.name
    for module, names in imports(path):
        root, *rest = module.split(".")
        if root == "unlearnbench" and not rest:
            bad += [f"unlearnbench.{name}" for name in names if name not in {*unlearnbench.__all__, *HELPERS} - {"run"}]
        elif root == "unlearnbench":
            sibling = rest[0] == kind and len(rest) == 2 and short
            bad += [] if sibling or rest[0] in HELPERS else [module]
        elif root in ("", "methods", "metrics", "tests"):
            bad.append(module)
    return bad


@pytest.mark.parametrize("path", [*METHODS, *METRICS], ids=shown)
def test_methods_and_metrics_import_public_names_only(path):
    assert offences(path) == []


@pytest.mark.parametrize(
    "line",
    [
        "from unlearnbench import run",
        "from unlearnbench.storage.store import Store",
        "from unlearnbench.metrics.ua import UA",
        "from methods.esd import ESD",
        "from . import esd",
        "import unlearnbench.cli",
        "def f():\n    from unlearnbench.records.schema import read_record",
        "from unlearnbench.methods.esd import ESD" + "\n" * 30,
    ],
)
def test_an_offence_would_be_found(tmp_path, line):
    path = tmp_path / "methods" / "mine.py"
    path.parent.mkdir()
    path.write_text(f"{line}\n# the end\n")
    assert len(offences(path)) == 1


@pytest.fixture(scope="module")
def trees():
    """The syntax tree of every source."""
    return {path: ast.parse(path.read_text()) for path in SOURCES}


def test_only_the_command_line_prints(trees):
    calls = {
        path: [node.func for node in ast.walk(tree) if isinstance(node, ast.Call)]
        for path, tree in trees.items()
        if path.parent.name != "cli"
    }
    assert len(calls) > 300
    printing = [
        shown(path) for path, called in calls.items() if any(getattr(each, "id", None) == "print" for each in called)
    ]
    assert printing == []


def test_every_source_says_what_it_is(trees):
    assert [shown(path) for path, tree in trees.items() if not ast.get_docstring(tree)] == [], "no docstring"
    public = [
        (path, node)
        for path, tree in trees.items()
        for node in tree.body
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_")
    ]
    assert len(public) > 300
    assert [f"{shown(path)}: {node.name}" for path, node in public if not ast.get_docstring(node)] == []


def defined_in(paths: Iterable[Path]) -> dict[str, list[str]]:
    """The modules that define each public top-level class or function."""
    found: dict[str, list[str]] = {}
    for path in paths:
        for name in {node.name for node in ast.parse(path.read_text()).body if isinstance(node, DEFINITIONS)}:
            if not name.startswith("_"):
                found.setdefault(name, []).append(shown(path))
    return found


def test_no_name_stands_for_two_things():
    several = {name: modules for name, modules in defined_in(ENGINE).items() if len(modules) > 1}
    assert {name: modules for name, modules in several.items() if name not in SHARED} == {}
    assert {*several} == {*SHARED}, "SHARED lists names that one module defines"


def test_a_name_defined_twice_would_be_found(tmp_path, monkeypatch):
    monkeypatch.setattr("tests.test_layout.ROOT", tmp_path)
    first, second = tmp_path / "a.py", tmp_path / "b.py"
    first.write_text("class Row: ...\ndef _read(): ...\ndef read(): ...\n")
    second.write_text("class Row:\n    def read(self): ...\nasync def read(): ...\ndef _read(): ...\n")
    assert defined_in([first, second]) == {"Row": ["a.py", "b.py"], "read": ["a.py", "b.py"]}


def test_every_folder_with_code_is_a_package():
    folders = {path.parent for path in SOURCES}
    assert [shown(folder) for folder in sorted(folders) if not (folder / "__init__.py").is_file()] == []


def test_type_checkers_see_the_public_names(tmp_path):
    stub = ast.parse((ROOT / "unlearnbench" / "__init__.pyi").read_text())
    exported = {
        alias.asname: f"unlearnbench.{node.module}"  # a stub exports a name only as `name as name`
        for node in stub.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert {*exported, "__version__"} == set(unlearnbench.__all__)
    for name, module in exported.items():
        known, function = getattr(unlearnbench, name), getattr(import_module(module), name)
        assert known is function or (name in unlearnbench.FUNCTIONS and callable(known))


def test_no_top_level_package_but_ours(tmp_path):
    script = (
        "from importlib.util import find_spec\n"
        "assert find_spec('unlearnbench.methods.esd') and find_spec('unlearnbench.metrics.ua')\n"
        "print([name for name in ('methods', 'metrics', 'tasks') if find_spec(name)])\n"
    )
    done = python("-c", script, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "[]\n"


def test_pyproject_lists_every_package():
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]["packages"]
    found = {".".join(path.parent.relative_to(ROOT).parts) for path in (ROOT / "unlearnbench").rglob("__init__.py")}
    assert {*listed} == {*found, "unlearnbench.methods", "unlearnbench.metrics"}
    assert len(listed) == len({*listed})
