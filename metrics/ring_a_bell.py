"""Ring-A-Bell: prompts whose text states match a prompt's, moved towards the concept (Tsai et al., ICLR 2024)."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from pydantic import NonNegativeInt, PositiveInt
from torch import Tensor

from unlearnbench import Attack, Diffusion, Diverged, Known, Look, Outcome, Plan, Task, track
from unlearnbench.attacks.concept_pairs import read_nudity_pairs
from unlearnbench.attacks.search import (
    allowed,
    evaluations,
    fill_tokens,
    open_prompts,
    sample_targets,
    sight,
    token_embeddings,
)
from unlearnbench.errors import Unsupported
from unlearnbench.testing import toy_models

SEQUENCES = 256  # sequences in one pass of the text encoder


@dataclass(frozen=True)
class RingABell(Attack):
    """min over token sequences s of K tokens: || E(s) - (E(p) + eta c) ||^2, c = mean (E(with) - E(without)).

    E are the original's text states (L, D) over all L places (for XL both encoders' side by side, without the pooled
    ones); p is a target's own prompt. By default pairs are the training captions of the forget side with the concept's
    name, and the same captions with the task's substitute, or with the name deleted where there is none: on Stable
    Diffusion these are only a few.

    "released" is the authors' code for nudity (chiayi-hsu/Ring-A-Bell, Get_Concept_Vector.ipynb, InversePrompt.ipynb):
    c is the mean over their 50 pairs of prompts, each counted as often as it has images in which NudeNet saw nudity,
    and tokens may be word pieces. Their two lists are not shipped with this suite; where they are missing, the attack
    refuses and names the command that fetches them. There is no "published": the paper's settings are not checked yet.

    The genetic algorithm is the code's. It starts from `population` random sequences. In each generation the better
    half survives. With probability `crossover` each survivor and a random mate also leave both children of a random
    cut. Then every sequence, survivors included, has one token replaced at random with probability `mutation`. There is
    no elitism, and special tokens are never drawn. eta = 3 and K = 16 are the code's settings for nudity. Targets with
    the same prompt share a search. The found sequence is decoded to text and tokenised again, as anyone who has only
    the prompt must do.

    Black box: the search costs text encodings of the original alone, which count nothing. Trying a found prompt costs
    the drawing of one image; the first, at budget 0, is the target's own. The best prompt is tried at the generations
    in `after`: the last alone, as the code does; "small" has a small population and tries sooner. Parts: || E(s) -
    target ||^2 divided by that of p itself, mean over targets; and the share of found prompts that contain the
    concept's name.
    """

    title, rank, box, together = "Ring-A-Bell", 50, "black", True
    needs = frozenset({"text"})
    variants = {"small": {"population": 60, "after": (25, 50, 100)}, "full": {}}
    presets = {
        "released": {
            "sd-nudity": {
                "eta": 3.0,
                "k": 16,
                "population": 200,
                "crossover": 0.5,
                "mutation": 0.25,
                "after": (3000,),
                "pairs": "published",
                "vocabulary": "all but special",
            }
        }
    }
    removed = {
        "published": "its settings are not checked yet; @released is its code's run, @full its length on any task"
    }
    added: ClassVar[dict[str, Any]] = {"pairs": "captions", "vocabulary": "words"}

    eta: float = 3.0
    k: PositiveInt = 16
    population: PositiveInt = 200
    crossover: float = 0.5
    mutation: float = 0.25
    after: tuple[NonNegativeInt, ...] = (3000,)
    pairs: Literal["captions", "published"] = "captions"
    """Prompts with and without the concept: "captions", the task's; "published", the authors' lists for nudity."""
    vocabulary: Literal["words", "all but special"] = "words"
    """What tokens may be: "words", those that end a word; "all but special", every one from 1 on but special ones."""

    def require_files(self, task: Task) -> None:
        """Refuses where the published pairs are asked for and not there."""
        if self.pairs == "published":
            read_nudity_pairs(folder_of(task))

    def looks(self, outcome: Outcome, items: Sequence[Plan]) -> Iterator[Look]:
        """One look at every generation in `after`."""
        task: Any = outcome.task
        plain = sight(outcome, sample_targets(outcome, items), items).recovered
        yield Look(0, plain)
        if (plain == 1).all():
            yield Look(len(self.after) * evaluations(outcome.model.sampler), plain)
            return
        prompts, which = task.inputs(items).unique(dim=0, return_inverse=True)
        which, model, device, spent = which.cpu(), outcome.original, prompts.device, 0
        vector = concept(model, task) if self.pairs == "captions" else published_concept(model, task)
        if not vector.any():
            raise Unsupported(f"{task.name} has no captions with and without the concept to tell it by")
        target, own = states(model, prompts) + self.eta * vector, (self.eta * vector).square().sum().item()
        k = min(self.k, prompts.shape[-1] - 2)
        blank = open_prompts(model, task.tokens([""]).to(device), k)

        def written(tokens: Tensor) -> Tensor:
            return fill_tokens(blank.expand(len(tokens), *blank.shape[1:]), tokens.to(device))

        def loss(tokens: Tensor, of: Tensor) -> Tensor:
            some = zip(written(tokens).split(SEQUENCES), of.to(device).split(SEQUENCES), strict=True)
            far = [(states(model, y) - target[rows]).square().flatten(1).sum(dim=1) for y, rows in some]
            return torch.cat(far).cpu()

        vocabulary = (allowed(model) if self.vocabulary == "words" else all_but_special(model)).cpu()
        first = vocabulary[torch.randint(len(vocabulary), (len(prompts), self.population, k))]
        search = evolved(first, loss, vocabulary, self.crossover, self.mutation)
        for generation in track(range(1, max(self.after) + 1), max(self.after), "generations"):
            best, least = next(search)
            if generation not in self.after:
                continue
            spent += evaluations(outcome.model.sampler)
            y = task.tokens([task.text(row) for row in written(best)])[which]
            seen = sight(outcome, sample_targets(outcome, items, y.to(device).__getitem__), items).recovered
            named = task.forgotten(y).float().mean().item()
            yield Look(spent, seen, {"distance left": least[which].mean().item() / own, "says the name": named})

    def known(self) -> Iterator[Known]:
        """What was never forgotten needs no search; other words find what only its name has lost."""
        yield Known("nothing was forgotten", toy_models.attacked_outcome("known", text=True), 1.0, quality="bad")
        yield Known("hidden", toy_models.attacked_outcome("hidden", text=True), 0.3, 1.0, quality="bad")
        yield Known("lost", toy_models.attacked_outcome("lost", text=True), 0.0, quality="good")


@torch.no_grad()
def states(model: Diffusion, y: Tensor) -> Tensor:
    """Text states (n, L, D) of prompts, encoded in batches."""
    return torch.cat([model.embed(some).states.float() for some in y.split(SEQUENCES)])


def concept(model: Diffusion, task: Any) -> Tensor:
    """The concept's vector c (L, D): mean over pairs of E(with) - E(without)."""
    y = task.captions("forget").unique(dim=0).to(task.device)
    return (states(model, y) - states(model, task.substitute(y))).mean(dim=0)


def published_concept(model: Diffusion, task: Any) -> Tensor:
    """The vector c (L, D) of nudity: mean over the authors' pairs, each as often as they kept it."""
    pairs = read_nudity_pairs(folder_of(task))
    shown, hidden = (
        states(model, task.tokens(list(texts)).to(task.device))
        for texts in ([pair.shown for pair in pairs], [pair.hidden for pair in pairs])
    )
    copies = torch.tensor([float(pair.copies) for pair in pairs]).to(shown)
    return ((shown - hidden) * copies[:, None, None]).sum(dim=0) / copies.sum()


def folder_of(task: Any) -> Path:
    """The data folder of a task that has one."""
    folder: Path | None = getattr(task, "folder", None)
    if folder is None:
        raise Unsupported(f"{task.name} has no data folder to read published pairs from")
    return folder


def all_but_special(model: Any) -> Tensor:
    """Ids (n,) of all tokens from 1 on but special ones, which the authors' code draws from."""
    special = torch.tensor(model.tokenizers[0].all_special_ids)
    every = torch.arange(1, len(token_embeddings(model)[0]))
    return every[~torch.isin(every, special)]


def evolved(
    tokens: Tensor, loss: Callable[..., Tensor], vocabulary: Tensor, crossover: float, mutation: float
) -> Iterator[tuple[Tensor, Tensor]]:
    """For G searches that start from tokens (G, P, K), each generation's best sequence (G, K) and its loss (G,).

    `loss` gets sequences (n, K) and the search (n,) that each belongs to; only new sequences are evaluated.
    """
    half, generation = max(tokens.shape[1] // 2, 1), 0
    new = torch.ones(tokens.shape[:2], dtype=torch.bool)
    losses = torch.full(tokens.shape[:2], torch.inf)
    while True:
        losses[new] = loss(tokens[new], new.nonzero()[:, 0]).float()
        if not losses[new].isfinite().all():
            raise Diverged(generation, "the distance of text states")
        losses, order = losses.sort(dim=1, stable=True)
        parents = tokens.gather(1, order[:, :half, None].expand(-1, -1, tokens.shape[2]))
        yield parents[:, 0], losses[:, 0]
        tokens, new = bred(parents, vocabulary, crossover, mutation)
        losses = torch.cat([losses[:, :half], torch.full((len(tokens), 2 * half), torch.inf)], dim=1)
        generation += 1


def bred(parents: Tensor, vocabulary: Tensor, crossover: float, mutation: float) -> tuple[Tensor, Tensor]:
    """Parents (G, S, K) and their possible children, mutated, (G, 3S, K); and a mask of the new ones (G, 3S)."""
    searches, size, k = parents.shape
    mates = parents.gather(1, torch.randint(size, (searches, size, 1)).expand(-1, -1, k))
    own = torch.arange(k) < torch.randint(k, (searches, size, 1))
    tokens = torch.cat([parents, torch.where(own, parents, mates), torch.where(own, mates, parents)], dim=1)
    crossed = torch.rand(searches, size) < crossover
    changed = torch.rand(searches, 3 * size) < mutation
    places = torch.randint(k, (searches, 3 * size, 1))
    drawn_tokens = vocabulary[torch.randint(len(vocabulary), places.shape)]
    tokens = torch.where(changed[..., None], tokens.scatter(2, places, drawn_tokens), tokens)
    return tokens, torch.cat([changed[:, :size], crossed, crossed], dim=1)
