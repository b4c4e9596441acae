"""The log cut into days: which targets a day learns, since their labels became known, and which it is judged on."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np
from numpy.typing import NDArray

from dti_pipeline import artifacts
from dti_pipeline.config import BacktestConfig, Config
from dti_pipeline.errors import InputError
from dti_pipeline.evaluation import interactions
from dti_pipeline.events.published import CONTEXT
from dti_pipeline.events.report import IngestReport
from dti_pipeline.packing.store import CODES, TokenStore
from dti_pipeline.paths import Paths

DAY = 86400
#: Unix seconds of a Monday's midnight, UTC: weeks begin on Mondays.
MONDAY = 4 * DAY


class ByDay:
    """Rows of the log by the day that they belong to: cost of a look-up is the number of its rows."""

    def __init__(self, rows: NDArray[np.int64], day: NDArray[np.int64]) -> None:
        order = np.argsort(day, kind="stable")
        self._rows, self._day = rows[order], day[order]

    def of(self, day: int) -> NDArray[np.int64]:
        """Rows of one day, ascending."""
        return self._rows[slice(*np.searchsorted(self._day, [day, day + 1]))]

    def until(self, day: int) -> NDArray[np.int64]:
        """Rows of a day and all before it, ascending."""
        return np.sort(self._rows[: np.searchsorted(self._day, day + 1)])


@dataclass(frozen=True)
class Days:
    """Days by number, in periods since a Monday. Each of ``first .. last - 1`` learns, and is judged on the next."""

    learnt: ByDay  # targets by the day on which their label is known
    asked: ByDay  # targets by the day of their request
    first: int
    last: int
    seconds: float  # of a period

    def name(self, day: int) -> str:
        """A day's date, with the time where it does not begin at midnight."""
        begin = datetime.fromtimestamp(MONDAY + day * self.seconds, UTC)
        return begin.date().isoformat() if self.seconds % DAY == 0 else begin.strftime("%Y-%m-%dT%H:%M")

    def names(self) -> list[str]:
        """Of the days that learn, in order."""
        return [self.name(day) for day in range(self.first, self.last)]

    def number(self, name: str) -> int:
        """The day of a name. Raises InputError where the log has no such day."""
        names = self.names()
        if name not in names:
            raise InputError(
                f"the log has no day {name} to learn and a next one to judge it on: its days are {names[0]} to"
                f" {names[-1]} (params keys `backtest.period_days`, `backtest.first_day`)"
            )
        return self.first + names.index(name)

    def to_learn(self, day: int) -> NDArray[np.int64]:
        """Targets that a day learns: those whose label became known on it; the first day, all that are known."""
        return self.learnt.of(day) if day > self.first else self.learnt.until(day)

    def to_judge(self, day: int) -> NDArray[np.int64]:
        """Targets that the model of ``day`` is judged on: those of the next day."""
        return self.asked.of(day + 1)


def read(config: Config, paths: Paths, store: TokenStore, begun: int | None = None) -> Days:
    """The days of the events of this home; ``begun``: the first day of a backtest that is on its way.

    Raises InputError for a log that has no clock, is too short, or has a day without a target to judge on.
    """
    report = artifacts.read(paths.events, "ingest", IngestReport)
    if not report.report.clock:
        raise InputError("the log has no timestamps, which `dti backtest` needs to tell its days")
    if report.config["split"]["feedback_until"] is not None:
        raise InputError(
            "a backtest learns every label once it is known, which `split.feedback_until: test_start` forbids: set it"
            " to null and run `dti ingest` and on again"
        )
    time = interactions.table(paths, ["timestamp"])["timestamp"].to_numpy()
    delay = report.config["split"]["feedback_delay"] or 0.0
    return cut(config.backtest, store, time.astype(np.float64), delay, config.split.min_history, begun)


def cut(
    config: BacktestConfig, store: TokenStore, time: NDArray[np.float64], delay: float, min_history: int,
    begun: int | None = None,
) -> Days:  # fmt: skip
    """The days of a log whose rows are shown at ``time`` (m,), unix seconds.

    A request is asked at the time of its first row; its labels are known ``delay`` seconds after its last, all at once.
    """
    seconds = config.period_days * DAY
    requests = np.flatnonzero(store.position == store.request)
    size = np.diff(np.append(requests, len(time)))
    asked, known = (np.repeat(of.reduceat(time, requests), size) for of in (np.minimum, np.maximum))
    targets = np.flatnonzero((store.request >= min_history) & (store.split != CODES.index(CONTEXT)))
    if not len(targets):
        raise InputError(f"no target: none has split.min_history = {min_history} rows before its request")
    asked, known = (((t[targets] - MONDAY) // seconds).astype(np.int64) for t in (asked, known + delay))
    last = int(asked.max())
    days = Days(ByDay(targets, known), ByDay(targets, asked), _first(config, asked, seconds, begun), last, seconds)
    if days.first >= last or int(asked.min()) == last:
        raise InputError(
            f"a backtest needs two periods, one to learn and one to judge on: the log's last target is of"
            f" {days.name(last)}, and learning begins with {days.name(days.first)} (params keys `backtest.period_days`,"
            " `backtest.first_day`)"
        )
    if not len(days.to_learn(days.first)):
        raise InputError(f"no target is known by the end of {days.name(days.first)}: set a later `backtest.first_day`")
    for day in range(days.first, last):
        if not len(days.to_judge(day)):
            raise InputError(
                f"{days.name(day + 1)} has no targets to judge on: make params key `backtest.period_days` longer than"
                f" {config.period_days:g}, or `backtest.first_day` later"
            )
    return days


def _first(config: BacktestConfig, asked: NDArray[np.int64], seconds: float, begun: int | None) -> int:
    """The first day: the configured one, the one that a backtest began with, or the one that `warmup_share` says."""
    if config.first_day is None:
        if begun is not None and asked.min() <= begun < asked.max():
            return begun
        enough = np.sort(asked)[int(config.warmup_share * len(asked))]
        return min(int(enough), max(int(asked.min()), int(asked.max()) - 1))
    try:
        begin = datetime.fromisoformat(config.first_day)
    except ValueError:
        raise InputError(
            f"params key `backtest.first_day` must be a date such as 2013-05-01, not {config.first_day!r}"
        ) from None
    begin = begin if begin.tzinfo else begin.replace(tzinfo=UTC)
    return int((begin.timestamp() - MONDAY) // seconds)
