"""What `check_scores` accepts of records that an earlier state of this project made."""

from __future__ import annotations

import pytest

from tests.support.small_world import made_record
from unlearnbench.records.lineage import known_hashes
from unlearnbench.verification.check_scores import numbers


@pytest.mark.parametrize(
    ("name", "better", "refused"), [("entropy", "higher", 0), ("entropy", "lower", 1), ("coherence", "higher", 1)]
)
def test_a_direction_that_a_metric_had_when_a_record_was_made_is_accepted(name, better, refused):
    """Entropy was "higher" in records of the same version; their values are the same."""
    record = made_record("esd", 0, {name: 0.5})
    changes = {"better": better, "code_hash": known_hashes()["metric"][name]["1"][0]}
    score = record.scores[name].model_copy(update=changes)
    found = numbers(record.model_copy(update={"scores": {name: score}}), None)
    assert len([one for one in found if "is given as" in str(one)]) == refused
