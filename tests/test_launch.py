"""Cells as data, how they come apart into jobs, and the driver; workers are made up here."""

from __future__ import annotations

import json
import time

import pytest
import torch

from tests import launches
from tests.small_world import CHUNKS, comparable, made_record, write_nudge
from unlearnbench import launching, registry
from unlearnbench.attacking import attacked, wanted
from unlearnbench.errors import Damaged, UserError
from unlearnbench.jobs import Cut, Expected, Spec, jobs_of
from unlearnbench.keys import drafted
from unlearnbench.launch import TRIES, Backend, drive
from unlearnbench.launch_local import cards, cores
from unlearnbench.launching import Where, longest_first, parse_time, still_to_do
from unlearnbench.ledger import Ledger, latest, sole_driver
from unlearnbench.parcels import files_of, packed, put, unpack
from unlearnbench.record import load_all, read, write
from unlearnbench.runner import run
from unlearnbench.stages import Cell, metrics_for
from unlearnbench.store import Store
from unlearnbench.work import Result, work

WHERE = Where("local", jobs=2)


class Made(Backend):
    """Makes results up: `ends` says of a job, and of how often it was begun, how it ends."""

    def __init__(self, ends=lambda job, times: "done", room=2):
        self.ends, self.most, self.begun, self.waiting, self.closed = ends, room, [], [], False

    def room(self):
        return self.most - len(self.waiting)

    def begin(self, jobs):
        assert len(jobs) <= self.room()
        self.waiting += jobs
        self.begun += [job.name for job in jobs]

    def ended(self, seconds):
        job = self.waiting.pop(0)
        state = self.ends(job, self.begun.count(job.name))
        if state == "stop":
            raise KeyboardInterrupt
        return [Result(id=job.id, state=state, reason=None if state == "done" else "why", where="there")]

    def close(self):
        self.closed = True
        return None


@pytest.fixture
def ledger(tmp_path):
    return Ledger(tmp_path / "ledger")


def jobs(*methods, **cut):
    baseline, asked = launches.specs(*methods)
    return jobs_of(asked, baseline, Cut(**cut))


def names(found):
    return [job.name.replace(" · forget seven · seed 0", "") for job in found]


# ---- cells as data -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["uce", "erasediff", "selective_amnesia", "sld"])
def test_a_cell_made_of_its_data_has_the_same_key(name):
    _, (spec,) = launches.specs(name)
    again = Spec.model_validate_json(spec.model_dump_json())
    assert again == spec
    cls = registry.load_method(name)
    task = registry.load_task("digits-text")("seven", protocol="smoke")
    plain = Cell(cls.configured(cls.preset("default", "digits-text")), task)
    assert drafted(again.cell(), metrics_for(task)).key == drafted(plain, metrics_for(task)).key


def test_overrides_and_own_methods_keep_their_label_and_place(tmp_path):
    path = write_nudge(tmp_path)
    _, (spec,) = launches.specs(str(path), overrides={"size": "0.02"})
    record = drafted(spec.cell(), metrics_for(spec.cell().task))
    assert spec.label == record.label() == f"{path.stem}+size=0.02"
    assert spec.path(tmp_path) == record.path(tmp_path)
    assert spec.source == path.read_text()


def test_a_worker_without_the_methods_file_takes_it_from_the_job(tmp_path, fresh_store):
    path = write_nudge(tmp_path)
    _, asked = launches.specs(str(path))
    (job,) = jobs_of(asked, [], Cut())
    path.unlink()
    result = work(job, Store(), tmp_path / "here", tmp_path / "log")
    assert (result.state, result.status) == ("done", "ok"), result
    assert read(job.spec.path(tmp_path / "here")).method.name == path.stem


@pytest.mark.parametrize("what", ["original", "code", "data"])
def test_a_worker_with_something_else_refuses_the_job(tmp_path, what):
    (job,) = jobs("original")
    other = job.model_copy(update={"expected": job.expected.model_copy(update={what: "0" * 64})})
    result = work(other, Store(tmp_path / "store"), tmp_path / "here", tmp_path / "log")
    assert result.state == "failed"
    assert f"has other {what} than the job must start from" in result.reason
    assert "000000000000 wanted" in result.reason
    assert not (tmp_path / "here").exists()


def test_expected_weights_are_those_of_the_task():
    (job,) = jobs("original")
    assert job.expected == Expected.of(job.spec.cell())
    assert job.expected.original == job.spec.cell().task.pretrained_identity()[0]


# ---- jobs ----------------------------------------------------------------------------------------------------------


def test_a_cell_is_one_job_after_the_originals():
    first, second = jobs("uce")
    assert names([first, second]) == ["original", "uce"]
    assert second.needs == (first.id,)


def test_shards_and_attacks_are_jobs_and_each_waits_for_what_it_needs():
    found = jobs("uce", shards=2, attacks=("relearn@1", "latent_probe@0.9"))
    assert names(found) == [
        *("original · unlearn", "original · sample 1/2", "original · sample 2/2", "original"),
        *("uce · unlearn", "uce · sample 1/2", "uce · sample 2/2", "uce"),
        *("uce · relearn@1", "uce · latent_probe@0.9", "uce · attacks into the record"),
    ]
    ids = [job.id for job in found]
    assert len(set(ids)) == len(ids)
    for place, job in enumerate(found):
        assert set(job.needs) <= set(ids[:place])
    last = found[-1]
    assert names(found[ids.index(id)] for id in last.needs) == ["uce"]
    assert names(found[ids.index(id)] for id in last.after) == ["uce · relearn@1", "uce · latent_probe@0.9"]
    assert [job.needed for job in found] == [True] * 10 + [False]


def test_forced_and_watched_cells_stay_whole():
    for cut in ({"force": True}, {"every": 2}):
        found = jobs("uce", attacks=("relearn@1",), **cut)
        assert names(found) == ["original", "uce"]
        assert found[1].attacks == ("relearn@1",)


def test_the_original_asked_for_with_attacks_is_made_once():
    found = jobs("original", attacks=("relearn@1",))
    assert names(found) == ["original", "original · relearn@1", "original · attacks into the record"]
    assert [len(job.needs) for job in found] == [0, 1, 1]
    assert names(jobs("original", force=True)) == ["original", "original"]


def test_what_no_job_needs_any_more_is_let_go(ledger):
    class Keeping(Made):
        kept: set[str] = set()

        def begin(self, jobs):
            super().begin(jobs)
            for job in jobs:
                assert set(job.needs) <= self.kept
                self.kept.add(job.id)

        def release(self, id):
            self.kept.discard(id)

    backend = Keeping()
    drive(jobs("uce", "rece", shards=2, attacks=("relearn@1",)), backend, ledger)
    assert backend.kept == set()


def test_ids_say_what_a_job_is():
    one, other = jobs("uce")[1], jobs("uce", attacks=("relearn@1",))[1]
    assert one.id == jobs("uce")[1].id
    assert one.id == other.id, "the record is the same with attacks and without"
    assert one.id != jobs("rece")[1].id
    assert one.id != jobs("uce", threads=2)[1].id


def test_long_jobs_come_first_and_training_anew_before_all(tmp_path):
    for method, seconds in (("uce", 2.0), ("esd", 90.0)):
        record = made_record(method, scores={"unlearn_time": seconds}, task="digits-text", forget="red")
        write(record, record.path(tmp_path))
    found = longest_first(jobs("uce", "esd", "retrain", "rece"), tmp_path)
    assert names(found)[-2:] == ["esd", "uce"]
    assert set(names(found)[:3]) == {"original", "retrain", "rece"}, "what is not known may take long"


# ---- the driver ----------------------------------------------------------------------------------------------------


def test_jobs_are_begun_after_those_that_they_need(ledger):
    backend, found = Made(), jobs("uce", "rece", shards=2, attacks=("relearn@1",))
    left = drive(found, backend, ledger)
    assert left.failed == []
    assert sorted(backend.begun) == sorted(job.name for job in found)
    place = {name: number for number, name in enumerate(backend.begun)}
    by_id = {job.id: job for job in found}
    for job in found:
        assert all(place[by_id[id].name] < place[job.name] for id in job.needs)
    assert backend.closed
    assert all(ledger.ended(job.id).state == "done" for job in found)


def test_a_failed_job_leaves_out_what_needs_it_and_the_rest_goes_on(ledger):
    found = jobs("uce", "rece", shards=2)
    bad = found[4]
    assert names([bad]) == ["uce · unlearn"]
    left = drive(found, Made(lambda job, times: "failed" if job.id == bad.id else "done"), ledger)
    assert [result.reason for result in left.failed] == ["why"]
    assert names(left.unreached) == ["uce · sample 1/2", "uce · sample 2/2", "uce"]
    assert sum(result.state == "done" for result in left.results.values()) == 8


def test_attacks_that_are_done_come_into_the_record_though_one_failed(ledger):
    found = jobs("uce", attacks=("relearn@1", "latent_probe@0.9"))
    backend = Made(lambda job, times: "failed" if job.name.endswith("relearn@1") else "done")
    left = drive(found, backend, ledger)
    assert len(left.failed) == 1 and left.unreached == ()
    assert backend.begun[-1].endswith("attacks into the record"), "after both attacks"


def test_a_lost_job_is_begun_again(ledger):
    backend = Made(lambda job, times: "lost" if "uce" in job.name and times < TRIES else "done")
    left = drive(jobs("uce"), backend, ledger)
    assert left.failed == []
    assert len(backend.begun) == 1 + TRIES


def test_a_job_that_is_lost_each_time_fails_with_the_last_lines_of_its_log(ledger):
    found = jobs("uce", "rece")
    ledger.log(found[1].id).parent.mkdir(parents=True)
    ledger.log(found[1].id).write_text("one\ntwo\n")
    backend = Made(lambda job, times: "lost" if "uce" in job.name else "done")
    left = drive(found, backend, ledger)
    (result,) = left.failed
    assert (result.reason, result.tail) == (f"why, {TRIES} times", ("one", "two"))
    assert names([found[1]] * TRIES) == [n for n in (name.split(" · ")[0] for name in backend.begun) if n == "uce"]
    assert left.results[found[2].id].state == "done"


def test_a_stop_lets_go_of_workers(ledger):
    backend = Made(lambda job, times: "stop")
    with pytest.raises(KeyboardInterrupt):
        drive(jobs("uce"), backend, ledger)
    assert backend.closed


def test_an_end_that_cannot_be_noted_is_told_in_one_line(ledger):
    ledger.folder.mkdir(parents=True)
    (ledger.folder / "ended").touch()  # as a folder it could not be made in either
    backend = Made()
    with pytest.raises(UserError, match=r"cannot write to .*UNLEARNBENCH_CACHE"):
        drive(jobs("uce"), backend, ledger)
    assert backend.closed


def test_an_error_that_is_not_the_ledgers_is_not_told_as_one(tmp_path, fresh_store, monkeypatch):
    class Broken(Made):
        def begin(self, jobs):
            raise FileNotFoundError(2, "no such file", "squeue")

    monkeypatch.setattr(launching, "backend", lambda *about: Broken())
    found = jobs("uce")
    with pytest.raises(FileNotFoundError, match="squeue"):
        launching.launched(found, found, WHERE, Store(), tmp_path / "here", lambda *about: None)


def test_no_more_jobs_than_there_is_room_for(ledger):
    class Narrow(Made):
        most_at_once = 0

        def ended(self, seconds):
            Narrow.most_at_once = max(Narrow.most_at_once, len(self.waiting))
            return super().ended(seconds)

    drive(jobs("uce", "rece", "sld", "mace"), Narrow(room=3), ledger)
    assert Narrow.most_at_once == 3


# ---- shards --------------------------------------------------------------------------------------------------------


def here(found, folder, root):
    """Every job, one after another, in this process."""
    results = [work(job, Store(root), folder, folder / "log") for job in found]
    assert {result.state for result in results} == {"done"}, results
    return results


def drawn(root):
    """Every entry of samples, to the byte."""
    return {path.parent.name: path.read_bytes() for path in root.glob("samples/*/data.safetensors")}


def test_images_of_one_two_and_three_shards_are_equal_bit_for_bit(tmp_path, small):
    baseline, asked = launches.specs(
        "gradient_ascent", task="digits-class", protocol="default", forget="3", overrides={"steps": "2"}
    )
    kept = {}
    for shards in (1, 2, 3):
        root, folder = tmp_path / f"store-{shards}", tmp_path / f"here-{shards}"
        *before, last = jobs_of(asked, baseline, Cut(shards=shards))
        here(before, folder, root)
        by_shards = drawn(root)
        here([last], folder, root)
        if shards > 1:
            assert sum(job.step == "sample" for job in before) == 2 * shards
            assert drawn(root) == by_shards, "the record's job draws nothing anew"
        kept[shards] = (drawn(root), comparable(read(last.spec.path(folder))))
    assert len(kept[1][0]) == 2 * CHUNKS
    assert kept[1] == kept[2] == kept[3]


def test_attacks_as_jobs_of_their_own_give_the_same_record(tmp_path):
    labels = ("latent_probe@0.9", "relearn@1")
    root = tmp_path / "store"
    here(jobs("uce", attacks=labels), tmp_path / "here", root)
    (spec,) = launches.specs("uce")[1]
    found = read(spec.path(tmp_path / "here"))
    assert set(found.attacks) == set(labels)
    store, there = Store(tmp_path / "other"), tmp_path / "there"
    whole = attacked(spec.cell(), run(spec.cell(), store, there), wanted(",".join(labels)), store, there)
    for label in labels:
        one, other = (each.attacks[label].model_dump(exclude={"seconds"}) for each in (found, whole))
        assert one == other


def test_budgets_of_attacks_are_those_of_the_command_line(cli, tmp_path, fresh_store, monkeypatch):
    monkeypatch.setattr(launching, "backend", lambda where, *about: launches.Here(*about))
    words = ("run", *launches.SMOKE, "--method", "uce", "--attacks", "latent_probe@0.9,relearn@1", "--budget", 0)
    for more in ((), ("--jobs", 1, "--force")):
        said = cli(*words, *more, "--out", "here")
        assert said.code == 0, said.err
        (record,) = (each for each in load_all(tmp_path / "here") if each.label() == "uce")
        assert set(record.attacks) == {"latent_probe@0.9+budget=0", "relearn@1+budget=0"}
        assert "relearn@1+budget=0" in said.out
    said = cli(*words, "--jobs", 1, "--out", "here")
    assert (said.code, said.err) == (0, ""), "all of it is done"


def test_an_attack_that_fails_keeps_no_other_out_of_the_record(tmp_path, monkeypatch):
    from unlearnbench import attacking

    real = attacking._one

    def one(cell, record, want, *about):
        if want.label == "relearn@1":
            raise UserError("no luck with relearn@1")
        return real(cell, record, want, *about)

    monkeypatch.setattr(attacking, "_one", one)
    *before, last = jobs("uce", attacks=("relearn@1", "latent_probe@0.9"))
    ended = [work(job, Store(tmp_path / "store"), tmp_path / "here", tmp_path / "log") for job in (*before, last)]
    assert [result.state for result in ended] == ["done", "done", "failed", "done", "failed"]
    assert ended[-1].reason == "no luck with relearn@1"
    assert set(read(last.spec.path(tmp_path / "here")).attacks) == {"latent_probe@0.9"}


def test_a_method_that_the_task_cannot_host_is_skipped_by_shards_too(tmp_path):
    _, asked = launches.specs("advunlearn", task="digits-class", protocol="default", forget="3")
    found = jobs_of(asked, [], Cut(shards=2))
    results = [work(job, Store(tmp_path / "store"), tmp_path / "here", tmp_path / "log") for job in found]
    assert [(result.state, result.status) for result in results] == [("done", None)] * 3 + [("done", "skipped")]


def test_cells_that_are_done_are_no_jobs_any_more(tmp_path):
    found = jobs("uce", shards=2)
    here(found, tmp_path / "here", tmp_path / "store")
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
    with pytest.raises(UserError, match="is no place in a folder of ours"):
        unpack({name: b""}, tmp_path / "store")
    with pytest.raises(UserError, match="is no place in a folder of ours"):
        put({name: b""}, tmp_path / "results")


def test_records_travel_whole_and_damaged_ones_are_refused(tmp_path):
    record = made_record()
    write(record, record.path(tmp_path / "one"))
    parcel = files_of(record.path(tmp_path / "one"), tmp_path / "one")
    put(parcel, tmp_path / "two")
    assert read(record.path(tmp_path / "two")) == read(record.path(tmp_path / "one"))
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


# ---- the ledger and `status` ---------------------------------------------------------------------------------------


@pytest.fixture
def launch(tmp_path, fresh_store):
    """A ledger of four jobs."""
    found = jobs("uce", "rece", "mace")
    return found, Ledger.begun(Store(), tmp_path / "here", "local", found, found)


def test_status_tells_done_running_failed_and_missing(cli, tmp_path, launch):
    found, ledger = launch
    record = found[0].spec.path(tmp_path / "here")
    record.parent.mkdir(parents=True)
    record.touch()
    ledger.end(Result(id=found[0].id, state="done"))
    ledger.end(Result(id=found[1].id, state="failed", reason="no luck", where="node:1"))
    ledger.report(found[2].id, {"what": "steps", "done": 3, "total": 60, "where": "node:2", "at": time.time()})
    assert [state for _, state, _ in ledger.states()] == ["done", "failed", "running", "missing"]
    ledger.report(found[3].id, {"slurm": "7_3", "at": 0})
    assert ledger.numbers() == ["7_3"]
    assert ledger.states()[3][1] == "missing"
    assert ledger.states({"7_3"})[3][1] == "running", "the scheduler has it"
    said = cli("status", "--out", "here")
    assert said.code == 1
    assert "1 done, 1 running, 1 failed, 1 missing: 4 jobs by local" in said.out
    assert "no luck" in said.out
    assert "steps 3/60" in said.out
    ledger.report(found[2].id, {"at": time.time() - 1000})
    assert ledger.states()[2][1] == "missing", "it has said nothing for long"
    record.unlink()
    assert ledger.states()[0][1] == "missing"


def test_status_needs_a_launch(cli, fresh_store):
    said = cli("status", "--out", "here")
    assert said.code == 2
    assert said.err.startswith("unlearnbench: nothing was launched to here")


def test_the_latest_launch_on_a_folder_is_shown(tmp_path, launch):
    found, first = launch
    assert latest(Store(), tmp_path / "here").folder == first.folder
    second = Ledger.begun(Store(), tmp_path / "here", "ray", found[:2], found[:2])
    assert latest(Store(), tmp_path / "here").folder == second.folder
    assert latest(Store(), tmp_path / "elsewhere") is None


def test_the_same_jobs_again_have_the_same_ledger_and_what_failed_is_forgotten(tmp_path, launch):
    found, ledger = launch
    ledger.end(Result(id=found[1].id, state="failed", reason="no luck"))
    again = Ledger.begun(Store(), tmp_path / "here", "local", found, found[1:])
    assert again.folder == ledger.folder
    assert again.ended(found[1].id) is None
    assert again.ended(found[0].id).where == "before"


def test_a_second_driver_is_refused(cli, tmp_path, fresh_store):
    (tmp_path / "here").mkdir()
    with sole_driver(tmp_path / "here"):
        said = cli("run", *launches.SMOKE, "--method", "uce", "--jobs", 1, "--out", "here")
    assert said.code == 2
    assert "another driver (" in said.err
    assert "is at work on here: wait for it, stop it, or name another folder with --out" in said.err
    with sole_driver(tmp_path / "here"):
        pass  # the first one let go


# ---- bad input -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--launcher", "rey"), "unknown launcher 'rey': did you mean ray?"),
        (("--jobs", 0), "--jobs 0 is below 1"),
        (("--threads", 0), "--threads 0 is below 1"),
        (("--shards", 0), "--shards 0 is below 1"),
        (("--shards", 2), "--shards 2 takes jobs: add --jobs 2"),
        (("--gpus", 1), "--gpus is for --launcher ray or slurm"),
        (("--jobs", 2, "--gpus", 2), "a job here takes one GPU at most"),
        (("--jobs", 2, "--partition", "long"), "--partition is for Slurm: add --launcher slurm"),
        (("--jobs", 2, "--time", "10"), "--time is for Slurm"),
        (("--jobs", 2, "--slurm", "mem=1G"), "--slurm is for Slurm"),
        (("--jobs", 2, "--slurm", "mem"), "--slurm mem: write key=value"),
        (("--jobs", 2, "--shards", 2, "--force"), "--force keeps a cell whole"),
        (("--jobs", 2, "--shards", 2, "--eval-every", 5), "--eval-every keeps a cell whole"),
        (("--jobs", 2, "--tracker", "tensorboard"), "--tracker shows what this process does"),
        (("--jobs", 1, "--gpus", 1, "--device", "cpu"), "--gpus 1 with --device cpu: leave one of them out"),
    ],
)  # fmt: skip
def test_what_cannot_be_launched_is_refused_in_one_line(cli, fresh_store, words, said):
    pytest.importorskip("tensorboard", reason="the extra [tracking] is not installed") if "--tracker" in words else None
    got = cli("run", *launches.SMOKE, "--method", "uce", *words)
    assert got.code == 2
    assert said in got.err
    assert len(got.err.strip().splitlines()) == 1


@pytest.mark.parametrize(("launcher", "package"), [("ray", "ray"), ("slurm", "submitit")])
def test_a_launcher_that_is_not_installed_names_its_extra(cli, fresh_store, monkeypatch, launcher, package):
    real = launching.find_spec
    monkeypatch.setattr(launching, "find_spec", lambda name: None if name == package else real(name))
    got = cli("run", *launches.SMOKE, "--method", "uce", "--launcher", launcher)
    assert got.code == 2
    assert f"--launcher {launcher} needs {package}: pip install 'unlearnbench[{launcher}]'" in got.err


def test_fewer_gpus_than_asked(cli, fresh_store, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert cards(1) == ["0"]
    with pytest.raises(UserError, match="--jobs 2 on cuda takes a GPU each, and 1 are here: give --jobs 1"):
        cards(2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    assert cards(2) == ["4", "6"]
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(UserError, match="torch sees no CUDA device here"):
        cards(1)


@pytest.mark.parametrize(
    ("text", "minutes"), [("90", 90), ("1:30", 90), ("2-12:00", 3600), ("1-0", 1440)]
)  # fmt: skip
def test_time_limits_are_read_as_slurm_reads_them(text, minutes):
    assert parse_time(text) == minutes


@pytest.mark.parametrize("text", ["", "soon", "1:2:3", "-5", "0", "1-", "²"])
def test_what_is_no_time_limit_is_refused(text):
    with pytest.raises(UserError, match="--time"):
        parse_time(text)


def test_threads_are_shared_out():
    def checked(jobs, threads=None):
        return Where.checked("local", jobs, threads, None, "cpu", None, None, {}).threads

    assert checked(1) == cores()
    assert checked(cores()) == 1
    assert checked(10 * cores()) == 1
    assert checked(1, 3) == 3
    assert Where.checked(None, None, 2, None, "cpu", None, None, {}) is None
