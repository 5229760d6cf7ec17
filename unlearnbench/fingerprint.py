"""Fingerprints of code: one hash over every definition that a result depends on.

A fingerprint starts from classes or functions and follows the names that they use, from definition to definition,
within this package and within the package or folder of a plug-in. Each definition enters as its syntax tree, without
the parts that cannot change a number: docstrings, comments, annotations, imports, formatting, and the text of errors
and progress messages. Names of modules, top-level definitions and local variables are left out as well, so that moving
code and most renames keep the fingerprint. Names of attributes, methods and parameters are included.

Other libraries enter by name only; a record's environment lists their versions.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import importlib.util
import json
import sys
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from unlearnbench.errors import UserError

PACKAGE = __name__.partition(".")[0]
SILENT = frozenset(
    f"{PACKAGE}.{name}"
    for name in (
        "compute.device.device_trouble",
        "compute.environment.Meter",
        "compute.environment.describe_environment",
        "compute.environment.memory_in_use",
        "compute.evaluation_budget",
        "compute.offloading",
        "data.download",
        "errors",
        "fingerprint",
        "names",
        "pipeline.checkpoints",
        "pipeline.code_hashes",
        "pipeline.monitor",
        "pipeline.snapshots",
        "printable",
        "records",
        "registry",
        "reporting",
        "storage.files",
        "storage.lazy_arrays",
        "storage.store",
    )
)
"""Code that reports, stores, counts or finds things and cannot change a number: it enters by name only."""
NEUTRAL = frozenset({"typing.cast"})
"""Calls that return their last argument."""


class Definition(NamedTuple):
    """A top-level name of a module, or the dotted path of a class within one."""

    module: str
    name: str


class _Reference(NamedTuple):
    """What a name refers to outside of its own function."""

    kind: str
    """`definition`, `module`, `external` or `silent`."""
    module: str
    name: str = ""


class Limits(NamedTuple):
    """Where a fingerprint stops."""

    without: frozenset[Definition] = frozenset()
    """Definitions that have a fingerprint of their own: they enter by name and are not followed."""
    members: frozenset[str] = frozenset()
    """Attributes and methods of classes that do not affect a result, such as titles and known answers."""


def fingerprint(roots: Iterable[Any], limits: Limits = Limits()) -> str:  # noqa: B008 - it cannot be changed
    """Return the SHA-256 (hex) of these classes and functions and of everything they use, within the limits."""
    starts = sorted({_definition(root) for root in roots} - limits.without)
    found = _reached(starts, limits)
    hashes = {one: _sha(normal.text) for one, normal in found.items()}
    for _ in range(_depth(starts, found)):  # then a change in any of them has come through to the roots
        hashes = {
            one: _sha(normal.text, *(hashes[other] for other in normal.uses if other in hashes))
            for one, normal in found.items()
        }
    return _sha(*sorted(hashes[start] for start in starts))


def definitions(roots: Iterable[Any], limits: Limits = Limits()) -> frozenset[Definition]:  # noqa: B008 - as above
    """Return every definition that these classes and functions use, including themselves."""
    return frozenset(_reached(sorted({_definition(root) for root in roots} - limits.without), limits))


def _sha(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def _definition(root: Any) -> Definition:
    return Definition(root.__module__, root.__qualname__.replace("<locals>.", ""))


def _reached(starts: Sequence[Definition], limits: Limits) -> dict[Definition, _Normal]:
    found: dict[Definition, _Normal] = {}
    todo = list(starts)
    while todo:
        one = todo.pop()
        if one not in found:
            found[one] = _normal(one, limits)
            todo += found[one].uses
    return found


def _depth(starts: Sequence[Definition], found: dict[Definition, _Normal]) -> int:
    """Number of steps from the roots to the farthest definition, plus one."""
    seen, edge, steps = set(starts), set(starts), 1
    while edge := {other for one in edge for other in found[one].uses if other in found} - seen:
        seen |= edge
        steps += 1
    return steps


# ---- modules -------------------------------------------------------------------------------------------------------


class _Module:
    """A module's source: its statements and imports by the names that they bind."""

    def __init__(self, name: str, path: Path):
        self.name, self.path = name, path
        self.package = name if path.name == "__init__.py" else name.rpartition(".")[0]
        self.tree = ast.parse(path.read_bytes())
        self.statements: dict[str, list[ast.stmt]] = {}
        self.imports: dict[str, tuple[str, str | None]] = {}
        self.loose: list[ast.stmt] = []
        """Statements that bind no name; they may have any effect."""
        self._read(self.tree.body)

    def _read(self, body: Iterable[ast.stmt]) -> None:
        for statement in body:
            if isinstance(statement, ast.Import | ast.ImportFrom):
                self.imports.update(imported(statement, self.package))
            elif isinstance(statement, ast.If):
                if "TYPE_CHECKING" not in ast.dump(statement.test):
                    self._read(statement.body)
                self._read(statement.orelse)
            elif isinstance(statement, ast.Try):
                for part in (statement.body, statement.orelse, statement.finalbody):
                    self._read(part)
                for handler in statement.handlers:
                    self._read(handler.body)
            elif names := _bound_by(statement):
                for name in names:
                    self.statements.setdefault(name, []).append(statement)
            elif not (isinstance(statement, ast.Pass) or _is_text(statement)):
                self.loose.append(statement)

    def nodes(self, name: str) -> list[ast.stmt]:
        """The statements that define a top-level name, or a class by its dotted path; the whole module if unknown."""
        if name in self.statements:
            return self.statements[name]
        place: ast.AST = self.tree
        for word in name.split("."):
            inner = [
                node
                for node in ast.walk(place)
                if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and node.name == word
            ]
            if not inner:
                return self.tree.body  # made at run time: whatever made it is somewhere in here
            place = inner[-1]
        return [place]  # type: ignore[list-item]


def imported(statement: ast.Import | ast.ImportFrom, package: str) -> dict[str, tuple[str, str | None]]:
    """Map the names that an import binds to (module, name in it; None for the module itself)."""
    if isinstance(statement, ast.Import):
        return {
            alias.asname or alias.name.partition(".")[0]: (
                alias.name if alias.asname else alias.name.partition(".")[0],
                None,
            )
            for alias in statement.names
        }
    module = statement.module or ""
    if statement.level:
        parts = package.split(".")
        module = ".".join([*parts[: len(parts) - statement.level + 1], *([module] if module else [])])
    return {alias.asname or alias.name: (module, alias.name) for alias in statement.names}


def _bound_by(statement: ast.stmt) -> list[str]:
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return [statement.name]
    targets: list[ast.expr] = []
    if isinstance(statement, ast.Assign):
        targets = statement.targets
    elif isinstance(statement, ast.AnnAssign | ast.AugAssign):
        targets = [statement.target]
    return [node.id for target in targets for node in ast.walk(target) if _stores(node)]  # type: ignore[attr-defined]


def _stores(node: ast.AST) -> bool:
    return isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)


def _is_text(statement: ast.stmt) -> bool:
    """Whether a statement is a docstring, of a function or of an attribute."""
    return (
        isinstance(statement, ast.Expr)
        and isinstance(statement.value, ast.Constant)
        and isinstance(statement.value.value, str)
    )


def _module(name: str) -> _Module | None:
    """The source of a module; None if there is none, as for compiled modules."""
    file = getattr(sys.modules.get(name), "__file__", None) or _found(name)
    if file is None or not file.endswith(".py"):
        return None
    try:
        about = Path(file).stat()
    except OSError:
        return None
    return _read(name, file, about.st_mtime_ns, about.st_size)


@cache
def _found(name: str) -> str | None:
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        return None
    return spec.origin if spec else None


@cache
def _read(name: str, file: str, changed: int, size: int) -> _Module:
    """Parse a module's current file: plug-ins with the same name may be loaded one after another."""
    return _Module(name, Path(file))


def _followed(name: str, source: _Module) -> bool:
    """Whether a module belongs to this package or to the plug-in that imports it."""
    top = name.partition(".")[0]
    if top == PACKAGE or ("." in source.name and top == source.name.partition(".")[0]):
        return True
    if source.name.startswith(f"{PACKAGE}.") and not source.name.startswith(f"{PACKAGE}.plugin."):
        return False
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        return False
    if spec is None or not spec.origin:
        return False
    place = Path(spec.origin).resolve()
    return source.path.resolve().parent in place.parents and "site-packages" not in place.parts


def _resolved(module: str, name: str, source: _Module) -> _Reference:
    """Find what `name` of `module` refers to, through any number of re-exports."""
    if _is_silent(f"{module}.{name}"):
        return _Reference("silent", module)
    if not _followed(module, source):
        return _Reference("external", f"{module}.{name}" if module else name)
    here = _module(module)
    if here is None:
        return _Reference("external", f"{module}.{name}")
    if name in here.statements:
        return _Reference("definition", module, name)
    if name in here.imports:
        return _of_import(*here.imports[name], here)
    if here.path.name == "__init__.py":
        if _module(f"{module}.{name}") is not None:
            return _as_module(f"{module}.{name}")
        try:
            value = getattr(importlib.import_module(module), name)  # given by the package's own __getattr__
        except (ImportError, AttributeError):
            return _Reference("external", f"{module}.{name}")
        if getattr(value, "__module__", module) != module and hasattr(value, "__qualname__"):
            return _resolved(value.__module__, value.__qualname__, source)
    return _Reference("external", f"{module}.{name}")


def _of_import(module: str, name: str | None, source: _Module) -> _Reference:
    if name is not None:
        return _resolved(module, name, source)
    return _as_module(module) if _followed(module, source) else _Reference("external", module)


def _as_module(name: str) -> _Reference:
    return _Reference("silent" if _is_silent(name) else "module", name)


@cache
def _is_silent(name: str) -> bool:
    return any(name == one or name.startswith(f"{one}.") for one in SILENT)


# ---- normal form ---------------------------------------------------------------------------------------------------


class _Normal(NamedTuple):
    """A definition's syntax, in which the definitions that it uses stand as numbers."""

    text: str
    uses: tuple[Definition, ...]


def _normal(one: Definition, limits: Limits) -> _Normal:
    module = _module(one.module)
    if module is None:
        raise UserError(f"the source of {one.module} cannot be read: put its .py file next to it")
    return _written(one, module, limits)


@cache
def _written(one: Definition, module: _Module, limits: Limits) -> _Normal:
    writer = _Writer(module, limits)
    tree = [writer.statement(node, top=True) for node in module.nodes(one.name)]
    tree += [writer.statement(node, top=True) for node in module.loose]
    return _Normal(json.dumps(tree, separators=(",", ":")), tuple(writer.uses))


class _Scope:
    """Names bound in one function or comprehension, or in a class's body."""

    def __init__(self, kind: str, names: Iterable[str], kept: Iterable[str] = ()):
        self.kind = kind
        self.labels: dict[str, str | None] = dict.fromkeys(names)
        self.labels.update({name: name for name in kept})
        self.imports: dict[str, tuple[str, str | None]] = {}


class _Writer:
    """Writes syntax as nested lists, with names replaced by what they stand for."""

    def __init__(self, module: _Module, limits: Limits):
        self.module, self.limits = module, limits
        self.uses: list[Definition] = []
        self.scopes: list[_Scope] = []
        self.locals = 0

    # -- names

    def _looked_up(self, name: str) -> _Reference | list[Any] | None:
        for depth, scope in enumerate(reversed(self.scopes)):
            if scope.kind == "class" and depth:
                continue  # a class's body is not seen from its methods
            if name in scope.imports:
                return _of_import(*scope.imports[name], self.module)
            if name in scope.labels:
                if scope.labels[name] is None:
                    self.locals += 1
                    scope.labels[name] = f"v{self.locals}"
                return ["local", scope.labels[name]]
        if name in self.module.statements:
            return _Reference("definition", self.module.name, name)
        if name in self.module.imports:
            return _of_import(*self.module.imports[name], self.module)
        return None

    def _meant(self, node: ast.expr) -> _Reference | list[Any] | None:
        """What a name, or a chain of names of modules, stands for; None where it is something else."""
        if isinstance(node, ast.Name):
            return self._looked_up(node.id) or ["name", node.id]
        if isinstance(node, ast.Attribute):
            inner = self._meant(node.value)
            if isinstance(inner, _Reference):
                if inner.kind == "module":
                    return _resolved(inner.module, node.attr, self.module)
                if inner.kind in ("external", "silent"):
                    return _Reference(inner.kind, f"{inner.module}.{node.attr}")
        return None

    def _written(self, meant: _Reference | list[Any]) -> list[Any]:
        if isinstance(meant, list):
            return meant
        if meant.kind == "silent":
            return ["silent"]
        if meant.kind != "definition":
            return ["external", meant.module]
        one = Definition(meant.module, meant.name)
        if one in self.limits.without:
            return ["core", meant.name]
        if one not in self.uses:
            self.uses.append(one)
        return ["uses", self.uses.index(one)]

    def _silent(self, node: ast.expr) -> bool:
        meant = self._meant(node)
        return isinstance(meant, _Reference) and meant.kind == "silent"

    # -- nodes

    def body(self, nodes: Iterable[ast.stmt]) -> list[Any]:
        """Statements, in order, without those that say nothing."""
        return [written for node in nodes if (written := self.statement(node)) is not None]

    def statement(self, node: ast.stmt, top: bool = False) -> list[Any] | None:
        """One statement; None for one that has no part in a result."""
        if isinstance(node, ast.Import | ast.ImportFrom):
            if self.scopes:
                self.scopes[-1].imports.update(imported(node, self.module.package))
            return None
        if _is_text(node) or isinstance(node, ast.Pass):
            return None
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call) and self._silent(node.value.func):
            return None  # a message
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            return None
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            return None if _overloaded(node) else self._function(node, "" if top else self._own(node.name))
        if isinstance(node, ast.ClassDef):
            return self._class(node, "" if top else self._own(node.name))
        if isinstance(node, ast.AnnAssign):
            value = None if node.value is None else self.expression(node.value)
            return ["Assign", [self._target(node.target, top)], value]
        if isinstance(node, ast.Assign):
            return ["Assign", [self._target(target, top) for target in node.targets], self.expression(node.value)]
        if isinstance(node, ast.Raise):
            return self._raise(node)
        return self._generic(node)

    def _own(self, name: str) -> Any:
        """A name that is bound here: a local one by its number, an attribute as it is."""
        meant = self._looked_up(name)
        return meant[1] if isinstance(meant, list) else name

    def _target(self, node: ast.expr, top: bool) -> Any:
        """What is assigned to; the name of a definition itself is left out."""
        return "" if top and isinstance(node, ast.Name) else self.expression(node)

    def _raise(self, node: ast.Raise) -> list[Any]:
        """An error by its kind: its text is for people."""
        error = node.exc.func if isinstance(node.exc, ast.Call) else node.exc
        return ["Raise", None if error is None else self.expression(error)]

    def _function(self, node: ast.FunctionDef | ast.AsyncFunctionDef, name: str) -> list[Any]:
        decorators = [self.expression(each) for each in node.decorator_list]
        return [type(node).__name__, name, decorators, *self._inside(node.args, lambda: self.body(node.body), node)]

    def _inside(self, arguments: ast.arguments, write: Callable[[], Any], node: ast.AST) -> list[Any]:
        """Parameters, their defaults, and a function's body in a scope of its own."""
        given = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
        rest = [each for each in (arguments.vararg, arguments.kwarg) if each is not None]
        defaults = [
            None if each is None else self.expression(each) for each in (*arguments.defaults, *arguments.kw_defaults)
        ]
        names = [each.arg for each in (*given, *rest)]
        self.scopes.append(_Scope("function", _bound_in(node) - {*names}, names))
        try:
            return [names, len(arguments.posonlyargs), len(arguments.kwonlyargs), len(rest), defaults, write()]
        finally:
            self.scopes.pop()

    def _class(self, node: ast.ClassDef, name: str) -> list[Any]:
        """A class: what it sets in order, its methods by name."""
        bases = [self.expression(each) for each in node.bases]
        bases += [[each.arg, self.expression(each.value)] for each in node.keywords]
        decorators = [self.expression(each) for each in node.decorator_list]
        names = [name for statement in node.body for name in _bound_by(statement)]
        self.scopes.append(_Scope("class", (), names))
        try:
            kept = [each for each in node.body if not self.limits.members.intersection(_bound_by(each) or ["-"])]
            functions = [each for each in kept if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef)]
            sets = self.body(each for each in kept if each not in functions)
            methods = self.body(sorted(functions, key=_bound_by))
            return ["ClassDef", name, decorators, bases, sets, methods]
        finally:
            self.scopes.pop()

    def expression(self, node: ast.AST) -> Any:
        """An expression as nested lists."""
        if isinstance(node, ast.Name | ast.Attribute) and (meant := self._meant(node)) is not None:
            return self._written(meant)
        if isinstance(node, ast.Constant):
            return ["Constant", type(node.value).__name__, repr(node.value)]
        if isinstance(node, ast.Lambda):
            return ["Lambda", *self._inside(node.args, lambda: self.expression(node.body), node)]
        if isinstance(node, ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp):
            self.scopes.append(_Scope("function", _targets(node)))
            try:
                parts = [
                    [self.expression(each.iter), self.expression(each.target), *map(self.expression, each.ifs)]
                    for each in node.generators
                ]
                made = [node.key, node.value] if isinstance(node, ast.DictComp) else [node.elt]
                return [type(node).__name__, parts, *map(self.expression, made)]
            finally:
                self.scopes.pop()
        if isinstance(node, ast.Call):
            return self._call(node)
        return self._generic(node)

    def _call(self, node: ast.Call) -> Any:
        meant = self._meant(node.func)
        if isinstance(meant, _Reference) and meant.module in NEUTRAL and node.args:
            return self.expression(node.args[-1])
        args: Sequence[ast.expr] = node.args
        if isinstance(meant, _Reference) and meant.kind == "silent":  # what it is told is for people
            args = [each for each in args if not isinstance(each, ast.JoinedStr | ast.Constant)]
        return [
            "Call",
            self.expression(node.func),
            [*map(self.expression, args)],
            [*map(self.expression, node.keywords)],
        ]

    def _generic(self, node: ast.AST) -> list[Any]:
        written: list[Any] = [type(node).__name__]
        for name, value in ast.iter_fields(node):
            if name in ("ctx", "type_comment", "kind", "annotation", "returns", "type_params"):
                continue
            if isinstance(value, list):
                statements = bool(value) and isinstance(value[0], ast.stmt)
                written.append(self.body(value) if statements else [self._field(each) for each in value])
            else:
                written.append(self._field(value))
        return written

    def _field(self, value: Any) -> Any:
        if isinstance(value, ast.stmt):
            return self.statement(value)
        if isinstance(value, ast.ExceptHandler):
            named = None if value.name is None else self._own(value.name)
            return [None if value.type is None else self.expression(value.type), named, self.body(value.body)]
        return self.expression(value) if isinstance(value, ast.AST) else value


def _overloaded(node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    return any(isinstance(each, ast.Name) and each.id == "overload" for each in node.decorator_list)


def _bound_in(function: ast.AST) -> set[str]:
    """Names that a function binds itself, parameters aside."""
    found: set[str] = set()
    outside: set[str] = set()
    todo = list(ast.iter_child_nodes(function))
    while todo:
        node = todo.pop()
        if isinstance(node, ast.Global | ast.Nonlocal):
            outside |= {*node.names}
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
            continue
        elif isinstance(node, ast.Lambda | ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp):
            found |= {each.target.id for each in ast.walk(node) if isinstance(each, ast.NamedExpr)}
            continue
        elif _stores(node):
            found.add(node.id)  # type: ignore[attr-defined]
        elif isinstance(node, ast.ExceptHandler | ast.MatchAs | ast.MatchStar) and node.name:
            found.add(node.name)
        todo += ast.iter_child_nodes(node)
    return found - outside


def _targets(node: ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp) -> set[str]:
    return {each.id for part in node.generators for each in ast.walk(part.target) if isinstance(each, ast.Name)}
