"""The steps of `first_gpu_run.sh`, each in a process with a time limit; rows are written as soon as they are found."""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[2]
Row = dict[str, Any]
"""What was measured, by column; a row that failed has `failed`."""
SD_METHODS = {
    "uce": {},
    "esd": {},
    "esd_u": {},
    "sfron": {},
    "salun": {},
    "erasediff": {},
    "advunlearn": {},
    "scissorhands": {},
    "selective_amnesia": {},
}
"""Methods of the memory table, smallest first, since a card may be too small for the last."""
FEW = {
    "steps": 1,
    "K": 1,
    "images": 2,
    "replay_images": 4,
    "surrogate_images": 4,
    "trajectories": 4,
    "sampler_steps": 3,
}
FEW |= {"fisher_samples": 2, "fisher_timesteps": 2, "attack_steps": 2, "warmup": 0}
"""Settings that make an update short and leave its memory as it is."""


class Given(NamedTuple):
    """Where and how large."""

    device: str
    size: str

    @property
    def real(self) -> bool:
        """Whether networks have their real sizes."""
        return self.size == "real"

    @property
    def torch_device(self) -> str:
        """As torch names it."""
        return "cpu" if self.device == "cpu" else "cuda"

    @property
    def precisions(self) -> tuple[str, ...]:
        """Those that the device has."""
        return ("fp32",) if self.device == "cpu" else ("fp32", "bf16")


# ---- the steps -----------------------------------------------------------------------------------------------------


def mib(memory: int | None) -> float | None:
    """Bytes in MiB."""
    return None if memory is None else round(memory / 2**20, 1)


def tried(about: Row, work: Callable[[], Row]) -> Row:
    """The row with what the work found, or with why it failed: the others go on."""
    try:
        return {**about, **work()}
    except Exception as error:  # noqa: BLE001 - whatever fails on a first run is its result
        import torch

        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return {**about, "failed": f"{type(error).__name__}: {error}".splitlines()[0][:300]}


def methods(given: Given) -> Iterator[Row]:
    """Every method unlearns and draws on a tiny Stable Diffusion."""
    from tests.support import tiny_sd
    from tests.support.short_runs import short
    from tests.support.tiny_text import TinyText
    from unlearnbench import registry
    from unlearnbench.compute.precision import Resources
    from unlearnbench.pipeline.cell import Cell
    from unlearnbench.pipeline.unlearning import unlearn

    with tempfile.TemporaryDirectory() as folder:
        tiny_sd.save(Path(folder) / "sd", "sd1")
        task = TinyText(Path(folder) / "sd", device=given.torch_device)
        task.original.to(given.torch_device)
        names = [name for name, entry in registry.methods().items() if entry.point is None]
        for precision in given.precisions:
            for name in sorted(set(names) - {"retrain", "checkpoint"}):
                cell = Cell(short(name, batch_size=2), task, resources=Resources(precision))

                def work(cell: Cell = cell) -> Row:
                    cost = unlearn(cell)[1]["cost"]
                    took = round(cost["prepare_time"] + cost["unlearn_time"], 3)
                    return {"seconds": took, "peak MiB": mib(cost["peak_memory"])}

                yield tried({"method": name, "precision": precision}, work)


def gpu_tests(given: Given) -> Iterator[Row]:
    """The tests marked `gpu`, without those that measure seconds."""
    marked = [path for path in sorted((ROOT / "tests").rglob("test_*.py")) if "mark.gpu" in path.read_text("utf-8")]
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        plain = ["-o", "addopts=--import-mode=importlib --strict-markers", "-p", "no:cacheprovider"]
        chosen = ["-m", "gpu and not timing", f"--junitxml={report}", "-q", *map(str, marked)]
        done = subprocess.run([sys.executable, "-m", "pytest", *plain, *chosen], cwd=ROOT, check=False)
        if not report.is_file():
            yield {"test": "pytest", "failed": f"exit code {done.returncode}"}
            return
        from xml.etree import ElementTree

        for case in ElementTree.parse(report).getroot().iter("testcase"):
            row: Row = {
                "test": f"{case.get('classname', '')}::{case.get('name')}",
                "seconds": float(case.get("time", 0)),
            }
            for kind in ("failure", "error", "skipped"):
                if (found := case.find(kind)) is not None:
                    row["failed" if kind != "skipped" else "skipped"] = str(found.get("message")).splitlines()[0][:300]
            yield row


def command_rows(given: Given, commands: Iterable[list[str]]) -> Iterator[Row]:
    """Whole runs by the command line: seconds, and the record's status and costs."""
    from unlearnbench import cli
    from unlearnbench.records.schema import read_record

    if find_spec("pyarrow") is None:
        yield {"run": "all", "failed": "pyarrow is not here, which records are written with"}
        return
    for words in commands:
        with tempfile.TemporaryDirectory() as folder:
            os.environ["UNLEARNBENCH_CACHE"] = str(Path(folder) / "store")

            def work(words: list[str] = words, out: Path = Path(folder) / "out") -> Row:
                sys.argv = ["unlearnbench", "run", *words, "--device", given.torch_device, "--results", str(out)]
                begun = time.perf_counter()
                try:
                    cli.main()
                except SystemExit as stop:
                    if stop.code:
                        raise RuntimeError(f"exit code {stop.code}") from stop
                took = time.perf_counter() - begun
                (path,) = [path for path in out.rglob("seed-*.json") if "original" not in path.parts]
                record = read_record(path)
                costs = {name: record.scores[name].value for name in ("unlearn_time", "peak_memory")}
                attacks = {label: found.status for label, found in record.attacks.items()}
                points = len(record.trajectory.points) if record.trajectory else None
                return {
                    "seconds": round(took, 1),
                    "status": record.status,
                    "unlearning s": costs["unlearn_time"],
                    "peak memory": costs["peak_memory"],
                    **({"attacks": attacks} if attacks else {}),
                    **({"points": points} if points else {}),
                }

            yield tried({"run": " ".join(words)}, work)


def runs(given: Given) -> Iterator[Row]:
    """Runs of both tasks that are shipped, with attacks, a trajectory and half precision."""
    steps = [] if given.real else ["--set", "steps=2", "--set", "batch_size=4"]
    if not given.real:
        from tests.support.small_world import small_protocol, small_text_protocol
        from unlearnbench.tasks.digits_class import DigitsClass
        from unlearnbench.tasks.digits_text import DigitsText

        DigitsClass.protocols["default"] = small_protocol()
        DigitsText.protocols["smoke"] = small_text_protocol(DigitsText.protocols["smoke"])
    digits = ["--task", "digits-class", "--method", "erasediff", *steps]
    text = ["--task", "digits-text", "--protocol", "smoke", "--method"]
    half = [] if given.device == "cpu" else ["--precision", "fp16"]
    few = [] if given.real else ["--set", "steps=2"]
    yield from command_rows(
        given,
        [
            [*digits, "--attacks", "relearn@1,latent_probe" if given.real else "relearn@1"],
            [*digits, "--eval-every", "100" if given.real else "1"],
            [*text, "uce", *half],
            [*text, "esd", *few, *half],
        ],
    )


def stable_diffusion_speed(given: Given) -> Iterator[Row]:
    """Images a second of Stable Diffusion v1.4's shape beside diffusers' pipeline, and single updates."""
    from tests.studies import throughput

    throughput.ROUNDS = 1
    size, steps = ("sd14", 25) if given.real else ("tiny", 2)
    yield from as_rows(throughput.measured(size, given.torch_device, 4 if given.real else 2, steps))


def cifar_speed(given: Given) -> Iterator[Row]:
    """Images a second of the papers' CIFAR-10 network beside a plain loop."""
    from tests.studies import throughput, throughput_cifar

    throughput.ROUNDS = 1
    if not given.real:
        throughput_cifar.TRAINED = 1
        throughput_cifar.WIDTHS["cifar10-tiny"] = 8
    size, batch, steps = ("cifar10", 500, 20) if given.real else ("cifar10-tiny", 2, 2)
    with tempfile.TemporaryDirectory() as folder:
        yield from as_rows(throughput_cifar.measured(size, given.torch_device, batch, steps, Path(folder)))


def as_rows(measured: Iterable[Any]) -> Iterator[Row]:
    """Rows of a throughput."""
    for row in measured:
        if row.failed is not None:
            yield {"what": row.what, "failed": row.failed}
            continue
        rate = None if row.images is None else round(row.images / row.seconds, 3)
        memory = None if row.memory is None else round(row.memory, 3)
        yield {"what": row.what, "seconds": round(row.seconds, 4), "images/s": rate, "peak GiB": memory}


def peaks(given: Given) -> Iterator[Row]:
    """Peak memory of one update of each method at Stable Diffusion v1.4's size beside what is planned for it."""
    import torch

    from tests.studies.throughput import Sized, sd14
    from unlearnbench import registry
    from unlearnbench.compute.precision import Resources
    from unlearnbench.pipeline.cell import Cell
    from unlearnbench.pipeline.planning import planned_costs
    from unlearnbench.pipeline.unlearning import unlearn
    from unlearnbench.tasks.sd_nudity import SDNudity

    class OnCard(Sized):
        """As a task whose original is a file: only what is asked for is on the card."""

        def pretrained(self) -> Any:
            return super().pretrained().to(self.device)

    ways = [Resources()] if given.device == "cpu" else [Resources(), Resources("bf16")]
    ways.append(Resources(memory=("checkpointing",)))
    with tempfile.TemporaryDirectory() as folder:
        task = OnCard(Path(folder) / "sd", None, given.torch_device)
        if given.real:
            tokens = task.original.tokenizers[0]
            tokens.model_max_length = 77
            with torch.device(given.torch_device):  # random numbers for a billion weights take a minute elsewhere
                task.original = sd14(tokens)
        task.original = task.original.cpu().eval()
        for resources in ways:
            for name, own in SD_METHODS.items():
                cls = registry.load_method(name)
                settings = {**cls.preset("default", "sd-nudity"), **own}
                known = cls.configured({}).settings()
                small = {key: value for key, value in FEW.items() if key in known and value != known[key]}
                method = cls.configured({**settings, **small})
                planned = planned_costs(Cell(cls.configured(settings), SDNudity("nudity"), resources=resources)).memory

                def work(method: Any = method, resources: Any = resources, planned: int | None = planned) -> Row:
                    peak = unlearn(Cell(method, task, resources=resources))[1]["cost"]["peak_memory"]
                    share = None if not planned or not peak or not given.real else round(peak / planned, 3)
                    return {"peak GiB": None if peak is None else round(peak / 2**30, 3), "of planned": share}

                gib = None if planned is None else round(planned / 2**30, 1)
                batch = settings.get("batch_size", known.get("batch_size"))
                about = {"method": name, "batch": batch, **resources.named(), "planned GiB": gib}
                yield tried(about, work)


class Step(NamedTuple):
    """A step of a part, and the seconds that it may take."""

    work: Callable[[Given], Iterator[Row]]
    seconds: int


PARTS = {
    "a": {
        "methods": Step(methods, 100),
        "tests": Step(gpu_tests, 90),
        "runs": Step(runs, 130),
        "stable-diffusion": Step(stable_diffusion_speed, 100),
    },
    "b": {"peaks": Step(peaks, 210), "cifar10": Step(cifar_speed, 210)},
}
"""The limits of a part add up to at most seven minutes."""


# ---- the driver ----------------------------------------------------------------------------------------------------


def worked(name: str, given: Given, rows: Path) -> None:
    """Do one step in this process; each row is a line of a file as soon as it is found."""
    step = next(steps[name] for steps in PARTS.values() if name in steps)
    with ExitStack() as kept, rows.open("a", encoding="utf-8") as file:
        if given.device == "pretended":
            from tests.support.pretended_cuda import PretendedCuda

            kept.enter_context(PretendedCuda())
        about = {"device": described(given), "began": time.time()}
        print(json.dumps({"about": about}), file=file, flush=True)
        for row in step.work(given):
            print(json.dumps(row), file=file, flush=True)


def described(given: Given) -> dict[str, Any]:
    """The card and the versions of what ran."""
    from unlearnbench.compute.environment import describe_environment

    found = describe_environment(given.torch_device)
    return {
        name: found[name] for name in ("device", "driver", "python", "packages", "commit", "dirty") if name in found
    }


def command(name: str, given: Given, rows: Path) -> list[str]:
    """What does one step and writes its rows there."""
    words = ["--step", name, "--rows", str(rows), "--device", given.device, "--size", given.size]
    return [sys.executable, "-m", __spec__.name, *words]


def supervised(name: str, given: Given, limit: float) -> dict[str, Any]:
    """Do one step in a process of its own, and end it with its children where it takes longer than its limit."""
    with tempfile.TemporaryDirectory() as folder:
        rows = Path(folder) / "rows.jsonl"
        begun = time.perf_counter()
        process = subprocess.Popen(command(name, given, rows), cwd=ROOT, start_new_session=True)
        try:
            ended = f"exit code {code}" if (code := process.wait(limit)) else None
        except subprocess.TimeoutExpired:
            ended = f"time was over after {limit:.0f} s"
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        lines = rows.read_text(encoding="utf-8").splitlines() if rows.is_file() else []
        found = [read for line in lines if (read := whole(line)) is not None]
        about = next((row["about"] for row in found if "about" in row), {})
        seconds = round(time.perf_counter() - begun, 1)
        measured = [row for row in found if "about" not in row]
        return {"step": name, "size": given.size, "seconds": seconds, "ended": ended, **about, "rows": measured}


def whole(line: str) -> Row | None:
    """A line as a row; None for one that was broken off."""
    try:
        return dict(json.loads(line))
    except ValueError:
        return None


def slug(name: str) -> str:
    """A name as part of a file's."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def written(out: Path, results: list[dict[str, Any]]) -> Path:
    """Write what is finished so far: all steps of a card in one JSON file, the newest of each name, and a page."""
    card = next((step["device"]["device"] for step in results if step.get("device")), None) or "unknown"
    path = out / f"first-gpu-run-{slug(card)}.json"
    out.mkdir(parents=True, exist_ok=True)
    before = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
    names = {step["step"] for step in results}
    every = [*(step for step in before if step["step"] not in names), *results]
    for file, text in ((path, json.dumps(every, indent=1) + "\n"), (path.with_suffix(".md"), page(card, every))):
        new = file.with_name(file.name + ".new")
        new.write_text(text, encoding="utf-8")
        new.replace(file)
    return path


def page(card: str, steps: list[dict[str, Any]]) -> str:
    """The same as tables."""
    lines = [f"# First run on {card}", ""]
    for step in steps:
        packages = step.get("device", {}).get("packages", {})
        with_ = ", ".join(f"{name} {packages[name]}" for name in ("torch", "diffusers") if packages.get(name))
        lines += [f"## {step['step']}", "", f"{step['size']} size, {step['seconds']} s{', ' + with_ if with_ else ''}."]
        if step["ended"]:
            lines += ["", f"Not finished: {step['ended']}."]
        failed = sum("failed" in row for row in step["rows"])
        if failed:
            lines += ["", f"{failed} of {len(step['rows'])} failed."]
        columns = list(dict.fromkeys(key for row in step["rows"] for key in row))
        if columns:
            lines += ["", f"| {' | '.join(columns)} |", f"|{' --- |' * len(columns)}"]
            lines += [f"| {' | '.join(cell(row.get(key)) for key in columns)} |" for row in step["rows"]]
        lines.append("")
    return "\n".join(lines)


def cell(value: Any) -> str:
    """A value in a table."""
    return "" if value is None else str(value).replace("|", "\\|").replace("\n", " ")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", nargs="?", choices=PARTS)
    parser.add_argument("--device", choices=["cuda", "cpu", "pretended"], default="cuda")
    parser.add_argument("--size", choices=["real", "tiny"], default="real")
    parser.add_argument("--seconds", type=float, default=420.0, help="for all steps of the part together")
    parser.add_argument("--out", type=Path, default=Path("results"))
    parser.add_argument("--step", help=argparse.SUPPRESS)
    parser.add_argument("--rows", type=Path, help=argparse.SUPPRESS)
    words = parser.parse_args()
    given = Given(words.device, words.size)
    if words.step:
        worked(words.step, given, words.rows)
        return
    if words.part is None:
        parser.error("give a or b")
    if words.device == "cuda":
        from unlearnbench.compute.device import pick_device

        pick_device("cuda")
    end, results = time.perf_counter() + words.seconds, list[dict[str, Any]]()
    for name, step in PARTS[words.part].items():
        limit = min(step.seconds, end - time.perf_counter())
        if limit <= 0:
            break
        results.append(supervised(name, given, limit))
        path = written(words.out, results)
        print(f"{name}: {len(results[-1]['rows'])} rows, {results[-1]['ended'] or 'finished'}; {path}", flush=True)


if __name__ == "__main__":
    main()
