"""``python -m dti_pipeline.defs.all_days PARADIGM``: a backfill of all days of the log that a paradigm has not trained,
which the running Dagster takes up as one run.
"""

from __future__ import annotations

import sys

import dagster as dg

from dti_pipeline.defs import backfills, days
from dti_pipeline.errors import InputError
from dti_pipeline.paradigms import named


def request(instance: dg.DagsterInstance, paradigm: str) -> tuple[str, list[str]]:
    """Make the partitions the log's days, and add the backfill to the queue of Dagster's daemon; returns its id and
    days. Raises InputError where no day is left, or `backtest.paradigms` does not list the paradigm."""
    name = named(paradigm).name
    if name not in days.listed():
        raise InputError(f"`backtest.paradigms` in params.yaml does not list {name}: Dagster has no days of it")
    log = days.home()
    days.follow(instance, log.days.names())
    left = log.left(name)
    if not left:
        raise InputError(f"every day is trained, to {log.days.names()[-1]}")
    return backfills.request(instance, [days.key(paradigm)], left, f"backtest of {paradigm}"), left


def main(arguments: list[str]) -> int:
    if len(arguments) != 1:
        print("usage: python -m dti_pipeline.defs.all_days PARADIGM", file=sys.stderr)
        return 2
    try:
        with dg.DagsterInstance.get() as instance:
            backfill, left = request(instance, arguments[0])
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"Backfill {backfill} of {left[0]} to {left[-1]}: it runs while Dagster does (`make ui`)")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
