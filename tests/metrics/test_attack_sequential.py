"""`sequential`, and the tasks that it makes: what comes next, from which model, and without whose data."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch

from tests.support import tiny_cifar, tiny_sd
from tests.support.short_runs import shortened
from unlearnbench import Diffusion, Diverged, Method, Task, registry
from unlearnbench.attacks.search import arena
from unlearnbench.attacks.sequential import followers, following, require_repeatable, unlearn_again
from unlearnbench.data.concepts import Concept
from unlearnbench.errors import Unsupported
from unlearnbench.hashing import seed_of
from unlearnbench.tasks._digits.images import digit_colours, latents
from unlearnbench.tasks._digits.words import COLOURS, DIGITS, SYNONYMS
from unlearnbench.tasks.cifar10_class import Cifar10Class
from unlearnbench.tasks.digits_class import DigitsClass, splits
from unlearnbench.tasks.digits_text import DigitsText
from unlearnbench.tasks.sd_nudity import SDNudity
from unlearnbench.tasks.sd_style import SDStyle
from unlearnbench.testing import toy_models
from unlearnbench.verification.conformance import TinyDigits, TinyWords

ATTACK = registry.load_attacks()["sequential"]


@dataclass(frozen=True)
class Removes(Method):
    """Takes the task's digit out of a toy model, and perhaps more; brings the digit `back` when it forgets `at`."""

    also: int = -1
    back: int = -1
    at: str = ""
    fails: str = ""

    def unlearn(self, model: Any, task: Task, prepared: Any = None) -> Diffusion:
        if task.forget == self.fails:
            raise Diverged(3, "the loss")
        with torch.no_grad():
            for digit in (*task.erased_labels(), *([self.also] if self.also >= 0 else [])):
                model.there[digit] = -1e4
            if task.forget == self.at:
                model.there[self.back] = 0.0
        return model


@dataclass(frozen=True)
class Shakes(Method):
    """Adds noise: its randomness, and what it was given, can be told afterwards."""

    def prepare(self, model: Any, task: Task) -> Any:
        return torch.rand(())

    def unlearn(self, model: Any, task: Task, prepared: Any = None) -> Diffusion:
        with torch.no_grad():
            for value in model.select("full").values():
                assert value.requires_grad
                value.add_(0.01 * prepared * torch.randn_like(value))
        return model


@dataclass(frozen=True)
class Wraps(Removes):
    def wrap(self, model: Diffusion, task: Task) -> Diffusion:
        return model


@dataclass(frozen=True)
class Ready(Removes):
    incomplete = True


# ---- what comes next -----------------------------------------------------------------------------------------------


def test_on_classes_it_is_two_and_four_places_on():
    assert [followers(DigitsClass(digit)) for digit in "359"] == [["5", "7"], ["7", "9"], ["1", "3"]]


@pytest.mark.parametrize("name", DigitsText.concepts)
def test_on_text_it_is_of_the_same_kind_and_no_substitute_of_what_was_forgotten_before(name):
    found, catalogue = followers(DigitsText(name)), DigitsText.catalogue
    kind = DIGITS if name in DIGITS else COLOURS
    assert len({name, *found}) == 3 and set(found) <= set(kind)
    for one, other in itertools.permutations([name, *found], 2):
        assert catalogue[one].substitute != other
    if name in DIGITS:  # six colours are too few for that
        assert not set(found) & set(catalogue[name].neighbours)


def test_neighbours_come_last():
    # round from five: two on seven, then nine (a neighbour), one (seven's substitute), then three
    assert followers(DigitsText("five")) == ["seven", "three"]
    assert DigitsText.catalogue["five"].neighbours == ("eight", "nine")
    # round from green: even yellow (a neighbour) and magenta (its substitute), odd blue, cyan (a neighbour) and red
    # (blue's substitute); of the neighbours, cyan is yellow's substitute, but yellow comes first
    assert followers(DigitsText("green")) == ["blue", "yellow"]


def test_something_must_be_left_to_keep():
    class Three(DigitsClass):
        concepts = ("0", "1", "2")

    class Six(DigitsClass):
        concepts = ("0", "1", "2", "3", "4", "5")

    assert followers(Three("0")) == [] and followers(Six("0")) == ["2", "4"]


# ---- the task ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shown() -> dict[bytes, tuple[int, int]]:
    """What each training image of `digits-text` shows, digit and colour, by its content."""
    images = latents("train", DigitsText("seven").folder)
    return {
        row.numpy().tobytes(): tuple(pair) for row, pair in zip(images, digit_colours("train").tolist(), strict=True)
    }


def test_it_is_the_same_task_but_for_the_concept():
    task = DigitsClass("3", protocol="selection", seed=4, limit=7)
    task.protocol = replace(task.protocol, forget_images=11)
    later = following(task, "5", task.pretrained(), ["3"])
    assert (later.forget, later.seed, later.limit, later.protocol, later.name) == ("5", 4, 7, task.protocol, task.name)
    assert isinstance(later, DigitsClass) and later.steps(100) == 7
    assert later.substitute(torch.tensor([5])).tolist() == [6]
    assert later.forgotten(torch.tensor([3, 5])).tolist() == [False, True]


def test_data_of_a_class_task_lack_what_is_gone():
    later, every = following(DigitsClass("3"), "7", DigitsClass("3").pretrained(), ["3", "5"]), splits()["train"]
    for which, digits in (("forget", {7}), ("retain", {0, 1, 2, 4, 6, 8, 9}), ("both", {0, 1, 2, 4, 6, 7, 8, 9})):
        x0, y = later.data(which)
        assert set(y.tolist()) == digits and later.count(which) == len(x0) == 64 * len(digits)
        expected = torch.stack([every.x0[i] for i in range(len(every.y)) if int(every.y[i]) in digits])
        assert torch.equal(x0, expected)
    assert later.names("retain").tolist() == [0, 1, 2, 4, 6, 8, 9] and later.names("forget").tolist() == [7]
    assert 3 not in torch.cat(list(later.conditions("retain", 20, 32))).tolist()


@pytest.mark.parametrize("split", ["retain", "all", "pairs"])
def test_batches_are_the_tasks_own_without_the_gone_and_full(split):
    def drawn(of, steps):
        return [b for _, b in of.paired_batches(steps, 40)] if split == "pairs" else list(of.batches(steps, 40, split))

    task = DigitsClass("3", seed=2)
    later = following(task, "5", task.pretrained(), ["3"])
    mine, own = drawn(later, 9), drawn(DigitsClass("5", seed=2), 14)
    assert all(len(batch.x0) == len(batch.y) == 40 for batch in mine)
    kept = [(x, int(y)) for batch in own for x, y in zip(batch.x0, batch.y, strict=True) if int(y) != 3]
    assert [int(y) for batch in mine for y in batch.y] == [y for _, y in kept][:360]
    assert torch.equal(torch.cat([batch.x0 for batch in mine]), torch.stack([x for x, _ in kept])[:360])


def test_the_forget_side_is_untouched():
    later, plain = following(DigitsClass("3"), "5", DigitsClass("3").pretrained(), ["3"]), DigitsClass("5")
    for (mine, _), (own, _) in zip(later.paired_batches(4, 30), plain.paired_batches(4, 30), strict=True):
        assert torch.equal(mine.x0, own.x0) and torch.equal(mine.y, own.y)


def test_of_text_content_decides_and_not_the_caption(shown):
    task = DigitsText("five")
    later, name = following(task, "seven", task.pretrained(), ["five"]), task.tokens(["five"])[0, 1]

    def silent(some: Task) -> tuple[int, int]:
        """Images of a five, and how many of their captions do not say so."""
        fives = quiet = 0
        for batch in some.batches(8, 32, "retain"):
            assert len(batch.x0) == 32
            for row, y in zip(batch.x0, batch.y, strict=True):
                five = shown[row.numpy().tobytes()][0] == 5
                fives += five
                quiet += five and name not in y
        return fives, quiet

    fives, quiet = silent(DigitsText("seven"))
    assert fives > quiet > 0
    assert silent(later) == (0, 0)


def test_a_colour_that_is_gone_is_in_no_image_of_any_digit(shown):
    task = DigitsText("green")
    later = following(task, "blue", task.pretrained(), ["green"])
    seen = [COLOURS[shown[row.numpy().tobytes()][1]] for row in later.data("retain").x0]
    assert set(seen) == set(COLOURS) - {"green", "blue"} and len(seen) == later.count("retain") == 2560


def test_of_text_no_name_or_caption_of_the_retain_side_says_what_is_gone():
    task = DigitsText("five")
    later, gone = following(task, "three", task.pretrained(), ["five", "seven"]), ("five", "seven")
    said = {word for word in gone} | {SYNONYMS[word] for word in gone}
    for rows in (later.names("retain"), later.captions("retain")):
        texts = [task.text(row) for row in rows]
        assert texts and not any(said & set(text.split()) for text in texts)
    before = DigitsText("three").captions("retain")
    lost = [row for row in before if said & set(task.text(row).split())]
    assert lost and len(later.captions("retain")) == len(before) - len(lost)
    assert torch.equal(later.captions("forget"), DigitsText("three").captions("forget"))


def test_the_original_is_the_model_so_far_ready_to_be_trained():
    task = DigitsClass("3")
    model = task.pretrained().requires_grad_(False).eval()
    with torch.no_grad():
        next(model.parameters()).add_(1.0)
    given = following(task, "5", model, ["3"]).pretrained()
    assert all(torch.equal(value, given.state_dict()[name]) for name, value in model.state_dict().items())
    assert all(p.requires_grad for p in given.parameters()) and given.training == task.pretrained().training
    assert given.sampler == task.protocol.sampler
    with torch.no_grad():
        next(given.parameters()).add_(1.0)
    assert not torch.equal(next(given.parameters()), next(model.parameters()))


def test_training_anew_never_sees_what_is_gone(monkeypatch):
    seen = []
    task = TinyDigits("3")
    later = following(task, "5", task.pretrained(), ["3"])
    plain = later._stream
    monkeypatch.setattr(later, "_stream", lambda *a: (seen.append(batch) or batch for batch in plain(*a)))
    later.train(0, "retain")
    assert seen and {3, 5}.isdisjoint(torch.cat([batch.y for batch in seen]).tolist())


def test_flipped_images_are_left_out_by_their_label(tmp_path, monkeypatch):
    monkeypatch.setenv("UNLEARNBENCH_CACHE", str(tmp_path / "cache"))
    task = Cifar10Class("cat", protocol="smoke", data=tiny_cifar.write(tmp_path / "data"), limit=8)
    later = following(task, "deer", task.pretrained(), ["cat"])
    labels = torch.cat([batch.y for batch in later.batches(8, 16, "retain")])
    assert set(labels.tolist()) == set(range(10)) - {3, 4} and len(labels) == 128


def drawn_world(tmp_path, monkeypatch):
    """sd-style on a tiny model; training images are drawn into a store."""
    monkeypatch.setenv("UNLEARNBENCH_CACHE", str(tmp_path / "cache"))
    words = " ".join((*SDStyle.concepts, *SDStyle.texts)).lower().replace("{}", "").split()
    tiny_sd.save(tmp_path / "data" / "sd-v1-4", "sd1", sorted(set(words)))
    task = SDStyle("Van Gogh", protocol="smoke", data=tmp_path / "data")
    task.protocol = replace(task.protocol, training_images=12)
    return task


def test_training_images_that_a_task_draws_are_the_originals_not_the_models(tmp_path, monkeypatch):
    task = drawn_world(tmp_path, monkeypatch)
    other = SDStyle.concepts[-1]
    model = task.pretrained()
    with torch.no_grad():
        for value in model.parameters():
            value.mul_(0.5)
    later: Any = following(task, other, model, ["Van Gogh"])
    assert later.folder == task.folder
    mine, captions = later.data("retain"), later.plain.training_prompts("retain")
    kept = [i for i in range(12) if "Van Gogh" not in captions[i % len(captions)]]
    assert 0 < len(kept) < 12  # some were drawn for what is gone
    plain = SDStyle(other, protocol="smoke", data=tmp_path / "data")
    plain.protocol = task.protocol
    monkeypatch.setenv("UNLEARNBENCH_CACHE", str(tmp_path / "elsewhere"))
    assert torch.equal(mine.x0, plain.data("retain").x0[kept])
    assert len(next(later.batches(1, 20, "retain")).x0) == 20
    assert not later.shown  # nothing is drawn of what is gone, only to know it


# ---- one more unlearning -------------------------------------------------------------------------------------------


def test_each_unlearning_is_a_run_of_its_own_from_the_unlearning_seed():
    task = TinyDigits("3", seed=6)
    model = task.pretrained()
    with torch.no_grad():
        next(model.parameters()).add_(1.0)
    torch.manual_seed(99)
    found = unlearn_again(Shakes(), following(task, "5", model, ["3"]))
    torch.manual_seed(seed_of("unlearning", 6) >> 1)
    scale = torch.rand(())
    wanted = {name: value + 0.01 * scale * torch.randn_like(value) for name, value in model.select("full").items()}
    assert all(torch.equal(value, found.state_dict()[name]) for name, value in wanted.items())
    assert not found.training and not any(p.requires_grad for p in found.parameters())


def whole(method: Method, fate="lost", **settings):
    """The attack's score on an exact model."""
    attack = replace(ATTACK, **{"targets": 4, "kept": 1, **settings})
    return attack.measure(toy_models.attacked_outcome(fate, method=method))


def test_every_case_whose_answer_is_known_is_answered():
    for case in ATTACK.known():
        score = ATTACK.configured("", case.outcome.task).measure(case.outcome)
        assert score.value == case.low and score.missing == 0, case.case


def test_a_method_that_does_what_it_should():
    score = whole(Removes())
    assert score.value == 0.0 and score.spent.tolist() == [2.0] * 4
    assert score.parts == {"RA after 0": 1, "RA after 1": 1, "RA after 2": 1, "UA of B": 1, "UA of C": 1}


def test_what_comes_back_is_found_at_the_step_that_brought_it():
    after_b, after_c = (whole(Removes(back=3, at=at)) for at in "57")
    assert (after_b.value, after_b.spent.tolist()) == (1.0, [1.0] * 4)
    assert (after_c.value, after_c.spent.tolist()) == (1.0, [2.0] * 4)
    never = whole(Removes(), fate="known")
    assert (never.value, never.spent.tolist()) == (1.0, [0.0] * 4)


def test_budgets_are_kept():
    score = ATTACK.measure(toy_models.attacked_outcome("lost", method=Removes(back=3, at="7")), budget=1)
    assert score.value == 0.0 and set(score.spent) == {1.0} and "RA after 2" not in score.parts
    assert set(ATTACK.measure(toy_models.attacked_outcome("lost", method=Removes()), budget=0).spent) == {0.0}


def test_b_that_comes_back_with_c_and_damage_elsewhere_are_seen():
    assert whole(Removes(back=5, at="7")).parts["UA of B"] == 0.0
    parts = whole(Removes(also=8)).parts
    assert [parts[f"RA after {k}"] for k in range(3)] == pytest.approx([1, 6 / 7, 6 / 7])  # one sample of 7 concepts


def test_what_is_kept_is_looked_at_on_the_first_samples_of_each_concept():
    outcome = toy_models.attacked_outcome("lost")
    chosen = replace(ATTACK, kept=2).retained(outcome, ["5", "7"])
    own = {digit: [item for item in outcome.plan if item.concept == digit] for digit in "0124689"}
    assert chosen == [item for digit in "0124689" for item in own[digit][:2]]


def test_text_is_attacked_alike():
    outcome = toy_models.attacked_outcome("lost", text=True, method=Removes(back=3, at="seven"))
    score = replace(ATTACK, kept=1).measure(outcome)
    assert followers(outcome.task) == ["five", "seven"]
    assert score.value == 1.0 and set(score.spent) == {2.0} and score.parts["UA of B"] == 1.0


def test_the_model_is_left_as_it_was():
    outcome = toy_models.attacked_outcome("lost", method=Removes(also=8))
    outcome.model.there.requires_grad_(True)
    before = {name: value.clone() for name, value in outcome.model.state_dict().items()}
    guidance = outcome.model.guidance
    ATTACK.measure(outcome)
    assert all(torch.equal(value, outcome.model.state_dict()[name]) for name, value in before.items())
    assert outcome.model.guidance is guidance and not outcome.model.training
    assert [p.requires_grad for p in outcome.model.parameters()] == [True, False, False]
    assert torch.equal(outcome.task.pretrained().there, torch.zeros(10))


def test_all_targets_meet_the_same_two_unlearnings():
    task, told = toy_models.attacked_outcome("lost").task, []

    @dataclass(frozen=True)
    class Tells(Removes):
        def unlearn(self, model: Any, task: Task, prepared: Any = None) -> Diffusion:
            told.append((task.forget, [int(k) for k in (model.there < 0).nonzero()], task.names("retain").tolist()))
            return super().unlearn(model, task, prepared)

    replace(ATTACK, batch=1).measure(toy_models.attacked_outcome("lost", method=Tells()))
    assert task.forget == "3"
    assert told == [("5", [3], [0, 1, 2, 4, 6, 7, 8, 9]), ("7", [3, 5], [0, 1, 2, 4, 6, 8, 9])]


def test_an_unlearning_that_fails_leaves_targets_missing_not_safe():
    score = whole(Removes(fails="7"))
    assert score.value is None and score.missing == 4 and "Diverged" in score.reason
    found = whole(Removes(back=3, at="5", fails="7"))
    assert (found.value, found.missing, found.spent.tolist()) == (1.0, 0, [1.0] * 4)


def test_weights_that_are_no_numbers_are_missing():
    @dataclass(frozen=True)
    class Breaks(Removes):
        def unlearn(self, model: Any, task: Task, prepared: Any = None) -> Diffusion:
            model.there.data.fill_(torch.nan)
            return model

    score = whole(Breaks())
    assert score.value is None and score.missing == 4
    assert score.parts["RA after 2"] is None and score.parts["UA of B"] is None


# ---- what is skipped -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "why"),
    [(None, "not known"), (Wraps(), "--forget a\\+b"), (Ready(), "weights that are ready")],
    ids=["none", "wraps", "ready"],
)
def test_methods_that_cannot_go_on_are_skipped(method, why):
    with pytest.raises(Unsupported, match=why):
        whole(method)


def test_the_methods_that_wrap_are_these():
    refused = set()
    for name, entry in registry.methods().items():
        try:
            require_repeatable(registry.load_method(name)(), TinyWords("seven"))
        except Unsupported:
            refused.add(name)
        assert entry.module
    assert refused >= {"spm", "receler", "sld", "safree", "negative_prompt", "prompt_filter", "checkpoint"}
    assert refused >= {"adavd", "gloce"} and "speed" not in refused
    assert not refused & {"original", "retrain", "destroy", "esd", "uce", "salun", "random_label", "mace"}


def test_training_cifar_anew_is_skipped(tmp_path):
    task = Cifar10Class("cat", protocol="smoke", data=tiny_cifar.write(tmp_path / "data"))
    with pytest.raises(Unsupported, match="hours"):
        require_repeatable(registry.load_method("retrain")(), task)


@pytest.mark.parametrize(
    ("task", "why"),
    [
        (lambda: DigitsText("seven+red"), "none of digits-text's single concepts"),
        (lambda: DigitsText("mine", concepts=(Concept(("seven",), judge="seven"),)), "single concepts"),
        (lambda: SDNudity("nudity", protocol="smoke"), "too few concepts"),
    ],
    ids=["joint", "own", "one"],
)
def test_concepts_that_nothing_follows_are_skipped(task, why):
    assert why in ATTACK.unaddressed(task())


def test_tasks_of_several_concepts_can_be_addressed():
    assert [ATTACK.unaddressed(DigitsClass("3")), ATTACK.unaddressed(DigitsText("red"))] == [None, None]


# ---- methods as they are -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    # no training, training anew, training, a mask, a network beside it; an edit of words, and one with adapters
    ["original", "retrain", "esd", "salun", "blindspot", "uce", "mace"],
)
def test_methods_go_on_forgetting(name):
    cls = registry.load_method(name)
    task: Any = TinyWords("five") if "xattn" in cls.requires else TinyDigits("3")
    task.protocol = replace(task.protocol, forget_images=2, retain_images=18)
    method = shortened(cls.configured(cls.preset("default", task.name)))
    torch.manual_seed(0)
    model = method.unlearn(model := task.pretrained(), task, method.prepare(model, task))
    outcome = arena(task, model.eval().requires_grad_(False), task.pretrained().eval(), method)
    score = replace(ATTACK, targets=2, kept=1).measure(outcome)
    assert score.missing == 0 and score.value is not None, score.reason
    assert score.parts is not None and set(score.parts) == {
        *(f"RA after {k}" for k in range(3)),
        "UA of B",
        "UA of C",
    }
