"""The protocols of cifar10-class on the compact network, made narrow, on a small set in the hub's layout."""

from __future__ import annotations

import dataclasses
import os
import shutil
import signal

import numpy as np
import pytest
import torch

from tests.studies import cifar10_compact_page
from tests.studies import train_cifar10_compact as study
from tests.support import tiny_cifar
from unlearnbench import registry
from unlearnbench.errors import UserError
from unlearnbench.judges import resnet8
from unlearnbench.judges.resnet8 import SmallResNetJudge
from unlearnbench.judges.resnet56 import CifarResNet
from unlearnbench.models.compact_ddpm import CompactDDPM
from unlearnbench.models.compact_train import CompactTraining
from unlearnbench.records.folder import load_all
from unlearnbench.storage.weights import load_checked, load_state, read_manifest
from unlearnbench.tasks import _cifar10_compact, cifar10_class
from unlearnbench.tasks._cifar10 import COMPACT, COMPACT_INCEPTION, INCEPTION, OUTSIDE
from unlearnbench.tasks._cifar10_compact import ASSETS, retrained_name
from unlearnbench.tasks.cifar10_class import Cifar10Class
from unlearnbench.tune.search import CONCEPTS, PROTOCOL, budget

WIDTH = 16


@pytest.fixture(scope="module", autouse=True)
def narrow():
    """Few images, two steps, narrow networks, and trainings of two steps."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("compact", "selection"):
            whole = Cifar10Class.protocols[name]
            less = {"forget_images": 6, "retain_images": 2, "reference_images": 1, "chunk": 12, "width": WIDTH}
            sampler = dataclasses.replace(whole.sampler, steps=2)
            patch.setitem(Cifar10Class.protocols, name, dataclasses.replace(whole, sampler=sampler, **less))
        for name, value in (("EPOCHS", 1), ("WIDTHS", (8, 8, 8)), ("CALIBRATED", 10)):
            patch.setattr(resnet8, name, value)
        patch.setattr(_cifar10_compact, "CALIBRATED", 10)
        patch.setattr(cifar10_class, "CHECKED", 1)
        patch.setattr(cifar10_class, "COMPACT_STEPS", 3)
        patch.setattr(cifar10_class, "COMPACT_DECAY", 1)
        patch.setattr(study, "CompactDDPM", lambda **shape: CompactDDPM(**{"widths": (WIDTH, 2 * WIDTH), **shape}))
        yield


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UNLEARNBENCH_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_cifar.write(tmp_path_factory.mktemp("cifar") / "data")


@pytest.fixture(scope="module")
def weights(folder, tmp_path_factory):
    """What `pretrain` makes."""
    out = tmp_path_factory.mktemp("weights")
    small(folder, None).pretrain(out)
    return out


def small(folder, weights, forget="airplane", **settings):
    return Cifar10Class(forget, **{"protocol": "compact", "data": folder, "weights": weights, **settings})


# ---- what is shipped -----------------------------------------------------------------------------------------------


def test_protocols_by_network():
    assert Cifar10Class.ships == {"compact", "compact-inception", "selection"}
    for name, protocol in Cifar10Class.protocols.items():
        assert registry.untried("cifar10-class", name) == (name not in Cifar10Class.ships)
        assert ("network" in dataclasses.asdict(protocol)) == (name in Cifar10Class.ships), "hashes stay as they were"
    assert registry.untried("cifar10-class") and not registry.untried("digits-class", "default")


@pytest.mark.skipif(not (ASSETS / "manifest.json").is_file(), reason="no weights of cifar10-class are shipped")
def test_shipped_weights_are_whole_and_small():
    files = [path for path in ASSETS.iterdir() if path.suffix == ".safetensors"]
    assert {path.name for path in files} == set(read_manifest(ASSETS)["hashes"]) >= {"model.safetensors"}
    assert sum(path.stat().st_size for path in files) < 12_000_000
    CompactDDPM().load_state_dict(load_checked(ASSETS, "model.safetensors")[0])
    assert SmallResNetJudge(*load_checked(ASSETS, "judge.safetensors")).threshold < float("inf")
    assert {"steps", "decay steps"} <= set(read_manifest(ASSETS)["recipe"]), "which retrain takes"


def test_a_retraining_that_is_there_takes_no_steps(folder, weights, tmp_path):
    task = small(folder, shutil.copytree(weights, tmp_path / "own"), "cat")
    assert task.training_steps == 3
    study.enter(tmp_path / "own", retrained_name("cat", 0), {"x": torch.zeros(1)}, 0, {})
    assert task.training_steps == 0 and small(folder, tmp_path / "own", "dog").training_steps == 3


# ---- weights -------------------------------------------------------------------------------------------------------


def test_pretraining_writes_what_the_package_ships(folder, weights, cli, tmp_path):
    manifest = read_manifest(weights)
    assert sorted(manifest["hashes"]) == ["judge.safetensors", "model.safetensors"]
    assert (manifest["recipe"]["steps"], manifest["recipe"]["decay steps"]) == (3, 1)
    assert sorted(path.name for path in weights.iterdir()) == [
        "judge.safetensors",
        "manifest.json",
        "model.safetensors",
    ], "nothing is left of the trainings"
    state = load_state(weights / "model.safetensors")
    assert {value.dtype for value in state.values()} == {torch.float16}
    task = small(folder, weights)
    found = task.pretrained().state_dict()
    assert all(torch.equal(found[name], value.float()) for name, value in state.items())
    assert task.model_identity().hash == manifest["hashes"]["model.safetensors"]
    assert task.judge().name == task.protocol.judge
    said = cli("pretrain", "--task", "cifar10-class", "--protocol", "compact", "--judge", "--data", folder)
    assert said.code == 0, said.err
    made = tmp_path / "pretrained" / "cifar10-class-compact"
    assert read_manifest(made)["hashes"]["judge.safetensors"] == manifest["hashes"]["judge.safetensors"]
    assert "--protocol compact --pretrained pretrained/cifar10-class-compact" in said.out


def test_the_studys_weights_are_those_of_pretrain(folder, weights, tmp_path):
    """They are exported into the package's folder, and keep the judge's entry."""
    out, target = tmp_path / "out", tmp_path / "assets"
    for words in (["--steps", "2"], ["--decay-steps", "1"]):
        assert study.main(["train", "--data", str(folder), "--out", str(out), *words]) == 0
    target.mkdir()
    assert study.main(["judge", "--data", str(folder), "--out", str(out), "--folder", str(target)]) == 0
    assert study.main(["export", "--out", str(out), "--state", str(out / "decay-2.pt"), "--folder", str(target)]) == 0
    assert read_manifest(target) == read_manifest(weights), "same seed, steps, decay: the same weights"
    assert small(folder, target).model_identity() == small(folder, weights).model_identity()


def test_a_retraining_that_was_stopped_goes_on_where_it_was(folder, weights, monkeypatch):
    task, done = small(folder, weights, "ship"), []
    whole = task.train(1, "retain").state_dict()
    assert all(not torch.equal(value, whole[name]) for name, value in task.train(1).state_dict().items())
    plain = CompactTraining.advance

    def until(self):
        plain(self)
        done.append(self.done)
        if done == [1, 2]:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(CompactTraining, "advance", until)
    with pytest.raises(KeyboardInterrupt):
        task.train(1, "retain")
    again = task.train(1, "retain").state_dict()
    assert done == [1, 2, 3], "the manifest's steps"
    assert all(torch.equal(value, whole[name]) for name, value in again.items())


def test_retrain_takes_weights_that_are_there(folder, weights, tmp_path):
    target = tmp_path / "assets"
    target.mkdir()
    for path in weights.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    out = ["--out", str(tmp_path / "without"), "--without", "ship"]
    assert study.main(["train", "--data", str(folder), *out, "--steps", "1"]) == 0
    assert study.main(["export", *out, "--folder", str(target)]) == 0
    given = load_state(target / "retrain-ship-0.safetensors")
    found = small(folder, target, "ship").train(0, "retain").state_dict()
    assert all(torch.equal(found[name], value.float()) for name, value in given.items())
    assert small(folder, target, "ship").model_identity() == small(folder, weights, "ship").model_identity()


def test_a_checkpoint_of_the_papers_is_of_another_network(folder, tmp_path):
    with pytest.raises(UserError, match="--checkpoint holds the papers' network, and protocol compact is on another"):
        small(folder, None, checkpoint=tmp_path / "ckpt.pth")


# ---- data ----------------------------------------------------------------------------------------------------------


def test_thresholds_reference_and_floor_share_no_image(folder, weights):
    task = small(folder, weights, "cat")
    sets = [torch.cat(list(some)) for some in (task.reference(), task.floor())]
    sets.append(torch.from_numpy(np.array(task._halves()[0].x)))
    every = torch.cat(sets)
    assert [len(some) for some in sets] == [4, 4, 30] and len(every.unique(dim=0)) == len(every)
    shown, labels = task.labelled_images()
    assert not (shown[:, None] == sets[2][None]).all(dim=(2, 3, 4)).any(), "the card's images set no threshold"
    assert set(labels[:, 0].tolist()) == {1, 3, 5, 7, 9}, "classes come in turn here, and every second image counts"
    other = small(folder, weights, "cat", protocol="selection")
    first = torch.cat(list(other.reference()))
    assert torch.equal(first[0], torch.from_numpy(task.images["train"].x[0].copy())), (
        "for tuning, of the training images"
    )


def test_records_name_the_copy_of_the_data(folder, weights, tmp_path):
    other = tiny_cifar.write(tmp_path / "data", train=70)
    assert small(folder, weights).data_identity() != small(other, weights).data_identity()
    assert small(folder, None, protocol="smoke").data_identity() is None, "as before"


# ---- a run, and tuning ---------------------------------------------------------------------------------------------


def test_a_whole_run(cli, folder, weights, tmp_path):
    words = ("run", "--task", "cifar10-class", "--protocol", "compact", "--data", folder, "--pretrained", weights)
    words = (*words, "--method", "finetune,esd", "--set", "steps=1", "--set", "batch_size=2", "--results", "here")
    said = cli(*words, "--forget", "ship")
    assert said.code == 0, said.err
    records = load_all(tmp_path / "here")
    assert {record.method.name: record.status for record in records} == {
        "original": "ok",
        "finetune": "ok",
        "esd": "ok",
    }
    (record,) = (record for record in records if record.method.name == "finetune")
    assert record.judge.name == "cifar10-resnet8" and record.data == small(folder, weights).data_identity()
    assert {"ua", "ra", "fid", "kid", "precision", "recall", "coherence"} <= set(record.scores)
    assert not {"inception_score", "fid_train"} & set(record.scores), "features are the judge's, never Inception's"
    said = cli("validate", "--results", "here")
    assert said.code == 0, said.out + said.err
    said = cli("leaderboard", "--results", "here")
    assert said.code == 0 and "protocol compact" in said.out and registry.UNTRIED not in said.out


@pytest.fixture(scope="module")
def with_outside_judge(folder, tmp_path_factory):
    """The images beside a file in the form of akamaster/pytorch_resnet_cifar10's: its trainer.py at 159915c saves
    `state_dict` of a DataParallel module beside `best_prec1`.
    """
    place = tmp_path_factory.mktemp("outside")
    (place / "plain_text").mkdir()
    for path in (folder / "plain_text").iterdir():
        (place / "plain_text" / path.name).symlink_to(path)
    torch.manual_seed(0)
    state = {f"module.{name}": value for name, value in CifarResNet(1).state_dict().items()}
    torch.save({"state_dict": state, "best_prec1": 93.39}, place / OUTSIDE.name)
    return place


def test_tuning_is_judged_by_a_network_of_others_whose_threshold_is_found_once(
    folder, with_outside_judge, weights, monkeypatch
):
    found = budget(Cifar10Class)
    assert found.forget == CONCEPTS["cifar10-class"] == ("bird", "truck")
    assert Cifar10Class.default_forget not in found.forget
    task = small(with_outside_judge, weights, protocol=PROTOCOL)
    cifar10_class._compact_judge.cache_clear()
    judge = task.judge()
    assert judge.name == "cifar10-resnet56"
    images, _ = task.labelled_images()
    verdict = judge(images)
    assert verdict.probabilities.shape == (len(images), 10) and judge.features(images).shape == (len(images), 64)
    cifar10_class._compact_judge.cache_clear()
    monkeypatch.setattr("unlearnbench.judges.resnet56.corrupted_thresholds", lambda *given: pytest.fail("found again"))
    again = task.judge()
    assert (again.threshold, again.hash) == (judge.threshold, judge.hash)
    with pytest.raises(UserError, match=r"resnet56-4bfd9763.th is not in .*unlearnbench fetch --task cifar10-class"):
        cifar10_class._compact_judge.cache_clear()
        small(folder, weights, protocol=PROTOCOL).judge()


def test_the_page_says_what_is_shipped_and_shows_the_cards(with_outside_judge, weights, tmp_path):
    training = tmp_path / "training"
    training.mkdir()
    columns = ("images seen", "guidance", "samples", "judged right", "fid in the judge's features", "held-out loss")
    lines = [",".join(columns), "128000,4,300,0.6200,7.001,0.12", "64000,4,300,0.5700,7.154,0.13"]
    (training / "evaluations.csv").write_text("\n".join(lines))
    given = ["--data", with_outside_judge, "--weights", weights, "--training", training, "--page", tmp_path / "page.md"]
    cifar10_compact_page.main([str(word) for word in given])
    page = (tmp_path / "page.md").read_text()
    hashes = read_manifest(weights)["hashes"]
    assert all(hash[:12] in page for hash in hashes.values())
    assert "The network has seen 192 images" in page and "in 3 steps of 64; over the last 1 of them" in page
    assert page.index("| 64000 | 4 |") < page.index("| 128000 | 4 |")
    assert "### cifar10-resnet8 1" in page and "### cifar10-resnet56 1" in page


def test_the_energy_of_the_outside_judge(with_outside_judge, weights):
    cifar10_class._compact_judge.cache_clear()
    judge = small(with_outside_judge, weights, protocol=PROTOCOL).judge()
    images = torch.randint(0, 256, (6, 3, 32, 32), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    with torch.inference_mode():
        energy = -judge._network.network(images).logsumexp(dim=1)
    judge.threshold = float(energy.median())
    assert judge(images).refused.tolist() == (energy > judge.threshold).tolist()


def test_tuned_settings_are_for_the_network_that_was_tuned(cli, folder):
    said = cli(
        "run",
        "--task",
        "cifar10-class",
        "--protocol",
        "smoke",
        "--data",
        folder,
        "--method",
        "esd",
        "--preset",
        "tuned",
    )
    assert said.code == 2
    assert "tuned on the network of compact, compact-inception, selection, and protocol smoke is on another" in said.err


def test_inceptions_features_stand_beside_the_same_verdicts(folder, weights, monkeypatch):
    class Halves:
        """Means of the two halves of an image."""

        hash, inception = "e" * 64, object()

        def __init__(self, path, device):
            assert (path, device) == (folder / INCEPTION.name, "cpu")

        def __call__(self, images):
            return images.float().view(len(images), 2, -1).mean(dim=2)

    monkeypatch.setattr(_cifar10_compact, "Extractor", Halves)
    monkeypatch.setattr(_cifar10_compact, "check_source", lambda data, source, task: data / source.name)
    own, other = (small(folder, weights, protocol=name) for name in ("compact", "compact-inception"))
    images = torch.randint(0, 256, (4, 3, 32, 32), generator=torch.Generator().manual_seed(1)).to(torch.uint8)
    judges = own.judge(), other.judge()
    assert all(torch.equal(one, two) for one, two in zip(judges[0](images), judges[1](images), strict=True))
    assert torch.equal(judges[1].features(images), images.float().view(4, 2, -1).mean(dim=2))
    assert judges[1].has_logits
    assert judges[0].hash != judges[1].hash and judges[1].name == other.protocol.judge
    changed = {"name": COMPACT.name, "judge": COMPACT.judge}
    assert dataclasses.replace(COMPACT_INCEPTION, **changed) == COMPACT, "images are drawn alike"
