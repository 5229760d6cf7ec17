"""Prompt ladder: the concept in more and more distant words, after EMMA (Wei, Nakashima & Garcia, arXiv 2512.17320)."""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any, NamedTuple

import torch

from unlearnbench import Attack, Known, Look, Outcome, Plan, track
from unlearnbench.attacks.search import evaluations, sample_targets, sight
from unlearnbench.testing import toy_models

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

LEVELS = ("name", "prefix", "synonym", "held out", "short", "long", "language")
OPEN = 10_000  # tokens of a vocabulary that can spell any word: CLIP has 49,408, the miniature 276


class Rung(NamedTuple):
    """One prompt to try."""

    level: str
    prompt: str


@dataclass(frozen=True)
class PromptLadder(Attack):
    """For each target's own noise, one rung after another until the judge sees the concept; nothing is optimised.

    The levels go from the name over prefix, synonym and short to long description, as EMMA's do; its own prompts could
    not be read. Prompts in templates held out from methods and in eleven other languages are added here. Names,
    synonyms and templates are the task's (or those of --concept); the rest is in attacks/prompt_ladder.toml, each level
    with its source. A rung that the model cannot read (see `sayable`) is left out and counted in "rungs left out": on
    `digits-text`, whose vocabulary is closed, every description and every other language. A target's own prompt is not
    tried again.

    Black box: a rung costs the drawing of one image; the target's own prompt is at budget 0. Parts: for each level the
    share that it recovered of the targets that were not recovered before; null where none was left, or there is no
    rung.
    """

    title, rank, box, together = "prompt ladder", 60, "black", True
    needs, reads = frozenset({"text"}), ("attacks/prompt_ladder.toml",)

    most: int = 6
    """Prompts of the task at each of the levels "prefix" and "held out"."""

    def looks(self, outcome: Outcome, items: Sequence[Plan]) -> Iterator[Look]:
        """One look for each rung; recovered targets are not drawn again."""
        task: Any = outcome.task
        ladders = {concept: rungs(task, concept, self.most) for concept in task.erased}
        climbs = [
            [rung for rung in ladders[_aimed(task, item)][0] if rung.prompt.lower() != item.prompt.lower()]
            for item in items
        ]
        seen, spent = sight(outcome, sample_targets(outcome, items), items).recovered, torch.zeros(len(items))
        yield Look(spent, seen, {"rungs left out": float(sum(len(unsaid) for _, unsaid in ladders.values()))})
        tally: dict[str, dict[int, float]] = {level: {} for level in LEVELS}
        cost, height = evaluations(outcome.model.sampler), max(map(len, climbs))
        for step in track(range(height), height, "rungs"):
            rows = [i for i, climb in enumerate(climbs) if step < len(climb) and seen[i] != 1]
            if not rows:
                break
            some, y = [items[i] for i in rows], task.tokens([climbs[i][step].prompt for i in rows])
            spent, seen = spent.clone(), seen.clone()
            spent[rows] += cost
            seen[rows] = sight(outcome, sample_targets(outcome, some, y.to(task.device).__getitem__), some).recovered
            for i in rows:
                if not seen[i].isnan():
                    tally[climbs[i][step].level][i] = seen[i].item()
            yield Look(spent, seen, {level: sum(v.values()) / len(v) if v else None for level, v in tally.items()})
        yield Look(torch.where(seen == 1, height * cost, spent), seen)  # to the end, for targets that needed no more

    def known(self) -> Iterator[Known]:
        """Another word finds what only its name has lost."""
        yield Known("nothing was forgotten", toy_models.attacked_outcome("known", text=True), 1.0, quality="bad")
        yield Known(
            "the name alone was forgotten", toy_models.attacked_outcome("hidden", text=True), 1.0, quality="bad"
        )
        yield Known("lost", toy_models.attacked_outcome("lost", text=True), 0.0, quality="good")


def rungs(task: Any, concept: Any, most: int = 6) -> tuple[list[Rung], list[Rung]]:
    """The rungs of a concept that a task erases, in order, each prompt once; and those that are left out."""
    table = _lists().get(concept.label, _lists().get(concept.name, {}))
    known = [word for word in task.words if word not in (concept.label, *concept.names)]
    captions = [task.text(row) for row in task.captions("forget")]
    held_out = [item for item in task.plan() if item.group == "held_out"]
    own: dict[str, Sequence[str]] = {
        "name": concept.names,
        "prefix": [text for text in captions if _says(text, concept.names) and not _says(text, known)],
        "synonym": concept.synonyms,
        "held out": [item.prompt for item in held_out if item.concept in (concept.name, concept.label)],
    }
    found: dict[str, Rung] = {}
    for level in LEVELS:
        listed = dict(table.get(level, {}))
        listed.pop("source", None)
        fresh = [prompt for prompt in dict.fromkeys(own.get(level, ())) if prompt.lower() not in found]
        fresh = fresh[:most] if level in ("prefix", "held out") else fresh
        for prompt in (*fresh, *listed.pop("texts", ()), *listed.values()):
            found.setdefault(prompt.lower(), Rung(level, prompt))
    said = [rung for rung in found.values() if sayable(task.tokenizers[0], rung.prompt)]
    return said, [rung for rung in found.values() if rung not in said]


def sayable(tokenizer: Any, prompt: str) -> bool:
    """Whether a model can read a prompt.

    The prompt is not cut, and no character is unknown to the tokenizer. Where the tokenizer has few tokens, one for
    each word that its model has learned, no word is spelt in parts.
    """
    for word in prompt.split():
        parts = [part.replace("</w>", "") for part in tokenizer.tokenize(word)]
        spelt = sum(part.isalpha() for part in parts) > 1
        if tokenizer.unk_token in parts or (spelt and len(tokenizer) < OPEN):
            return False
    return len(tokenizer(prompt).input_ids) <= tokenizer.model_max_length


@cache
def _lists() -> dict[str, Any]:
    return tomllib.loads((files("unlearnbench") / "attacks" / "prompt_ladder.toml").read_text(encoding="utf-8"))


def _says(text: str, words: Sequence[str]) -> bool:
    return any(f" {word.lower()} " in f" {text.lower()} " for word in words)


def _aimed(task: Any, item: Plan) -> Any:
    """The concept that a target asks for."""
    return next((c for c in task.erased if item.concept in (c.name, c.label)), task.erased[0])
