"""Ring-A-Bell and the prompt ladder: against loops written out, known answers, budgets, what stays as it was."""

from __future__ import annotations

import importlib
from dataclasses import replace

import pytest
import torch

from tests.support import tiny_data
from unlearnbench.attacks.search import allowed, arena, evaluations
from unlearnbench.data.concepts import mentions
from unlearnbench.errors import Unsupported
from unlearnbench.hashing import state_hash
from unlearnbench.models.tokenizer import word_tokenizer
from unlearnbench.registry import load_attacks
from unlearnbench.tasks._sd.words import CIFAR10_OBJECTS, ESD_NICHE_ARTISTS
from unlearnbench.tasks.digits_text import DigitsText
from unlearnbench.tasks.sd_nudity import SDNudity
from unlearnbench.tasks.sd_object import SDObject
from unlearnbench.tasks.sd_style import TOGETHER, SDStyle
from unlearnbench.tasks.sdxl_nudity import SDXLNudity
from unlearnbench.testing import toy_models

bell = importlib.import_module("unlearnbench.metrics.ring_a_bell")
ladder = importlib.import_module("unlearnbench.metrics.prompt_ladder")
NAMES = ("ring_a_bell", "prompt_ladder")
TABLE = ladder._lists()
SOURCES = {"written for this project", "WordNet 3.0 gloss", "WordNet 3.0 lemma"}


def attack(name):
    made = load_attacks()[name]
    return replace(made, population=20, after=(3, 6)) if name == "ring_a_bell" else made


def toy(fate, count=4, **more):
    return toy_models.attacked_outcome(fate, text=True, count=count, **more)


def looks(name, outcome):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = attack(name)
        return list(made.looks(outcome, made.aims(outcome)))


# ---- Ring-A-Bell's steps -------------------------------------------------------------------------------------------


def test_the_concept_is_the_mean_difference_of_captions_with_the_name_and_with_the_substitute():
    o = toy("known")
    task, model, total = o.task, o.original, 0
    texts = sorted({task.text(row) for row in task.captions("forget")})
    for text in texts:
        other = text.replace("three", "two")
        assert "three" in text.split()
        rows = [model.embed(task.tokens([each])).states[0] for each in (text, other)]
        total = total + rows[0] - rows[1]
    assert torch.allclose(bell.concept(model, task), total / len(texts), atol=1e-6)
    assert len(texts) == len(task.captions("forget"))


def test_each_generation_measures_the_squared_distance_to_the_moved_prompt(monkeypatch):
    o, seen = toy("lost"), []
    whole = bell.evolved

    def watched(tokens, loss, *rest):
        for best, least in whole(tokens, loss, *rest):
            seen.append((best.clone(), least.clone()))
            yield best, least

    monkeypatch.setattr(bell, "evolved", watched)
    looks("ring_a_bell", o)
    prompts = o.task.inputs(attack("ring_a_bell").aims(o)).unique(dim=0)
    c = bell.concept(o.original, o.task)
    for best, least in seen:
        for g, prompt in enumerate(prompts):
            ids = torch.full((16,), o.task.tokenizers[0].eos_token_id)
            ids[0], ids[1:15] = prompt[0], best[g]
            found, wanted = (o.original.embed(each[None]).states[0] for each in (ids, prompt))
            far = sum((a - b - 3 * d) ** 2 for a, b, d in zip(*(x.flatten() for x in (found, wanted, c)), strict=True))
            assert least[g].item() == pytest.approx(far.item(), rel=1e-4)
    assert len(seen) == 6


def test_children_are_what_the_published_loops_make_of_the_same_draws():
    parents, vocabulary = torch.arange(2 * 5 * 4).view(2, 5, 4) + 100, torch.arange(50)
    torch.manual_seed(3)
    tokens, new = bell.bred(parents, vocabulary, 0.5, 0.25)
    torch.manual_seed(3)
    mate, cut = torch.randint(5, (2, 5, 1)), torch.randint(4, (2, 5, 1))
    crossed, changed = torch.rand(2, 5) < 0.5, torch.rand(2, 15) < 0.25
    place, value = torch.randint(4, (2, 15, 1)), torch.randint(50, (2, 15, 1))
    for g in range(2):
        for i in range(5):
            one, other, at = parents[g, i].tolist(), parents[g, mate[g, i, 0]].tolist(), int(cut[g, i])
            family = {i: one, 5 + i: one[:at] + other[at:], 10 + i: other[:at] + one[at:]}
            for j, row in family.items():
                if changed[g, j]:
                    row = [*row]
                    row[int(place[g, j])] = int(value[g, j])
                assert tokens[g, j].tolist() == row
                assert new[g, j] == (changed[g, j] if j < 5 else crossed[g, i])
    assert crossed.any() and not crossed.all() and changed.any()


def test_what_is_not_new_is_not_measured_again_and_the_better_half_survives(monkeypatch):
    asked, bred = [], bell.bred

    def loss(tokens, of):
        asked.append(len(tokens))
        return tokens.double().sum(dim=1)

    def watched(parents, *rest):
        tokens, new = bred(parents, *rest)
        born.append((parents, new))
        return tokens, new

    born = []
    monkeypatch.setattr(bell, "bred", watched)
    torch.manual_seed(0)
    first = torch.randint(1, 90, (3, 8, 5))
    search = bell.evolved(first.clone(), loss, torch.arange(1, 90), 0.5, 0.25)
    best, least = next(search)
    next(search)
    for g in range(3):
        ordered = sorted(first[g].tolist(), key=sum)
        assert best[g].tolist() == ordered[0] and least[g] == sum(ordered[0])
        assert sorted(map(sum, born[0][0][g].tolist())) == [sum(row) for row in ordered[:4]]
    assert asked == [24, int(born[0][1].sum())] and asked[1] < 36


def test_a_search_finds_what_is_there_to_be_found():
    goal = torch.tensor([[4, 2, 7], [1, 1, 9]])
    torch.manual_seed(0)
    first = torch.randint(10, (2, 40, 3))
    search = bell.evolved(first, lambda x, of: (x != goal[of]).sum(1).float(), torch.arange(10), 0.5, 0.25)
    for _ in range(60):
        best, least = next(search)
    assert least.tolist() == [0, 0] and torch.equal(best, goal)


def test_a_distance_that_is_not_finite_leaves_targets_missing():
    o = toy("lost")
    o.original.text_encoders[0].table.weight.data[int(allowed(o.original)[5])] = torch.nan
    score = attack("ring_a_bell").measure(o)
    assert score.missing == 4 and score.value is None and "not finite at step 0" in score.reason


def test_without_a_difference_there_is_nothing_to_search_by(monkeypatch):
    o = toy("lost")
    monkeypatch.setattr(o.task, "substitute", lambda y: y)
    with pytest.raises(Unsupported, match="no captions with and without"):
        attack("ring_a_bell").measure(o)


# ---- the ladder's rungs --------------------------------------------------------------------------------------------


def test_rungs_of_a_digit_are_words_of_its_world_and_the_rest_is_left_out():
    task = DigitsText("five")
    said, unsaid = ladder.rungs(task, task.erased[0])
    by = {level: [rung.prompt for rung in said if rung.level == level] for level in ladder.LEVELS}
    assert by["name"] == ["five"] and by["synonym"] == ["5"]
    assert set(by["prefix"]) == {
        "a five", "the number five", "the digit five", "a photo of a five", "a picture of the number five"
    }  # fmt: skip
    held = {item.prompt for item in task.plan() if item.group == "held_out"}
    assert len(by["held out"]) == 6 and set(by["held out"]) <= held
    assert by["short"] == by["long"] == by["language"] == []
    levels = [rung.level for rung in unsaid]
    assert {level: levels.count(level) for level in set(levels)} == {"short": 1, "long": 1, "language": 11}


@pytest.mark.parametrize("forget", DigitsText.concepts)
def test_no_description_or_language_is_sayable_in_the_closed_vocabulary(forget):
    task = DigitsText(forget)
    said, unsaid = ladder.rungs(task, task.erased[0])
    assert {rung.level for rung in said} == {"name", "prefix", "synonym", "held out"}
    assert {rung.level for rung in unsaid} == {"short", "long", "language"}


def test_what_is_spelt_unknown_or_cut_cannot_be_said():
    tokenizer = word_tokenizer(["a", "photo", "seven", "red"], 6)
    assert ladder.sayable(tokenizer, "a photo of seven") is False  # "of" is spelt
    assert ladder.sayable(tokenizer, "a red 7") and ladder.sayable(tokenizer, "a photo")
    assert not ladder.sayable(tokenizer, "sieben") and not ladder.sayable(tokenizer, "七")
    assert not ladder.sayable(tokenizer, "a a a red seven")


def test_an_open_vocabulary_may_spell_words_in_parts(monkeypatch):
    tokenizer = word_tokenizer(["seven"], 16)
    assert not ladder.sayable(tokenizer, "sieben seven")
    monkeypatch.setattr(ladder, "OPEN", len(tokenizer))
    assert ladder.sayable(tokenizer, "sieben seven") and not ladder.sayable(tokenizer, "七")


def test_two_concepts_have_ladders_of_their_own():
    task = DigitsText("seven+red")
    seven, red = (ladder.rungs(task, concept)[0] for concept in task.erased)
    assert not any("red" in rung.prompt.split() for rung in seven if rung.level != "held out")
    assert not any("seven" in rung.prompt.split() for rung in red if rung.level != "held out")
    assert {rung.level for rung in seven} == {rung.level for rung in red}


@pytest.mark.parametrize("cls", [DigitsText, SDNudity, SDObject, SDStyle], ids=lambda cls: cls.name)
def test_every_concept_of_the_tasks_has_its_rungs_in_the_table(cls):
    plain = {*CIFAR10_OBJECTS, *ESD_NICHE_ARTISTS, TOGETHER}  # of which it has the task's own words alone
    listed = set(cls.catalogue) - plain
    assert listed <= set(TABLE)
    for name, concept in ((name, cls.catalogue[name]) for name in listed):
        words = mentions((*concept.names, *concept.synonyms))
        for level in ("short", "long"):
            assert not any(words.search(text) for text in TABLE[name][level]["texts"]), (name, level)
        assert len(TABLE[name]["language"]) > 2


def test_every_level_of_the_table_says_its_source():
    for name, levels in TABLE.items():
        assert set(levels) <= set(ladder.LEVELS), name
        assert {level["source"] for level in levels.values()} <= SOURCES
        languages = set(levels["language"]) - {"source"}
        assert languages <= set(["de", "fr", "es", "it", "pt", "nl", "pl", "ru", "zh", "ja", "ko", "ar"])
        texts = [text for key in levels if key != "language" for text in levels[key]["texts"]]
        assert all(text.strip() == text and text for text in [*texts, *levels["language"].values()])


# ---- known answers -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_what_was_never_forgotten_is_recovered_at_budget_0(name):
    score = attack(name).measure(toy("known"))
    assert score.value == 1 and (score.spent == 0).all()


@pytest.mark.parametrize(("name", "tries"), [("ring_a_bell", {2}), ("prompt_ladder", {12, 13})])
def test_what_is_lost_is_never_found_and_costs_the_whole_search(name, tries):
    score = attack(name).measure(toy("lost"))
    assert score.value == 0 and score.missing == 0
    assert set(score.spent.tolist()) == {10 * n for n in tries}


def test_a_synonym_finds_what_only_its_name_has_lost():
    score = attack("prompt_ladder").measure(toy("hidden"))
    assert score.value == 1 and score.parts["prefix"] == 0 and score.parts["synonym"] == 1
    assert score.parts["held out"] is None and score.parts["name"] == 0
    before = ["three", "a three", "the number three", "the digit three", "a photo of a three"]
    before.append("a picture of the number three")
    own = [item.prompt in before for item in toy("hidden").plan if item.group == "forget"]
    assert score.spent.tolist() == [60 if same else 70 for same in own] and any(own) and not all(own)


def test_ring_a_bell_finds_other_words_for_what_only_its_name_has_lost():
    made = replace(attack("ring_a_bell"), population=40, after=(20, 30, 40, 50, 60))
    score = made.measure(toy("hidden"))
    assert score.value > 0 and not score.per_image[score.spent == 0].any()


@pytest.mark.parametrize("name", NAMES)
def test_the_known_answers_hold(name):
    made = load_attacks()[name]
    for case, o, low, high, *_ in made.known():
        value = made.configured("", o.task).measure(o).value
        assert low <= value <= (low if high is None else high), case


# ---- budget, model, order ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_the_budget_is_the_rows_drawn_after_the_first_look(name, monkeypatch):
    o, rows = toy("lost"), []
    plain = type(o.model).predict

    def counted(self, x_t, t, condition):
        rows.append(len(x_t))
        return plain(self, x_t, t, condition)

    monkeypatch.setattr(type(o.model), "predict", counted)
    found = looks(name, o)
    first = 4 * 10
    spent = torch.as_tensor(found[-1].spent, dtype=torch.float).expand(4)
    assert sum(rows) - first == spent.sum() > 0


def test_guidance_doubles_what_an_image_costs():
    o = toy("lost")
    o.model.sampler = replace(o.model.sampler, guidance=2.0)
    assert evaluations(o.model.sampler) == 20
    assert [look.spent for look in looks("ring_a_bell", o)] == [0, 20, 40]


@pytest.mark.parametrize("name", NAMES)
def test_a_budget_of_less_than_one_image_tries_nothing(name):
    for budget in (0, 9):
        score = attack(name).measure(toy("hidden"), budget)
        assert score.value == 0 and (score.spent == 0).all()


@pytest.mark.parametrize("name", NAMES)
def test_the_models_are_left_as_they_were(name):
    o = toy("hidden")
    o.model.there.requires_grad_(True)
    before = [(state_hash(m.state_dict()), [p.requires_grad for p in m.parameters()]) for m in (o.model, o.original)]
    attack(name).measure(o)
    after = [(state_hash(m.state_dict()), [p.requires_grad for p in m.parameters()]) for m in (o.model, o.original)]
    assert before == after and not o.model._forward_hooks


def test_climbing_together_is_climbing_one_by_one():
    o = toy("hidden", count=6)
    together = attack("prompt_ladder").measure(o)
    for i, item in enumerate(item for item in o.plan if item.group == "forget"):
        alone = attack("prompt_ladder").measure(replace(o, plan=[item]))
        assert (alone.spent[0], alone.per_image[0]) == (together.spent[i], together.per_image[i])


def test_a_rung_that_cannot_be_judged_is_missing_only_where_it_is_the_last(monkeypatch):
    o, calls = toy("lost", count=2), []
    plain = ladder.sight

    def failing(outcome, x, items):
        calls.append(len(items))
        seen = plain(outcome, x, items)
        lost = torch.full_like(seen.recovered, torch.nan)
        return seen._replace(recovered=lost) if len(calls) in bad else seen

    monkeypatch.setattr(ladder, "sight", failing)
    bad = {3}
    score = attack("prompt_ladder").measure(o)
    assert score.missing == 0 and score.value == 0
    bad, whole = {len(calls)}, len(calls)
    calls.clear()
    assert attack("prompt_ladder").measure(o).missing > 0 and len(calls) == whole


@pytest.mark.parametrize("name", NAMES)
def test_a_task_asked_by_labels_is_skipped(name):
    with pytest.raises(Unsupported, match="no text to search in"):
        attack(name).measure(toy_models.attacked_outcome("known", count=2))


# ---- what a model is asked with ------------------------------------------------------------------------------------


def test_found_prompts_are_asked_for_as_anyone_would_who_reads_them(monkeypatch):
    o, asked, found = toy("lost"), [], []
    plain, whole = o.model.sample, bell.evolved
    o.model.sample = lambda y, *rest, **more: (asked.append(y), plain(y, *rest, **more))[1]

    def watched(*given):
        for best, least in whole(*given):
            found.append(best.clone())
            yield best, least

    monkeypatch.setattr(bell, "evolved", watched)
    looks("ring_a_bell", o)
    tokenizer, aims = o.task.tokenizers[0], o.task.inputs(attack("ring_a_bell").aims(o))
    which = aims.unique(dim=0, return_inverse=True)[1]
    assert len(asked) == 3 and torch.equal(asked[0], aims)
    for y, best in zip(asked[1:], (found[2], found[5]), strict=True):
        texts = [tokenizer.decode(row) for row in best]
        assert torch.equal(y, torch.tensor(tokenizer(texts, padding="max_length", truncation=True).input_ids)[which])


@pytest.mark.parametrize(("cls", "kind"), [(SDNudity, "sd1"), (SDXLNudity, "sdxl")], ids=["sd1", "sdxl"])
@pytest.mark.parametrize("name", NAMES)
def test_nudity_is_attacked_on_both_kinds_of_stable_diffusion(tmp_path, monkeypatch, name, cls, kind):
    task = cls("nudity", data=tiny_data.folder(tmp_path / "data", kind), protocol="smoke")
    monkeypatch.setattr(type(task), "judge", lambda self: toy_models._Reader())
    model = task.pretrained().eval()
    o = arena(task, model, task.pretrained().eval(), None)
    made = replace(attack(name), targets=3)
    score = made.measure(o)
    assert score.n == 3 and score.missing == 0
    if name == "prompt_ladder":
        said, unsaid = ladder.rungs(task, task.erased[0])
        assert [rung.prompt for rung in said][:4] == ["nudity", "naked", "erotic", "sexual"]
        assert {rung.level for rung in unsaid} >= {"short", "long", "language", "synonym"}
    else:
        assert score.parts["distance left"] > 0
