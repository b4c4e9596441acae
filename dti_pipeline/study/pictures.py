"""The study's pictures, from its rows alone: SVG and PNG, readable in grey, axes with units."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import fmean

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from dti_pipeline.errors import InputError
from dti_pipeline.evaluation.plots import save
from dti_pipeline.paradigms import named, names
from dti_pipeline.plain import nearest
from dti_pipeline.planning.cost import token_speedup
from dti_pipeline.study import tables
from dti_pipeline.study.grid import BASELINE, Grid
from dti_pipeline.study.rows import Row, pace, seconds
from dti_pipeline.study.tables import Line

#: Lines of variants of one paradigm: the fill of their markers tells them apart.
FILLS = ("full", "none", "left", "top", "right", "bottom")
WIDTH, HEIGHT = 5.2, 4.0  # inches, of a panel
ABREAST = 3  # panels

Point = tuple[float | None, float | None]
Curves = dict[str, dict[tuple[str, str], list[tuple[float, float]]]]


def draw_all(grid: Grid, rows: list[Row], folder: Path) -> list[str]:
    """Draw the grid's ``figures`` for which there are rows, as study_NAME.svg and .png; return the names."""
    folder.mkdir(parents=True, exist_ok=True)
    drawn = []
    for name, groups in grid.figures.items():
        if name not in DRAWINGS:
            known = list(DRAWINGS)
            raise InputError(f"{grid.path}: no figure is named {name!r}: use {', '.join(known)}{nearest(name, known)}")
        chosen = {row["config"]: row for group in groups for row in tables.of_group(grid, rows, group)}
        lines = tables.lines(chosen.values())
        if DRAWINGS[name](grid, lines, rows, folder / f"study_{name}"):
            drawn.append(f"study_{name}")
    return drawn


def auc_seconds(grid: Grid, lines: list[Line], rows: list[Row], path: Path) -> bool:
    """One curve a paradigm: its AUC after trainings of several lengths."""

    def point(line: Line) -> Point:
        alone = [found for row in line.rows if (found := seconds(row, rows)) is not None]
        return (fmean(alone) if alone else None), line.mean("auc")

    def finish(axes: Axes) -> None:
        _logarithmic(axes, "training time (s)", "AUC, single prompts")

    return _draw(_curves(lines, point), finish, path, "AUC against training time")


def speedup_k(grid: Grid, lines: list[Line], rows: list[Row], path: Path) -> bool:
    """Targets a second over the sliding window's, against k, with what the ratio of tokens allows."""
    steps = dict(_steps(grid))
    places = _places([line["k"] for line in lines] + [row["k"] for found in steps.values() for row in found])

    def its(line: Line) -> str:
        timed = pace(line.rows[0], rows)
        return _machine(line["dataset"], line["n"], timed.hardware if timed else line["hardware"])

    curves = _curves(lines, lambda line: (places[line["k"]], line.mean("speedup")), its)
    bounds: dict[str, set[tuple[float, float]]] = {}
    for line in lines:
        if (fewer := line.mean("fewer_tokens")) is not None:
            bounds.setdefault(its(line), set()).add((places[line["k"]], fewer))
    for name, found in steps.items():
        several = len({row.get("targets_per_step") for row in found}) > 1
        for row in found:
            if row["paradigm"] != BASELINE and row["speedup"] is not None:
                made = " ".join(part for part in (name, row.get("model")) if part)
                panel = _machine(made, row["n"], row["hardware"])
                variant = f"{row['targets_per_step']:,} targets a step" if several else row.get("fixes", "")
                curve = curves.setdefault(panel, {}).setdefault((row["paradigm"], variant), [])
                curve.append((places[row["k"]], row["speedup"]))
                bounds.setdefault(panel, set()).add((places[row["k"]], _saved(row)))

    def finish(axes: Axes) -> None:
        known = sorted(bounds.get(axes.get_title(), ()))
        if len({k for k, _ in known}) > 1:
            axes.plot(*zip(*known, strict=True), color="0.4", linewidth=1, marker="_", label="arithmetic bound")
        elif known:  # a line of one point would not be seen
            axes.axhline(known[-1][1], color="0.4", linewidth=1, label="arithmetic bound")
        _k_axis(axes, places)
        axes.set(ylabel="times the targets/s of sliding_window", ylim=(0, 1.1 * axes.dataLim.y1))

    return _draw(curves, finish, path, "Speed-up against k")


def leak_k(grid: Grid, lines: list[Line], rows: list[Row], path: Path) -> bool:
    """AUC in streaming prompts less AUC in single prompts of the same model."""
    places = _places([line["k"] for line in lines if line["paradigm"] != BASELINE])

    def point(line: Line) -> Point:
        streaming, single = line.mean("auc_streaming"), line.mean("auc")
        known = line["paradigm"] != BASELINE and streaming is not None and single is not None
        return (places[line["k"]], streaming - single) if known else (None, None)  # type: ignore[operator]

    def finish(axes: Axes) -> None:
        axes.axhline(0, color="0.4", linewidth=0.8)
        _k_axis(axes, places)
        axes.set(ylabel="AUC lost: streaming less single prompts")

    return _draw(_curves(lines, point), finish, path, "Leak against k")


def auc_n(grid: Grid, lines: list[Line], rows: list[Row], path: Path) -> bool:
    """AUC against the number of context interactions, with the floor that sees as many.

    Nothing is drawn for one number.
    """
    if len({line["n"] for line in lines}) < 2:
        return False
    floors: dict[str, dict[int, float]] = {}
    for line in lines:
        if line["floors"]:
            floors.setdefault(line["dataset"], {})[line["n"]] = line["floors"]["item_and_user_rate"]

    def finish(axes: Axes) -> None:
        if known := sorted(floors.get(axes.get_title(), {}).items()):
            axes.plot(*zip(*known, strict=True), color="0.4", linewidth=1, label="floor: item and user rate (last n)")
        axes.set_xticks(sorted({line["n"] for line in lines}))
        axes.set(xlabel="n, context interactions", ylabel="AUC, single prompts")

    return _draw(_curves(lines, lambda line: (line["n"], line.mean("auc"))), finish, path, "AUC against n")


def cost_history(grid: Grid, lines: list[Line], rows: list[Row], path: Path) -> bool:
    """Milliseconds a target against the mean length of a history, the logs of the group being alike but for that."""

    def point(line: Line) -> Point:
        pace = line.mean("targets_per_second")
        return line.mean("interactions_per_user"), (1000 / pace if pace else None)

    def finish(axes: Axes) -> None:
        _logarithmic(axes, "m, interactions of a user", "training time a target (ms)")
        lengths = sorted({line.mean("interactions_per_user") or 0.0 for line in lines})
        axes.set_xticks(lengths, [f"{length:.0f}" for length in lengths])
        axes.set(ylim=(0, 1.1 * axes.dataLim.y1))

    title = "Cost of a target against history length"
    curves: Curves = {title: {}} if lines else {}
    for panel in _curves(lines, point).values():
        for curve, points in panel.items():
            curves[title].setdefault(curve, []).extend(points)
    return _draw(curves, finish, path, "")


DRAWINGS: dict[str, Callable[[Grid, list[Line], list[Row], Path], bool]] = {
    "auc_seconds": auc_seconds,
    "speedup_k": speedup_k,
    "leak_k": leak_k,
    "auc_n": auc_n,
    "cost_history": cost_history,
}


def _log(line: Line) -> str:
    return str(line["dataset"])


def _machine(name: str, n: int, hardware: str) -> str:
    """A speed-up is of one n and one machine."""
    return f"{name}, n = {n}\n{hardware}"


def _curves(lines: Iterable[Line], point: Callable[[Line], Point], panel: Callable[[Line], str] = _log) -> Curves:
    """Points by panel, and in it by paradigm and variant; what is not known, and models of other kinds, left out."""
    curves: Curves = {}
    for line in lines:
        x, y = point(line)
        if x is not None and y is not None and line["paradigm"] in names():
            variant = " ".join(part for part in (line["fixes"], line["model"]) if part)
            curves.setdefault(panel(line), {}).setdefault((line["paradigm"], variant), []).append((x, y))
    return curves


def _draw(curves: Curves, finish: Callable[[Axes], None], path: Path, title: str) -> bool:
    """Panels, in each one curve for each paradigm and variant; False where there is no point."""
    if not any(curves.values()):
        return False
    columns, deep = min(len(curves), ABREAST), -(-len(curves) // ABREAST)
    figure = Figure(figsize=(WIDTH * columns, HEIGHT * deep), layout="constrained")
    places = list(figure.subplots(deep, columns, squeeze=False).flat)
    for (name, panel), axes in zip(curves.items(), places, strict=False):
        axes.grid(color="0.92")
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_title(name)
        variants = list(dict.fromkeys(variant for _, variant in panel))
        for (paradigm, variant), points in sorted(panel.items(), key=lambda item: tables.order(item[0][0])):
            drawn = named(paradigm).style
            colour, style, marker = drawn.colour, drawn.line, drawn.marker
            axes.plot(
                *zip(*sorted(points), strict=True), color=colour, linestyle=style, marker=marker, markersize=6,
                fillstyle=FILLS[variants.index(variant) % len(FILLS)], label=f"{paradigm} {variant}".strip(),
            )  # fmt: skip
        finish(axes)
        axes.legend(fontsize="small", frameon=False)
    for axes in places[len(curves) :]:
        axes.set_axis_off()
    if title:
        figure.suptitle(title)
    save(figure, path.parent, path.name)
    return True


def _saved(row: Row) -> float:
    """What arithmetic allows a row of a benchmark: its own count, or the formula's."""
    own = row.get("bound") or row.get("fewer_tokens")
    return own or token_speedup(row["n"], row["tokens_per_interaction"], row["k"])


def _places(ks: Iterable[int | str]) -> dict[int | str, float]:
    """Where each k stands on a logarithmic axis; `all` to the right of the largest number."""
    numbers = sorted({k for k in ks if isinstance(k, int)})
    return {k: float(k) for k in numbers} | {"all": 2.0 * max(numbers, default=50)}


def _k_axis(axes: Axes, places: dict[int | str, float]) -> None:
    axes.set_xscale("log")
    axes.set_xticks(list(places.values()), [str(k) for k in places])
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set(xlabel="k, targets a prompt")


def _logarithmic(axes: Axes, x: str, y: str) -> None:
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set(xlabel=x, ylabel=y)


def _steps(grid: Grid) -> Iterable[tuple[str, list[Row]]]:
    """Results of training-step benchmarks that are there."""
    for name in grid.speed:
        path = grid.beside(name)
        if path.is_file():
            yield path.stem, json.loads(path.read_text(encoding="utf-8"))
