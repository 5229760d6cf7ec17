"""Working starts for a new method or concept file, for `unlearnbench new-method` and `new-concept`."""

CONCEPT = """name = "{name}"   # as records and folders show it

[[concept]]                      # one such table for each thing to forget
names = ["seven"]                # what methods are told
synonyms = ["7"]                 # what they are not told: is the concept gone, or its name alone?
substitute = "one"               # what takes its place
neighbours = ["eight", "five"]   # labels of the judge, where damage shows first
# These stand for the task's forget prompts; its other groups of prompts stay. May be left out.
prompts = ["a photo of a {{}}", "a blue {{}}"]
# judge = "seven"                # the judge's label that shows it, where that is not the first name
"""

LOSSES = '''"""{title}: one line on the idea (Authors, Venue year)."""

from dataclasses import dataclass

from unlearnbench import Method, minimise


@dataclass(frozen=True)
class {cls}(Method):
    """L = L_r + || eps_theta(x_t, c_f) - sg eps_theta(x_t, c_m) ||^2, which relabels. Replace it with yours."""

    steps: int = 60
    """Updates; `T` in the paper."""
    lr: float = 1e-3
    """Learning rate of Adam."""
    batch_size: int = 64
    """Images a batch, of each of the two sets."""

    def unlearn(self, model, task, prepared=None):
        """Adam on a stream of losses, one for each pair of batches."""

        def loss(forget, retain):
            t, noise, x_t = model.noised(forget.x0)
            wrong = model.eps(x_t, t, task.substitute(forget.y)).detach()
            return model.loss(retain) + (model.eps(x_t, t, forget.y) - wrong).square().mean()

        pairs = task.paired_batches(self.steps, self.batch_size)
        minimise((loss(*pair) for pair in pairs), model.select("full"), self.lr)
        return model
'''

LOOP = '''"""{title}: one line on the idea (Authors, Venue year)."""

from dataclasses import dataclass

import torch

from unlearnbench import Method, gradients


@dataclass(frozen=True)
class {cls}(Method):
    """Alternate one step away from the forget set with one step back to the retain set. Replace by your own loop."""

    steps: int = 60
    """Updates away from the forget set, and as many back."""
    lr_forget: float = 1e-4
    """Learning rate of the ascent (plain gradient steps)."""
    lr_retain: float = 1e-3
    """Learning rate of Adam on the retain set."""
    batch_size: int = 64
    """Images a batch, of each of the two sets."""

    def unlearn(self, model, task, prepared=None):
        """Two optimisers, one loop: plain ascent on L_f, Adam on L_r."""
        parameters = model.select("full")
        ascent = torch.optim.SGD(parameters.values(), self.lr_forget, maximize=True)
        repair = torch.optim.Adam(parameters.values(), self.lr_retain)
        for forget, retain in task.paired_batches(self.steps, self.batch_size):
            for optimiser, batch in ((ascent, forget), (repair, retain)):
                for name, grad in gradients(model.loss(batch), parameters).items():
                    parameters[name].grad = grad
                optimiser.step()
        return model
'''

EDIT = '''"""{title}: one line on the idea (Authors, Venue year)."""

import copy
from dataclasses import dataclass

import torch

from unlearnbench import Method, minimise


@dataclass(frozen=True)
class {cls}(Method):
    """Task arithmetic: theta <- theta_0 - scale (theta_f - theta_0), theta_f tuned to forget images. Replace it."""

    steps: int = 30
    """Updates that tune the model to the forget set."""
    lr: float = 3e-4
    """Learning rate of Adam."""
    scale: float = 0.5
    """How far to go the other way; `alpha` in the paper."""
    batch_size: int = 64
    """Images a batch."""
    requires = frozenset({{"forget images"}})

    def prepare(self, model, task):
        """theta_f, timed apart from the edit itself."""
        tuned = copy.deepcopy(model)
        losses = (tuned.loss(batch) for batch in task.batches(self.steps, self.batch_size, "forget"))
        minimise(losses, tuned.select("full"), self.lr)
        return tuned.select("full")

    def unlearn(self, model, task, prepared):
        """One edit of the weights, without training."""
        with torch.no_grad():
            for name, value in model.select("full").items():
                value -= self.scale * (prepared[name] - value)
        return model
'''

METRIC = '''"""{title}: one line on what it measures (Authors, Venue year)."""

from collections.abc import Iterator

import torch

from unlearnbench import Known, Metric, Outcome, Score
from unlearnbench.testing import toy


class {cls}(Metric):
    """Mean shade of each forget sample, 0 (black) to 1 (white). Neither direction is better. Replace it with yours."""

    title, axis, better = "{title}", "efficacy", None  # axis: efficacy, utility or cost; better: higher, lower or None
    side = "forget"  # the group whose every image has a value; leave it out if there is one value for all images
    limits = (0.0, 1.0)  # what values are possible
    digits = 3  # decimals in tables

    def measure(self, outcome: Outcome, budget: int | None = None) -> Score:
        """The mean over images. An image that the judge failed on is missing, for this metric too."""
        # samples are uint8 (N, 3, H, W), and too many to hold at once: take them in parts
        parts = outcome.forget.samples.split(1000)
        shades = torch.cat([part.float().flatten(1).mean(dim=1) / 255 for part in parts])
        return Score.mean(shades, outcome.forget.verdict.missing)

    def known(self) -> Iterator[Known]:
        """Images whose answer is known. A metric with a better direction also needs quality="good" and "bad"."""
        yield Known("black", toy.shaded(0, 0, 0), 0.0)
        yield Known("half of it white", toy.shaded(0, 255, 0, 255), 0.5)
'''

STYLES = {"losses": LOSSES, "loop": LOOP, "edit": EDIT}


def method_template(name: str, style: str) -> str:
    """The text of a method file."""
    return _named(STYLES[style], name)


def metric_template(name: str) -> str:
    """The text of a metric file."""
    return _named(METRIC, name)


def _named(template: str, name: str) -> str:
    words = name.split("_")
    return template.format(title=" ".join(words), cls="".join(word[:1].upper() + word[1:] for word in words))
