"""The picture of runs as they went: what is drawn where, and the command that draws it."""

from __future__ import annotations

import pytest

from tests.pipeline.test_trajectory import followed_record, trajectory_of
from tests.support.small_world import made_record
from unlearnbench import plots
from unlearnbench.records.schema import write_record


def drawn(figure, name):
    """Lines of one panel as lists of (x, y), those of the reported step apart."""
    (axes,) = [each for each in figure.axes if each.get_label() == name]
    lines = [list(zip(line.get_xdata(), line.get_ydata(), strict=True)) for line in axes.lines]
    return axes, [line for line in lines if len(line) > 1], [line for line in lines if len(line) == 1]


def test_scores_are_drawn_in_per_cent_by_step_and_by_second():
    figure = plots.trajectory("t", {"esd": [followed_record()]})
    assert [axes.get_label() for axes in figure.axes] == [
        "ua by step", "ua by seconds of unlearning", "ra by step", "ra by seconds of unlearning", "loss by step",
    ]  # fmt: skip
    _, lines, ends = drawn(figure, "ua by step")
    assert lines == [[(0, 0), (5, 50), (10, 100)]] and ends == [[(10, 100)]]
    _, lines, ends = drawn(figure, "ra by seconds of unlearning")
    assert lines == [[(0, 100), (2.5, 75), (5, 50)]] and ends == [[(5, 50)]]
    assert drawn(figure, "loss by step")[1] == [[(1, 1), (2, 2)]]


@pytest.mark.parametrize(
    ("values", "scale"),
    [((0.01, 1.0), "log"), ((0.1, 1.0), "linear"), ((0.0, 100.0), "linear"), ((-1.0, 9.0), "linear")],
)
def test_a_series_over_decades_that_is_positive_is_logarithmic(values, scale):
    figure = plots.trajectory("t", {"esd": [followed_record(watched={"a": values})]})
    assert drawn(figure, "a by step")[0].get_yscale() == scale


def test_methods_share_panels_and_keep_their_colours():
    groups = {name: [followed_record(name)] for name in ("esd", "salun")}
    groups["salun"][0] = followed_record("salun", watched={"other": (1.0, 3.0)})
    every = plots.trajectory("t", groups)
    assert len(drawn(every, "ua by step")[1]) == 2 and len(drawn(every, "loss by step")[1]) == 1
    one = plots.trajectory("t", {"salun": groups["salun"]}, groups)
    colours = [drawn(figure, "other by step")[0].lines[0].get_color() for figure in (every, one)]
    assert colours[0] == colours[1] != drawn(every, "loss by step")[0].lines[0].get_color()


def test_what_is_not_known_leaves_a_gap():
    figure = plots.trajectory("t", {"esd": [followed_record(watched={"a": (None, 4.0)})]})
    ((first, second),) = drawn(figure, "a by step")[1]
    assert first[1] != first[1] and second == (2, 4)
    bare = followed_record(points=(), every=None, watched={"a": (1.0, 2.0)})
    assert [axes.get_label() for axes in plots.trajectory("t", {"esd": [bare]}).axes] == ["a by step"]


def test_a_closed_form_is_a_point():
    record = followed_record(steps=(0,)).model_copy()
    figure = plots.trajectory("t", {"esd": [record]})
    assert drawn(figure, "ua by step")[1:] == ([], [[(0, 0)], [(0, 0)]])


def test_series_beyond_those_that_fit_are_named():
    figure = plots.trajectory("t", {"esd": [followed_record(watched={f"n{k}": (1.0, 2.0) for k in range(18)})]})
    assert len(figure.axes) == 4 + 16
    assert "not drawn: n16, n17" in [text.get_text() for text in figure.texts]


def test_no_trajectory_is_no_figure():
    assert plots.trajectory("t", {"esd": [made_record()]}) is None


@pytest.fixture
def kept(tmp_path):
    """Two records with trajectories, and one without."""
    records = [followed_record("esd"), followed_record("salun"), made_record("original", 0, {"ua": 0.1})]
    for record in records:
        write_record(record, record.path(tmp_path / "results"))
    return tmp_path / "results", [record.path(tmp_path / "results") for record in records]


def test_records_and_folders_become_a_file(cli, kept, tmp_path):
    folder, (esd, salun, _) = kept
    both = ["esd", "salun"]
    for words, names in (((esd,), ["esd"]), ((esd.parent,), ["esd"]), ((esd, salun), both), ((folder,), both)):
        said = cli("plot", "trajectory", *words, "--out", tmp_path / "f.svg")
        assert said.code == 0 and "digits-class, default, forget 3" in said.out
        text = (tmp_path / "f.svg").read_text()
        assert [name for name in ("esd", "salun", "original") if f">{name}<" in text] == names
    said = cli("plot", "trajectory", folder, "--methods", "salun", "--out", tmp_path / "f.svg")
    assert said.code == 0 and ">esd<" not in (tmp_path / "f.svg").read_text()


def test_what_cannot_be_drawn_is_one_line(cli, kept, tmp_path):
    folder, (esd, _, original) = kept
    other = made_record("esd", 0, {"ua": 0.9}, forget="8", trajectory=trajectory_of())
    write_record(other, other.path(tmp_path / "other"))
    cases = {
        (original,): f"no record at {original} has a trajectory: run its command with --eval-every 10",
        (folder / "none",): f"no record at {folder / 'none'}: give a seed-*.json, or a folder of records",
        (esd, tmp_path / "other"): "these records make 2 tables: choose one with --forget 3 or --forget 8",
    }
    for words, line in cases.items():
        said = cli("plot", "trajectory", *words)
        assert (said.code, said.errors) == (2, [f"unlearnbench: {line}"])
    said = cli("plot", "cost", folder, esd)
    assert said.errors == [f"unlearnbench: cost takes one folder of records: leave out {esd}"]
