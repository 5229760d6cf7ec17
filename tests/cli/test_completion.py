"""Shell completion: names as one types, without importing what takes seconds."""

from __future__ import annotations

import json

from tests.support.small_world import ROOT, python
from unlearnbench import registry
from unlearnbench.cli.completion import complete_attacks, complete_listed, complete_methods, complete_metrics

SCRIPT = """
import json, os, sys
from unlearnbench.cli import main
sys.path.insert(0, {root!r})
sys.argv = ["unlearnbench"]
os.environ["_UNLEARNBENCH_COMPLETE"] = "complete_bash"
for line in json.loads({lines!r}):
    os.environ |= {{"COMP_WORDS": line, "COMP_CWORD": str(len(line.split()) - 1)}}
    try:
        main()
    except SystemExit:
        pass
    print("HEAVY", line, sorted({{"torch", "pandas", "scipy", "diffusers"}} & set(sys.modules)))
"""
OFFERED = {
    "unlearnbench run --method sal": ["salun"],
    "unlearnbench run --method salun,erasediff_": ["salun,erasediff_released"],
    "unlearnbench run --task digits-": ["digits-class", "digits-text"],
    "unlearnbench run --attacks stand": ["standard"],
    "unlearnbench leaderboard --columns ua_cl": ["ua_closed"],
    "unlearnbench list cifar": ["cifar10-class"],
    "unlearnbench leader": ["leaderboard"],
}


def test_bash_is_offered_names_without_torch(tmp_path):
    """In one process, which names the first line that imports something."""
    script = SCRIPT.format(root=str(ROOT), lines=json.dumps([*OFFERED]))
    done = python("-c", script, cwd=tmp_path, PYTHONPATH=str(ROOT))
    expected = [text for line, names in OFFERED.items() for text in (*names, f"HEAVY {line} []")]
    assert done.stdout.splitlines() == expected, done.stderr


def test_every_name_is_offered_with_its_line_and_none_twice():
    assert dict(complete_methods("")).keys() == {*registry.methods(), "all"}
    assert dict(complete_attacks("relearn,relea")) == {}
    assert ("ua", registry.metrics()["ua"].summary) in complete_metrics("ua")
    assert {"methods", "esd", "digits-text", "fid", "relearn"} <= dict(complete_listed("")).keys()


def test_the_help_says_how_to_install_it(cli):
    assert "--install-completion" in cli("--help").out
