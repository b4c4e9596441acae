"""The time to a first step is told in parts that add up, from the process's start on."""

from __future__ import annotations

import subprocess
import sys
import time

from dti_pipeline.training.timeline import Timeline, process_age, told

FIRST = """
import time
time.sleep(0.3)
from dti_pipeline.training.timeline import Timeline
for timeline in (Timeline.begin(), Timeline.begin()):
    timeline.mark("process")
    print(timeline.seconds)
"""


def test_parts_add_up_to_the_time_that_went() -> None:
    begun = time.monotonic()
    timeline = Timeline(begun)
    for name in ("data", "weights", "data"):
        time.sleep(0.01)
        timeline.mark(name)
    assert 0.03 <= timeline.seconds <= time.monotonic() - begun
    assert list(timeline.parts) == ["data", "weights"]
    assert timeline.parts["data"] >= 0.02


def test_only_the_first_work_of_a_process_began_with_it() -> None:
    assert process_age() > 0.1
    done = subprocess.run([sys.executable, "-c", FIRST], capture_output=True, text=True, check=True)
    first, second = map(float, done.stdout.split())
    assert first > 0.3
    assert second < 0.1


def test_a_part_that_took_no_time_is_not_told() -> None:
    assert told({"process": 0.94, "waiting": 0.001, "first step": 2.6}) == "process 0.9, first step 2.6"
