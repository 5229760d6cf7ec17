"""What `tune` and the preset "tuned" say to wrong words: one line with the value and the remedy."""

from __future__ import annotations

from importlib.util import find_spec

import pytest

pytest.importorskip("optuna", reason="the extra [tune] is not installed")
TASK = ("--task", "digits-class")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--task", "digits-clas"), "unknown task 'digits-clas'"),
        ((*TASK, "--trials", "0"), "--trials 0 is none"),
        ((*TASK, "--cap", "0"), "--cap 0 is below 1"),
        ((*TASK, "--jobs", "0"), "--jobs 0 is below 1: give 1 or more"),
        ((*TASK, "--forget", "eleven"), "unknown concept of digits-class 'eleven'"),
        ((*TASK, "--method", "destroy"), "destroy declares no `space`"),
        ((*TASK, "--method", "mace"), "mace needs"),
        ((*TASK, "--method", "nothing_such"), "unknown method 'nothing_such'"),
        ((*TASK, "--plot", "a.txt"), "must end in .pdf, .svg or .png"),
        ((*TASK, "--show"), "nothing was tuned on digits-class below results"),
        (("--task", "sd-nudity"), "never on I2P"),
    ],
)
def test_wrong_words_are_one_line(cli, words, said):
    found = cli("tune", *words)
    assert found.code == 2
    assert said in found.err
    assert len(found.errors) == 1


def test_without_optuna_the_extra_is_named(cli, monkeypatch):
    monkeypatch.setattr("unlearnbench.cli.tune.find_spec", lambda name: None if name == "optuna" else find_spec(name))
    found = cli("tune", *TASK)
    assert (found.code, found.errors) == (2, ["unlearnbench: tuning needs optuna: pip install 'unlearnbench[tune]'"])


def test_the_tuned_preset_without_a_tuning_says_what_to_run(cli):
    found = cli("run", "--method", "esd", "--preset", "tuned")
    assert found.code == 2
    assert "run `unlearnbench tune --task digits-class --method esd --results results` first" in found.err
