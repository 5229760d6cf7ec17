"""Score images that somebody else drew, such as those of a closed system, by the metrics that need only images."""

from __future__ import annotations

import hashlib
import re
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from unlearnbench import registry
from unlearnbench.data.image_files import (
    LARGEST_FILE,
    Decoded,
    Undecodable,
    broken_zips_told,
    central_square,
    decode_image,
    images_in_zip,
    is_image_name,
    is_litter,
    opened_zip,
    read_from_zip,
)
from unlearnbench.data.prompt_files import PROMPTS, PromptRow, read_prompts
from unlearnbench.data.prompt_sets import CONCEPT, GROUP, split_word
from unlearnbench.errors import UserError, unknown
from unlearnbench.hashing import digest
from unlearnbench.judges import Judge
from unlearnbench.judges.scorer import PairScorer, Witness
from unlearnbench.metric import FeatureMetric, Metric, Outcome, Score
from unlearnbench.pipeline.judging import Looking, judged, testimonies
from unlearnbench.pipeline.scoring import score_metric
from unlearnbench.reporting import track
from unlearnbench.storage.lazy_arrays import ArrayPart, Rows
from unlearnbench.storage.store import Store
from unlearnbench.task import Plan, Task

FORGET_GROUPS = ("forget", "direct", "synonyms", "held_out")
"""Groups whose images were asked to show what is forgotten."""
GROUPS = (*FORGET_GROUPS, "retain", "neighbours", "benign")
BLOCK = 50
"""Images that are decoded together."""
NUMBERED = re.compile(r"(\d+)(_\d+)?")
"""File names of the papers' scripts: a row's case_number, and which of its images it is. As in
rohitgandikota/erasing@3b67288, eval-scripts/generate-images.py."""
NO_PROMPT = "{} of {} {} images have no prompt: give --prompts FILE.csv with the columns image and prompt"
NO_CONCEPT = "{} of {} {} images have no known concept: sort them into folders of its name, or give a column concept"


class ImageSource(NamedTuple):
    """A folder or zip of images, all of one group or sorted into folders by group."""

    group: str
    """Empty: its folders name the groups."""
    path: Path


class GivenImage(NamedTuple):
    """One image file, and what it was asked to show."""

    source: Path
    """The folder or zip."""
    name: str
    """Its name in there."""
    group: str
    concept: str = ""
    prompt: str = ""

    @property
    def data(self) -> bytes:
        """The file's bytes. Raises `Undecodable`."""
        if self.source.is_dir():
            path = self.source / self.name
            try:
                if path.stat().st_size > LARGEST_FILE:
                    raise Undecodable(f"it is larger than {LARGEST_FILE // 2**20} MiB")
                return path.read_bytes()
            except OSError as error:
                raise Undecodable((error.strerror or str(error)).lower()) from error
        about = self.source.stat()
        return read_from_zip(_archive(self.source, about.st_size, about.st_mtime_ns), self.name)


@lru_cache(maxsize=8)
def _archive(path: Path, size: int, changed: int) -> zipfile.ZipFile:
    """A zip, opened once: reading the list of its files takes longer than reading one of them."""
    with broken_zips_told(path, "pack it again"):
        return zipfile.ZipFile(path)


class GivenScores(NamedTuple):
    """What came of some images."""

    scores: dict[str, Score]
    not_run: dict[str, str]
    """Metrics and attacks that were left out, and why."""
    plan: list[Plan]
    """One entry for each image that was read."""
    left_out: dict[str, str]
    """Files that were not scored, and why."""
    changes: dict[str, int]
    """How many images were changed on reading, by what was done."""
    sha256: str
    """Hash of names and contents of the images that were read."""
    judge: Judge | None
    witnesses: dict[str, Witness]


# ---- which images ----------------------------------------------------------------------------------------------------


def image_sources(words: Sequence[str]) -> list[ImageSource]:
    """The folders and zips of words such as `DIR`, or `forget=DIR`. Raises `UserError` for what is neither."""
    found = []
    for word in words:
        head, equals, _ = word.partition("=")
        if equals and (head in GROUPS or not Path(word).exists()):
            group, path = split_word("images", word, GROUPS)
        else:
            group, path = "", Path(word)
        if not (path.is_dir() or (path.is_file() and path.suffix.lower() == ".zip")):
            raise UserError(f"--images {word}: {path} is no folder and no .zip: give one that exists")
        found.append(ImageSource(group, path))
    return found


def list_images(sources: Sequence[ImageSource]) -> tuple[list[GivenImage], dict[str, str]]:
    """All images, in the order of their names, and the files that are none with the reason.

    Folders name groups (`forget/1.png`), and below them concepts (`retain/dog/1.png`). One folder around all of them
    does not count. What macOS and hidden folders hold is passed over.
    """
    images: list[GivenImage] = []
    left_out: dict[str, str] = {}
    for source in sources:
        names, others = _names(source.path)
        left_out |= {str(source.path / name): "its name is not an image's" for name in others}
        firsts = {PurePosixPath(name).parts[0] for name in names if len(PurePosixPath(name).parts) > 1}
        flat = any(len(PurePosixPath(name).parts) == 1 for name in names)
        named = {first.lower() for first in firsts} & set(GROUPS)
        around = 1 if not source.group and len(firsts) == 1 and not flat and not named else 0
        for name in names:
            parts = PurePosixPath(name).parts[around:]
            folders = parts[:-1] if source.group else parts[1:-1]
            group = source.group or (parts[0].lower() if len(parts) > 1 else "")
            if group and group not in GROUPS:
                raise unknown(f"group of images in {source.path}:", group, GROUPS)
            images.append(GivenImage(source.path, name, group, folders[0] if folders else ""))
        if not names:
            raise UserError(
                f"there are no images in {source.path}: give a folder or zip with forget/*.png, retain/*.png"
            )
    return images, left_out


def _names(path: Path) -> tuple[list[str], list[str]]:
    """Names of images, and of other files that are no litter."""
    if path.is_dir():
        every = sorted(file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file())
        images = [name for name in every if is_image_name(name)]
    else:
        with opened_zip(path, "pack it again") as archive:
            images = images_in_zip(archive)
            every = [info.filename for info in archive.infolist() if not info.is_dir()]
    known = set(images)
    return images, sorted(name for name in every if name not in known and not is_litter(name) and not _is_note(name))


def _is_note(name: str) -> bool:
    return name.lower().endswith((".csv", ".txt", ".json", ".jsonl", ".tsv", ".md", ".parquet"))


def with_descriptions(images: Sequence[GivenImage], files: Sequence[str]) -> list[GivenImage]:
    """The images with prompt, concept and group of the rows that name them.

    A row names an image by its column `image`, a path or a file's name, or by `case_number`, with which the papers'
    scripts begin file names (`17_0.png`). A file given as `retain=FILE` is for that group alone. Raises `UserError` for
    a row without an image, or with several, and for an image without a group.
    """
    found = list(images)
    for word in files:
        head, equals, _ = word.partition("=")
        group, path = split_word("prompts", word, GROUPS) if equals and head in GROUPS else ("", Path(word))
        places = [i for i, image in enumerate(found) if not group or image.group == group]
        rows, by_image = _rows(path)
        finder = _by_image([found[i] for i in places]) if by_image else _by_number([found[i] for i in places])
        for row in rows:
            key = row.cells["image" if by_image else "case_number"].strip()
            hits = finder(key)
            if not hits and by_image:
                raise UserError(f"{path}, row {row.number}, names {key!r}, which is no image given: correct the name")
            if len(hits) > 1 and by_image:
                raise UserError(
                    f"{path}, row {row.number}, names {key!r}, as {len(hits)} images are called: add the folder"
                )
            for hit in hits:
                place = places[hit]
                found[place] = _told(found[place], row)
    if bare := [image for image in found if not image.group]:
        raise UserError(
            f"{bare[0].source / bare[0].name} and {len(bare) - 1} more are in no folder forget/ or retain/: move them "
            f"there, or say --images forget={bare[0].source}"
        )
    strange = next((image for image in found if image.group not in GROUPS), None)
    if strange is not None:
        raise unknown(f"group of {strange.name}:", strange.group, GROUPS)
    return found


def _rows(path: Path) -> tuple[list[PromptRow], bool]:
    try:
        return read_prompts(path, column="image", default_seed=lambda number: 0), True
    except UserError as error:
        try:
            return read_prompts(path, column="case_number", default_seed=lambda number: 0), False
        except UserError:
            raise error from error


def _by_image(images: Sequence[GivenImage]) -> Callable[[str], list[int]]:
    whole = {image.name: number for number, image in enumerate(images)}
    bare: dict[str, list[int]] = {}
    for number, image in enumerate(images):
        bare.setdefault(PurePosixPath(image.name).name, []).append(number)
        whole.setdefault("/".join(PurePosixPath(image.name).parts[1:]), number)

    def finder(key: str) -> list[int]:
        key = key.replace("\\", "/").removeprefix("./")
        return [whole[key]] if key in whole and "/" in key else bare.get(key, [])

    return finder


def _by_number(images: Sequence[GivenImage]) -> Callable[[str], list[int]]:
    numbered: dict[str, list[int]] = {}
    for number, image in enumerate(images):
        if match := NUMBERED.fullmatch(PurePosixPath(image.name).stem):
            numbered.setdefault(str(int(match[1])), []).append(number)
    return lambda key: numbered.get(str(int(key)) if key.isdigit() else key, [])


def _told(image: GivenImage, row: PromptRow) -> GivenImage:
    cells = {name: cell.strip() for name, cell in row.cells.items()}
    prompt = next((row.cells[name] for name in PROMPTS if name in row.cells), "")
    return image._replace(
        prompt=prompt if prompt.strip() else image.prompt,
        concept=cells.get(CONCEPT) or image.concept,
        group=cells.get(GROUP) or image.group,
    )


def prompts_of_names(images: Sequence[GivenImage]) -> list[GivenImage]:
    """The images with their files' names as prompts: `a_red_car_0007.png` is "a red car"."""
    named = []
    for image in images:
        words = re.sub(r"[_\s]+", " ", PurePosixPath(image.name).stem).strip()
        named.append(image._replace(prompt=re.sub(r"^\d+ +| +\d+$", "", words)))
    return named


# ---- what they were asked to show ------------------------------------------------------------------------------------


def plan_for(task: Task, images: Sequence[GivenImage]) -> list[Plan]:
    """What each image should show. The label is -1 where the judge knows none for it."""
    return [_planned(task, image, number) for number, image in enumerate(images)]


def _planned(task: Any, image: GivenImage, number: int) -> Plan:
    side = "forget" if image.group in FORGET_GROUPS else "retain"
    if image.group == "benign":
        return Plan(image.group, image.concept or "benign", -1, number, image.prompt)
    try:
        if hasattr(task, "asked_in"):
            asked = task.asked_in(image.prompt, side, image.concept)
            return Plan(image.group, asked.concept, asked.label, number, image.prompt, asked.other)
        labels, concept = task.labels(), image.concept or (task.forget if side == "forget" else "")
        if concept and concept not in labels:
            raise unknown(f"concept of {task.name}", concept, labels)
        if concept and (labels[concept] in task.erased_labels()) != (side == "forget"):
            raise UserError(f"{concept} is {'kept' if side == 'forget' else 'forgotten'}: move it to the other group")
    except UserError as error:
        raise UserError(f"{image.source / image.name}: {error}") from error
    return Plan(image.group, concept or "other", labels[concept] if concept else -1, number, image.prompt)


# ---- scoring ---------------------------------------------------------------------------------------------------------


def score_images(task: Task, images: Sequence[GivenImage], store: Store) -> GivenScores:
    """Read and score images. What cannot be read is left out, and counted.

    Images of another size than the task's are cropped to their central square and resized (Lanczos), as its reference
    photographs are.

    Raises `UserError` if no image can be read.
    """
    plan_for(task, images)  # refuses what it does not know before anything is decoded
    kept, left_out, changes, sha256 = _read_all(images, task.pixels)
    if not kept:
        first = next(iter(left_out.items()), ("", "there are none"))
        raise UserError(f"none of {len(images)} images can be read, first {first[0]} ({first[1]}): give others")
    plan = plan_for(task, kept)
    size = task.pixels or min(decode_image(kept[0].data).image.size)
    samples = Rows([_part(kept[start : start + BLOCK], size) for start in range(0, len(kept), BLOCK)])
    judge, no_judge, no_features = _judge(task)
    witnesses, no_witness = _witnesses(task)
    scores, not_run = dict[str, Score](), dict[str, str]()
    metrics: dict[str, Metric] = {}
    for name, metric in registry.load_metrics().items():
        lacking = [
            no_witness.get(role, f"{task.name} has no {role}") for role in sorted(metric.roles() - set(witnesses))
        ]
        why = _unfit(task, metric, plan) or next(iter(lacking), None) or _unprompted(metric, plan, witnesses)
        by_judge = not metric.roles()
        if why is None and by_judge:
            why = no_judge or (no_features if isinstance(metric, FeatureMetric) or metric.judge_needs else None)
            if why is None and metric.judge_needs and not getattr(judge, metric.judge_needs, False):
                why = f"the judge has no {metric.judge_needs.removeprefix('has_')}"
        if why is None:
            metrics[name] = metric
        else:
            not_run[name] = why
    outcome, no_reference = _outcome(task, samples, plan, judge, witnesses, metrics, store)
    for name, metric in metrics.items():
        if isinstance(metric, FeatureMetric) and no_reference is not None:
            not_run[name] = no_reference
        else:
            scores[name] = score_metric(metric, outcome)
    not_run |= dict.fromkeys(registry.attacks(), "it attacks a model, and there are only images")
    return GivenScores(scores, not_run, plan, left_out, changes, sha256, judge, witnesses)


def _read_all(images: Sequence[GivenImage], size: int) -> tuple[list[GivenImage], dict[str, str], dict[str, int], str]:
    """Decode every image once: those that can be read, the others with the reason, what was changed, and their hash."""
    kept, left_out, changes, hashes = [], dict[str, str](), Counter[str](), []
    for image in track(images, len(images), "reading images"):
        try:
            data = image.data
            decoded = decode_image(data)
        except Undecodable as error:
            left_out[str(image.source / image.name)] = str(error)
            continue
        kept.append(image)
        hashes.append([image.group, image.name, hashlib.sha256(data).hexdigest()])
        changes.update(_changed(decoded, size))
    return kept, left_out, dict(changes), digest(hashes)


def _changed(decoded: Decoded, size: int) -> Iterator[str]:
    width, height = decoded.image.size
    if decoded.composited:
        yield "transparent, put on white"
    if decoded.frames > 1:
        yield "animated, the first frame taken"
    if width != height:
        yield "not square, cropped to the centre"
    if size and min(width, height) != size:
        yield f"resized to {size}x{size}"


def _part(images: Sequence[GivenImage], size: int) -> ArrayPart:
    def read() -> Tensor:
        with _readable(images):
            rows = [central_square(decode_image(image.data).image, size) for image in images]
        return torch.from_numpy(np.stack(rows)).permute(0, 3, 1, 2).contiguous()

    return ArrayPart(len(images), read)


@contextmanager
def _readable(images: Sequence[GivenImage]) -> Iterator[None]:
    try:
        yield
    except Undecodable as error:
        raise UserError(
            f"an image in {images[0].source} changed while it was scored ({error}): run it again"
        ) from error


def _judge(task: Any) -> tuple[Judge | None, str | None, str | None]:
    """The task's judge, why there is none, and why it has no features."""
    try:
        return task.judge(), None, None
    except UserError as error:
        if not hasattr(task, "judge_without_features"):
            return None, str(error), None
        first = str(error)
    try:
        return task.judge_without_features(), None, first
    except UserError as error:
        return None, str(error), None


def _witnesses(task: Any) -> tuple[dict[str, Witness], dict[str, str]]:
    """The task's further detectors and scorers that can be loaded, and why others cannot."""
    found, lacking = {}, {}
    for role, make in getattr(task, "witness_makers", dict)().items():
        try:
            witness = make()
        except UserError as error:
            lacking[role] = str(error)
            continue
        if isinstance(witness, PairScorer):
            lacking[role] = "it compares with the original's image for the same noise, which given images have not"
        else:
            found[role] = witness
    return found, lacking


def _unfit(task: Task, metric: Metric, plan: Sequence[Plan]) -> str | None:
    """Why a metric says nothing about these images, whatever is installed."""
    if metric.axis == "cost":
        return "it measures the cost of unlearning"
    if metric.name in task.without:
        return f"{task.name} leaves it out"
    if isinstance(metric, FeatureMetric) and not any(item.group == "retain" for item in plan):
        return "there are no retain images"
    if not metric.applies(plan):
        there = any(item.group == metric.side for item in plan)
        return "each image is asked for one thing" if there else f"there are no {metric.side} images"
    if not metric.roles() and not isinstance(metric, FeatureMetric) and metric.side:
        own = [item for item in plan if item.group == metric.side]
        if unlabelled := sum(item.label < 0 for item in own):
            return NO_CONCEPT.format(unlabelled, len(own), metric.side)
    return None


def _unprompted(metric: Metric, plan: Sequence[Plan], witnesses: Mapping[str, Witness]) -> str | None:
    if not any(witnesses[role].needs_prompts for role in metric.roles()):
        return None
    own = [item for item in plan if metric.side in (None, item.group)]
    bare = sum(not item.prompt for item in own)
    return NO_PROMPT.format(bare, len(own), metric.side) if bare else None


def _outcome(
    task: Task,
    samples: Rows,
    plan: list[Plan],
    judge: Judge | None,
    witnesses: Mapping[str, Witness],
    metrics: Mapping[str, Metric],
    store: Store,
) -> tuple[Outcome, str | None]:
    """The images as metrics see them, and why there are no real images to compare with."""
    needed = {role for metric in metrics.values() for role in metric.roles()}
    said = testimonies({role: witnesses[role] for role in witnesses if role in needed}, samples, plan, store)
    judge = judge if judge is not None and any(not metric.roles() for metric in metrics.values()) else _Silent()
    with Looking(judge, store) as looking:
        for some in samples.split(BLOCK):
            looking(some)
        seen = looking.seen()
    none = seen._replace(features=torch.zeros(0, 0), error=None)
    reference = real = none
    why: str | None = None
    if any(isinstance(metric, FeatureMetric) for metric in metrics.values()):
        try:
            reference, real = judged(judge, task.reference(), store), judged(judge, task.floor(), store)
        except UserError as error:
            why = str(error)
    nothing: Any = None  # metrics of images look at no model
    about = {"task": task, "model": nothing, "original": nothing, "cost": {}, "witnessed": said}
    return Outcome.of(samples, plan, seen, reference, real, **about), why


class _Silent(Judge):
    """A judge that says nothing, for metrics that need none."""

    name, version, classes, threshold, hash = "none", "1", 1, 0.0, "0" * 64

    def __call__(self, images: Tensor) -> Any:
        from unlearnbench.judges import Verdict

        return Verdict(torch.full((len(images), 1), torch.nan), torch.zeros(len(images), dtype=torch.bool))

    def features(self, images: Tensor) -> Tensor:
        return torch.zeros(len(images), 1)
