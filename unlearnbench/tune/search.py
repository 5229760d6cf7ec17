"""Tune one method: the same number of trials and the same cap for all, by the score that tables rank by."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unlearnbench.compute.environment import now
from unlearnbench.errors import UserError
from unlearnbench.hashing import digest
from unlearnbench.method import Method
from unlearnbench.pipeline.code_hashes import engine_hash, method_code
from unlearnbench.records.schema import Selection
from unlearnbench.records.tuning import Anchors, Cost, RunValue, Trial, Tuning
from unlearnbench.task import Task
from unlearnbench.tune.space import Candidate, candidates, distributions

if TYPE_CHECKING:
    from optuna import Study

PROTOCOL = "selection"
SEEDS = (100, 101, 102)
"""Unlearning seeds: every trial uses the first; the best few also use the others."""
FINALISTS = 3
OBJECTIVE = 2
"""Version of what is maximized: the score of the leaderboard, the worst of erasure, likeness to retrain and utility."""
CONCEPTS = {"digits-class": ("0", "1"), "digits-text": ("two", "green"), "cifar10-class": ("bird", "truck")}
"""Concepts to forget while tuning, by task; never those that are reported."""
TRIALS = 24
CAP = 400_000
"""Default cap on evaluations per run.

On `digits-class` the default settings take 7,680 (gradient_ascent) to 79,488 (esd_retain) evaluations, and twice that
with the most steps in `space`. Published presets take up to 384,128 (salun), except for selective_amnesia's 20,000
steps, which the cap stops."""

Evaluate = Callable[[Method, str, str, int], RunValue]
"""(settings, name of the trial, concept, seed) -> outcome of the run."""
Told = Callable[[str], None]


@dataclass(frozen=True)
class Budget:
    """What all methods tuned on a task have in common."""

    task: type[Task]
    forget: tuple[str, ...]
    trials: int = TRIALS
    cap: int = CAP
    device: str = "cpu"
    seeds: tuple[int, ...] = SEEDS

    @property
    def finalists(self) -> int:
        """Number of candidates that are run with every seed."""
        return min(FINALISTS, self.trials)

    @property
    def announced(self) -> int:
        """Largest number of times that `tuned` reports progress for a method."""
        return self.trials + self.finalists

    def selection(self) -> Selection:
        """What settings are chosen on, as records name it."""
        task = self.bare()
        return Selection(
            forget=self.forget,
            seeds=self.seeds,
            sampling_seed=task.protocol.sampling_seed,
            judge=task.judge().hash,
            trials=self.trials,
        )

    def bare(self, forget: str | None = None, seed: int = SEEDS[0]) -> Task:
        """The task with the selection protocol."""
        return self.task(forget or self.forget[0], protocol=PROTOCOL, seed=seed, device=self.device)


def budget(
    task: type[Task], forget: Sequence[str] = (), trials: int = TRIALS, cap: int = CAP, device: str = "cpu"
) -> Budget:
    """Make the budget; refuse a task without a selection protocol or without anchors."""
    if trials < 1:
        raise UserError(f"--trials {trials} is none: give 1, which is the default settings alone, or more")
    if cap < 1:
        raise UserError(f"--cap {cap} is below 1: give the model evaluations that a run may take")
    if PROTOCOL not in task.protocols:
        raise UserError(
            f"{task.name} cannot be tuned on: it has no protocol {PROTOCOL!r}, and settings must be chosen on other "
            "concepts, prompts, noise and judge than those reported (never on I2P); give settings with --set"
        )
    if "training recipe" not in task.provides:
        raise UserError(f"{task.name} cannot be tuned on: no retrain can be made there, which likeness 1 is")
    chosen = tuple(task.resolve_concept(word) for word in forget or CONCEPTS.get(task.name, ()))
    if not chosen:
        raise UserError(f"{task.name} has no concepts set apart for tuning: name some with --forget")
    found = Budget(task, chosen, trials, cap, device)
    for name, protocol in task.protocols.items():
        if name != PROTOCOL and protocol.sampling_seed == task.protocols[PROTOCOL].sampling_seed:
            raise UserError(f"{task.name} cannot be tuned on: its protocols {PROTOCOL} and {name} share their noise")
        if name != PROTOCOL and protocol.judge == task.protocols[PROTOCOL].judge:
            raise UserError(f"{task.name} cannot be tuned on: its protocols {PROTOCOL} and {name} share their judge")
    return found


def tuning_identity(given: Budget, cls: type[Method]) -> dict[str, Any]:
    """What the trials of a method depend on. Their number is left out: fewer trials are the first of more."""
    task = given.bare()
    return {
        "task": task.name,
        "protocol": task.protocol.hash,
        "forget": list(given.forget),
        "objective": OBJECTIVE,
        "seeds": list(given.seeds),
        "cap": given.cap,
        "device": given.device,
        "original": task.model_identity().hash,
        "judge": task.judge().hash,
        "engine": engine_hash(given.task),
        "method": [cls.name, method_code(cls)],
        "space": {name: str(spread) for name, spread in distributions(cls.space).items()},
        "presets": [candidate.settings for candidate in candidates(cls, task.name, 2) if candidate.presets],
    }


def tuning_key(given: Budget, cls: type[Method]) -> str:
    """Hash of everything that determines a tuning's result."""
    return digest([tuning_identity(given, cls), given.trials, FINALISTS])


def tuned(
    given: Budget,
    cls: type[Method],
    folder: Path,
    evaluate: Evaluate,
    anchors: dict[str, Anchors],
    environment: dict[str, Any],
    told: Told = lambda line: None,
) -> Tuning:
    """Run every trial that `folder` does not hold yet, then the best few with the other seeds, and choose the best.

    A run that diverged, failed or exceeded the cap ends its trial, which counts but has no value. A drawn candidate is
    also stopped after its first concept if no value on the others could make it a finalist; this does not change the
    choice. Of equal means the earlier trial wins, so that the default stays unless something is better.
    """
    wanted = candidates(cls, given.task.name, given.trials)
    with journal(folder, digest(tuning_identity(given, cls))) as study:
        for number in range(given.trials):
            if number not in _kept(study):  # read each time: another process may run the same trials
                told(f"{cls.name} · trial {number + 1} of {given.trials}")
                needed = None if wanted[number].presets else _needed(given, list(_kept(study).values()))
                trial = _tried(given, cls, number, wanted[number], evaluate, needed)
                study.add_trial(_finished(trial, given))
        kept = _kept(study)
    trials = [kept[number] for number in range(given.trials)]
    for place, number in enumerate(_best(given, trials)):
        told(f"{cls.name} · finalist {place + 1} of {given.finalists}")
        more = _runs(given, cls, trials[number], given.seeds[1:], evaluate)
        trials[number] = trials[number].model_copy(update={"runs": (*trials[number].runs, *more)})
    chosen = _chosen(given, trials)
    task = given.bare()
    return Tuning(
        key=tuning_key(given, cls),
        task=task.name,
        protocol=task.protocol.name,
        protocol_hash=task.protocol.hash,
        method=cls.name,
        code_hash=method_code(cls),
        engine_hash=engine_hash(given.task),
        space=cls.space,
        cap=given.cap,
        selection=given.selection(),
        anchors=anchors,
        trials=tuple(trials),
        chosen=chosen,
        settings=None if chosen is None else trials[chosen].settings,
        cost=Cost(
            runs=sum(len(trial.runs) for trial in trials),
            evaluations=sum(trial.evaluations for trial in trials),
            seconds=round(sum(trial.seconds for trial in trials), 1),
        ),
        environment=environment,
        created=now(),
    )


@contextmanager
def journal(folder: Path, name: str) -> Iterator[Study]:
    """The finished trials of one identity, in a file that survives a stop."""
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    folder.mkdir(parents=True, exist_ok=True)
    storage = JournalStorage(JournalFileBackend(str(folder / "trials.log")))
    yield optuna.create_study(study_name=name, storage=storage, direction="maximize", load_if_exists=True)


def _kept(study: Study) -> dict[int, Trial]:
    """Finished trials by number; if two processes ran the same one, the first."""
    found = [Trial.model_validate(one.user_attrs["trial"]) for one in study.get_trials(deepcopy=False)]
    return {trial.number: trial for trial in reversed(found)}


def _finished(trial: Trial, given: Budget) -> Any:
    """A trial in optuna's form: complete with a value, pruned if cut or over the cap, else failed."""
    from optuna.trial import TrialState, create_trial

    states = {"ok": TrialState.PRUNED if trial.cut else TrialState.COMPLETE, "over the cap": TrialState.PRUNED}
    about = {"trial": trial.model_dump(mode="json")}
    value = trial.mean(given.seeds[:1], given.forget)
    return create_trial(state=states.get(trial.state, TrialState.FAIL), value=value, user_attrs=about)


def _needed(given: Budget, kept: Sequence[Trial]) -> float | None:
    """Least objective with the first seed that makes a finalist; None while there are too few finished trials."""
    finished = {trial.number: trial for trial in kept}
    best = _best(given, kept)
    return finished[best[-1]].mean(given.seeds[:1], given.forget) if len(best) == FINALISTS else None


def _tried(
    given: Budget,
    cls: type[Method],
    number: int,
    candidate: Candidate,
    evaluate: Evaluate,
    needed: float | None,
) -> Trial:
    trial = Trial(number=number, presets=candidate.presets, settings=candidate.settings, runs=())  # type: ignore[arg-type]
    runs: list[RunValue] = []
    for run in _runs(given, cls, trial, given.seeds[:1], evaluate):
        runs.append(run)
        left = len(given.forget) - len(runs)  # concepts on which the objective is at most 1, as erasure is
        most = left + sum(one.objective or 0.0 for one in runs)
        if left and run.state == "ok" and needed is not None and most / len(given.forget) < needed:
            return trial.model_copy(update={"runs": tuple(runs), "cut": True})
    return trial.model_copy(update={"runs": tuple(runs)})


def _runs(
    given: Budget, cls: type[Method], trial: Trial, seeds: Sequence[int], evaluate: Evaluate
) -> Iterator[RunValue]:
    """Run every seed and concept, up to the first run without a value."""
    for seed in seeds:
        for forget in given.forget:
            run = evaluate(cls.configured(trial.settings), f"trial-{trial.number}", forget, seed)
            yield run
            if run.state != "ok":
                return


def _best(given: Budget, trials: Sequence[Trial]) -> list[int]:
    """Numbers of the best trials by the first seed, with settings that differ."""
    values = [(trial.mean(given.seeds[:1], given.forget), trial) for trial in trials]
    order = sorted((-value, trial.number, digest(trial.settings)) for value, trial in values if value is not None)
    distinct: dict[str, int] = {}
    for _, number, settings in order:
        distinct.setdefault(settings, number)
    return list(distinct.values())[: given.finalists]


def _chosen(given: Budget, trials: Sequence[Trial]) -> int | None:
    finals = [(trial.mean(given.seeds, given.forget), -trial.number) for trial in trials]
    best = max(((value, number) for value, number in finals if value is not None), default=None)
    return None if best is None else -best[1]
