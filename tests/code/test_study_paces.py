"""Seconds and speed-ups are those of trainings that had a machine to themselves, all of one machine."""

from __future__ import annotations

from dti_pipeline.study import rows, tables


def test_pace_of_another_machine_or_of_shared_seconds_is_no_speed_up() -> None:
    facts = {"dataset": "d", "n": 20, "model": "", "max_targets": None, "fixes": "", "tokens_per_target": 10.0}
    facts["commit"] = "0123456789abcdef"
    base = facts | {"paradigm": "sliding_window", "k": 1, "hardware": "A", "workers": 1, "targets_per_second": 10.0}
    dti = facts | {"paradigm": "dti", "k": 50, "hardware": "A", "workers": 1, "targets_per_second": 120.0}
    for change, speedup in (
        ({}, 12.0), ({"hardware": "B"}, None), ({"workers": 6}, None), ({"n": 5}, None), ({"max_targets": 9}, None),
        ({"row_length": 9}, None),
    ):  # fmt: skip
        row = dti | change
        for against in (None if change.keys() & {"max_targets", "n", "row_length"} else base, None):
            rows._speed(row, against, [base, row])
            assert row["speedup"] == speedup
    beside = [base | {"targets_per_second": 20.0}, dti | {"targets_per_second": 100.0}]
    rows._speed(dti, base, [base, *beside, dti])
    assert dti["speedup"] == 12.0  # its own sliding window's, not the median's
    shared = dti | {"workers": 6, "targets_per_second": 40.0, "targets": 1200, "train_seconds": 30.0, "fixes": ""}
    assert rows.seconds(shared, [base, dti, shared]) == 10.0  # at the speed that a run had alone
    elsewhere = shared | {"hardware": "B"}  # seconds need not be of the machine that trained it, but all of one
    assert rows.seconds(elsewhere, [base, dti]) == 10.0
    assert tables._timed([tables.Line((elsewhere,))], [base, dti]) == "seconds: A, commit 0123456789"
    rows._speed(elsewhere, base, [base, dti, elsewhere])
    assert elsewhere["speedup"] == 12.0
    there = [one | {"hardware": "B", "targets_per_second": pace} for one, pace in ((base, 5.0), (dti, 30.0))]
    assert rows.seconds(elsewhere, [base, dti, *there]) == 40.0
    rows._speed(elsewhere, base, [base, dti, *there, elsewhere])
    assert elsewhere["speedup"] == 6.0
    mixed = [base, dti, there[1], elsewhere]  # where only one of them was measured there
    assert rows.seconds(elsewhere, mixed) == 10.0
    rows._speed(elsewhere, base, mixed)
    assert elsewhere["speedup"] == 12.0
    slower = [base, dti, there[0], elsewhere]  # beside a sliding window of B's seconds no line of A's stands
    assert rows.seconds(elsewhere, slower) is None
    rows._speed(elsewhere, base, slower)
    assert elsewhere["speedup"] is None
    rows._speed(elsewhere, base, [base, *there[1:], elsewhere])
    assert elsewhere["speedup"] is None
    assert rows.seconds(elsewhere, [base]) is None
