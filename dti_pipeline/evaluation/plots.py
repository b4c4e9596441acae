"""The pictures: PNG and SVG, the same bytes for the same figures, readable in grey and by colour-blind readers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from dti_pipeline.evaluation.curves import Curves
from dti_pipeline.paradigms import BASELINE, named

#: From this ratio of the longest to the shortest training on, seconds are drawn on a logarithmic axis.
WIDE = 5.0


def draw_all(curves: Mapping[str, Curves], folder: Path, speedup: Mapping[str, float] | None = None) -> list[str]:
    """Draw every picture there are figures for, as NAME.png and NAME.svg into ``folder``; return the names."""
    drawings: dict[str, tuple[Callable[[Axes, Any], None], Any]] = {
        "auc_time": (_draw_auc_time, curves),
        "roc": (_draw_roc, curves if any(one.points["roc"] for one in curves.values()) else None),
        "calibration": (_draw_calibration, curves),
        "speedup": (_draw_speedup, speedup),
    }
    drawn = [name for name, (_, figures) in drawings.items() if figures]
    for name in drawn:
        draw, figures = drawings[name]
        figure, axes = new_figure()
        draw(axes, figures)
        save(figure, folder, name)
    return drawn


def _draw_roc(axes: Axes, curves: Mapping[str, Curves]) -> None:
    for name, one in curves.items():
        _plot(axes, name, one.points["roc"], label=name if one.auc is None else f"{name} ({one.auc:.3f})")
    _square(axes, "ROC of the evaluated targets", "false positive rate", "true positive rate")
    axes.legend(title="paradigm (AUC)", loc="lower right")


def _draw_calibration(axes: Axes, curves: Mapping[str, Curves]) -> None:
    for name, one in curves.items():
        points = [(predicted, observed) for predicted, observed, _ in one.points["calibration"]]
        _plot(axes, name, points, marker=named(name).style.marker, markersize=5, label=name)
    _square(axes, "Calibration (bins of equal mass)", "mean predicted probability", "observed click rate")
    axes.legend(loc="upper left")


def _draw_auc_time(axes: Axes, curves: Mapping[str, Curves]) -> None:
    """Validation AUC as training went on; a star, hung on the line's end, is the AUC of the evaluated targets."""
    seconds = []
    for name, one in curves.items():
        points = [(when, auc) for when, _, auc in one.points["learning_curve"]]
        _plot(axes, name, points, marker=named(name).style.marker, markersize=5, label=name)
        if one.auc is not None:
            end = (one.train_seconds, one.auc)
            _plot(axes, name, [*points[-1:], end], linewidth=0.6)
            _plot(axes, name, [end], marker="*", markersize=13, linestyle="none")
            points.append(end)
        seconds += [x for x, _ in points if x > 0]
    axes.plot([], [], color="0.4", marker="*", markersize=13, linestyle="none", label="evaluated targets, at the end")
    if seconds and max(seconds) > WIDE * min(seconds):
        logarithmic(axes)
    axes.set(title="AUC against training time", xlabel="training time (s)", ylabel="AUC (lines: validation targets)")
    axes.legend(loc="upper center", bbox_to_anchor=(0.45, -0.14), ncols=3, frameon=False, columnspacing=1.2)


def _draw_speedup(axes: Axes, speedup: Mapping[str, float]) -> None:
    names = list(speedup)
    for place, name in enumerate(names):
        style = named(name).style
        axes.barh(place, speedup[name], color="white", edgecolor=style.colour, hatch=style.hatch or None)
        axes.annotate(f" {speedup[name]:.1f}x", (speedup[name], place), va="center")
    axes.axvline(1, color="0.4", linewidth=0.8)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set(title="Training speed per target", xlabel=f"times the targets per second of {BASELINE}")
    axes.set_xlim(0, 1.15 * max(1.0, *speedup.values()))
    axes.grid(visible=False, axis="y")


def _plot(axes: Axes, paradigm: str, points: Sequence[tuple[Any, ...]], **changed: Any) -> None:
    """A line through points (x, y) in the paradigm's style."""
    style = named(paradigm).style
    axes.plot(
        [x for x, _ in points], [y for _, y in points], **{"color": style.colour, "linestyle": style.line, **changed}
    )


def _square(axes: Axes, title: str, xlabel: str, ylabel: str) -> None:
    """Both axes from 0 to 1, with the diagonal."""
    axes.plot([0, 1], [0, 1], color="0.7", linewidth=0.8)
    axes.set(title=title, xlim=(0, 1), ylim=(0, 1), xlabel=xlabel, ylabel=ylabel, aspect="equal")


def new_figure() -> tuple[Figure, Axes]:
    """An empty picture with a light grid and no frame."""
    # A Figure of its own rather than pyplot's: no global state, no backend that looks for a display.
    figure = Figure(figsize=(6.0, 4.5), layout="constrained")
    axes = figure.add_subplot()
    plain(axes)
    return figure, axes


def plain(axes: Axes) -> None:
    """A light grid and no frame."""
    axes.grid(color="0.92")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def logarithmic(axes: Axes) -> None:
    """A logarithmic x axis with plain numbers at 1, 2 and 5."""
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())


def save(figure: Figure, folder: Path, name: str) -> None:
    """NAME.svg and NAME.png."""
    with matplotlib.rc_context({"svg.hashsalt": name, "svg.fonttype": "path"}):
        # No date and no version in the files: equal figures are equal bytes.
        figure.savefig(folder / f"{name}.svg", metadata={"Date": None, "Creator": None})
        figure.savefig(folder / f"{name}.png", dpi=120, metadata={"Software": None})
