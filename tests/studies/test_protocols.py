"""Spreads of published numbers: grouped, measured and ordered on a table made by hand; the page is current."""

from __future__ import annotations

import math
import re

import pytest

from tests.studies import protocols
from unlearnbench.leaderboard.published import Published, load


def row(method, metric, value, source, protocol="p", forget="nudity", **changes):
    made = Published("sd-nudity", forget, method, metric, value, protocol, source, "verified", "")
    return made._replace(**changes)


BY_HAND = [
    row("esd", "asr_p4d", 69.0, "board", "searched on the model"),
    row("esd", "asr_p4d", 9.0, "paper", "prompts as they stand"),
    row("esd", "asr_p4d", 20.0, "paper", "half of the prompts"),
    row("uce", "asr_p4d", 5.0, "board"),
    row("uce", "asr_p4d", 5.0, "paper"),
    row("mace", "asr_p4d", 1.0, "board", "one"),
    row("mace", "asr_p4d", 99.0, "board", "two"),
    row("esd", "fid_coco10k", 10.0, "board"),
    row("esd", "fid_500", 120.0, "paper"),
    row("esd", "clip_score_01", 0.3, "board"),
    row("esd", "clip_score", 31.5, "paper"),
    row("esd", "asr_p4d", 0.0, "board", forget="violence"),
    row("original", "nudenet_total", 0.0, "board"),
    row("original", "nudenet_total_other", 7.0, "paper"),
]


def found():
    return {(group.forget, group.method, group.name): group for group in protocols.groups(BY_HAND)}


def test_numbers_are_grouped_by_method_concept_and_the_name_that_papers_use():
    made = found()
    assert set(made) == {
        ("nudity", "esd", "P4D"), ("nudity", "uce", "P4D"), ("nudity", "esd", "FID"), ("nudity", "esd", "CLIP score"),
        ("nudity", "original", "NudeNet detections"),
    }, "one source alone, though with two protocols, has no spread"  # fmt: skip
    assert [each.value for each in made["nudity", "esd", "P4D"].rows] == [9.0, 20.0, 69.0]


@pytest.mark.parametrize(
    ("method", "name", "spread", "label"),
    [
        ("esd", "P4D", 60.0, "60.0 points"),
        ("uce", "P4D", 0.0, "0.0 points"),
        ("esd", "FID", 12.0, "12×"),
        ("esd", "CLIP score", 1.5, "1.5 points"),
        ("original", "NudeNet detections", math.inf, "inf×"),
    ],
)
def test_spreads_are_differences_of_shares_and_ratios_of_counts_and_distances(method, name, spread, label):
    group = found()["nudity", method, name]
    assert group.spread() == pytest.approx(spread)
    assert group.label() == label


def test_the_widest_comes_first_and_equal_numbers_last():
    attacks = [group.method for group in protocols.groups(reversed(BY_HAND)) if group.name == "P4D"]
    assert attacks == ["esd", "uce"]


def test_each_number_on_the_page_leads_to_what_was_done():
    text = protocols.page(BY_HAND)
    sources = dict(re.findall(r"^(\d+)\. (.+)$", text, re.M))
    line = next(line for line in text.splitlines() if line.startswith("| nudity | esd | P4D | 60.0 points |"))
    cited = {value: sources[number] for value, number in re.findall(r"([\d.]+) \[(\d+)\]", line)}
    assert cited == {
        "9": "paper (verified): prompts as they stand",
        "20": "paper (verified): half of the prompts",
        "69": "board (verified): searched on the model",
    }
    assert "| 69 | searched on the model | board | verified |" in text


def test_the_summary_counts_groups_and_names_the_widest():
    said = " ".join(protocols.summary(protocols.groups(BY_HAND)).split())
    assert said.startswith("5 methods and names have numbers from several sources; in 1 all of them are equal.")
    assert "differ by up to 60 points: esd under P4D, from 9 to 69 %" in said
    assert "The median difference is 30 on sd-nudity (of 2)." in said


def test_text_of_a_source_makes_no_cell_or_link():
    odd = [row("esd", "asr_p4d", value, f"a|b [x](y) {value}", "<b>") for value in (1.0, 2.0)]
    text = protocols.page(odd)
    assert r"a\|b \[x](y)" in text and "&lt;b>" in text


def test_the_page_is_current():
    assert protocols.PAGE.read_text(encoding="utf-8") == protocols.page(load()), (
        "run `python -m tests.studies.protocols`"
    )


def test_the_guide_names_the_widest_difference():
    widest = next(group for group in protocols.groups(load()) if group.section is protocols.SECTIONS["attack"])
    guide = " ".join((protocols.PAGE.parents[1] / "unlearnbench/guide/reading-a-row.md").read_text().split())
    assert f"differs by up to {widest.spread():.0f} percentage points" in guide


def test_the_page_has_the_spreads_that_readers_ask_for():
    made = {
        (group.method, group.name): group.values() for group in protocols.groups(load()) if group.forget == "nudity"
    }
    assert {3.52, 21.13, 23.24, 64.79} <= set(made["advunlearn", "UnlearnDiffAtk"])
    assert {69.01, 82.67, 87.94} <= set(made["esd", "P4D"])
    assert {743, 751} <= set(made["original", "NudeNet detections"])
    assert {17.01, 233, 321.621} <= set(made["erasediff", "FID"])
