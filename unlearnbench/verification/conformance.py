"""Check that a method follows the interface, on a tiny model and in seconds."""

from __future__ import annotations

import dataclasses
import io
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from contextvars import ContextVar
from dataclasses import replace
from fnmatch import filter as filter_names
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple, get_type_hints

import torch
from torch import Tensor

from unlearnbench import registry
from unlearnbench.compute.environment import Meter
from unlearnbench.data.wording import Wording
from unlearnbench.diffusion.model import Diffusion
from unlearnbench.diffusion.sampler import Sampler
from unlearnbench.errors import Unsupported, UserError, message, one_line
from unlearnbench.method import ACCESS, Method, can_resume, run_prepare, run_unlearn
from unlearnbench.models.class_unet import ClassUNet
from unlearnbench.models.miniature import SCHEDULE
from unlearnbench.models.stable_diffusion import StableDiffusion
from unlearnbench.pipeline.checkpoints import RunCheckpoints
from unlearnbench.pipeline.unlearning import check_model
from unlearnbench.task import Side, Task
from unlearnbench.tasks._text import TextTask
from unlearnbench.tasks.digits_class import DigitsClass
from unlearnbench.tasks.digits_text import DigitsText
from unlearnbench.training import CannotResume, TrainingState, seeded

STEPS = 4
"""Most steps of a method that is stopped and resumed."""


class TinyDigits(DigitsClass):
    """`digits-class` with a network of a few thousand weights, and two steps at most."""

    def __init__(self, forget: str = "3", **settings: Any):
        super().__init__(forget, **{"limit": 2, **settings})

    def architecture(self, seed: int) -> Diffusion:
        """Fresh weights, two sampling steps."""
        with seeded(seed):
            model = ClassUNet(classes=10, size=8, widths=(8, 16))
        model.sampler = Sampler(steps=2)
        return model.to(self.device)

    def pretrained(self) -> Diffusion:
        """Untrained: conformance is about behaviour, not about forgetting."""
        return self.architecture(0)


class TinyWords(DigitsText):
    """`digits-text` with a Stable Diffusion of a few thousand weights, which cannot be trained from scratch."""

    provides = DigitsText.provides - {"training recipe"}

    def __init__(self, forget: str = "seven", **settings: Any):
        super().__init__(forget, **{"limit": 2, **settings})

    @cached_property
    def tokenizers(self) -> Sequence[Any]:
        """The miniature's tokenizers, with room for what methods add to a name."""
        found = super().tokenizers
        for tokenizer in found:
            tokenizer.model_max_length = 32
        return found

    def _showing(self, which: Side) -> Tensor:
        """One image in 25: enough for a few steps, and quickly compared."""
        shown = super()._showing(which)
        return shown & (torch.arange(len(shown)) % 25 == 0)

    def architecture(self, seed: int) -> Diffusion:
        """Fresh weights, two sampling steps; captions and latents are the miniature's own."""
        with seeded(seed):
            model = tiny(self.tokenizers)
        model.sampler = replace(self.protocol.sampler, steps=2)
        return model.to(self.device)

    def pretrained(self) -> Diffusion:
        """Untrained."""
        return self.architecture(0)


def tiny(tokenizers: Sequence[Any]) -> StableDiffusion:
    """A tiny Stable Diffusion: cross-attention on one of two levels, 8x8 latents of four channels, text states of 16
    numbers.
    """
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    words = tokenizers[0]
    special = {name: getattr(words, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    config = CLIPTextConfig(
        vocab_size=len(words),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=words.model_max_length,
        **special,
    )
    unet: Any = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=16,
        attention_head_dim=4,
        norm_num_groups=8,
    )
    vae: Any = AutoencoderKL(
        block_out_channels=(8, 8),
        norm_num_groups=8,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
    )
    return StableDiffusion(unet, vae, [CLIPTextModel(config)], tokenizers, SCHEDULE)


def kind_of(make_task: Callable[..., Task]) -> str:
    """What conditions of a tiny task are: "text" or "class labels"."""
    return "text" if make_task is TinyWords else "class labels"


def tried_on(cls: type[Method]) -> Callable[..., Task]:
    """The tiny task that has what the method needs; digits are tried first."""
    return TinyDigits if cls.requires <= TinyDigits.provides | TinyDigits.model_parts else TinyWords


def _tried(cls: type[Method]) -> Iterator[tuple[Callable[[], Task], dict[str, Any]]]:
    """The settings of the default and of every preset, each with the tiny task of the same kind as theirs."""
    first = tried_on(cls)
    yield first, cls.preset("default", first().name)
    texts = [name for name in registry.tasks() if issubclass(registry.load_task(name), TextTask)]
    fitting = [make for make in (TinyDigits, TinyWords) if cls.requires <= make.provides | make.model_parts]
    for by_task in cls.offered().values():
        for pattern, settings in by_task.items():
            text, others = (bool(filter_names(some, pattern)) for some in (texts, {*registry.tasks()} - {*texts}))
            meant = TinyDigits if not text else first if others else TinyWords
            if meant in fitting and (text or others):
                yield meant, settings


class DoesNotConform(UserError):
    """A method does not conform; the message says what to fix."""


class _Run(NamedTuple):
    """What a run of a method leaves."""

    method: Method
    """With the settings that it ran with."""
    model: Any
    """What `unlearn` returned: may be anything."""
    printed: str
    changed: list[Side]
    """Sides of the task's data that are not what they were."""


_runs: ContextVar[dict[Any, _Run] | None] = ContextVar("runs", default=None)
"""Runs that the checks share, each by its kind of task, its settings and its number."""


@contextmanager
def _shared(runs: dict[Any, _Run]) -> Iterator[None]:
    """Within this block runs are looked up here and kept here."""
    token = _runs.set(runs)
    try:
        yield
    finally:
        _runs.reset(token)


def _run(method: Method, make_task: Callable[[], Task], number: int = 0) -> _Run:
    """Run the method on a new task, unless a check did it before. Runs with other numbers are the same once more."""
    key, runs = (make_task, repr(method.settings()), number), _runs.get()
    if runs is None:
        return _new_run(method, make_task())
    if key not in runs:
        runs[key] = _new_run(method, make_task())
    return runs[key]


def _new_run(method: Method, task: Task) -> _Run:
    sides: tuple[Side, ...] = ("forget", "retain")
    before = {side: tuple(value.clone() for value in task.data(side)) for side in sides}
    with redirect_stdout(io.StringIO()) as printed:
        model = _kept(method, task, RunCheckpoints(None, method, task))
    after = {side: task.data(side) for side in sides}
    changed = [side for side in sides if not all(map(torch.equal, before[side], after[side]))]
    return _Run(method, model, printed.getvalue(), changed)


def _kept(method: Method, task: Task, checkpoints: RunCheckpoints) -> Diffusion:
    """The unlearned model, whose training goes on from these checkpoints and adds to them."""
    if method.incomplete:
        raise Unsupported(f"{method.name} runs only with settings that a user gives")
    task = method.worded(task)
    with seeded(task.seed):
        model = method.wrap(task.pretrained(), task)
    with seeded(task.seed):
        kept = checkpoints.prepared()
        with Meter(task.device, memory=False) as meter, checkpoints.stage("prepare"):
            prepared = kept.value if kept else run_prepare(method, model, task)
        if not kept:
            checkpoints.keep_prepared(prepared, meter)
        with checkpoints.stage("unlearn"):
            return run_unlearn(method, model, task, prepared)  # may be anything: see returns_a_model


def described(cls: type[Method]) -> None:
    """Docstrings say what the method is: the file's first line is shown by `list`."""
    if not (sys.modules[cls.__module__].__doc__ or "").strip():
        raise DoesNotConform(
            'the file has no docstring: begin it with one line, """Name: idea (Authors, Venue year)."""'
        )
    if not (cls.__doc__ or "").strip() or (cls.__doc__ or "").startswith(f"{cls.__name__}("):
        raise DoesNotConform(f"{cls.__name__} has no docstring: give the formula and its source")


def dataclass_fields(cls: type[Method]) -> None:
    """A frozen dataclass whose fields are typed and have defaults: `--set` checks them, records hold them."""
    if not dataclasses.is_dataclass(cls) or "__dataclass_params__" not in vars(cls):
        raise DoesNotConform(f"{cls.__name__} is no dataclass: put @dataclass(frozen=True) above it")
    if not vars(cls)["__dataclass_params__"].frozen:
        raise DoesNotConform(f"{cls.__name__} can be changed: write @dataclass(frozen=True)")
    own = {name for name, value in vars(cls).items() if not name.startswith("_") and not callable(value)}
    own -= {name for name in own if isinstance(vars(cls)[name], (property, classmethod, staticmethod))}
    if (
        loose := own
        - {field.name for field in dataclasses.fields(cls)}
        - set(Method.__annotations__)  # what a method says of itself, all of it class variables
    ):
        raise DoesNotConform(
            f"{', '.join(sorted(loose))} has no type, so --set and records ignore it: write `name: float = …`"
        )
    hints = get_type_hints(cls)
    for field in dataclasses.fields(cls):
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise DoesNotConform(f"field {field.name} has no default: give it one")
        if field.name not in hints:
            raise DoesNotConform(f"field {field.name} has no type: write `{field.name}: float = …`")


def presets(cls: type[Method]) -> None:
    """Every preset names fields of the method and values that fit them; `space` names at most six fields."""
    for settings in cls.offered().values():
        for values in settings.values():
            cls.configured(values)
    known = {field.name for field in dataclasses.fields(cls)}
    strange = set(cls.space) - known
    if strange or len(cls.space) > 6:
        raise DoesNotConform(f"space may name at most six of the fields {sorted(known)}; it has {sorted(cls.space)}")


def access(cls: type[Method]) -> None:
    """`requires` is a frozenset of kinds of access and parts of a model."""
    parts = {*TinyWords.model_parts, *TinyDigits().pretrained().parts()}
    strange = set(cls.requires) - set(ACCESS) - parts
    if strange:
        raise DoesNotConform(
            f"requires names {', '.join(sorted(strange))}; known: {', '.join([*ACCESS, *sorted(parts)])}"
        )


def returns_a_model(cls: type[Method]) -> str:
    """`unlearn` returns a Diffusion with finite weights, for the default and every preset."""
    done = list[Any]()
    for tried, settings in _tried(cls):
        method = cls.configured(_plain(settings))
        if (tried, method.settings()) not in done:
            check_model(method, _run(method, tried).model)
            done.append((tried, method.settings()))
    return f"{_meaning(returns_a_model)} Tried on {' and '.join(dict.fromkeys(kind_of(tried) for tried, _ in done))}."


def reads_text(cls: type[Method]) -> str:
    """`unlearn` works with prompts as it does with class labels: conditions are token ids (N, L) there."""
    lacking = cls.requires - TinyWords.provides - TinyWords.model_parts
    if lacking:
        return f"Not tried on text: it requires {', '.join(sorted(lacking))}, which the tiny task does not have."
    if tried_on(cls) is TinyDigits:
        method = cls.configured(_plain(cls.preset("default", TinyWords.name)))
        try:
            check_model(method, _run(method, TinyWords).model)
        except Unsupported as reason:
            return f"Not tried on text: {reason}."
    return f"{_meaning(reads_text)} Tried on text."


def _plain(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings without words: these are of other tasks, and no part of a method's arithmetic."""
    return {name: value for name, value in settings.items() if name not in Wording._fields}


def repeatable(cls: type[Method]) -> None:
    """The same seed gives the same weights: randomness comes from torch's global generator and the task alone."""
    one, two = (_run(cls(), tried_on(cls), number).model.state_dict() for number in range(2))
    for name, value in one.items():
        if not torch.equal(value, two[name]):
            raise DoesNotConform(
                f"two runs with one seed differ in {name}: draw randomness from torch and the task only"
            )


def reloads(cls: type[Method]) -> None:
    """Stored weights, loaded into `wrap` of a fresh model, predict the same: nothing hides outside weights and wrap."""
    task = tried_on(cls)()
    run = _run(cls(), tried_on(cls))
    model, again = run.model.eval(), run.method.wrap(task.architecture(1), task)
    try:
        again.load_state_dict(model.state_dict())
    except RuntimeError as error:
        raise DoesNotConform(
            f"the weights do not fit wrap(model): {str(error).splitlines()[0]}: build new structure in wrap"
        ) from error
    x_t, t = torch.randn(4, *model.shape), torch.tensor([0, 10, 500, 999])
    y = torch.cat(
        [task.names("forget")[:1], task.names("retain")[:1], task.names("forget")[:1], task.names("retain")[-1:]]
    )
    with torch.inference_mode():
        if not torch.equal(model.eps(x_t, t, y), again.eval().eps(x_t, t, y)):
            raise DoesNotConform(
                "the model predicts otherwise after saving and loading: keep structure in wrap, values in weights"
            )
        sampler = replace(task.pretrained().sampler, steps=2, guidance=2.0)
        guided = [network.sample(y, [0, 1, 2, 3], sampler=sampler) for network in (model, again)]
    if not torch.equal(*guided):
        raise DoesNotConform(
            "the model samples otherwise after saving and loading: set guidance in wrap, not in unlearn"
        )


def quiet(cls: type[Method]) -> None:
    """A method prints nothing: progress is the engine's, through task.batches and track."""
    if printed := _run(cls(), tried_on(cls)).printed:
        raise DoesNotConform(f"it prints {printed[:40]!r}: take the print out")


def leaves_data_alone(cls: type[Method]) -> None:
    """The task's images are shared by all methods and must not change."""
    for side in _run(cls(), tried_on(cls)).changed:
        raise DoesNotConform(f"it changed the {side} images in place: work on copies")


class _Stop(Exception):
    """A run is stopped here."""


class _Stopping(RunCheckpoints):
    """Checkpoints after every step, of a run that is stopped after some."""

    left = 0
    """Steps until then."""

    def reached(self, state: TrainingState, step: int) -> None:
        """Keep the step, then stop if it is time."""
        super().reached(state, step)
        self.left -= state is self._open  # not a step of a loop within another one's stream
        if self.left == 0:
            raise _Stop


def stopped_and_resumed(method: Method, make_task: Callable[[], Task], every: int = 3) -> tuple[Diffusion, int]:
    """The model of a run that is stopped after every `every` steps of training and resumed, and how often it was."""
    stops = 0
    with tempfile.TemporaryDirectory() as folder:
        while True:
            task = make_task()
            checkpoints = _Stopping(Path(folder), method, task, every=0.0)
            checkpoints.left = every
            try:
                return _kept(method, task, checkpoints), stops
            except _Stop:
                stops += 1


def resumes(cls: type[Method]) -> str | None:
    """A method with `resumes = True` that is stopped at a step and goes on ends in the same weights, bit for bit."""
    if not can_resume(cls):
        return "Not declared: a run that was stopped begins again."
    make_task = partial(tried_on(cls), limit=STEPS)
    task = make_task()
    whole = _kept(cls(), task, RunCheckpoints(None, cls(), task)).state_dict()
    try:
        model, stops = stopped_and_resumed(cls(), make_task)
    except CannotResume as error:
        raise DoesNotConform(
            f"resumes = True, but its stream cannot be brought to a step ({error}): use `gradients` in place of "
            "backward(), or leave resumes out"
        ) from error
    if not stops:
        raise DoesNotConform("resumes = True, but it takes no steps with minimise: leave resumes out")
    for name, value in model.state_dict().items():
        if not torch.equal(value, whole[name]):
            raise DoesNotConform(
                f"resumes = True, but stopped at a step and resumed it comes to another {name}: name what its stream "
                "changes from step to step in minimise(others=...), or leave resumes out"
            )
    return None


CHECKS: tuple[Callable[[type[Method]], str | None], ...] = (
    described, dataclass_fields, presets, access, returns_a_model, reads_text, repeatable, reloads, quiet,
    leaves_data_alone, resumes,
)  # fmt: skip
"""Each raises an error where the method does not conform; it may return what it found, in place of its meaning."""


def _meaning(check: Callable[..., Any]) -> str:
    return (check.__doc__ or "").partition("\n")[0]


def _line(cls: type[Method], error: BaseException) -> str:
    own = {str(path) for path in cls.own_files()}
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename in own]
    return f" (line {lines[-1]})" if lines else ""


def conformance(cls: type[Method]) -> Iterator[tuple[str, str, str | None]]:
    """Run every check; yield its name, its meaning or what it found, and failure (None if it passed), in order.

    Checks look at the same runs of the method where they can.
    """
    runs: dict[Any, _Run] = {}
    for check in CHECKS:
        meaning = _meaning(check)
        where = " on text, where conditions are token ids (N, L)" if check is reads_text else ""
        try:
            with _shared(runs), redirect_stdout(io.StringIO()):  # `quiet` reports what it prints
                meaning = check(cls) or meaning
        except Unsupported as reason:
            yield check.__name__, meaning, f"not tried here: {reason}"
        except UserError as failure:
            yield check.__name__, meaning, message(failure)
            if check is returns_a_model:
                return  # the other checks need a model and would report the same cause
        except (Exception, SystemExit) as error:  # noqa: BLE001 - the user's code may fail in any way
            yield check.__name__, meaning, f"it fails{where} with {one_line(error)}{_line(cls, error)}"
            if check is returns_a_model:
                return
        else:
            yield check.__name__, meaning, None
