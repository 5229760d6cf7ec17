"""Fixtures of all tests: never the user's own store, and the command line within this process."""

from __future__ import annotations

import copy
import ctypes
import functools
import gc
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: workers must not fight for cores
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import pytest

from tests.support.small_world import small_protocol, small_text_protocol

if TYPE_CHECKING:
    from tests.support.web import Web

CACHE = "UNLEARNBENCH_CACHE"


@pytest.fixture(scope="session", autouse=True)
def shared_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One store for the whole session, so that the original's samples are drawn once."""
    folder = tmp_path_factory.mktemp("store")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(CACHE, str(folder))
        for name in ("UNLEARNBENCH_DEBUG", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
            patch.delenv(name, raising=False)
        yield folder


@pytest.fixture(scope="session")
def kept_from_collection() -> dict[str, Any]:
    """What was loaded when objects were last kept out of garbage collection."""
    return {}


@pytest.fixture(autouse=True)
def no_collection_of_what_stays(request: pytest.FixtureRequest, kept_from_collection: dict[str, Any]) -> None:
    """Keep loaded libraries out of garbage collection: each run collects before it measures memory.

    Again in each file, and after each test that imported something: most libraries are imported where they are used.
    """
    now = {"file": request.path, "modules": len(sys.modules)}
    if kept_from_collection != now:
        kept_from_collection.update(now)
        gc.collect()
        gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def what_stays_is_made_once() -> Iterator[None]:
    """The parser of the command line and the lists of what there is: each takes longer than a light command.

    What other packages offer is looked up anew where `sys.path` is another.
    """
    import typer.main

    from unlearnbench import registry

    parser, offered = functools.cache(typer.main.get_command), registry.entry_points
    found = registry._found
    listed = functools.cache(lambda kind, package: found(kind))
    known: dict[Any, Any] = {}

    def entry_points(group: str) -> Any:
        where = (group, *sys.path)
        if where not in known:
            known[where] = offered(group=group)
        return known[where]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(typer.main, "get_command", parser)
        patch.setattr(registry, "entry_points", entry_points)
        patch.setattr(registry, "_found", lambda kind: dict(listed(kind, registry.PACKAGE)))
        yield


@pytest.fixture(scope="session", autouse=True)
def latents_of_several_folders_stay() -> Iterator[None]:
    """The images of `digits-text`, encoded by each folder's autoencoder: seconds for the shipped one.

    A user has one folder or two, whose latents the task keeps. The tests go from folder to folder and back.
    """
    from unlearnbench.tasks import digits_text

    encoded = digits_text.latents.__wrapped__
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(digits_text, "latents", functools.lru_cache(maxsize=8)(encoded))  # 4 MB each
        yield


@pytest.fixture(scope="session", autouse=True)
def pictures_are_packed_loosely() -> Iterator[None]:
    """A record's sample grid is written in a tenth of the time, and shows the same."""
    from PIL import Image

    plain = Image.Image.save

    def save(self: Any, fp: Any, format: str | None = None, **about: Any) -> None:
        loosely = {**about, "optimize": False, "compress_level": 1} if about.get("optimize") else about
        plain(self, fp, format, **loosely)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Image.Image, "save", save)
        yield


@pytest.fixture(scope="session", autouse=True)
def no_timing_of_samples() -> Iterator[None]:
    """Runs do not compare the seconds per image, which takes longer than the rest of a run on a small model.

    `tests/pipeline/test_timing.py` tests the comparison itself.
    """
    from unlearnbench.pipeline import timing

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(timing, "timed_beside_original", lambda cell, weights: 1.0)
        yield


@pytest.fixture(scope="session", autouse=True)
def memory_stays_with_the_process() -> Iterator[None]:
    """Memory is not handed back after every chunk, metric and large tensor: small runs want it again at once.

    Where memory is measured, it is handed back before as ever.
    """
    from unlearnbench.pipeline import judging, sampling, scoring

    with suppress(AttributeError):  # a C library other than GNU's
        for parameter, size in ((-3, 1 << 25), (-1, 1 << 30)):  # M_MMAP_THRESHOLD, M_TRIM_THRESHOLD
            ctypes.CDLL(None).mallopt(parameter, size)
    with pytest.MonkeyPatch.context() as patch:
        for module in (judging, sampling, scoring):
            patch.setattr(module, "trim", lambda: None)
        yield


@pytest.fixture(scope="session", autouse=True)
def small_text() -> Iterator[Any]:
    """The smoke protocol of `digits-text` is smaller yet in this process; gives it as it is in others."""
    from unlearnbench.tasks.digits_text import DigitsText

    smoke = DigitsText.protocols["smoke"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(DigitsText.protocols, "smoke", small_text_protocol(smoke))
        yield smoke


@pytest.fixture
def fresh_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store of this test's own."""
    folder = tmp_path / "fresh-store"
    monkeypatch.setenv(CACHE, str(folder))
    return folder


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """`digits-class` with a few images and sampling steps."""
    from unlearnbench.tasks.digits_class import DigitsClass

    monkeypatch.setitem(DigitsClass.protocols, "default", small_protocol())


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Web]:
    """A web server with one file, which plays the hub too; small blocks, no pauses, no proxies, nobody's login."""
    from huggingface_hub import constants

    from tests.support.web import BODY, web
    from unlearnbench.data import download

    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1000)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))

    monkeypatch.setattr(download, "BLOCK", 1000)
    monkeypatch.setattr(download, "PAUSE", 0.0)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    with web() as served:
        monkeypatch.setenv("HF_ENDPOINT", served.url)
        served.files["a"] = BODY
        yield served


class Said(NamedTuple):
    """What a command left behind."""

    code: int
    out: str
    err: str

    @property
    def errors(self) -> list[str]:
        """Lines on stderr, progress apart."""
        return [line for line in self.err.splitlines() if not re.match(r"\[\d+/\d+\] ", line)]


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Callable[..., Said]:
    """Call the entry point with these words, in an empty folder and a terminal of 200 columns."""
    from unlearnbench import cli as module
    from unlearnbench.cli import verify

    monkeypatch.chdir(tmp_path)
    for console in (module.out, verify.out):
        monkeypatch.setattr(console, "_width", 200)

    def call(*words: object) -> Said:
        monkeypatch.setattr(sys, "argv", ["unlearnbench", *map(str, words)])
        capsys.readouterr()
        code = 0
        try:
            module.main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        said = capsys.readouterr()
        return Said(code, said.out, said.err)

    return call


@pytest.fixture(scope="session")
def sd_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Stable Diffusion as a diffusers folder."""
    from tests.support import tiny_sd

    return tiny_sd.save(tmp_path_factory.mktemp("sd1") / "model", "sd1")


@pytest.fixture(scope="session")
def sd_before(sd_folder: Path) -> Any:
    """The same, loaded; not to be changed."""
    from unlearnbench.models.loading import load_stable_diffusion

    return load_stable_diffusion(sd_folder).requires_grad_(False)


@pytest.fixture
def sd(sd_before: Any) -> Any:
    """A copy of it to work on."""
    return copy.deepcopy(sd_before)


@pytest.fixture
def sd_after(sd_before: Any) -> Any:
    """The same network unlearned by others: every weight of U-Net and text encoder is another."""
    import torch

    after, generator = copy.deepcopy(sd_before), torch.Generator().manual_seed(1)
    for weight in [*after.unet.parameters(), *after.text_encoders.parameters()]:
        weight += 0.1 * torch.randn(weight.shape, generator=generator)
    return after


@pytest.fixture
def few_training_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """One of fifty on `digits-text`, of both sides: methods that go through all of one side have a few batches then."""
    import torch

    from unlearnbench.tasks.digits_text import DigitsText

    real = DigitsText._showing

    def showing(task: DigitsText, side: Any) -> Any:
        kept = real(task, side)
        return kept & (torch.arange(len(kept)) % 50 == 0)

    monkeypatch.setattr(DigitsText, "_showing", showing)
