"""A catalogue of forgeries: each alters a sound record and seals it properly, and validate names what is wrong."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import zlib
from datetime import datetime, timedelta, timezone
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.small_world import IMAGES, ROOT, small_protocol
from unlearnbench import registry
from unlearnbench.hashing import digest
from unlearnbench.pipeline.attacks import attacked, parse_attacks
from unlearnbench.pipeline.cell import Cell
from unlearnbench.pipeline.trajectory import followed
from unlearnbench.records.sealed_json import sealed
from unlearnbench.statistics import clip_interval, t_interval, wilson
from unlearnbench.storage.store import Store
from unlearnbench.tasks.digits_class import DigitsClass
from unlearnbench.verification.rerun_share import draw_records
from unlearnbench.verification.validate import find_problems, record_files, record_findings

pytestmark = pytest.mark.usefixtures("small")
METHOD, ATTACK = "gradient_ascent", "relearn@1"
QUICK = {"steps": 6, "batch_size": 16, "lr": 1e-3}


@pytest.fixture(scope="module", autouse=True)
def few_steps():
    """The method's own preset for the task is a tenth of its steps: the run is made, and made again."""
    method = registry.load_method(METHOD)
    default = {**method.presets["default"], "digits-class": QUICK}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(method, "presets", {**method.presets, "default": default})
        yield


@pytest.fixture(scope="module")
def made(tmp_path_factory, few_steps):
    """A run of a built-in method with an attack and a trajectory."""
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(DigitsClass.protocols, "default", small_protocol())
        method = registry.load_method(METHOD)
        cell = Cell(method.configured(method.preset("default", "digits-class")), DigitsClass("3"))
        store, results = Store(folder / "store"), folder / "here"
        record = followed(cell, 2, store, results)
        attacked(cell, record, parse_attacks(ATTACK), store, results)
    return results


@pytest.fixture
def here(made, tmp_path):
    return shutil.copytree(made, tmp_path / "here")


class Forgery:
    """A record, its table and its picture, to be altered; `seal` writes them as one who knows how would."""

    def __init__(self, here: Path):
        self.here = here
        (self.path,) = record_files(here)
        self.values = json.loads(self.path.read_text())
        self.frame = pd.read_parquet(self.path.with_suffix(".parquet"))
        self._before = self.frame.copy()

    @property
    def scores(self):
        return self.values["scores"]

    @property
    def attack(self):
        return self.values["attacks"][ATTACK]

    def rewrite(self, content: bytes):
        """Put these bytes in place of the table, and vouch for them."""
        self.path.with_suffix(".parquet").write_bytes(content)
        self.values["images"] = hashlib.sha256(content).hexdigest()

    def move(self, *parts: str):
        """Put the record's files into another folder below the results."""
        new = self.here.joinpath(*parts)
        new.parent.mkdir(parents=True, exist_ok=True)
        for suffix in (".json", ".parquet", ".png"):
            self.path.with_suffix(suffix).rename(new.with_suffix(suffix))
        self.path = new

    def seal(self):
        if not self.frame.equals(self._before):
            buffer = io.BytesIO()
            self.frame.to_parquet(buffer, index=False)
            self.rewrite(buffer.getvalue())
        self.path.write_text(json.dumps({**self.values, "content_hash": sealed(self.values)}))


FORGERIES: list = []


def forgery(says: str):
    """Register a forgery with what must be said of it."""

    def register(forge):
        FORGERIES.append(pytest.param(forge, says, id=forge.__name__))
        return forge

    return register


def forget(f: Forgery):
    return f.frame["group"] == "forget"


def with_share(f: Forgery, name: str):
    """Give a score the value and interval that its column has now."""
    column = f.frame[name].dropna()
    f.scores[name].update(value=float(column.mean()), interval=list(wilson(int(column.sum()), len(column))))


# ---- precision -------------------------------------------------------------------------------------------------------


@forgery("its precision is bf16, but unlearning was computed in float32")
def a_run_in_float32_as_one_in_bf16(f: Forgery):
    f.values["environment"]["precision"] = "bf16"


@forgery("its numerics are not as runs write them")
def numerics_of_another_shape(f: Forgery):
    f.values["environment"]["numerics"] = {"unlearning": "float32"}


@forgery(f"{ATTACK}: its precision is float32, but search was computed in bfloat16")
def an_attack_in_another_precision(f: Forgery):
    f.attack["made_with"]["numerics"]["search"]["autocast"] = "bfloat16"


# ---- scores against the table ---------------------------------------------------------------------------------------


@forgery("ua is 0.123, but its per-image values give")
def ua_is_another_number(f):
    f.scores["ua"].update(value=0.123, interval=[0.1, 0.2])


@forgery("ra of image 20 is")
def a_column_is_raised_with_its_score(f):
    retain = ~forget(f)
    f.frame.loc[retain, "ra"] = 1.0 - f.frame.loc[retain, "ra"]
    with_share(f, "ra")


@forgery("p_asked")
def what_was_judged_is_altered_with_the_score(f):
    rows = forget(f)
    f.frame.loc[rows, ["judged", "refused"]] = [3, False]
    f.frame.loc[rows, "p_asked"] = 2.0


@forgery("though its label 3 has the probability 0.900")
def a_label_is_judged_another_in_spite_of_its_probability(f):
    rows = forget(f)
    f.frame.loc[rows, "judged"], f.frame.loc[rows, "p_asked"] = 4, 0.9


@forgery("the label of image 0 is 4 there, 3 in its protocol's plan, and 19 more")
def labels_are_altered_with_the_score(f):
    f.frame.loc[forget(f), "label"] = 4


@forgery("the interval of ua is")
def an_interval_is_narrowed(f):
    value = f.scores["ua"]["value"]
    f.scores["ua"]["interval"] = [max(0.0, value - 0.001), min(1.0, value + 0.001)]


@forgery("the interval of entropy is none")
def an_interval_is_left_out(f):
    f.scores["entropy"]["interval"] = None


@forgery("outside its own interval")
def a_fid_is_not_in_its_interval(f):
    f.scores["fid"]["value"] = f.scores["fid"]["interval"][1] + 1


@forgery("fid is -3, outside at least 0")
def a_fid_is_negative(f):
    f.scores["fid"].update(value=-3.0, interval=[-4.0, 1.0])


@forgery("n of fid is 9999, its protocol plans 36 such images")
def a_fid_is_of_more_images(f):
    f.scores["fid"]["n"] = 9999


@forgery("unlearn_time is -1, outside at least 0")
def a_cost_is_negative(f):
    f.scores["unlearn_time"]["value"] = -1.0


@forgery("precision is 1.5, outside 0 to 1")
def a_share_is_above_one(f):
    f.scores["precision"].update(value=1.5, interval=None)


@forgery("kid has an interval")
def a_value_is_hidden_but_its_interval_is_not(f):
    f.scores["kid"].update(value=None, reason="not finite")


@forgery("p_forget has no value and gives no reason")
def a_value_is_hidden_without_a_reason(f):
    f.scores["p_forget"].update(value=None, interval=None)


@forgery("precision, floor, is -0.5, outside 0 to 1")
def a_floor_cannot_be(f):
    f.scores["precision"]["floor"] = -0.5


@forgery("ra has n 360 and missing 0, its per-image values give 36 and 0")
def n_is_inflated(f):
    f.scores["ra"]["n"] = 360


@forgery("n of trained_parameters is 3, a cost is measured once")
def a_cost_is_of_several(f):
    f.scores["trained_parameters"]["n"] = 3


@forgery("40 of 20 images cannot be missing")
def more_are_missing_than_there_are(f):
    f.scores["ua"]["missing"] = 40


@forgery("-5 images cannot be missing")
def n_is_negative(f):
    f.scores["fid"].update(n=-5, missing=0)


@forgery("its status is ok, but ua")
def missing_images_are_hidden_under_an_ok_status(f):
    rows = forget(f)
    lost = f.frame.index[rows][:5]
    f.frame.loc[lost, [name for name in f.frame if name not in ("group", "concept", "label", "seed")]] = pd.NA
    for name in ("ua", "ua_closed", "coherence", "p_forget", "entropy"):
        f.scores[name]["missing"] = 5


@forgery("has n 20 and missing 0, its per-image values give 20 and 5")
def missing_images_are_not_counted(f):
    lost = f.frame.index[forget(f)][:5]
    f.frame.loc[lost, [name for name in f.frame if name not in ("group", "concept", "label", "seed")]] = pd.NA


@forgery("ua of image 0 is missing, though the image was judged")
def bad_images_are_left_out_of_a_score(f):
    f.frame.loc[f.frame.index[forget(f)][0], "ua"] = pd.NA
    f.scores["ua"]["missing"] = 1


@forgery("entropy of image 0 is missing, though the image was judged")
def bad_images_are_left_out_of_a_mean(f):
    f.frame.loc[f.frame.index[forget(f)][0], "entropy"] = pd.NA
    f.scores["entropy"]["missing"] = 1


@forgery("the parts of fid make 7")
def parts_do_not_add_up(f):
    f.scores["fid"]["parts"] = {"a": 3.0, "b": 4.0}


@forgery("ua is given as efficacy, lower, 'share'")
def a_metric_is_turned_round(f):
    f.scores["ua"]["better"] = "lower"


@forgery("ra has no value, but what was judged gives")
def a_score_by_image_is_withheld(f):
    f.frame = f.frame.drop(columns="ra")
    f.scores["ra"].update(value=None, interval=None, reason="not finite")


@forgery("it has no ra")
def a_score_is_left_out_altogether(f):
    f.frame = f.frame.drop(columns="ra")
    del f.scores["ra"]


# ---- the table -----------------------------------------------------------------------------------------------------


@forgery("it vouches for no per-image values (images is null)")
def no_table_is_vouched_for(f):
    f.values["images"] = None


@forgery("its per-image values seed-0.parquet are missing")
def the_table_is_deleted(f):
    f.path.with_suffix(".parquet").unlink()


@forgery(f"have 46 rows, its protocol plans {IMAGES} images")
def rows_are_dropped(f):
    f.frame = f.frame.iloc[10:]


@forgery("the seed of image 7 is 12345 there")
def noise_is_chosen(f):
    f.frame.loc[7, "seed"] = 12345


@forgery("is no Parquet file")
def the_table_is_cut_off(f):
    f.rewrite(f.path.with_suffix(".parquet").read_bytes()[:-200])


@forgery("has a column 'extra', which is no metric of its record")
def a_column_is_added(f):
    f.frame["extra"] = 1.0


@forgery("has list<element: int64> in the column 'ua' in place of numbers")
def a_column_holds_lists(f):
    f.frame["ua"] = [[1]] * len(f.frame)


@forgery("has large_string in the column 'judged' in place of integers")
def a_column_holds_text(f):
    f.frame["judged"] = "x" * 10


@forgery("rows of")
def a_table_unpacks_to_very_much(f):
    first, buffer = pa.Table.from_pandas(f.frame.head(1), preserve_index=False), io.BytesIO()
    pq.write_table(first.take(np.zeros(1_100_000, dtype=int)), buffer)
    f.rewrite(buffer.getvalue())


@forgery("are read: run it again")
def a_table_is_a_very_large_file(f):
    f.rewrite(bytes(17 * 2**20))


# ---- the method ----------------------------------------------------------------------------------------------------


@forgery("its settings are not those of gradient_ascent default (default): lr 0.123 there")
def a_setting_is_tuned_under_the_label_default(f):
    f.values["method"]["settings"]["lr"] = 0.123


@forgery("its division is default, but preset tuned make it tuned")
def tuned_is_called_default(f):
    f.values["method"]["preset"] = "tuned"
    f.move("digits-class/default/3", f"{METHOD}@tuned", "seed-0.json")


@forgery("its division is published, but preset default make it default")
def default_is_called_published(f):
    f.values["method"]["division"] = "published"


@forgery("unknown preset of gradient_ascent 'secret'")
def a_preset_is_made_up(f):
    f.values["method"].update(preset="secret", division="custom")
    f.move("digits-class/default/3", f"{METHOD}@secret", "seed-0.json")


@forgery("its division is default, but preset default and overrides lr make it custom")
def a_custom_setting_is_called_default(f):
    f.values["method"]["overrides"] = {"lr": 0.123}
    f.values["method"]["settings"]["lr"] = 0.123
    f.move("digits-class/default/3", f"{METHOD}+lr=0.123", "seed-0.json")


@forgery("is run with lr=0.5 by its overrides, but lr is")
def an_override_is_not_what_was_run(f):
    f.values["method"].update(overrides={"lr": 0.5}, division="custom")
    f.move("digits-class/default/3", f"{METHOD}+lr=0.5", "seed-0.json")


@forgery("says that its method is salun, but its code is that of gradient_ascent")
def another_method_takes_the_credit(f):
    f.values["method"]["name"] = "salun"
    f.move("digits-class/default/3/salun/seed-0.json")


@forgery("says that gradient_ascent needs nothing, which is not so")
def a_method_needs_less_than_it_does(f):
    f.values["method"]["requires"] = []


@forgery("is tuned, but does not say on what")
def what_it_was_tuned_on_is_left_out(f):
    f.values["method"].update(preset="tuned", division="tuned")
    f.move("digits-class/default/3", f"{METHOD}@tuned", "seed-0.json")


@forgery("is tuned on what it reports: concept 3 was selected on")
def it_is_tuned_on_what_it_reports(f):
    chosen = {"forget": ["3"], "seeds": [100], "sampling_seed": 1, "judge": "e" * 64, "trials": 5}
    f.values["method"].update(preset="tuned", division="tuned", selection=chosen)
    f.move("digits-class/default/3", f"{METHOD}@tuned", "seed-0.json")


# ---- where it comes from -------------------------------------------------------------------------------------------


@forgery("no version of its engine is eeeeeeeeeeee")
def an_engine_is_made_up(f):
    f.values["engine_hash"] = "e" * 64


@forgery("no version of its judge is dddddddddddd")
def a_judge_is_made_up(f):
    f.values["judge"]["hash"] = "d" * 64


@forgery("no version of its original weights is cccccccccccc")
def an_original_is_made_up(f):
    f.values["weights"]["original"] = "c" * 64


@forgery("no version of its method gradient_ascent is bbbbbbbbbbbb")
def a_method_is_made_up(f):
    f.values["method"]["code_hash"] = "b" * 64


@forgery("no version of its metric ua is aaaaaaaaaaaa")
def a_metric_is_made_up(f):
    f.scores["ua"]["code_hash"] = "a" * 64


@forgery("its judge is nobody, its protocol's is digits-cnn")
def another_judge_than_the_protocols(f):
    f.values["judge"]["name"] = "nobody"


@forgery("protocol default differs from the one here")
def a_protocol_is_made_easier(f):
    f.values["protocol"]["settings"]["forget_images"] = 5
    f.values["protocol"]["hash"] = digest(f.values["protocol"]["settings"])


@forgery("its sampling seed is 9, its protocol's is 0")
def another_sampling_seed(f):
    f.values["seeds"]["sampling"] = 9


@forgery("seeds.unlearning: input should be greater than or equal to 0")
def a_seed_is_negative(f):
    f.values["seeds"]["unlearning"] = -1


@forgery("the revision is 0")
def a_revision_is_none(f):
    f.values["revision"] = 0


@forgery("in the future")
def it_was_made_tomorrow(f):
    f.values["created"] = (datetime.now(timezone.utc) + timedelta(days=3)).isoformat()


@forgery("created is 'yesterday', which is no date")
def it_was_made_at_no_date(f):
    f.values["created"] = "yesterday"


@forgery("its contents belong at")
def a_record_is_moved(f):
    f.move("digits-class/default/4", METHOD, "seed-0.json")


@forgery("the concept of image")
def a_record_is_given_another_concept(f):
    f.values.update(forget="4", key="f" * 64)
    f.move("digits-class/default/4", METHOD, "seed-0.json")


@forgery("took the same times as")
def one_run_is_reported_as_two(f):
    other = json.loads(json.dumps(f.values))
    other["seeds"]["unlearning"], other["key"] = 1, "f" * 64
    copy = f.path.with_name("seed-1.json")
    for suffix in (".parquet", ".png"):
        shutil.copy(f.path.with_suffix(suffix), copy.with_suffix(suffix))
    copy.write_text(json.dumps({**other, "content_hash": sealed(other)}))


# ---- status --------------------------------------------------------------------------------------------------------


@forgery("its status is diverged, but it has scores")
def diverged_with_scores(f):
    f.values.update(status="diverged", reason="the loss is not finite", step=3)


@forgery("its status is ok, but it gives a reason")
def ok_with_a_reason(f):
    f.values["reason"] = "the judge failed"


@forgery("its status is ok, but it names a step of divergence (3)")
def ok_with_a_step(f):
    f.values["step"] = 3


@forgery("its status is unreliable, but nothing in it says why")
def unreliable_without_a_cause(f):
    f.values["status"] = "unreliable"


@forgery("the method changed no weight")
def a_method_that_did_nothing(f):
    f.scores["trained_parameters"]["value"] = 0.0


# ---- attacks and trajectory ----------------------------------------------------------------------------------------


@forgery("its targets give")
def attack_flags_are_flipped_without_the_value(f):
    f.attack["recovered"] = [not hit for hit in f.attack["recovered"]]


@forgery("the value is 0.987, its targets give")
def an_attack_has_another_value(f):
    f.attack["value"] = 0.987


@forgery(f"the interval of {ATTACK} is")
def attack_flags_are_flipped_with_the_value(f):
    f.attack["recovered"] = [not hit for hit in f.attack["recovered"]]
    f.attack["value"] = 1 - f.attack["value"]


@forgery(f"the area of {ATTACK} is 0.77, its targets give")
def an_attack_has_another_area(f):
    f.attack["area"] = 0.77


@forgery("spent is outside 0 to")
def more_is_spent_than_the_limit(f):
    f.attack["spent"][0] = f.attack["limit"] + 1


@forgery("unknown attack tickle")
def an_attack_is_made_up(f):
    f.values["attacks"]["tickle"] = f.values["attacks"].pop(ATTACK)


@forgery("the settings of relearn@10 are not those of that attack: k 1 there and 10 here")
def a_weak_attack_is_called_a_strong_one(f):
    f.values["attacks"]["relearn@10"] = f.values["attacks"].pop(ATTACK)


@forgery(f"n of {ATTACK} is 2, its settings and protocol give 20 targets")
def targets_are_left_out(f):
    f.attack.update(recovered=[False] * 2, spent=f.attack["spent"][:2], n=2, value=0.0, area=0.0)
    f.attack["interval"] = list(wilson(0, 2))


@forgery("ua is 1.5 at step")
def a_point_of_the_trajectory_cannot_be(f):
    f.values["trajectory"]["points"][-1]["scores"]["ua"] = 1.5


@forgery("the hash of its trajectory's protocol is not that of the settings beside it")
def a_trajectory_is_of_another_protocol(f):
    f.values["trajectory"]["protocol"]["differs"]["noise"] = "chosen"


@forgery("n of ua in its trajectory is 5000")
def a_trajectory_rests_on_more_images(f):
    f.values["trajectory"]["n"]["ua"] = 5000


# ---- the picture ---------------------------------------------------------------------------------------------------


def png(width: int, height: int) -> bytes:
    """A white PNG of that size, by hand, so that no library refuses to make it."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return len(content).to_bytes(4, "big") + name + content + zlib.crc32(name + content).to_bytes(4, "big")

    head = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([1, 0, 0, 0, 0])
    rows = zlib.compress(bytes((width // 8 + 2) * min(height, 10)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


@forgery("its sample grid seed-0.png has 64 x 10 pixels, its 10 concepts give")
def a_picture_of_another_size(f):
    f.path.with_suffix(".png").write_bytes(png(64, 10))


@forgery("its sample grid seed-0.png is no picture (DecompressionBomb")
def a_picture_that_unpacks_to_very_much(f):
    f.path.with_suffix(".png").write_bytes(png(100_000, 100_000))


@forgery("its sample grid seed-0.png is no picture")
def a_picture_that_is_cut_off(f):
    picture = f.path.with_suffix(".png")
    picture.write_bytes(picture.read_bytes()[: picture.stat().st_size // 2])


@forgery("its sample grid seed-0.png has 17,825,792 bytes")
def a_picture_that_is_a_very_large_file(f):
    f.path.with_suffix(".png").write_bytes(bytes(17 * 2**20))


# ---- the test ------------------------------------------------------------------------------------------------------


def said_of(here: Path) -> list:
    return list(record_findings(here, record_files(here)))


def test_the_record_that_is_forged_is_sound(here):
    assert said_of(here) == []


@pytest.mark.parametrize(("forge", "says"), FORGERIES)
def test_a_forgery_is_named(here, forge, says):
    found = Forgery(here)
    forge(found)
    found.seal()
    refused = [each for each in said_of(here) if each.note is None or each.note.strict]
    assert any(says in each.text for each in refused), [each.text for each in refused]
    assert all("\n" not in each.text for each in refused)
    assert not any("cannot be checked" in each.text for each in refused)


@pytest.fixture
def two_domains(tmp_path):
    """A committed record whose retain samples are asked for a digit and a colour."""
    place = "digits-text/default/seven/uce"
    for suffix in (".json", ".parquet", ".png"):
        target = (tmp_path / "two" / place / "seed-0").with_suffix(suffix)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy((ROOT / "results" / place / "seed-0").with_suffix(suffix), target)
    return tmp_path / "two"


@pytest.mark.parametrize(
    ("group", "name", "unlike"),
    [
        ("retain", "ra", {"judged": 0, "p_asked": 0.0, "ira": 0.0, "cra": 1.0}),
        ("retain", "ra", {"cra": 0.0}),
        ("retain", "ira", {"refused": True}),
        ("neighbours", "ra_neighbours", {"refused": True}),
    ],
)
def test_a_score_over_two_domains_follows_from_both(two_domains, group, name, unlike):
    assert find_problems(two_domains) == []
    found = Forgery(two_domains)
    rows = found.frame.index[(found.frame["group"] == group) & (found.frame["other"] >= 0)]
    for column, value in {"refused": False, **unlike, name: 1.0}.items():
        found.frame.loc[rows, column] = value
    with_share(found, name)
    found.seal()
    assert any(each.text.startswith(f"{name} of image ") for each in find_problems(two_domains))


def test_the_catalogue_is_long_enough():
    assert len({forge.values[0] for forge in FORGERIES}) == len(FORGERIES) >= 25


# ---- files that no run writes --------------------------------------------------------------------------------------


def deep(path):
    path.write_text('{"schema_version": 5, "a": ' + "[" * 500 + "]" * 500 + "}")


def bottomless(path):
    path.write_text('{"schema_version": 5, "a": ' + "[" * 200_000 + "]" * 200_000 + "}")


def large(path):
    with path.open("wb") as file:
        file.truncate(100_000_000)


def twice(path):
    path.write_text(path.read_text().replace('"task":', '"task": "x", "task":', 1))


def nan(path):
    values = json.loads(path.read_text())
    values["environment"]["threads"] = float("nan")
    path.write_text(json.dumps(values))


def huge(path):
    path.write_text(path.read_text().replace('"revision":', '"environment": {"a": 1e999}, "revision":', 1))


def folder(path):
    path.unlink()
    path.mkdir()


def pipe(path):
    path.unlink()
    os.mkfifo(path)


def link(path):
    outside = path.parents[5] / "outside.json"
    path.rename(outside)
    path.symlink_to(outside)


def broken_link(path):
    path.unlink()
    path.symlink_to("nowhere.json")


STRANGE = [
    (deep, "objects lie more than 30 deep in one another"),
    (bottomless, "it is no JSON object"),
    (large, "has 100,000,000 bytes, at most 16,777,216 are read"),
    (twice, "the key 'task' is given twice"),
    (nan, "NaN is no JSON number"),
    (huge, "1e999 is too large for a number"),
    (folder, "seed-0.json is a directory"),
    (pipe, "seed-0.json is no regular file"),
    (link, "seed-0.json is a link to a file outside the folder"),
    (broken_link, "seed-0.json is a link to a file that does not exist"),
]


@pytest.mark.parametrize(("alter", "says"), STRANGE)
def test_a_strange_file_is_one_line_and_the_rest_is_checked(cli, here, alter, says):
    (path,) = record_files(here)
    other = here / "digits-class/default/5" / METHOD / "seed-0.json"
    other.parent.mkdir(parents=True)
    other.write_text('{"schema_version": 5}')
    alter(path)
    said = cli("validate", here)
    assert said.code == 1
    assert said.err == ""
    lines = said.out.splitlines()
    assert sum(says in line for line in lines) == 1, said.out
    assert any(line.startswith(str(other)) for line in lines)
    assert lines[-1] == "2 records checked, 2 problems"


def test_a_table_that_links_outside_is_not_read(here):
    (path,) = record_files(here)
    outside = here.parent / "outside.parquet"
    path.with_suffix(".parquet").rename(outside)
    path.with_suffix(".parquet").symlink_to(outside)
    assert [each.text for each in find_problems(here)] == [
        "seed-0.parquet is a link to a file outside the folder: put the file itself there"
    ]


# ---- notes ---------------------------------------------------------------------------------------------------------


def test_unknown_origin_is_a_note_that_strict_refuses(cli, here):
    found = Forgery(here)
    an_engine_is_made_up(found)
    found.seal()
    said = cli("validate", here)
    assert (said.code, said.out.splitlines()) == (
        0,
        ["note: 1 record of unknown origin: engine", "1 record checked, 0 problems"],
    )
    said = cli("validate", here, "--strict")
    assert said.code == 1
    assert said.out.splitlines() == [
        f"{found.path}: no version of its engine is eeeeeeeeeeee",
        "1 record checked, 1 problem",
    ]
    assert "no version of its engine" in cli("validate", here, "--verbose").out


def test_an_older_known_version_is_no_unknown_origin(here, monkeypatch):
    from unlearnbench.verification import check_origin

    monkeypatch.setattr(check_origin, "standing", lambda kind, name, hash: "older")
    notes = {each.note.group: each.note.strict for each in said_of(here)}
    assert notes["of another version: engine"] is False
    assert not any("unknown" in group for group in notes)


# ---- running a share again -----------------------------------------------------------------------------------------


def test_a_share_is_run_again_and_what_was_forged_consistently_is_found(cli, here):
    said = cli("validate", here, "--verify", "5%", "--sample", "100%", "--draw", "3")
    assert said.code == 0, said.out
    assert "verifying 1 of 1 record, drawn with --draw 3" in said.out
    found = Forgery(here)
    found.frame.loc[forget(found), "entropy"] = found.frame.loc[forget(found), "entropy"] / 2
    column = found.frame["entropy"].dropna().to_numpy(float)
    interval = clip_interval(t_interval(column), 0.0, None)
    found.scores["entropy"].update(value=float(column.mean()), interval=list(interval))
    found.seal()
    assert find_problems(here) == []
    said = cli("validate", here, found.path, "--verify", "1%", "--sample", "100%")
    assert said.code == 1
    assert "run again, entropy is" in said.out


def test_what_cannot_be_run_again_is_a_note(cli, here):
    found = Forgery(here)
    a_method_is_made_up(found)
    found.seal()
    said = cli("validate", here, "--verify", "100%", "--verbose")
    assert said.code == 0
    assert "note: 1 record drawn for verification, but could not be run again here" in said.out
    assert "the code of gradient_ascent has changed since" in said.out


def test_draws_are_repeated_by_their_seed_and_have_each_task():
    def record(task, seed):
        return Path(f"{task}-{seed}"), SimpleNamespace(task=task, path=lambda root: root / f"{task}-{seed}")

    every = [record("a", seed) for seed in range(30)] + [record("b", seed) for seed in range(3)]
    first = draw_records(every, 0.1, 5)
    assert [pair[1].task for pair in first] == ["a"] * 3 + ["b"]
    assert draw_records(every[::-1], 0.1, 5) == first
    assert any(draw_records(every, 0.1, seed) != first for seed in range(6, 12))


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--verify", "0"), "--verify 0: write a share of the records"),
        (("--verify", "5%", "--sample", "few"), "--sample few: write a share of the images"),
        (("gone/seed-0.json",), "no record gone/seed-0.json below"),
    ],
)
def test_bad_words_are_one_line(cli, here, words, says):
    said = cli("validate", here, *words)
    assert (said.code, len(said.errors)) == (2, 1)
    assert says in said.errors[0]


def test_a_stop_while_a_record_is_run_again(cli, here, monkeypatch):
    from unlearnbench.verification import rerun_share

    def stopped(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(rerun_share, "verify_record", stopped)
    said = cli("validate", here, "--verify", "100%")
    assert said.code == 130
    assert said.errors == ["stopped: nothing was changed"]
