"""Figures, read back from what was drawn."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest

from tests.leaderboard.test_robustness import attack
from tests.leaderboard.test_robustness import record as attacked
from tests.support.small_world import made_record
from unlearnbench import plots
from unlearnbench.errors import UserError
from unlearnbench.leaderboard.board import board
from unlearnbench.leaderboard.rows import Board, BoardRow, Stat
from unlearnbench.plots import attack_curves
from unlearnbench.plots.pareto import area_of, front
from unlearnbench.plots.style import PALETTE, control_of, styles

ODD = "a$b_c<script>alert('1')</script>&\"$"


PARTS = ("sd", "low", "high")


def table(values, task="digits-class", **more):
    """A board from {label: (ua, ra)}; `more` are lists of a metric's values, or of a part of it such as `ra_low`."""
    rows = []
    for i, (label, (ua, ra)) in enumerate(values.items()):
        stats = {"ua": Stat(ua), "ra": Stat(ra)}
        for name, column in more.items():
            metric, _, part = name.rpartition("_")
            metric, part = (metric, part) if part in PARTS else (name, "value")
            stats[metric] = stats.get(metric, Stat())._replace(**{part: column[i]})
        rows.append(BoardRow(i, task, "default", "a" * 64, "3", "concept", label, label, "default", stats=stats))
    return Board(rows)


SIMPLE = {"original": (0.0, 1.0), "a": (0.9, 0.5), "b": (0.5, 0.9), "c": (0.4, 0.4)}


def main(figure):
    return next(axes for axes in figure.axes if axes.get_label() == "main")


def drawn(figure, gid):
    return [each for each in figure.findobj() if each.get_gid() == gid]


def texts(figure):
    return [text.get_text() for text in figure.findobj(lambda each: hasattr(each, "get_text")) if text.get_visible()]


def points(figure):
    """Row -> where its point lies."""
    found = {}
    for each in figure.findobj():
        if (each.get_gid() or "").startswith("row-"):
            found[each.get_gid()] = tuple(each.get_offsets()[0])
    return found


# ---- pareto --------------------------------------------------------------------------------------------------------


def test_the_front_is_what_no_other_beats():
    x, y = [1.0, 2.0, 3.0, 2.0, 0.5], [3.0, 2.0, 1.0, 1.5, 3.0]
    assert front(x, y) == [0, 1, 2]
    assert front(x, y, ("lower", "higher")) == [4]
    assert front([1.0, 1.0], [1.0, 1.0]) == [0, 1], "equal points do not beat each other"


def test_points_lie_at_their_values_in_the_unit_shown_and_carry_the_rows_index():
    every = table(SIMPLE)
    rows = every.of(replace(row, index=i) for row, i in zip(every, (7, 3, 12, 5), strict=True))
    assert points(plots.pareto(rows, "t")) == {
        "row-7": (100, 0), "row-3": (50, 90), "row-12": (90, 50), "row-5": (40, 40)
    }  # fmt: skip


def test_the_line_joins_the_best_methods_and_no_control():
    (line,) = [each for each in drawn(plots.pareto(table(SIMPLE), "t"), "front")]
    assert list(zip(*line.get_data(), strict=True)) == [(50, 90), (90, 50)]


def test_intervals_are_drawn_where_they_are():
    low, high = [None, 0.4, None, 0.3], [None, 0.7, None, 0.45]
    figure = plots.pareto(table(SIMPLE, ra_low=low, ra_high=high), "t")
    bars = [s for each in main(figure).collections if hasattr(each, "get_segments") for s in each.get_segments()]
    assert [bar.tolist() for bar in bars] == [[[40, 90], [70, 90]], [[30, 40], [45, 40]]]


def test_better_is_always_up_and_to_the_right():
    rows = table(SIMPLE, fid=[0.1, 1.0, 5.0, 9.0], p_forget=[0.9, 0.1, 0.2, 0.3])
    axes = main(plots.pareto(rows, "t", x="fid", y="p_forget"))
    assert (axes.xaxis_inverted(), axes.yaxis_inverted()) == (True, True)
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "linear")
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("FID ↓", "p_forget ↓")
    plain = main(plots.pareto(rows, "t"))
    assert (plain.get_xlabel(), plain.get_ylabel()) == ("RA (%) ↑", "UA (%) ↑")
    assert not plain.xaxis_inverted() and not plain.yaxis_inverted()


def test_a_task_without_ua_and_ra_has_other_headlines():
    rows = table(dict.fromkeys("ab", (None, None)), task="sd-nudity", nudity_rate=[0.2, 0.1], clip_score=[30, 31])
    axes = main(plots.pareto(rows, "t"))
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("CLIP score ↑", "nudity rate (%) ↓")
    assert axes.yaxis_inverted()


def test_rows_without_a_value_are_named_below():
    figure = plots.pareto(table({**SIMPLE, "gone": (None, 0.5), "lost": (0.5, None)}), "t")
    assert "not shown, for want of a value: gone, lost" in texts(figure)
    assert len(points(figure)) == 4


@pytest.mark.parametrize(
    ("rows", "metrics", "line"),
    [
        (table({"a": (None, None)}), {}, "no row here has a metric of utility"),
        (table({"a": (0.5, None), "b": (None, 0.5)}), {}, "no row here has both ra and ua"),
        (table(SIMPLE), {"x": "raa"}, "unknown metric 'raa': did you mean ra"),
        (table(SIMPLE), {"y": "fid"}, "no values of fid here"),
    ],
)
def test_what_cannot_be_drawn_is_one_line(rows, metrics, line):
    with pytest.raises(UserError, match=re.escape(line)):
        plots.pareto(rows, "t", **metrics)


def test_areas_grow_with_time():
    figure = plots.pareto(table(SIMPLE, unlearn_time=[0.0, 10.0, 1000.0, None]), "t")
    sizes = {
        each.get_gid(): each.get_sizes()[0] for each in figure.findobj() if (each.get_gid() or "").startswith("row-")
    }
    assert sizes["row-0"] == sizes["row-3"] < sizes["row-1"] < sizes["row-2"] == area_of(1000)
    assert "unlearning time:" in texts(figure)
    assert "unlearning time:" not in texts(plots.pareto(table(SIMPLE), "t"))


def boxes(figure):
    """Where names and markers are, in pixels."""
    figure.canvas.draw()
    names = [each.get_window_extent() for each in drawn(figure, "name")]
    marks = []
    for axes in [figure.axes[0], *figure.axes[0].child_axes]:
        for each in axes.collections:
            if len(each.get_offsets()) == 1 and hasattr(each, "get_sizes") and len(each.get_sizes()):
                x, y = axes.transData.transform(each.get_offsets()[0])
                if axes.bbox.contains(x, y):
                    marks.append((x, y))
    return names, marks


@pytest.mark.parametrize("crowd", [3, 12, 26])
def test_names_cover_neither_each_other_nor_points(crowd):
    spread = np.random.default_rng(crowd).beta(8, 1, (crowd, 2))
    rows = table({f"method_{chr(97 + i)}": tuple(map(float, pair)) for i, pair in enumerate(spread)})
    figure = plots.pareto(rows, "t")
    names, marks = boxes(figure)
    for i, box in enumerate(names):
        assert not any(box.overlaps(other) for other in names[:i])
        assert not any(box.contains(x, y) for x, y in marks)
        assert figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1
    written = " ".join(texts(figure))
    assert all(row.label in written for row in rows), "each is named at its point or below the plot"


def test_a_crowd_is_shown_larger_with_all_its_points():
    near = {f"method_{i:02}": (0.97 + 0.001 * i, 0.995 - 0.001 * i) for i in range(14)}
    figure = plots.pareto(table({"original": (0.0, 1.0), "destroy": (1.0, 0.0), **near}), "t")
    (closer,) = main(figure).child_axes
    inside = [each.get_offsets()[0] for each in closer.collections if len(each.get_offsets()) == 1]
    (low, high), (below, above) = closer.get_xlim(), closer.get_ylim()
    seen = [tuple(p) for p in inside if low <= p[0] <= high and below <= p[1] <= above]
    assert len(seen) >= 14
    assert max(map(abs, (high - low, above - below))) < 20
    assert max(closer.get_xticks()) <= 100, "no tick where no share can be"


def test_very_many_points_are_drawn_and_the_best_named():
    some = np.random.default_rng(0).random((150, 2))
    rows = table({f"m{i}": tuple(map(float, pair)) for i, pair in enumerate(some)} | {"best": (1.0, 1.0)})
    figure = plots.pareto(rows, "t")
    assert len(points(figure)) == 151
    assert {"best", "1 best"} & set(texts(figure))
    assert "150 more methods are not named" in texts(figure)


# ---- styles --------------------------------------------------------------------------------------------------------


def test_methods_look_apart_and_alike_in_every_figure():
    names = [f"m{i:02}" for i in range(77)]
    looks = styles([*names, "retrain"])
    assert len({(looks[name].colour, looks[name].marker) for name in names}) == 77
    assert styles(reversed([*names, "retrain"])) == looks
    assert looks["retrain"].control and looks["retrain"].colour not in PALETTE
    assert control_of("retrain+lr=0.1@x") == "retrain" and control_of("retrained") is None


def test_settings_of_a_method_share_its_colour_and_marker_and_differ_in_face_and_dash():
    labels = ["a", "a@published", "a@tuned", "a+lr=0.1 (engine x)", "b", "b@tuned"]
    looks = styles(labels)
    assert len({looks[label][:2] for label in labels[:4]}) == 1 and looks["a"].colour != looks["b"].colour
    assert len({looks[label].face for label in labels[:3]}) == 3 and looks["a"].face == looks["a"].colour
    assert len({looks[label].dash for label in labels[:4]}) == 4
    assert styles(["b@tuned", "b", "a"])["b@tuned"] == looks["b@tuned"], "whatever else is there"


LINEAR = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
"""From linear sRGB to XYZ."""
SIGHT = {
    "usual": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}
"""Machado, Oliveira and Fernandes 2009, table 1: what a reader sees of linear RGB, at full severity."""


def seen(colour, sight):
    """CIELAB of a colour as a reader sees it."""
    rgb = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    xyz = LINEAR @ np.clip(np.array(SIGHT[sight]) @ linear, 0, 1) / (0.9505, 1.0, 1.089)
    x, y, z = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("sight", SIGHT)
def test_seven_colours_can_be_told_apart_by_everyone(sight):
    found = [seen(colour, sight) for colour in PALETTE]
    assert len(found) == 7
    assert min(np.linalg.norm(a - b) for i, a in enumerate(found) for b in found[:i]) > 15


def test_a_selection_keeps_the_colours_that_it_has_among_all():
    every = plots.pareto(table(SIMPLE), "t")
    one = plots.pareto(table({"c": SIMPLE["c"]}), "t", names=SIMPLE)
    (before,), (after,) = drawn(every, "row-3"), drawn(one, "row-0")
    assert before.get_facecolor().tolist() == after.get_facecolor().tolist()


def test_lines_under_attack_have_the_colours_and_markers_of_points():
    groups = {name: [attacked(name, {"relearn": attack([True, False], [5, 100])})] for name in ("a", "b", "retrain")}
    looks, figure = styles(["z", *groups]), attack_curves.attack_figure("t", groups, ["z", *groups])
    lines = [line for line in figure.axes[0].lines if line.get_marker() != "None"]
    assert [(line.get_color(), line.get_marker()) for line in lines] == [looks[name][:2] for name in groups]
    xs, ys = lines[0].get_data()
    (at,) = lines[0].get_markevery()
    assert xs[at] == 100 and ys[at] == pytest.approx(0.5, abs=0.01), "the marker stands at the limit"
    assert figure.get_size_inches()[0] == pytest.approx(6.9)
    assert attack_curves.attack_figure("t", {"a": [made_record("a")]}) is None


# ---- cost ----------------------------------------------------------------------------------------------------------


def test_bars_are_as_long_as_the_costs_the_slowest_on_top():
    rows = table(
        {"a": (1, 1), "b": (1, 1), "none": (1, 1)}, unlearn_time=[10.0, 40.0, None], peak_memory=[2.0**20, None, None],
        prepare_time=[100.0, 0.0, None], unlearn_time_sd=[1.0, None, None],
    )  # fmt: skip
    figure = plots.cost(rows, "t")
    times = figure.axes[0]
    assert [tick.get_text() for tick in times.get_yticklabels()] == ["b", "a"], "in all, a takes longer"
    assert sorted(bar.get_x() + bar.get_width() for bar in drawn(figure, "unlearn_time")) == [10.0, 40.0]
    (prepare,) = drawn(figure, "prepare_time")
    assert prepare.get_x() + prepare.get_width() == 100
    assert [bar.get_width() for bar in drawn(figure, "peak_memory")] == [1.0]
    (spread,) = [each for each in times.collections if each.get_segments()]
    assert spread.get_segments()[0][:, 0].tolist() == [9.0, 11.0]
    assert times.get_xscale() == "log"


def test_what_takes_no_time_has_no_bar():
    figure = plots.cost(table(SIMPLE, unlearn_time=[1e-6, 1.0, 0.0, 2.0]), "t")
    assert len(drawn(figure, "unlearn_time")) == 2
    assert texts(figure).count("< 0.01") == 2


def test_without_costs_there_is_a_line():
    with pytest.raises(UserError, match="no row here has a cost"):
        plots.cost(table(SIMPLE), "t")


# ---- matrix --------------------------------------------------------------------------------------------------------


def changes(*rows):
    columns = ["label", "forget", "concept", "change", "forgotten"]
    return pd.DataFrame(rows, columns=columns).assign(method="m", n=1, share=0.0, original=0.0)


def cells(figure):
    """What each panel's cells say, from left to right and downwards."""
    found = []
    for axes in figure.axes:
        marks = [text for text in axes.texts if text.get_gid() == "change"]
        if marks:
            found.append(
                [m.get_text() for m in sorted(marks, key=lambda m: (m.get_position()[1], m.get_position()[0]))]
            )
    return found


def test_cells_say_the_change_in_points_and_what_was_forgotten_is_framed():
    shown = changes(
        ("original", "3", "1", 0.0, False), ("b", "3", "1", -0.07, False), ("b", "3", "3", -0.974, True),
        ("a", "3", "1", 0.004, False), ("a", "3", "3", 0.02, True), ("retrain", "3", "1", math.nan, False),
    )  # fmt: skip
    figure = plots.matrix(shown, "t")
    assert cells(figure) == [["0", "+2", "−7", "−97"]]
    frames = drawn(figure, "forgotten")
    assert [frame.get_x() for frame in frames] == [1, 1]
    assert [name for name in texts(figure) if name in ("a", "b", "original", "retrain")] == ["a", "b"]


def test_decline_and_rise_have_opposite_colours_and_none_is_white():
    shown = changes(("a", "3", "0", -1.0, False), ("a", "3", "1", 0.0, False), ("a", "3", "2", 1.0, False))
    axes = plots.matrix(shown, "t").axes[0]
    loss, white, gain = (patch.get_facecolor() for patch in sorted(axes.patches, key=lambda patch: patch.get_x()))
    assert loss[0] > loss[2] and gain[2] > gain[0]
    assert min(white[:3]) > 0.95


def test_a_forgotten_concept_that_fell_has_the_colour_of_gains():
    shown = changes(("a", "3", "0", -0.9, False), ("a", "3", "3", -0.9, True), ("b", "3", "3", 0.9, True))
    axes = plots.matrix(shown, "t").axes[0]
    cells_of = sorted((each for each in axes.patches if each.get_fill()), key=lambda each: (each.get_y(), each.get_x()))
    loss, wanted, unwanted = (each.get_facecolor() for each in cells_of)
    assert wanted[2] > 2 * wanted[0], "blue, since it was asked for"
    assert loss == unwanted and loss[0] > loss[2]


def test_rows_of_the_matrix_have_the_markers_of_their_methods():
    shown = changes(("b", "3", "1", 0.1, False), ("a", "3", "1", 0.1, False))
    marks = {mark.get_ydata()[0]: mark for mark in drawn(plots.matrix(shown, "t", ["0", "a", "b"]), "swatch")}
    looks = styles(["0", "a", "b"])
    assert [(m.get_markeredgecolor(), m.get_marker()) for _, m in sorted(marks.items())] == [
        looks["a"][:2],
        looks["b"][:2],
    ]


def test_forget_concepts_that_share_concepts_are_rows_of_one_panel_others_stand_beside():
    shown = changes(
        ("a", "3", "1", 0.1, False), ("a", "8", "1", 0.2, False), ("a", "red", "blue", 0.3, False),
    )  # fmt: skip
    figure = plots.matrix(shown, "t")
    assert cells(figure) == [["+10", "+20"], ["+30"]]
    assert "forget red" in [axes.get_title(loc="left") for axes in figure.axes]


def test_the_matrix_takes_one_column_where_it_fits_and_two_at_most():
    few = changes(*(("esd", "3", str(i), 0.1, False) for i in range(10)))
    many = changes(*(("esd", "3", f"concept {i}", 0.1, False) for i in range(16)))
    assert plots.matrix(few, "t").get_size_inches()[0] == pytest.approx(3.3)
    assert plots.matrix(many, "t").get_size_inches()[0] == pytest.approx(6.9)


def test_without_an_original_there_is_no_matrix_but_a_line():
    with pytest.raises(UserError, match="no effects to show"):
        plots.matrix(changes(("a", "3", "1", math.nan, False)), "t")


# ---- files ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def odd():
    return plots.pareto(table({**SIMPLE, ODD: (0.7, 0.7)}, unlearn_time=[0.0, 1.0, 2.0, 3.0, 4.0]), f"title {ODD}")


@pytest.mark.parametrize("suffix", ["pdf", "svg", "png"])
def test_the_same_figure_makes_the_same_bytes(tmp_path, suffix):
    for name in "ab":
        plots.write_figure(plots.pareto(table(SIMPLE), "t"), tmp_path / f"{name}.{suffix}")
    assert (tmp_path / f"a.{suffix}").read_bytes() == (tmp_path / f"b.{suffix}").read_bytes()


def test_a_pdf_holds_truetype_fonts_and_no_others(tmp_path, odd):
    plots.write_figure(odd, tmp_path / "f.pdf")
    raw = (tmp_path / "f.pdf").read_bytes()
    assert b"/CIDFontType2" in raw and b"/FontFile2" in raw
    assert b"/Type3" not in raw and b"/Type1" not in raw
    assert b"/Subtype /Image" not in raw, "nothing but vectors"
    width = re.search(rb"/MediaBox \[ ?0 0 ([\d.]+)", raw)
    assert float(width[1]) == pytest.approx(3.3 * 72, abs=0.1)


def test_an_unknown_suffix_lists_those_known(tmp_path, odd):
    with pytest.raises(UserError, match=r"\.pdf, \.svg or \.png"):
        plots.write_figure(odd, tmp_path / "f.gif")


def test_a_piece_of_a_page_has_no_ids_but_its_own(odd):
    text = plots.svg(odd, "fig-1")
    root = ElementTree.fromstring(text)
    ids = [element.get("id") for element in root.iter() if element.get("id")]
    assert all(each.startswith("fig-1-") for each in ids) and len(ids) == len(set(ids))
    assert {f"fig-1-row-{i}" for i in range(5)} <= set(ids)
    referred = set(re.findall(r'(?:url\(#|href="#|aria-labelledby=")([^)"]+)', text))
    assert referred == {each for each in ids if "-row-" not in each}


def test_a_piece_of_a_page_is_a_picture_that_takes_its_size_and_ink_from_there(odd):
    text = plots.svg(odd, "f")
    root = ElementTree.fromstring(text)
    assert text.startswith("<svg ") and root.get("role") == "img"
    assert root.get("viewBox") and not root.get("width") and not root.get("height")
    title = next(iter(root))
    assert title.text == f"title {ODD}: UA (%) ↑ against RA (%) ↑"
    assert "currentColor" in text and "#000000" not in text
    assert not any(element.tag.endswith(("}style", "}metadata", "}script")) for element in root.iter())


def test_names_of_others_are_text_and_nothing_else(odd):
    text = plots.svg(odd, "f")
    assert "<script" not in text and "&lt;script&gt;" in text
    said = [element.text for element in ElementTree.fromstring(text).iter() if element.tag.endswith("}text")]
    assert any(each.startswith("a$b_c<script>") for each in said), "a $ does not begin mathematics"


def test_every_kind_of_figure_becomes_a_piece_of_a_page():
    rows = board([made_record(name, 0, {"unlearn_time": 2.0}) for name in ("original", "esd")])
    for figure in (plots.cost(rows, "t"), plots.matrix(changes(("a", "3", "1", 0.1, True)), "t")):
        assert ElementTree.fromstring(plots.svg(figure, "f")).get("role") == "img"
