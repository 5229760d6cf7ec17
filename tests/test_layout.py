"""Who may import whom, read off the syntax tree; sizes; docstrings."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import unlearnbench
from tests.small_world import ROOT, python

ENGINE = sorted((ROOT / "unlearnbench").rglob("*.py"))
METHODS, METRICS = sorted((ROOT / "methods").glob("*.py")), sorted((ROOT / "metrics").glob("*.py"))
TASKS = sorted((ROOT / "unlearnbench/tasks").glob("*.py"))
SOURCES = [*ENGINE, *METHODS, *METRICS]
HELPERS = {"training", "hashing", "statistics", "toy", "edits", "steering", "features", "adapters", "errors"}
HELPERS |= {"search", "prompts", "successive", "toy_models", "losses", "activations"}
COMMANDS = {"cli.py", "cli_records.py"}
ABOVE = {"runner", "store", "record", "leaderboard", "cli", "registry", "launch", "stages", "report"}
ABOVE |= {"cli_prepare", "cli_tune", "first_hour", "probe", "published", "samples"}
ABOVE |= {"asking", "cli_launch", "jobs", "keys", "launch_local", "launch_ray", "launch_slurm", "launching", "ledger"}
ABOVE |= {"parcels", "work"}
ABOVE |= {
    "agreement",
    "audit",
    "cli_board",
    "cli_compare",
    "cli_fetch",
    "cli_list",
    "cli_methods",
    "cli_plot",
    "cli_records",
    "cli_report",
    "compare",
    "compare_formats",
    "compare_grid",
    "compare_text",
    "curves",
    "diff",
    "effects",
    "export",
    "formats",
    "pairing",
    "perimage",
    "plot_trajectory",
    "plots",
    "pngs",
    "provenance",
    "record_trajectory",
    "report_samples",
    "report_section",
    "report_sources",
    "report_table",
    "results_page",
    "tuning",
    "tuning_jobs",
    "tuning_launch",
    "tuning_table",
    "tuning_record",
    "tuning_runs",
    "snapshots",
    "trackers",
    "trajectory",
    "verify",
    "watching",
}
ORDERS = [
    ["diffusion", "task", "method", "registry", "runner", "launch", "cli"],
    ["diffusion", "task", "metric", "registry", "runner", "launch", "cli"],
    ["metric", "attack", "search", "toy_models", "registry", "attacking", "selfcheck", "cli"],
    ["statistics", "record", "store", "stages", "runner", "cli"],
    ["record", "leaderboard", "report", "cli"],
    ["board", "leaderboard", "run_table", "cli"],
    ["record", "perimage", "agreement", "runner", "verify", "cli_records", "cli"],
    ["record", "leaderboard", "diff", "audit", "cli_records", "cli"],
    ["record", "store", "stages", "runner", "export", "cli_records", "cli"],
    ["record", "store", "sources", "cli_fetch", "cli"],
    ["download", "sources", "task", "registry", "cli_fetch", "cli"],
    ["places", "store", "stages", "samples", "runner", "first_hour", "cli_prepare", "cli"],
    ["record", "board", "leaderboard", "published", "first_hour", "cli_prepare", "cli"],
    ["stages", "probe", "cli_prepare", "cli"],
    ["record", "board", "leaderboard", "run_table", "compare", "compare_text", "compare_formats", "cli_compare", "cli"],
    ["record", "perimage", "pairing", "compare", "compare_text", "cli_compare", "cli"],
    ["record", "grid", "compare_grid", "cli_compare", "cli"],
    ["diff", "compare_text", "cli_compare"],
    ["record", "board", "effects", "cli_plot", "cli"],
    ["board", "plot_style", "plot_layout", "plot_points", "plot_pareto", "plots", "cli_plot", "cli"],
    ["plot_labels", "plot_points", "plot_cost", "plots"],
    ["plot_style", "plot_files", "plots"],
    ["plot_layout", "plot_matrix", "plots"],
    ["plot_layout", "curves", "attack_table", "cli"],
    ["record", "provenance", "board", "leaderboard", "formats", "attack_table", "results_page", "cli_board", "cli"],
    ["board", "leaderboard", "report_table", "report_section", "report", "cli_report", "cli"],
    ["record", "provenance", "report_sources", "report_section", "report", "cli_report", "cli"],
    ["task", "grid", "report_samples", "report_section", "report", "cli_report", "cli"],
    ["diffusion", "evaluations", "stages", "runner", "tuning_runs", "tuning_jobs", "cli_tune", "cli"],
    ["leaderboard", "formats", "tuning_table", "results_page", "cli_board", "cli"],
    ["asking", "launch", "launching", "tuning_launch", "cli_tune", "cli"],
    ["tuning_runs", "tuning_jobs", "work", "launch", "tuning_launch", "cli_tune", "cli"],
    ["method", "tuning_space", "tuning", "tuning_runs", "tuning_jobs", "cli_tune", "cli"],
    ["record", "tuning_record", "tuning", "tuning_runs", "cli_tune", "cli"],
    ["record", "tuning_record", "audit", "cli_records", "cli"],
    ["hashing", "sealing", "record", "tuning_record"],
    ["plot_style", "plot_tuning", "plots", "cli_tune", "cli"],
    ["snapshots", "watching", "stages", "runner", "trajectory", "cli"],
    ["record_trajectory", "record", "trajectory", "cli"],
    ["trackers", "trajectory", "cli"],
    ["record_trajectory", "record", "plot_layout", "plot_trajectory", "plots", "cli_plot", "cli"],
    ["stages", "keys", "runner", "attacking", "work", "launch_local", "launching", "cli_launch", "cli"],
    ["stages", "jobs", "asking", "cli"],
    ["store", "parcels", "launch_ray", "launching", "cli_launch", "cli"],
    ["record", "jobs", "work", "ledger", "launch", "launch_local", "launch_slurm", "launching", "cli_launch", "cli"],
    ["diffusion", "task", "method", "edits", "registry"],
    ["diffusion", "task", "method", "steering", "registry"],
]


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


def engine_modules(path: Path) -> set[str]:
    """First names below `unlearnbench` that a file imports; public names stand for themselves."""
    found = set()
    for module, names in imports(path):
        if module == "unlearnbench":
            found |= set(names)
        elif module.startswith("unlearnbench."):
            found.add(module.split(".")[1])
    return found


def test_the_reader_of_imports_sees_what_it_must(tmp_path):
    path = tmp_path / "a.py"
    path.write_text(
        "from typing import TYPE_CHECKING\nimport unlearnbench.store\nfrom unlearnbench import Method, runner\n"
        "if TYPE_CHECKING:\n    from unlearnbench.cli import app\n"
        "def f():\n    from unlearnbench.record import read\nfrom . import sibling\n"
    )
    assert engine_modules(path) == {"store", "Method", "runner", "record"}
    assert (".", ["sibling"]) in list(imports(path))


def offences(path: Path) -> list[str]:
    """Imports that a method's or metric's file may not have."""
    bad = []
    short = len(path.read_text().splitlines()) <= 20
    kind = path.parent.name
    for module, names in imports(path):
        root, *rest = module.split(".")
        if root == "unlearnbench" and not rest:
            bad += [f"unlearnbench.{name}" for name in names if name not in {*unlearnbench.__all__, *HELPERS}]
        elif root == "unlearnbench":
            sibling = rest[0] == kind and len(rest) == 2 and short
            bad += [] if sibling or (len(rest) == 1 and rest[0] in HELPERS) else [module]
        elif root in ("", "methods", "metrics", "tests"):
            bad.append(module)
    return bad


@pytest.mark.parametrize("path", [*METHODS, *METRICS], ids=shown)
def test_methods_and_metrics_import_public_names_only(path):
    assert offences(path) == []


@pytest.mark.parametrize(
    "line",
    [
        "from unlearnbench import runner",
        "from unlearnbench.store import Store",
        "from unlearnbench.metrics.ua import UA",
        "from methods.esd import ESD",
        "from . import esd",
        "import unlearnbench.cli",
        "def f():\n    from unlearnbench.record import read",
        "from unlearnbench.methods.esd import ESD" + "\n" * 30,
    ],
)
def test_an_offence_would_be_found(tmp_path, line):
    path = tmp_path / "methods" / "mine.py"
    path.parent.mkdir()
    path.write_text(f"{line}\n# the end\n")
    assert len(offences(path)) == 1


@pytest.mark.parametrize("path", TASKS, ids=shown)
def test_tasks_import_nothing_above_them(path):
    assert engine_modules(path) & (ABOVE | {"methods", "metrics", "method", "metric"}) == set()


@pytest.mark.parametrize("order", ORDERS, ids=" < ".join)
def test_modules_import_downwards_only(order):
    for rank, name in enumerate(order):
        path = ROOT / "unlearnbench" / f"{name}.py"
        if path.is_file():
            assert engine_modules(path) & set(order[rank + 1 :]) == set(), name


def test_modules_import_each_other_in_no_circle():
    names = {path.stem: path for path in (ROOT / "unlearnbench").glob("*.py") if path.stem != "__init__"}
    edges = {name: engine_modules(path) & set(names) - {name} for name, path in names.items()}
    while ready := [name for name, needed in edges.items() if not needed]:
        for name in ready:
            del edges[name]
        edges = {name: needed - set(ready) for name, needed in edges.items()}
    assert edges == {}


@pytest.mark.parametrize("path", [path for path in SOURCES if path.name not in COMMANDS], ids=shown)
def test_only_the_command_line_prints(path):
    called = [node.func for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    assert not any(isinstance(function, ast.Name) and function.id == "print" for function in called)


@pytest.mark.parametrize("path", SOURCES, ids=shown)
def test_every_source_says_what_it_is(path):
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree), "the file has no docstring"
    for node in tree.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_"):
            assert ast.get_docstring(node), f"{node.name} has no docstring"


@pytest.mark.parametrize("path", SOURCES, ids=shown)
def test_no_source_is_long(path):
    most = {"methods": 170, "metrics": 55}.get(path.parent.name, 300)  # a metric's known answers lie with it
    if path in METRICS and "(Attack)" in path.read_text():
        most = 145  # it searches before it measures
    assert len(path.read_text().splitlines()) <= most


def test_public_names_exist_and_are_imported_on_first_use(tmp_path):
    script = (
        "import sys, unlearnbench\nassert 'torch' not in sys.modules\n"
        "for name in unlearnbench.__all__:\n    getattr(unlearnbench, name)\n"
        "assert 'torch' in sys.modules\n"
        "try:\n    unlearnbench.nothing\nexcept AttributeError as error:\n    print(error)\n"
    )
    done = python("-c", script, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "module 'unlearnbench' has no attribute 'nothing'\n"


def test_no_top_level_package_but_ours(tmp_path):
    script = (
        "from importlib.util import find_spec\n"
        "assert find_spec('unlearnbench.methods.esd') and find_spec('unlearnbench.metrics.ua')\n"
        "print([name for name in ('methods', 'metrics', 'tasks') if find_spec(name)])\n"
    )
    done = python("-c", script, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "[]\n"
