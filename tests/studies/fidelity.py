"""Make the fidelity table from what the methods' tests declare: python -m tests.studies.fidelity.

It writes `unlearnbench/fidelity.json`, which `unlearnbench list fidelity` prints, and `results/fidelity.md`.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from tests.support.fidelity import Fidelity
from unlearnbench.fidelity import TABLE
from unlearnbench.fidelity import Fidelity as Row
from unlearnbench.leaderboard.formats import markdown_text

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "results" / "fidelity.md"
PRESETS = ("published", "released")
FOLDERS = {"methods": "test_*.py", "metrics": "test_*.py"}
HEAD = """# Fidelity: "published" and "released" against the papers and their code

Made by `python -m tests.studies.fidelity` from what `tests/methods/` and `tests/metrics/` declare and check; do not
edit it. `unlearnbench list fidelity` prints the same table.

- **default** does what the paper means, with settings chosen for the task at hand.
- **published** is what the paper says, with the code's number where the paper leaves one open; the source of each
  setting says which. **released** is what its authors' code does, bugs included. Both exist only for tasks that were
  run; elsewhere they are refused.
- A number is the largest relative difference between our result and that of the repository's own function on equal
  weights, batches, timesteps and noise; *exact* is equal to the last bit. Where nothing was compared, the notes say
  why.
"""


def declared() -> Iterator[tuple[ModuleType, Fidelity]]:
    """Every `FIDELITY` (one, or several in a tuple), with the test module that declares it."""
    for folder, pattern in FOLDERS.items():
        for path in sorted((ROOT / "tests" / folder).glob(pattern)):
            module = importlib.import_module(f"tests.{folder}.{path.stem}")
            found = getattr(module, "FIDELITY", ())
            for one in (found,) if isinstance(found, Fidelity) else found:
                yield module, one


def row(one: Fidelity) -> Row:
    """A declaration as the table stores it."""
    presets: dict[str, dict[str, dict[str, dict[str, object]]]] = {}
    for constant in one.constants:
        about = {"value": constant.value, "source": constant.source} | (
            {"note": constant.note} if constant.note else {}
        )
        presets.setdefault(constant.preset, {}).setdefault(constant.task, {})[constant.field] = about
    differences = tuple(
        {"preset": d.preset, "what": d.what, "measured": d.measured, "held_by": d.held_by, "note": d.note}
        for d in one.differences
    )
    return Row(one.paper, presets, differences, one.defects, one.departs)


def rows() -> dict[str, Row]:
    """The whole table, by name."""
    return dict(sorted((one.method, row(one)) for _, one in declared()))


def as_json(found: dict[str, Row]) -> str:
    """What `TABLE` holds."""
    return json.dumps({name: one._asdict() for name, one in found.items()}, indent=1, ensure_ascii=False) + "\n"


def page(found: dict[str, Row]) -> str:
    """The page in Markdown: the table, then a section for each method with its constants and their sources."""
    heads = ("method", "published for", "difference", "released for", "difference")
    lines = [HEAD, f"| {' | '.join(heads)} |", f"|{' --- |' * len(heads)}"]
    for name, one in found.items():
        cells = [text for preset in PRESETS for text in (one.tasks(preset), one.measured(preset) or "–")]
        lines.append(f"| [{name}](#{name}) | {' | '.join(map(markdown_text, cells))} |")
    for name, one in found.items():
        lines += ["", f"## {name}", "", one.paper, *(f"- {note}" for note in one.notes())]
        constants = [
            (preset, task, key, about)
            for preset, tasks in one.presets.items()
            for task, settings in tasks.items()
            for key, about in settings.items()
        ]
        if constants:
            lines += ["", "| preset | task | setting | value | source |", "| --- | --- | --- | --- | --- |"]
        for preset, task, key, about in constants:
            where = f"{about['source']}{f' ({note})' if (note := about.get('note')) else ''}"
            lines.append(f"| {' | '.join(map(markdown_text, (preset, task, key, shown(about['value']), where)))} |")
    return "\n".join(lines) + "\n"


def shown(value: object) -> str:
    """A value on one line: of long lists the first words and their number; "" is an empty prompt."""
    if not isinstance(value, list | tuple):
        return str(value)
    words = [str(word) or '""' for word in value]
    return f"{words[0]}, {words[1]}, … ({len(words)} in all)" if len(words) > 4 else ", ".join(words) or "nothing"


if __name__ == "__main__":
    everything = rows()
    TABLE.write_text(as_json(everything), encoding="utf-8")
    PAGE.write_text(page(everything), encoding="utf-8")
    print(f"wrote {TABLE.relative_to(ROOT)} and {PAGE.relative_to(ROOT)}: {len(everything)} methods and attacks")
