"""Attacks on finished runs: what is kept, what is made again, what a stop loses, and what the command line says."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace

import pytest
import torch
from typer.testing import CliRunner

from tests.support.small_world import made_record, run_cell, write_nudge
from unlearnbench import Attack, Look, cli, registry
from unlearnbench.attacks.search import nearest, sample_targets, sight
from unlearnbench.attacks.spec import AttackSpec
from unlearnbench.compute.precision import Resources
from unlearnbench.errors import Unsupported, UserError
from unlearnbench.judges.digits import CnnJudge
from unlearnbench.models.class_unet import ClassUNet
from unlearnbench.pipeline import attacks
from unlearnbench.pipeline.cell import Cell
from unlearnbench.records.schema import AttackRecord, read_record, write_record
from unlearnbench.storage.store import Store
from unlearnbench.tasks.digits_class import DigitsClass
from unlearnbench.verification.verify import verify_record

pytestmark = pytest.mark.usefixtures("small")
CALLS: list[str] = []


@dataclass(frozen=True)
class Try(Attack):
    """Draws plain samples, then says that every second target was recovered."""

    title = "try"
    variants = {"fails": {"mode": "fails"}, "refuses": {"mode": "refuses"}, "breaks": {"mode": "breaks"}}
    variants["changes"] = {"mode": "changes"}
    mode: str = "plain"
    targets: int = 6
    after: tuple[int, ...] = (1, 2)

    def looks(self, outcome, items) -> Iterator[Look]:
        CALLS.append(self.mode)
        yield Look(0, sight(outcome, sample_targets(outcome, items), items).recovered * 0)
        if self.mode == "fails":
            raise RuntimeError("torn")
        if self.mode == "refuses":
            raise Unsupported("nothing to search by")
        if self.mode == "breaks":
            raise KeyboardInterrupt
        if self.mode == "changes":
            next(iter(outcome.model.parameters())).data += 1
        yield Look(7, (torch.arange(len(items)) % 2).float())

    def known(self):
        yield from ()


Try.name = "try"


@pytest.fixture
def tried(monkeypatch):
    """Try and a white lie of it are the attacks there are."""
    CALLS.clear()
    monkeypatch.setattr(registry, "load_attacks", lambda: {"try": Try()})
    return CALLS


@pytest.fixture
def setting(tmp_path, shared_store, fresh_store, tried):
    path = write_nudge(tmp_path)
    record = run_cell(path, shared_store, tmp_path / "here")
    shutil.copytree(shared_store, fresh_store, dirs_exist_ok=True)  # its samples are drawn once for all tests
    cell = Cell(registry.load_method(str(path))(), DigitsClass("3"))

    def attack(text, budget=None, cell=cell, force=False):
        now = read_record(record.path(tmp_path / "here"))
        asked = attacks.parse_attacks(text, budget)
        return attacks.attacked(cell, now, asked, Store(fresh_store), tmp_path / "here", force)

    return record, attack, tmp_path / "here"


def test_a_record_gets_its_attacks_and_keeps_everything_else(setting):
    record, attack, here = setting
    made = attack("try")
    assert made.result() == record.result()
    assert made.revision == record.revision + 1
    found = made.attacks["try"]
    assert (found.value, found.n, found.missing, found.limit, found.box) == (0.5, 6, 0, 7, "white")
    assert found.recovered == (False, True) * 3
    assert found.spent == (7,) * 6
    assert found.settings == {"mode": "plain", "targets": 6, "after": [1, 2], "batch": 20}, "as it is read back"
    assert read_record(record.path(here)) == made


def test_the_same_command_again_attacks_nothing(setting, tried):
    _, attack, _ = setting
    first = attack("try")
    assert attack("try") == first
    assert tried == ["plain"]


def test_force_attacks_again(setting, tried):
    _, attack, _ = setting
    attack("try")
    attack("try", force=True)
    assert tried == ["plain", "plain"]


def test_the_store_answers_where_a_record_was_lost(setting, tried):
    record, attack, here = setting
    first = attack("try")
    write_record(record, record.path(here))
    again = attack("try")
    assert again.attacks == first.attacks
    assert tried == ["plain"]


def test_budgets_have_records_of_their_own(setting):
    _, attack, _ = setting
    attack("try")
    made = attack("try", budget=0)
    assert set(made.attacks) == {"try", "try+budget=0"}
    assert (made.attacks["try+budget=0"].value, made.attacks["try+budget=0"].limit) == (0.0, 0)
    assert made.attacks["try+budget=0"].budget == 0
    assert [spec.label for spec in attacks.repeatable_attacks(made)] == ["try", "try+budget=0"]


def test_an_attack_that_fails_is_missing_and_tried_again_next_time(setting, tried):
    _, attack, _ = setting
    attack("try@fails")
    found = attack("try@fails").attacks["try@fails"]
    assert tried == ["fails", "fails"]
    assert (found.status, found.value, found.missing) == ("unreliable", None, 6)
    assert "RuntimeError: torn" in found.reason
    assert found.recovered == (None,) * 6


def test_an_attack_that_cannot_be_tried_is_skipped_with_the_reason(setting):
    _, attack, _ = setting
    found = attack("try@refuses").attacks["try@refuses"]
    assert (found.status, found.reason, found.value, found.applies) == ("skipped", "nothing to search by", None, True)


def test_an_attack_on_what_the_task_does_not_have_applies_to_no_method(setting, monkeypatch):
    _, attack, _ = setting
    monkeypatch.setattr(Try, "needs", frozenset({"text"}))
    found = attack("try").attacks["try"]
    assert (found.status, found.applies) == ("skipped", False)
    assert "asked by class labels" in found.reason


def test_an_attack_must_leave_the_model_as_it_was(setting):
    _, attack, _ = setting
    with pytest.raises(UserError, match="changed the model that it is measured on"):
        attack("try@changes")


def test_a_stop_in_the_middle_loses_no_attack_that_was_finished(setting, tried):
    record, attack, here = setting
    with pytest.raises(KeyboardInterrupt):
        attack("try,try@breaks")
    assert set(read_record(record.path(here)).attacks) == {"try"}
    attack("try")
    assert tried == ["plain", "breaks"]


def test_a_run_made_anew_keeps_attacks_of_the_same_weights(setting, tmp_path, fresh_store):
    _, attack, here = setting
    made = attack("try")
    again = run_cell(tmp_path / "nudge.py", fresh_store, here, force=True)
    assert again.attacks == made.attacks
    (tmp_path / "nudge.py").write_text((tmp_path / "nudge.py").read_text().replace("0.01", "0.02"))
    assert run_cell(tmp_path / "nudge.py", fresh_store, here, force=True).attacks == {}


def test_a_text_run_made_anew_keeps_its_attacks_too(tmp_path):
    """What is read back has lists where the settings have tuples."""
    from unlearnbench.pipeline.writing import with_attachments
    from unlearnbench.records.schema import ProtocolRecord
    from unlearnbench.tasks.digits_text import DigitsText

    protocol = DigitsText.protocols["smoke"]
    said = ProtocolRecord(name="smoke", hash=protocol.hash, settings=asdict(protocol))
    new = made_record("esd", protocol=said)
    found = AttackRecord(status="skipped", box="white", unit="", settings={}, code_hash="c", key="k")
    old = new.model_copy(update={"attacks": {"try": found}})
    path = old.path(tmp_path)
    write_record(old, path)
    assert with_attachments(new, path).attacks == {"try": found}
    moved = new.model_copy(update={"weights": {**new.weights, "unlearned": "v" * 64}})
    assert with_attachments(moved, path).attacks == {}


def test_attacks_leave_the_key_of_the_run_alone(setting, tmp_path, fresh_store):
    record, attack, here = setting
    made = attack("try")
    assert made.key == record.key
    assert run_cell(tmp_path / "nudge.py", fresh_store, here) == made


def test_another_file_of_the_attack_makes_it_anew(setting, tried, monkeypatch):
    _, attack, _ = setting
    attack("try")
    monkeypatch.setattr(attacks, "metric_code", lambda attack: "other")
    with pytest.raises(UserError, match=r"try in its record .* attack code \(\w{8}, now other\): --force"):
        attack("try")
    assert tried == ["plain"], "refused before any work"
    attack("try", force=True)
    assert tried == ["plain", "plain"]


def test_weights_that_are_not_the_records_are_refused(setting, monkeypatch):
    _, attack, _ = setting
    monkeypatch.setattr(attacks, "state_hash", lambda state: "other")
    with pytest.raises(UserError, match="run it with --force first"):
        attack("try")


def test_what_did_not_run_is_not_attacked(setting):
    record, _, here = setting
    gone = record.model_copy(update={"status": "diverged"})
    cell = Cell(registry.load_method("original")(), DigitsClass("3"))
    assert attacks.attacked(cell, gone, attacks.parse_attacks("try"), Store(here / "store"), here) is gone


def test_verify_tries_the_attacks_again(setting, tmp_path):
    from unlearnbench.records.image_table import read_images

    _, attack, here = setting
    made = attack("try")
    cell = Cell(registry.load_method(str(tmp_path / "nudge.py"))(), DigitsClass("3"))
    rows = {row.metric: row for row in verify_record(made, read_images(made, here), cell).rows}
    assert rows["try"].agrees
    liar = made.attacks["try"].model_copy(update={"recovered": (True, False) * 3})
    rows = {
        row.metric: row for row in verify_record(made.model_copy(update={"attacks": {"try": liar}}), None, cell).rows
    }
    assert rows["try"].agrees is False
    assert "other targets" in rows["try"].note


# ---- the command line ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--attacks", "tri"], "unknown attack 'tri': did you mean try"),
        (["--attacks", "try@fail"], "unknown variant of try 'fail': did you mean fails"),
        (["--attacks", ""], "--attacks is empty: give standard"),
        (["--attacks", " , "], "--attacks is empty"),
        (["--attacks", "try@"], "unknown variant of try ''"),
        (["--attacks", "try", "--budget", "-1"], "--budget -1 is below 0: give 0, which searches nothing"),
        (["--budget", "5"], "--budget is for attacks: add --attacks standard"),
    ],
)
def test_what_a_hurried_user_types_wrong_is_told_in_one_line(words, message, tried):
    done = CliRunner().invoke(cli.app, ["run", "--method", "original", *words])
    assert isinstance(done.exception, UserError)
    assert message in str(done.exception)
    assert "\n" not in str(done.exception)


def test_the_command_line_attacks_and_shows_it(tmp_path, fresh_store, tried, monkeypatch):
    monkeypatch.setenv("UNLEARNBENCH_CACHE", str(fresh_store))
    path = write_nudge(tmp_path)
    words = ["run", "--method", str(path), "--device", "cpu", "--results", str(tmp_path / "here"), "--attacks", "try"]
    done = CliRunner().invoke(cli.app, words)
    assert done.exit_code == 0, done.output
    assert "under attack" in done.output
    assert "50.0" in done.output
    assert "no floor" in done.output
    tried.clear()
    again = CliRunner().invoke(cli.app, words)
    assert again.exit_code == 0
    assert tried == []


def test_the_leaderboard_says_where_nothing_was_attacked(tmp_path, fresh_store):
    run_cell("original", fresh_store, tmp_path / "here")
    done = CliRunner().invoke(cli.app, ["leaderboard", str(tmp_path / "here"), "--attacks"])
    assert isinstance(done.exception, UserError)
    assert "no record here was attacked: run its command with --attacks standard" in str(done.exception)


def test_sight_of_what_is_not_finite_is_missing(small):
    task = DigitsClass("3")
    from unlearnbench.attacks.search import arena

    model = task.pretrained().eval()
    outcome = arena(task, model, model, None)
    items = outcome.plan[:3]
    x = torch.zeros(3, 1, 8, 8)
    x[1] = torch.nan
    seen = sight(outcome, x, items)
    assert seen.recovered.isnan().tolist() == [False, True, False]
    assert seen.probability.isnan().tolist() == [False, True, False]


def test_a_judge_that_fails_gives_missing_targets(small, monkeypatch):
    from unlearnbench.attacks.search import arena
    from unlearnbench.judges.digits import CnnJudge

    def fail(self, images):
        raise RuntimeError("no eyes")

    monkeypatch.setattr(CnnJudge, "__call__", fail)
    task = DigitsClass("3")
    model = task.pretrained().eval()
    outcome = arena(task, model, model, None)
    score = replace(Try(), targets=4).measure(outcome, 0)
    assert (score.value, score.missing, score.n) == (None, 4, 4)


def test_no_more_images_are_held_at_once_than_a_chunk(small, monkeypatch):
    """For every number of targets: memory does not depend on it."""
    from unlearnbench.attacks.search import arena

    sizes: list[int] = []
    task = DigitsClass("3")
    model = task.pretrained().eval()
    decode, sample = type(model).decode, type(model).sample
    monkeypatch.setattr(type(model), "decode", lambda self, x: sizes.append(len(x)) or decode(self, x))
    monkeypatch.setattr(
        type(model), "sample", lambda self, y, *a, **k: sizes.append(len(y)) or sample(self, y, *a, **k)
    )
    task.protocol = replace(task.protocol, chunk=6, forget_images=20)
    score = replace(Try(), targets=20, batch=20).measure(arena(task, model, model, None))
    assert score.n == 20
    assert max(sizes) == 6
    assert sum(sizes) == 2 * 20


# ---- precision -----------------------------------------------------------------------------------------------------


def kind():
    """What a matrix product gives at this moment."""
    return (torch.ones(1, 1) @ torch.ones(1, 1)).dtype


@pytest.mark.parametrize(
    ("precision", "searched", "drawn"),
    [
        ("fp32", torch.float32, torch.float32),
        ("bf16", torch.bfloat16, torch.bfloat16),
        ("fp16", torch.float32, torch.float16),
    ],
)
def test_attacks_search_and_draw_in_the_runs_precision_and_judges_look_in_float32(
    setting, monkeypatch, precision, searched, drawn
):
    _, attack, here = setting
    seen, predict, judge = {}, ClassUNet.predict, CnnJudge.__call__

    def noted(name, real):
        return lambda self, *given: seen.setdefault(name, set()).add(kind()) or real(self, *given)

    class Searching(Try):
        def looks(self, outcome, items):
            seen["search"] = {kind()}
            yield from super().looks(outcome, items)

    monkeypatch.setattr(registry, "load_attacks", lambda: {"try": Searching()})
    monkeypatch.setattr(ClassUNet, "predict", noted("draw", predict))
    monkeypatch.setattr(CnnJudge, "__call__", noted("judge", judge))
    method = registry.load_method(str(here.parent / "nudge.py"))()
    cell = Cell(method, DigitsClass("3"), resources=Resources(precision))
    found = attack("try", cell=cell).attacks["try"]
    assert seen == {"search": {searched}, "draw": {drawn}, "judge": {torch.float32}}
    names = {torch.float32: None, torch.bfloat16: "bfloat16", torch.float16: "float16"}
    said = found.made_with["numerics"]
    assert (said["search"]["autocast"], said["sampling"]["autocast"]) == (names[searched], names[drawn])


def test_an_attack_of_a_run_in_bf16_that_was_made_in_float32_is_made_again(setting, monkeypatch):
    record, *_ = setting
    cell = Cell(registry.load_method("original")(), DigitsClass("3"), resources=Resources("bf16"))
    spec = AttackSpec.parse("try")
    now = attacks._key(cell, record, spec)
    monkeypatch.setattr(attacks, "_followed", lambda cell: [])
    before = attacks._key(cell, record, spec)
    assert now != before, "attacks ignored the precision that their key had"


def test_nearest_tokens_and_relaxed_gradients_are_not_rounded():
    """In bf16 the cosines of a vocabulary's tokens are often equal."""
    torch.manual_seed(0)
    table, vectors = torch.nn.functional.normalize(torch.randn(3000, 8), dim=1), torch.randn(40, 4, 8)
    plain = nearest(vectors, table, torch.arange(3000))
    with Resources("bf16").training("cpu"):
        assert torch.equal(nearest(vectors, table, torch.arange(3000)), plain)
