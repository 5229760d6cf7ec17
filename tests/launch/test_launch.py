"""Cells as data, how they come apart into jobs, and the driver; workers are made up here."""

from __future__ import annotations

import pytest

from tests.support import launches
from tests.support.launches import WHERE, jobs, names
from tests.support.small_world import made_record, write_nudge
from unlearnbench import registry
from unlearnbench.errors import UserError
from unlearnbench.launch import plan
from unlearnbench.launch.driver import TRIES, Backend, drive
from unlearnbench.launch.jobs import Cut, Expected, jobs_of
from unlearnbench.launch.journal import Journal
from unlearnbench.launch.plan import longest_first
from unlearnbench.launch.worker import Result, work
from unlearnbench.pipeline.cell import Cell
from unlearnbench.pipeline.fingerprint import drafted
from unlearnbench.pipeline.scoring import metrics_for
from unlearnbench.pipeline.spec import Spec
from unlearnbench.records.schema import read_record, write_record
from unlearnbench.storage.store import Store


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
def journal(tmp_path):
    return Journal(tmp_path / "journal")


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
    assert read_record(job.spec.path(tmp_path / "here")).method.name == path.stem


@pytest.mark.parametrize("what", ["original", "data"])
def test_a_worker_without_the_tasks_files_is_told_the_command_that_brings_them(what):
    wanted = Expected(original="a", code="b", data="c")
    with pytest.raises(UserError, match=f"other {what} .*`unlearnbench fetch --task sd-nudity`"):
        wanted.require(wanted.model_copy(update={what: "d"}), "there", "sd-nudity")


@pytest.mark.parametrize("what", ["original", "code", "data"])
def test_a_worker_with_something_else_refuses_the_job(tmp_path, what):
    (job,) = jobs("original")
    other = job.model_copy(update={"expected": job.expected.model_copy(update={what: "0" * 64})})
    result = work(other, Store(tmp_path / "store"), tmp_path / "here", tmp_path / "log")
    assert result.state == "failed"
    assert f"has other {what} than the job must start from" in result.reason
    assert "unlearnbench fetch" not in result.reason, "the digits are shipped"
    assert "000000000000 wanted" in result.reason
    assert not (tmp_path / "here").exists()


def test_expected_weights_are_those_of_the_task():
    (job,) = jobs("original")
    assert job.expected == Expected.of(job.spec.cell())
    assert job.expected.original == job.spec.cell().task.model_identity().hash


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


def test_what_no_job_needs_any_more_is_let_go(journal):
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
    drive(jobs("uce", "rece", shards=2, attacks=("relearn@1",)), backend, journal)
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
        write_record(record, record.path(tmp_path))
    found = longest_first(jobs("uce", "esd", "retrain", "rece"), tmp_path)
    assert names(found)[-2:] == ["esd", "uce"]
    assert set(names(found)[:3]) == {"original", "retrain", "rece"}, "what is not known may take long"


# ---- the driver ----------------------------------------------------------------------------------------------------


def test_jobs_are_begun_after_those_that_they_need(journal):
    backend, found = Made(), jobs("uce", "rece", shards=2, attacks=("relearn@1",))
    left = drive(found, backend, journal)
    assert left.failed == []
    assert sorted(backend.begun) == sorted(job.name for job in found)
    place = {name: number for number, name in enumerate(backend.begun)}
    by_id = {job.id: job for job in found}
    for job in found:
        assert all(place[by_id[id].name] < place[job.name] for id in job.needs)
    assert backend.closed
    assert all(journal.ended(job.id).state == "done" for job in found)


def test_a_failed_job_leaves_out_what_needs_it_and_the_rest_goes_on(journal):
    found = jobs("uce", "rece", shards=2)
    bad = found[4]
    assert names([bad]) == ["uce · unlearn"]
    left = drive(found, Made(lambda job, times: "failed" if job.id == bad.id else "done"), journal)
    assert [result.reason for result in left.failed] == ["why"]
    assert names(left.unreached) == ["uce · sample 1/2", "uce · sample 2/2", "uce"]
    assert sum(result.state == "done" for result in left.results.values()) == 8


def test_attacks_that_are_done_come_into_the_record_though_one_failed(journal):
    found = jobs("uce", attacks=("relearn@1", "latent_probe@0.9"))
    backend = Made(lambda job, times: "failed" if job.name.endswith("relearn@1") else "done")
    left = drive(found, backend, journal)
    assert len(left.failed) == 1 and left.unreached == ()
    assert backend.begun[-1].endswith("attacks into the record"), "after both attacks"


def test_a_lost_job_is_begun_again(journal):
    backend = Made(lambda job, times: "lost" if "uce" in job.name and times < TRIES else "done")
    left = drive(jobs("uce"), backend, journal)
    assert left.failed == []
    assert len(backend.begun) == 1 + TRIES


def test_a_job_that_is_lost_each_time_fails_with_the_last_lines_of_its_log(journal):
    found = jobs("uce", "rece")
    journal.log(found[1].id).parent.mkdir(parents=True)
    journal.log(found[1].id).write_text("one\ntwo\n")
    backend = Made(lambda job, times: "lost" if "uce" in job.name else "done")
    left = drive(found, backend, journal)
    (result,) = left.failed
    assert (result.reason, result.tail) == (f"why, {TRIES} times", ("one", "two"))
    assert names([found[1]] * TRIES) == [n for n in (name.split(" · ")[0] for name in backend.begun) if n == "uce"]
    assert left.results[found[2].id].state == "done"


def test_a_stop_lets_go_of_workers(journal):
    backend = Made(lambda job, times: "stop")
    with pytest.raises(KeyboardInterrupt):
        drive(jobs("uce"), backend, journal)
    assert backend.closed


def test_an_end_that_cannot_be_noted_is_told_in_one_line(journal):
    journal.folder.mkdir(parents=True)
    (journal.folder / "ended").touch()  # as a folder it could not be made in either
    backend = Made()
    with pytest.raises(UserError, match=r"cannot write to .*UNLEARNBENCH_CACHE"):
        drive(jobs("uce"), backend, journal)
    assert backend.closed


def test_an_error_that_is_not_the_journals_is_not_told_as_one(tmp_path, fresh_store, monkeypatch):
    class Broken(Made):
        def begin(self, jobs):
            raise FileNotFoundError(2, "no such file", "squeue")

    monkeypatch.setattr(plan, "backend", lambda *about: Broken())
    found = jobs("uce")
    with pytest.raises(FileNotFoundError, match="squeue"):
        plan.launched(found, found, WHERE, Store(), tmp_path / "here", lambda *about: None)


def test_no_more_jobs_than_there_is_room_for(journal):
    class Narrow(Made):
        most_at_once = 0

        def ended(self, seconds):
            Narrow.most_at_once = max(Narrow.most_at_once, len(self.waiting))
            return super().ended(seconds)

    drive(jobs("uce", "rece", "sld", "mace"), Narrow(room=3), journal)
    assert Narrow.most_at_once == 3
