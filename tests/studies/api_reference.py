"""Write the guide's API reference from signatures and docstrings: python -m tests.studies.api_reference.

Sources are parsed, not imported, so that the page is the same under every version of Python and of the dependencies.
"""

from __future__ import annotations

import ast
import itertools
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "unlearnbench"
PAGE = PACKAGE / "guide" / "api.md"
WIDTH = 88
"""Longer signatures are broken into a line for each argument."""
HEAD = """# API reference

The public names of `unlearnbench`, and what methods, metrics and attacks may use besides. Made from the
docstrings by `python -m tests.studies.api_reference`; do not edit it. Tensors have shapes such as (B, C, H, W):
batch, channels, height, width.
"""
GROUPS = {
    "Running and reading results": ["run", "leaderboard", "load_records", "compare", "samples", "Record"],
    "Writing a method": ["Method", "TextMethod", "Words", "Diffusion", "Batch", "Condition", "Guidance", "Sampler"],
    "Training": ["minimise", "gradients", "Diverged", "note", "track"],
    "Tasks": ["Task", "Protocol", "Plan"],
    "Writing a metric or an attack": ["Metric", "FeatureMetric", "Score", "Outcome", "Known", "Attack", "Look"],
    "Arrays that may be larger than memory": ["Table", "taken"],
    "Weights that others made": ["apply_checkpoint", "checkpoint_address", "checkpoint_fit", "checkpoint_hash"],
}
"""Every public name, by heading."""
BESIDES = ["errors", "techniques/losses", "techniques/closed_form", "techniques/adapters", "techniques/guidance"]
BESIDES += ["techniques/null_space", "techniques/value_projection", "techniques/gates", "techniques/concept_search"]
BESIDES += ["techniques/partway", "techniques/activations", "techniques/neurons", "techniques/prompts"]
BESIDES += ["techniques/sparse_autoencoder", "testing/toy"]
"""Modules that a method or metric may import from, whole."""
Definition = ast.ClassDef | ast.FunctionDef | ast.Assign
"""A class, a function, or a name for a type."""


def exported() -> dict[str, Path]:
    """The module that defines each public name, by the stub."""
    stub = ast.parse((PACKAGE / "__init__.pyi").read_text(encoding="utf-8"))
    return {
        alias.name: PACKAGE / f"{(node.module or '').replace('.', '/')}.py"
        for node in stub.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }


def definitions(path: Path) -> dict[str, Definition]:
    """Public classes, functions and assigned names of a module, in its order."""
    found: dict[str, Definition] = {}
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            found[node.name] = node
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            found[node.targets[0].id] = node
    return {name: node for name, node in found.items() if not name.startswith("_")}


def signature(node: ast.FunctionDef, name: str) -> str:
    """`name(arguments) -> result`, with a line for each argument where one line would be too long."""
    given = ast.parse(ast.unparse(node)).body[0]
    assert isinstance(given, ast.FunctionDef)
    plain = not any(isinstance(one, ast.Name) and one.id == "staticmethod" for one in node.decorator_list)
    for arguments in (given.args.posonlyargs, given.args.args):
        if arguments and plain and arguments[0].arg in ("self", "cls"):
            del arguments[0]
    result = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    line = f"{name}({ast.unparse(given.args)}){result}"
    if len(line) <= WIDTH:
        return line
    head = ast.parse(f"def f({ast.unparse(given.args)}): ...").body[0]
    assert isinstance(head, ast.FunctionDef)
    return "\n".join([f"{name}(", *(f"    {one}," for one in arguments_of(head.args)), f"){result}"])


def arguments_of(given: ast.arguments) -> Iterator[str]:
    """Each argument with annotation and default, as it is written."""

    def one(argument: ast.arg, default: ast.expr | None, stars: str = "") -> str:
        text = stars + ast.unparse(argument)
        return text if default is None else f"{text} = {ast.unparse(default)}"

    positional = [*given.posonlyargs, *given.args]
    defaults = [*[None] * (len(positional) - len(given.defaults)), *given.defaults]
    yield from (one(argument, default) for argument, default in zip(positional, defaults, strict=True))
    if given.vararg:
        yield one(given.vararg, None, "*")
    elif given.kwonlyargs:
        yield "*"
    yield from (one(argument, default) for argument, default in zip(given.kwonlyargs, given.kw_defaults, strict=True))
    if given.kwarg:
        yield one(given.kwarg, None, "**")


def prose(text: str) -> str:
    """A docstring as Markdown: `Args:` and `Raises:` become lists, `Returns:` a paragraph."""
    out: list[str] = []
    section = ""
    for line in text.splitlines():
        if re.fullmatch(r"(Args|Returns|Raises|Yields):", line):
            section = line.removesuffix(":")
            out += ["", f"**{section}**", ""]
        elif section and line.startswith("    "):
            inner = line.removeprefix("    ")
            starts = section in ("Args", "Raises") and not inner.startswith(" ")
            out.append(f"- {inner}" if starts else f"  {inner.strip()}" if inner.startswith(" ") else inner)
        else:
            section = section if not line else ""
            out.append(line)
    return re.sub(r"\n{3,}", "\n\n", "\n".join(out)).strip()


def first_paragraph(node: ast.ClassDef | ast.FunctionDef) -> str:
    """The first paragraph of a docstring on one line."""
    return " ".join((ast.get_docstring(node) or "").partition("\n\n")[0].split())


def fields(node: ast.ClassDef) -> Iterator[str]:
    """A line for each public field that is annotated in the class's body, with the string below it."""
    body = [*node.body, ast.Pass()]
    for field, below in itertools.pairwise(body):
        if not (isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)):
            continue
        if field.target.id.startswith("_"):
            continue
        value = f" = {ast.unparse(field.value)}" if field.value else ""
        text = below.value.value if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant) else ""
        about = f": {' '.join(text.split())}" if isinstance(text, str) and text else ""
        yield f"- `{field.target.id}: {ast.unparse(field.annotation)}{value}`{about}"


def methods(node: ast.ClassDef) -> Iterator[str]:
    """A paragraph for each public method: signature and what it does."""
    for one in node.body:
        if isinstance(one, ast.FunctionDef) and not one.name.startswith("_") and first_paragraph(one):
            names = {decorator.id for decorator in one.decorator_list if isinstance(decorator, ast.Name)}
            if names & {"property", "cached_property"}:
                result = f": {ast.unparse(one.returns)}" if one.returns else ""
                yield f"**`{one.name}{result}`** {first_paragraph(one)}"
            else:
                yield f"```python\n{signature(one, one.name)}\n```\n{first_paragraph(one)}"


def described(name: str, node: Definition) -> str:
    """The part of the page about one name."""
    parts = [f"### `{name}`"]
    if isinstance(node, ast.Assign):
        return "\n\n".join([*parts, f"```python\n{ast.unparse(node)}\n```"])
    if isinstance(node, ast.FunctionDef):
        return "\n\n".join(
            [*parts, f"```python\n{signature(node, node.name)}\n```", prose(ast.get_docstring(node) or "")]
        )
    parts.append(prose(ast.get_docstring(node) or ""))
    found = list(fields(node))
    return "\n\n".join([*parts, *(["\n".join(found)] if found else []), *methods(node)])


def page() -> str:
    """The whole page."""
    parts = [HEAD.strip()]
    where = exported()
    for heading, names in GROUPS.items():
        parts += [f"## {heading}", *(described(name, definitions(where[name])[name]) for name in names)]
    for module in BESIDES:
        path = PACKAGE / f"{module}.py"
        parts.append(f"## `unlearnbench.{module.replace('/', '.')}`")
        parts.append(prose(ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""))
        parts += [described(name, node) for name, node in definitions(path).items() if not isinstance(node, ast.Assign)]
    return "\n\n".join(textwrap.dedent(part) for part in parts if part) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(f"wrote {PAGE.relative_to(ROOT)}")
