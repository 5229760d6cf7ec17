"""Find methods, metrics and tasks by name, path or entry point. Listing reads files without importing them."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import importlib.util
import inspect
import re
import sys
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, get_origin

from unlearnbench.errors import Failed, UserError, one_line, unknown
from unlearnbench.printable import printable

if TYPE_CHECKING:
    from unlearnbench.attacks.base import Attack
    from unlearnbench.method import Method
    from unlearnbench.metric import Metric
    from unlearnbench.task import Task


PACKAGE = Path(__file__).parent
GROUP = "unlearnbench.methods"
PLUGIN = "unlearnbench.plugin"
"""The package that methods loaded from a file are modules of."""


@dataclass(frozen=True)
class Entry:
    """Something that can be loaded by name. `summary` is the first line of its file, which names the paper."""

    name: str
    summary: str
    module: str
    point: EntryPoint | None = None


def _folder(kind: str) -> Path:
    inside = PACKAGE / kind
    return inside if inside.is_dir() else PACKAGE.parent / kind


def _summary(path: Path) -> str:
    return _first_line(path, path.stat().st_mtime_ns)


@cache
def _first_line(path: Path, changed: int) -> str:
    """The first line of a file's docstring, cached: tables ask for every metric many times."""
    tree = _tree(path)
    if tree is None:
        return "(cannot be read)"
    return printable((ast.get_docstring(tree) or "").partition("\n")[0])


def _tree(path: Path) -> ast.Module | None:
    """The syntax tree of a file; None if it is not valid Python."""
    try:
        return ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError, RecursionError):
        return None


def _found(kind: str) -> dict[str, Entry]:
    files = sorted(path for path in _folder(kind).glob("*.py") if not path.name.startswith("_"))
    return {path.stem: Entry(path.stem, _summary(path), f"unlearnbench.{kind}.{path.stem}") for path in files}


def methods() -> dict[str, Entry]:
    """List built-in methods, then those of other packages under the entry-point group `unlearnbench.methods`."""
    found = _found("methods")
    for point in entry_points(group=GROUP):
        if point.name.isidentifier() and point.name not in found:
            package = point.dist.name if point.dist else point.value
            found[point.name] = Entry(point.name, f"(from {package})", point.value, point)
    return found


def metrics() -> dict[str, Entry]:
    """List all metrics except attacks."""
    return {name: entry for name, entry in _found("metrics").items() if not _attacks(name)}


def attacks() -> dict[str, Entry]:
    """List all attacks: files in metrics/ whose class has `Attack` as its base."""
    return {name: entry for name, entry in _found("metrics").items() if _attacks(name)}


def _attacks(name: str) -> bool:
    path = _folder("metrics") / f"{name}.py"
    return _of_attack(path, path.stat().st_mtime_ns)


@cache
def _of_attack(path: Path, changed: int) -> bool:
    tree = _tree(path)
    bases = [base for node in (tree.body if tree else ()) if isinstance(node, ast.ClassDef) for base in node.bases]
    return any("Attack" in (getattr(base, "id", ""), getattr(base, "attr", "")) for base in bases)


def tasks() -> dict[str, Entry]:
    """List all tasks by name, which is the file's name with dashes."""
    return {name.replace("_", "-"): entry for name, entry in _found("tasks").items()}


UNTRIED = "never run on its real weights"
"""Phrase in the first line of a task that has never run on its real weights."""


def untried(task: str, protocol: str = "") -> bool:
    """Whether a task's first line says that this project never ran it on its real weights.

    Not so by a protocol whose weights the package ships.
    """
    entry = tasks().get(task)
    if entry is None or UNTRIED not in entry.summary:
        return False
    return not protocol or protocol not in getattr(load_task(task), "ships", ())


def without(task: str) -> frozenset[str]:
    """Metrics that make no sense for a task. Empty for an unknown task."""
    return load_task(task).without if task in tasks() else frozenset()


def trainable(task: str) -> bool:
    """Whether the task can train a model without the concept, which anchored scores need."""
    return task not in tasks() or "training recipe" in load_task(task).provides


def load_task(name: str) -> type[Task]:
    """Load the task class with this name."""
    from unlearnbench.task import Task

    known = tasks()
    if name not in known:
        raise unknown("task", name, known)
    return _only(_imported("task", name, known[name].module), Task, name)


def load_metrics() -> dict[str, Metric]:
    """Create every metric except attacks, in the order of the axes."""
    from unlearnbench.attacks.base import Attack
    from unlearnbench.metric import Metric

    order = ("efficacy", "utility", "robustness", "cost")
    found = [_instance("metric", name, entry, Metric) for name, entry in metrics().items()]
    found = [metric for metric in found if not isinstance(metric, Attack)]  # however it names its base
    return {metric.name: metric for metric in sorted(found, key=lambda metric: (order.index(metric.axis), metric.rank))}


@cache
def known_metric(name: str) -> Metric | None:
    """Load a metric once per process: tables ask a thousand times."""
    return load_metrics().get(name)


@cache
def known_attack(name: str) -> Attack | None:
    """Load an attack once per process."""
    return load_attacks().get(name)


@cache
def known_methods() -> frozenset[str]:
    """Names of all methods, listed once per process: every record of a folder asks for them."""
    return frozenset(methods())


def load_attacks() -> dict[str, Attack]:
    """Create every attack, white-box attacks first."""
    from unlearnbench.attacks.base import Attack

    found = [_instance("attack", name, entry, Attack) for name, entry in attacks().items()]
    return {attack.name: attack for attack in sorted(found, key=lambda attack: (attack.box == "black", attack.rank))}


_offered: dict[str, type[Method]] = {}
"""Method classes that this process has no file or entry point for; other processes do not have them."""


def offer_method(cls: type[Method]) -> str:
    """Make a Method class known by a name, in this process alone; returns the name.

    A built-in method keeps its name, one that was loaded from a file is named by its path. Any other class is named
    after itself, `MyMethod` as `my_method`. Records name a method's code by a hash of its source: a class of a
    notebook's cell is therefore written to a file of the store, with what it uses of the session, and is named by that
    file's path. Raises `UserError` where the name is a built-in method's, and where the session keeps no source.
    """
    from unlearnbench.notebook import lives_in_cell, module_source

    if cls.name in methods() and load_method(cls.name) is cls:
        return cls.name
    in_cell = lives_in_cell(cls)
    if not in_cell and cls.__module__ == f"{PLUGIN}.{Path(file := inspect.getfile(cls)).stem}":
        return file
    name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", cls.__name__).lower()
    if name in methods():
        raise UserError(f"{cls.__name__} would be named {name}, as a built-in method is: give the class another name")
    if in_cell:
        return str(_kept(name, module_source(cls)))
    cls.name = name
    _offered[name] = cls
    return name


def _kept(name: str, source: str) -> Path:
    """The file of the store with this source, under this name."""
    from unlearnbench.hashing import digest
    from unlearnbench.storage.files import cannot_write, replace_file
    from unlearnbench.storage.store import default_root

    path = default_root() / "sessions" / digest(source)[:32] / f"{name}.py"
    try:
        if not path.is_file():
            replace_file(path, source.encode())
    except OSError as error:
        raise UserError(cannot_write(path.parent, error, "UNLEARNBENCH_CACHE")) from error
    return path


def is_offered(name: str) -> bool:
    """Whether a method is a class that this process alone has."""
    return name in _offered


def load_method(name: str) -> type[Method]:
    """Load a method class by name, or by the path of the .py file that defines it."""
    from unlearnbench.method import Method

    if name in _offered:
        return _offered[name]
    if name.endswith(".py") or "/" in name:
        return _from_file(Path(name))
    known = methods()
    if name not in known:
        if Path(name).is_file():
            raise UserError(f"{name} cannot be imported as Python: a method is a .py file, or {_METHOD_NAMES}")
        here = f"; for the file here, --method {name}.py" if Path(f"{name}.py").is_file() else ""
        raise UserError(f"{unknown('method', name, known)}{here}")
    entry = known[name]
    if entry.point is None:
        return _only(_imported("method", name, entry.module), Method, name)
    try:
        loaded = entry.point.load()
    except (Exception, SystemExit) as error:
        raise UserError(f"method {name!r} {entry.summary} cannot be loaded: {one_line(error)}") from error
    if inspect.ismodule(loaded):
        loaded = _only(loaded, Method, name)
    if not is_class_of(loaded, Method):
        raise UserError(
            f"method {name!r} {entry.summary} is no Method: its entry point must name a module or a Method class"
        )
    loaded.name = name
    return loaded


def _imported(kind: str, name: str, module: str) -> ModuleType:
    """Import a module of this package, and report whatever error its file raises."""
    try:
        return importlib.import_module(module)
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        raise Failed(f"{kind} {name!r} cannot be loaded: {one_line(error)}") from error


def _instance(kind: str, name: str, entry: Entry, base: Any) -> Any:
    """Create a metric or an attack."""
    cls = _only(_imported(kind, name, entry.module), base, name)
    try:
        return cls()
    except (Exception, SystemExit) as error:
        raise Failed(f"{kind} {name!r} cannot be set up: {one_line(error)}") from error


def require_fields(cls: type[Method]) -> None:
    """Raise `UserError` for a method with fields that `--set` and presets cannot fill."""
    if not dataclasses.is_dataclass(cls) or "__dataclass_params__" not in vars(cls):
        raise UserError(f"{cls.__name__} is no dataclass: put @dataclass(frozen=True) above it")
    for field in dataclasses.fields(cls):
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise UserError(f"field {field.name} of {cls.__name__} has no default: give it one")


_METHOD_NAMES = "a name that `unlearnbench list methods` shows"


def _from_file(path: Path) -> type[Method]:
    from unlearnbench.method import Method

    if not path.is_file():
        raise UserError(f"no method file {path}: give the path of a .py file, or {_METHOD_NAMES}")
    if path.suffix != ".py":
        raise UserError(f"{path} cannot be imported as Python: a method is a .py file, or {_METHOD_NAMES}")
    if not path.stem.isidentifier():
        raise UserError(
            f"{path.name} cannot name a method: call the file by letters, digits and _, such as my_method.py"
        )
    if path.stem in methods():
        if path.resolve() == (_folder("methods") / path.name).resolve():
            return load_method(path.stem)
        raise UserError(
            f"{path.name} has the name of a built-in method: call the file otherwise, such as my_{path.name}"
        )
    name = f"{PLUGIN}.{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path.resolve())
    if spec is None or spec.loader is None:
        raise UserError(f"{path} cannot be imported as Python: give a .py file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and type hints look a class's module up here
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise UserError(f"{path} cannot be imported: {one_line(error)}") from error
    return _only(module, Method, str(path))


def is_class_of(value: Any, base: Any) -> bool:
    """Whether a value is a class derived from `base`.

    In Python 3.10, a parametrised type such as `dict[str, int]` is a class for `inspect.isclass`, but none for
    `issubclass`.
    """
    return inspect.isclass(value) and get_origin(value) is None and issubclass(value, base)


def _only(module: ModuleType, base: Any, name: str) -> Any:
    """Return the one concrete subclass of `base` that the module itself defines."""
    own = [value for value in vars(module).values() if is_class_of(value, base) and value.__module__ == module.__name__]
    concrete = [value for value in own if not inspect.isabstract(value)]
    if len(concrete) == 1:
        return concrete[0]
    if concrete:
        raise UserError(
            f"{name} defines {' and '.join(value.__name__ for value in concrete)}: leave one {base.__name__} a file"
        )
    if own:
        lacking = ", ".join(sorted(getattr(own[0], "__abstractmethods__", ())))
        raise UserError(f"{name} defines no complete {base.__name__}: {own[0].__name__} lacks {lacking}")
    raise UserError(f"{name} defines no {base.__name__}: subclass unlearnbench.{base.__name__} in it")


def words(values: list[str]) -> list[str]:
    """Split comma-separated and repeated values into one list without duplicates."""
    return list(dict.fromkeys(word.strip() for value in values for word in value.split(",") if word.strip()))
