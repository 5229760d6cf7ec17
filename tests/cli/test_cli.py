"""The command line: what it prints, answers and writes."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
from pathlib import Path

import pytest

import unlearnbench
from tests.support.small_world import python, read_only, write_method, write_nudge
from unlearnbench import TextMethod, __version__, registry
from unlearnbench.data.wording import Wording, join_words
from unlearnbench.records.schema import read_record

pytestmark = pytest.mark.usefixtures("small")


@pytest.fixture
def unlearned(monkeypatch):
    """Names of the methods that unlearned, in order."""
    from unlearnbench.pipeline import unlearning

    names: list[str] = []
    real = unlearning.unlearn

    def counted(cell, original, watch):
        names.append(f"{cell.method.name} {cell.task.forget} {cell.task.seed}")
        return real(cell, original, watch)

    monkeypatch.setattr("unlearnbench.pipeline.runner.unlearn", counted)
    return names


def test_run_prints_the_table_and_where_things_lie(cli, tmp_path):
    said = cli("run", "--method", write_nudge(tmp_path), "--results", "here")
    assert said.code == 0, said.err
    assert re.search(r"metric +original +change +nudge +95 % interval", said.out)
    assert "digits-class · forget 3 · protocol default · seed 0" in said.out
    for head in ("UA (%) ↑", "RA (%) ↑", "FID ↓", "coherence (%)", "unlearn time (s) ↓"):
        assert head in said.out
    assert re.search(r"UA \(%\) ↑ +\d+\.\d +[+-]?\d+\.\d +\d+\.\d +\d+\.\d … \d+\.\d", said.out)
    folder = "here/digits-class/default/3/nudge"
    assert re.search(
        rf"records: {folder}/seed-0.json, of 20[\d-]+ [\d:]+ UTC, with per-image values \(\.parquet\)",
        said.out,
    )
    for ending in (".json", ".parquet", ".png"):
        assert (tmp_path / folder / f"seed-0{ending}").is_file()
    begun = [line for line in said.err.splitlines() if line.endswith("seed 0")]
    assert begun == ["[1/2] original · forget 3 · seed 0", "[2/2] nudge · forget 3 · seed 0"]
    assert all(line.startswith("[") for line in said.err.splitlines()), "stages that take a second get a line more"
    assert said.out.endswith("next:\n  unlearnbench leaderboard --results here\n  unlearnbench report --results here\n")


def test_the_same_command_again_answers_from_the_record(cli, tmp_path, unlearned, fresh_store):
    words = ("run", "--method", write_nudge(tmp_path), "--results", "here")
    first = cli(*words)
    assert unlearned == ["original 3 0", "nudge 3 0"]
    before = {path: path.read_bytes() for path in (tmp_path / "here").rglob("*") if path.is_file()}
    second = cli(*words)
    assert unlearned == ["original 3 0", "nudge 3 0"]
    assert second.out == first.out
    assert {path: path.read_bytes() for path in (tmp_path / "here").rglob("*") if path.is_file()} == before
    third = cli(*words, "--force")
    assert third.code == 0
    assert unlearned == ["original 3 0", "nudge 3 0", "nudge 3 0"]
    assert read_only(tmp_path / "here").revision == 2
    assert read_record(tmp_path / "here/digits-class/default/3/original/seed-0.json").revision == 1


def test_a_record_whose_weights_are_gone_is_made_anew(cli, tmp_path, unlearned, fresh_store):
    words = ("run", "--method", write_nudge(tmp_path), "--results", "here")
    cli(*words)
    shutil.rmtree(fresh_store / "weights")
    assert cli(*words).code == 0
    assert unlearned.count("nudge 3 0") == 2


def test_a_record_made_elsewhere_stays_where_only_times_would_differ(cli, tmp_path, fresh_store):
    words = ("run", "--method", write_nudge(tmp_path), "--results", "here")
    cli(*words)
    before = {path: path.read_bytes() for path in (tmp_path / "here").rglob("*") if path.is_file()}
    shutil.rmtree(fresh_store)
    next((tmp_path / "here").rglob("*.png")).unlink()
    assert cli(*words).code == 0
    assert {path: path.read_bytes() for path in (tmp_path / "here").rglob("*") if path.is_file()} == before


def test_a_record_that_this_machine_does_not_repeat_is_kept_and_said(cli, tmp_path, fresh_store):
    """Weights made elsewhere differ in their last bits: records and attacks are not lost to that."""
    from unlearnbench.records.schema import write_record

    words = ("run", "--method", write_nudge(tmp_path), "--results", "here")
    cli(*words)
    record = read_only(tmp_path / "here")
    score = record.scores["ua"].model_copy(update={"value": record.scores["ua"].value / 2 + 0.25, "interval": None})
    other = {"scores": {**record.scores, "ua": score}, "environment": {**record.environment, "threads": 64}}
    changed = write_record(record.model_copy(update=other), record.path(tmp_path / "here"))
    shutil.rmtree(fresh_store)
    said = cli(*words)
    assert said.code == 0
    assert read_only(tmp_path / "here") == changed
    told = " ".join(said.err.split())
    assert f"differs in ua {score.value:.5g} there, {record.scores['ua'].value:.5g} here" in told
    assert "64 threads, is kept with its attacks: --force replaces it" in told
    for again in (said, cli(*words)):
        assert re.search(r"^ *metric +original +change +nudge +95 % interval +kept record", again.out, re.M)
        (row,) = re.findall(r"^ *UA \(%\) ↑ .*$", again.out, re.M)
        mine, kept = row.split()[5], row.split()[-1]
        assert (mine, kept) == (f"{100 * record.scores['ua'].value:.1f}", f"{100 * score.value:.1f}"), "yours first"
        assert "your numbers, measured here" in again.out and "is kept: --force replaces it" in again.out
    assert cli(*words, "--force").code == 0
    assert read_only(tmp_path / "here").scores["ua"] == record.scores["ua"]


@pytest.mark.parametrize("suffix", [".png", ".parquet"])
def test_a_file_that_is_missing_beside_a_record_is_made_again(cli, tmp_path, suffix, unlearned):
    words = ("run", "--method", write_nudge(tmp_path), "--results", "here")
    cli(*words)
    (path,) = [path for path in (tmp_path / "here").rglob(f"seed-*{suffix}") if "original" not in path.parts]
    before, times = path.read_bytes(), len(unlearned)
    path.unlink()
    cli(*words)
    assert path.read_bytes() == before
    assert len(unlearned) == times, "the weights were kept"


def test_a_method_that_changes_nothing_is_unreliable(cli, tmp_path):
    said = cli("run", "--method", write_nudge(tmp_path), "--set", "size=0", "--results", "here")
    assert said.code == 0
    assert "unreliable: the method changed no weight: look at its settings" in said.err
    assert "unreliable (seed 0)" in cli("leaderboard", "here", "--format", "csv").out


def test_all_methods_and_one_of_ones_own(cli, tmp_path, monkeypatch):
    from unlearnbench import registry

    path = write_nudge(tmp_path)
    monkeypatch.setattr(registry, "methods", lambda: {"original": registry._found("methods")["original"]})
    said = cli("run", "--method", f"all,{path}", "--results", "here")
    assert said.code == 0, said.err
    assert len([line for line in said.err.splitlines() if "seed 0" in line]) == 3


def test_editing_the_method_file_unlearns_again(cli, tmp_path, unlearned, fresh_store):
    path = write_nudge(tmp_path)
    cli("run", "--method", path, "--results", "here")
    path.write_text(path.read_text().replace("1 + self.size", "1 - self.size"))
    refused = cli("run", "--method", path, "--results", "here")
    assert refused.code == 2 and "differs in method code" in refused.err and unlearned.count("nudge 3 0") == 1
    assert cli("run", "--method", path, "--results", "here", "--force").code == 0
    assert unlearned.count("nudge 3 0") == 2
    assert read_only(tmp_path / "here").revision == 2


def test_seeds_concepts_and_methods_multiply(cli, tmp_path, unlearned):
    one, two = write_nudge(tmp_path, "one"), write_nudge(tmp_path, "two")
    said = cli(
        "run", "--method", f"{one},{two}", "--forget", "3", "--forget", "5", "--seeds", "0-1", "--results", "here",
    )  # fmt: skip
    assert said.code == 0, said.err
    found = {str(p.relative_to(tmp_path / "here/digits-class/default")) for p in (tmp_path / "here").rglob("*.json")}
    wanted = {f"{f}/{m}/seed-{s}.json" for f in "35" for m in ("one", "two") for s in (0, 1)}
    assert found == wanted | {"3/original/seed-0.json", "5/original/seed-0.json"}
    assert said.out.count("seed 0, 1") == 2, "a table for each concept"
    for name in ("one", "two"):
        assert len(re.findall(rf"^ *{name} +2 +\d+\.\d ", said.out, re.M)) == 2, "a row for each method"
    assert "seed-0.json, seed-1.json" in said.out
    assert "[10/10] two · forget 5 · seed 1" in said.err


def test_settings_are_recorded_and_move_the_record(cli, tmp_path):
    path = write_nudge(tmp_path)
    assert cli("run", "--method", path, "--set", "size=0.02", "--results", "here").code == 0
    record = read_record(tmp_path / "here/digits-class/default/3/nudge+size=0.02/seed-0.json")
    assert record.method.overrides == {"size": 0.02}
    assert record.method.settings == {"size": 0.02}
    assert record.method.division == "custom"


def test_presets_are_recorded(cli, tmp_path):
    fields = 'size: float = 0.01\npresets = {"published": {"sd*": {"size": 0.5}, "digits-class": {"size": 0.25}}}'
    path = write_method(tmp_path, "return model", fields=fields)
    assert cli("run", "--method", path, "--preset", "published", "--results", "here").code == 0
    record = read_record(tmp_path / "here/digits-class/default/3/mine@published/seed-0.json")
    assert (record.method.division, record.method.settings) == ("published", {"size": 0.25})


def test_list_and_each_kind(cli):
    everything = cli("list")
    assert everything.code == 0
    for kind, found in (("methods", registry.methods()), ("tasks", registry.tasks()), ("metrics", registry.metrics())):
        said = cli("list", kind)
        assert said.code == 0
        for name, entry in found.items():
            assert re.search(rf"^{name} +{re.escape(entry.summary[:40])}", said.out, re.M), name
        assert said.out.splitlines()[0].strip() == kind
        assert said.out.strip() in everything.out
        assert "list fidelity" not in said.out
    last = everything.out.splitlines()[-1]
    assert "unlearnbench list fidelity" in last and "unlearnbench list checkpoints" in last


def test_the_table_of_fidelity_begins_with_what_its_words_mean(cli):
    said = cli("list", "fidelity")
    assert said.code == 0
    first = said.out.splitlines()[0]
    assert "the code's number where the paper leaves one open" in first and "results/fidelity.md" in first


def test_list_of_one(cli):
    said = cli("list", "erasediff")
    assert said.code == 0
    assert re.search(r"^  eta = 0\.02\n      \w", said.out, re.M), "the setting, its default and what it is"
    block = re.search(r"^  published, cifar10-class\n((?:      .*\n)+)", said.out, re.M)
    assert block and "eta=" in block[1]
    assert "EraseDiff" in said.out
    said = cli("list", "digits-class")
    assert said.code == 0
    assert "3 when none is named" in said.out
    assert re.search(r"^  all of them\n      sampler\.eta=0\.0, .*k=3", said.out, re.M)
    assert re.search(r"^  default\n      sampler\.steps=\d+, judge=digits-cnn", said.out, re.M)
    assert re.search(r"^  selection\n      sampler\.steps=20, judge=digits-neighbours", said.out, re.M)
    blocks = cli("list", "sd-nudity").out.partition("protocols, ")[2].partition("what a run on")[0]
    assert blocks and max(map(len, blocks.splitlines())) <= 100, "a pipe has no width of its own"
    said = cli("list", "ua")
    assert said.code == 0
    assert "higher is better" in said.out


def test_a_file_is_described_as_what_is_built_in(cli, tmp_path):
    assert cli("new-method", "mine").code == 0
    said = cli("list", "mine.py")
    assert said.code == 0 and "needs forget images, retain images" in said.out
    assert re.search(r"^  steps = \d+\n      \w", said.out, re.M), "the setting, its default and what it is"
    from tests.support.small_world import ROOT

    assert cli("list", ROOT / "metrics/ua.py").out == cli("list", "ua").out
    assert cli("list", ROOT / "metrics/relearn.py").out == cli("list", "relearn").out
    assert cli("list", ROOT / "methods/esd.py").out == cli("list", "esd").out
    missing = cli("list", "nowhere.py")
    assert missing.code == 2 and "no method file nowhere.py" in missing.errors[0]


@pytest.mark.parametrize("name", sorted(registry.methods()))
def test_a_method_fits_into_80_columns(cli, name, monkeypatch):
    from unlearnbench.cli import list as module

    monkeypatch.setattr(module.out, "_width", 80)
    said = cli("list", name)
    cls, lines = registry.load_method(name), said.out.splitlines()
    assert max(map(len, lines[1:])) <= 80, "the first line is the paper's, to be copied"
    words = Wording._fields if issubclass(cls, TextMethod) else ()
    for key, value in cls().settings().items():
        assert (f"  {key}" if key in words else f"  {key} = {value}") in lines
    flat = " ".join(said.out.split())
    for text in cls.field_docs().values():
        assert " ".join(text.split()) in flat
    for preset, tasks in cls.offered().items():
        for task, values in tasks.items():
            assert f"  {preset}, {'other tasks' if task == '*' else task}" in lines
            changed = [f"{key}={join_words(value)}" for key, value in values.items() if cls().settings()[key] != value]
            assert ", ".join(changed) in flat


def test_a_stop_is_told_by_every_command(cli, monkeypatch):
    def interrupted(results):
        raise KeyboardInterrupt

    monkeypatch.setattr("unlearnbench.verification.validate.record_files", interrupted)
    said = cli("validate")
    assert said.code == 130
    assert said.err.startswith("stopped")


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """A folder of results, and what a run that makes them needs."""
    return tmp_path_factory.mktemp("ran") / "here"


@pytest.fixture
def results(cli, tmp_path, ran):
    """The results of a method with two seeds, which are made once; each test has a copy."""
    body = "for value in model.select('full').values():\n    value.data += 0.05 * torch.randn_like(value)\nreturn model"
    shaken = write_method(tmp_path, body, name="shaken")
    if not ran.exists():
        assert cli("run", "--method", shaken, "--seeds", "0-1", "--results", ran).code == 0
    return shutil.copytree(ran, tmp_path / "here")


def test_leaderboard_formats(cli, results):
    terminal = cli("leaderboard", results)
    assert terminal.code == 0
    assert re.search(r"digits-class, protocol default \(\w{8}\), forget 3", terminal.out)
    assert re.search(r"^ *original +— .* 1 *$", terminal.out, re.M)
    assert re.search(r"^ *shaken +— .* ± .* 2 *$", terminal.out, re.M)
    markdown = cli("leaderboard", results, "--format", "markdown").out
    assert (
        "| method | score ↑ | rank / attacked | still / another / nothing (%) | RA (%) ↑ | FID ↓ | time (s) ↓ | n |"
        in markdown
    )
    assert "--method retrain,destroy --task digits-class --forget 3" in markdown
    assert "| --- | ---: |" in markdown
    rows = list(csv.DictReader(io.StringIO(cli("leaderboard", results, "--format", "csv").out)))
    assert [(row["method"], row["n"]) for row in rows] == [("original", "1"), ("shaken", "2")]
    assert float(rows[0]["ra"]) <= 1
    board = json.loads(cli("leaderboard", results, "--format", "json").out)
    assert board[0]["ua_sd"] is None
    assert isinstance(board[1]["ua"], float)
    latex = cli("leaderboard", results, "--format", "latex").out
    assert latex.count("\\begin{tabular}") == latex.count("\\bottomrule") == 1
    assert "still / another / nothing (\\%)" in latex


def test_leaderboard_columns(cli, results):
    said = cli("leaderboard", results, "--format", "markdown", "--columns", "ra, fid")
    assert "| method | division | overrides | n | RA (%) ↑ | FID ↓ |" in said.out
    assert "UA" not in said.out


def test_leaderboard_writes_the_page(cli, results):
    said = cli("leaderboard", results, "--write")
    assert said.code == 0
    assert f"wrote {results / 'README.md'}: 2 rows from 3 records" in said.out
    page = (results / "README.md").read_text()
    assert page.startswith("# Results\n")
    assert re.search(r"^\| shaken \| — \| .* \| 2 \|$", page, re.M)
    assert "| shaken | default | 0 | 2 |" in (results / "full/digits-class-default-3.md").read_text()
    assert "## Columns" in page


def test_check_says_what_is_to_fix(cli, tmp_path):
    noisy = write_method(tmp_path, 'print("hello")\nreturn model')
    said = cli("check", noisy)
    assert said.code == 1
    assert "✗ quiet" in said.out
    assert "mine: 1 to fix" in said.out


@pytest.mark.parametrize("style", ["edit"])  # tests/verification/test_conformance.py checks each style
def test_a_new_method_conforms_and_is_not_overwritten(cli, tmp_path, style):
    said = cli("new-method", "my_idea", "--style", style, "--out", "deep/folder")
    assert said.code == 0
    assert "unlearnbench check deep/folder/my_idea.py" in said.out
    path = tmp_path / "deep/folder/my_idea.py"
    text = path.read_text()
    checked = cli("check", path)
    assert checked.code == 0, checked.out
    assert "my_idea conforms" in checked.out
    again = cli("new-method", "my_idea", "--style", style, "--out", "deep/folder")
    assert again.code == 2
    assert "already exists" in again.err
    assert path.read_text() == text


def test_a_new_metric_gives_its_known_answers(cli, tmp_path, monkeypatch):
    said = cli("new-metric", "my_shade")
    assert said.code == 0 and "unlearnbench check my_shade" in said.out
    path = tmp_path / "metrics/my_shade.py"
    monkeypatch.syspath_prepend(path.parent)
    entry = registry.Entry("my_shade", "My shade.", "my_shade")
    monkeypatch.setattr(registry, "metrics", lambda: {"my_shade": entry})
    checked = cli("check", "metrics/my_shade.py")
    assert checked.code == 0, checked.out
    assert "my_shade gives its known answers" in checked.out
    again = cli("new-metric", "my_shade")
    assert again.code == 2 and "is a metric already" in again.err


def test_a_metric_that_is_wrong_is_told(cli, monkeypatch):
    from unlearnbench.metrics.coherence import Coherence

    monkeypatch.setattr(Coherence, "measure", lambda self, outcome, budget=None: 1 // 0)
    said = cli("check", "coherence")
    assert said.code == 1
    assert "✗" in said.out and "to fix" in said.out


def test_version(cli):
    assert cli("--version") == (0, f"{__version__}\n", "")


LIGHT = [["--help"], ["list"], ["run", "--help"], ["--version"], ["verify", "--help"], ["schema"]]


def test_light_commands_import_nothing_heavy(tmp_path):
    """In one process, which names the first that imports something."""
    script = (
        "import sys\nfrom unlearnbench.cli import main\n"
        "heavy = {*'torch torchvision diffusers transformers torch_fidelity open_clip pandas scipy sklearn'.split()}\n"
        f"for words in {LIGHT!r}:\n"
        "    sys.argv = ['unlearnbench', *words]\n"
        "    try:\n        main()\n    except SystemExit as stop:\n        assert not stop.code\n"
        "    print('HEAVY', words, sorted(heavy & {*sys.modules}))\n"
    )
    done = python("-c", script, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = [line for line in done.stdout.splitlines() if line.startswith("HEAVY")]
    assert found == [f"HEAVY {words} []" for words in LIGHT]
    assert len(done.stdout.splitlines()) > 10 * len(LIGHT)


@pytest.mark.parametrize(("given", "spins"), [(None, False), ("ACTIVE", True)])
def test_threads_that_wait_do_not_spin_unless_they_are_told_to(tmp_path, monkeypatch, given, spins):
    """On a busy machine spinning threads take the cores from those that they wait for: minutes instead of seconds.

    GNU's OpenMP, which torch brings, says how often it will look before it sleeps when it is loaded.
    """
    monkeypatch.delenv("OMP_WAIT_POLICY")
    if given:
        monkeypatch.setenv("OMP_WAIT_POLICY", given)
    script = (
        "import sys\nfrom unlearnbench.cli import main\nsys.argv = ['unlearnbench', '--version']\n"
        "try:\n    main()\nexcept SystemExit:\n    import torch\n"
    )
    here = str(Path(unlearnbench.__file__).parents[1])
    done = python("-c", script, cwd=tmp_path, OMP_DISPLAY_ENV="VERBOSE", PYTHONPATH=here)
    (said,) = {line.split("=")[1].strip(" '") for line in done.stderr.splitlines() if "GOMP_SPINCOUNT" in line}
    assert (int(said) > 0) == spins, done.stderr


def test_what_a_method_needs_and_is_not_there_skips_the_cell(cli, tmp_path, unlearned):
    path = write_method(tmp_path, "return model", fields='requires = frozenset({"xattn", "concept"})')
    said = cli("run", "--method", path, "--results", "here")
    assert said.code == 1, "no run came to a result"
    record = read_only(tmp_path / "here")
    assert (record.status, record.scores, record.weights["unlearned"]) == ("skipped", {}, None)
    assert record.reason == "mine needs xattn, which digits-class does not have"
    assert record.reason in said.err
    assert "mine 3 0" not in unlearned


@pytest.mark.parametrize("words", [(), ("--jobs", "1"), ("--format", "json")])
def test_the_original_is_not_drawn_for_methods_that_the_task_cannot_host(cli, tmp_path, fresh_store, words):
    said = cli("run", "--method", "uce,rece", "--results", "here", *words)
    assert said.code == 1
    assert "uce needs " in said.out + said.err and "rece needs " in said.out + said.err
    assert {record.parent.name for record in (tmp_path / "here").rglob("seed-*.json")} == {"uce", "rece"}


@pytest.mark.parametrize("earlier", [False, True])
def test_files_beside_a_skipped_record_are_neither_announced_nor_left(cli, tmp_path, earlier):
    if earlier:
        assert cli("run", "--method", write_method(tmp_path, "return model"), "--results", "here").code == 0
    path = write_method(tmp_path, "return model", fields='requires = frozenset({"xattn"})')
    said = cli("run", "--method", path, "--results", "here", *(["--force"] if earlier else []))
    assert read_only(tmp_path / "here").status == "skipped"
    assert ".parquet" not in said.out
    assert {file.name for file in (tmp_path / "here/digits-class/default/3/mine").iterdir()} == {"seed-0.json"}


def test_a_part_that_the_model_lacks_skips_the_cell(cli, tmp_path):
    said = cli("run", "--method", "esd", "--set", "part=xattn", "--results", "here")
    assert said.code == 1, "no run came to a result"
    record = read_only(tmp_path / "here")
    assert record.status == "skipped"
    assert "no part 'xattn'" in record.reason
    assert "skipped" in said.err


def test_divergence_is_recorded_with_its_step_and_never_kept(cli, tmp_path, unlearned, fresh_store):
    body = (
        'weights = model.select("full")\nfirst = next(iter(weights.values()))\n'
        'minimise((first.sum() * (float("nan") if step == 3 else 1.0) for step in range(9)), weights, 1e-3)\n'
        "return model"
    )
    path = write_method(tmp_path, body)
    said = cli("run", "--method", path, "--results", "here")
    assert said.code == 1, "no run came to a result"
    record = read_only(tmp_path / "here")
    assert (record.status, record.reason) == ("diverged", "the loss is not finite at step 3")
    assert record.scores == {}
    assert "mine seed 0: diverged: the loss is not finite at step 3" in said.err
    assert len(list((fresh_store / "weights").iterdir())) == 1, "only the original's"
    cli("run", "--method", path, "--results", "here")
    assert unlearned.count("mine 3 0") == 2
