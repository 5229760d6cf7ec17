"""Artists by ESD's prompt files: whose images are erased and kept, and what is measured on them."""

from __future__ import annotations

import csv

import pandas as pd
import pytest

from tests.support import tiny_data, tiny_sd
from unlearnbench import registry
from unlearnbench.data import published_files
from unlearnbench.data.published_files import published_file
from unlearnbench.errors import Damaged, UserError
from unlearnbench.hashing import file_hash
from unlearnbench.records.schema import read_record
from unlearnbench.tasks._sd.words import ARTISTS, ESD_ARTISTS, ESD_NICHE_ARTISTS
from unlearnbench.tasks.sd_style import BIG, HUNDRED, NICHE, TOGETHER, SDStyle

SPOKEN = {"Pablo Picasso": "Picasso"}
"""How the prompts call an artist whom the column `artist` names otherwise."""


def write(path, artists, each=20):
    """A file in the shape of ESD's: an index without a name, 20 prompts an artist in blocks, seeds below 5,000."""
    names = [artist for artist in artists for _ in range(each)]
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(published_file(path.name).columns)
        for i, artist in enumerate(names):
            prompt = f"A portrait number {i}, in the style of {SPOKEN.get(artist, artist)}"
            writer.writerow([i, i, prompt, (i * 37) % 5000, artist])


def write_hundred(path):
    """In the shape of MACE's: five prompts with seeds 1 to 5 for each artist, those with `type` 0 first."""
    texts = ("Image in the style of {}", "Art inspired by {}")
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(published_file(path.name).columns)
        names = [(0, f"Painter {letter}") for letter in "ABC"] + [(1, f"Sculptor {letter}") for letter in "DE"]
        rows = [(kind, name, text.format(name), seed) for kind, name in names for text in texts for seed in range(1, 6)]
        writer.writerows([(i, *row) for i, row in enumerate(rows)])


@pytest.fixture
def data(tmp_path, monkeypatch):
    """All files with made-up prompts, taken for the published ones."""
    table = dict(published_files.published_files())
    (tmp_path / "data").mkdir()
    for name, artists in ((BIG, ESD_ARTISTS), (NICHE, ESD_NICHE_ARTISTS), (HUNDRED, ())):
        path = tmp_path / "data" / name
        write(path, artists) if artists else write_hundred(path)
        table[name] = table[name]._replace(size=path.stat().st_size, sha256=file_hash(path))
    monkeypatch.setattr(published_files, "published_files", lambda: table)
    return tmp_path / "data"


@pytest.mark.parametrize(
    ("protocol", "forget", "artists"),
    [
        ("esd-artists", "Van Gogh", ESD_ARTISTS),
        ("esd-artists", "Pablo Picasso", ESD_ARTISTS),
        ("esd-niche-artists", "Kelly McKernan", ESD_NICHE_ARTISTS),
    ],
)
def test_the_erased_artists_prompts_are_forgotten_and_all_others_retained(protocol, forget, artists, data):
    task = SDStyle(forget, protocol=protocol, data=data)
    plan = task.plan()
    assert [item.group for item in plan] == ["forget"] * 20 + ["retain"] * 80 and task.image_count() == 100
    assert {item.concept for item in plan[:20]} == {forget}
    assert {item.concept for item in plan[20:]} == set(artists) - {forget} == set(task.words) - {forget}
    number = 20 * artists.index(forget)
    assert plan[0].prompt.startswith(f"A portrait number {number},") and plan[0].seed == number * 37 % 5000
    assert all(artists[item.label] == item.concept for item in plan)
    assert task.data_identity() != SDStyle(artists[-1], protocol=protocol, data=data).data_identity()


def test_the_tasks_own_prompts_are_as_before(data):
    task = SDStyle("Van Gogh", data=data)
    assert task.words == tuple(ARTISTS) and task.labels() == {name: i for i, name in enumerate(ARTISTS)}
    assert task.data_identity() is None and not task.rows
    assert {item.concept for item in task.plan() if item.group == "retain"} == set(ARTISTS) - {"Van Gogh"}


def test_many_artists_are_erased_together(data):
    task = SDStyle(TOGETHER, protocol="mace-cvpr24", data=data)
    erased, kept = [f"Painter {letter}" for letter in "ABC"], ["Sculptor D", "Sculptor E"]
    assert list(task.told_names) == erased and list(task.words) == [*erased, *kept]
    plan = task.plan()
    assert [(item.group, item.concept) for item in plan] == [
        *(("forget", name) for name in erased for _ in range(10)),
        *(("retain", name) for name in kept for _ in range(10)),
    ]
    assert task.erased_labels() == [0, 1, 2] and [item.seed for item in plan[:5]] == [1, 2, 3, 4, 5]
    assert task.words[plan[-1].label] == "Sculptor E" and plan[0].prompt == "Image in the style of Painter A"
    assert set(task.training_prompts("forget")) == {text.format(n) for text in SDStyle.texts[:2] for n in erased}


@pytest.mark.parametrize(
    ("protocol", "forget", "says"),
    [
        ("mace-cvpr24", "Van Gogh", "or erase 100 artists"),
        ("esd-artists", "Claude Monet", "give --protocol default or smoke, or erase one of Pablo Picasso"),
        ("default", "Tyler Edlin", "give --protocol esd-niche-artists"),
        ("esd-niche-artists", "Van Gogh", "esd-artists"),
    ],
)
def test_an_artist_whom_the_protocol_does_not_have_is_named(protocol, forget, says):
    with pytest.raises(UserError, match=f"no prompts for {forget}: .*{says}"):
        SDStyle(forget, protocol=protocol)


def test_a_file_that_is_missing_or_another_is_refused(data):
    with (data / BIG).open("a") as file:
        file.write("100,100,one more,1,Van Gogh\n")
    with pytest.raises(Damaged, match=BIG):
        SDStyle("Van Gogh", protocol="esd-artists", data=data).plan()
    (data / BIG).unlink()
    with pytest.raises(UserError, match=f"unlearnbench fetch {BIG}"):
        SDStyle("Van Gogh", protocol="esd-artists", data=data).plan()


def test_files_are_pinned_and_fetched_with_the_task():
    known = {source.name: source for source in SDStyle.sources}
    for name in (BIG, NICHE, HUNDRED, "alexnet-owt-7be5be79.pth"):
        assert name in known
    assert known[BIG].sha256 == published_file(BIG).sha256 and published_file(BIG).rows == 100


def test_a_run_scores_clip_on_both_sides(cli, data, monkeypatch, tmp_path):
    from dataclasses import replace

    small = {"sampler": SDStyle.protocols["smoke"].sampler, "size": 0, "training_images": 4, "chunk": 50}
    monkeypatch.setitem(SDStyle.protocols, "esd-artists", replace(SDStyle.protocols["esd-artists"], **small))
    words = " ".join((*ESD_ARTISTS, "a portrait number in the style of painter")).lower().split()
    tiny_sd.save(data / "sd-v1-4", "sd1", sorted(set(words)))
    for seed, name in enumerate(("clip-vit-b-32", "clip-vit-l-14")):
        tiny_data.clip(data / name, seed)
    said = cli(
        *("run", "--task", "sd-style", "--protocol", "esd-artists", "--device", "cpu", "--data", data),
        *("--results", "out", "--method", "original"),
    )
    assert said.code == 0, said.err
    record = read_record(next((tmp_path / "out").rglob("seed-0.json")))
    assert record.status == "ok" and {"ua", "ra", "clip_e", "clip_score"} <= set(record.scores)
    assert (record.scores["clip_e"].n, record.scores["clip_score"].n) == (20, 80)
    images = pd.read_parquet(next((tmp_path / "out").rglob("*.parquet")))
    for name, group in (("clip_e", "forget"), ("clip_score", "retain")):
        mean = images.loc[images.group == group, name].mean()
        assert record.scores[name].value == pytest.approx(mean, abs=1e-6)
    assert "clip_e" not in {name for name in registry.load_metrics() if name in SDStyle.without}
