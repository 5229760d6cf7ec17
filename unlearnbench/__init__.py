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
    from unlearnbench.attack import Attack as Attack
    from unlearnbench.attack import Look as Look
    from unlearnbench.diffusion import Batch as Batch
    from unlearnbench.diffusion import Condition as Condition
    from unlearnbench.diffusion import Diffusion as Diffusion
    from unlearnbench.method import Method as Method
    from unlearnbench.metric import FeatureMetric as FeatureMetric
    from unlearnbench.metric import Known as Known
    from unlearnbench.metric import Metric as Metric
    from unlearnbench.metric import Outcome as Outcome
    from unlearnbench.metric import Score as Score
    from unlearnbench.models.checkpoints import apply_checkpoint as apply_checkpoint
    from unlearnbench.models.checkpoints import checkpoint_hash as checkpoint_hash
    from unlearnbench.progress import track as track
    from unlearnbench.rows import Table as Table
    from unlearnbench.rows import taken as taken
    from unlearnbench.sampling import Guidance as Guidance
    from unlearnbench.sampling import Sampler as Sampler
    from unlearnbench.task import Plan as Plan
    from unlearnbench.task import Protocol as Protocol
    from unlearnbench.task import Task as Task
    from unlearnbench.training import Diverged as Diverged
    from unlearnbench.training import gradients as gradients
    from unlearnbench.training import minimise as minimise
    from unlearnbench.watching import note as note

_PUBLIC = {
    "Attack": "attack",
    "Batch": "diffusion",
    "Condition": "diffusion",
    "Diffusion": "diffusion",
    "Diverged": "training",
    "FeatureMetric": "metric",
    "Guidance": "sampling",
    "Known": "metric",
    "Look": "attack",
    "Method": "method",
    "Metric": "metric",
    "Outcome": "metric",
    "Plan": "task",
    "Protocol": "task",
    "Sampler": "sampling",
    "Score": "metric",
    "Table": "rows",
    "Task": "task",
    "apply_checkpoint": "models.checkpoints",
    "checkpoint_hash": "models.checkpoints",
    "gradients": "training",
    "minimise": "training",
    "note": "watching",
    "taken": "rows",
    "track": "progress",
}

__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'unlearnbench' has no attribute {name!r}")
    value = getattr(import_module(f"unlearnbench.{_PUBLIC[name]}"), name)
    globals()[name] = value
    return value
