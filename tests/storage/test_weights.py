"""Weights on disk: what was written comes back, and what is damaged or could run code is refused."""

import pickle
import struct
import zipfile
from pathlib import Path

import pytest
import torch

import unlearnbench
from unlearnbench.errors import Damaged, UserError
from unlearnbench.hashing import state_hash
from unlearnbench.storage.weights import load_checked, load_state, make_once, read_manifest, save_state
from unlearnbench.tasks.digits_class import DigitsClass

ASSETS = Path(unlearnbench.__file__).parent / "tasks" / "assets"
RECIPE = {"steps": 10, "rate": 0.1}


def state(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {
        "weight": torch.randn(3, 4, generator=generator),
        "turned": torch.randn(3, 4, generator=generator).T,
        "scalar": torch.tensor(0.5),
        "half": torch.randn(5, generator=generator).half(),
        "count": torch.arange(7),
    }


def made(folder, seed=0, recipe=RECIPE, name="a.safetensors", content=0):
    """Whether `make_once` made anything."""
    calls = []
    make_once(folder, name, lambda: calls.append(1) or state(content), seed=seed, recipe=recipe)
    return bool(calls)


# ---- one file ------------------------------------------------------------------------------------------------------


def test_round_trip(tmp_path):
    path = tmp_path / "a.safetensors"
    save_state(state(), path)
    back = load_state(path)
    assert set(back) == set(state())
    for name, value in state().items():
        assert back[name].dtype == value.dtype and torch.equal(back[name], value)
    assert path.stat().st_mode & 0o777 == 0o644


class Bomb:
    def __reduce__(self):
        return Path.touch, (Path("exploded"),)


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
@pytest.mark.parametrize("kind", ["zip", "legacy", "pickle"])
def test_pickles_are_refused_by_name_and_never_run(tmp_path, monkeypatch, kind, suffix):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / f"theirs.{suffix}"
    if kind == "pickle":
        path.write_bytes(pickle.dumps(Bomb()))
    else:
        torch.save({"w": torch.zeros(2), "bomb": Bomb()}, path, _use_new_zipfile_serialization=kind == "zip")
    assert zipfile.is_zipfile(path) == (kind == "zip")
    with pytest.raises(UserError, match=r"theirs\.\w+ is a pickle.*again as \.safetensors") as refusal:
        load_state(path)
    assert not isinstance(refusal.value, Damaged)
    assert not (tmp_path / "exploded").exists()


def test_a_pickle_of_the_oldest_protocol_is_not_run_either(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "old.safetensors"
    path.write_bytes(pickle.dumps(Bomb(), protocol=0))
    with pytest.raises(UserError, match=r"old\.safetensors"):
        load_state(path)
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize(
    "low",
    [
        0x78,
        0x80,
        0x88,
    ],
)
def test_safetensors_of_any_header_length_load(tmp_path, low):
    path = tmp_path / "a.safetensors"
    for length in range(1, 300):
        save_state({"x" * length: torch.zeros(2)}, path)
        if struct.unpack("<Q", path.read_bytes()[:8])[0] & 0xFF == low:
            break
    assert path.read_bytes()[0] == low
    assert list(load_state(path)) == ["x" * length]


@pytest.mark.parametrize("left", [0, 4, 8, 20, -1])
def test_a_truncated_file_is_damaged(tmp_path, left):
    path = tmp_path / "a.safetensors"
    save_state(state(), path)
    path.write_bytes(path.read_bytes()[:left])
    with pytest.raises(Damaged, match=r"a\.safetensors is not a readable safetensors file"):
        load_state(path)


@pytest.mark.parametrize("content", [b"no weights at all", b"\xff" * 64, struct.pack("<Q", 2**62) + b"{}"])
def test_another_kind_of_file_is_damaged(tmp_path, content):
    (tmp_path / "a.safetensors").write_bytes(content)
    with pytest.raises(Damaged, match=r"a\.safetensors"):
        load_state(tmp_path / "a.safetensors")


def test_no_file_is_the_users_error(tmp_path):
    for path in (tmp_path / "none.safetensors", tmp_path):
        with pytest.raises(UserError, match=f"no weights at {path}"):
            load_state(path)


# ---- a folder with its manifest ------------------------------------------------------------------------------------


def test_what_was_made_is_loaded_with_its_hash(tmp_path):
    assert made(tmp_path)
    back, found = load_checked(tmp_path, "a.safetensors")
    assert found == state_hash(state()) == state_hash(back) == read_manifest(tmp_path)["hashes"]["a.safetensors"]


@pytest.mark.parametrize("byte", [-1, -20, -60])
def test_a_flipped_byte_is_found(tmp_path, byte):
    made(tmp_path)
    path = tmp_path / "a.safetensors"
    content = bytearray(path.read_bytes())
    content[byte] ^= 1
    path.write_bytes(content)
    assert load_state(path)
    with pytest.raises(Damaged, match=r"a\.safetensors is damaged: its content hash is [0-9a-f]{12}, the manifest"):
        load_checked(tmp_path, "a.safetensors")


def test_weights_that_the_manifest_does_not_name_are_refused(tmp_path):
    made(tmp_path)
    save_state(state(), tmp_path / "b.safetensors")
    with pytest.raises(Damaged, match=r"b\.safetensors"):
        load_checked(tmp_path, "b.safetensors")


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "{}", '{"seed": "0", "hashes": {}}', '{"seed": 0}'])
def test_a_damaged_manifest_is_named_with_a_remedy(tmp_path, text):
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(Damaged, match=r"manifest\.json is damaged: delete the folder"):
        read_manifest(tmp_path)


def test_no_manifest_is_the_users_error(tmp_path):
    with pytest.raises(UserError, match=f"no manifest.json in {tmp_path}"):
        load_checked(tmp_path, "a.safetensors")


def test_the_same_recipe_keeps_what_is_there(tmp_path):
    assert made(tmp_path / "deep" / "er")
    before = (tmp_path / "deep" / "er" / "a.safetensors").stat().st_mtime_ns
    assert not made(tmp_path / "deep" / "er", content=1)
    assert (tmp_path / "deep" / "er" / "a.safetensors").stat().st_mtime_ns == before


@pytest.mark.parametrize("change", [{"seed": 1}, {"recipe": {**RECIPE, "steps": 11}}])
def test_another_recipe_or_seed_makes_it_anew(tmp_path, change):
    made(tmp_path)
    made(tmp_path, name="b.safetensors")
    assert made(tmp_path, content=1, **change)
    assert load_checked(tmp_path, "a.safetensors")[1] == state_hash(state(1))
    manifest = read_manifest(tmp_path)
    assert {key: manifest[key] for key in change} == change
    with pytest.raises(Damaged):  # what another recipe left must not pass for this one's
        load_checked(tmp_path, "b.safetensors")
    assert made(tmp_path, name="b.safetensors", **change)


def test_a_file_that_is_gone_or_was_never_finished_is_made_anew(tmp_path):
    made(tmp_path)
    (tmp_path / "a.safetensors").unlink()
    assert made(tmp_path)
    (tmp_path / "b.safetensors").write_bytes(b"half a f")
    assert made(tmp_path, name="b.safetensors") and not made(tmp_path)
    assert load_checked(tmp_path, "b.safetensors")


def test_a_damaged_file_is_made_anew_as_its_error_message_advises(tmp_path):
    made(tmp_path)
    (tmp_path / "a.safetensors").write_bytes(b"damaged")
    assert made(tmp_path)


def test_making_on_a_damaged_manifest_is_the_users_error(tmp_path):
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(UserError, match=r"manifest\.json"):
        made(tmp_path)


def test_a_failure_in_making_leaves_no_entry(tmp_path):
    made(tmp_path)
    with pytest.raises(ZeroDivisionError):
        make_once(tmp_path, "b.safetensors", lambda: 1 / 0, seed=0, recipe=RECIPE)
    assert list(read_manifest(tmp_path)["hashes"]) == ["a.safetensors"]


# ---- what is shipped -----------------------------------------------------------------------------------------------


def folders():
    return sorted(path.parent for path in ASSETS.rglob("manifest.json"))


def test_every_shipped_file_is_in_a_manifest_and_fits_its_hash():
    assert DigitsClass("3").folder in folders()
    for folder in folders():
        hashes = read_manifest(folder)["hashes"]
        weights = {path for path in folder.rglob("*") if path.is_file() and path.suffix != ".json"}
        assert {folder / name for name in hashes} == weights, "beside configurations there are weights alone"
        for name, expected in hashes.items():
            assert load_checked(folder, name)[1] == expected
    pages = set((ASSETS.parents[1] / "report" / "assets").iterdir())
    assert {path.suffix for path in pages} == {".html", ".css", ".js"}
    shipped = {path for path in ASSETS.rglob("*") if path.is_file()}
    assert shipped == {path for folder in folders() for path in folder.rglob("*") if path.is_file()}


def test_shipped_files_are_small():
    for name, limit in (("digits-class", 4_000_000), ("digits-text", 8_000_000), ("cifar10-class", 11_000_000)):
        assert sum(path.stat().st_size for path in (ASSETS / name).rglob("*") if path.is_file()) < limit
    assert {folder.name for folder in folders()} == {"digits-class", "digits-text", "cifar10-class"}
