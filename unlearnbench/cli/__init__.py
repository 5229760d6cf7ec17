"""The command line: the only package that prints.

It may import everything else, but heavy packages only inside functions, so that `--help` answers at once.
"""

from __future__ import annotations

import os
import sys
import traceback
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from unlearnbench import __version__
from unlearnbench.cli.compare import comparing
from unlearnbench.cli.console import err, out
from unlearnbench.cli.develop import own
from unlearnbench.cli.export import exporting
from unlearnbench.cli.fetch import fetching
from unlearnbench.cli.guide import guiding
from unlearnbench.cli.judges import judging
from unlearnbench.cli.leaderboard import boards
from unlearnbench.cli.list import lists
from unlearnbench.cli.plot import plotting
from unlearnbench.cli.pretrain import prepare
from unlearnbench.cli.report import reporting
from unlearnbench.cli.run import running
from unlearnbench.cli.score import scoring
from unlearnbench.cli.selfcheck import selfchecking
from unlearnbench.cli.status import launching
from unlearnbench.cli.tune import tuning
from unlearnbench.cli.verify import records
from unlearnbench.errors import Failed, UserError, message, one_line
from unlearnbench.printable import lenient
from unlearnbench.reporting import Stopped


class Commands(TyperGroup):
    """All commands; Ctrl-C in any of them stops with a message and exit code 130."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command that was named."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as interrupt:
            raise Stopped from interrupt
        except SystemExit as stop:  # commands end with `typer.Exit`; this comes from code that they called
            raise Failed(f"code that the command ran called sys.exit({stop.code!r})") from stop


CODES = (
    "Exit codes: 0 success; 1 something failed, no run gave a result (all failed, diverged or were skipped), or a "
    "check found a problem; 2 wrong usage; 130 stopped by Ctrl-C."
)
app = typer.Typer(
    cls=Commands,
    help="Measure what a diffusion model has forgotten, what it kept and what that cost.",
    epilog=CODES,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for commands in (
    running,
    scoring,
    lists,
    boards,
    reporting,
    comparing,
    plotting,
    tuning,
    fetching,
    prepare,
    own,
    records,
    selfchecking,
    judging,
    exporting,
    launching,
    guiding,
):
    app.add_typer(commands)
DEBUG = "UNLEARNBENCH_DEBUG"
WAITING = "OMP_WAIT_POLICY"
"""How threads of torch and scikit-learn wait for each other, read once, when torch is loaded."""


@app.callback(invoke_without_command=True)
def options(version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False) -> None:
    """Measure what a diffusion model has forgotten, what it kept and what that cost."""
    if version:
        out.print(__version__)
        raise typer.Exit


def main() -> None:
    """Entry point: every error becomes one line and one of the exit codes in `CODES`."""
    lenient()
    # Threads that spin while they wait take the cores from those that they wait for, once other processes are there too
    os.environ.setdefault(WAITING, "PASSIVE")
    try:
        app()
    except UserError as error:
        if os.environ.get(DEBUG):
            raise
        err.print(f"unlearnbench: {message(error)}", highlight=False, soft_wrap=True)
        sys.exit(error.exit_code)
    except Stopped:
        err.print("stopped: finished work is kept; run the same command again to continue")
        sys.exit(130)
    except Exception as error:
        if os.environ.get(DEBUG):
            raise
        line = f"unlearnbench: failed with {one_line(error)}{_where(error)}; {DEBUG}=1 shows the traceback"
        err.print(line, highlight=False, soft_wrap=True)
        sys.exit(1)


def _where(error: Exception) -> str:
    """File and line, of this package or a plug-in, that the error came from."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if "site-packages" not in Path(frame.filename).parts] or frames
    return f" ({Path(own[-1].filename).name}, line {own[-1].lineno})" if own else ""
