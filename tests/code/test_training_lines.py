"""A training told in lines, as logs and orchestrators have it; and its start, which trackers answer."""

from __future__ import annotations

from dti_pipeline.training.listeners import lines
from dti_pipeline.training.progress import (
    Checkpointing,
    Evaluated,
    Event,
    FellBack,
    Finished,
    FirstStep,
    Started,
    Stepped,
    announce,
)
from tests.reports import TRAIN

STARTED = Started("dti", 1000, 200, 42, "cpu", 1, "0" * 32, execution=("compiled layers: no (no CUDA device)",))


def test_events_become_lines() -> None:
    told: list[str] = []
    listen = lines(told.append)
    listen(STARTED)
    listen(FellBack("a", "b", "c"))  # the log has it
    listen(FirstStep(200, 23.14, {"process": 0.9, "waiting": 0.0, "compilation": 12.0}))
    for step in (1, 2):  # the second within five seconds: not told
        listen(Stepped(step, 200 + step, 0.5, 0.1, 1.0, 50.0, 500.0, 2.0, 75.0, 0.5))
    listen(Evaluated(400, 4.0, {"auc": 0.7}))
    listen(Checkpointing(400))
    listen(Finished(1000, 3725.0, TRAIN))
    assert told == [
        "dti: 1,000 targets to see, 42 weights to train on 1 x cpu, going on after 200",
        "compiled layers: no (no CUDA device)",
        "first step after 23.1 s: process 0.9, compilation 12.0",
        "201 of 1,000 targets (20%), loss 0.5000, 50 targets/s, 1:15 left",
        "validation after 400 targets: auc 0.7000",
        "saving a checkpoint after 400 targets",
        "1,000 targets in 1:02:05 of training",
    ]


def test_a_fall_is_one_line() -> None:
    fall = FellBack("a CUDA graph", "compiled layers", "InductorError: AssertionError")
    assert fall.line == (
        "the training goes on with compiled layers instead of a CUDA graph: InductorError: AssertionError"
    )


def test_the_start_is_told_with_the_run_that_a_tracker_answered() -> None:
    heard: list[str | None] = []

    def bar(event: Event) -> None:
        assert isinstance(event, Started)
        heard.append(event.run_id)

    assert announce(STARTED, [bar, lambda event: "a", bar, lambda event: None, bar]) == "a"
    assert heard == [None, "a", "a"]
    assert announce(STARTED, []) is None
