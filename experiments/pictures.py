"""The pictures of a study, from its rows alone: SVG and PNG, readable in grey, axes with units."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from dti_pipeline.evaluation.plots import logarithmic, plain, save
from dti_pipeline.evaluation.tables import duration
from dti_pipeline.evaluation.verdict import floor_label
from dti_pipeline.paradigms import Style, named, names
from experiments import analyse
from experiments.analyse import Line, Row
from experiments.grid import BASELINE, Grid, known

FILLS = ("full", "none", "left", "top", "right", "bottom")  # of markers: they tell variants of one paradigm apart
WIDTH, HEIGHT = 5.2, 4.0  # inches, of a panel
ABREAST = 3  # panels
#: What is drawn beside the paradigms: models of other kinds, then floors.
BESIDE = {
    "gbdt": Style("#CC79A7", "-", "v", ""), "din": Style("#56B4E9", "--", "P", ""),
    "item_rate": Style("0.6", ":", "", ""), "item_and_user_rate": Style("0.4", "-", "", ""),
    "item_and_user_rate_all_rows": Style("0.4", "--", "", ""),
}  # fmt: skip

Point = tuple[float | None, float | None]
#: Panel -> (paradigm, variant) -> points.
Curves = dict[str, dict[tuple[str, str], list[tuple[float, float]]]]


def draw_all(grid: Grid, rows: list[Row], folder: Path) -> list[str]:
    """Draw the grid's ``figures`` for which there are rows, as study_NAME.svg and .png; return the names."""
    folder.mkdir(parents=True, exist_ok=True)
    drawn = []
    for name, groups in grid.figures.items():
        known(f"{grid.path}, figures: it has", [name], DRAWINGS)
        chosen = {row["config"]: row for group in groups for row in analyse.of_group(grid, rows, group)}
        if DRAWINGS[name](grid, analyse.lines(chosen.values()), rows, folder / f"study_{name}"):
            drawn.append(f"study_{name}")
    return drawn


def auc_seconds(grid: Grid, lines: list[Line], rows: list[Row], path: Path) -> bool:
    """One curve a paradigm: its AUC after trainings of several lengths."""

    def finish(axes: Axes) -> None:
        logarithmic(axes)
        axes.set(xlabel="training time (s)", ylabel="AUC, single prompts")

    curves = _curves(lines, lambda line: (analyse.mean_seconds(line, rows), line.mean("auc")))
    return _draw(curves, finish, path, "AUC against training time")


def speedup_k(grid: Grid, lines: list[Line], rows: list[Row], path: Path) -> bool:
    """Targets a second over the sliding window's, against k, with the bound that the ratio of tokens sets."""
    files = [grid.beside(grid.results) / name for name in grid.speed]
    steps = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in files if path.is_file()}
    places = _places([line["k"] for line in lines] + [row["k"] for found in steps.values() for row in found])

    def panel(line: Line) -> str:
        timed = analyse.measured(line.rows[0], rows)[0] or line
        return f"{line['dataset']}, n = {line['n']}\n{timed['hardware']}"

    curves = _curves(lines, lambda line: (places[line["k"]], line.mean("speedup")), panel)
    bounds: dict[str, set[tuple[float, float]]] = {}
    for line in lines:
        if (fewer := line.mean("fewer_tokens")) is not None:
            bounds.setdefault(panel(line), set()).add((places[line["k"]], fewer))
    for name, found in steps.items():
        several = len({row.get("targets_per_step") for row in found}) > 1
        for row in found:
            if row["paradigm"] != BASELINE and row["speedup"] is not None:
                made = " ".join(part for part in (name, row.get("model")) if part)
                where = f"{made}, n = {row['n']}\n{row['hardware']}"
                variant = f"{row['targets_per_step']:,} targets a step" if several else row.get("fixes", "")
                curve = curves.setdefault(where, {}).setdefault((row["paradigm"], variant), [])
                curve.append((places[row["k"]], row["speedup"]))
                bounds.setdefault(where, set()).add((places[row["k"]], row.get("bound") or row["fewer_tokens"]))

    def finish(axes: Axes) -> None:
        points = sorted(bounds.get(axes.get_title(), ()))
        if len({k for k, _ in points}) > 1:
            axes.plot(*zip(*points, strict=True), color="0.4", linewidth=1, marker="_", label="arithmetic bound")
        elif points:  # a line of one point would not be seen
            axes.axhline(points[-1][1], color="0.4", linewidth=1, label="arithmetic bound")
        _k_axis(axes, places)
        axes.set(ylabel="times the targets/s of sliding_window", ylim=(0, 1.1 * axes.dataLim.y1))

    return _draw(curves, finish, path, "Speed-up against k")


def leak_k(grid: Grid, lines: list[Line], rows: list[Row], path: Path) -> bool:
    """AUC in streaming prompts less AUC in single prompts of the same model."""
    trained = [line for line in lines if line["paradigm"] != BASELINE]
    places = _places([line["k"] for line in trained])

    def point(line: Line) -> Point:
        streaming, single = line.mean("auc_streaming"), line.mean("auc")
        return places[line["k"]], None if streaming is None or single is None else streaming - single

    def finish(axes: Axes) -> None:
        axes.axhline(0, color="0.4", linewidth=0.8)
        _k_axis(axes, places)
        axes.set(ylabel="AUC lost: streaming less single prompts")

    return _draw(_curves(trained, point), finish, path, "Leak against k")


def auc_n(grid: Grid, lines: list[Line], rows: list[Row], path: Path) -> bool:
    """AUC against the number of context interactions, with the floor that sees as many."""
    if len({line["n"] for line in lines}) < 2:
        return False
    floors: dict[str, dict[int, float]] = {}
    for line in lines:
        if line["floors"]:
            floors.setdefault(line["dataset"], {})[line["n"]] = line["floors"]["item_and_user_rate"]

    def finish(axes: Axes) -> None:
        if points := sorted(floors.get(axes.get_title(), {}).items()):
            axes.plot(*zip(*points, strict=True), color="0.4", linewidth=1, label="floor: item and user rate (last n)")
        axes.set_xticks(sorted({line["n"] for line in lines}))
        axes.set(xlabel="n, context interactions", ylabel="AUC, single prompts")

    return _draw(_curves(lines, lambda line: (line["n"], line.mean("auc"))), finish, path, "AUC against n")


def auc_delay(grid: Grid, lines: list[Line], rows: list[Row], path: Path) -> bool:
    """AUC against the time after which a label is known, floors, trees and a usual network included."""
    delays = sorted({line["delay"] for line in lines}, key=lambda delay: delay or 0)
    if len(delays) < 2:
        return False
    curves: Curves = {name: {} for name in grid.data_sets}
    labels: dict[str, str] = {}
    for line in lines:
        place = float(delays.index(line["delay"]))
        found = {line["paradigm"]: line.mean("auc")} | (line["floors"] or {})
        labels |= {floor: f"floor: {floor_label(floor, line['n'])}" for floor in line["floors"] or {}}
        for name, auc in found.items():
            points = curves.setdefault(line["dataset"], {}).setdefault((name, ""), [])
            if auc is not None and (place, auc) not in points:  # a floor is in the rows of all models
                points.append((place, auc))

    def finish(axes: Axes) -> None:
        for drawn in axes.get_lines():
            drawn.set_label(labels.get(str(drawn.get_label()), drawn.get_label()))
        axes.set_xticks(range(len(delays)), ["at once" if delay is None else duration(delay) for delay in delays])
        axes.set(xlabel="a label is known after", ylabel="AUC, single prompts")

    drawn = {name: panel for name, panel in curves.items() if panel}
    return _draw(drawn, finish, path, "AUC against delay", legend_below=True)


def cost_history(grid: Grid, lines: list[Line], rows: list[Row], path: Path) -> bool:
    """Milliseconds a target against the mean length of a history, the logs of the group being alike but for that."""

    def point(line: Line) -> Point:
        speed = line.mean("targets_per_second")
        return line.mean("interactions_per_user"), (1000 / speed if speed else None)

    def finish(axes: Axes) -> None:
        logarithmic(axes)
        lengths = sorted({line.mean("interactions_per_user") or 0.0 for line in lines})
        axes.set_xticks(lengths, [f"{length:.0f}" for length in lengths])
        axes.set(xlabel="m, interactions of a user", ylabel="training time a target (ms)")
        axes.set(ylim=(0, 1.1 * axes.dataLim.y1))

    return _draw(_curves(lines, point, lambda line: "Cost of a target against history length"), finish, path, "")


def auc_models(grid: Grid, lines: list[Line], rows: list[Row], path: Path) -> bool:
    """AUC against the seconds of training alone on the machine, of models of several sizes: one curve a paradigm.

    A log with one model is left out: it says nothing of sizes.
    """
    shown = [line for line in lines if line["dataset"] in grid.data_sets and line.mean("train_seconds")]

    def model(line: Line) -> str:
        return grid.data_sets[line["dataset"]].model or line["model"]

    def panel(line: Line) -> str:
        timed = analyse.measured(line.rows[0], rows)[0] or line
        return f"{grid.data_sets[line['dataset']].log or line['dataset']}, n = {line['n']}\n{timed['hardware']}"

    def point(line: Line) -> Point:
        return analyse.mean_seconds(line, rows), line.mean("auc")

    named_points: dict[str, list[tuple[float, float, str]]] = {}
    for line in shown:
        x, y = point(line)
        if x is not None and y is not None:
            named_points.setdefault(panel(line), []).append((x, y, model(line)))

    def finish(axes: Axes) -> None:
        for x, y, name in named_points[axes.get_title()]:
            axes.annotate(name, (x, y), xytext=(4, 4), textcoords="offset points", fontsize="x-small")
        logarithmic(axes)
        axes.set(xlabel="training time, alone on the machine (s)", ylabel="AUC, single prompts")

    several = {name for name, points in named_points.items() if len({model for *_, model in points}) > 1}
    curves = _curves(shown, point, panel, lambda line: line["fixes"])
    curves = {name: curve for name, curve in curves.items() if name in several}
    return _draw(curves, finish, path, "What a second of training buys, by size of the model")


DRAWINGS = {
    draw.__name__: draw for draw in (auc_seconds, auc_models, speedup_k, leak_k, auc_n, auc_delay, cost_history)
}


def _curves(
    lines: Iterable[Line],
    point: Callable[[Line], Point],
    panel: Callable[[Line], str] = lambda line: line["dataset"],
    variant: Callable[[Line], str] = lambda line: f"{line['fixes'] or ''} {line['model'] or ''}".strip(),
) -> Curves:
    """The points of lines; unknown ones, and models of other kinds, left out."""
    curves: Curves = {}
    for line in lines:
        x, y = point(line)
        if x is not None and y is not None and line["paradigm"] in names():
            curves.setdefault(panel(line), {}).setdefault((line["paradigm"], variant(line)), []).append((x, y))
    return curves


def _draw(curves: Curves, finish: Callable[[Axes], None], path: Path, title: str, legend_below: bool = False) -> bool:
    """Panels, in each one curve for each paradigm and variant; False where there is no point. A legend in each, or one
    below them all."""
    if not curves:
        return False
    columns, deep = min(len(curves), ABREAST), -(-len(curves) // ABREAST)
    figure = Figure(figsize=(WIDTH * columns, HEIGHT * deep), layout="constrained")
    places = list(figure.subplots(deep, columns, squeeze=False).flat)
    for (name, panel), axes in zip(curves.items(), places, strict=False):
        plain(axes)
        axes.set_title(name)
        variants = list(dict.fromkeys(variant for _, variant in panel))
        order = [*names(), *BESIDE]
        for (paradigm, variant), points in sorted(panel.items(), key=lambda item: order.index(item[0][0])):
            style = BESIDE.get(paradigm) or named(paradigm).style
            fill = FILLS[variants.index(variant) % len(FILLS)]
            axes.plot(
                *zip(*sorted(points), strict=True), color=style.colour, linestyle=style.line, marker=style.marker,
                markersize=6, fillstyle=fill, label=f"{paradigm} {variant}".strip(),
            )  # fmt: skip
        finish(axes)
        if not legend_below:
            axes.legend(fontsize="small", frameon=False)
    for axes in places[len(curves) :]:
        axes.set_axis_off()
    if legend_below:
        shown = {str(line.get_label()): line for axes in places for line in axes.get_lines()}
        figure.legend(
            shown.values(), shown.keys(), loc="outside lower center", ncols=2 * columns, fontsize="small", frameon=False
        )
    if title:
        figure.suptitle(title)
    save(figure, path.parent, path.name)
    return True


def _places(ks: Iterable[int | str]) -> dict[int | str, float]:
    """Where each k stands on a logarithmic axis; `all` to the right of the largest number."""
    numbers = sorted({k for k in ks if isinstance(k, int)})
    return {k: float(k) for k in numbers} | {"all": 2.0 * max(numbers, default=50)}


def _k_axis(axes: Axes, places: dict[int | str, float]) -> None:
    axes.set_xscale("log")
    axes.set_xticks(list(places.values()), [str(k) for k in places])
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set(xlabel="k, targets a prompt")
