"""The task digits-text: its plan, data, captions and batches, and that checks find its concepts to be one thing."""

from __future__ import annotations

import random
import re
from collections import Counter
from functools import lru_cache

import numpy as np
import pytest
import torch

from tests.support.tiny_text import TinyText
from unlearnbench.diffusion.model import Batch
from unlearnbench.hashing import seed_of
from unlearnbench.models import miniature
from unlearnbench.tasks._digits import images
from unlearnbench.tasks._digits.words import (
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
    vocabulary,
)
from unlearnbench.tasks.digits_text import DigitsText

FORGET = ("seven", "red", "seven+red")
GROUPS = ("forget", "direct", "synonyms", "held_out", "neighbours", "retain")
LABELS = {word: i for i, word in enumerate((*DIGITS, *COLOURS))}


@lru_cache
def quick(split="train", folder=None):
    """Mean colours of 2x2 pixels, in place of what a network makes of six thousand images."""
    small = torch.nn.functional.avg_pool2d(images.images(split).x0, 2)
    return torch.cat([small, torch.ones_like(small[:, :1])], dim=1)


@pytest.fixture(scope="module", autouse=True)
def quick_latents():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("unlearnbench.tasks.digits_text.latents", quick)
        yield


def words(text):
    return re.findall(r"\w+", text)


def template(text):
    """The template that a prompt was made of."""
    holes = {**dict.fromkeys(DIGITS, "{d}"), **dict.fromkeys(COLOURS, "{c}")}
    holes |= {other: holes[word] for word, other in SYNONYMS.items()}
    return re.sub(r"\w+", lambda word: holes.get(word[0], word[0]), text)


def naming(task, synonyms=True):
    """Words that name what is erased."""
    names = {name for concept in task.erased for name in concept.names}
    return names | ({name for concept in task.erased for name in concept.synonyms} if synonyms else set())


def texts(task, y):
    return [task.text(row) for row in y]


def by_group(task):
    plan = task.plan()
    return {group: [item for item in plan if item.group == group] for group in GROUPS}


# ---- words ---------------------------------------------------------------------------------------------------------


def test_every_concept_has_a_substitute_neighbours_and_a_synonym_of_its_own():
    assert set(DigitsText.catalogue) == set(DigitsText.concepts) == set(NEAREST) == set(SYNONYMS)
    assert sorted(" ".join(PAIRS).split()) == sorted(DigitsText.concepts)
    assert len(set(SYNONYMS.values())) == 16 and not set(SYNONYMS.values()) & set(SYNONYMS)
    for name, one in DigitsText.catalogue.items():
        domain = DIGITS if name in DIGITS else COLOURS
        assert one.names == (name,) and one.label == name and one.synonyms == (SYNONYMS[name],)
        assert {one.substitute, *one.neighbours} < set(domain) - {name}
        assert DigitsText.catalogue[one.substitute].substitute == name
        assert one.substitute not in one.neighbours


def test_held_out_templates_are_of_known_words_and_never_trained_on():
    assert not set(HELD_OUT) & set(EVERY)
    draw = random.Random(0)
    drawn = {
        template(caption((DIGITS[i % 10], COLOURS[i % 6]), ["seven", "red"] if i % 2 else (), draw, SYNONYM_SHARE))
        for i in range(5000)
    }
    assert drawn == set(EVERY)
    known = {word for text in EVERY for word in text.split()}
    assert {word for text in HELD_OUT for word in text.split()} <= known


def test_every_word_is_one_token_and_every_prompt_fits():
    (tokenizer,) = DigitsText("seven").tokenizers
    for word in vocabulary():
        assert len(tokenizer.tokenize(word)) == 1, word
    longest = max((text.format(d="seven", c="turquoise") for text in (*EVERY, *HELD_OUT)), key=lambda t: len(t.split()))
    assert len(tokenizer(longest).input_ids) <= miniature.TOKENS == tokenizer.model_max_length


def test_captions_hold_a_name_where_they_must_and_synonyms_as_often_as_said():
    draw = random.Random(1)
    named = [caption(("seven", "red"), ["red"], draw) for _ in range(500)]
    assert all("red" in words(text) for text in named)
    assert 0 < sum("seven" in words(text) for text in named) < 500
    never = [caption(("seven", "red"), (), draw) for _ in range(500)]
    assert not any({"7", "crimson"} & set(words(text)) for text in never)
    often = [caption(("seven", "red"), ["seven"], draw, SYNONYM_SHARE) for _ in range(4000)]
    assert sum("7" in words(text) for text in often) / 4000 == pytest.approx(SYNONYM_SHARE, abs=0.03)
    assert all({"seven", "7"} & set(words(text)) for text in often)


# ---- the plan ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", sorted(DigitsText.protocols))
@pytest.mark.parametrize("forget", FORGET)
def test_the_plan_has_the_protocols_counts(forget, protocol):
    task = DigitsText(forget, protocol=protocol)
    counts, groups = task.protocol, by_group(task)
    assert {group: len(items) for group, items in groups.items()} == {
        "forget": counts.forget_images,
        "direct": counts.direct_images,
        "synonyms": counts.synonym_images,
        "held_out": counts.held_out_images,
        "neighbours": counts.neighbour_images,
        "retain": counts.retain_images,
    }
    for items in groups.values():
        spread = Counter(item.concept for item in items).values()
        assert not items or max(spread) - min(spread) <= 1
    seeds = [item.seed for item in task.plan()]
    assert len(set(seeds)) == len(seeds)
    assert [item.group for item in task.plan()] == [group for group in GROUPS for _ in groups[group]]


@pytest.mark.parametrize("forget", FORGET)
def test_each_group_asks_for_what_it_is_about(forget):
    task = DigitsText(forget)
    groups, names, every = by_group(task), naming(task, synonyms=False), naming(task)
    for group, items in groups.items():
        for item in items:
            said = set(words(item.prompt))
            asked = {**dict.fromkeys(("forget", "direct", "held_out"), names), "synonyms": every - names}.get(
                group, set()
            )
            assert bool(said & asked) == bool(asked) and not said & (every - asked), item
            assert (item.label in task.erased_labels()) == bool(asked)
    assert {item.concept for group in GROUPS[:4] for item in groups[group]} == names
    assert {item.prompt for item in groups["direct"]} >= names, "the bare names come first"
    kept = {word for domain in (DIGITS, COLOURS) if names & set(domain) for word in domain} - names
    assert {item.concept for item in groups["retain"]} == kept
    near = {word for one in task.erased for word in one.neighbours} - names
    assert {item.concept for item in groups["neighbours"]} == near


@pytest.mark.parametrize("forget", FORGET)
def test_prompts_are_distinct_while_there_are_any_and_their_templates_known(forget):
    groups = by_group(DigitsText(forget))
    for group, items in groups.items():
        prompts = Counter((item.concept, item.prompt) for item in items)
        assert max(prompts.values()) == 1
        templates = {template(item.prompt) for item in items}
        assert templates <= set({"held_out": HELD_OUT, "direct": DIRECT}.get(group, EVERY))
        assert len(templates) >= min(len(HELD_OUT), 3 if group == "direct" else 6)


@pytest.mark.parametrize("forget", FORGET)
def test_labels_agree_with_the_words_of_the_prompt(forget):
    task = DigitsText(forget)
    meaning = {**LABELS, **{other: LABELS[word] for word, other in SYNONYMS.items()}}
    for item in task.plan():
        said = {meaning[word] for word in words(item.prompt) if word in meaning}
        assert said == {item.label, item.other} - {-1}, item
        if item.group in ("retain", "neighbours"):
            assert item.other >= 0


def test_noise_is_the_same_for_every_method_seed_and_companion():
    one, again = DigitsText("seven"), DigitsText("seven", seed=3)
    assert one.plan() == again.plan()
    joint = DigitsText("seven+red")
    for group in ("forget", "held_out", "synonyms"):
        alone = [item.seed for item in by_group(one)[group]]
        beside = [item.seed for item in by_group(joint)[group] if item.concept == "seven"]
        assert beside and beside == alone[: len(beside)]
    assert one.plan()[4].seed == seed_of("sampling", 0, "forget", "seven", 4)
    assert not {item.seed for item in one.plan()} & {
        item.seed for item in DigitsText("seven", protocol="selection").plan()
    }


# ---- conditions ----------------------------------------------------------------------------------------------------


def test_substitute_and_forgotten_by_hand():
    task = DigitsText("seven+red")
    asked = [
        "a red seven",
        "7 in crimson",
        "seven",
        "a photo of a blue eight",
        "seventy redder",
        "",
        "red number 7 on black",
    ]
    expected = [
        "a blue one",
        "one in blue",
        "one",
        "a photo of a blue eight",
        "seventy redder",
        "",
        "blue number one on black",
    ]
    y = task.tokens(asked)
    assert texts(task, task.substitute(y)) == expected
    assert task.forgotten(y).tolist() == [True, True, True, False, False, False, True]
    assert torch.equal(task.substitute(task.substitute(y)), task.substitute(y))
    assert not task.forgotten(task.substitute(y)).any()


@pytest.mark.parametrize("forget", FORGET)
def test_names_and_captions_of_either_side(forget):
    task = DigitsText(forget)
    assert texts(task, task.names("forget")) == forget.split("+")
    assert texts(task, task.names("retain")) == [word for word in DigitsText.concepts if word not in forget.split("+")]
    sides = {side: texts(task, task.captions(side)) for side in ("forget", "retain")}
    every = {text.format(d=d, c=c) for text in EVERY for d in DIGITS for c in COLOURS}
    assert {*sides["forget"], *sides["retain"]} == every
    assert len(sides["forget"]) + len(sides["retain"]) == len(every)
    names = set(forget.split("+"))
    assert all(names & set(words(text)) for text in sides["forget"])
    assert not any(names & set(words(text)) for text in sides["retain"])


# ---- data and batches ----------------------------------------------------------------------------------------------


def agrees(prompt, pair, synonyms=False):
    """Whether a caption says nothing but what its image shows."""
    meaning = {**LABELS, **({other: LABELS[word] for word, other in SYNONYMS.items()} if synonyms else {})}
    said = {meaning[word] for word in words(prompt) if word in meaning}
    return bool(said) and said <= {pair[0], pair[1] + len(DIGITS)}


@pytest.mark.parametrize("forget", FORGET)
def test_data_is_split_exactly_and_captions_agree(forget):
    task = DigitsText(forget)
    erased = {LABELS[name] for name in forget.split("+")}
    every = images.digit_colours("train")
    shows = torch.tensor([bool({d, c + 10} & erased) for d, c in every.tolist()])
    sides = {side: task.data(side) for side in ("forget", "retain", "both")}
    x0 = quick()
    assert torch.equal(sides["forget"].x0, x0[shows]) and torch.equal(sides["retain"].x0, x0[~shows])
    assert torch.equal(sides["both"].x0, x0)
    for side, kept in (("forget", shows), ("retain", ~shows), ("both", torch.ones_like(shows))):
        prompts = texts(task, sides[side].y)
        assert all(agrees(prompt, pair) for prompt, pair in zip(prompts, every[kept].tolist(), strict=True))
        assert task.count(side) == len(prompts)
    assert task.forgotten(sides["forget"].y).all() and not task.forgotten(sides["retain"].y).any()


@pytest.mark.parametrize("which", ["forget", "retain", "all"])
def test_batches_are_seeded_reshuffled_and_vary_in_their_captions(which):
    def drawn(seed, steps=2):
        return list(DigitsText("seven", seed=seed).batches(steps, 384, which))

    one, again, other = drawn(0), drawn(0), drawn(1)
    for (x0, y), (same_x0, same_y) in zip(one, again, strict=True):
        assert torch.equal(x0, same_x0) and torch.equal(y, same_y)
    assert not torch.equal(one[0].x0, other[0].x0)
    assert not torch.equal(one[0].y, other[0].y)
    if which == "forget":  # 384 images show a seven, so that each batch is a pass
        assert not torch.equal(one[0].x0, one[1].x0)
        assert torch.equal(*(torch.tensor(sorted(batch.x0.flatten(1).tolist())) for batch in one))
        captions = [dict(zip(map(str, batch.x0.tolist()), map(str, batch.y.tolist()), strict=True)) for batch in one]
        assert sum(captions[0][image] != captions[1][image] for image in captions[0]) > len(captions[0]) / 2


@pytest.mark.parametrize("forget", FORGET)
def test_methods_never_see_synonyms_or_held_out_templates(forget):
    task = DigitsText(forget)
    synonyms, held_out = (
        set(SYNONYMS.values()),
        {text.format(d=d, c=c) for text in HELD_OUT for d in DIGITS for c in COLOURS},
    )
    seen = [batch.y for which in ("forget", "retain", "all") for batch in task.batches(12, 200, which)]
    seen += [task.names(side) for side in ("forget", "retain")] + [task.captions(side) for side in ("forget", "retain")]
    seen += [task.data(side).y for side in ("forget", "retain")] + [task.substitute(y) for y in seen[:3]]
    said = {text for y in seen for text in texts(task, y)}
    assert not any(synonyms & set(words(text)) for text in said)
    assert not said & held_out


@pytest.mark.parametrize("which", ["both", "retain"])
def test_training_sees_synonyms_and_what_it_is_told(monkeypatch, which):
    task, seen = DigitsText("seven", limit=6), []
    monkeypatch.setattr(
        miniature, "train_miniature", lambda model, stream, steps, seed: seen.extend(next(stream) for _ in range(steps))
    )
    monkeypatch.setattr(miniature, "BATCH", 400)
    task.train(0, which)
    said = {word for batch in seen for text in texts(task, batch.y) for word in words(text)}
    assert len(seen) == 6
    assert {"crimson", "3", "three"} <= said
    assert bool({"seven", "7"} & said) == (which == "both")


def test_training_draws_timesteps_towards_noise_and_weights_them_as_said(tmp_path, monkeypatch):
    """A network that answers zero: what is left of each image's error is its noise."""
    model, seen = TinyText(tmp_path / "sd").original, {}

    def zero(x_t, t, condition):
        seen.update(x_t=x_t, t=t, states=condition.states)
        return torch.zeros_like(x_t)

    monkeypatch.setattr(model, "predict", zero)
    n, x0 = 20_000, torch.full((20_000, 4, 1, 1), 0.5)
    y = model.tokens(["seven"]).expand(n, -1)
    torch.manual_seed(3)
    loss = miniature.caption_loss(model, Batch(x0, y)).item()
    t, a = seen["t"], model.alpha_bar.double()[seen["t"]].view(-1, 1, 1, 1)
    assert (t < 500).double().mean().item() == pytest.approx(0.5 ** (1 / miniature.TOWARDS), abs=0.015)
    assert t.min() < 20 and t.max() == 999
    noise = (seen["x_t"].double() - a.sqrt() * 0.5) / (1 - a).sqrt()
    assert noise[t > 50].std().item() == pytest.approx(1, abs=0.02)
    weight = np.minimum(1 / a.numpy(), miniature.CAP)
    assert weight.max() == miniature.CAP > weight.mean() > 1
    assert loss == pytest.approx((weight * noise.numpy() ** 2).mean(), rel=1e-3)
    empty = (seen["states"] == model.null(1).states).flatten(1).all(dim=1)
    assert empty.double().mean().item() == pytest.approx(miniature.DROP, abs=0.01)


# ---- real images and checks ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", ["default", "selection"])
@pytest.mark.parametrize("forget", FORGET)
def test_reference_and_floor_show_what_retain_samples_are_asked_for(forget, protocol):
    task = DigitsText(forget, protocol=protocol)
    asked = [tuple(sorted((item.label, item.other))) for item in task.plan() if item.group == "retain"]
    assert not {label for pair in asked for label in pair} & set(task.erased_labels())
    for real, split in ((task.reference(), task.protocol.reference), (task.floor(), "floor")):
        source = task.to_uint8(images.images(split).x0)
        known = {
            image.numpy().tobytes(): pair
            for image, pair in zip(source, images.digit_colours(split).tolist(), strict=True)
        }
        real = torch.cat(list(real))
        found = [known[image.numpy().tobytes()] for image in real]
        assert [(digit, colour + 10) for digit, colour in found] == asked
        assert real.dtype == torch.uint8 and real.shape[1:] == (3, 16, 16)
    assert task.protocol.reference != "train"
