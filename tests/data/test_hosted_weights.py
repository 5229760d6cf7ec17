"""`hub:` and `released:` addresses, downloaded once, locked, and told where they are missing."""

from __future__ import annotations

import json
import os

import pytest

from tests.support.web import BODY, COMMIT, OTHER
from unlearnbench.data import hosted_weights
from unlearnbench.data.hosted_weights import HostedWeights, ReleasedWeights, fetch_weights, released_weights
from unlearnbench.errors import Damaged, UserError

UNLEARNED = {
    # the folders of OPTML-Group/AdvUnlearn (README.md at 9d23124, lines 32-44) in transformers' layout
    "README.md": b"card",
    "nudity_unlearned/config.json": b"{}",
    "nudity_unlearned/model.safetensors": BODY,
    "nudity_unlearned/pytorch_model.bin": OTHER,
    "church_unlearned/config.json": b"{}",
    "church_unlearned/pytorch_model.bin": BODY,
}
ADAPTER = {"adapter_config.json": b"{}", "adapter_model.safetensors": BODY, "training_args.bin": OTHER}
PIPELINE = {
    "model_index.json": b"{}",
    "unet/config.json": b"{}",
    "unet/diffusion_pytorch_model.safetensors": BODY,
    "unet/diffusion_pytorch_model.fp16.safetensors": OTHER,
    "text_encoder/model-00001-of-00002.safetensors": BODY,
    "text_encoder/model-00002-of-00002.safetensors": OTHER,
    "vae/diffusion_pytorch_model.safetensors": OTHER,
}


@pytest.fixture
def hub(site, fresh_store):
    """The hub, and the folder that the store keeps its weights in."""
    site.files.clear()
    site.files |= UNLEARNED
    return site


@pytest.fixture
def folder(fresh_store):
    return fresh_store / "checkpoints" / "org" / "set"


def asked(site):
    return [ask.path for ask in site.asked if ask.method == "GET"]


def test_a_file_is_downloaded_from_the_commit_of_its_revision(hub, folder):
    file = "nudity_unlearned/model.safetensors"
    found = fetch_weights(f"hub:org/set/{file}")
    assert found == HostedWeights(folder / COMMIT / file, f"hub:org/set@{COMMIT}/{file}")
    assert found.place.read_bytes() == BODY
    assert f"org/set/resolve/{COMMIT}/{file}" in asked(hub)
    hub.asked.clear()
    for address in (f"hub:org/set/{file}", found.address):
        assert fetch_weights(address) == found and not hub.asked, "the second time nothing is asked"


def test_a_revision_stays_what_it_was_first(hub, folder):
    first = fetch_weights("hub:org/set/church_unlearned")
    hub.commit = "d1" * 20
    assert fetch_weights("hub:org/set/church_unlearned") == first
    assert fetch_weights("hub:org/set@other/church_unlearned").address == f"hub:org/set@{hub.commit}/church_unlearned"


def test_jobs_that_start_together_read_what_is_there(hub, folder):
    fcntl = pytest.importorskip("fcntl", reason="folders are locked on Unix alone")
    found = fetch_weights("hub:org/set/church_unlearned")
    handle = os.open(folder / COMMIT, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    try:
        assert fetch_weights("hub:org/set/church_unlearned") == found
    finally:
        os.close(handle)


@pytest.mark.parametrize("commit", ["../../escaped", "", "main"])
def test_a_commit_that_is_none_is_refused(hub, folder, commit):
    hub.commit = commit
    with pytest.raises(UserError, match="names no commit"):
        fetch_weights("hub:org/set/church_unlearned")
    assert not folder.exists()


def test_a_folder_brings_the_weights_of_one_model(hub, folder):
    found = fetch_weights("hub:org/set/nudity_unlearned")
    assert found == HostedWeights(folder / COMMIT / "nudity_unlearned", f"hub:org/set@{COMMIT}/nudity_unlearned")
    assert [path.name for path in found.place.iterdir()] == ["model.safetensors"], "safetensors, not the pickle"


def test_a_pipeline_brings_the_parts_that_are_read(hub, folder):
    hub.files |= PIPELINE
    fetch_weights("hub:org/set@v1.0")
    names = {path.name for path in (folder / COMMIT).rglob("*.safetensors")}
    assert names == {"diffusion_pytorch_model.safetensors", *(n.split("/")[1] for n in PIPELINE if "text_enc" in n)}
    assert not (folder / COMMIT / "vae").exists()


def test_an_adapter_brings_its_configuration(hub, folder):
    hub.files.clear()
    hub.files |= ADAPTER
    for address in ("hub:org/set", "hub:org/set@b/adapter_model.safetensors"):
        place = fetch_weights(address).place
        assert sorted(path.name for path in (place if place.is_dir() else place.parent).iterdir()) == [
            "adapter_config.json",
            "adapter_model.safetensors",
            "lock.json",
        ]


def test_several_models_are_listed(hub, folder):
    with pytest.raises(
        UserError, match=r"no weights at its top: .*hub:org/set@main/church_unlearned/pytorch_model.bin"
    ):
        fetch_weights("hub:org/set")
    with pytest.raises(UserError, match=r"no weights at gone.pt"):
        fetch_weights("hub:org/set/gone.pt")


@pytest.mark.parametrize("name", ["../../escaped.pt", "a/../../../../escaped.pt", "/tmp/escaped.pt"])
def test_no_name_of_the_hub_leads_out_of_the_store(hub, folder, fresh_store, name):
    hub.files.clear()
    hub.files[name] = BODY
    with pytest.raises(UserError):
        fetch_weights("hub:org/set")
    assert not list(fresh_store.parent.rglob("escaped.pt"))


@pytest.mark.parametrize(
    "address", ["hub:set", "hub:org/set/../../x", "hub:org/set@../x", "hub:../../x", "hub:org/set/.git/x", "hub:a/b@"]
)
def test_no_address_leads_out_of_the_store(address, hub):
    with pytest.raises(UserError, match="is no address"):
        fetch_weights(address)
    assert not hub.asked


def test_names_with_spaces_have_a_place(hub, folder):
    name = "erased-kelly mckernan.pt"  # UCE's and RECE's names of artists
    hub.files[name.replace(" ", "%20")] = hub.files[name] = BODY
    found = fetch_weights(f"hub:org/set/{name}")
    assert found.place == folder / COMMIT / "erased-kelly=20mckernan.pt" and found.place.read_bytes() == BODY


def test_without_the_hub_the_file_may_be_brought_by_hand(site, folder, fresh_store, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(UserError) as caught:
        fetch_weights("hub:org/set/unet.pt")
    place = folder / "main" / "unet.pt"
    assert f"put its weights at {place} by hand" in str(caught.value) and "\n" not in str(caught.value)
    place.parent.mkdir(parents=True)
    place.write_bytes(BODY)
    assert fetch_weights("hub:org/set/unet.pt") == HostedWeights(place, "hub:org/set@main/unet.pt")


def test_a_repository_that_is_not_there_or_gated(site, fresh_store):
    for status in (404, 401, 403):
        site.status["api/models/org/set/revision/main"] = [status]
        with pytest.raises(UserError, match=rf"no model org/set at revision main \({status}\).*hf auth login"):
            fetch_weights("hub:org/set/unet.pt")


def test_a_damaged_listing_is_told(hub, folder):
    fetch_weights("hub:org/set/church_unlearned")
    (folder / "main.json").write_text("{")
    with pytest.raises(Damaged, match=r"main\.json is damaged: delete it"):
        fetch_weights("hub:org/set/church_unlearned")


# ---- released weights ------------------------------------------------------------------------------------------------


@pytest.fixture
def table(monkeypatch):
    """The table with entries of this test's own."""

    def of(**entries):
        monkeypatch.setattr(hosted_weights, "released_weights", lambda: entries)

    return of


def entry(name, address, fetchable=True):
    return ReleasedWeights(name, "esd", "nudity", "base", "U-Net", "MIT", "paper", address, fetchable)


def test_released_weights_are_locked_at_the_first_download(site, fresh_store, table):
    table(esd=entry("esd", site.at("a")))
    found = fetch_weights("released:esd")
    assert found == HostedWeights(fresh_store / "checkpoints/released/esd/a", "released:esd")
    assert json.loads((found.place.parent / "lock.json").read_text())["a"]["size"] == len(BODY)
    found.place.unlink()
    site.files["a"] = OTHER
    with pytest.raises(Damaged, match=r"no longer gives the a that was locked"):
        fetch_weights("released:esd")
    found.place.write_bytes(OTHER)
    with pytest.raises(Damaged, match="not what it was"):
        fetch_weights("released:esd")


def test_released_weights_of_the_hub(hub, table, folder):
    table(adv=entry("adv", "hub:org/set/church_unlearned"))
    assert fetch_weights("released:adv").address == f"hub:org/set@{COMMIT}/church_unlearned"


def test_weights_behind_a_page_are_brought_by_hand_and_locked(fresh_store, table, site):
    table(mace=entry("mace", site.at("page"), fetchable=False))
    place = fresh_store / "checkpoints/released/mace"
    with pytest.raises(UserError, match=rf"get it from {site.at('page')}, put its file or folder into {place}"):
        fetch_weights("released:mace")
    (place / "unet").mkdir(parents=True)
    (place / "unet/model.safetensors").write_bytes(BODY)
    assert fetch_weights("released:mace") == HostedWeights(place / "unet", "released:mace")
    (place / "unet/model.safetensors").write_bytes(OTHER)
    with pytest.raises(Damaged, match="not what it was"):
        fetch_weights("released:mace")
    assert not site.asked


def test_an_unknown_name_has_suggestions():
    with pytest.raises(UserError, match=r"unknown released weights 'esd-nudty': did you mean esd-nudity"):
        fetch_weights("released:esd-nudty")


def test_every_entry_of_the_table_can_be_read_and_says_how_it_comes():
    assert len(released_weights()) > 40
    for name, weights in released_weights().items():
        is_hub = hosted_weights.ADDRESS.fullmatch(weights.address)
        assert is_hub or weights.address.startswith("https://"), name
        assert not is_hub or weights.fetchable, name
        assert all(weights[:8]), name
        by_form = any(host in weights.address for host in ("drive.google", "sharepoint", "box.com"))
        assert not (by_form and weights.fetchable), name
