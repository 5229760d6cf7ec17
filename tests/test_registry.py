"""Finding methods, metrics and tasks by name, by path and by entry point."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from types import GenericAlias

import pytest

from tests.support.small_world import NUDGE, ROOT, write_method, write_nudge
from unlearnbench import Attack, Method, Metric, Task, registry
from unlearnbench.errors import UserError


@pytest.mark.parametrize("kind", ["methods", "metrics"])
def test_every_file_is_found_by_its_name(kind):
    files = {path.stem for path in (ROOT / kind).glob("*.py")} - {"__init__"}
    assert files
    found = {**getattr(registry, kind)(), **(registry.attacks() if kind == "metrics" else {})}
    assert set(found) >= files
    for name in files:
        assert found[name].summary


@pytest.mark.parametrize("name", sorted(registry.methods()))
def test_methods_load_under_the_name_of_their_file(name):
    cls = registry.load_method(name)
    assert issubclass(cls, Method)
    assert cls.name == cls().name == name


def test_metrics_come_in_the_order_of_their_axes():
    found = registry.load_metrics()
    attacks = registry.load_attacks()
    assert (set(found), set(attacks)) == (set(registry.metrics()), set(registry.attacks()))
    assert not set(found) & set(attacks)
    assert all(isinstance(attack, Attack) and attack.name == name for name, attack in attacks.items())
    assert [attack.box for attack in attacks.values()] == sorted(attack.box for attack in attacks.values())[::-1]
    assert all(isinstance(metric, Metric) and metric.name == name for name, metric in found.items())
    order = ["efficacy", "utility", "robustness", "cost"]
    axes = [order.index(metric.axis) for metric in found.values()]
    assert axes == sorted(axes)
    for one, other in zip(found.values(), list(found.values())[1:], strict=False):
        assert one.axis != other.axis or one.rank <= other.rank


def test_tasks_have_dashes():
    cls = registry.load_task("digits-class")
    assert issubclass(cls, Task)
    assert cls.name == "digits-class"
    with pytest.raises(UserError, match="did you mean digits-class"):
        registry.load_task("digits_class")


def test_listing_reads_files_and_imports_none(tmp_path, monkeypatch):
    (tmp_path / "methods").mkdir()
    (tmp_path / "methods" / "bomb.py").write_text('"""Bomb: goes off."""\nraise SystemExit\n')
    (tmp_path / "methods" / "broken.py").write_text("def (")
    (tmp_path / "methods" / "_private.py").write_text('"""Not listed."""')
    monkeypatch.setattr(registry, "PACKAGE", tmp_path)
    found = registry.methods()
    assert (found["bomb"].summary, found["broken"].summary) == ("Bomb: goes off.", "(cannot be read)")
    assert "_private" not in found


def test_a_path_gives_the_one_method_in_it(tmp_path):
    cls = registry.load_method(str(write_nudge(tmp_path)))
    assert (cls.name, cls.__name__) == ("nudge", "Nudge")
    assert cls.own_files() == [tmp_path / "nudge.py"]
    assert cls(size=0.5).settings() == {"size": 0.5}


def test_a_path_relative_to_here(tmp_path, monkeypatch):
    write_nudge(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert registry.load_method("nudge.py").name == "nudge"
    assert registry.load_method("./nudge.py").name == "nudge"


def test_a_path_is_read_again_after_an_edit(tmp_path):
    path = write_nudge(tmp_path)
    assert registry.load_method(str(path))().size == 0.01
    path.write_text(NUDGE.replace("size: float = 0.01", "size: float = 0.5"))
    assert registry.load_method(str(path))().size == 0.5


def test_the_path_of_a_built_in_is_the_built_in():
    assert registry.load_method(str(ROOT / "methods" / "esd.py")) is registry.load_method("esd")


def test_a_file_may_import_other_methods_and_share_a_base(tmp_path):
    path = tmp_path / "shared.py"
    path.write_text(
        '"""Shared."""\nfrom abc import abstractmethod\nfrom unlearnbench import Method\n'
        "from unlearnbench.methods.esd import ESD\n\n\nclass Base(Method):\n    @abstractmethod\n"
        "    def more(self): ...\n\n\nclass Own(Base):\n    def more(self): ...\n"
        "    def unlearn(self, model, task, prepared=None):\n        return model\n"
    )
    assert registry.load_method(str(path)).__name__ == "Own"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "defines no Method: subclass unlearnbench.Method in it"),
        ("from unlearnbench.methods.esd import ESD\n", "defines no Method"),
        ("from unlearnbench import Method\nclass A(Method): ...\n", "A lacks unlearn"),
        (
            NUDGE + NUDGE.partition("@dataclass")[2].replace("Nudge", "Other").join(["@dataclass", ""]),
            "Nudge and Other",
        ),
        ("def (", "cannot be imported: SyntaxError: .*line 1"),
        ("import no_such_package", "ModuleNotFoundError: No module named 'no_such_package'"),
        ("1 / 0", "ZeroDivisionError"),
    ],
)
def test_what_is_no_method_file_is_refused(tmp_path, text, says):
    path = tmp_path / "mine.py"
    path.write_text(text)
    with pytest.raises(UserError, match=says) as caught:
        registry.load_method(str(path))
    assert "mine.py" in str(caught.value)


@pytest.mark.parametrize("name", ["esd", "my-method", "2fast", "my.method"])
def test_file_names_that_cannot_name_a_method(tmp_path, name):
    with pytest.raises(UserError, match=r"call the file (by|otherwise).*such as my_"):
        registry.load_method(str(write_method(tmp_path, "return model", name=name)))


def test_unknown_names_give_the_nearest_or_all():
    with pytest.raises(UserError, match=r"unknown method 'esdd': did you mean esd"):
        registry.load_method("esdd")
    with pytest.raises(UserError, match=r"unknown method 'qqqq': `unlearnbench list methods` shows all \d+"):
        registry.load_method("qqqq")
    with pytest.raises(UserError, match=r"unknown task 'qqqq': known: .*digits-class.*digits-text"):
        registry.load_task("qqqq")
    with pytest.raises(UserError, match=r"no method file nowhere/x.py"):
        registry.load_method("nowhere/x.py")


def test_many_names_that_no_command_lists_are_not_listed():
    from unlearnbench.errors import unknown

    text = str(unknown("column", "zzz", [f"column_{i}" for i in range(40)]))
    assert text.endswith("and 37 more") and len(text) < 100
    assert str(unknown("column", "b", ["a", "b1"])).endswith("did you mean b1? known: a, b1")


@pytest.mark.parametrize("name", ["README.md", "./README.md"])
def test_a_file_that_is_no_python_is_named(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "README.md").write_text("# Mine\n")
    with pytest.raises(UserError, match=r"README.md cannot be imported as Python: a method is a .py file"):
        registry.load_method(name)


@pytest.fixture
def offer(tmp_path, monkeypatch):
    """Install a package that offers a method under an entry point."""

    def install(target: str, text: str = NUDGE, name: str = "offered", module: str = "offered_method") -> Path:
        site = tmp_path / "site"
        info = site / "other_package-1.0.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: other-package\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[unlearnbench.methods]\n{name} = {target}\n")
        (site / f"{module}.py").write_text(text)
        monkeypatch.syspath_prepend(site)
        return site

    yield install
    import sys

    sys.modules.pop("offered_method", None)


@pytest.mark.parametrize("target", ["offered_method", "offered_method:Nudge"])
def test_entry_points_offer_a_module_or_a_class(offer, target):
    offer(target)
    entry = registry.methods()["offered"]
    assert entry.summary == "(from other-package)"
    cls = registry.load_method("offered")
    assert (cls.name, cls.__name__) == ("offered", "Nudge")


@pytest.mark.parametrize(
    ("target", "says"),
    [
        ("offered_method:torch", "defines no Method"),
        ("offered_method:dataclass", "is no Method: its entry point must name"),
        ("offered_method:nothing", "cannot be loaded: AttributeError"),
        ("missing_module", "cannot be loaded: ModuleNotFoundError"),
    ],
)
def test_entry_points_that_lead_nowhere_say_whose_they_are(offer, target, says):
    offer(target)
    with pytest.raises(UserError, match=re.escape(says)):
        registry.load_method("offered")


def test_an_entry_point_never_replaces_a_built_in(offer):
    offer("offered_method", name="esd")
    assert registry.load_method("esd").__name__ == "ESD"


def test_an_entry_point_cannot_have_a_path_as_its_name(offer):
    offer("offered_method", name="../../x")
    assert "../../x" not in registry.methods()


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("@dataclass(frozen=True)\n", "", "put @dataclass(frozen=True) above it"),
        ("    size: float = 0.01\n", "    size: float\n", "field size of Nudge has no default"),
    ],
)
def test_a_method_that_cannot_be_set_up_is_refused(tmp_path, old, new, said):
    path = write_nudge(tmp_path)
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(UserError, match=re.escape(said)):
        registry.require_fields(registry.load_method(str(path)))


def test_names_for_parametrised_types_are_no_methods_in_any_python(tmp_path, monkeypatch):
    real = inspect.isclass
    as_in_3_10 = lambda value: real(value) or isinstance(value, GenericAlias)  # noqa: E731
    monkeypatch.setattr(inspect, "isclass", as_in_3_10)
    path = write_nudge(tmp_path)
    path.write_text(path.read_text() + "\nPairs = dict[str, int]\n")
    assert registry.load_method(str(path)).name == "nudge"
    assert not registry.is_class_of(dict[str, int], Method)
