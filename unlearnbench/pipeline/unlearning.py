"""The unlearning stage of a run."""

from __future__ import annotations

import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from unlearnbench.compute.device import device_trouble, noted_casts, numerics
from unlearnbench.compute.environment import Meter, describe_environment, memory_in_use, now
from unlearnbench.compute.evaluation_budget import counted
from unlearnbench.compute.offloading import offload_networks
from unlearnbench.compute.precision import out_of_memory, too_little
from unlearnbench.diffusion.model import Diffusion
from unlearnbench.errors import Failed, UserError, one_line
from unlearnbench.hashing import seed_of
from unlearnbench.method import Method, run_prepare, run_unlearn
from unlearnbench.pipeline.cell import Cell
from unlearnbench.pipeline.checkpoints import RunCheckpoints
from unlearnbench.pipeline.monitor import Watch
from unlearnbench.pipeline.stored_weights import UNCHANGED, unchanged_names
from unlearnbench.training import CannotResume, Diverged, current_microbatches, seeded


def unlearn(
    cell: Cell, watch: Watch | None = None, checkpoints: RunCheckpoints | None = None
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Prepare and unlearn on a copy of the original, with timing; refuse a result that is no model or not finite.

    The device holds that copy and what the method makes, nothing else. Watching and keeping checkpoints change neither
    the weights nor the times, which leave out what they take. Times are those of all processes that worked on it.
    Raises `CannotResume` if the checkpoints do not fit the method.
    """
    task, method = cell.worded, cell.method
    offload_networks()
    watch, checkpoints = watch or Watch(task.device, on=False), checkpoints or RunCheckpoints(None, method, task)
    for side in ("forget", "retain"):
        if f"{side} images" in method.requires:
            task.count(side)  # a task may sample its images here, before the clock starts
    _require_fitting(cell)
    others = memory_in_use(task.device)
    with (
        seeded(seed_of("structure", task.seed) >> 1),
        name_errors(method),
    ):  # what `wrap` adds may be initialized at random
        model = task.starting() if method.trains else task.pretrained()
        before = _copied(model)
        model = cell.resources.equip(method.wrap(model, task))
    with (
        counted(model) as count,
        seeded(seed_of("unlearning", task.seed) >> 1),
        name_errors(method),
        cell.resources.training(task.device),
        noted_casts() as casts,
        watch.hearing(model),
    ):
        measured = count is None  # within a tuning budget no cost is reported, so none is measured
        kept = checkpoints.prepared(count)
        with Meter(task.device, memory=measured, others=others) as preparing, checkpoints.stage("prepare"):
            prepared = kept.value if kept else run_prepare(method, model, task)
        preparation = kept or checkpoints.keep_prepared(prepared, preparing)
        aside = watch.aside
        with Meter(task.device, memory=measured, others=others) as unlearning, checkpoints.stage("unlearn"):
            watch.begin()
            model = run_unlearn(method, model, task, prepared)
        used = numerics(task.device)
        used["autocast"] = ", ".join(sorted(casts)) or used["autocast"]
    check_model(method, model)
    seconds = checkpoints.corrected(unlearning.seconds) - (watch.aside - aside)
    state = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    watch.end(state, seconds)
    changed, stored = _changes(state, before)
    known = [part.memory for part in (preparation, unlearning) if part.memory is not None]
    cost = {
        "prepare_time": preparation.seconds - aside,
        "unlearn_time": seconds,
        "peak_memory": max(known) if known else None,
        "peak_memory_kind": ("allocated on CUDA" if task.device == "cuda" else "growth of the resident set")
        if known
        else "this system cannot tell",
        "trained_parameters": changed,
        "stored_size": stored,
        "evaluations": count.evaluations if count else None,
    }
    return state, {
        "cost": cost,
        "environment": {
            **describe_environment(task.device),
            **cell.resources.named(),
            **_split(),
            "numerics": {**cell.resources.numerics(task.device), "unlearning": used},
        },
        "created": now(),
        UNCHANGED: sorted(unchanged_names(state, before)),
    }


def _split() -> dict[str, int]:
    """How many images networks saw at once, where memory did not allow whole batches."""
    micro = current_microbatches.get()
    return {} if micro is None or micro.size is None else {"microbatch": micro.size}


def _require_fitting(cell: Cell) -> None:
    """Refuse a batch size given by the user that is larger than the number of all images of the task.

    A batch larger than one side repeats its images: they are reshuffled as often as needed.
    """
    asked = (cell.overrides or {}).get("batch_size")
    if isinstance(asked, int) and {"forget images", "retain images"} & cell.method.requires:
        most = cell.worded.count("forget") + cell.worded.count("retain")
        if asked > most:
            raise UserError(
                f"batch_size={asked} does not fit {cell.method.name} on {cell.task.name}: it has {most} images in all, "
                "give at most that"
            )


@contextmanager
def name_errors(method: Method) -> Iterator[None]:
    """Turn an error in a method's own code into one line that says where it happened."""
    try:
        yield
    except (UserError, Diverged, CannotResume):
        raise
    except (Exception, SystemExit) as error:
        if trouble := device_trouble(error):
            raise trouble from error
        if out_of_memory(error):
            raise too_little(method.name, error, method.settings().get("batch_size")) from error
        own = {str(path) for path in method.own_files()}
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename in own]
        where = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
        raise Failed(
            f"{method.name} failed with {one_line(error)}{where}; UNLEARNBENCH_DEBUG=1 shows the traceback"
        ) from error


def check_model(method: Method, model: Any) -> None:
    """Require that a method returned a `Diffusion` with finite weights."""
    if not isinstance(model, Diffusion):
        raise Failed(
            f"{method.name}.unlearn returned {type(model).__name__}, not a Diffusion: end it with `return model`"
        )
    bad = [
        name for name, value in model.state_dict().items() if value.is_floating_point() and not value.isfinite().all()
    ]
    if bad:
        raise Failed(
            f"{method.name}.unlearn returned weights that are not finite "
            f"({bad[0]} and {len(bad) - 1} more): lower its lr"
        )


def _copied(model: Diffusion) -> dict[str, Tensor]:
    return {name: value.detach().to("cpu", copy=True) for name, value in model.state_dict().items()}


def _changes(state: Mapping[str, Tensor], before: Mapping[str, Tensor]) -> tuple[int, int]:
    """How many numbers differ from those before unlearning, and the bytes of the tensors that contain them."""
    changed = stored = 0
    for name, value in state.items():
        old = before.get(name)
        same = old is not None and old.shape == value.shape
        count = int((value != old).sum()) if old is not None and same else value.numel()
        changed += count
        stored += value.numel() * value.element_size() if count else 0
    return changed, stored


def loaded(cell: Cell, state: dict[str, Tensor]) -> Diffusion:
    """The unlearned model from stored weights."""
    with seeded(0), name_errors(cell.method):
        model = cell.method.wrap(cell.task.architecture(0), cell.worded)
    model.load_state_dict(state)
    return cell.resources.equip(model).eval()
