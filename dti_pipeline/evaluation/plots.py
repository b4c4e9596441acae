"""The pictures: PNG and SVG, the same bytes for the same figures, readable in grey and by colour-blind readers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

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
    drawings = {
        "auc_time": draw_auc_time if any(c.train_seconds for c in curves.values()) else None,
        "roc": draw_roc if any(c.roc for c in curves.values()) else None,
        "calibration": draw_calibration,
    }
    names = []
    for name, draw in drawings.items():
        if draw is not None:
            figure, axes = new_figure()
            draw(axes, curves)
            save(figure, folder, name)
            names.append(name)
    if speedup:
        figure, axes = new_figure()
        draw_speedup(axes, speedup)
        save(figure, folder, "speedup")
        names.append("speedup")
    return names


def draw_roc(axes: Axes, curves: Mapping[str, Curves]) -> None:
    for name, one in curves.items():
        style = named(name).style
        label = f"{name} ({one.auc:.3f})" if one.auc is not None else name
        axes.plot(*_xy(one.roc), color=style.colour, linestyle=style.line, label=label)
    axes.plot([0, 1], [0, 1], color="0.7", linewidth=0.8)
    axes.set(title="ROC of the evaluated targets", xlim=(0, 1), ylim=(0, 1))
    axes.set(xlabel="false positive rate", ylabel="true positive rate", aspect="equal")
    axes.legend(title="paradigm (AUC)", loc="lower right")


def draw_calibration(axes: Axes, curves: Mapping[str, Curves]) -> None:
    for name, one in curves.items():
        style = named(name).style
        points = [(b.predicted, b.observed) for b in one.calibration]
        axes.plot(*_xy(points), color=style.colour, linestyle=style.line, marker=style.marker, markersize=5, label=name)
    axes.plot([0, 1], [0, 1], color="0.7", linewidth=0.8)
    axes.set(title="Calibration (bins of equal mass)", xlim=(0, 1), ylim=(0, 1))
    axes.set(xlabel="mean predicted probability", ylabel="observed click rate", aspect="equal")
    axes.legend(loc="upper left")


def draw_auc_time(axes: Axes, curves: Mapping[str, Curves]) -> None:
    """Validation AUC as training went on; a star, hung on the line's end, is the AUC of the evaluated targets."""
    seconds = []
    for name, one in curves.items():
        style = named(name).style
        points = [(p.train_seconds, p.auc) for p in one.learning]
        axes.plot(*_xy(points), color=style.colour, linestyle=style.line, marker=style.marker, markersize=5, label=name)
        if one.train_seconds is not None and one.auc is not None:
            end = (one.train_seconds, one.auc)
            axes.plot(*_xy([*points[-1:], end]), color=style.colour, linestyle=style.line, linewidth=0.6)
            axes.plot(*_xy([end]), color=style.colour, marker="*", markersize=13, linestyle="none")
            points.append(end)
        seconds += [x for x, _ in points if x > 0]
    axes.plot([], [], color="0.4", marker="*", markersize=13, linestyle="none", label="evaluated targets, at the end")
    if seconds and max(seconds) > WIDE * min(seconds):
        logarithmic(axes)
    axes.set(title="AUC against training time", xlabel="training time (s)", ylabel="AUC (lines: validation targets)")
    axes.legend(loc="upper center", bbox_to_anchor=(0.45, -0.14), ncols=3, frameon=False, columnspacing=1.2)


def _xy(points: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [x for x, _ in points], [y for _, y in points]


def draw_speedup(axes: Axes, speedup: Mapping[str, float]) -> None:
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
