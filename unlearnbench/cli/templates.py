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

STYLES = {"losses": LOSSES, "loop": LOOP, "edit": EDIT}


def method_template(name: str, style: str) -> str:
    """The text of a method file."""
    words = name.split("_")
    return STYLES[style].format(title=" ".join(words), cls="".join(word[:1].upper() + word[1:] for word in words))
