"""Do the tests notice a wrong line? `python -m tests.studies.mutants` plants one at a time in a copy of the project.

Each mutant replaces one fragment of one file; the tests named with it must fail. What survives is printed, and the exit
code is 1. To compare two states of the tests on the same mutants, give the other state's tests with --tests FOLDER
(for example those of a `git worktree`). --only PART takes the mutants whose file contains PART.

Heavy libraries are imported once; each mutant is tried in a fork of that process.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
COPIED = ("unlearnbench", "methods", "metrics", "tests", "pyproject.toml", "README.md")
HEAVY = ("torch", "torchvision", "pandas", "scipy.stats", "sklearn.datasets", "diffusers", "transformers", "pydantic")

PLANTED = "test_planted_faults test_planted_batches test_planted_scorers"
TASKS = "test_planted_task_faults"
ANSWERS = "test_selfcheck test_metrics"
CONFORM = "test_conformance"
TEXT = "test_text_run test_sd_tasks"


class Mutant(NamedTuple):
    """A fragment of a file that occurs once, what stands in its place, and the test files that should notice."""

    path: str
    plain: str
    wrong: str
    tests: str


SELFCHECK, CHECK, METRIC = (
    "unlearnbench/verification/selfcheck.py",
    "unlearnbench/verification/conformance.py",
    "unlearnbench/metric.py",
)
TOY, JUDGES, STAGES = (
    "unlearnbench/testing/toy.py",
    "unlearnbench/judges/__init__.py",
    "unlearnbench/pipeline/unlearning.py",
)
MUTANTS = [
    # what `selfcheck` asks of a metric
    Mutant(SELFCHECK, "score.value is not None and low - slack <= score.value <= high + slack", "True", PLANTED),
    Mutant(SELFCHECK, "slack = 1e-6 * max(1.0, abs(low))", "slack = 0.5", PLANTED),
    Mutant(SELFCHECK, "passed and score.missing == case.missing", "passed", PLANTED),
    Mutant(SELFCHECK, "score.value is None and bool(score.reason)", "score.value is None", PLANTED),
    Mutant(SELFCHECK, "score.value is None and bool(score.reason)", "bool(score.reason)", PLANTED),
    Mutant(SELFCHECK, " and len(score.per_image) == count", "", PLANTED),
    Mutant(SELFCHECK, " and _mean_is(score)", "", PLANTED),
    Mutant(SELFCHECK, "whole &= score.per_image is not None and", "whole &= score.per_image is None or", PLANTED),
    Mutant(SELFCHECK, 'sign = {"higher": 1, "lower": -1}', 'sign = {"higher": 1, "lower": 1}', PLANTED),
    Mutant(SELFCHECK, "right = bool(good and bad) and", "right = True or", PLANTED),
    Mutant(SELFCHECK, "if metric.better is not None or good or bad:", "if metric.better is not None:", PLANTED),
    Mutant(SELFCHECK, "single.value < math.inf", "True", PLANTED),
    Mutant(SELFCHECK, "fine + gone[:4], kept + lost[:4], one * 9", "fine, kept, one * 9", PLANTED),
    Mutant(SELFCHECK, "of(own[::-1])", "of(own)", PLANTED),
    Mutant(SELFCHECK, "abs(floor - value) <= 1e-4 * abs(value)", "True", PLANTED),
    Mutant(
        SELFCHECK, "return score if isinstance(score, Score) else", "return score if score is not None else", PLANTED
    ),
    Mutant(SELFCHECK, 'one_line(error), "no error", False)', 'one_line(error), "no error", True)', PLANTED),
    Mutant(SELFCHECK, "return [finding for finding in found if not finding.passed]", "return []", PLANTED),
    # what it asks of a task and of the controls
    Mutant(SELFCHECK, "value is not None and bounds[0] <= value <= bounds[1]", "value is not None", TASKS),
    Mutant(SELFCHECK, "value is not None and bounds[0] <= value <=", "value is None or bounds[0] <= value <=", TASKS),
    Mutant(SELFCHECK, 'record.status == "ok"\n', "True\n", TASKS),
    Mutant(SELFCHECK, "far <= 1)", "True)", TASKS),
    Mutant(SELFCHECK, "plan[::-1][::step][:size]", "plan[::-1][-size:]", TASKS),
    Mutant(SELFCHECK, 'expected = 64 if side == "forget" else 0', "expected = int(task.forgotten(y).sum())", TASKS),
    Mutant(SELFCHECK, "named >= SURE)", "True)", TASKS),
    Mutant(SELFCHECK, "0.05), shown <= 0.05", "0.05), True", TASKS),
    # known answers, and what they pass through
    Mutant(TOY, "(digit, image.of((i % 3 + (i % 4 == 3)) % 3), i % 3)", "(digit, image.of(i % 3), i % 3)", PLANTED),
    Mutant(TOY, "i // 7, i % 7)", "0, 0)", PLANTED),
    Mutant(JUDGES, "(asked >= domain.start) & (asked < domain.stop)", "(asked >= domain.start)", ANSWERS),
    Mutant(JUDGES, "return torch.where(self.refused, ABSTAINS, self.closed)", "return self.closed", ANSWERS),
    Mutant(METRIC, "images[missing.numpy()] = np.nan", "images[missing.numpy()] = 0", ANSWERS),
    Mutant(METRIC, "images[~counted.numpy()] = np.nan", "pass", ANSWERS),
    Mutant(METRIC, "lost = n - len(kept)", "lost = 0", ANSWERS),
    Mutant(METRIC, "reference, other = other, reference", "pass", ANSWERS),
    # metrics
    Mutant("metrics/ua.py", "side.verdict.label != side.asked", "side.verdict.closed != side.asked", ANSWERS),
    Mutant(
        "metrics/ra.py", "(side.verdict.label == side.asked) & besides", "side.verdict.label == side.asked", ANSWERS
    ),
    Mutant("metrics/ira.py", "side.verdict.label == side.asked", "side.verdict.closed == side.asked", ANSWERS),
    Mutant("metrics/cra.py", ", side.other >= 0)", ")", ANSWERS),
    Mutant("metrics/entropy.py", ".sum(dim=1)", ".mean(dim=1)", ANSWERS),
    Mutant("metrics/nudity_rate.py", "flagged > 0", "flagged > 1", ANSWERS),
    Mutant("metrics/detector_agreement.py", "(first > 0) == second", "(first > 0) & second", ANSWERS),
    Mutant("metrics/precision.py", "radii(generated, real, k)", "radii(real, generated, k)", ANSWERS),
    Mutant("metrics/kid.py", "squared_mmd(generated, real)))", "squared_mmd(generated, generated)))", ANSWERS),
    # what `check` asks of a method
    Mutant(CHECK, "if not torch.equal(value, two[name]):", "if False:", CONFORM),
    Mutant(CHECK, "if printed.getvalue():", "if False:", CONFORM),
    Mutant(CHECK, "if not (torch.equal(x0, after.x0)", "if not (True", CONFORM),
    Mutant(CHECK, "if not torch.equal(model.eps(x_t, t, y), again.eval().eps(x_t, t, y)):", "if False:", CONFORM),
    Mutant(CHECK, "if not torch.equal(*guided):", "if False:", CONFORM),
    Mutant(CHECK, "if strange or len(cls.space) > 6:", "if strange:", CONFORM),
    # methods that do not conform, or do not run on Stable Diffusion
    Mutant("methods/finetune.py", "return model", "return None", CONFORM),
    Mutant("methods/gradient_ascent.py", "return model", "print(model)\n        return model", CONFORM),
    Mutant("methods/random_label.py", "return model\n", "return model.state_dict()\n", CONFORM),
    Mutant(
        "methods/salun.py", "return model\n", "model.extra = torch.nn.Linear(1, 1)\n        return model\n", CONFORM
    ),
    Mutant("methods/spm.py", "model.transport.fixed = None", "model.transport.fixed = 0.5", CONFORM),
    Mutant("methods/concept_ablation.py", "self.part or (", '"xattn" or (', CONFORM),
    Mutant("methods/salun.py", "+ self.alpha * model.loss", "+ self.alpha / 0 * model.loss", TEXT),
    Mutant("methods/spm.py", "cosine = (1 + math.cos", "cosine = 0 * (1 + math.cos", TEXT),
    Mutant("methods/gradient_ascent.py", '("full"), self.lr, clip', '("full"), 0.0, clip', TEXT),
    Mutant("methods/negative_prompt.py", "return eps_S + w * (eps_c - eps_S)", "return eps_S / 0", TEXT),
    Mutant("methods/esd.py", "self.eta))", "self.eta)) / 0", TEXT),
    Mutant(STAGES, "model.load_state_dict(state)\n", "model.load_state_dict({})\n", TEXT),
    Mutant(STAGES, "changed += count\n", "changed += 0\n", TEXT),
]


def tried(mutant: Mutant, tests: Path, place: Path) -> tuple[str, float]:
    """ "killed" or "survived", and the CPU seconds until then, in a copy of the project at `place`."""
    for name in COPIED:
        source = tests if name == "tests" else ROOT / name
        if source.is_dir():
            shutil.copytree(source, place / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, place / name)
    target = place / mutant.path
    text = target.read_text()
    if text.count(mutant.plain) < 1:
        return "no such line", "", 0.0
    target.write_text(text.replace(mutant.plain, mutant.wrong, 1))
    begun = os.times()
    child = os.fork()
    if not child:
        os.chdir(place)
        quiet = os.open(place / "log.txt", os.O_WRONLY | os.O_CREAT)
        os.dup2(quiet, 1), os.dup2(quiet, 2)
        os.environ["UNLEARNBENCH_CACHE"] = str(place / "cache")
        sys.path[:] = [str(place), *(path for path in sys.path if path and Path(path) != ROOT)]
        for name in [name for name in sys.modules if name.split(".")[0] in ("tests", "unlearnbench")]:
            del sys.modules[name]
        import pytest

        files = [str(path) for name in mutant.tests.split() for path in Path("tests").rglob(f"{name}.py")]
        code = pytest.main(["-x", "-q", "-n0", "-p", "no:cacheprovider", *files])
        os._exit(int(code))
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    spent = os.times()
    seconds = spent.children_user + spent.children_system - begun.children_user - begun.children_system
    said = re.search(r"^(?:FAILED|ERROR) (\S+)", (place / "log.txt").read_text(), re.MULTILINE)
    outcome = {0: "survived", 1: "killed", 2: "breaks"}.get(code, f"pytest ended with {code}")
    return outcome, said[1].rpartition("/")[2] if said else "", seconds


def main() -> None:
    """Try every mutant, and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tests", type=Path, default=ROOT / "tests", help="the folder of tests to try")
    parser.add_argument("--only", default="", help="part of the path of the files to change, or a kind of tests")
    parser.add_argument("--every", type=int, default=1, help="each how-manieth mutant alone")
    parser.add_argument("--list", action="store_true", help="check that every fragment occurs, and stop")
    chosen = parser.parse_args()
    absent = [f"no such line: {m.path}: {m.plain!r}" for m in MUTANTS if m.plain not in (ROOT / m.path).read_text()]
    named = sorted({name for mutant in MUTANTS for name in mutant.tests.split()})
    absent += [f"no such tests: {name}" for name in named if not list(chosen.tests.rglob(f"{name}.py"))]
    if chosen.list or absent:
        sys.exit("\n".join([f"{len(MUTANTS)} mutants", *absent]))
    for name in HEAVY:
        __import__(name)
    outcomes: list[tuple[Mutant, str]] = []
    for mutant in [m for m in MUTANTS if chosen.only in m.path or chosen.only in m.tests][:: chosen.every]:
        with tempfile.TemporaryDirectory() as folder:
            begun = time.monotonic()
            outcome, test, seconds = tried(mutant, chosen.tests.resolve(), Path(folder))
        outcomes.append((mutant, outcome))
        line = mutant.wrong.strip().splitlines()[0] if mutant.wrong.strip() else "(left out)"
        spent = f"{seconds:4.0f} s CPU {time.monotonic() - begun:4.0f} s"
        print(f"{outcome:9}{spent}  {mutant.path}: {line}  {test}", flush=True)
    killed = sum(outcome in ("killed", "breaks") for _, outcome in outcomes)
    print(f"{killed} of {len(outcomes)} mutants killed")
    sys.exit(killed != len(outcomes))


if __name__ == "__main__":
    main()
