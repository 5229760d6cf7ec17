"""verify: a record made anew agrees with itself, and what was planted in it is found."""

from __future__ import annotations

import hashlib
import json

import pandas as pd
import pytest

from tests.support.small_world import FORGET_IMAGES, IMAGES, run_cell, small_protocol, write_method, write_nudge
from unlearnbench.records.schema import read_record, write_record
from unlearnbench.records.sealed_json import sealed
from unlearnbench.tasks.digits_class import DigitsClass
from unlearnbench.verification.verify import choose_positions, rebuilt

pytestmark = pytest.mark.usefixtures("small")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A record and its per-image values, as bytes."""
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(DigitsClass.protocols, "default", small_protocol())
        record = run_cell(write_nudge(folder), folder / "store", folder / "here")
    path = record.path(folder / "here")
    return {suffix: path.with_suffix(suffix).read_bytes() for suffix in (".json", ".parquet")}


@pytest.fixture
def path(made, tmp_path):
    """The record's file in a folder of this test's own, the method's file beside it."""
    write_nudge(tmp_path)
    for suffix, content in made.items():
        (tmp_path / f"seed-0{suffix}").write_bytes(content)
    return tmp_path / "seed-0.json"


def reseal(path, **changes):
    """Write a record anew with changes, as one who knows how would."""
    return write_record(read_record(path).model_copy(update=changes), path)


def plant_score(path, name="ua", **changes):
    record = read_record(path)
    reseal(path, scores={**record.scores, name: record.scores[name].model_copy(update=changes)})


def plant_images(path, change):
    images = pd.read_parquet(path.with_suffix(".parquet"))
    change(images)
    images.to_parquet(path.with_suffix(".parquet"), index=False)
    reseal(path, images=hashlib.sha256(path.with_suffix(".parquet").read_bytes()).hexdigest())


SAMPLES = [(), ("--sample", "20%")]
WORDS = ("--method", "nudge.py", "--device", "cpu")


@pytest.mark.parametrize("sample", SAMPLES)
def test_a_record_agrees_with_itself_and_nothing_is_left(cli, path, tmp_path, fresh_store, sample):
    before = {file: file.read_bytes() for file in tmp_path.iterdir() if file.is_file()}
    said = cli("verify", path, *WORDS, *sample)
    assert said.code == 0, said.out + said.err
    assert "unlearned weights: equal; environment: same" in said.out
    assert said.errors == []
    assert "✗" not in said.out
    assert ("not on a sample" in said.out) == bool(sample)
    assert said.out.splitlines()[-1].startswith("agrees: ")
    assert not fresh_store.exists(), "the user's store is not touched"
    assert {file: file.read_bytes() for file in tmp_path.iterdir() if file.is_file()} == before


@pytest.mark.parametrize("sample", SAMPLES)
def test_an_edited_and_resealed_score_is_named(cli, path, sample):
    true = read_record(path).scores["ua"].value
    plant_score(path, value=true + 0.25)
    said = cli("verify", path, *WORDS, *sample)
    assert said.code == 1
    lines = [line for line in said.errors if line.startswith("ua (%): ")]
    assert f"recorded {(true + 0.25) * 100:.5g}, anew {true * 100:.5g}, tolerance 0.0001" in lines[0]
    assert said.out.splitlines()[-1].startswith("disagrees: ")


@pytest.mark.parametrize(
    "planted",  # several scores at a time, since each is made anew
    [
        {
            "fid": ({"value": None}, "fid: recorded —, anew"),
            "kid": ({"floor": 3.0}, "kid, floor: recorded 3, anew"),
            "ra": ({"missing": 3}, "3 of 36 missing then, 0 of 36 now"),
        },
        {
            "fid": ({"value": 1e3}, "fid: recorded 1000, anew"),
            "kid": ({"interval": (-1e6, 1e6)}, "kid, low: recorded -1e+06"),
            "trained_parameters": ({"value": 7.0}, "trained_parameters (M): recorded 7e-06"),
        },
    ],
)
def test_every_number_of_a_score_is_compared(cli, path, planted):
    for name, (changes, _) in planted.items():
        plant_score(path, name, **changes)
    said = cli("verify", path, *WORDS)
    assert said.code == 1
    for name, (_, says) in planted.items():
        own = [line for line in said.errors if line.startswith(name)]
        assert says in own[0], said.err
    assert all(line.startswith((*planted,)) for line in said.errors)


def flip_judged(images):
    images["judged"] = (images["judged"] + 1) % 10


def lower_p(images):
    images["p_asked"] = images["p_asked"] * 0.5


def lose(images):
    images.loc[images.group == "forget", "entropy"] = None


@pytest.mark.parametrize(  # columns are compared alike, on a sample too
    ("change", "says", "sample"),
    [
        (flip_judged, "judged alike: recorded 1, anew 0", SAMPLES[0]),
        (flip_judged, "judged alike: recorded 1, anew 0", SAMPLES[1]),
        (lower_p, "p_asked", SAMPLES[1]),
        (lose, "entropy", SAMPLES[0]),
    ],
)
def test_edited_and_resealed_images_are_named(cli, path, change, says, sample):
    plant_images(path, change)
    said = cli("verify", path, *WORDS, *sample)
    assert said.code == 1
    assert any(line.startswith(says) for line in said.errors), said.err


def test_other_noise_than_the_protocol_plans_is_refused(cli, path):
    plant_images(path, lambda images: images.update({"seed": images["seed"] // 2}))
    said = cli("verify", path, *WORDS, "--sample", "5%")
    assert said.code == 2
    assert "other images or noise seeds than its protocol plans" in said.err


def test_other_weights_code_and_judge_are_told_first(cli, path, tmp_path):
    file = tmp_path / "nudge.py"
    file.write_text(file.read_text().replace("1 + self.size", "1 + 10 * self.size"))
    record = read_record(path)
    reseal(path, judge=record.judge.model_copy(update={"hash": "f" * 64}))
    said = cli("verify", path, *WORDS, "--sample", "10%")
    assert "unlearned weights: different; environment: alike" in said.out
    rows = [line.split()[:2] for line in said.out.splitlines() if line.strip()]
    assert rows[3] == ["judge", "hash"]
    assert ["weights", "unlearned"] in rows
    assert ["code", "method"] in rows
    assert said.code == 1, "no tolerance covers another method's code"
    assert "method's code: recorded" in said.err


def test_a_drawn_sample_is_small(path, tmp_path, monkeypatch):
    from unlearnbench.pipeline import measuring
    from unlearnbench.verification import verify

    drawn = []
    real = measuring.observed
    monkeypatch.setattr(measuring, "observed", lambda *parts: drawn.extend(parts[4]) or real(*parts))
    record = read_record(path)
    images = pd.read_parquet(path.with_suffix(".parquet"))
    cell = rebuilt(record, "cpu", str(tmp_path / "nudge.py"))
    found = verify.verify_record(record, images, cell, 0.1)
    assert [plan.group for plan in drawn] == ["forget"] * 2 + ["retain"] * 4
    assert set(drawn) <= set(cell.task.plan())
    assert all(row.agrees is not False for row in found.rows)


def test_samples_are_spread_rounded_up_and_never_empty():
    groups = ["forget"] * FORGET_IMAGES + ["retain"] * (IMAGES - FORGET_IMAGES)
    assert choose_positions(groups, 1.0) == list(range(IMAGES))
    assert choose_positions(groups, 0.001) == [0, FORGET_IMAGES]
    assert choose_positions(groups, 0.25) == [0, 4, 8, 12, 16, *range(20, 56, 4)]
    assert len(choose_positions(["a"] * 100, 0.07)) == 7
    assert len(choose_positions(["a"] * 250, 0.05)) == 13


def test_what_was_skipped_or_diverged_is_so_again(cli, tmp_path):
    skipped = write_method(tmp_path, "return model", fields='requires = frozenset({"xattn"})')
    assert cli("run", "--method", skipped, "--results", "here").code == 1, "no run came to a result"
    for sample in SAMPLES:
        assert cli("verify", "here/digits-class/default/3/mine", "--method", skipped, *sample).code == 0
    write_method(tmp_path, "return model")
    said = cli("verify", "here/digits-class/default/3/mine", "--method", skipped)
    assert said.code == 1
    assert "status: recorded skipped, anew unreliable" in said.err


def test_a_method_that_fails_now_disagrees(cli, path, tmp_path):
    file = tmp_path / "nudge.py"
    text = file.read_text().replace("size: float", 'requires = frozenset({"xattn"})\n    size: float')
    file.write_text(text)
    for sample in SAMPLES:
        said = cli("verify", path, *WORDS, *sample)
        assert said.code == 1
        assert "status: recorded ok, anew skipped" in said.err


BAD = [
    (("--sample", "0"), "--sample 0: write a share"),
    (("--sample", "101%"), "--sample 101%: write a share"),
    (("--sample", "5"), "--sample 5: write a share"),
    (("--sample", "-5%"), "--sample -5%: write a share"),
    (("--sample", "few"), "--sample few: write a share"),
    (("--sample", "nan"), "--sample nan: write a share"),
    ((), "give its file with --method nudge.py"),
    (("--method", "esd"), "is esd, the record is of nudge"),
    (("--method", "gone.py"), "no method file gone.py"),
]


@pytest.mark.parametrize(("words", "says"), BAD)
def test_bad_input_is_one_line(cli, path, words, says):
    said = cli("verify", path, *words)
    assert said.code == 2
    assert len(said.errors) == 1
    assert says in said.errors[0]


def test_a_changed_protocol_is_named_with_the_version_that_knows_it(cli, path, monkeypatch):
    import dataclasses

    monkeypatch.setitem(DigitsClass.protocols, "default", dataclasses.replace(small_protocol(), k=4))
    said = cli("verify", path, *WORDS)
    assert said.code == 2
    assert "protocol default of digits-class changed since" in said.errors[0]
    assert "verify it with unlearnbench " in said.errors[0]


def test_settings_that_the_method_no_longer_has_are_named(cli, path):
    record = read_record(path)
    reseal(path, method=record.method.model_copy(update={"settings": {"sise": 1.0}}))
    said = cli("verify", path, *WORDS)
    assert said.code == 2
    assert "sise" in said.errors[0]


def test_a_sample_needs_images_that_the_record_vouches_for(cli, path):
    reseal(path, images=None)
    said = cli("verify", path, *WORDS, "--sample", "5%")
    assert (said.code, len(said.errors)) == (2, 1)
    assert "leave out --sample" in said.errors[0]
    assert cli("verify", path, *WORDS).code == 0


def test_images_that_lack_a_column_or_their_hash_are_refused(cli, path):
    path.with_suffix(".parquet").write_bytes(b"else")
    assert "its hash does not fit" in cli("verify", path, *WORDS).err
    reseal(path, images=hashlib.sha256(b"else").hexdigest())
    assert "is no Parquet file" in cli("verify", path, *WORDS).err
    pd.DataFrame({"group": ["forget"]}).to_parquet(path.with_suffix(".parquet"))
    reseal(path, images=hashlib.sha256(path.with_suffix(".parquet").read_bytes()).hexdigest())
    said = cli("verify", path, *WORDS)
    assert said.code == 2
    assert "lack concept, judged, label" in said.err


def test_no_path_in_a_record_is_run_as_code(cli, path, tmp_path):
    values = json.loads(path.read_text())
    values["method"]["name"] = str(tmp_path / "nudge.py")
    path.write_text(json.dumps({**values, "content_hash": sealed(values)}))
    said = cli("verify", path)
    assert said.code == 2
    assert "cannot name a method" in said.err
