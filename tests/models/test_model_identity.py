"""Whatever sampling depends on is in the identity of the original, and that in every key."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support import tiny_data, tiny_sd
from tests.support.ddpm_folder import write_folder
from unlearnbench.errors import UserError
from unlearnbench.models.configuration import LEFT_OUT, configuration
from unlearnbench.models.ddpm import ConditionalDDPM
from unlearnbench.pipeline.cell import Cell
from unlearnbench.pipeline.fingerprint import drafted, sample_parts, weight_parts
from unlearnbench.pipeline.scoring import metrics_for
from unlearnbench.registry import load_method, load_task


def leaves(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The place of every field."""
    if isinstance(value, dict | list) and value:
        for key in value if isinstance(value, dict) else range(len(value)):
            yield from leaves(value[key], (*at, key))
    else:
        yield at


def altered(value: Any) -> Any:
    """Another value of about the same kind."""
    if isinstance(value, bool) or value is None:
        return not value
    return value + 1 if isinstance(value, int | float) else f"{value}x" if isinstance(value, str) else [*value, 1]


def mutants(folder: Path) -> Iterator[tuple[str, tuple[Any, ...]]]:
    """Each field of each configuration file, changed on disk while it is yielded and put back after."""
    for path in sorted(folder.rglob("*")):
        if path.suffix not in (".json", ".txt") or not path.is_file():
            continue
        before = path.read_bytes()
        if path.suffix == ".txt":
            path.write_bytes(before + b"x y\n")
            yield path.name, ()
        else:
            for place in leaves(json.loads(before)):
                changed = json.loads(before)
                inner = changed
                for key in place[:-1]:
                    inner = inner[key]
                inner[place[-1]] = altered(inner[place[-1]])
                path.write_text(json.dumps(changed))
                yield path.relative_to(folder).as_posix(), place
        path.write_bytes(before)


@pytest.fixture(params=["sd1", "sdxl", "cifar10"])
def original(request, tmp_path):
    """A task on a folder, and the folder of the model in it."""
    if request.param == "cifar10":
        task = load_task("cifar10-class")
        with torch.random.fork_rng():
            write_folder(ConditionalDDPM(10, 32, task.protocols["smoke"].width), tmp_path / "model")
        made = task("airplane", protocol="smoke", checkpoint=tmp_path / "model")
        return made, tmp_path / "model"
    model = tiny_sd.save(tmp_path / "model", request.param)
    task = load_task("sd-nudity" if request.param == "sd1" else "sdxl-nudity")
    tiny_data.folder(tmp_path / "data")
    return task("nudity", protocol="smoke", data=tmp_path / "data", checkpoint=model), model


def test_every_field_of_every_configuration_file_is_in_it(original):
    task, folder = original
    before, count, left = task.model_identity().hash, 0, set()
    for file, place in mutants(folder):
        count += 1
        try:
            moved = task.model_identity().hash != before
        except UserError as error:  # the index of another kind of model, which is not used at all
            moved = file == "model_index.json" and place[0] in str(error)
        if place and place[-1] in LEFT_OUT:
            left.add(place[-1])
            assert not moved, f"{file}: {place} is said to be left out"
        else:
            assert moved, f"{file}: {place} changed, and the identity did not"
    assert task.model_identity().hash == before
    assert count > 20
    assert left, "the files of the libraries have such fields"


def test_how_a_file_is_laid_out_is_not(original):
    task, folder = original
    before = task.model_identity()
    for path in folder.rglob("*.json"):
        values = json.loads(path.read_text())
        path.write_text(json.dumps(dict(reversed(values.items())) if isinstance(values, dict) else values, indent=7))
    assert task.model_identity() == before


def test_the_configuration_is_in_the_keys_of_samples_weights_and_record(tmp_path):
    model = tiny_sd.save(tmp_path / "model", "sd1")
    tiny_data.folder(tmp_path / "data")

    def keys() -> list[Any]:
        task = load_task("sd-nudity")("nudity", protocol="smoke", data=tmp_path / "data", checkpoint=model)
        cell = Cell(load_method("original")(), task)
        draft = drafted(cell, metrics_for(task))
        return [draft.key, weight_parts(cell, draft), sample_parts(cell, {"w": torch.zeros(1)})]

    before = keys()
    path = model / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "prediction_type": "v_prediction"}))
    assert all(then != now for then, now in zip(before, keys(), strict=True))


def test_a_model_index_without_its_folder_has_no_parts(tmp_path):
    (tmp_path / "model_index.json").write_text('{"unet": ["diffusers", "UNet2DModel"], "_diffusers_version": "0.1"}')
    assert list(configuration(tmp_path)) == ["model_index.json"]
