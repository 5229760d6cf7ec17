"""Runs that are killed, raced, starved of disk, locked and damaged: the script's own verdict."""

import pytest

from tests.support.small_world import ROOT, python


@pytest.mark.slow
def test_nothing_that_disturbs_a_run_changes_its_record():
    done = python("-m", "tests.studies.stress", cwd=ROOT, OMP_NUM_THREADS="1")
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
