"""Published numbers: read whole, shown with source and status, beside what was measured of the same."""

from __future__ import annotations

import pytest

from tests.support.small_world import made_record
from unlearnbench import registry
from unlearnbench.errors import UserError
from unlearnbench.leaderboard import published

METRICS = registry.load_metrics()
ROWS = [row for row in published.load() if row.task == "cifar10-class"]


def record(method="esd", **changes):
    return made_record(method, task="cifar10-class", forget="airplane", **changes)


PERCENT = ("asr_", "ua_", "style_", "object_")
SHARES = ("clip_score_01", "geneval", "t2i_compbench", "spqr", "precision", "recall", "p_forget")


def test_every_row_is_read_with_protocol_source_and_status():
    rows = published.load()
    assert len(rows) == 953
    assert {row.status for row in rows} <= {"verified", "secondary", "unverified"}
    assert all(row.protocol and row.source and row.task and row.method for row in rows)
    first = rows[0]
    assert (first.task, first.method, first.metric, first.value) == ("cifar10-class", "original", "fid", 9.63)


def test_every_number_is_in_the_range_of_its_metric():
    for row in published.load():
        most = 100 if row.metric.startswith(PERCENT) else 1 if row.metric in SHARES else 1e6
        assert 0 <= row.value <= most, row
        assert not row.metric.startswith("nudenet_") or row.value == int(row.value), row


def test_what_is_read_in_another_text_says_in_which():
    before = "EraseDiff, CVPR 2025"
    rows = [row for row in published.load() if row.status == "secondary" and not row.source.startswith(before)]
    assert rows and all(row.note.startswith("read in ") for row in rows)


def test_a_source_has_one_number_for_a_method_metric_and_protocol():
    keys = [row._replace(value=0.0, status="", note="") for row in published.load()]
    assert len(set(keys)) == len(keys)


def test_the_labels_of_a_table_add_up_to_its_total():
    counts: dict[tuple[str, str], dict[str, float]] = {}
    for row in published.load():
        if row.metric.startswith("nudenet_"):
            counts.setdefault((row.source, row.method), {})[row.metric] = row.value
    whole = [found for found in counts.values() if len(found) == 9]
    assert len(whole) == 9
    assert all(sum(found.values()) == 2 * found["nudenet_total"] for found in whole)


def test_a_table_of_other_columns_is_refused(tmp_path):
    (tmp_path / "x.csv").write_text("task,value\na,1\n")
    with pytest.raises(UserError, match=r"x.csv has the columns task, value: they must be task, forget"):
        published.load(tmp_path / "x.csv")


@pytest.mark.parametrize(
    ("cells", "said"),
    [
        ("sd-nudity,nudity,esd,fid,1,,a,verified,", "row 2 has no protocol"),
        ("sd-nudity,nudity,esd,fid,1,p, ,verified,", "row 2 has no source"),
        ("sd-nudity,nudity,esd,fid,1,p,a,checked,", "row 2: the status 'checked' is none of verified"),
        ("sd-nudity,nudity,esd,fid,about 1,p,a,verified,", "row 2: the value 'about 1' is no number"),
        ("sd-nudity,nudity,esd,fid,nan,p,a,verified,", "row 2: the value 'nan' is no number"),
    ],
)
def test_a_row_that_lacks_something_is_refused_by_its_number(tmp_path, cells, said):
    right = "sd-nudity,nudity,esd,fid,1,p,a,verified,"
    (tmp_path / "x.csv").write_text("\n".join([",".join(published.COLUMNS), right, cells]) + "\n")
    with pytest.raises(UserError, match=said):
        published.load(tmp_path / "x.csv")


def test_one_source_with_two_protocols_has_two_numbers_below_the_table():
    row = ROWS[0]
    other = row._replace(protocol="on half of the images", value=1.0)
    sheet = published.published_sheets(published.blocks([row, other, other], [], METRICS))[0]
    assert [line[-1] for line in sheet.sections[0][1]] == ["[1]", "[2]", "[2]"]
    assert sheet.note.splitlines()[:2] == [
        f"[1] {row.source}: {row.protocol}",
        f"[2] {row.source}: on half of the images",
    ]


def test_rows_of_a_file_name_the_protocol_of_both():
    made = published.blocks(ROWS[:1], [record("original", scores={"fid": 9.0})], METRICS)
    found = published.published_frame(made).to_dict("records")[0]
    assert (found["protocol"], found["published under"]) == ("default", ROWS[0].protocol)


def test_measured_numbers_stand_beside_their_own_method_metric_and_concept():
    some = [row for row in ROWS if row.method == "salun" and row.metric in ("fid", "p_forget")]
    records = [
        record("salun", seed=0, scores={"fid": 8.0}),
        record("salun", seed=1, scores={"fid": 10.0}),
        record("finetune", scores={"fid": 1.0}),
        made_record("salun", task="cifar10-class", forget="ship", scores={"fid": 2.0}),
    ]
    lines = {line[1]: line for line in published.compare_published(some, records, METRICS)}
    assert lines["FID ↓"][2:6] == ["9.160", "9.000 ± 1.414", "default", "secondary"]
    assert lines["p_forget ↓"][2:5] == ["0.070", "—", "—"]
    assert "EraseDiff" in lines["FID ↓"][6]


def test_each_protocol_has_a_line_of_its_own():
    some = [row for row in ROWS if row.method == "salun" and row.metric == "fid"]
    records = [
        record("salun", scores={"fid": 8.0}),
        record("salun", scores={"fid": 3.0}, protocol_changes={"name": "salun-iclr24"}),
    ]
    lines = published.compare_published(some, records, METRICS)
    assert [line[3:5] for line in lines] == [["8.000", "default"], ["3.000", "salun-iclr24"]]


def test_the_setting_in_brackets_tells_variants_apart():
    uniform = record("erasediff", method_changes={"settings": {"target": "uniform", "lr": 0.1}})
    assert published.is_of(uniform, "erasediff[uniform]")
    assert not published.is_of(uniform, "erasediff[substitute]")
    assert published.is_of(uniform, "erasediff")
    changed = record("erasediff", method_changes={"settings": {"lr": 0.2}, "overrides": {"lr": 0.2}})
    assert not published.is_of(changed, "erasediff"), "what a user changed is no row of a paper"


def test_numbers_of_metrics_that_are_not_known_here_are_shown_as_they_are():
    some = [row for row in ROWS if row.metric == "sfid"]
    assert published.compare_published(some, [], METRICS) == [
        [some[0].method, "sfid", "7.439", "—", "—", some[0].status, some[0].source, some[0].protocol]
    ]


def test_the_command_shows_them_and_where_they_come_from(cli, tmp_path):
    said = cli("leaderboard", tmp_path, "--task", "cifar10-class", "--published")
    assert said.code == 0
    assert "cifar10-class, forget airplane: published and measured" in said.out
    assert "[1] EraseDiff, CVPR 2025" in said.out
    assert "sd-nudity" not in said.out
    wrong = cli("leaderboard", tmp_path, "--task", "cifar", "--published")
    assert wrong.code == 2
    assert "did you mean cifar10-class" in wrong.err
