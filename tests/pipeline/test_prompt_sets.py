"""`run --prompts`: the user's own prompts are drawn, paired and scored beside the protocol's numbers."""

import json

import pytest
import torch

import unlearnbench
from unlearnbench.data.prompt_sets import own_seed, prompt_files
from unlearnbench.errors import UserError
from unlearnbench.hashing import file_hash
from unlearnbench.launch.jobs import Cut, jobs_of
from unlearnbench.launch.plan import still_to_do
from unlearnbench.pipeline.prompt_sets import plan_of
from unlearnbench.pipeline.request import RunRequest
from unlearnbench.records.schema import read_record
from unlearnbench.tasks.digits_text import DigitsText

FORGET = (
    'prompt,seed,guidance,group\na red seven,11,,plain\nthe number seven,12,2.5,plain\n"a heptad, please",13,,odd\n'
)
RETAIN = "prompt\na red three\na blue five\na red three\n"
OPTIONS = {"task": "digits-text", "protocol": "smoke", "seeds": [0]}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A run without prompts, and the same with them."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "asks.csv").write_text(FORGET)
    (folder / "keeps.csv").write_text(RETAIN)
    sets = [f"forget={folder}/asks.csv", f"retain={folder}/keeps.csv", f"attack={folder}/asks.csv"]
    (plain,) = unlearnbench.run("uce", results=folder / "results", **OPTIONS)
    text = plain.path(folder / "results").read_text()
    (scored,) = unlearnbench.run("uce", results=folder / "results", prompts=sets, **OPTIONS)
    (original,) = unlearnbench.run("original", results=folder / "results", prompts=sets[:2], **OPTIONS)
    return folder, plain, text, scored, original


def test_the_protocols_numbers_stay_what_they_are(world):
    folder, plain, text, scored, _ = world
    assert scored.result() == plain.result()
    assert scored.key == plain.key and scored.created == plain.created
    assert "prompt_sets" not in json.loads(text), "a record without own prompts has the fields that it always had"
    assert read_record(scored.path(folder / "results")) == scored


def test_each_group_has_its_own_counts_and_the_file_its_hash(world):
    folder, _, _, scored, _ = world
    assert list(scored.prompt_sets) == ["attack-asks", "forget-asks", "retain-keeps"]
    asks = scored.prompt_sets["forget-asks"]
    assert asks.sha256 == file_hash(folder / "asks.csv")
    assert {name: group.prompts for name, group in asks.groups.items()} == {"plain": 2, "odd": 1}
    assert {paired.score.n for paired in asks.groups["plain"].scores.values()} == {2}
    assert {"ua", "coherence", "p_forget"} <= set(asks.groups["plain"].scores)
    kept = scored.prompt_sets["retain-keeps"].groups["keeps"].scores
    assert {"ra", "cra"} <= set(kept) and kept["ra"].score.n == 3 and "ua" not in kept
    assert "fid" in scored.prompt_sets["retain-keeps"].not_scored
    assert scored.prompt_sets["attack-asks"].groups == asks.groups, "attacks ask for what is forgotten"
    assert "seven" not in json.dumps(scored.model_dump(mode="json", include={"prompt_sets"}))


def test_methods_are_paired_with_the_originals_images(world):
    _, _, _, scored, original = world
    for name, found in original.prompt_sets.items():
        for group, part in found.groups.items():
            for metric, alone in part.scores.items():
                paired = scored.prompt_sets[name].groups[group].scores[metric]
                assert alone.original is None and alone.difference is None
                assert paired.original == alone.score.value
                if paired.score.value is not None:
                    assert paired.difference == pytest.approx(paired.score.value - paired.original, abs=1e-6)
    plain = scored.prompt_sets["forget-asks"].groups["plain"].scores["ua"]
    assert plain.interval is not None and plain.interval[0] < plain.interval[1]


def test_images_are_those_of_the_protocols_sampler_with_the_files_seed_and_guidance(world):
    """Drawn here from the original itself and judged one by one."""
    _, _, _, _, original = world
    task = DigitsText("seven", protocol="smoke")
    model, judge, said = task.pretrained().eval(), task.judge(), []
    for prompt, seed, guidance in (("a red seven", 11, 3.0), ("the number seven", 12, 2.5)):
        sampler = type(model.sampler)(**{**vars(model.sampler), "guidance": guidance})
        with torch.inference_mode():
            x = model.decode(model.sample(task.tokens([prompt]), [seed], sampler=sampler))
        verdict = judge(task.to_uint8(x)).about(torch.tensor([7]), judge.domains)
        said.append(float(verdict.probabilities[0, 7]))
    found = original.prompt_sets["forget-asks"].groups["plain"].scores["p_forget"].score.value
    assert found == pytest.approx(sum(said) / 2, abs=1e-4)


def test_rows_without_a_seed_get_one_of_their_prompt_alone(world):
    folder, *_ = world
    spec = request(f"retain={folder}/keeps.csv").cells("cpu").asked[0]
    cell = spec.cell()
    (plan,) = plan_of(cell, cell.prompts[0]).values()
    assert [item.seed for item in plan] == [
        own_seed(0, "a red three", 0),
        own_seed(0, "a blue five", 0),
        own_seed(0, "a red three", 1),
    ]
    assert len({item.seed for item in plan}) == 3
    labels = DigitsText("seven").labels()
    assert [(item.label, item.other) for item in plan[:2]] == [
        (labels["three"], labels["red"]),
        (labels["five"], labels["blue"]),
    ]


def request(*prompts, **more):
    return RunRequest.of(method="uce", prompts=prompts, **{**OPTIONS, **more})


def test_what_is_there_already_is_not_drawn_again_and_jobs_know_it(world):
    folder, _, _, scored, _ = world
    results = folder / "results"

    def left(*sets):
        spec = request(*sets, results=results).cells("cpu").asked[0].anywhere()
        return still_to_do(jobs_of([spec], [], Cut()), results)

    sets = [f"forget={folder}/asks.csv", f"attack={folder}/asks.csv"]
    assert left() == left(*sets) == []
    (again,) = unlearnbench.run("uce", results=results, prompts=sets, **OPTIONS)
    assert again == scored
    (folder / "more.csv").write_text("prompt\nseven\n")
    assert len(left(*sets, f"forget={folder}/more.csv")) == 1


def test_another_content_of_a_file_replaces_nothing_without_being_told(world):
    folder, _, _, scored, _ = world
    (folder / "other").mkdir()
    (folder / "other/asks.csv").write_text("prompt\nseven\n")
    with pytest.raises(UserError, match=r"another content of asks\.csv"):
        unlearnbench.run("uce", results=folder / "results", prompts={"forget": folder / "other/asks.csv"}, **OPTIONS)
    assert read_record(scored.path(folder / "results")) == scored


@pytest.mark.parametrize(
    ("word", "text", "said"),
    [
        ("{}", "prompt\na\n", "say what it is for, such as --prompts forget="),
        ("forgte={}", "prompt\na\n", "did you mean forget"),
        ("forget={}", "prompt,seed\na,1\n,2\n", "row 2, has no prompt"),
        ("forget={}", "prompt,group\na,../up\n", "cannot be a name"),
        ("retain={}", "prompt,concept\na red three,zebra\n", "row 1: unknown concept"),
        ("retain={}", "prompt,concept\na red seven,seven\n", "row 1: seven is forgotten"),
        ("forget={}", "text\na\n", "prompt"),
    ],
)
def test_bad_files_are_one_line_that_names_file_and_row(word, text, said, tmp_path, cli):
    (tmp_path / "mine.csv").write_text(text)
    shown = cli(
        "run", "--task", "digits-text", "--method", "uce", "--protocol", "smoke", "--prompts", word.format("mine.csv")
    )
    assert shown.code == 2 and len(shown.errors) == 1 and said in shown.err.replace("\n", " ")
    assert "mine.csv" in shown.err


def test_tasks_of_labels_take_no_prompts(tmp_path):
    with pytest.raises(UserError, match="text-to-image"):
        RunRequest.of(method="uce", task="digits-class", prompts="forget=mine.csv")


def test_two_files_of_one_name_are_refused(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "mine.csv").write_text(f"prompt\n{folder}\n")
    words = [f"forget={tmp_path}/{folder}/mine.csv" for folder in ("a", "b")]
    with pytest.raises(UserError, match="two files mine"):
        prompt_files(words, takes_prompts=True, task="digits-text")
    assert len(prompt_files([words[0], words[1].replace("forget", "retain")], takes_prompts=True, task="t")) == 2


def test_a_prompt_without_a_known_concept_is_left_out_of_what_needs_one(tmp_path):
    from unlearnbench.pipeline.prompt_sets import UNLABELLED, _applicable

    (tmp_path / "mine.csv").write_text("prompt\na picture\n")
    cell = request(f"retain={tmp_path}/mine.csv").cells("cpu").asked[0].cell()
    kept, left_out = _applicable(cell, plan_of(cell, cell.prompts[0])["mine"])
    assert left_out["ra"] == UNLABELLED and "ra" not in kept
