"""What tests of planted faults share: the metrics by what they look at, ways to plant a fault, a loop over metrics.

A fault is one test, which tries it in every metric that it touches and names all metrics that miss it.
"""

import pickle
from dataclasses import replace

import pytest

from unlearnbench import FeatureMetric, Outcome, judges, registry
from unlearnbench.judges import Verdict
from unlearnbench.metric import Side
from unlearnbench.testing import toy
from unlearnbench.verification import selfcheck

METRICS = registry.load_metrics()
WITNESSED = [name for name, metric in METRICS.items() if metric.roles()]
"""Metrics of what witnesses say: see test_planted_witnesses."""
SIDED = [name for name, metric in METRICS.items() if metric.side and name not in WITNESSED]
GROUPS = ("forget", "retain", "direct", "synonyms", "held_out", "neighbours")
UTILITY = [name for name in SIDED if METRICS[name].axis == "utility"]
"""Metrics of images that ask for different things, one by one."""
FEATURES = [name for name, metric in METRICS.items() if isinstance(metric, FeatureMetric)]
ALONE = ["inception_score"]
"""Of the samples' features alone."""
JUDGED = [*SIDED, *FEATURES, *ALONE]
UNKNOWN = [name for name in METRICS if name in JUDGED or any(case.low is None for case in METRICS[name].known())]
"""Metrics that must say at times that they have no value."""


class Memory:
    """Builds each toy outcome once and scores it once; most metrics are tried on the same ones.

    One memory serves one fault, because a fault may change how outcomes are built.
    """

    drawn, draw = {}, staticmethod(toy._pixels)

    def __init__(self):
        self.outcomes, self.scores, self.build = {}, {}, toy.outcome

    def pixels(self, images):
        """Those of a list of toy images: they are the same whatever becomes of them."""
        key = pickle.dumps(images)
        if key not in self.drawn:
            self.drawn[key] = self.draw(images)
        return self.drawn[key]

    def outcome(self, *words, **named):
        key = pickle.dumps((words, named))
        if key not in self.outcomes:
            self.outcomes[key] = self.build(*words, **named)
        return self.outcomes[key]

    def fresh(self, *words, **named):
        """The same without what it has cached of itself, for faults in how a metric reads an outcome."""
        return replace(self.outcome(*words, **named))

    def measure(self, name):
        """A metric's `measure` that remembers its scores."""
        measure = type(METRICS[name]).measure

        def remembered(metric, outcome, budget=None):
            key = name, id(outcome)
            if key not in self.scores:  # with the outcome, so that no other one has its id meanwhile
                self.scores[key] = outcome, measure(metric, outcome, budget)
            return self.scores[key][1]

        return remembered


SOUND = Memory()
"""Of outcomes and scores without a fault, for faults that change a score afterwards."""


def every(subjects, attempt, at_least, after_scoring=False, reading=False):
    """Call `attempt(patch, subject)` for each subject, and report together all those that miss the fault.

    `at_least` is the number of subjects: a list that became shorter tries less. With `after_scoring` the fault changes
    scores that were measured as they should be, so that outcomes and scores of earlier tests serve again. With
    `reading` it changes how a metric reads outcomes that were built as they should be, and those serve again.
    """
    subjects = list(subjects)
    assert len(subjects) >= at_least, f"{len(subjects)} of at least {at_least} are tried"
    memory, missed = SOUND if after_scoring or reading else Memory(), []
    for subject in subjects:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(toy, "outcome", memory.outcome if after_scoring else memory.fresh)
            patch.setattr(toy, "_pixels", memory.pixels)
            if after_scoring:
                patch.setattr(type(METRICS[subject]), "measure", memory.measure(subject))
            elif isinstance(METRICS.get(subject), FeatureMetric):  # costs ten times the value; `selfcheck` ignores it
                patch.setattr(type(METRICS[subject]), "interval", lambda *words: None)
            try:
                attempt(patch, subject)
            except (AssertionError, KeyError) as error:
                missed.append(f"{subject}: {error!r}")
    assert not missed, "\n".join(["the fault is missed in", *missed])


def caught(name):
    """The cases that fail; at least one, each with the metric's name, what was found and what was expected."""
    found = selfcheck.failed(selfcheck.check_metric(METRICS[name]))
    assert found, "the fault is not noticed"
    assert all(finding.subject == name and finding.found and finding.expected for finding in found)
    return {finding.case: finding for finding in found}


def passes(name):
    return not selfcheck.failed(selfcheck.check_metric(METRICS[name]))


def plant(patch, name, change):
    """A change to every score of a metric."""
    cls = type(METRICS[name])
    measure = cls.measure
    patch.setattr(cls, "measure", lambda self, outcome, budget=None: change(measure(self, outcome, budget)))


def judged(patch, change):
    """A change to the verdicts on every set of images."""
    judge_all = judges.judge_all

    def changed(judge, images, batch=250):
        verdict, error = judge_all(judge, images, batch)
        return change(verdict), error

    patch.setattr(judges, "judge_all", changed)


def of_changed(patch, change):
    """Outcomes with fields replaced: `change(outcome, seen, reference, real)` gives the new ones."""
    of = Outcome.of

    def changed(samples, plan, seen, reference, real, **parts):
        made = of(samples, plan, seen, reference, real, **parts)
        return replace(made, **change(made, seen, reference, real))

    patch.setattr(Outcome, "of", changed)


def some(side, kept):
    """The images of a side that a mask or a slice keeps."""
    own, besides = (Verdict(*(column[kept] for column in verdict)) for verdict in (side.verdict, side.besides))
    return Side(side.samples[kept], side.asked[kept], own, side.other[kept], besides)
