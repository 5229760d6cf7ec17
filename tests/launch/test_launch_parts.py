"""Shards, attacks and records as jobs of their own: the same images and records, and parcels that carry them."""

from __future__ import annotations

import json
import shutil

import pytest

from tests.support import launches
from tests.support.launches import jobs, names
from tests.support.small_world import CHUNKS, comparable, made_record
from unlearnbench.errors import Damaged, UserError
from unlearnbench.launch import plan
from unlearnbench.launch.jobs import Cut, jobs_of
from unlearnbench.launch.plan import still_to_do
from unlearnbench.launch.transfer import files_of, packed, put, unpack
from unlearnbench.launch.worker import work
from unlearnbench.pipeline import checkpoints
from unlearnbench.pipeline.attacks import attacked, parse_attacks
from unlearnbench.pipeline.checkpoints import RunCheckpoints
from unlearnbench.pipeline.runner import run_cell
from unlearnbench.records.folder import load_all
from unlearnbench.records.schema import read_record, write_record
from unlearnbench.storage.store import Store


@pytest.fixture(scope="module")
def before(tmp_path_factory):
    """A store and records of the original and of `uce`: tests of what follows begin with a copy."""
    folder = tmp_path_factory.mktemp("before")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UNLEARNBENCH_CACHE", str(folder / "store"))
        here(jobs("uce"), folder / "here", folder / "store")
    return folder


@pytest.fixture
def world(before, tmp_path):
    """A copy of them, in a folder's `store` and `here`."""
    return shutil.copytree(before, tmp_path / "world")


# ---- shards --------------------------------------------------------------------------------------------------------


def here(found, folder, root):
    """Every job, one after another, in this process."""
    results = [work(job, Store(root), folder, folder / "log") for job in found]
    assert {result.state for result in results} == {"done"}, results
    return results


def drawn(root):
    """Every entry of samples, to the byte."""
    return {path.parent.name: path.read_bytes() for path in root.glob("samples/*/data.safetensors")}


def test_images_of_one_and_of_two_uneven_shards_are_equal_bit_for_bit(tmp_path, small):
    assert CHUNKS % 2, "one shard draws more chunks than the other"
    baseline, asked = launches.specs(
        "gradient_ascent", task="digits-class", protocol="default", forget="3", overrides={"steps": "2"}
    )
    kept = {}
    for shards in (1, 2):
        root, folder = tmp_path / f"store-{shards}", tmp_path / f"here-{shards}"
        *before, last = jobs_of(asked, baseline, Cut(shards=shards))
        here(before, folder, root)
        by_shards = drawn(root)
        here([last], folder, root)
        if shards > 1:
            assert sum(job.step == "sample" for job in before) == 2 * shards
            assert drawn(root) == by_shards, "the record's job draws nothing anew"
        kept[shards] = (drawn(root), comparable(read_record(last.spec.path(folder))))
    assert len(kept[1][0]) == 2 * CHUNKS
    assert kept[1] == kept[2]


def test_a_job_that_is_done_again_goes_on_at_its_step(tmp_path, small, monkeypatch):
    baseline, asked = launches.specs(
        "finetune", task="digits-class", protocol="default", forget="3", overrides={"steps": "4", "batch_size": "4"}
    )
    before = jobs_of(asked, baseline, Cut(shards=2))
    (job,) = [job for job in before if job.step == "unlearn" and job.spec.method == "finetune"]
    real = RunCheckpoints.reached

    def reached(self, state, step):
        real(self, state, step)
        if step == 2:
            raise KeyboardInterrupt  # as where its process is killed: no result comes back

    monkeypatch.setattr(checkpoints, "EVERY", 0.0)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(RunCheckpoints, "reached", reached)
        here([job], tmp_path / "here", tmp_path / "store")
    (result,) = here([job], tmp_path / "here", tmp_path / "store")
    assert result.said == ("finetune goes on after step 2, where it was stopped",)


def test_attacks_as_jobs_of_their_own_give_the_same_record(before, world, tmp_path):
    labels = ("latent_probe@0.9+budget=0", "relearn@1+budget=2")
    here(jobs("uce", attacks=labels), world / "here", world / "store")
    (spec,) = launches.specs("uce")[1]
    found = read_record(spec.path(world / "here"))
    assert set(found.attacks) == set(labels)
    store, there = Store(shutil.copytree(before / "store", tmp_path / "other")), tmp_path / "there"
    whole = attacked(spec.cell(), run_cell(spec.cell(), store, there), parse_attacks(",".join(labels)), store, there)
    for label in labels:
        one, other = (each.attacks[label].model_dump(exclude={"seconds"}) for each in (found, whole))
        assert one == other


def test_budgets_of_attacks_are_those_of_the_command_line(cli, tmp_path, world, monkeypatch):
    monkeypatch.setenv("UNLEARNBENCH_CACHE", str(world / "store"))
    monkeypatch.setattr(plan, "backend", lambda where, *about: launches.Here(*about))
    words = ("run", *launches.SMOKE, "--method", "uce", "--attacks", "relearn@1", "--budget", 0)
    for more in ((), ("--jobs", 1, "--force")):
        said = cli(*words, *more, "--results", "here")
        assert said.code == 0, said.err
        (record,) = (each for each in load_all(tmp_path / "here") if each.label() == "uce")
        assert set(record.attacks) == {"relearn@1+budget=0"}
        assert "relearn@1+budget=0" in said.out
    said = cli(*words, "--jobs", 1, "--results", "here")
    assert (said.code, said.err) == (0, ""), "all of it is done"


def test_an_attack_that_fails_keeps_no_other_out_of_the_record(world, tmp_path, monkeypatch):
    from unlearnbench.pipeline import attacks

    real = attacks._one

    def one(cell, record, want, *about):
        if want.label == "relearn@1":
            raise UserError("no luck with relearn@1")
        return real(cell, record, want, *about)

    monkeypatch.setattr(attacks, "_one", one)
    *before, last = jobs("uce", attacks=("relearn@1", "latent_probe@0.9"))
    ended = [work(job, Store(world / "store"), world / "here", tmp_path / "log") for job in (*before, last)]
    assert [result.state for result in ended] == ["done", "done", "failed", "done", "failed"]
    assert ended[-1].reason == "no luck with relearn@1"
    assert set(read_record(last.spec.path(world / "here")).attacks) == {"latent_probe@0.9"}


def test_a_method_that_the_task_cannot_host_is_skipped_by_shards_too(tmp_path):
    _, asked = launches.specs("advunlearn", task="digits-class", protocol="default", forget="3")
    found = jobs_of(asked, [], Cut(shards=2))
    results = [work(job, Store(tmp_path / "store"), tmp_path / "here", tmp_path / "log") for job in found]
    assert [(result.state, result.status) for result in results] == [("done", None)] * 3 + [("done", "skipped")]


def test_cells_that_are_done_are_no_jobs_any_more(world, tmp_path):
    found = jobs("uce", shards=2)
    here(found, tmp_path / "here", world / "store")
    assert still_to_do(found, tmp_path / "here") == []
    more = still_to_do(jobs("uce", attacks=("relearn@1",)), tmp_path / "here")
    assert names(more) == ["uce", "uce · relearn@1", "uce · attacks into the record"]
    assert more[0].needs == (), "the original's is done"
    forced = still_to_do(jobs("uce", force=True), tmp_path / "here")
    assert names(forced) == ["uce"]


# ---- parcels -------------------------------------------------------------------------------------------------------


def test_entries_travel_and_are_checked_where_they_arrive(tmp_path):
    found = jobs("uce", shards=2)
    store = Store(tmp_path / "one")
    assert work(found[0], store, tmp_path / "here", tmp_path / "log").state == "done"
    parcel = packed(store, ("weights",))
    assert len(parcel) == 2
    assert {name.split("/")[0] for name in parcel} == {"weights"}
    unpack(parcel, tmp_path / "two")
    assert packed(store, ("weights",)) == parcel
    there = {path.relative_to(tmp_path / "two"): path.read_bytes() for path in (tmp_path / "two").glob("*/*/*")}
    there = {path.as_posix(): content for path, content in there.items()}
    assert there == parcel
    broken = {name: content[: -name.endswith("safetensors") or None] for name, content in parcel.items()}
    unpack(broken, tmp_path / "three")
    result = work(found[0], Store(tmp_path / "three"), tmp_path / "here", tmp_path / "log")
    assert "is damaged" in result.reason


def test_only_entries_that_jobs_hand_on_travel(tmp_path):
    with pytest.raises(UserError, match="is no entry that travels"):
        unpack({"tuning/digits-class/esd": b""}, tmp_path / "store")


@pytest.mark.parametrize("name", ["../../etc/x", "/weights/a/b", "weights/../b", "weights/a/b/c", "weights\\a\\b/c/d"])
def test_a_parcel_leaves_its_folder_for_nothing(tmp_path, name):
    with pytest.raises(UserError, match=r"is no place in a folder|cannot be a name"):
        unpack({name: b""}, tmp_path / "store")
    with pytest.raises(UserError, match=r"is no place in a folder|cannot be a name"):
        put({name: b""}, tmp_path / "results")


def test_records_travel_whole_and_damaged_ones_are_refused(tmp_path):
    record = made_record()
    write_record(record, record.path(tmp_path / "one"))
    parcel = files_of(record.path(tmp_path / "one"), tmp_path / "one")
    put(parcel, tmp_path / "two")
    assert read_record(record.path(tmp_path / "two")) == read_record(record.path(tmp_path / "one"))
    ((name, content),) = parcel.items()
    values = json.loads(content)
    before = record.path(tmp_path / "two").read_bytes()
    with pytest.raises(Damaged):
        put({name: json.dumps({**values, "revision": 9}).encode()}, tmp_path / "two")
    with pytest.raises(Damaged, match="is another's"):
        put({name.replace("seed-0", "seed-1"): content}, tmp_path / "two")
    with pytest.raises(UserError, match="is no file of a record"):
        put({name.replace(".json", ".sh"): content}, tmp_path / "two")
    assert record.path(tmp_path / "two").read_bytes() == before
