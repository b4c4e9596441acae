"""The end of a backtest: means over its days, and the folder with table, report and pictures."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from dti_pipeline import artifacts
from dti_pipeline.artifacts import Inputs
from dti_pipeline.backtest.report import BacktestReport, Day, Score, Stale
from dti_pipeline.config import Config
from dti_pipeline.evaluation import curves, plots
from dti_pipeline.packing.report import TokenizeReport
from dti_pipeline.paradigms import named
from dti_pipeline.paths import Paths
from dti_pipeline.plain import to_plain

#: Sections of params.yaml that shape a backtest.
SECTIONS = ("packing", "model", "training", "backtest")


def publish(
    config: Config, paths: Paths, paradigm: str, days: Sequence[Day], hardware: str, note: str | None, inputs: Inputs
) -> BacktestReport:
    """Write ``reports/backtest/<paradigm>``: ``days.csv`` (a line a day), ``report.json``, pictures of AUC and cost
    by day."""
    knowledge = artifacts.read(paths.tokens, "tokenize", TokenizeReport).report.knowledge
    report = summary(config, paradigm, days, knowledge.feedback_delay, hardware, note)
    shaped = config.sections(*SECTIONS)
    del shaped["backtest"]["paradigms"]  # which others there are
    with artifacts.publish(paths.backtest(paradigm), "backtest", shaped, inputs) as draft:
        header, *lines = _table(report)
        curves.write_csv(draft.path / "days.csv", header, lines)
        artifacts.write_json(draft.path / "report.json", to_plain(report))
        _draw(report, draft.path)
        draft.report = report
    return report


def summary(
    config: Config, paradigm: str, days: Sequence[Day], delay: float | None, hardware: str, note: str | None
) -> BacktestReport:
    """Means and sums over the days."""
    fresh = [day.fresh_learnt for day in days if day.fresh_learnt is not None]
    return BacktestReport(
        paradigm=paradigm,
        period_days=config.backtest.period_days,
        delay=delay,
        auc=_mean(days, lambda day: day.score.auc),
        log_loss=_mean(days, lambda day: day.score.log_loss),
        targets_learnt=sum(day.learnt.targets for day in days),
        targets_judged=sum(day.judged for day in days),
        seconds=round(sum(day.learnt.seconds for day in days), 3),
        processor_seconds=round(sum(day.learnt.processor_seconds for day in days), 3),
        fresh_auc=_mean(days, lambda day: day.fresh.auc if day.fresh else None),
        fresh_processor_seconds=round(sum(cost.processor_seconds for cost in fresh), 3) if fresh else None,
        staleness={str(age): _stale(days, str(age)) for age in config.backtest.staleness},
        hardware=hardware,
        days=tuple(days),
        note=note,
    )


def _mean(days: Sequence[Day], figure: Callable[[Day], float | None]) -> float | None:
    """Mean over the days that have the figure, weighed by their targets."""
    found = [(value, day.judged) for day in days if (value := figure(day)) is not None]
    return float(np.average([v for v, _ in found], weights=[n for _, n in found])) if found else None


def _stale(days: Sequence[Day], age: str) -> Stale:
    both = [day for day in days if age in day.stale and day.stale[age].auc is not None]
    old, new = (_mean(both, figure) for figure in (lambda day: day.stale[age].auc, lambda day: day.score.auc))
    return Stale(len(both), old, None if old is None or new is None else new - old)


def _table(report: BacktestReport) -> Iterator[list[Any]]:
    """Header and lines of the table of days; an empty field where there is no figure."""
    ages = list(report.staleness)
    head = ["day", "targets", "tokens", "seconds", "processor_seconds", "judged_on", "judged", "auc", "log_loss"]
    head += [f"{name}_{age}" for age in ages for name in ("auc", "log_loss")]
    yield [*head, "fresh_auc", "fresh_log_loss", "fresh_tokens", "fresh_seconds", "fresh_processor_seconds"]
    none = Score(None, None)
    for day in report.days:
        cost, fresh, fresh_cost = day.learnt, day.fresh or none, day.fresh_learnt
        line: list[Any] = [
            day.day,
            cost.targets,
            cost.tokens,
            cost.seconds,
            cost.processor_seconds,
            day.judged_on,
            day.judged,
        ]
        for score in (day.score, *(day.stale.get(age, none) for age in ages), fresh):
            line += [score.auc, score.log_loss]
        line += [fresh_cost and getattr(fresh_cost, name) for name in ("tokens", "seconds", "processor_seconds")]
        yield ["" if value is None else value for value in line]


def _draw(report: BacktestReport, folder: Path) -> None:
    """AUC by judged day, and processor seconds by learnt day."""
    days, colour = report.days, named(report.paradigm).style.colour
    place = np.arange(len(days))

    def dated(axes: Axes, names: Sequence[str]) -> None:
        every = max(1, -(-len(names) // 8))
        axes.set_xticks(place[::every], names[::every], rotation=30, ha="right")

    figure, axes = plots.new_figure()
    lines: list[tuple[str, list[float | None], str]] = [("the day before", [day.score.auc for day in days], "-")]
    for age, style in zip(report.staleness, ("--", ":", "-.") * len(report.staleness), strict=False):
        old = [day.stale[age].auc if age in day.stale else None for day in days]
        lines.append((f"{age} before", old, style))
    for name, values, style in lines:
        if any(value is not None for value in values):
            axes.plot(place, np.array(values, float), style, color=colour, label=name)
    if report.fresh_auc is not None:
        fresh = np.array([day.fresh.auc if day.fresh else None for day in days], float)
        axes.plot(place, fresh, color="0.4", linewidth=0.8, label="a fresh start")
    axes.set(title=f"AUC by day ({report.paradigm})", ylabel="AUC", xlabel="judged on")
    dated(axes, [day.judged_on for day in days])
    axes.legend(title="weights of")
    plots.save(figure, folder, "auc_by_day")

    figure, axes = plots.new_figure()
    later = place[1:]  # the first learns everything before it
    axes.plot(later, [day.learnt.processor_seconds for day in days[1:]], color=colour, label="from yesterday's weights")
    if report.fresh_processor_seconds is not None:
        costs = [day.fresh_learnt.processor_seconds for day in days[1:] if day.fresh_learnt]
        axes.plot(later, costs, color="0.4", linewidth=0.8, label="a fresh start")
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("{x:g}")
    else:
        axes.set_ylim(0, 1.2 * max([day.learnt.processor_seconds for day in days[1:]], default=1.0))
    axes.set(title=f"Cost by day ({report.paradigm})", ylabel="processor seconds", xlabel="day learnt")
    dated(axes, [day.day for day in days])
    axes.legend()
    plots.save(figure, folder, "cost_by_day")
