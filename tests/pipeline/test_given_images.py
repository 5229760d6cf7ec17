"""`score --images`: what was drawn elsewhere is judged as it is, and what cannot be scored is said with the reason."""

import io
import json
import shutil
import zipfile
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.support import tiny_data
from unlearnbench.data import image_files
from unlearnbench.pipeline.given_images import GivenImage, prompts_of_names, with_descriptions
from unlearnbench.tasks.digits_class import DigitsClass
from unlearnbench.tasks.digits_class import splits as digit_splits

TASK = DigitsClass("3")


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """Held-out digits as files: some of the threes are no threes; one file is broken, some are what a Mac adds."""
    folder = tmp_path_factory.mktemp("drawn") / "set"
    x, y = digit_splits()["reference"]
    pixels, taken = TASK.to_uint8(x).permute(0, 2, 3, 1).numpy(), {}
    for i in range(len(y)):
        digit = int(y[i])
        taken.setdefault(digit, []).append(pixels[i])
    wanted = {"forget": [*taken[3][:6], *taken[8][:2]]} | {f"retain/{d}": taken[d][:3] for d in (0, 4, 7)}
    for place, images in wanted.items():
        (folder / place).mkdir(parents=True)
        for number, image in enumerate(images):
            Image.fromarray(image).save(folder / place / f"{number}.png")
    (folder / "retain/4/cut.png").write_bytes((folder / "retain/4/0.png").read_bytes()[:60])
    for litter in (".DS_Store", "forget/._0.png", "notes.txt"):
        (folder / litter).write_bytes(b"x")
    (folder / "forget/movie.heic").write_bytes(b"x")
    return folder


def scored(cli, *words, task="digits-class"):
    said = cli("score", "--task", task, *words)
    assert said.code == 0, said.err
    return said, json.loads(Path("scores.json").read_text(encoding="utf-8"))


def judged_by_hand(folder, digit):
    images = [np.asarray(Image.open(path).convert("RGB")) for path in sorted(folder.glob("?.png"))]
    labels = TASK.judge()(torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)).label
    return (labels == digit).double()


def test_values_are_the_judges_and_what_is_left_out_is_counted(drawn, cli):
    said, found = scored(cli, "--images", drawn)
    still = judged_by_hand(drawn / "forget", 3)
    assert 0 < still.mean() < 1
    assert found["scores"]["ua"]["value"] == pytest.approx(1 - still.mean().item())
    kept = torch.cat([judged_by_hand(drawn / f"retain/{digit}", digit) for digit in (0, 4, 7)])
    assert found["scores"]["ra"]["value"] == pytest.approx(kept.mean().item())
    assert found["images"] == {"forget": 8, "retain": 9} and found["scores"]["ra"]["n"] == 9
    assert sorted(path.rpartition("set/")[2] for path in found["left_out"]) == ["forget/movie.heic", "retain/4/cut.png"]
    assert "left out: 2 files" in said.out
    assert found["scores"]["fid"]["value"] is not None, "the digits' reference images are shipped"


def test_every_metric_and_attack_is_run_or_has_a_reason(drawn, cli):
    from unlearnbench import registry

    said, found = scored(cli, "--images", drawn)
    every = {*registry.metrics(), *registry.attacks()}
    assert {*found["scores"], *found["not_run"]} == every and not {*found["scores"]} & {*found["not_run"]}
    assert "cost" in found["not_run"]["unlearn_time"] and "attacks a model" in found["not_run"]["relearn"]
    for name in found["not_run"]:
        assert name in said.out


def test_it_says_that_it_is_no_record_and_no_leaderboard_reads_it(drawn, cli, tmp_path):
    (tmp_path / "results").mkdir()
    said, found = scored(cli, "--images", drawn)
    assert "not a record" in said.out and found["kind"] == "scores of given images"
    shutil.copy("scores.json", tmp_path / "results/seed-0.json")
    board = cli("leaderboard", tmp_path / "results")
    assert board.code != 0 or "given" not in board.out


def test_a_zip_from_a_mac_scores_as_its_folder(drawn, cli, tmp_path):
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        for path in sorted(drawn.rglob("*")):
            if path.is_file():
                archive.write(path, f"set/{path.relative_to(drawn)}")
        archive.writestr("__MACOSX/set/forget/._0.png", b"x")
    (_, folder), (_, packed) = scored(cli, "--images", drawn), scored(cli, "--images", "set.zip")
    assert packed["scores"] == folder["scores"] and packed["images"] == folder["images"]


def test_groups_may_be_given_folder_by_folder_and_concepts_by_a_table(drawn, cli, tmp_path):
    flat = tmp_path / "flat"
    flat.mkdir()
    rows = ["image,concept"]
    for digit in (0, 4, 7):
        for number in range(3):
            shutil.copy(drawn / f"retain/{digit}/{number}.png", flat / f"{digit}-{number}.png")
            rows.append(f"{digit}-{number}.png,{digit}")
    (tmp_path / "asked.csv").write_text("\n".join(rows))
    sources = ("--images", f"forget={drawn}/forget", "--images", f"retain={flat}")
    _, whole = scored(cli, "--images", drawn)
    _, told = scored(cli, *sources, "--prompts", "retain=asked.csv")
    assert {name: told["scores"][name]["value"] for name in ("ua", "ra")} == {
        name: whole["scores"][name]["value"] for name in ("ua", "ra")
    }
    _, bare = scored(cli, *sources)
    assert "9 of 9 retain images have no known concept" in bare["not_run"]["ra"] and "ua" in bare["scores"]


def test_photographs_of_any_shape_are_cropped_and_counted(drawn, cli, tmp_path):
    folder = tmp_path / "photos/forget"
    folder.mkdir(parents=True)
    greys = np.linspace(0, 65535, 12 * 8, dtype=np.uint16).reshape(8, 12)
    Image.fromarray(greys).save(folder / "wide.png")
    Image.new("RGBA", (8, 8), (0, 0, 0, 0)).save(folder / "clear.png")
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue")]
    frames[0].save(folder / "moving.GIF", save_all=True, append_images=frames[1:])
    said, found = scored(cli, "--images", "photos")
    assert found["images"] == {"forget": 3}
    assert found["changed"] == {
        "transparent, put on white": 1,
        "animated, the first frame taken": 1,
        "resized to 8x8": 1,
        "not square, cropped to the centre": 1,
    }
    assert "1 transparent, put on white" in said.out


def images(*names, group="retain"):
    return [GivenImage(Path("set"), name, group) for name in names]


def test_rows_find_their_images_by_path_by_name_and_by_case_number(tmp_path):
    (tmp_path / "a.csv").write_text('image,prompt\nretain/b.png,"a cat, asleep"\na.png,a dog\n')
    found = with_descriptions(images("retain/a.png", "retain/b.png"), [str(tmp_path / "a.csv")])
    assert [image.prompt for image in found] == ["a dog", "a cat, asleep"]
    # As rohitgandikota/erasing@3b67288, eval-scripts/generate-images.py, names its images: case_number, _, count.
    (tmp_path / "c.csv").write_text("case_number,prompt,evaluation_seed\n17,a dog,1\n4,a cat,2\n99,not drawn,3\n")
    found = with_descriptions(images("retain/4_0.png", "retain/17_0.png", "retain/17_1.png"), [str(tmp_path / "c.csv")])
    assert [image.prompt for image in found] == ["a cat", "a dog", "a dog"]


def test_prompts_from_names_where_that_is_asked_for():
    found = prompts_of_names(images("retain/a_red_car_0007.png", "retain/12_two dogs.jpg", "retain/x/Paris.png"))
    assert [image.prompt for image in found] == ["a red car", "two dogs", "Paris"]


@pytest.mark.parametrize(
    ("table", "words", "said"),
    [
        ("image,prompt\nnone.png,a\n", ("--images", "set"), "row 1, names 'none.png'"),
        ("image,prompt\n0.png,a\n", ("--images", "set"), "images are called: add the folder"),
        ("prompt\na\n", ("--images", "set"), "image"),
        (None, ("--images", "set/forget"), "say --images forget=set/forget"),
        (None, ("--images", "nowhere"), "nowhere is no folder and no .zip"),
        (None, ("--images", "forgte=set"), "did you mean forget"),
        (None, ("--images", "set/retain"), "unknown group of images in set/retain: '0'"),
        (None, ("--images", "set", "--out", "keep.json"), "keep.json is there already"),
        (None, ("--images", "set", "--forget", "4"), "4 is forgotten: move it to the other group"),
    ],
)
def test_what_cannot_be_used_is_one_line(drawn, cli, tmp_path, table, words, said):
    (tmp_path / "set").symlink_to(drawn)
    (tmp_path / "keep.json").write_text("{}")
    more = ()
    if table is not None:
        (tmp_path / "asked.csv").write_text(table)
        more = ("--prompts", "asked.csv")
    shown = cli("score", "--task", "digits-class", *words, *more)
    assert shown.code == 2 and len(shown.errors) == 1 and said in shown.err
    assert (tmp_path / "keep.json").read_text() == "{}" and not (tmp_path / "scores.json").exists()


@pytest.fixture
def nudity(tmp_path):
    """Two groups of noise, and prompts for one of them."""
    random = np.random.RandomState(0)
    for group, count in (("forget", 3), ("retain", 2)):
        (tmp_path / "set" / group).mkdir(parents=True)
        for number in range(count):
            noise = Image.fromarray(random.randint(0, 256, (64, 64, 3), dtype=np.uint8))
            noise.save(tmp_path / "set" / group / f"{number}.jpg")
    (tmp_path / "asked.csv").write_text("image,prompt\n0.jpg,a secret prompt\n1.jpg,another\n")
    return tmp_path


@pytest.mark.skipif(find_spec("nudenet") is None, reason="the extra [nudity] is not installed")
def test_nudity_is_scored_with_nothing_fetched_and_the_rest_says_what_it_lacks(cli, nudity, fresh_store):
    _, found = scored(cli, "--images", "set", task="sd-nudity")
    assert found["scores"]["nudity_rate"]["n"] == 3 and found["scores"]["ua"]["value"] == 1
    assert "fetch" in found["not_run"]["fid"] and "fetch" in found["not_run"]["clip_score"]
    assert found["changed"] == {"resized to 512x512": 5}


@pytest.mark.skipif(find_spec("nudenet") is None, reason="the extra [nudity] is not installed")
def test_clip_scores_need_prompts_and_none_is_written(cli, nudity, fresh_store):
    tiny_data.clip(nudity / "data/clip-vit-b-32", 0)
    _, bare = scored(cli, "--images", "set", "--data", "data", task="sd-nudity")
    assert "2 of 2 retain images have no prompt" in bare["not_run"]["clip_score"]
    said, told = scored(cli, "--images", "set", "--data", "data", "--prompts", "retain=asked.csv", task="sd-nudity")
    assert told["scores"]["clip_score"]["n"] == 2
    assert "secret" not in json.dumps(told) and "secret" not in said.out


def test_a_bomb_in_a_zip_is_left_out(cli, drawn, tmp_path, monkeypatch):
    assert image_files.LARGEST_FILE == 256 * 2**20
    monkeypatch.setattr(image_files, "LARGEST_FILE", 2**20)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(drawn / "forget/0.png", "forget/0.png")
        archive.writestr("forget/bomb.png", bytes(2**20 + 1))
    (tmp_path / "set.zip").write_bytes(buffer.getvalue())
    _, found = scored(cli, "--images", "set.zip")
    assert found["images"] == {"forget": 1}
    assert list(found["left_out"].values()) == ["it is larger than 1 MiB"]
