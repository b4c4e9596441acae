"""Report of a backtest: its days, what old weights cost, and what a fresh start each day gives and costs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Cost:
    """Of one day's training, planning included."""

    targets: int  # distinct ones; a fresh start sees each training.epochs times
    tokens: int  # seen, without padding
    seconds: float
    processor_seconds: float


@dataclass(frozen=True)
class Score:
    """Of some weights on one day's targets, one prompt a target."""

    auc: float | None  # None: all of one class
    log_loss: float | None


@dataclass(frozen=True)
class Day:
    """A day that learnt what became known on it, and how its model did on the next day."""

    day: str
    learnt: Cost
    judged_on: str
    judged: int  # targets
    score: Score
    stale: dict[str, Score]  # by age in days: older weights on the same targets
    fresh: Score | None  # of a new model on the same targets
    fresh_learnt: Cost | None

    def line(self) -> str:
        """What it cost and how it did, in a sentence."""
        score = "-" if self.score.auc is None else f"{self.score.auc:.4f}"
        return (
            f"{self.day}: {self.learnt.targets:,} targets in {self.learnt.seconds:.1f} s;"
            f" {self.judged_on}: AUC {score} of {self.judged:,} targets"
        )


@dataclass(frozen=True)
class Stale:
    """What old weights cost, on the days that were judged by both."""

    days: int
    auc: float | None  # mean, days weighted by targets
    auc_lost: float | None  # against the newest weights, on the same days


@dataclass(frozen=True)
class BacktestReport:
    """Every figure of a backtest; means weigh days by their targets."""

    paradigm: str
    period_days: float
    delay: float | None  # split.feedback_delay
    auc: float | None
    log_loss: float | None
    targets_learnt: int  # each once
    targets_judged: int
    seconds: float  # of all days' training
    processor_seconds: float
    fresh_auc: float | None
    fresh_processor_seconds: float | None
    staleness: dict[str, Stale]  # by age in days
    hardware: str
    days: tuple[Day, ...]
    note: str | None = None  # what was done about a log that had changed

    def listing(self) -> str:
        """The table of days, and the means, in words."""
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        ages = list(self.staleness)
        head = [f"{'learnt':<16}{'targets':>8}{'tokens':>10}{'cpu s':>8}  {'judged on':<16}{'targets':>8}"]
        head += [f"{name:>9}" for name in ("log loss", "AUC", *(f"{age} old" for age in ages), "fresh", "cpu s")]
        yield f"backtest ({self.paradigm}), {self.period_days:g} days a period"
        yield "".join(head).rstrip()
        for one in self.days:
            cost, fresh = one.learnt, one.fresh_learnt
            line = f"{one.day:<16}{cost.targets:>8,}{cost.tokens:>10,}{cost.processor_seconds:>8.2f}  "
            line += f"{one.judged_on:<16}{one.judged:>8,}{_figure(one.score.log_loss)}{_figure(one.score.auc)}"
            line += "".join(_figure(one.stale[age].auc if age in one.stale else None) for age in ages)
            line += _figure(one.fresh.auc if one.fresh else None)
            yield line + (f"{fresh.processor_seconds:>9.2f}" if fresh else f"{'-':>9}")
        yield f"mean AUC {_figure(self.auc).strip()}, log loss {_figure(self.log_loss).strip()}"
        for age, stale in self.staleness.items():
            if stale.days:
                yield f"weights {age} periods older lose {_figure(stale.auc_lost).strip()} AUC over {stale.days} days"
        if self.fresh_processor_seconds is not None:
            yield (
                f"a fresh start each day: AUC {_figure(self.fresh_auc).strip()},"
                f" {self.fresh_processor_seconds:,.1f} processor seconds instead of {self.processor_seconds:,.1f}"
            )
        if self.note:
            yield self.note


def _figure(value: float | None) -> str:
    return f"{'-':>9}" if value is None else f"{value:>9.4f}"
