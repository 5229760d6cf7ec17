"""Commands to check records: verify, validate, schema."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from unlearnbench import registry
from unlearnbench.cli.arguments import Device, RecordsIn, Results, opened_record, parse_share, results_folder
from unlearnbench.cli.console import err, out, print_table, show_lines
from unlearnbench.errors import UserError
from unlearnbench.reporting import Stopped, bars

if TYPE_CHECKING:
    from unlearnbench.metric import Metric
    from unlearnbench.records.agreement import VerificationRow
    from unlearnbench.verification.finding import Finding


records = typer.Typer()
NOTHING = "—"


@records.command()
def verify(
    path: Annotated[Path, typer.Argument(metavar="RECORD", help="Record (seed-*.json), or folder with exactly one.")],
    sample: Annotated[
        str | None, typer.Option(help="Share of the images to sample again: 5% or 0.05. [default: all, with FID]")
    ] = None,
    method: Annotated[str | None, typer.Option(help="Path of the method's .py file, if it is not built in.")] = None,
    device: Annotated[Device, typer.Option(help="Device to compute on.")] = Device.auto,
    pretrained: Annotated[
        Path | None, typer.Option(help="Folder made by `pretrain`, if the record used such weights.")
    ] = None,
    data: Annotated[Path | None, typer.Option(help="Value of --data that the record was run with.")] = None,
    checkpoint: Annotated[Path | None, typer.Option(help="Value of --checkpoint that the record was run with.")] = None,
    results: RecordsIn = None,
) -> None:
    """Run a record again and compare every metric.

    Exits with 1 if one disagrees. Nothing is written."""
    share = None if sample is None else parse_share(sample)
    path, record = opened_record(path, results)

    from unlearnbench.compute.device import pick_device
    from unlearnbench.records.agreement import UNSAMPLED
    from unlearnbench.records.image_table import read_beside
    from unlearnbench.verification.verify import rebuilt, verify_record

    cell = rebuilt(record, pick_device(device.value), method, pretrained, data=data, checkpoint=checkpoint)
    images = read_beside(record, path)
    try:
        with bars(err, 1) as begin:
            begin(f"{record.label()} · forget {record.forget} · seed {record.seeds['unlearning']}")
            kind, context, rows = verify_record(record, images, cell, share)
    except Stopped:
        err.print("stopped: a verification keeps nothing")
        raise typer.Exit(130) from None
    if context:
        rows_now = [("", [list(row[:4]) for row in context])]
        print_table("different in this run", ["", "what", "record", "now"], rows_now, left=4, keys=2)
    weights = [row for row in context if (row.group, row.what) == ("weights", "unlearned")]
    out.print(f"unlearned weights: {'different' if weights else 'equal'}; environment: {kind}", highlight=False)
    metrics = registry.load_metrics()
    heads = ["metric", "record" if share is None else "record, these images", "anew", "difference", "tolerance", ""]
    print_table("", heads, [("", [_cells(row, metrics) for row in rows if row.note != UNSAMPLED])], prose=[""])
    if left_out := [row.metric for row in rows if row.note == UNSAMPLED]:
        out.print(f"{UNSAMPLED}: {', '.join(left_out)}", highlight=False, soft_wrap=True)
    wrong = [row for row in rows if row.agrees is False]
    for row in wrong:
        name, then, now, _, allowed, _ = _cells(row, metrics)
        text = f"{name}: recorded {then}, anew {now}, tolerance {allowed}" + (f" ({row.note})" if row.note else "")
        err.print(text, markup=False, highlight=False, soft_wrap=True)
    compared = sum(row.agrees is not None for row in rows)
    out.print(f"{'disagrees' if wrong else 'agrees'}: {compared - len(wrong)} of {compared}", highlight=False)
    raise typer.Exit(1 if wrong else 0)


@records.command()
def validate(
    place: Annotated[
        Path | None, typer.Argument(metavar="[RESULTS]", help="Folder of records. [default: results]")
    ] = None,
    only: Annotated[
        list[Path] | None,
        typer.Argument(metavar="RECORD", help="Records that --verify and --strict are applied to. [default: all]"),
    ] = None,
    verify: Annotated[
        str | None,
        typer.Option(help="Share of the records to run again on the CPU: 5% or 0.05; at least one per task."),
    ] = None,
    sample: Annotated[str, typer.Option(help="Share of a record's images that --verify samples again.")] = "5%",
    draw: Annotated[
        int | None, typer.Option(min=0, help="Seed for --verify's choice of records. [default: random, and printed]")
    ] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Treat code and weights of unknown origin as problems.")
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="Print every note, not only their number.")] = False,
    folder: Results = None,
) -> None:
    """Check every record in a folder and recompute its scores.

    Recomputes scores, intervals, the sampling plan, settings and division from the files beside a record. Exits with 1
    on problems; what could not be checked, such as results of an older version's code, is noted.
    """
    results = results_folder(folder, place=place)
    share, part = None if verify is None else parse_share(verify, "verify", "records"), parse_share(sample)

    from unlearnbench.verification.validate import count_notes, record_files, record_findings

    paths = record_files(results)
    if not paths:
        raise UserError(f"no records below {results}: give the folder that `unlearnbench run --results` wrote to")
    known = {path.resolve(): path for path in paths}
    if gone := [path for path in only or () if path.resolve() not in known]:
        raise UserError(f"no record {gone[0]} below {results}: give the path of a seed-*.json in that folder")
    asked = {known[path.resolve()] for path in only} if only else set(paths)
    found = []
    try:
        with bars(err, 1) as begin:
            if err.is_terminal:
                begin("validate")
            found = list(record_findings(results, paths))
        if share is not None:
            sound = asked - {each.path for each in found if each.note is None}
            found += _verified(sorted(sound), share, part, draw)
    except Stopped:
        err.print("stopped: nothing was changed")
        raise typer.Exit(130) from None
    wrong = [each for each in found if each.note is None or (strict and each.note.strict and each.path in asked)]
    for each in found if verbose else wrong:
        note = "" if each in wrong else "note: "
        out.print(f"{note}{each.path}: {each.text}", highlight=False, markup=False, soft_wrap=True)
    for group, count in count_notes([each for each in found if each not in wrong]):
        out.print(f"note: {_number(count, 'record')} {group}", highlight=False, markup=False, soft_wrap=True)
    out.print(f"{_number(len(paths), 'record')} checked, {_number(len(wrong), 'problem')}", highlight=False)
    raise typer.Exit(1 if wrong else 0)


def _verified(paths: list[Path], share: float, sample: float, draw: int | None) -> list[Finding]:
    """Run a random share of these records again; they passed all other checks."""
    import random

    from unlearnbench.records.schema import read_record
    from unlearnbench.verification.rerun_share import draw_records, verified

    whole = [(path, read_record(path)) for path in paths]
    seed = random.SystemRandom().randrange(2**32) if draw is None else draw
    chosen = draw_records(whole, share, seed)
    text = f"verifying {len(chosen)} of {_number(len(whole), 'record')}, drawn with --draw {seed}"
    out.print(text, highlight=False, soft_wrap=True)
    with bars(err, len(chosen)) as begin:
        return list(verified(chosen, sample, begin))


@records.command()
def schema(
    file: Annotated[Path | None, typer.Option("--out", help="File to write instead of the terminal.")] = None,
) -> None:
    """Print the JSON schema of records."""
    from unlearnbench.records import schema as record
    from unlearnbench.storage import files

    text = json.dumps(record.record_schema(), indent=1, ensure_ascii=False)
    if file is None:
        show_lines(*text.splitlines())
        return
    try:
        files.replace_file(file, f"{text}\n".encode())
    except OSError as error:
        raise UserError(f"cannot write {file} ({(error.strerror or '').lower()}): name another with --out") from error
    out.print(f"wrote {file}", highlight=False, soft_wrap=True)


def _cells(row: VerificationRow, metrics: dict[str, Metric]) -> list[str]:
    """Format a row of a verification, in the metric's unit."""
    metric = metrics.get(row.metric.partition(",")[0])
    scale, unit = (metric.scale, metric.unit) if metric else (1.0, "")

    def text(value: float | str | None, form: str = ".5g") -> str:
        return NOTHING if value is None else value if isinstance(value, str) else f"{value * scale:{form}}"

    mark = " ".join(word for word in ({True: "✓", False: "✗", None: ""}[row.agrees], row.note) if word)
    name = f"{row.metric} ({unit})" if unit else row.metric
    return [
        name,
        text(row.recorded),
        text(row.anew),
        text(row.difference, ".2g"),
        text(row.tolerance, ".2g"),
        mark,
    ]


def _number(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"
