"""`export`: a record's model as a folder that diffusers loads, a card that says what it is, and all that is refused."""

import re
import shlex
import shutil
import stat
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from markdown_it import MarkdownIt

from tests.support import tiny_sd
from tests.support.small_world import made_record, read_only, write_nudge
from unlearnbench import registry
from unlearnbench.data.concepts import Concept, read_concepts
from unlearnbench.errors import UserError
from unlearnbench.export import diffusers_folder as module
from unlearnbench.models.loading import load_stable_diffusion
from unlearnbench.pipeline import cell as cell_module
from unlearnbench.pipeline import runner, unlearning
from unlearnbench.records.schema import AttackRecord, read_record, write_record
from unlearnbench.storage.store import Store
from unlearnbench.tasks.digits_text import DigitsText
from unlearnbench.training import Diverged

OWN = ("run", "--task", "digits-text", "--protocol", "smoke", "--device", "cpu", "--results", "here")
RUN = (*OWN, "--forget", "seven")


@pytest.fixture(scope="module", params=["sd1", "sdxl"])
def world(request, tmp_path_factory):
    """A folder for --pretrained: the weights of both kinds are exported, the rest does not depend on the kind."""
    return tiny_sd.world(tmp_path_factory.mktemp(request.param) / "model", request.param)


@pytest.fixture(scope="module")
def recorded(world, tmp_path_factory):
    """Where the results of a run on it are kept."""
    return tmp_path_factory.mktemp("recorded") / "here"


@pytest.fixture
def record(cli, world, recorded):
    """The path of a record of UCE on it; the run is made once."""
    if not recorded.exists():
        said = cli(*RUN, "--pretrained", world, "--method", "uce", "--set", "lamb=0.1")
        assert said.code == 0, said.err
        Path("here").rename(recorded)
    shutil.copytree(recorded, "here")
    return next(Path("here").glob("digits-text/smoke/seven/uce*/seed-0.json"))


def predictions(model):
    y = model.tokens(["a photo of a red seven", "blue"])
    x = torch.randn(2, *model.shape, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        return model.eps(x, torch.tensor([10, 900]), y)


def test_the_folder_holds_the_unlearned_model(cli, world, record):
    from diffusers import DiffusionPipeline

    said = cli("export", record, "model", "--pretrained", world, "--device", "cpu")
    assert said.code == 0, said.err
    assert said.errors == []  # no library's bars either
    assert said.out.startswith("wrote model, a diffusers folder; model/README.md is its card")
    files = [file for file in Path("model").rglob("*") if file.is_file()]
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o644}
    assert not [file for file in files if str(world).encode() in file.read_bytes()]  # nothing of this machine
    again, original = predictions(load_stable_diffusion("model")), predictions(load_stable_diffusion(world))
    assert (again - original).abs().max() > 1e-4
    pipeline = DiffusionPipeline.from_pretrained("model", safety_checker=None, local_files_only=True)
    assert type(pipeline).__name__ == type(DiffusionPipeline.from_pretrained(world, local_files_only=True)).__name__
    own = load_stable_diffusion(world)
    own.unet.load_state_dict(pipeline.unet.state_dict())
    torch.testing.assert_close(predictions(own), again)
    # and another can be scored from it as from any that others unlearned
    said = cli(*RUN, "--pretrained", world, "--method", "checkpoint", "--set", "path=model")
    assert said.code == 0, said.err
    scored = read_record(next(path for path in Path("here").rglob("seed-0.json") if "checkpoint" in str(path)))
    assert scored.weights["unlearned"] == read_record(record).weights["unlearned"]
    assert {name: score.value for name, score in scored.scores.items() if score.axis != "cost"} == {
        name: score.value for name, score in read_record(record).scores.items() if score.axis != "cost"
    }


@pytest.mark.parametrize("world", ["sd1"], indirect=True)
def test_the_card_says_what_it_is_and_what_was_not_tried(cli, world, record):
    assert cli("export", record, "model", "--pretrained", world, "--device", "cpu").code == 0
    text, said = Path("model/README.md").read_text(), read_record(record)
    front = yaml.safe_load(text.split("---")[1])
    assert front["license"] == "unknown", "of the user's own weights"
    assert front["library_name"] == "diffusers"
    assert "Gandikota et al., WACV 2024" in text
    assert "`lamb = 0.1`" in text
    assert f"key `{said.key}`, content hash `{said.content_hash}`" in text
    assert "--method uce --forget seven --protocol smoke --seeds 0 --preset default --device cpu" in text
    assert "--pretrained FOLDER --set lamb=0.1\n" in text
    assert again(cli, text, FOLDER=world).key == said.key
    assert "`seven` (substitute `one`; as well known by `7`)" in text
    assert "No attack was run for this record. Weights alone may not keep the concept from coming back" in text
    assert "No safety checker was run, and none is in this folder." in text
    assert re.search(r"\| UA \(%\) \| [\d.]+ \| [\d.]+ to [\d.]+ \| 6 \|", text.replace("\\", ""))


def code(text):
    """The card's code blocks, in order."""
    return [block.content for block in MarkdownIt("commonmark").parse(text) if block.type == "code_block"]


def again(cli, text, **places):
    """The record that the card's own command makes."""
    words = [places.get(word, word) for word in shlex.split(code(text)[0])]
    said = cli(*words[1:], "--results", "again")
    assert said.code == 0, said.err
    return read_only(Path("again"))


@pytest.mark.parametrize("world", ["sd1"], indirect=True)
def test_concepts_of_ones_own_are_on_the_card(cli, world):
    tables = ({"seven": "one"}, {"red": "blue"})
    lines = [
        f'[[concept]]\nnames = ["{name}"]\nsubstitute = "{new}"' for table in tables for name, new in table.items()
    ]
    Path("mine.toml").write_text("\n".join(lines))
    said = cli(*OWN, "--concept", "mine.toml", "--pretrained", world, "--method", "uce")
    assert said.code == 0, said.err
    path = next(path for path in Path("here").rglob("seed-0.json") if path.parent.name == "uce")
    said = cli("export", path, "model", "--pretrained", world, "--device", "cpu")
    assert said.code == 0, said.err
    text = Path("model/README.md").read_text()
    assert "- Erased: `seven` (substitute `one`)\n- Erased: `red` (substitute `blue`)\n" in text
    assert "--method uce --concept FILE.toml --protocol smoke" in text
    Path("again.toml").write_text(code(text)[1])
    assert again(cli, text, **{"FOLDER": world, "FILE.toml": "again.toml"}).key == read_record(path).key


def test_any_definition_is_written_as_it_was(tmp_path):
    odd = Concept(('a "b" \\ c', "é😀"), ("''", "#"), "one", ("x = 1", "]] [[concept]]"))
    record = made_record(forget="odd", protocol_changes={"settings": {"concepts": [{}]}})
    text = "\n".join(module._definition(record, SimpleNamespace(erased=(odd,))))
    (tmp_path / "odd.toml").write_text(code(text)[0])
    assert read_concepts(tmp_path / "odd.toml") == ("odd", (odd,))


def test_attacks_are_listed():
    found = AttackRecord(
        status="ok",
        value=0.5,
        n=2,
        interval=(0.1, 0.9),
        area=0.5,
        limit=50,
        recovered=(True, False),
        spent=(0, 50),
        box="white",
        unit="model evaluations",
        settings={},
        code_hash="c",
        key="k",
    )
    none = found.model_copy(
        update={"status": "skipped", "reason": "no <b>text</b>", "value": None, "n": 0, "recovered": (), "spent": ()}
    )
    lines = list(module._attacks(made_record("esd").model_copy(update={"attacks": {"relearn": found, "`p4d`": none}})))
    assert "some attacks recover a concept from any model" in lines[0]
    assert lines[2:] == [
        "- `relearn` (white box, up to 50 model evaluations each): 50.0 % of 2",
        "- `'p4d'` (white box, up to 50 model evaluations each): not known (no \\<b\\>text\\</b\\>)",
    ]


EVIL = "<b>`x`|[y](https://evil.example)\n\n# head\n---\nlicense: other"


def test_text_of_the_record_stays_text():
    """Every field of a record that may hold any text is rendered, and adds no line, cell, tag or link to the card."""
    from unlearnbench.methods.uce import UCE

    plain = made_record("uce", 0, {"ua": 0.5, "ra": 0.5}, task="digits-text", forget="seven", reason="x")
    score = plain.scores["ua"].model_copy(update={"unit": EVIL, "value": None, "reason": EVIL})
    evil = plain.model_copy(
        update={
            "key": EVIL,
            "forget": EVIL,
            "created": EVIL,
            "reason": EVIL,
            "content_hash": EVIL,
            "scores": {EVIL: score, "ra": plain.scores["ra"]},
            "weights": {"original": EVIL, "unlearned": EVIL},
            "protocol": plain.protocol.model_copy(update={"name": EVIL, "hash": EVIL}),
            "method": plain.method.model_copy(
                update={"name": EVIL, "preset": EVIL, "settings": {EVIL: EVIL}, "overrides": {EVIL: EVIL}}
            ),
        }
    )
    cell = cell_module.Cell(UCE(), DigitsText("seven"))
    calm, text = (module.card(record, cell) for record in (plain, evil))
    assert len(text.splitlines()) == len(calm.splitlines())
    assert text.splitlines()[:7] == calm.splitlines()[:7], "the front matter is the same"
    rendered = [line for line in text.splitlines() if not line.startswith("    ")]  # code blocks show text as it is
    left = re.sub(r"`[^`]*`", "", "\n".join(rendered))
    assert "<" not in left and "evil" not in left and "`" not in left
    for line in rendered:
        if line.startswith("|") and "---" not in line[:4]:
            assert len(re.findall(r"(?<!\\)\|", line)) == 5
    (code,) = (line for line in text.splitlines() if line.startswith("    "))
    assert "evil" in code


def test_a_licence_is_claimed_for_shipped_weights_alone(tmp_path):
    task, own = DigitsText("seven"), DigitsText("seven", weights=tmp_path)
    uce, checkpoint = made_record("uce"), made_record("checkpoint")
    assert module._licence(uce, task) == (task.licence, task.origin)
    assert module._licence(uce, own)[0] == module._licence(checkpoint, task)[0] == "unknown"


@pytest.mark.parametrize("world", ["sd1"], indirect=True)
def test_a_warm_store_is_read_and_a_cold_one_made_anew(cli, world, record, monkeypatch, tmp_path):
    calls = []
    real = unlearning.unlearn
    monkeypatch.setattr(runner, "unlearn", lambda *given: calls.append(1) or real(*given))
    assert cli("export", record, "warm", "--pretrained", world, "--device", "cpu").code == 0
    assert calls == []
    monkeypatch.setenv("UNLEARNBENCH_CACHE", str(tmp_path / "cold"))
    assert cli("export", record, "cold-model", "--pretrained", world, "--device", "cpu").code == 0
    assert calls == [1]
    one, other = (
        Path(name, "unet/diffusion_pytorch_model.safetensors").read_bytes() for name in ("warm", "cold-model")
    )
    assert one == other


def refused(cli, *words):
    said = cli("export", *words, "--device", "cpu")
    assert said.code == 2
    assert len(said.errors) == 1
    return said.errors[0]


@pytest.mark.parametrize("world", ["sd1"], indirect=True)
def test_what_cannot_be_exported_is_refused_in_one_line(cli, world, record, monkeypatch):
    use = ("--pretrained", world)
    assert "no record at nowhere.json" in refused(cli, "nowhere.json", "x")
    Path("full").mkdir()
    Path("full/file").write_text("mine")
    assert "full is there already" in refused(cli, record, "full", *use)
    assert Path("full/file").read_text() == "mine"
    Path("file").write_text("mine")
    assert "file is there already" in refused(cli, record, "file", *use)
    assert "cannot write to file/x" in refused(cli, record, "file/x", *use)
    assert cli(*RUN, *use, "--method", "sld").code == 0
    sld = next(Path("here").rglob("sld/seed-0.json"))
    assert "sld acts while images are drawn" in refused(cli, sld, "x", *use)
    wrong = read_record(record)
    wrong = wrong.model_copy(update={"weights": {**wrong.weights, "unlearned": "0" * 64}})
    write_record(wrong, Path("other.json"))
    assert "than the record's, 000000000000: `unlearnbench verify` says what differs" in refused(
        cli, "other.json", "x", *use
    )
    skipped = wrong.model_copy(
        update={"status": "skipped", "reason": "no", "scores": {}, "weights": {**wrong.weights, "unlearned": None}}
    )
    write_record(skipped, Path("skipped.json"))
    assert "a run that was skipped (no), which left no weights" in refused(cli, "skipped.json", "x", *use)
    Path("link").symlink_to("nowhere")
    assert "link is there already" in refused(cli, record, "link", *use)
    write_record(wrong.model_copy(update={"weights": {**wrong.weights, "original": "f" * 64}}), Path("other.json"))
    assert "name the folder with the record's own by --pretrained" in refused(cli, "other.json", "x", *use)
    assert not Path("x").exists()
    monkeypatch.setattr(module, "card", lambda *given: 1 / 0)
    said = cli("export", record, "x", *use, "--device", "cpu")
    assert said.code == 1
    assert "ZeroDivisionError" in said.err
    assert not Path("x").exists()
    assert [path.name for path in Path().iterdir() if path.name.startswith(".new-")] == []


ADDED = ["adavd", "gloce", "saeuron", "receler", "safree"]
"""A method of each kind of what weights alone do not carry: changed values, gates, features, adapters, guidance."""


@pytest.mark.parametrize("name", ADDED)
def test_what_is_added_to_the_network_is_refused_before_the_work(name, tmp_path):
    cell = cell_module.Cell(registry.load_method(name).configured({}), DigitsText("seven"))
    with pytest.raises(UserError, match=f"^{name} acts while images are drawn, which no folder can carry: run the"):
        module.export_folder(made_record(name), cell, Store(tmp_path / "store"), tmp_path / "x")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["concept_prune", "speed", "stereo", "trce"])
def test_what_changes_weights_alone_is_not(name):
    module._exportable(made_record(name), cell_module.Cell(registry.load_method(name)(), DigitsText("seven")))


@pytest.mark.parametrize("world", ["sd1"], indirect=True)
def test_nothing_is_unlearned_for_a_folder_that_cannot_be_written(cli, world, record, monkeypatch):
    monkeypatch.setattr(module, "drafted", lambda *given: pytest.fail("it went on"))
    Path("file").write_text("mine")
    assert "cannot write to file/deep/x" in refused(cli, record, "file/deep/x", "--pretrained", world)
    full = OSError(28, "No space left on device")
    monkeypatch.setattr(module.tempfile, "TemporaryFile", lambda **given: (_ for _ in ()).throw(full))
    assert "the disk is full" in refused(cli, record, "far/deep/x", "--pretrained", world)
    assert not Path("far").exists()


@pytest.mark.parametrize("world", ["sd1"], indirect=True)
def test_a_run_that_diverges_now_is_one_line(cli, world, record, monkeypatch, fresh_store):
    def diverges(*words):
        raise Diverged(3, "the loss")

    monkeypatch.setattr(runner, "unlearn", diverges)
    assert "unlearning anew diverged (the loss is not finite at step 3)" in refused(
        cli, record, "x", "--pretrained", world
    )
    assert not Path("x").exists()


def test_a_class_conditional_model_has_no_pipeline(cli, small, tmp_path):
    file = write_nudge(tmp_path)
    assert cli("run", "--method", file, "--results", "there", "--device", "cpu").code == 0
    path = next(Path("there").rglob("nudge/seed-0.json"))
    assert "digits-class has no text-to-image model" in refused(cli, path, "x", "--method", file)
    shutil.rmtree("there")
