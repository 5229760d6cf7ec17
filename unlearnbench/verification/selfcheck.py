"""`selfcheck`: test metrics, judge and sampler on cases with known answers, and on the controls."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import copy
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from unlearnbench import registry
from unlearnbench.errors import UserError, one_line
from unlearnbench.judges import Judge
from unlearnbench.leaderboard.board import ForgetReader
from unlearnbench.leaderboard.likeness import LEAST_RETRAINS
from unlearnbench.metric import FeatureMetric, Known, Metric, Score
from unlearnbench.pipeline.cell import Cell
from unlearnbench.pipeline.fingerprint import sample_parts
from unlearnbench.pipeline.runner import run_cell
from unlearnbench.pipeline.sampling import sample_images
from unlearnbench.pipeline.scoring import metrics_for
from unlearnbench.records.image_table import reader
from unlearnbench.storage.store import Store
from unlearnbench.task import Plan, Task
from unlearnbench.testing import toy
from unlearnbench.verification.gaming import NEAR_ZERO, gamed

CONTROLS = ("original", "retrain", "destroy", "prompt_filter")
SIDES: tuple[Literal["forget"], Literal["retain"]] = ("forget", "retain")
STAGES = 3 + len(CONTROLS)
"""Number of times that `selfcheck_findings` calls `begin`."""
SURE = 0.9
"""Share of real images of the forgotten concept that the judge must recognize."""


class CaseResult(NamedTuple):
    """Result of one test. `found` and `expected` are texts for users."""

    subject: str
    case: str
    found: str
    expected: str
    passed: bool


def number(value: float | None) -> str:
    """Format a value for a finding."""
    return "no value" if value is None else f"{value:.6g}"


def format_range(low: float | None, high: float | None = None) -> str:
    """Format an expected range for a finding."""
    return number(low) if high is None or low is None or low == high else f"{number(low)} to {number(high)}"


def _to_the_end(subject: str, found: Iterator[CaseResult]) -> Iterator[CaseResult]:
    """Yield findings; an error that interrupts them becomes one more, so that the other tests still run."""
    try:
        yield from found
    except UserError:
        raise  # a user's problem, such as a store that cannot be written
    except Exception as error:  # noqa: BLE001 - whatever breaks a check off is what is to be reported
        yield CaseResult(subject, "every case can be tried", one_line(error), "no error", False)


# ---- metrics -------------------------------------------------------------------------------------------------------


def _score(metric: Metric, outcome: toy.Outcome) -> Score | str:
    try:
        score = metric.measure(outcome)
    except Exception as error:  # noqa: BLE001 - whatever a metric raises is what is to be reported
        return one_line(error)
    return score if isinstance(score, Score) else f"{score!r}, which is no Score"


def _judged(metric: Metric, case: Known) -> tuple[CaseResult, Score | None]:
    """Whether the metric gives the known answer of a case."""
    low, high = case.low, case.low if case.high is None else case.high
    expected = "no value, with a reason" if low is None else format_range(low, high)
    expected += f", {case.missing} missing" if case.missing else ""
    score = _score(metric, case.outcome)
    if isinstance(score, str):
        return CaseResult(metric.name, case.case, score, expected, False), None
    if low is None or high is None:
        passed, found = score.value is None and bool(score.reason), number(score.value)
        found += "" if score.value is not None or score.reason else ", without a reason"
    else:
        slack = 1e-6 * max(1.0, abs(low))
        passed = score.value is not None and low - slack <= score.value <= high + slack
        passed, found = passed and score.missing == case.missing, number(score.value)
        found += f", {score.missing} missing" if case.missing or score.missing else ""
    return CaseResult(metric.name, case.case, found, expected, passed), score


def known_answers(metric: Metric) -> Iterator[CaseResult]:
    """Test the metric's own cases, the direction of `better`, and that per-image values make up the value."""
    by_quality: dict[str, list[float]] = {"good": [], "bad": []}
    whole = True
    for case in metric.known():
        finding, score = _judged(metric, case)
        yield finding
        if score is not None and score.value is not None:
            by_quality.setdefault(case.quality or "", []).append(score.value)
            if metric.side is not None:
                count = sum(plan.group == metric.side for plan in case.outcome.plan)
                whole &= score.per_image is not None and len(score.per_image) == count and _mean_is(score)
    if metric.side is not None:
        yield CaseResult(metric.name, f"a value for every {metric.side} image", str(whole), "True", whole)
    good, bad = by_quality["good"], by_quality["bad"]
    if metric.better is not None or good or bad:
        sign = {"higher": 1, "lower": -1}.get(metric.better or "", 0)  # 0: without a direction, no value is better
        right = bool(good and bad) and min(sign * value for value in good) > max(sign * value for value in bad)
        found = f"good {', '.join(map(number, good)) or '-'}; bad {', '.join(map(number, bad)) or '-'}"
        yield CaseResult(metric.name, f"better is {metric.better}", found, "every good case beats every bad one", right)


def _mean_is(score: Score) -> bool:
    """Whether the per-image values make up the value."""
    kept = [float(value) for value in score.per_image if not math.isnan(value)]  # type: ignore[union-attr]
    return bool(kept) and math.isclose(sum(kept) / len(kept), score.value or 0.0, rel_tol=1e-6, abs_tol=1e-6)


def shared_cases(metric: Metric) -> Iterator[CaseResult]:
    """Test every metric on no image, on one image, and with a judge that fails."""
    if metric.axis == "cost":
        return
    one, fine, gone = toy.coloured(toy.points([1])), [toy.shows(3)] * 3 + [toy.shows(4)] * 3, [toy.fails()] * 6
    kept = toy.coloured([(0, toy.shows(0)), (1, toy.shows(2))] * 3)
    yield _judged(metric, Known("no images", toy.outcome(), None))[0]
    single = _score(metric, _outcome(metric, [toy.shows(3)], one, one))
    passed = not isinstance(single, str) and (bool(single.reason) if single.value is None else single.value < math.inf)
    found = single if isinstance(single, str) else number(single.value)
    yield CaseResult(metric.name, "one image", found, "a value, or none with a reason", passed)
    lost = toy.coloured([(0, image) for image in gone])
    yield _judged(metric, Known("the judge always fails", _outcome(metric, gone, lost, one * 9), None))[0]
    some = _outcome(metric, fine + gone[:4], kept + lost[:4], one * 9)
    if metric.side is None:
        yield _judged(metric, Known("the judge fails on 4 of 10", some, None))[0]
    else:
        known = Known("the judge fails on 4 of 10", some, _value(metric, _outcome(metric, fine, kept)), missing=4)
        yield _judged(metric, known)[0]
    if metric.side is not None or isinstance(metric, FeatureMetric) or metric.axis == "utility":
        yield from _same_images(metric)


def _outcome(
    metric: Metric, forget: Sequence[toy.Image], retain: Sequence[toy.Asked], reference: Sequence[toy.Asked] = ()
) -> toy.Outcome:
    """An outcome with these samples; a further group that the metric looks at gets the samples of its axis."""
    further = {metric.side: _kind(metric, forget, retain)} if metric.side and metric.side not in SIDES else None
    return toy.outcome(forget, retain, reference, reference, groups=further)


def _kind(metric: Metric, forget: Sequence[toy.Image], retain: Sequence[toy.Asked]) -> Sequence[toy.Asked]:
    """The samples that a metric looks at: those of the forgotten concept for efficacy, else the others."""
    return [(toy.FORGOTTEN, image) for image in forget] if metric.axis == "efficacy" else retain


def _value(metric: Metric, outcome: toy.Outcome) -> float | None:
    score = _score(metric, outcome)
    return score.value if isinstance(score, Score) else None


def _same_images(metric: Metric) -> Iterator[CaseResult]:
    """Test 300 images, more than one batch: neither their order nor other groups may change the value."""
    forget = [toy.shows(3)] * 100 + [toy.shows(4)] * 60 + [toy.leans(50, 50)] * 60 + [toy.refuses(3)] * 80
    retain, reference = toy.coloured(toy.grid()), toy.grid(off=1)
    side, own = metric.side or "retain", _kind(metric, forget, retain)

    def of(images: Sequence[toy.Asked], others: Sequence[str] = ()) -> toy.Outcome:
        every: dict[str, Sequence[toy.Asked]] = {
            "forget": [(toy.FORGOTTEN, image) for image in forget[20:]],
            "retain": retain[20:],
        }
        groups = {**{name: every[name] for name in others}, side: images}
        return toy.outcome(reference=reference, real=reference, groups=groups)

    value = _value(metric, of(own))
    span = (None, None) if value is None else (value - 1e-4 * abs(value), value + 1e-4 * abs(value))  # sums are rounded
    for case, made in (
        ("300 images in reverse order", of(own[::-1])),
        ("beside samples of the other side", of(own, [name for name in SIDES if name != side])),
    ):
        yield _judged(metric, Known(case, made, *span))[0]
    if isinstance(metric, FeatureMetric):
        score = _score(metric, toy.outcome([], toy.points(*[[100]] * 300), reference, retain))
        floor = score.floor if isinstance(score, Score) else None
        passed = floor is not None and value is not None and abs(floor - value) <= 1e-4 * abs(value)
        yield CaseResult(metric.name, "floor, of the same images", number(floor), number(value), passed)


def check_metric(metric: Metric) -> Iterator[CaseResult]:
    """Run all tests of a metric."""
    yield from _to_the_end(metric.name, known_answers(metric))
    yield from _to_the_end(metric.name, shared_cases(metric))


# ---- the task ------------------------------------------------------------------------------------------------------


def check_concept(task: Task) -> Iterator[CaseResult]:
    """Test that a concept means the same to plan, data, reference and judge, and that a misspelt one is refused."""
    return _to_the_end("concept", _concept(task))


def _concept(task: Task) -> Iterator[CaseResult]:
    forget, retain = ([plan for plan in task.plan() if plan.group == side] for side in SIDES)
    labels, judge = task.erased_labels(), task.judge()
    meant = task.protocol.judge
    yield CaseResult("judge", "its name is the protocol's", judge.name, meant, judge.name == meant)
    count = task.protocol.forget_images or len(forget)  # 0: all that a grid of prompts has
    yield _same("plan", "forget images ask for the concept", sum(item.label in labels for item in forget), count)
    asked = [label for item in retain for label in (item.label, item.other)]
    yield _same("plan", "retain images that ask for it", sum(label in labels for label in asked), 0)
    sides = {side: task.data(side).y for side in SIDES}
    hits = {side: int(task.forgotten(y).sum()) for side, y in sides.items()}
    yield _same("data", "forget images that show it", hits["forget"], max(1, len(sides["forget"])))
    yield _same("data", "retain images that show it", hits["retain"], 0)
    for side in SIDES:
        (y,) = task.conditions(side, 1, 64)
        expected = 64 if side == "forget" else 0
        yield _same("conditions", f"{side} ones that ask for it", int(task.forgotten(y).sum()), expected)
    real = task.to_uint8(task.pretrained().decode(task.data("forget").x0.to(task.device)))
    named = _called(judge, real, labels)
    yield CaseResult("judge", "real forget images named", number(named), format_range(SURE, 1), named >= SURE)
    for name, images in (("reference", task.reference()), ("floor", task.floor())):
        shown = _called(judge, torch.cat(list(images)), labels)
        yield CaseResult(
            name, "images called by the concept's name", number(shown), format_range(0, 0.05), shown <= 0.05
        )
    misspelt = f"{task.forget}{task.forget}x"
    try:
        found, passed = repr(task.resolve_concept(misspelt)), False
    except UserError as error:
        found, passed = str(error), True
    yield CaseResult("concept", f"misspelt as {misspelt!r}", found, "refused, with near names", passed)


def _called(judge: Judge, images: Tensor, labels: Sequence[int]) -> float:
    """Share of images in which the judge sees one of these labels."""
    verdict = judge(images)
    asked = [torch.full((len(images),), label) for label in labels]
    hits = torch.stack([verdict.about(each, judge.domains).label == each for each in asked])
    return hits.any(dim=0).float().mean().item()


def _same(subject: str, case: str, found: int, expected: int) -> CaseResult:
    return CaseResult(subject, case, str(found), str(expected), found == expected)


def noise(task: Task, store: Store) -> Iterator[CaseResult]:
    """Test that every image has its own noise, whatever batch it is sampled in."""
    plan, size = task.plan(), task.protocol.chunk
    seeds = {item.seed for item in plan}
    yield _same("noise", "different seeds", len(seeds), len(plan))
    cell = Cell(registry.load_method("original")(), task)
    original = task.pretrained().eval()
    identity = sample_parts(cell, original.state_dict())
    images = sample_images(cell, original, identity, plan, store)[:]
    yield _same("noise", "different images", len(torch.unique(images.flatten(1), dim=0)), len(plan))
    step = max(1, len(plan) // size)
    others: list[Plan] = plan[::-1][::step][:size]  # backwards, so that even a single batch has another order
    again = sample_images(cell, original, identity, others, store)[:]
    far = int((again.int() - images.flip(0)[::step][:size].int()).abs().max())
    yield CaseResult("noise", "grey levels changed by other batches", str(far), format_range(0, 1), far <= 1)


def check_controls(
    task: Task, store: Store, results: Path, metrics: Mapping[str, Metric], begin: Callable[[str], None]
) -> Iterator[CaseResult]:
    """Run the controls like any method, and test that they score as known."""
    original: dict[str, float] = {}
    for name in CONTROLS:
        begin(f"control {name}")
        record = run_cell(Cell(registry.load_method(name)(), task), store, results)
        yield CaseResult(
            name, "status", record.status + (f": {record.reason}" if record.reason else ""), "ok", record.status == "ok"
        )
        for key, metric in metrics.items():
            value = record.scores[key].value if key in record.scores else None
            if name == "original":
                original[key] = math.nan if value is None else value
            if bounds := metric.expected(name, original[key]):
                passed = value is not None and bounds[0] <= value <= bounds[1]
                yield CaseResult(key, f"control {name}", number(value), format_range(*bounds), passed)


def check_gaming(
    task: Task, store: Store, results: Path, begin: Callable[[str], None] = lambda title: None
) -> Iterator[CaseResult]:
    """Test that dimmed, blurred, constant or copied images score near 0 in at least one part; see `gaming`."""
    begin("ways to game")
    if "training recipe" not in task.provides:
        return
    cells = [Cell(registry.load_method("original")(), task)]
    for seed in range(LEAST_RETRAINS):
        other = copy(task)
        other.seed = seed
        cells.append(Cell(registry.load_method("retrain")(), other))
    read = ForgetReader(reader(results))
    original, *retrains = [read.of(run_cell(cell, store, results, baseline=True)) for cell in cells]
    known = [found for found in retrains if found is not None]
    if original is None:
        return
    model = task.pretrained().eval()
    plan = task.plan()
    samples = sample_images(cells[0], model, sample_parts(cells[0], model.state_dict()), plan, store)[:]
    for found in gamed(task.judge(), plan, samples, original, known):
        parts = f"erasure {found.erasure:.2f}, likeness "
        worse = found.likeness.worse
        parts += f"{worse.value:.2f}" if worse else f"unknown ({found.likeness.reason})"
        passed = found.smaller is not None and found.smaller <= NEAR_ZERO
        yield CaseResult("score", found.name, parts, f"one of them at most {NEAR_ZERO}", passed)


def selfcheck_findings(
    task: Task, store: Store, results: Path, begin: Callable[[str], None] = lambda title: None
) -> Iterator[CaseResult]:
    """Run all tests, quick ones first."""

    def scored() -> Iterator[CaseResult]:  # a plan that cannot be made breaks off this part alone
        yield from check_controls(task, store, results, metrics_for(task), begin)

    begin("known answers")
    for metric in registry.load_metrics().values():
        yield from check_metric(metric)
    begin("concept, data and noise")
    yield from check_concept(task)
    yield from _to_the_end("noise", noise(task, store))
    yield from _to_the_end("controls", scored())
    yield from _to_the_end("score", check_gaming(task, store, results, begin))


def failed(found: Iterable[CaseResult]) -> list[CaseResult]:
    """The findings that did not pass."""
    return [finding for finding in found if not finding.passed]
