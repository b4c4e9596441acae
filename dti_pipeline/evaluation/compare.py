"""Compare the paradigms' published scores: one set of targets, one set of resamples, the cost-free floors beside."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dti_pipeline import artifacts, lineage
from dti_pipeline.artifacts import Inputs, Manifest
from dti_pipeline.config import Config
from dti_pipeline.errors import InputError
from dti_pipeline.evaluation import (
    advice,
    curves,
    gate,
    interactions,
    metrics,
    page,
    plots,
    same_time,
    speed,
    tables,
    verdict,
)
from dti_pipeline.evaluation.bootstrap import Scoreboard
from dti_pipeline.evaluation.evaluate import FORMS
from dti_pipeline.evaluation.floors import best_possible, floors
from dti_pipeline.evaluation.report import Compared, Comparison, Evaluation, Protocol
from dti_pipeline.paradigms import BASELINE, names
from dti_pipeline.paths import Paths
from dti_pipeline.plain import to_plain

#: Figures of a paradigm in its own metrics file, of which `dvc metrics show` prints a line each.
HEADLINE = ("auc", "auc_streaming", "log_loss", "train_seconds", "processor_seconds", "targets_per_second")


def compare(config: Config, paths: Paths) -> Comparison:
    """Publish reports/comparison, plots and the files comparison.{json,md,html}, which links beside it lead to, so that
    all change in one step; return the comparison.

    Raises InputError where no paradigm was evaluated on the present events, or where two have different targets.
    """
    events = Inputs.published(events=(paths.events, "ingest"))
    evaluations, notes = _evaluations(paths)
    read = Inputs.of({name: e.path for name, e in evaluations.items()})
    drawn = {
        name: curves.read(e.path, e.report.training.train_seconds, e.report.auc) for name, e in evaluations.items()
    }
    comparison = _comparison(config, paths, evaluations)
    comparison = replace(comparison, same_time=same_time.of(comparison, drawn))
    comparison = replace(comparison, gate=gate.decide(comparison))
    comparison = replace(comparison, champion=gate.champion(comparison))
    advised = advice.sentence(comparison, drawn)
    comparison = replace(
        comparison,
        notes=(*notes, *verdict.notes(comparison), gate.sentence(comparison), *([advised] if advised else ())),
        verdict={name: verdict.sentence(name, comparison) for name in evaluations},
    )
    recorded, links = config.sections("evaluation", "comparison"), paths.comparison_links()
    with artifacts.publish(paths.comparison, "compare", recorded, events | read, links) as draft:
        curves.write_joined(draft.path, drawn)
        speedup = comparison.speedup
        curves.write_csv(draft.path / "speedup.csv", ("paradigm", "speedup"), list(speedup.items()))
        pictures = plots.draw_all(drawn, draft.path, {BASELINE.name: 1.0, **speedup} if speedup else None)
        for name, row in comparison.each():
            figures = {key: getattr(row, key) for key in HEADLINE}
            if name in comparison.auc_delta:
                if name in comparison.speed:
                    figures |= {"speedup": speedup[name], **speed.figures(comparison.speed[name])}
                figures |= {"auc_delta": comparison.auc_delta[name].mean}
            artifacts.write_json(draft.path / "metrics" / f"{name}.json", figures)
        json_file, markdown, html = (draft.path / link.name for link in links)
        artifacts.write_json(json_file, to_plain(comparison))
        artifacts.write_text(markdown, tables.render_markdown(comparison, pictures))
        svgs = {name: (draft.path / f"{name}.svg").read_bytes() for name in pictures}
        artifacts.write_text(html, page.render(comparison, svgs))
        draft.report = {"paradigms": list(evaluations), "notes": comparison.notes}
    return comparison


def _evaluations(paths: Paths) -> tuple[dict[str, Manifest[Evaluation]], list[str]]:
    """Evaluations of the present events by paradigm, and a note on each of other events."""
    found = {
        name: artifacts.read(paths.evaluation(name), f"evaluate --paradigm {name}", Evaluation)
        for name in names()
        if (paths.evaluation(name) / artifacts.MANIFEST).is_file()
    }
    digest = artifacts.digest(paths.events)
    elsewhere = [name for name, e in found.items() if e.inputs["events"] != digest]
    if len(elsewhere) == len(found):
        why = f" ({', '.join(elsewhere)}: evaluated on other events)" if elsewhere else ""
        raise InputError(f"{paths.reports / 'evaluation'} has no evaluation to compare{why}: run `dti evaluate` first")
    notes = [
        f"{name} is left out: it was evaluated on other events; evaluate it again to include it." for name in elsewhere
    ]
    return {name: e for name, e in found.items() if name not in elsewhere}, notes


def _predictions(evaluations: dict[str, Manifest[Evaluation]]) -> dict[str, pa.Table]:
    """Row and scores of the targets, by paradigm. Raises InputError where two have different targets."""
    columns = ["row", *FORMS.values()]
    found = {name: pq.read_table(e.path / "predictions.parquet", columns=columns) for name, e in evaluations.items()}
    first, *others = found
    for other in others:
        if not found[first]["row"].equals(found[other]["row"]):
            sizes = (f"{len(found[name])} of {evaluations[name].report.split}" for name in (first, other))
            raise InputError(
                f"{first} and {other} were evaluated on different targets ({', '.join(sizes)}):"
                " run `dti evaluate` for both with the same evaluation and split parameters"
            )
    return found


def _comparison(config: Config, paths: Paths, evaluations: dict[str, Manifest[Evaluation]]) -> Comparison:
    """Every figure of comparison.json, before the words."""
    settings, first = config.evaluation, next(iter(evaluations.values()))
    predictions = _predictions(evaluations)
    events = artifacts.read(paths.events, "ingest")
    log = interactions.read(paths, events.config["split"]["min_history"])
    rows: np.ndarray = next(iter(predictions.values()))["row"].to_numpy()
    context = first.report.prompts.context
    board = Scoreboard(log.label[rows], log.user[rows], settings)
    for name, scores in predictions.items():
        board.add(name, scores[FORMS["sliding_window"]].to_numpy())
        board.add(f"{name} streaming", scores[FORMS["streaming"]].to_numpy())
    beside = floors(log, rows, context)
    for name, probability in beside.items():
        board.add(name, probability)
    source = events.config["events"]["source"]
    best = best_possible(paths, log, rows) if source == "synthetic" else None
    if best is not None:
        board.add("best_possible", best)

    base = BASELINE.name
    training = {name: e.report.training for name, e in evaluations.items()}
    others = [name for name in training if name != base] if base in training else []
    timed = [name for name in others if training[base].targets and training[name].targets]  # else as it was published
    speeds = {name: speed.compared(training[base], training[name]) for name in timed}
    return Comparison(
        dataset=Path(events.config["events"]["path"]).name,
        delay=events.config["split"]["feedback_delay"],
        commit=lineage.commit_name(),
        hardware="; ".join(sorted({t.hardware for t in training.values()})),
        protocol=Protocol(
            source=source,
            rule=events.config["split"]["rule"],
            split=first.report.split,
            targets=len(rows),
            users=board.users.count,
            users_in_training=first.report.users_in_training,
            click_rate=first.report.click_rate,
            context=context,
            threshold=metrics.THRESHOLD,
            bootstrap_samples=settings.bootstrap_samples,
            confidence=settings.confidence,
            seed=settings.seed,
            margin=config.comparison.margin,
            events=first.inputs["events"],
        ),
        paradigms={
            name: Compared(
                **vars(board.figures(name)),
                **vars(training[name]),
                auc_streaming=board.auc(f"{name} streaming"),
                prompts=e.report.prompts,
                slices=e.report.slices,
            )
            for name, e in evaluations.items()
        },
        baselines={name: board.auc(name) for name in beside},
        floors={name: board.figures(name) for name in beside},
        best_possible_auc=board.auc("best_possible") if best is not None else None,
        best_possible=board.figures("best_possible") if best is not None else None,
        speedup={name: speed.claimed(one) for name, one in speeds.items()},
        speed=speeds,
        same_time={},
        auc_delta={name: board.delta(name, base) for name in others},
        floor_delta={name: {floor: board.delta(name, floor) for floor in beside} for name in training},
        streaming_delta={name: board.delta(f"{name} streaming", name) for name in training},
    )
