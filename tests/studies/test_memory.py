"""Memory does not grow with the number of images: in a process of its own, since a peak is the whole process's."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


# What is freed goes back to the system at once: else the peak tells of glibc's habits, 10 to 50 MiB from run to run.
HAND_BACK = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "131072", "MALLOC_TRIM_THRESHOLD_": "131072"}


def told(images: int, features: int, tmp_path: Path) -> dict[str, float]:
    """Peak and growth in MiB of a run on stand-ins."""
    environment = {"PATH": "", "UNLEARNBENCH_CACHE": str(tmp_path), "HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.studies.memory", str(images), "--features", str(features)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=environment | HAND_BACK,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "status ok, without value: []" in done.stdout
    return {name: float(value) for name, value in re.findall(r"(peak|growth) ([\d.]+) MiB", done.stdout)}


@pytest.mark.slow
def test_neither_images_nor_features_are_held(tmp_path):
    """12,000 more images and three sets of 10,800 features of 512 numbers would be 98 MiB; distances, hundreds more."""
    few, many = (told(images, 512, tmp_path) for images in (1000, 13_000))
    assert many["growth"] < few["growth"] + 50


@pytest.mark.slow
def test_50000_images_take_less_than_a_fifth_more_than_1000(tmp_path):
    few, many = (told(images, 512, tmp_path) for images in (1000, 50_000))
    assert many["peak"] < 1.2 * few["peak"]
