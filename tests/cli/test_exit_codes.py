"""How commands end: codes, one line for whatever foreign code raises, any stream and any width of terminal."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import traceback

import pytest

from tests.support.small_world import ROOT, made_record, read_only, write_method
from unlearnbench import registry
from unlearnbench.errors import UserError, one_line
from unlearnbench.records.schema import write_record

pytestmark = pytest.mark.usefixtures("small")
RUN = ("run", "--results", "here", "--method")
BROKEN = """
class Broken(Exception):
    def __str__(self):
        raise TypeError("no words")
    __repr__ = __str__
"""
BODIES = {
    "exits": "import sys\nsys.exit(0)",
    "exits_with_text": "raise SystemExit('enough')",
    "cannot_say": "raise Broken",
    "steers": "raise ValueError('\\x1b[31m\\u202e\\n\\nend')",
}


@pytest.mark.parametrize(  # wherever a method acts in a run, its errors are caught alike
    ("where", "body"),
    [
        *(("unlearn", body) for body in BODIES),
        *(("__post_init__", body) for body in BODIES),
        ("prepare", "exits"),
        ("wrap", "cannot_say"),
    ],
)
def test_whatever_a_method_raises_is_one_line(cli, tmp_path, where, body):
    path = write_method(tmp_path, "return model", "mine", BROKEN)
    signature = {"prepare": "model, task", "wrap": "model, task", "unlearn": "model, task, prepared=None"}
    lines = "\n".join(f"        {line}" for line in BODIES[body].splitlines())
    with path.open("a", encoding="utf-8") as file:
        file.write(f"\n    def {where}(self, {signature.get(where, '')}):\n{lines}\n")
    said = cli(*RUN, path)
    assert said.code == (2 if where == "__post_init__" else 1), said
    (line,) = said.errors
    assert "mine" in line and "\x1b" not in line and "Traceback" not in said.err
    assert not (tmp_path / "here/digits-class/default/3/mine").exists()


def test_a_setting_that_the_method_itself_refuses_is_named(cli, tmp_path):
    check = "size: float = 1.0\n\ndef __post_init__(self):\n    if self.size > 2:\n        raise ValueError('too big')"
    said = cli(*RUN, write_method(tmp_path, "return model", fields=check), "--set", "size=3")
    assert said.code == 2
    assert "size=3" in said.errors[0] and "too big" in said.errors[0]


def test_one_method_that_fails_keeps_no_other_from_being_run(cli, tmp_path):
    bad, good = write_method(tmp_path, "raise ValueError", "bad"), write_method(tmp_path, "return model", "good")
    said = cli(*RUN, bad, "--method", good)
    assert said.code == 1
    assert read_only(tmp_path / "here").method.name == "good"
    assert [line for line in said.errors if line.startswith("failed: bad")]
    assert "good" in said.out


NAN = 'weights = model.select("full")\nminimise((next(iter(weights.values())).sum() * float("nan"),), weights, 1e-3)'


def test_runs_that_come_to_nothing_end_with_1_and_one_result_is_enough_for_0(cli, tmp_path):
    lost = write_method(tmp_path, f"{NAN}\nreturn model", "lost")
    kept = write_method(tmp_path, "return model", "kept")
    assert cli(*RUN, lost).code == 1
    assert cli(*RUN, lost, "--method", kept).code == 0
    assert cli(*RUN, lost).code == 1, "answered from its record"


def test_a_trial_that_diverges_is_one_line(cli, tmp_path):
    path = write_method(tmp_path, f"{NAN}\nreturn model", "lost", fields="steps: int = 5")
    said = cli(*RUN, path, "--dry-run")
    assert said.code == 1
    assert [line for line in said.errors if "not finite" in line] == said.errors
    assert not (tmp_path / "here").exists()


def built_in_counts():
    for name in registry.methods():
        cls = registry.load_method(name)
        for field, value in cls().settings().items():
            if (least := cls.least_of(field, value)) is not None and not isinstance(value, bool):
                yield name, field, least


@pytest.mark.parametrize(("name", "field", "least"), list(built_in_counts()))
def test_counts_that_are_too_small_are_refused_by_name(name, field, least):
    with pytest.raises(UserError, match=f"{field}={least - 1}"):
        registry.load_method(name).configured({field: least - 1})


def test_every_method_that_trains_has_its_steps_and_batch_checked():
    found = {(name, field) for name, field, _ in built_in_counts()}
    assert {("esd", "steps"), ("esd", "batch_size"), ("rece", "epochs"), ("erasediff", "K"), ("spm", "rank")} <= found


@pytest.mark.parametrize("setting", ["batch_size=0", "steps=-1"])
def test_those_of_a_method_of_others_too(cli, tmp_path, setting):
    path = write_method(tmp_path, "return model", fields="steps: int = 5\nbatch_size: int = 4")
    said = cli(*RUN, path, "--set", setting)
    assert said.code == 2 and setting in said.errors[0]
    assert not (tmp_path / "here").exists()


def test_a_batch_beyond_all_images_is_refused(cli):
    said = cli(*RUN, "finetune", "--set", "batch_size=1000000")
    assert said.code == 2 and "batch_size=1000000" in said.errors[0] and "images in all" in said.errors[0]


def test_presets_pass_the_check():
    for name in registry.methods():
        cls = registry.load_method(name)
        for tasks in cls.offered().values():
            for values in tasks.values():
                cls.configured(values)


@pytest.mark.parametrize("text", ["raise SystemExit(0)", "1 / 0", f"{BROKEN}\nraise Broken"])
def test_a_metric_or_task_file_that_fails_on_import_is_named(cli, monkeypatch, tmp_path, text):
    package = tmp_path / "package"
    package.mkdir()
    (package / "broken_task.py").write_text(f'"""Broken."""\n{text}\n', encoding="utf-8")
    monkeypatch.syspath_prepend(package)
    entry = registry.Entry("broken", "Broken.", "broken_task")
    monkeypatch.setattr(registry, "tasks", lambda: {"broken": entry})
    said = cli("run", "--method", "esd", "--task", "broken")
    assert said.code == 1
    (line,) = said.errors
    assert "'broken' cannot be loaded" in line


def test_code_that_ends_the_process_elsewhere_is_told(cli, monkeypatch):
    def leave(*words):
        raise SystemExit(0)

    monkeypatch.setattr(registry, "load_metrics", leave)
    said = cli("list", "ua")
    assert said.code == 1 and "sys.exit(0)" in said.errors[0]


def test_an_error_that_nobody_foresaw_is_one_line(cli, monkeypatch):
    monkeypatch.setattr(registry, "load_metrics", lambda: 1 // 0)
    said = cli("list", "ua")
    assert said.code == 1
    (line,) = said.errors
    assert "ZeroDivisionError" in line and "UNLEARNBENCH_DEBUG=1" in line


def test_errors_that_cannot_say_what_they_are():
    class Broken(Exception):
        def __str__(self):
            raise SystemExit

    assert one_line(Broken()).startswith("Broken: ")
    assert one_line(ValueError("a\x1b\nb")) == "ValueError: a\N{REPLACEMENT CHARACTER} b"


def test_the_help_says_what_exit_codes_mean(cli):
    said = " ".join(cli("--help").out.split())
    for part in ("Exit codes: 0 success", "1 something failed", "2 wrong usage", "130 stopped"):
        assert part in said


C = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
WIDTHS = ("0", "1", "-5", "x", "²", "9" * 30)
TABLES = (("leaderboard", "R"), ("list",), ("diff", "A", "B"), ("compare", "A", "B"))
LINES = (("validate", "R"), ("report", "R"))


@pytest.fixture
def commands(tmp_path):
    """Commands that print tables, and those that print lines, of a folder whose words are not ASCII."""
    folder, paths = tmp_path / "results", []
    for method in ("original", "esd"):
        record = made_record(method, scores={"ua": 0.5, "ra": 0.5}, reason="≥ 漢", environment={"device": "ü"})
        paths.append(record.path(folder))
        write_record(record, paths[-1])
    names = {"R": str(folder), "A": str(paths[0]), "B": str(paths[1])}
    return [[[names.get(word, word) for word in words] for words in kind] for kind in (TABLES, LINES)]


def printed(path, commands, width=None, **stream):
    """What a forked child prints in these commands, to streams of this encoding, in a terminal of this many columns.

    Consoles read these when they are made, so that the child imports the command line anew.
    """
    child = os.fork()
    if child:
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        said = path.read_bytes()
        assert code == 0, (stream, width, said.decode(errors="replace"))
        return said
    try:  # whatever happens, the child ends here
        for module in [name for name in sys.modules if name.startswith("unlearnbench.cli")]:
            del sys.modules[module]
        sys.stdout = sys.stderr = path.open("w", **stream)
        os.environ.pop("COLUMNS", None)
        os.chdir(path.parent)  # where `report` writes its page
        if width is not None:
            os.environb[b"COLUMNS"] = width.encode()
        from unlearnbench.cli import main

        for words in commands:
            sys.argv = ["unlearnbench", *words]
            try:
                main()
            except SystemExit as stop:
                assert stop.code in (0, 1, None), (words, stop.code)
        sys.stdout.flush()
        os._exit(0)
    except BaseException:  # noqa: BLE001 - the test's own process says it
        with path.open("a", encoding="utf-8") as file:
            traceback.print_exc(file=file)
    finally:
        os._exit(3)


@pytest.mark.parametrize("errors", ["strict", "surrogateescape"])
def test_any_stream_will_do(tmp_path, commands, errors):
    """One that refuses what is not ASCII, and one as in the locale C."""
    said = printed(tmp_path / "said", [*commands[0], *commands[1]], encoding="ascii", errors=errors)
    assert said.isascii() and b"UA" in said
    assert b"Traceback" not in said and b"Error" not in said


def test_any_width_will_do(tmp_path, commands):
    for number, width in enumerate(WIDTHS):
        said = printed(tmp_path / f"said-{number}", commands[0], width, encoding="utf-8")
        assert b"UA" in said and b"Traceback" not in said and b"Error" not in said


def test_the_locale_c_will_do(tmp_path):
    known = {**os.environ, "PYTHONPATH": str(ROOT), "UNLEARNBENCH_CACHE": str(tmp_path / "store")}
    code = "from unlearnbench.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "guide", "reading-a-row"],
        cwd=tmp_path,
        env={**known, **C},
        capture_output=True,
        check=True,
    )
    assert done.stdout.isascii() and b"?" in done.stdout and done.stderr == b""


CONCEPT = 'name = "mine"\n[[concept]]\nnames = ["seven"]\nsubstitute = "{}"\n'


def refusal(cli, tmp_path, content: bytes) -> str:
    (tmp_path / "c.toml").write_bytes(content)
    said = cli("run", "--task", "digits-text", "--method", "uce", "--concept", "c.toml", "--results", "here")
    assert said.code == 2, said.err[-500:]
    (line,) = said.errors
    assert len(line) < 500
    return line


def test_concept_files_that_are_no_use(cli, tmp_path):
    assert "nested too deeply" in refusal(cli, tmp_path, b"a = " + b"[" * 100_000)
    assert "substitute" in refusal(cli, tmp_path, CONCEPT.format("x" * 10_000_000).encode())
    assert "\\x1b" in refusal(cli, tmp_path, CONCEPT.format("a\\u001Bb").encode())


def test_a_concept_file_may_begin_with_a_mark_of_byte_order(tmp_path):
    from unlearnbench.data.concepts import read_concepts

    (tmp_path / "c.toml").write_bytes(b"\xef\xbb\xbf" + CONCEPT.format("eight").encode())
    name, (concept,) = read_concepts(tmp_path / "c.toml")
    assert (name, concept.substitute) == ("mine", "eight")


def test_json_of_records_stays_json(cli, tmp_path):
    record = made_record("original", scores={"ua": 0.5}, environment={"device": "\u202ea\nb"})
    write_record(record, record.path(tmp_path / "results"))
    (row,) = json.loads(cli("leaderboard", tmp_path / "results", "--format", "json").out)
    assert "\u202e" not in json.dumps(row, ensure_ascii=False) and row["hardware"].startswith(
        "\N{REPLACEMENT CHARACTER}a b"
    )
