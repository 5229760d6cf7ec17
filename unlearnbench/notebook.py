"""The source of a class that lives in no file, such as one of a notebook's cells: as a module that stands by itself.

Interactive shells register the text of every cell with `linecache`, under the file name that the cell's code has. From
there come the class and whatever it uses of the session: functions and classes of other cells by their source, modules
by an import, and plain values as they are.
"""

from __future__ import annotations

import ast
import builtins
import inspect
import linecache
import math
import symtable
import sys
from collections.abc import Mapping
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

from unlearnbench.errors import UserError, one_line

PLAIN = (bool, int, float, complex, str, bytes, type(None))
"""Types whose values are written down as they are, also within tuples, lists, sets and dictionaries."""
REMEDY = "write it to a .py file, and give the file's path"


def lives_in_cell(cls: type) -> bool:
    """Whether a class was defined in no file, but in a cell or line of an interactive session."""
    found = _functions(cls)
    if found:
        return not Path(found[0].__code__.co_filename).is_file()
    try:
        return not Path(inspect.getfile(cls)).is_file()
    except (TypeError, OSError):
        return True


def module_source(cls: type) -> str:
    """The text of a module that defines this class and everything of the session that it uses.

    Raises `UserError` where the session keeps no source, and for a name that stands for what cannot be written down,
    such as a tensor or a model.
    """
    parts: dict[str, str] = {}
    _add(cls, cls.__name__, cls.__name__, parts, [])
    future = any(function.__code__.co_flags & annotations_flag() for function in _functions(cls))
    head = '"""A method from an interactive session."""\n\n'
    return head + ("from __future__ import annotations\n\n" if future else "") + "\n\n".join(parts.values()) + "\n"


def annotations_flag() -> int:
    """The flag of code that was compiled with `from __future__ import annotations`."""
    import __future__

    return __future__.annotations.compiler_flag


def _functions(cls: type) -> list[FunctionType]:
    """The functions of a class's own body that were written there; generated ones have made-up file names."""
    found = [getattr(value, "__func__", value) for value in vars(cls).values()]
    return [
        one
        for one in found
        if isinstance(one, FunctionType) and one.__module__ == cls.__module__ and _is_written(one, cls)
    ]


def _is_written(function: FunctionType, cls: type) -> bool:
    """Whether a function was written in the class's body: dataclasses compile theirs from `<string>`."""
    return function.__code__.co_filename != "<string>" and function.__qualname__.startswith(cls.__qualname__)


def _add(value: Any, name: str, of: str, parts: dict[str, str], path: list[str]) -> None:
    """Add the statement that binds a name of the session, after those that it needs itself."""
    if name in parts or name in path:
        return
    if isinstance(value, ModuleType):
        parts[name] = f"import {value.__name__} as {name}" if name != value.__name__ else f"import {name}"
        return
    if isinstance(value, type | FunctionType):
        text, scope = _definition(value)
        if text is None:
            parts[name] = _import(value, name, of)
            return
        for used in _globals_of(text):
            if used in scope and used != value.__name__:
                _add(scope[used], used, name, parts, [*path, name])
        parts[name] = text if name == value.__name__ else f"{text}\n\n\n{name} = {value.__name__}"
        return
    if _is_plain(value):
        parts[name] = f"{name} = {value!r}"
        return
    if getattr(value, "__module__", None) and getattr(value, "__qualname__", getattr(value, "__name__", None)):
        parts[name] = _import(value, name, of)
        return
    raise UserError(
        f"{of} uses {name} of the session, a {type(value).__name__} that cannot be kept with the record: make it in "
        f"{of} itself, or {REMEDY}"
    )


def _definition(value: type | FunctionType) -> tuple[str | None, Mapping[str, Any]]:
    """A class's or function's own text and the names of its session; no text where a module can be imported for it."""
    if value.__module__ != "__main__" and value.__module__ in sys.modules:
        return None, {}
    written = [value] if isinstance(value, FunctionType) else _functions(value)
    if not written:
        raise UserError(f"{value.__name__} has no source that this session keeps: {REMEDY}")
    file = written[0].__code__.co_filename
    lines = linecache.getlines(file)
    if not lines:
        raise UserError(f"{value.__name__} has no source that this session keeps: {REMEDY}")
    text = "".join(lines)
    try:
        nodes = [node for node in ast.walk(ast.parse(text)) if getattr(node, "name", None) == value.__name__]
    except SyntaxError as error:
        raise UserError(f"the source of {value.__name__} cannot be read ({one_line(error)}): {REMEDY}") from error
    if not nodes:
        raise UserError(f"the source of {value.__name__} cannot be found: {REMEDY}")
    return ast.unparse(nodes[-1]), written[0].__globals__


def _import(value: Any, name: str, of: str) -> str:
    """The import that binds a name to what a module defines."""
    module, own = value.__module__, getattr(value, "__qualname__", None) or value.__name__
    if module in ("__main__", "builtins") or "." in own:
        raise UserError(
            f"{of} uses {name} of the session, which no module defines: make it in {of} itself, or {REMEDY}"
        )
    return f"from {module} import {own}" + (f" as {name}" if own != name else "")


def _globals_of(text: str) -> list[str]:
    """The names that a definition takes from around it, sorted."""
    found: set[str] = set()

    def visit(table: symtable.SymbolTable) -> None:
        for symbol in table.get_symbols():
            outside = symbol.is_global() or (table.get_type() == "module" and not symbol.is_assigned())
            if outside and symbol.is_referenced() and not hasattr(builtins, symbol.get_name()):
                found.add(symbol.get_name())
        for child in table.get_children():
            visit(child)

    visit(symtable.symtable(text, "<cell>", "exec"))
    return sorted(found)


def _is_plain(value: Any) -> bool:
    """Whether a value is written down by its `repr` without loss."""
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, dict):
        return type(value) is dict and all(_is_plain(one) for pair in value.items() for one in pair)
    if type(value) in (tuple, list, set, frozenset):
        return all(map(_is_plain, value))
    return type(value) in PLAIN
