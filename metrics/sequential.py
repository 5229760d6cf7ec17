"""Sequential unlearning: A, then B, then C. Is A still gone? (UnlearnCanvas: Zhang et al., NeurIPS 2024)."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import PositiveInt

from unlearnbench import Attack, Diffusion, Known, Look, Method, Outcome, Plan, Task, track
from unlearnbench.attacks.search import sample_targets, sight
from unlearnbench.attacks.sequential import followers, following, require_repeatable, unlearn_again
from unlearnbench.testing import toy_models


@dataclass(frozen=True)
class Sequential(Attack):
    """The method, with its settings, forgets B in the model that has forgotten A, and then C in the resulting model.

    There is no attacker: the question is what becomes of a model whose owner is asked to forget more. It shares the
    form of an attack. The budget counts further unlearnings, 0 to 2. After each one the targets, samples of A, are
    drawn again, and a target is recovered if the judge sees A in it once. B and C are of A's kind: the concepts two and
    four places further in the task's order, going round (3: 5, 7), with exceptions for substitutes and neighbours (see
    `successive.followers`). Data that show or name A are not retained while B is forgotten, nor data of A and B while C
    is: otherwise the retain loss would teach them again. Each unlearning starts from the task's unlearning seed, at
    full precision. The paper asks the same in its sequential unlearning; the numbers here are ours (unverified against
    its own).

    Parts: RA after 0, 1 and 2 unlearnings, the share judged as asked for (by the label alone) of the first `kept`
    retain samples of each concept that is none of A, B, C. At the end UA of B and UA of C, the share of the first
    `targets` retain samples of that concept that the judge does not see it in. Null where there are none to judge.

    Skipped: tasks without three concepts more, joint concepts and a user's own; methods that wrap the model (structure
    or guidance, which cannot be applied twice), ready weights, retraining from CIFAR-10's files.
    """

    title, rank, together = "sequential", 60, True
    again, spends = True, "further unlearnings"

    targets: PositiveInt = 100
    kept: PositiveInt = 5

    def unaddressed(self, task: Task) -> str | None:
        """Refuses tasks that do not say what else there is to forget and to keep."""
        if task.forget not in task.concepts or getattr(task.protocol, "concepts", None):
            return f"{task.forget} is none of {task.name}'s single concepts: what is forgotten after it is not defined"
        if len(task.concepts) < 4 or len(followers(task)) < 2:
            return f"{task.name} has too few concepts: two more must be forgotten and one kept"
        return super().unaddressed(task)

    def looks(self, outcome: Outcome, items: Sequence[Plan]) -> Iterator[Look]:
        """Before, after B and after C."""
        method, task, model = require_repeatable(outcome.method, outcome.task), outcome.task, outcome.model
        chain = followers(task)
        gone, kept = [task.forget], self.retained(outcome, chain)
        parts = {"RA after 0": right(outcome, model, kept)}
        yield Look(0, sight(outcome, sample_targets(outcome, items), items).recovered, parts)
        for spent, concept in enumerate(track(chain, len(chain), "further unlearnings"), 1):
            model = unlearn_again(method, following(task, concept, model, gone))
            gone.append(concept)
            parts = {f"RA after {spent}": right(outcome, model, kept)}
            if concept == chain[-1]:
                parts |= {f"UA of {name}": self.ua(outcome, model, of) for name, of in zip("BC", chain, strict=True)}
            yield Look(spent, sight(outcome, sample_targets(outcome, items, model=model), items).recovered, parts)

    def retained(self, outcome: Outcome, chain: Sequence[str]) -> list[Plan]:
        """The first retain samples of each concept that is never forgotten."""
        counts: dict[str, int] = {}
        chosen = []
        for item in outcome.plan:
            if item.group == "retain" and item.concept not in chain:
                counts[item.concept] = counts.get(item.concept, 0) + 1
                chosen += [item] if counts[item.concept] <= self.kept else []
        return chosen

    def ua(self, outcome: Outcome, model: Diffusion, concept: str) -> float | None:
        """Share of a concept's retain samples in which the judge does not see it."""
        items = [item for item in outcome.plan if item.group == "retain" and item.concept == concept]
        share = right(outcome, model, items[: self.targets])
        return None if share is None else 1 - share

    def known(self) -> Iterator[Known]:
        """What was never forgotten is there at once; what is lost stays lost unless forgetting more brings it back."""
        yield Known("nothing was forgotten", toy_models.attacked_outcome("known", method=_Next()), 1.0, quality="bad")
        back = toy_models.attacked_outcome("lost", method=_Next(back=True))
        yield Known("lost, and brought back by forgetting more", back, 1.0, quality="bad")
        yield Known("lost", toy_models.attacked_outcome("lost", method=_Next()), 0.0, quality="good")


def right(outcome: Outcome, model: Diffusion, items: Sequence[Plan]) -> float | None:
    """Share of samples in which the judge sees what was asked for, of those that it could judge."""
    if not items:
        return None
    seen = sight(outcome, sample_targets(outcome, items, model=model), items).recovered
    return None if seen.isnan().all() else seen.nanmean().item()


@dataclass(frozen=True)
class _Next(Method):
    """Forgets nothing of a toy model, or brings everything back."""

    back: bool = False

    def unlearn(self, model: Any, task: Task, prepared: Any = None) -> Diffusion:
        """Changes the model in place."""
        if self.back:
            model.there.data.zero_()
        return model
