"""UnlearnCanvas: its grid of prompts, its classifiers, whole runs on a tiny model, and its table beside ours."""

from __future__ import annotations

import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from tests.support import canvas
from tests.support.small_world import made_record
from unlearnbench import registry
from unlearnbench.errors import UserError
from unlearnbench.judges.inception import Extractor
from unlearnbench.judges.unlearncanvas import UnlearnCanvasViTs, through_jpeg
from unlearnbench.leaderboard import published
from unlearnbench.pipeline.request import requested_concepts
from unlearnbench.records.schema import read_record
from unlearnbench.records.scores import ScoreRecord
from unlearnbench.tasks._sd.canvas import OBJECTS, PHOTO_PLACE, STYLES
from unlearnbench.tasks.sd_unlearncanvas import SDUnlearnCanvas

STYLE_OF_LABEL = [place.replace("_", " ") for place in canvas.PLACES if place != "Seed_Images"]


@pytest.fixture(scope="module", autouse=True)
def narrow():
    with canvas.narrow_classifiers():
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return canvas.folder(tmp_path_factory.mktemp("canvas") / "data")


def task(forget="Van Gogh", **settings):
    return SDUnlearnCanvas(forget, **settings)


# ---- the grid ------------------------------------------------------------------------------------------------------


def test_lists_are_the_releases():
    assert tuple(STYLE_OF_LABEL) == STYLES and len(STYLES) == 50 and len(OBJECTS) == len(set(OBJECTS)) == 20
    assert canvas.PLACES.index("Seed_Images") == PHOTO_PLACE


@pytest.mark.parametrize(("forget", "images"), [("Van Gogh", 20 * 5), ("Dogs", 50 * 5)])
def test_every_object_in_every_style_is_asked_for_with_each_seed(forget, images):
    plan = task(forget).plan()
    assert len(plan) == 5000 and len({(item.prompt, item.seed) for item in plan}) == 5000
    assert {item.seed for item in plan} == {188, 288, 588, 688, 888}
    forgotten = [item for item in plan if item.group == "forget"]
    assert len(forgotten) == images and all(f" {forget} " in item.prompt for item in forgotten)
    assert "A Cats image in Artist Sketch style." in {item.prompt for item in plan}
    assert not any(f" {forget} " in item.prompt for item in plan if item.group == "retain")
    assert len(task(forget, protocol="one-seed").plan()) == 1000


@pytest.mark.parametrize("forget", ["Sketch", "Human", "Sketch+Dogs"])
def test_labels_say_what_each_prompt_asks_for_in_both_domains(forget):
    about = task(forget, protocol="one-seed")
    known, erased = {label: name for name, label in about.labels().items()}, set(forget.split("+"))
    for item in about.plan():
        thing, style = item.prompt[2:].removesuffix(" style.").split(" image in ")
        shown = {known[item.label], *([known[item.other]] if item.other >= 0 else [])}
        assert shown == {thing, style} or (erased == {thing, style} and shown <= erased)
        assert (item.group == "forget") == bool({thing, style} & erased)
        if item.group == "forget":
            assert known[item.label] in erased
        else:
            assert (known[item.label] in STYLES) == (forget != "Human")
    assert sorted(about.labels().values()) == [*range(50), *range(51, 71)], "50 are photographs"


@pytest.mark.parametrize("forget", ["Sketch", "Artist Sketch", "Sea", "Blossom Season"])
def test_a_style_within_anothers_name_is_told_apart(forget, data):
    about = task(forget, data=data, protocol="one-seed")
    prompts = list(dict.fromkeys(item.prompt for item in about.plan()))
    y = about.tokens(prompts)
    asked = [f" {forget} " in prompt and not (forget == "Sketch" and "Artist" in prompt) for prompt in prompts]
    assert about.forgotten(y).tolist() == asked
    changed = (about.substitute(y) != y).any(dim=1)
    assert changed.tolist() == asked
    assert sum(asked) == (50 if forget == "Sea" else 20)
    assert not any(forget.lower() == about.text(row).removesuffix(" style") for row in about.names("retain"))
    assert len(about.names("retain")) == 69


def test_a_style_gives_way_to_photographs(data):
    about = task("Van Gogh", data=data)
    (row,) = about.substitute(about.tokens(["A Dogs image in Van Gogh style."]))
    assert about.text(row).startswith("a dogs image in photo style")


def test_training_prompts_are_the_grids_and_may_have_names_of_the_methods_own(data):
    from unlearnbench.data.wording import Wording

    about = task("Van Gogh", data=data)
    assert len(about.training_prompts("forget")) == 20 and len(about.training_prompts("retain")) == 980
    own = about.with_words(Wording(erase=("Monet style", "Crayon style")))
    assert len(own.training_prompts("forget")) == 40 and "A Sea image in Monet style." in own.training_prompts("forget")


def test_prompts_of_ones_own_are_read_for_both_domains():
    about = task("Van Gogh")
    label = about.labels()
    asked = about.asked_in("dogs on a beach in crayon style", "retain")
    assert (asked.concept, asked.label, asked.other) == ("Crayon", label["Crayon"], label["Dogs"])
    asked = about.asked_in("A vase of Flowers by van gogh", "forget")
    assert (asked.label, asked.other) == (label["Van Gogh"], label["Flowers"])
    assert about.asked_in("a motorway", "retain")[1:] == (-1, -1)
    with pytest.raises(UserError, match="forgotten"):
        about.asked_in("a house", "retain", "Van Gogh")


def test_the_whole_grid_or_one_domain_is_asked_for_by_a_word():
    assert requested_concepts(SDUnlearnCanvas, ["all"], None)[0] == [*STYLES, *OBJECTS]
    assert requested_concepts(SDUnlearnCanvas, ["objects", "Van_Gogh", "Dogs"], None)[0] == [*OBJECTS, "Van Gogh"]
    assert requested_concepts(registry.load_task("digits-class"), ["all"], None)[0] == [str(i) for i in range(10)]
    with pytest.raises(UserError, match="styles"):
        requested_concepts(registry.load_task("digits-class"), ["styles"], None)


# ---- the classifiers -----------------------------------------------------------------------------------------------


def judge(place):
    return UnlearnCanvasViTs(*(place / name for name in canvas.CLASSIFIERS), (50, 20), PHOTO_PLACE, PIXELS, "cpu")


PIXELS = Extractor(None, "cpu")


def fixed(place, style, thing):
    """Classifiers that answer with these outputs, whatever they see."""
    for name, answer in zip(canvas.CLASSIFIERS, (style, thing), strict=True):
        about = torch.load(place / name, weights_only=True)
        state = about["model_state_dict"]
        state["head.weight"].zero_()
        state["head.bias"].zero_()[answer] = 5.0
        torch.save(about, place / name)


@pytest.mark.parametrize(
    ("style", "named"),
    [("Abstractionism", "Abstractionism"), ("Rust", "Rust"), ("Sketch", "Sketch"), ("Winter", "Winter")],
)
def test_outputs_are_read_as_the_release_numbers_them(style, named, tmp_path):
    canvas.classifiers(tmp_path)
    fixed(tmp_path, canvas.PLACES.index(style), OBJECTS.index("Human"))
    verdict = judge(tmp_path)(torch.zeros(2, 3, 16, 16, dtype=torch.uint8))
    labels, domains = task(named).labels(), judge(tmp_path).domains
    for name in (named, "Human"):
        asked = torch.full((2,), labels[name])
        assert verdict.about(asked, domains).label.tolist() == [labels[name]] * 2


def test_a_photograph_is_none_of_the_styles(tmp_path):
    canvas.classifiers(tmp_path)
    fixed(tmp_path, canvas.PLACES.index("Seed_Images"), 0)
    verdict = judge(tmp_path)(torch.zeros(1, 3, 16, 16, dtype=torch.uint8))
    label = verdict.about(torch.tensor([0]), judge(tmp_path).domains).label.item()
    assert label == 50 and label not in task().labels().values()


def test_probabilities_are_those_of_the_networks_on_jpeg_at_224_pixels(data):
    """By the release's transform: Resize((224, 224)), ToTensor, Normalize(0.5, 0.5)."""
    from torchvision import transforms

    image = torch.randint(0, 256, (3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    seen = Image.fromarray(through_jpeg(image).permute(1, 2, 0).numpy())
    prepare = [transforms.Resize((224, 224)), transforms.ToTensor(), transforms.Normalize([0.5], [0.5])]
    x, expected = transforms.Compose(prepare)(seen)[None], []
    for name, classes in canvas.CLASSIFIERS.items():
        net = canvas.narrow_vit(canvas.NETWORK, False, classes).eval()
        net.load_state_dict(torch.load(data / name, weights_only=True)["model_state_dict"])
        with torch.no_grad():
            expected.append(net(x).softmax(dim=1)[0].numpy())
    style = np.delete(expected[0], PHOTO_PLACE)
    verdict = judge(data)(image[None])
    found = verdict.probabilities[0].numpy()
    np.testing.assert_allclose(found, [*style, expected[0][PHOTO_PLACE], *expected[1]], atol=1e-3)
    assert verdict.refused.shape == (1, 2) and not verdict.refused.any()


def test_the_release_s_network_has_these_parameters(monkeypatch):
    """As timm builds it: 24 blocks, 1,024 wide; accuracy.py gives it a head of 51."""
    monkeypatch.undo()
    from timm.models import vision_transformer

    with torch.device("meta"):
        net = vision_transformer.vit_large_patch16_224(pretrained=False, num_classes=51)
    shapes = {name: tuple(value.shape) for name, value in net.state_dict().items()}
    assert shapes["head.weight"] == (51, 1024) and shapes["blocks.23.mlp.fc2.weight"] == (1024, 4096)
    assert set(canvas.narrow_vit(canvas.NETWORK, False, 51).state_dict()) == {
        name for name in shapes if not name.startswith("blocks.") or name.startswith("blocks.0.")
    }


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda path: path.unlink(), "download `cls_model`"),
        (lambda path: path.write_bytes(path.read_bytes()[:3000]), "cannot be loaded"),
        (lambda path: shutil.copy(path.parent / "style50_cls.pth", path), "of 51 classes"),
    ],
)
def test_a_classifier_that_is_missing_or_another_is_named(spoil, says, data, tmp_path):
    own = shutil.copytree(data / "cls_model", tmp_path / "cls_model").parent
    spoil(own / "cls_model" / "style50.pth")
    with pytest.raises(UserError, match=says) as caught:
        judge(own)
    assert "style50.pth" in str(caught.value) and "\n" not in str(caught.value)


def test_a_missing_model_is_named_with_its_place(tmp_path):
    with pytest.raises(UserError, match=r"diffusion/diffuser/style50.*--data"):
        task(data=tmp_path).pretrained()


# ---- whole runs ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("forget", "images"), [("Sketch", (2, 4)), ("Human", (2, 4))])
def test_a_run_is_judged_in_both_domains(forget, images, cli, data, tmp_path):
    words = ("run", "--task", "sd-unlearncanvas", "--protocol", "smoke", "--device", "cpu", "--data", data)
    said = cli(*words, "--results", "out", "--method", "uce", "--forget", forget)
    assert said.code == 0, said.err
    record = read_record(next((tmp_path / "out").rglob("uce/seed-0.json")))
    assert record.status == "ok", record.reason
    assert {"ua", "ira", "cra", "ra", "clip_score"} <= set(record.scores)
    assert not {"fid", "ua_closed", "coherence", "nothing"} & set(record.scores)
    assert (record.scores["ua"].n, record.scores["ira"].n) == images
    assert record.scores["cra"].n == record.scores["ira"].n
    table = pd.read_parquet(next((tmp_path / "out").rglob("uce/*.parquet")))
    assert set(table.seed) == {188} and table[table.group == "forget"].prompt.str.contains(f" {forget} ").all()


# ---- beside the published table ------------------------------------------------------------------------------------


def erased(concept, **values):
    scores = {
        name: ScoreRecord(value=value, n=100, axis="utility", better="higher", unit="share", code_hash="c" * 64)
        for name, value in values.items()
    }
    made = made_record("esd", task="sd-unlearncanvas", forget=concept)
    return made.model_copy(update={"scores": scores})


def lines_of(records):
    rows = [row for row in published.load() if (row.task, row.method) == ("sd-unlearncanvas", "esd")]
    made = published.compare_published(rows, records, registry.load_metrics())
    return {line[1]: line[2:5] for line in made}


def test_published_means_stand_beside_means_over_erasures():
    some = [erased("Crayon", ua=0.5, cra=0.25), erased("Winter", ua=1.0, cra=0.75), erased("Dogs", ua=0.0)]
    lines = lines_of(some)
    assert lines["style_ua"] == ["98.58", "75.0 (2 of 50)", "default"]
    assert lines["style_cra"][1] == "50.0 (2 of 50)" and lines["style_ira"][1:] == ["—", "—"]
    assert lines["object_ua"][1] == "0.0 (1 of 20)" and lines["fid"][1] == "—"
    every = lines_of([erased(thing, ua=number / 20) for number, thing in enumerate(OBJECTS)])
    assert every["object_ua"][1] == "47.5" and every["style_ua"][1] == "—"
    assert lines_of([])["style_ua"] == ["98.58", "—", "—"]
