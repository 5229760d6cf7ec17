"""Every built-in method and template passes every conformance check, and each check can fail."""

import itertools
import re
from functools import partial

import pytest
import torch

from tests.support.short_runs import shortened
from unlearnbench import registry
from unlearnbench.cli.templates import STYLES, method_template
from unlearnbench.errors import UserError
from unlearnbench.tasks.digits_class import splits
from unlearnbench.verification import conformance as check
from unlearnbench.verification.conformance import CHECKS, TinyDigits, conformance

BUILT_IN = [name for name, entry in registry.methods().items() if entry.point is None]

FILE = """{docstring}

from dataclasses import dataclass
from itertools import count

import numpy as np
import torch

from unlearnbench import Method, minimise
from unlearnbench.tasks.digits_class import splits

counter = count()


{above}
class Trial(Method):
    {about}

    {fields}

    def unlearn(self, model, task, prepared=None):
        {body}
        return {returned}
"""

GOOD = {
    "docstring": '"""Trial: one line."""',
    "above": "@dataclass(frozen=True)",
    "about": '"""A formula."""',
    "fields": "lr: float = 0.001",
    "body": "minimise((model.loss(batch) for batch in task.batches(2, 4, 'retain')), model.select('full'), self.lr)",
    "returned": "model",
}

numbers = itertools.count()


def load(tmp_path, **changes):
    """A method written to a file; each has a name of its own, since modules are kept by name."""
    path = tmp_path / f"trial_{next(numbers)}.py"
    path.write_text(FILE.format(**{**GOOD, **changes}))
    return registry.load_method(str(path))


def failures(cls):
    return {name: message for name, _, message in conformance(cls) if message is not None}


@pytest.fixture
def shared_images():
    """The images are kept for all tests, so that a method which changes them must not outlive its own."""
    before = splits()["train"].x0.clone()
    yield
    splits()["train"].x0.copy_(before)


@pytest.fixture
def briefly(monkeypatch):
    """Checks run methods for one short step, and for three of which the second is stopped at.

    Of presets that differ in numbers alone, which take the same path, one is run.
    """
    shortest = {task: partial(task, limit=1) for task in (TinyDigits, check.TinyWords)}
    monkeypatch.setattr(check, "STEPS", 3)
    monkeypatch.setattr(check, "stopped_and_resumed", partial(check.stopped_and_resumed, every=2))

    def few(method):
        return shortened(method, steps=check.STEPS, batch_size=4, sampler_steps=2)

    def of_other_paths(cls):
        seen = []
        for make_task, settings in tried(cls):
            values = few(cls.configured(check._plain(settings))).settings()
            path = (
                make_task,
                {key: bool(value) if isinstance(value, int | float) else value for key, value in values.items()},
            )
            if path not in seen:
                seen.append(path)
                yield make_task, settings

    run, kept, tried = check._run, check._kept, check._tried
    monkeypatch.setattr(check, "_tried", of_other_paths)
    monkeypatch.setattr(check, "_run", lambda method, task, *rest: run(few(method), shortest[task], *rest))
    monkeypatch.setattr(check, "_kept", lambda method, *rest: kept(few(method), *rest))


@pytest.mark.parametrize("name", BUILT_IN)
@pytest.mark.usefixtures("briefly")
def test_built_in_methods_conform(name):
    cls = registry.load_method(name)
    failed = failures(cls)
    assert set(failed) == (RUNS if cls.incomplete else set()), failed
    assert all(said.startswith("not tried here: ") for said in failed.values())


def test_every_built_in_method_is_tried_on_every_check():
    assert len(BUILT_IN) * len(CHECKS) >= 252
    assert [name for name in BUILT_IN if registry.load_method(name).incomplete] == ["checkpoint"]


def test_the_built_in_methods_are_all_there():
    assert {"original", "destroy", "retrain", "finetune", "gradient_ascent"} < set(BUILT_IN)
    assert {"erasediff", "esd", "esd_retain", "salun"} < set(BUILT_IN)


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.usefixtures("briefly")
def test_templates_conform(tmp_path, style):
    path = tmp_path / f"template_{style}.py"
    path.write_text(method_template(path.stem, style))
    cls = registry.load_method(str(path))
    assert failures(cls) == {}
    assert cls.__name__ == f"Template{style.capitalize()}"


def test_a_good_method_has_no_failures(tmp_path):
    found = list(conformance(load(tmp_path)))
    assert [failure for _, _, failure in found if failure is not None] == []
    assert [name for name, _, _ in found] == [check.__name__ for check in CHECKS]
    assert all(meaning for _, meaning, _ in found)


HIDDEN_BIAS = "model.predict = lambda *a, plain=model.predict: plain(*a) + 1"
GUIDANCE = "model.guidance = lambda m, x, t, i, c, null, w: m.eps(x, t, c); model.guidance.start = lambda n: None"
NEW_MODULE = "model.gate = torch.nn.Linear(2, 2)"
FREE_SPACE = "lr: float = 0.001\n    space = {'rate': (0.0, 1.0)}"
SEVEN = "\n    ".join(f"f{i}: float = 0.1" for i in range(7))
WIDE_SPACE = SEVEN + "\n    space = {f'f{i}': (0.0, 1.0) for i in range(7)}"
PRESET_KEY = "lr: float = 0.001\n    presets = {'published': {'elsewhere': {'rate': 1.0}}}"
PRESET_VALUE = "lr: float = 0.001\n    presets = {'published': {'elsewhere': {'lr': 'fast'}}}"
REQUIRES = "requires = frozenset({'forget images', 'the moon'})"
NAN_PRESET = "lr: float = 0.0\n    presets = {'published': {'*': {'lr': 1e30}}}"
FILL = "model.embedding.weight.data.fill_(self.lr).mul_(self.lr)"  # 1e60 is beyond float32
NAN = "torch.nn.init.constant_(model.embedding.weight, float('nan'))"
NUMPY = "model.embedding.weight.data += np.random.rand()"
COUNTED = "model.embedding.weight.data += next(counter)"
OVERWRITE = "splits()['train'].x0.mul_(0.5)"
RESUMES = "lr: float = 0.001\n    resumes = True"
CARRIED = """
        def losses(before=0.0):
            for batch in task.batches(4, 4, 'retain'):
                loss = model.loss(batch)
                yield loss * before if before else loss
                before = loss.item()
        minimise(losses(), model.select('full'), self.lr)"""
BACKWARD = """
        def losses():
            for batch in task.batches(4, 4, 'retain'):
                model.loss(batch).backward()
                yield {name: value.grad.clone() for name, value in model.select('full').items()}
        minimise(losses(), model.select('full'), self.lr)"""

BAD = [
    ({"docstring": "# a comment", "body": "pass"}, {"described": "the file has no docstring"}),
    ({"about": "pass", "body": "pass"}, {"described": "Trial has no docstring"}),
    ({"above": "", "fields": "lr = 0.001", "body": "pass"}, {"dataclass_fields": "Trial is no dataclass"}),
    ({"fields": "lr: float"}, {"dataclass_fields": "field lr has no default"}),
    ({"fields": PRESET_KEY, "body": "pass"}, {"presets": "unknown setting of .* 'rate'"}),
    ({"fields": PRESET_VALUE, "body": "pass"}, {"presets": "lr=fast does not fit"}),
    ({"fields": FREE_SPACE, "body": "pass"}, {"presets": "it has \\['rate'\\]"}),
    ({"fields": WIDE_SPACE, "body": "pass"}, {"presets": "at most six"}),
    ({"fields": REQUIRES, "body": "pass"}, {"access": "the moon"}),
    ({"returned": "None"}, {"returns_a_model": "returned NoneType"}),
    ({"returned": "model.state_dict()"}, {"returns_a_model": "returned .*Dict, not a Diffusion"}),
    ({"body": NAN}, {"returns_a_model": "not finite .embedding.weight"}),
    ({"fields": NAN_PRESET, "body": FILL}, {"returns_a_model": "not finite .embedding.weight"}),
    ({"body": NUMPY}, {"repeatable": "differ in embedding.weight"}),
    ({"body": COUNTED}, {"repeatable": "differ in embedding.weight"}),
    ({"body": HIDDEN_BIAS}, {"reloads": "predicts otherwise"}),
    ({"body": GUIDANCE}, {"reloads": "samples otherwise"}),
    ({"fields": "lr: float = 0.001\n    weight = 0.2", "body": "pass"}, {"dataclass_fields": "weight has no type"}),
    ({"body": NEW_MODULE}, {"reloads": "do not fit wrap"}),
    ({"body": "print('step 1')"}, {"quiet": "prints 'step 1"}),
    ({"fields": RESUMES, "body": CARRIED}, {"resumes": "stopped at a step and resumed it comes to another unet"}),
    ({"fields": RESUMES, "body": BACKWARD}, {"resumes": "cannot be brought to a step"}),
    ({"fields": RESUMES, "body": "pass"}, {"resumes": "takes no steps with minimise"}),
    ({"body": OVERWRITE}, {"leaves_data_alone": "changed the forget images"}),
]
RUNS = {"returns_a_model", "repeatable", "reloads", "quiet", "leaves_data_alone"}
ALSO = {"returns_a_model": RUNS, "dataclass_fields": RUNS}
"""What may fail as well where the method cannot be made or gives no model."""


@pytest.mark.usefixtures("shared_images")
@pytest.mark.parametrize(("changes", "expected"), BAD, ids=lambda value: "-".join(value) if value else "")
def test_a_bad_method_fails_its_check_and_says_why(tmp_path, changes, expected):
    cls = load(tmp_path, **changes)
    ((name, message),) = expected.items()
    failed = failures(cls)
    assert re.search(message, failed[name])
    assert set(failed) - {name, "reads_text"} <= ALSO.get(name, set()), "some are of class labels alone"


def test_a_check_works_by_itself(tmp_path):
    with pytest.raises(UserError, match=r"differ in embedding\.weight"):
        check.repeatable(load(tmp_path, body=COUNTED))


def test_checks_share_runs(tmp_path):
    told = f"open({str(tmp_path / 'runs')!r}, 'a').write('x')"
    assert failures(load(tmp_path, body=told)) == {}
    assert len((tmp_path / "runs").read_text()) == 3, "two on class labels, since they must be equal, and one on text"


def test_a_dataclass_that_can_be_changed_does_not_load(tmp_path):
    with pytest.raises(UserError, match="cannot inherit non-frozen"):
        load(tmp_path, above="@dataclass")


def test_an_error_in_the_method_is_a_failure_with_its_kind(tmp_path):
    failed = failures(load(tmp_path, body="raise KeyError('gone')"))
    assert set(failed) == {"returns_a_model"}, "one cause is named once"
    assert re.fullmatch(r"it fails with KeyError: 'gone' \(line \d+\)", failed["returns_a_model"])


REPEATED = """
        for batch in task.batches(1, 4, 'retain'):
            t, noise, x_t = model.noised(batch.x0)
            y = task.names('retain'){}
            minimise([(model.eps(x_t, t, y) - noise).square().mean()], model.select('full'), self.lr)"""


def test_a_method_that_fails_on_prompts_does_not_conform(tmp_path):
    failed = failures(load(tmp_path, body=REPEATED.format("[0].expand(len(x_t))")))
    assert set(failed) == {"reads_text"}
    assert re.match(r"it fails on text, .* with RuntimeError: .*\(line \d+\)", failed["reads_text"])
    assert failures(load(tmp_path, body=REPEATED.format("[[0] * len(x_t)]"))) == {}, "as the guide says"


def test_what_a_method_was_tried_on_is_said(tmp_path):
    for fields, labels, text in (
        ("lr: float = 0.001", "Tried on class labels.", "Tried on text."),
        ("requires = frozenset({'retain images', 'xattn'})\n    lr: float = 0.001", "Tried on text.", "Tried on text."),
        (
            "requires = frozenset({'retain images', 'training recipe'})\n    lr: float = 0.001",
            "class labels.",
            "Not tried",
        ),
    ):
        said = {name: found for name, found, _ in conformance(load(tmp_path, fields=fields, body="pass"))}
        assert labels in said["returns_a_model"] and text in said["reads_text"]
        assert said["resumes"].startswith("Not declared")


def test_a_part_that_the_model_lacks_counts_as_not_tried(tmp_path):
    failed = failures(load(tmp_path, body="model.select('xattn')"))
    assert set(failed) == RUNS
    assert all(message.startswith("not tried here: this model has no part 'xattn'") for message in failed.values())


def test_the_tiny_task_is_quick_and_like_the_real_one():
    task = TinyDigits()
    assert task.name == "digits-class"
    assert sum(value.numel() for value in task.pretrained().parameters()) < 50_000
    assert len(list(task.paired_batches(60, 8))) == 2
    with torch.inference_mode():
        assert task.pretrained().sample(torch.tensor([3, 4]), [1, 2]).shape == (2, 1, 8, 8)
