"""Every hyper-parameter of a built-in method says what it is and where it comes from, and `list` shows it."""

import re
from dataclasses import dataclass, fields

import pytest

from unlearnbench import Method, registry
from unlearnbench.data.wording import Wording

SOURCE = re.compile(r"\b(papers?|code|ours)\b")
"""A line names the paper's letter, what the reference code calls it, or says that the setting is ours."""


@pytest.mark.parametrize("name", registry.methods())
def test_every_setting_is_documented_with_its_source(name):
    cls = registry.load_method(name)
    docs = cls.field_docs()
    assert set(docs) == {field.name for field in fields(cls)}
    for setting, text in docs.items():
        assert len(text.split()) >= 4, f"{name}.{setting}: {text!r}"
        assert setting in Wording._fields or SOURCE.search(text), (
            f"{name}.{setting} names no paper or code, and does not say that it is ours: {text!r}"
        )
        assert text.endswith("."), f"{name}.{setting}: {text!r}"


def test_a_setting_without_a_line_is_seen_and_another_default_keeps_the_line(tmp_path):
    path = tmp_path / "half_said.py"
    path.write_text(
        '"""Half said."""\nfrom dataclasses import dataclass\nfrom unlearnbench.methods.esd import ESD\n\n'
        '@dataclass(frozen=True)\nclass Half(ESD):\n    """A method."""\n\n'
        '    rate: float = 0.1\n    """Rate of\n    something (ours)."""\n    quiet: int = 1\n    eta: float = 3.0\n'
    )
    docs = registry.load_method(str(path)).field_docs()
    assert docs["rate"] == "Rate of something (ours)."
    assert docs["quiet"] == ""
    assert "paper's eta" in docs["eta"]


def test_list_shows_each_setting_with_default_and_meaning(cli):
    for name in ("erasediff", "salun", "uce"):
        cls = registry.load_method(name)
        said = cli("list", name)
        assert said.code == 0
        text = " ".join(said.out.split())
        for setting, value in cls().settings().items():
            first = " ".join(cls.field_docs()[setting].split()[:5])
            said = "" if setting in Wording._fields else f" = {re.escape(str(value))}"
            assert re.search(rf"\b{setting}{said} {re.escape(first)}", text), (name, setting)


def test_a_method_defined_anywhere_has_a_line_or_none():
    @dataclass(frozen=True)
    class Local(Method):
        """Defined in a function, where its source is not looked for."""

        lr: float = 1.0

        def unlearn(self, model, task, prepared=None):
            return model

    assert Local.field_docs() == {"lr": ""}
