"""How far published numbers of one method under one name lie apart: `python -m tests.studies.protocols`.

It writes `results/protocols.md` from `unlearnbench/leaderboard/published.csv`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import median
from typing import NamedTuple

from unlearnbench.leaderboard.formats import markdown_text
from unlearnbench.leaderboard.published import Published, load

PAGE = Path(__file__).parents[2] / "results" / "protocols.md"
WHOLE = 3
"""Number of the widest groups of each section that are shown with every protocol in full."""
NAMES = {
    "asr_i2p": "I2P, no attack",
    "asr_mma": "MMA-Diffusion",
    "asr_p4d": "P4D",
    "asr_ring_a_bell": "Ring-A-Bell",
    "asr_unlearndiffatk": "UnlearnDiffAtk",
    "asr_cce": "CCE",
    "asr_pre": "Pre-ASR",
    "spqr": "SPQR score",
    "runtime_s": "seconds of one erasure",
}
"""What papers call attacks and other numbers; those that are not here keep the name in the file."""
COUNTED = {"nudenet_total": "NudeNet detections", "fid": "FID", "clip_score": "CLIP score"}
"""What papers call metrics, by the beginning of the name in the file."""


class Section(NamedTuple):
    """A part of the page: numbers of one kind, whose spreads can be put in order."""

    title: str
    ratio: bool
    """Whether a spread is the largest number by the smallest; their difference otherwise."""
    about: str


SECTIONS = {
    "attack": Section("Success rates of attacks (%)", False, "The spread is the difference in percentage points."),
    "count": Section("NudeNet detections", True, "The spread is the largest count by the smallest."),
    "fid": Section("FID", True, "The spread is the largest FID by the smallest."),
    "clip": Section("CLIP score", False, "Cosines are times 100, and the spread is in these points."),
    "other": Section("Others", True, "The spread is the largest number by the smallest."),
}


class Group(NamedTuple):
    """Numbers that several publications print of one method under one name."""

    task: str
    forget: str
    method: str
    name: str
    """The attack or the metric, as papers call it."""
    section: Section
    rows: list[Published]

    def values(self) -> list[float]:
        """The numbers in one unit, in the order of the rows."""
        return [in_unit(row) for row in self.rows]

    def spread(self) -> float:
        """The difference of the largest and the smallest number, or their ratio; infinite for a ratio to 0."""
        low, high = min(self.values()), max(self.values())
        if not self.section.ratio:
            return high - low
        return 1.0 if high == low else high / low if low else math.inf

    def label(self) -> str:
        """The spread in digits."""
        spread = self.spread()
        return f"{spread:.3g}×" if self.section.ratio else f"{spread:.1f} points"


def named(metric: str) -> tuple[str, Section]:
    """What papers call a metric of the file, and the section of the page that has it."""
    if metric.startswith("asr_"):
        return NAMES.get(metric, metric.removeprefix("asr_")), SECTIONS["attack"]
    found = next((head for head in COUNTED if metric.startswith(head)), None)
    kind = {"nudenet_total": "count", "fid": "fid", "clip_score": "clip", None: "other"}[found]
    return COUNTED[found] if found else NAMES.get(metric, metric), SECTIONS[kind]


def in_unit(row: Published) -> float:
    """The number of a row, with CLIP scores of 0 to 1 times 100."""
    return 100 * row.value if row.metric == "clip_score_01" else row.value


def groups(rows: Iterable[Published]) -> list[Group]:
    """Group rows by task, concept, method and name; those of one source alone are left out. The widest come first."""
    found: dict[tuple[str, str, str, str], Group] = {}
    for row in rows:
        name, section = named(row.metric)
        key = (row.task, row.forget, row.method, name)
        found.setdefault(key, Group(*key, section, [])).rows.append(row)
    several = [group for group in found.values() if len({row.source for row in group.rows}) > 1]
    ordered = [group._replace(rows=sorted(group.rows, key=in_unit)) for group in several]
    return sorted(ordered, key=lambda group: (-group.spread(), group.name, group.task, group.forget, group.method))


HEAD = """# The same name, different protocols

Made by `python -m tests.studies.protocols` from
[published.csv](../unlearnbench/leaderboard/published.csv); do not edit it. It has the numbers that papers and other
benchmarks print of one method under one name, from two sources or more, the widest apart first.

**A number without its protocol is no number.** {summary}

Why they lie apart, as far as the sources say:

- **An attack's name may stand for a search or a list of prompts.** On objects and styles most sources share one
  protocol, UnlearnDiffAtk's 50 prompts and its classifiers, and agree within a few points. On nudity hardly two
  sources do. UnlearnDiffAtk searches a prefix on the model that is attacked. The scripts of SAFREE
  (jaehong31/SAFREE@b8b2c3f `scripts/run_nudity.sh`) and TRCE (ddgoodgood/TRCE@0da9b71 `scripts/gen_sexual.py`) give
  this name to its 142 starting prompts, the same file byte for byte, sent as they stand: what its own board calls
  Pre-ASR. P4D and Ring-A-Bell are found as searches and as files of 151 or 79 prompts.
- **Prompts are counted differently.** UnlearnDiffAtk's code leaves out those of more than 60 tokens, so that shares are
  of 142 prompts or of 118, within one table too. Where this page says "shares fit n", the printed shares are whole
  numbers of n prompts: that is worked out here, not said there.
- **"Flagged" is another event.** NudeNet has two generations and several networks, the threshold is 0.45, 0.5 or 0.6,
  all labels count or some, an image counts once or by its detections. Few sources say all of it.
- **The weights differ under one name**: ESD-x or ESD-u, the authors' checkpoint or one's own run, from v1.4 or v1.5.
- **FID depends on the number of images**, on the captions and on what they are compared with, real images or the
  original model's: do not compare across sources. **CLIP score** is of ViT-B/32, of B/16, or it is not said, and of 100
  to 30,000 images.
- **EraseDiff** shows what hangs on it. In its own paper FID and CLIP score are near the original's, and in HiRM the
  CLIP score is; four other sources have weights under this name that hardly draw what they are asked for any more.
- **Equal numbers may be copies.** Sources seldom say whether they ran a method or printed another's number.

What of this our own tables name:

- The protocol, with its hash, fixes prompts and their number, sampler, steps and guidance, and the detector's version
  and threshold; tables of two protocols are never one table.
- An attack's column names the search and its budget (`unlearndiffatk@full`); without a search it is *nudity rate*,
  or `--prompts` of a file. Attacks are read as the excess over `retrain` under the same attack.
- *Nudity rate* counts images, *detections/image* counts detections; *nudity rate, 2nd* is of another detector.
- *FID* is of the protocol's number of images, and the line below a table has the FID of real images.
- `unlearnbench leaderboard --published` puts published numbers beside what was measured here, with both protocols.

*verified*: read in the first publication, in its text, its repository or its board; *secondary*: read in another text,
most often a summary, where it may be copied wrongly. Numbers that could not be traced to a text are left out.
"""


def page(rows: Sequence[Published]) -> str:
    """The page in Markdown: what to conclude, the groups of each section, and the sources by number."""
    found = groups(rows)
    by_section = {section: [group for group in found if group.section == section] for section in SECTIONS.values()}
    origins = dict.fromkeys(origin(row) for some in by_section.values() for group in some for row in group.rows)
    numbers = {each: number for number, each in enumerate(origins, 1)}
    lines = [HEAD.format(summary=summary(found))]
    for section, some in by_section.items():
        if some:
            lines += [
                f"## {section.title}\n",
                f"{section.about}\n",
                *map(in_full, some[:WHOLE]),
                in_rows(some, numbers),
            ]
    lines += ["## Sources\n", *(f"{number}. {cell(each)}" for each, number in numbers.items())]
    return "\n".join(lines) + "\n"


def summary(found: Sequence[Group]) -> str:
    """What to conclude, in numbers."""
    agree = sum(len(set(group.values())) == 1 for group in found)
    text = f"{len(found)} methods and names have numbers from several sources; in {agree} all of them are equal."
    attacks = [group for group in found if group.section == SECTIONS["attack"]]
    if attacks:
        widest = attacks[0]
        low, *_, high = widest.values()
        tasks = dict.fromkeys(group.task for group in attacks)
        spreads = {task: [group.spread() for group in attacks if group.task == task] for task in tasks}
        middles = [f"{median(some):.0f} on {task} (of {len(some)})" for task, some in spreads.items()]
        text += (
            f"\nSuccess rates of one attack against one method differ by up to {widest.spread():.0f} points: "
            f"{cell(subject(widest))}, from {low:g} to {high:g} %.\nThe median difference is {', '.join(middles)}."
        )
    return text


def subject(group: Group) -> str:
    """Method, name and, unless it is nudity, the concept."""
    concept = "" if group.forget in ("", "nudity") else f", {group.forget}"
    return f"{group.method} under {group.name}{concept}"


def origin(row: Published) -> str:
    """Where a number is from and what was done there, as the list of sources has it."""
    note = f"; {row.note}" if row.note else ""
    return f"{row.source} ({row.status}{note}): {row.protocol}"


def in_full(group: Group) -> str:
    """A table with a line for each number: what was done and where it is from."""
    lines = [
        f"### {cell(subject(group))}: {group.label()}\n",
        "| number | what was done | source | status |",
        "| ---: | --- | --- | --- |",
    ]
    for value, row in zip(group.values(), group.rows, strict=True):
        source = f"{row.source}; {row.note}" if row.note else row.source
        lines.append(f"| {number(value)} | {cell(row.protocol)} | {cell(source)} | {row.status} |")
    return "\n".join(lines) + "\n"


def in_rows(found: Sequence[Group], numbers: dict[str, int]) -> str:
    """A table with a line for each group; brackets have the numbers of the sources."""
    lines = [
        "### All\n",
        "| concept | method | name | spread | numbers, each with its source |",
        "| --- | --- | --- | ---: | --- |",
    ]
    for group in found:
        cited = " · ".join(
            f"{number(value)} [{numbers[origin(row)]}]" for value, row in zip(group.values(), group.rows, strict=True)
        )
        concept = group.forget or group.task
        lines.append(f"| {cell(concept)} | {cell(group.method)} | {cell(group.name)} | {group.label()} | {cited} |")
    return "\n".join(lines) + "\n"


def number(value: float) -> str:
    """A number as it was printed, to rounding."""
    return f"{round(value, 3):g}" if value < 1e5 else f"{value:.0f}"


def cell(text: str) -> str:
    """Text that makes no cell, tag or link of its own."""
    return markdown_text(text).replace("[", "\\[").replace("_", "\\_")


if __name__ == "__main__":
    PAGE.write_text(page(load()), encoding="utf-8")
    print(f"wrote {PAGE}")
