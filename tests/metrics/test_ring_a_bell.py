"""Ring-A-Bell with its authors' pairs of prompts; and what was compared with their code.

Its search is tested in test_attack_black_box.py, together with the prompt ladder.
"""

from __future__ import annotations

import csv
import hashlib
import importlib
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tests.metrics.test_unlearndiffatk import model
from tests.support.fidelity import Constant, Difference, Fidelity, Repository
from unlearnbench.attacks.concept_pairs import WITH, WITHOUT, read_nudity_pairs
from unlearnbench.data.published_files import published_files
from unlearnbench.errors import Damaged, Unsupported, UserError
from unlearnbench.metrics.ring_a_bell import RingABell, all_but_special, published_concept
from unlearnbench.tasks.digits_text import DigitsText
from unlearnbench.tasks.sd_nudity import SDNudity

__all__ = ["model"]
data_published = importlib.import_module("unlearnbench.data.published_files")
COUNT = 50


def bare(i):
    """A row of the list with nudity, by the columns and oddities of the authors' file: spaces, None, other columns."""
    people, clothes = ("None", "cat") if i % 3 == 1 else (f"one{i}", "None" if i % 3 else "number")
    return {"case_number": i, "nudity": "red " if i % 2 else "a red", "people": people, "clothes": clothes,
            "location": f"in the photo {i}", "evaluation_seed": 7 + i}  # fmt: skip


def expected_prompt(i):
    row = bare(i)
    who = "" if row["people"] == "None" else f" {row['people']}"
    return f"{row['nudity']}{who}, {row['location']}"


@pytest.fixture
def lists(tmp_path, monkeypatch):
    """A folder with two lists of the authors' shape, in other words, that pass for the published ones."""
    rows = {
        WITH: [bare(i) for i in range(COUNT)],
        WITHOUT: [{"case_number": i, "prompt": f"one photo {i}", "evaluation_seed": 7 + i} for i in range(COUNT)],
    }
    files = {}
    for name, content in rows.items():
        assert tuple(content[0]) == published_files()[name].columns
        with (tmp_path / name).open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(content[0]))
            writer.writeheader()
            writer.writerows(content)
        body = (tmp_path / name).read_bytes()
        files[name] = published_files()[name]._replace(size=len(body), sha256=hashlib.sha256(body).hexdigest())
    monkeypatch.setattr(data_published, "published_files", lambda: files)
    return tmp_path


def test_each_pair_counts_as_often_as_the_authors_kept_it(lists):
    """250 copies in fives, without the 19 in whose images NudeNet saw nothing (Get_Concept_Vector.ipynb)."""
    pairs = read_nudity_pairs(lists)
    assert [pair.shown for pair in pairs] == [expected_prompt(i) for i in range(COUNT)]
    assert [pair.hidden for pair in pairs] == [f"one photo {i}" for i in range(COUNT)]
    copies = np.full(COUNT, 5)
    for i in (26, 3, 3, 29, 30, 7, 7, 34, 11, 12, 40, 40, 18, 18, 19, 19, 19, 21, 21):
        copies[i] -= 1
    assert [pair.copies for pair in pairs] == copies.tolist() and copies.sum() == 231


def test_the_concept_is_the_mean_over_all_copies(lists, model):
    task = SimpleNamespace(name="sd-nudity", folder=lists, tokens=model.tokens, device="cpu")
    total, count = 0, 0
    for pair in read_nudity_pairs(lists):
        for _ in range(pair.copies):
            shown, hidden = (model.embed(model.tokens([text])).states[0] for text in (pair.shown, pair.hidden))
            total, count = total + (shown - hidden).double(), count + 1
    torch.testing.assert_close(published_concept(model, task).double(), total / count, rtol=0, atol=1e-5)


def test_without_the_lists_it_refuses_and_names_the_command(tmp_path, lists):
    attack, task = RingABell().configured("released", SDNudity), SimpleNamespace(name="sd-nudity", folder=lists)
    attack.require_files(task)
    RingABell().require_files(SimpleNamespace(name="sd-nudity", folder=tmp_path / "none"))  # it needs no file
    (lists / WITHOUT).unlink()
    with pytest.raises(UserError) as caught:
        attack.require_files(task)
    line = str(caught.value)
    assert f"unlearnbench fetch {WITHOUT} --data {lists}" in line and "licence mit" in line and "\n" not in line
    (lists / WITH).rename(tmp_path / "aside")
    with pytest.raises(UserError, match=f"unlearnbench fetch {WITH} {WITHOUT} --data"):
        attack.require_files(task)
    (tmp_path / "aside").rename(lists / WITH)
    (lists / WITHOUT).write_text("case_number,prompt,evaluation_seed\n0,a,7\n")
    with pytest.raises(Damaged, match=WITHOUT):
        attack.require_files(task)
    with pytest.raises(Unsupported, match="no data folder"):
        attack.require_files(SimpleNamespace(name="toy"))


def test_released_tokens_are_all_from_1_on_but_special_ones(model):
    tokenizer = model.tokenizers[0]
    assert all_but_special(model).tolist() == [
        i for i in range(1, len(tokenizer)) if i not in (tokenizer.bos_token_id, tokenizer.eos_token_id)
    ]


def test_the_released_preset_is_for_nudity_alone():
    with pytest.raises(UserError, match="ring_a_bell@released is not for digits-text"):
        RingABell().configured("released", DigitsText)
    with pytest.raises(UserError, match=r"ring_a_bell has no published: .*not checked yet"):
        RingABell().configured("published", SDNudity)
    assert set(RingABell().settings()) == {
        "targets",
        "batch",
        "eta",
        "k",
        "population",
        "crossover",
        "mutation",
        "after",
    }


CODE = Repository("chiayi-hsu/Ring-A-Bell", "e4585ad")


def constant(field, value, cell, note=""):
    return Constant("released", "sd-nudity", field, value, CODE.at(*cell), note)


SEARCH, VECTOR = "InversePrompt.ipynb", "Get_Concept_Vector.ipynb"
FIDELITY = Fidelity(
    method="ring_a_bell",
    paper="Tsai et al., ICLR 2024; chiayi-hsu/Ring-A-Bell@e4585ad",
    constants=(
        constant("eta", 3.0, (SEARCH, 40), "cof"),
        constant("k", 16, (SEARCH, 39), "length"),
        constant("population", 200, (SEARCH, 35)),
        constant("crossover", 0.5, (SEARCH, 38)),
        constant("mutation", 0.25, (SEARCH, 37)),
        constant("after", (3000,), (SEARCH, 36), "generation; only the last best prompt is written"),
        constant("pairs", "published", (VECTOR, 126)),
        constant("vocabulary", "all but special", (SEARCH, 135), "ids from 1 to 49,405"),
    ),
    differences=(
        Difference(
            "released",
            "concept vector",
            4.9e-7,
            "test_the_concept_is_the_mean_over_all_copies",
            "the notebook's cell on its own lists with a tiny text encoder in float32; the task's captions give a "
            "vector with a cosine of -0.13 to it there",
        ),
        Difference(
            "released",
            "strings",
            0.0,
            "test_each_pair_counts_as_often_as_the_authors_kept_it",
            "the notebook's 231 prompts on each side",
        ),
        Difference(
            "released",
            "fitness",
            0.0,
            "test_each_generation_measures_the_squared_distance_to_the_moved_prompt",
            "token ids and fitness() of seven sequences",
        ),
    ),
    defects=(
        "Get_Concept_Vector.ipynb reads nudity_prompt.csv, which is Nudity_prompt.csv in the repository, and another "
        "list from a folder above: it does not run as it stands.",
        "With pandas 2 and later the word None in the list is read as no value, which the prompts then call nan.",
    ),
    departs="By default the pairs are the task's own captions, tokens are whole words, and a miniature has a smaller "
    "population. There is no published preset: the paper's settings are not checked yet.",
)
