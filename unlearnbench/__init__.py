"""unlearnbench: what a diffusion model has forgotten, what it kept and what that cost.

The names below are the public interface; each is imported on first use, so that
`import unlearnbench` and the command line's help need not import torch.
"""

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# methods/ and metrics/ lie beside this package in a checkout, inside it once installed.
if not (Path(__file__).parent / "methods").is_dir():
    __path__.append(str(Path(__file__).parents[1]))

if TYPE_CHECKING:
    from unlearnbench.api import run as run
    from unlearnbench.attacks.base import Attack as Attack
    from unlearnbench.attacks.base import Look as Look
    from unlearnbench.diffusion.model import Batch as Batch
    from unlearnbench.diffusion.model import Condition as Condition
    from unlearnbench.diffusion.model import Diffusion as Diffusion
    from unlearnbench.diffusion.model import Guidance as Guidance
    from unlearnbench.diffusion.sampler import Sampler as Sampler
    from unlearnbench.method import Method as Method
    from unlearnbench.metric import FeatureMetric as FeatureMetric
    from unlearnbench.metric import Known as Known
    from unlearnbench.metric import Metric as Metric
    from unlearnbench.metric import Outcome as Outcome
    from unlearnbench.metric import Score as Score
    from unlearnbench.models.external.apply import apply_checkpoint as apply_checkpoint
    from unlearnbench.models.external.apply import checkpoint_hash as checkpoint_hash
    from unlearnbench.reporting import note as note
    from unlearnbench.reporting import track as track
    from unlearnbench.storage.lazy_arrays import Table as Table
    from unlearnbench.storage.lazy_arrays import taken as taken
    from unlearnbench.task import Plan as Plan
    from unlearnbench.task import Protocol as Protocol
    from unlearnbench.task import Task as Task
    from unlearnbench.training import Diverged as Diverged
    from unlearnbench.training import gradients as gradients
    from unlearnbench.training import minimise as minimise

_PUBLIC = {
    "Attack": "attacks.base",
    "Batch": "diffusion.model",
    "Condition": "diffusion.model",
    "Diffusion": "diffusion.model",
    "Diverged": "training",
    "FeatureMetric": "metric",
    "Guidance": "diffusion.model",
    "Known": "metric",
    "Look": "attacks.base",
    "Method": "method",
    "Metric": "metric",
    "Outcome": "metric",
    "Plan": "task",
    "Protocol": "task",
    "Sampler": "diffusion.sampler",
    "Score": "metric",
    "Table": "storage.lazy_arrays",
    "Task": "task",
    "apply_checkpoint": "models.external.apply",
    "checkpoint_hash": "models.external.apply",
    "gradients": "training",
    "minimise": "training",
    "note": "reporting",
    "run": "api",
    "taken": "storage.lazy_arrays",
    "track": "reporting",
}

__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'unlearnbench' has no attribute {name!r}")
    value = getattr(import_module(f"unlearnbench.{_PUBLIC[name]}"), name)
    globals()[name] = value
    return value
