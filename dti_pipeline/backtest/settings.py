"""The section of params.yaml about the backtest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from dti_pipeline.plain import NonNegativeInt, PositiveFloat, Range


@dataclass(frozen=True)
class BacktestConfig:
    """The log day by day: each day learns what became known, and its model is judged on the next."""

    # Those that `dti backtest` trains without --paradigm, none: `paradigms`; and those that DVC has a stage for
    # and Dagster, when it loads its definitions, days.
    paradigms: tuple[str, ...] = ()
    # Of a "day": 1 from midnight to midnight UTC, 7 from Monday to Sunday, 0.5 half of one.
    period_days: PositiveFloat = 1.0
    # Date, such as 2013-05-01, of the first day: all that is known by its end is learnt before the first judgement.
    # null: the day that `warmup_share` says when the backtest begins; a log that grows keeps it.
    first_day: str | None = None
    warmup_share: Annotated[float, Range(0, 1, "[)")] = 0.3  # of all targets, in the days up to the first one
    # Of training.learning_rate, all day long, on each day after the first, which has training's own schedule: a day of
    # few steps would end before a warm-up does.
    learning_rate_share: Annotated[float, Range(0, 1, "(]")] = 1.0
    # Each day is also scored by the weights of the day so many before it; 1, the newest, is always there.
    staleness: tuple[Annotated[int, Range(2)], ...] = (7, 30)
    # Beside it each day a new model, trained for training.epochs on everything that is known: what a warm start saves.
    fresh: bool = False
    # A file that comes late and changes the targets of one of so many last days costs those days anew; one that changes
    # an older day begins the backtest anew. Each day more is a checkpoint more on disk, beside those that `staleness`
    # needs.
    late_days: NonNegativeInt = 7
