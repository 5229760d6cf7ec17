"""Forget a digit or a colour of a Stable Diffusion in miniature: captioned, coloured UCI digits, 16x16, on a CPU."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from unlearnbench.data.concepts import Concept, mentions
from unlearnbench.diffusion.model import Batch, Diffusion
from unlearnbench.diffusion.schedulers import Scheduled
from unlearnbench.hashing import digest, seed_of
from unlearnbench.judges import Judge
from unlearnbench.judges.coloured_digits import ColouredDigits, ColouredNeighbours, train_judge
from unlearnbench.models import miniature
from unlearnbench.models.configuration import configuration
from unlearnbench.models.loading import load_stable_diffusion, load_tokenizers, untrained
from unlearnbench.storage.weights import load_checked, make_once, read_manifest
from unlearnbench.task import ModelIdentity, Plan, Side, shuffled
from unlearnbench.tasks._digits.images import digit_colours, images, latents
from unlearnbench.tasks._digits.words import (
    BOTH,
    COLOURS,
    DIGITS,
    DIRECT,
    EVERY,
    HELD_OUT,
    NEAREST,
    PAIRS,
    SYNONYM_SHARE,
    SYNONYMS,
    caption,
    fill_templates,
    share,
    vocabulary,
)
from unlearnbench.tasks._text import Asked, TextProtocol, TextTask, other_counts
from unlearnbench.tasks.digits_class import splits


class DigitsText(TextTask):
    """Object forgetting (a digit), style forgetting (a colour), or both together."""

    name = "digits-text"
    concepts = (*DIGITS, *COLOURS)
    catalogue: ClassVar[dict[str, Concept]] = {
        name: Concept((name,), (SYNONYMS[name],), other, tuple(NEAREST[name].split()))
        for pair in PAIRS
        for name, other in (pair.split(), pair.split()[::-1])
    }
    protocols: ClassVar[dict[str, Any]] = {
        "default": TextProtocol(
            "default", Scheduled(20, guidance=3.0), "coloured-digits-cnn", forget_images=60, chunk=45
        ),
        "selection": TextProtocol(
            "selection",
            Scheduled(20, guidance=3.0),
            "coloured-digits-neighbours",
            reference="judge",
            forget_images=50,
            retain_images=50,
            **other_counts(0),
            sampling_seed=1,
        ),
        "smoke": TextProtocol(
            "smoke",
            Scheduled(4, guidance=3.0),
            "coloured-digits-cnn",
            forget_images=12,
            retain_images=20,
            **other_counts(4),
        ),
    }
    provides = frozenset({"forget images", "retain images", "concept", "training recipe", "own concepts"})
    default_forget, few_retrains = "seven", True
    pixels = 16
    licence, origin = "mit", "trained by unlearnbench on the UCI digits (CC BY 4.0)"

    # ---- the model -------------------------------------------------------------------------------------------------

    @property
    def folder(self) -> Path:
        """Folder of the shipped weights or of the user's own: a diffusers folder with a manifest."""
        return self.weights or Path(__file__).parent / "assets" / self.name

    @cached_property
    def tokenizers(self) -> Sequence[Any]:
        """The folder's tokenizers; the shipped one has whole words as tokens."""
        read_manifest(self.folder)  # raises an error with the remedy if there is no such folder
        return load_tokenizers(self.folder)

    @property
    def words(self) -> tuple[str, ...]:
        """Digits and colours."""
        return self.concepts

    def architecture(self, seed: int) -> Diffusion:
        """The folder's networks; those shipped have 2.4 M (U-Net), 0.7 M (VAE) and 0.1 M (text encoder) parameters."""
        model = untrained(self.folder, seed)
        model.sampler = self.protocol.sampler
        return model.to(self.device)

    def pretrained(self) -> Diffusion:
        """The original from the diffusers folder, in float32."""
        for name in self._hashes():
            load_checked(self.folder, name)
        model = load_stable_diffusion(self.folder).float()
        model.sampler = self.protocol.sampler
        return model.to(self.device)

    def model_identity(self) -> ModelIdentity:
        """The manifest's hashes of all networks, and the folder's configuration files."""
        return ModelIdentity(digest(self._hashes()), configuration(self.folder), read_manifest(self.folder)["seed"])

    def _hashes(self) -> dict[str, str]:
        hashes = read_manifest(self.folder)["hashes"]
        return {name: value for name, value in hashes.items() if not name.startswith("judge")}

    def train(self, seed: int, which: Literal["both", "retain"] = "both") -> Diffusion:
        """Train denoiser and text encoder with `train_miniature`. The VAE is kept: it knows no concept."""
        model: Any = self.architecture(seed)
        model.vae.load_state_dict(load_checked(self.folder, miniature.FILES["vae"])[0])
        stream = self._stream(which, miniature.BATCH, seed_of("training", seed), SYNONYM_SHARE)
        miniature.train_miniature(model, stream, self.steps(miniature.STEPS), seed)
        return model

    @property
    def training_steps(self) -> int:
        """As in the recipe, of the denoiser."""
        return miniature.STEPS

    def pretrain(self, out: Path, seed: int = 0) -> dict[str, float]:
        """Train judge, VAE, denoiser and text encoder in `out`, a diffusers folder; returns what they reach.

        Weights that exist under the same recipe and seed are kept, so that a stopped run continues.
        """
        task, real = type(self)(self.forget, device=self.device, weights=out), splits()
        training = images("train").x0
        miniature.write_configuration(out, vocabulary())

        def made(name: str | tuple[str, ...], make: Any) -> None:
            recipe = {**miniature.RECIPE, "judge": float(ColouredDigits.version)}
            make_once(out, name, make, seed=seed, recipe=recipe)

        made("judge.safetensors", lambda: train_judge(real["judge"], real["calibration"], seed))
        latents.cache_clear()  # from an earlier folder of this name
        _judge.cache_clear()
        made(miniature.FILES["vae"], lambda: miniature.halves(miniature.train_vae(training, seed, self.device)))

        def denoiser() -> dict[str, dict[str, Tensor]]:
            model: Any = task.train(seed)
            parts = {"unet": model.unet, "text_encoder": model.text_encoders[0]}
            return {miniature.FILES[part]: miniature.halves(network) for part, network in parts.items()}

        made((miniature.FILES["unet"], miniature.FILES["text_encoder"]), denoiser)
        return task._reached()

    def _reached(self) -> dict[str, float]:
        """Shares for 180 samples, one of every digit in every colour in three templates, and for real images."""
        judge, model = self.judge(), self.pretrained().eval()
        every = [(d, c) for d in range(10) for c in range(len(COLOURS))]
        prompts = [text.format(d=DIGITS[d], c=COLOURS[c]) for text in (BOTH[2], BOTH[6], HELD_OUT[1]) for d, c in every]
        drawn, real = [], latents("train", self.folder)
        with torch.inference_mode():
            for start in range(0, len(prompts), 60):
                y = self.tokens(prompts[start : start + 60]).to(self.device)
                x = model.sample(y, [seed_of("pretrain check", start + i) for i in range(len(y))])
                drawn.append(self.to_uint8(model.decode(x)))
            again = self.to_uint8(model.decode(real[::10].to(self.device)))
        found = {
            "samples": (torch.cat(drawn), torch.tensor(every * 3)),
            "reconstructions": (again, digit_colours("train")[::10]),
        }
        found["held-out images"] = (self.to_uint8(images("reference").x0), digit_colours("reference"))
        shares = {}
        for what, (shown, asked) in found.items():
            verdict = judge(shown)
            for domain, label in (("digit", asked[:, 0]), ("colour", asked[:, 1] + len(DIGITS))):
                hits = verdict.about(label, judge.domains).label == label
                shares[f"{what} judged right, {domain}"] = round(hits.float().mean().item(), 4)
        return shares

    # ---- the data --------------------------------------------------------------------------------------------------

    def data(self, which: Side) -> Batch:
        """Latents and one caption each for images that show an erased concept, for those that show none, or for all."""
        kept = self._showing(which)
        chosen, draw = digit_colours("train")[kept].tolist(), random.Random(seed_of("captions", which))
        prompts = [self._caption(pair, which, draw) for pair in chosen]
        return Batch(latents("train", self.folder)[kept], self.tokens(prompts))

    def count(self, which: Side) -> int:
        """Number of these images, of which no caption is written for that."""
        return int(self._showing(which).sum())

    def _showing(self, which: Side) -> Tensor:
        digit, colour = digit_colours("train").unbind(dim=1)
        shown = torch.stack([(digit == k) | (colour + len(DIGITS) == k) for k in self.erased_labels()]).any(dim=0)
        return {"forget": shown, "retain": ~shown, "both": torch.ones_like(shown)}[which]

    def _caption(self, pair: list[int], which: Side, draw: random.Random, synonyms: float = 0.0) -> str:
        """Caption of an image; on the forget side it names an erased concept that the image shows.

        It is one of the method's own prompts for the image's side, if there are any.
        """
        erased = {concept.label for concept in self.erased}
        if self.wording.given:
            shown = {DIGITS[pair[0]], COLOURS[pair[1]]} & erased
            if own := self.wording.prompts("forget" if shown else "retain"):
                return draw.choice(own)
        named = erased if which == "forget" else set()
        return self._named(caption((DIGITS[pair[0]], COLOURS[pair[1]]), named, draw, synonyms))

    def _stream(self, side: Side, size: int, seed: int, synonyms: float = 0.0) -> Iterator[Batch]:
        kept = self._showing(side)
        x0, chosen = latents("train", self.folder)[kept].to(self.device), digit_colours("train")[kept].tolist()
        draw, known = random.Random(seed_of("captions", side, seed)), {}
        for index in shuffled(len(chosen), size, seed_of("batches", side, seed) >> 1):
            prompts = [self._caption(chosen[i], side, draw, synonyms) for i in index.tolist()]
            for prompt in prompts:
                if prompt not in known:
                    known[prompt] = self.tokens([prompt])[0]
            y = torch.stack([known[prompt] for prompt in prompts]).to(self.device)
            yield Batch(x0[index.to(x0.device)], y)

    def captions(self, which: Literal["forget", "retain"]) -> Tensor:
        """The distinct training captions of one side."""
        if own := self.wording.prompts(which):
            return self.tokens(own)
        texts = [text.format(d=d, c=c) for text in EVERY for d in DIGITS for c in COLOURS]
        texts = [t for t in map(self._named, texts) if bool(self._names_told.search(t)) == (which == "forget")]
        return self.tokens(list(dict.fromkeys(texts)))

    def reference(self) -> Iterator[Tensor]:
        """Held-out images of the digits and colours that the retain samples ask for."""
        return self._real(self.protocol.reference)

    def floor(self) -> Iterator[Tensor]:
        """Images of the same digits and colours that neither the original nor a judge has seen."""
        return self._real("floor")

    def labelled_images(self) -> tuple[Tensor, Tensor]:
        """Each digit of the reference and floor splits once, the colours in turn."""
        chosen = []
        for name in ("reference", "floor"):
            shown, digits = images(name), torch.arange(len(splits()[name].y))
            rows = digits + len(digits) * (digits % len(COLOURS))
            chosen.append((self.to_uint8(shown.x0[rows]), shown.y[rows] + torch.tensor([0, len(DIGITS)])))
        x, labels = (torch.cat(column) for column in zip(*chosen, strict=True))
        return x, labels

    def _real(self, split: str) -> Iterator[Tensor]:
        showing, used, rows = defaultdict[tuple[int, int], list[int]](list), Counter[tuple[int, int]](), []
        for row, (digit, colour) in enumerate(digit_colours(split).tolist()):
            showing[digit, colour + len(DIGITS)].append(row)
        for item in (item for item in self.plan() if item.group == "retain"):
            digit, colour = sorted((item.label, item.other))
            own = showing[digit, colour]
            rows.append(own[used[digit, colour] % len(own)])
            used[digit, colour] += 1
        yield self.to_uint8(images(split).x0[rows])

    # ---- what is measured ------------------------------------------------------------------------------------------

    def plan(self) -> list[Plan]:
        """Forgotten concepts in training templates, by name, by synonym and in held-out templates; neighbours; all
        others.
        """
        p, erased, plan = self.protocol, {concept.label for concept in self.erased}, list[Plan]()
        for group, texts, count in (
            ("forget", EVERY, p.forget_images),
            ("direct", DIRECT, p.direct_images),
            ("synonyms", EVERY, p.synonym_images),
            ("held_out", HELD_OUT, p.held_out_images),
        ):
            for number, concept in enumerate(self.erased):
                words = concept.synonyms if group == "synonyms" else concept.names
                prompts = [prompt.replace("{}", word) for word in words for prompt in concept.prompts]
                if group != "forget" or not prompts:
                    prompts = [
                        prompt for word in words for prompt in fill_templates(concept.label, word, texts, erased)
                    ]
                part = share(count, number, len(self.erased))
                plan += self._items(group, concept.name, concept.label, prompts, part)
        near = list(dict.fromkeys(word for concept in self.erased for word in concept.neighbours))
        near = [word for word in near if not self._asks.search(word)]
        sides = {"neighbours": (near, p.neighbour_images), "retain": (self._kept(), p.retain_images)}
        for group, (others, count) in sides.items():
            for number, word in enumerate(others):
                prompts = fill_templates(word, word, BOTH, erased)
                plan += self._items(group, word, word, prompts, share(count, number, len(others)))
        return plan

    def _kept(self) -> list[str]:
        """The other digits if a digit is erased, the other colours if a colour is."""
        erased = {concept.label for concept in self.erased}
        return [word for domain in (DIGITS, COLOURS) if erased & set(domain) for word in domain if word not in erased]

    def _items(self, group: str, concept: str, label: str, prompts: list[str], count: int) -> list[Plan]:
        """`count` images over shuffled prompts, the bare name first; all prompts are used before any is repeated."""
        known, prompts, items = self.labels(), sorted(prompts), []
        random.Random(seed_of("prompts", group, concept)).shuffle(prompts)
        prompts.sort(key=lambda prompt: prompt != concept)
        for i in range(count if prompts else 0):
            prompt = prompts[i % len(prompts)]
            besides = mentions(COLOURS if label in DIGITS else DIGITS).search(prompt)
            other = known[besides[0].lower()] if besides else -1
            noise = seed_of("sampling", self.protocol.sampling_seed, group, concept, i)
            items.append(Plan(group, concept, known[label], noise, prompt, other))
        return items

    def asked_in(self, prompt: str, side: Literal["forget", "retain"], concept: str = "") -> Asked:
        """The concept, and what is named in the other domain; of two kept ones, that of the forgotten's domain."""
        if side == "retain" and not concept:
            own = DIGITS if self.erased[0].label in DIGITS else COLOURS
            said = mentions(own).search(prompt)
            erased = {each.label for each in self.erased}
            concept = said[0].lower() if said and said[0].lower() not in erased else ""
        asked = super().asked_in(prompt, side, concept)
        if asked.label < 0:
            return asked
        besides = mentions(COLOURS if asked.concept in DIGITS else DIGITS).search(prompt)
        return asked._replace(other=self.labels()[besides[0].lower()] if besides else -1)

    def judge(self) -> Judge:
        """coloured-digits-cnn, or coloured-digits-neighbours in the selection protocol."""
        return _judge(self.protocol.judge, self.folder)

    def to_uint8(self, x: Tensor) -> Tensor:
        """(N, 3, 16, 16) in [-1, 1] -> uint8, rounded and clamped."""
        return ((x.detach().float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).cpu().contiguous()


@lru_cache(maxsize=4)
def _judge(name: str, folder: Path) -> Judge:
    if name == ColouredNeighbours.name:
        return ColouredNeighbours(splits()["selection"])
    return ColouredDigits(*load_checked(folder, "judge.safetensors"))
