"""What tests of planted faults share: the metrics by what they look at, and ways to plant a fault."""

from dataclasses import replace

from unlearnbench import FeatureMetric, Outcome, judges, registry, selfcheck
from unlearnbench.judges import Verdict
from unlearnbench.metric import Side

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


def caught(name):
    """The cases that fail; at least one, each with the metric's name, what was found and what was expected."""
    found = selfcheck.failed(selfcheck.answers(METRICS[name]))
    assert found, "the fault is not noticed"
    assert all(finding.subject == name and finding.found and finding.expected for finding in found)
    return {finding.case: finding for finding in found}


def passes(name):
    return not selfcheck.failed(selfcheck.answers(METRICS[name]))


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
