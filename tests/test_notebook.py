"""Method classes of a notebook's cells, which live in no file."""

from __future__ import annotations

import itertools
import linecache
import sys
from types import ModuleType

import pytest

import unlearnbench
from tests.support.small_world import write_nudge
from unlearnbench import registry
from unlearnbench.errors import UserError
from unlearnbench.notebook import lives_in_cell, module_source

IMPORTS = (
    "import torch\nfrom dataclasses import dataclass\nfrom typing import Any, ClassVar\nfrom unlearnbench import Method"
)
HELPER = "FACTOR = 1.0\n\ndef grown(value, size):\n    return value * (FACTOR + size)\n"
METHOD = '''
@dataclass(frozen=True)
class ScaleAll(Method):
    """theta <- (1 + size) theta."""

    needs: ClassVar[Any] = None
    size: float = 0.01
    """How much."""

    def unlearn(self, model, task, prepared=None):
        with torch.no_grad():
            for value in model.select("full").values():
                value.copy_(grown(value, self.size))
        return model
'''


@pytest.fixture
def session(monkeypatch):
    """Runs cells as IPython does: a module `__main__` without a file, and each cell's text in `linecache`.

    The name of a cell's file is that of ipykernel 6 (`ipykernel/compiler.py`, `get_file_name`): a path below the
    temporary folder that does not exist. IPython 8 puts the text into `linecache.cache` under it
    (`IPython/core/compilerop.py`, `CachingCompiler.cache`).
    """
    main = ModuleType("__main__")
    monkeypatch.setitem(sys.modules, "__main__", main)
    monkeypatch.setattr(registry, "_offered", {})
    numbers = itertools.count()

    def cell(text, kept=True):
        name = f"/tmp/ipykernel_12345/{next(numbers)}.py"
        if kept:
            monkeypatch.setitem(linecache.cache, name, (len(text), None, text.splitlines(True), name))
        exec(compile(text, name, "exec"), vars(main))
        return vars(main)

    return cell


@pytest.mark.usefixtures("small")
def test_a_class_of_a_cell_runs_and_is_recorded_as_a_file_of_it_is(session, tmp_path, fresh_store):
    for text in (IMPORTS, HELPER, METHOD):
        names = session(text)
    (record,) = unlearnbench.run(names["ScaleAll"], settings={"size": 0.02}, results=tmp_path / "cell")
    assert record.status == "ok" and record.method.name == "scale_all"
    (file,) = unlearnbench.run(write_nudge(tmp_path), settings={"size": 0.02}, results=tmp_path / "file")
    assert record.weights["unlearned"] == file.weights["unlearned"]


def test_the_code_of_other_cells_counts(session, tmp_path, fresh_store):
    for text in (IMPORTS, HELPER, METHOD):
        names = session(text)
    first = registry.offer_method(names["ScaleAll"])
    assert registry.load_method(first).field_docs()["size"] == "How much."
    assert registry.offer_method(names["ScaleAll"]) == first
    session(HELPER.replace("1.0", "2.0"))
    assert registry.offer_method(names["ScaleAll"]) != first


def test_what_no_source_tells_is_refused_by_name(session):
    for text in (IMPORTS, HELPER, "FACTOR = torch.ones(3)", METHOD):
        names = session(text)
    with pytest.raises(UserError, match="grown uses FACTOR of the session, a Tensor"):
        module_source(names["ScaleAll"])


def test_a_session_that_keeps_no_source_is_refused(session):
    names = session(IMPORTS + METHOD, kept=False)
    assert lives_in_cell(names["ScaleAll"])
    with pytest.raises(UserError, match=r"ScaleAll has no source that this session keeps: write it to a \.py file"):
        registry.offer_method(names["ScaleAll"])
