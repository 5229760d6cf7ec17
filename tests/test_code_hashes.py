"""What code a result depends on: its own, and no other."""

from pathlib import Path

import pytest

from unlearnbench import hashing, registry, stages
from unlearnbench.tasks.digits_class import DigitsClass

ROOT = Path(stages.__file__).parent


@pytest.fixture
def hashed(monkeypatch):
    """The files that went into the task's hash."""
    seen = []
    monkeypatch.setattr(stages, "source_hash", lambda paths: seen.extend(paths) or hashing.source_hash(paths))
    stages.engine_hash.__wrapped__(DigitsClass)
    return {str(path.relative_to(ROOT)) for path in seen}


def test_the_task_its_model_its_judges_and_the_core_count(hashed):
    assert hashed == {
        *(f"{name}.py" for name in ("diffusion", "sampling", "training", "task", "method", "hashing")),
        "tasks/digits_class.py",
        "models/unet.py",
        "judges/__init__.py",
        "judges/digits.py",
        "judges/fidelity.py",
    }


@pytest.mark.parametrize(
    "line",
    [
        "from unlearnbench.models.unet import ClassUNet",
        "from unlearnbench.models import unet",
        "import unlearnbench.models.unet",
        "def f():\n    from unlearnbench.models.unet import ClassUNet",
    ],
)
def test_imports_are_found_however_they_are_written(tmp_path, line):
    (tmp_path / "a.py").write_text(f"import os\nfrom unlearnbench.store import Store\n{line}\n")
    assert ROOT / "models/unet.py" in stages.imported(tmp_path / "a.py", ROOT)
    assert ROOT / "store.py" not in stages.imported(tmp_path / "a.py", ROOT)


@pytest.mark.parametrize(
    ("name", "files"),
    [
        ("finetune", {"finetune.py"}),
        ("esd_u", {"esd_u.py", "esd.py", "losses.py"}),
        ("blindspot", {"blindspot.py", "activations.py"}),
        ("receler", {"receler.py", "adapters.py", "activations.py", "losses.py"}),
        ("uce", {"uce.py", "edits.py"}),
        ("erasediff_released", {"erasediff_released.py", "losses.py"}),
    ],
)
def test_a_methods_code_is_its_own_files_and_the_building_blocks_that_they_import(name, files):
    assert {path.name for path in registry.load_method(name).sources()} == files
