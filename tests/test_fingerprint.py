"""A fingerprint moves when a result could, and stays when code is only moved, renamed or described otherwise."""

from __future__ import annotations

import importlib
import itertools
import sys
import textwrap

import pytest

from tests.studies import fingerprints
from unlearnbench.fingerprint import definitions, fingerprint
from unlearnbench.pipeline.code_hashes import engine_hash, method_code, metric_code
from unlearnbench.registry import load_attacks, load_method, load_metrics, load_task

MAIN = """
    import math

    from PACKAGE.helpers import FACTOR, scaled

    RATE = 3


    class Thing:
        weight: float = 0.5

        def run(self, values):
            total = 0
            for value in values:
                total += scaled(value) * RATE
            if total < 0:
                raise ValueError("below zero")
            return math.sqrt(total) * self.weight

        def other(self):
            return [x for x in range(FACTOR)]
"""
HELPERS = """
    from PACKAGE import deep

    FACTOR = 2
    UNUSED = 9


    def scaled(value):
        return deep.half(value) * FACTOR


    def unused(value):
        return value
"""
NUMBERS = itertools.count()
DEEP = """
    def half(value, again=True):
        return value / 2 if not again else half(value, False)
"""


@pytest.fixture
def code(tmp_path, monkeypatch):
    """Writes a package of these modules and gives the fingerprint of its class `Thing`."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def written(root: str = "main.Thing", **modules: str) -> str:
        package = f"made_{next(NUMBERS)}"
        folder = tmp_path / package
        folder.mkdir()
        (folder / "__init__.py").touch()
        for name, text in {"main": MAIN, "helpers": HELPERS, "deep": DEEP, **modules}.items():
            (folder / f"{name}.py").write_text(textwrap.dedent(text).replace("PACKAGE", package))
        module, _, name = root.rpartition(".")
        importlib.invalidate_caches()
        try:
            return fingerprint([getattr(importlib.import_module(f"{package}.{module}"), name)])
        finally:
            for name in [name for name in sys.modules if name.startswith(package)]:
                del sys.modules[name]

    return written


def changed(text: str, *pairs: tuple[str, str]) -> str:
    for old, new in pairs:
        assert old in text
        text = text.replace(old, new)
    return text


SAME = {
    "a docstring": {"main": changed(MAIN, ("class Thing:\n", 'class Thing:\n        """Does."""\n\n'))},
    "a docstring of an attribute": {"main": changed(MAIN, ("= 0.5\n", '= 0.5\n        """Share."""\n'))},
    "a comment": {"main": changed(MAIN, ("total = 0", "total = 0  # so far"))},
    "an annotation": {"main": changed(MAIN, ("def run(self, values)", "def run(self, values: list[int]) -> float"))},
    "no annotation": {"main": changed(MAIN, ("weight: float = 0.5", "weight = 0.5"))},
    "the text of an error": {"main": changed(MAIN, ('"below zero"', 'f"{total} is below zero"'))},
    "a local name": {"main": changed(MAIN, ("total", "summed"))},
    "the name of a constant": {"main": changed(MAIN, ("RATE", "SPEED"))},
    "the name of a function": {
        "main": changed(MAIN, ("scaled", "enlarged")),
        "helpers": changed(HELPERS, ("def scaled", "def enlarged")),
    },
    "a function in another module": {
        "main": changed(
            MAIN, ("from PACKAGE.helpers import FACTOR, scaled", "from PACKAGE.moved import FACTOR, scaled")
        ),
        "moved": HELPERS,
    },
    "a re-export": {
        "main": changed(MAIN, ("from PACKAGE.helpers import", "from PACKAGE.front import")),
        "front": "from PACKAGE.helpers import FACTOR, scaled",
    },
    "another way to import": {
        "main": changed(
            MAIN,
            ("from PACKAGE.helpers import FACTOR, scaled", "import PACKAGE.helpers as tools"),
            ("scaled(", "tools.scaled("),
            ("range(FACTOR)", "range(tools.FACTOR)"),
        )
    },
    "an import within a function": {
        "main": changed(
            MAIN,
            ("    from PACKAGE.helpers import FACTOR, scaled\n", "    from PACKAGE.helpers import FACTOR\n"),
            ("total = 0\n", "from PACKAGE.helpers import scaled\n\n            total = 0\n"),
        )
    },
    "another library's alias": {
        "main": changed(MAIN, ("import math\n", "from math import sqrt\n"), ("math.sqrt", "sqrt"))
    },
    "the order of methods": {
        "main": changed(MAIN, ("        def other", "        def another"))[: MAIN.index("        def run")]
        + MAIN[MAIN.index("        def other") :]
        + "\n"
        + MAIN[MAIN.index("        def run") : MAIN.index("        def other")]
    },
    "what is not used": {"helpers": changed(HELPERS, ("UNUSED = 9", "UNUSED = 8"), ("return value\n", "return 3\n"))},
    "types alone": {
        "main": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from os import PathLike\n"
        + textwrap.dedent(MAIN)
    },
}
OTHER = {
    "a constant": {"main": changed(MAIN, ("RATE = 3", "RATE = 4"))},
    "an attribute": {"main": changed(MAIN, ("= 0.5", "= 0.6"))},
    "an operator": {"main": changed(MAIN, ("* RATE", "+ RATE"))},
    "the order of statements": {
        "main": changed(MAIN, ("total = 0\n", "total = 0\n            values = values[::-1]\n"))
    },
    "a condition": {"main": changed(MAIN, ("total < 0", "total <= 0"))},
    "the kind of an error": {"main": changed(MAIN, ("ValueError", "KeyError"))},
    "a helper": {"helpers": changed(HELPERS, ("* FACTOR", "* FACTOR * 2"))},
    "a helper's constant": {"helpers": changed(HELPERS, ("FACTOR = 2", "FACTOR = 3"))},
    "a helper's helper": {"deep": changed(DEEP, ("value / 2", "value / 3"))},
    "a default": {"deep": changed(DEEP, ("again=True", "again=False"))},
    "a parameter's name": {"deep": changed(DEEP, ("again", "more"))},
    "a method": {"main": changed(MAIN, ("[x for x in", "[x + 1 for x in"))},
    "a base": {"main": changed(MAIN, ("class Thing:", "class Thing(dict):"))},
    "a decorator": {"main": changed(MAIN, ("        def other(self)", "        @property\n        def other(self)"))},
    "a later change of a constant": {"main": changed(MAIN, ("RATE = 3\n", "RATE = 3\n    RATE += 1\n"))},
    "a statement at import": {"helpers": HELPERS + "\n    globals().update(FACTOR=5)\n"},
    "another function of a library": {"main": changed(MAIN, ("math.sqrt", "math.exp"))},
}


@pytest.mark.parametrize("what", SAME)
def test_what_cannot_change_a_number_leaves_it(code, what):
    assert code(**SAME[what]) == code()


@pytest.mark.parametrize("what", OTHER)
def test_what_can_change_a_number_moves_it(code, what):
    assert code(**OTHER[what]) != code()


def test_two_functions_that_call_each_other_are_followed(code):
    around = "def f(n):\n    return n and g(n - 1)\n\n\ndef g(n):\n    return n and f(n - 2)\n"
    assert code("loop.f", loop=around) != code("loop.f", loop=around.replace("n - 2", "n - 3"))
    assert code("loop.f", loop=around) == code("loop.f", loop=around.replace("g(", "h("))


def test_a_plugin_counts_with_the_modules_beside_it(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    text = """
from dataclasses import dataclass
from unlearnbench import Method
from {helper} import factor

@dataclass(frozen=True)
class Own(Method):
    \"\"\"Weights times a factor.\"\"\"
    def unlearn(self, model, task, prepared=None):
        return factor(model)
"""

    def hashed(number: int, constant: str) -> str:
        (tmp_path / f"helper_{number}.py").write_text(f"def factor(model):\n    return model * {constant}\n")
        path = tmp_path / f"own_{number}.py"
        path.write_text(text.format(helper=f"helper_{number}"))
        importlib.invalidate_caches()
        return method_code(load_method(str(path)))

    first, second, third = hashed(1, "0.9"), hashed(2, "0.9"), hashed(3, "0.5")
    assert first == second != third


def test_presets_and_titles_have_no_part_in_it(monkeypatch):
    names = {one.name for one in definitions([load_method("esd")])}
    assert "ESD" in names
    engine = {f"{one.module}.{one.name}" for one in definitions([load_task("digits-class")])}
    assert {"unlearnbench.models.class_unet.ClassUNet", "unlearnbench.judges.digits.CnnJudge"} <= engine
    assert not any("stable_diffusion" in name or "cifar" in name for name in engine), "others' models leave it"


def test_metrics_and_methods_stand_apart_from_the_engine():
    codes = {method_code(load_method(name)) for name in ("esd", "esd_u", "esd_retain", "uce", "rece")}
    assert len(codes) == 5
    assert engine_hash(load_task("digits-class")) != engine_hash(load_task("digits-text"))
    every = [metric_code(metric) for metric in (*load_metrics().values(), *load_attacks().values())]
    assert len({*every}) == len(every)


def test_every_fingerprint_is_known_under_its_version():
    now = fingerprints.present()
    assert {kind for kind, _ in now} >= {"engine", "method", "metric", "attack", "judge", "original", "judge weights"}
    moved = [f"{kind} {name}, version {now[kind, name][0]}" for kind, name in fingerprints.moved(now)]
    assert not moved, (
        f"the code of {'; '.join(moved)} changed: raise the version where numbers change, with a line in CHANGELOG.md; "
        "where they do not, `python -m tests.studies.fingerprints --accept` shows that and adds the fingerprint"
    )
