"""``packing.row_length: auto`` and what a plan with much padding is told."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dti_pipeline.config import Config, from_plain
from dti_pipeline.errors import InputError
from dti_pipeline.packing import row_length
from dti_pipeline.packing.plans import plan_rows
from dti_pipeline.packing.store import uniform_store
from dti_pipeline.paradigms import DTI

#: Histories of 70 rows of 10 tokens: streaming prompts of 20 + 50 rows are 750 tokens long.
STORE = uniform_store(30, 70, 10)


def config(length: int | str, **packing: object) -> Config:
    return from_plain(Config, {"packing": {"row_length": length, **packing}, "split": {"min_history": 20}})


def test_the_shortest_row_with_the_least_padding_is_chosen() -> None:
    found = row_length.settled(config("auto"), STORE)
    assert found.packing.row_length == 768
    chosen = plan_rows(found, STORE, DTI, "train")[0]
    assert (chosen.prompts_cut_by_row, chosen.padding_share) == (0, pytest.approx(1 - 750 / 768, abs=1e-6))
    for other in (512, 640, 1024, 1280):
        assert other * plan_rows(config(other), STORE, DTI, "train")[0].rows > 768 * chosen.rows
    assert row_length.settled(config(333), STORE) == config(333)


def test_a_plan_with_much_padding_names_a_better_row() -> None:
    padding = plan_rows(config(1024), STORE, DTI, "train")[0].padding_share
    better = row_length.better(config(1024), STORE, padding)
    assert better is not None
    assert better.advice(padding) == (
        "27% of the rows is padding: with packing.row_length = 768 it would be 2.3%; auto chooses that"
    )
    assert row_length.better(config(768), STORE, 0.023) is None, "little of it"
    assert row_length.better(config(768), STORE, 0.06) is not None
    assert row_length.better(config(1024), replace(STORE), 0.03) is None


def test_rows_of_every_length_that_are_too_short_are_one_sentence() -> None:
    with pytest.raises(InputError, match=r"`packing\.row_length` is 8192, but the longest prompt .* raise it to"):
        row_length.settled(config("auto"), uniform_store(2, 70, 1000))


def test_a_long_log_is_judged_by_its_first_users(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_length, "SAMPLE", 100)
    assert row_length.best(config("auto"), STORE).tokens == 2 * 768, "of two users, with whole histories"
