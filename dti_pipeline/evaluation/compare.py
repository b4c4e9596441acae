"""Compare the paradigms: one set of targets, one set of resamples, the cost-free floors in every table.

It compares the scores that :mod:`dti_pipeline.evaluation.evaluate` published; no model is run here.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from dti_pipeline import artifacts, lineage
from dti_pipeline.artifacts import Manifest
from dti_pipeline.config import Config
from dti_pipeline.errors import InputError
from dti_pipeline.evaluation import curves, gate, interactions, metrics, page, plots, tables, truth, verdict
from dti_pipeline.evaluation.evaluate import FORMS
from dti_pipeline.evaluation.floors import FLOORS, floors
from dti_pipeline.evaluation.interactions import Array
from dti_pipeline.evaluation.report import Compared, Comparison, Evaluation, Protocol
from dti_pipeline.evaluation.scoreboard import Scoreboard
from dti_pipeline.paradigms import BASELINE, names
from dti_pipeline.paths import Paths
from dti_pipeline.plain import to_plain
from dti_pipeline.training.report import TrainingSummary


@dataclass(frozen=True)
class Scored:
    """One paradigm's published scores, in the order of the events' rows."""

    paradigm: str
    manifest: Manifest[Evaluation]
    rows: Array  # (N,)
    scores: dict[str, Array]  # form -> (N,)

    @property
    def report(self) -> Evaluation:
        return self.manifest.report


def compare(config: Config, paths: Paths) -> Comparison:
    """Write reports/comparison.{json,md,html} and the folder of plots beside them; return the comparison.

    Raises InputError where no paradigm was evaluated on the present events, or where two have different
    targets. An evaluation of other events is left out with a note.
    """
    evaluations, notes = _evaluations(paths)
    comparison = _comparison(config, paths, evaluations)
    comparison = replace(comparison, gate=gate.decide(comparison))
    comparison = replace(comparison, champion=gate.champion(comparison))
    comparison = replace(
        comparison,
        notes=(*notes, *verdict.notes(comparison), gate.sentence(comparison)),
        verdict={e.paradigm: verdict.sentence(e.paradigm, comparison) for e in evaluations},
    )

    drawn = {
        e.paradigm: curves.read(e.manifest.path, e.report.training.train_seconds, e.report.auc) for e in evaluations
    }
    inputs = {"events": paths.events} | {e.paradigm: e.manifest.path for e in evaluations}
    with artifacts.publish(paths.comparison, "compare", config.sections("evaluation", "comparison"), inputs) as draft:
        curves.write_joined(draft.path, drawn)
        speedup = comparison.speedup
        curves.write_csv(draft.path / "speedup.csv", ("paradigm", "speedup"), list(speedup.items()))
        pictures = plots.draw_all(drawn, draft.path, {BASELINE.name: 1.0, **speedup} if speedup else None)
        for e in evaluations:  # one small file each: `dvc metrics show` prints a line for a file
            artifacts.write_json(draft.path / "metrics" / f"{e.paradigm}.json", _headline(comparison, e.paradigm))
        draft.report = {"paradigms": [e.paradigm for e in evaluations], "notes": comparison.notes}
    artifacts.write_json(paths.comparison_file("json"), to_plain(comparison))
    artifacts.write_text(paths.comparison_file("md"), tables.render_markdown(comparison, pictures))
    artifacts.write_text(
        paths.comparison_file("html"),
        page.render(comparison, {name: (paths.comparison / f"{name}.svg").read_bytes() for name in pictures}),
    )
    return comparison


def _headline(comparison: Comparison, paradigm: str) -> dict[str, float | None]:
    names = ("auc", "auc_streaming", "log_loss", "train_seconds", "targets_per_second")
    figures = {name: getattr(comparison.paradigms[paradigm], name) for name in names}
    if paradigm in comparison.speedup:
        figures["speedup"] = comparison.speedup[paradigm]
    if delta := comparison.auc_delta.get(paradigm):
        figures["auc_delta"] = delta.mean
    return figures


def _evaluations(paths: Paths) -> tuple[list[Scored], list[str]]:
    digest = artifacts.digest(paths.events)
    found, notes, elsewhere = [], [], []
    for paradigm in names():
        folder = paths.evaluation(paradigm)
        if not (folder / artifacts.MANIFEST).is_file():
            continue
        manifest = artifacts.read(folder, f"evaluate --paradigm {paradigm}", Evaluation)
        if manifest.inputs["events"] != digest:
            elsewhere.append(paradigm)
            notes.append(f"{paradigm} is left out: it was evaluated on other events; evaluate it again to include it.")
            continue
        table = pq.read_table(folder / "predictions.parquet", columns=["row", *FORMS.values()])
        scores = {form: table[column].to_numpy() for form, column in FORMS.items()}
        found.append(Scored(paradigm, manifest, table["row"].to_numpy(), scores))
    if not found:
        why = f" ({', '.join(elsewhere)}: evaluated on other events)" if elsewhere else ""
        raise InputError(f"{paths.reports / 'evaluation'} has no evaluation to compare{why}: run `dti evaluate` first")
    for other in found[1:]:
        if not np.array_equal(found[0].rows, other.rows):
            raise InputError(
                f"{found[0].paradigm} and {other.paradigm} were evaluated on different targets"
                f" ({len(found[0].rows)} of {found[0].report.split}, {len(other.rows)} of {other.report.split}):"
                " run `dti evaluate` for both with the same evaluation and split parameters"
            )
    return found, notes


def _comparison(config: Config, paths: Paths, evaluations: list[Scored]) -> Comparison:
    """Every figure of comparison.json, before the words."""
    settings, first = config.evaluation, evaluations[0]
    events = artifacts.read(paths.events, "ingest")
    log = interactions.read(paths, events.config["split"]["min_history"])
    context = first.report.prompts.context
    board = Scoreboard(log.label[first.rows], log.user[first.rows], settings)
    for e in evaluations:
        board.add(e.paradigm, e.scores["sliding_window"])
        board.add(f"{e.paradigm} streaming", e.scores["streaming"])
    for name, probability in floors(log, first.rows, context).items():
        board.add(name, probability)
    source = events.config["events"]["source"]
    best = truth.best_possible(paths, log, first.rows) if source == "synthetic" else None
    if best is not None:
        board.add("best_possible", best)

    base, compared = BASELINE.name, [e.paradigm for e in evaluations]
    training = {e.paradigm: e.report.training for e in evaluations}
    others = [name for name in compared if name != base] if base in compared else []
    return Comparison(
        dataset=Path(events.config["events"]["path"]).name,
        commit=str(lineage.commit() or "") or None,
        hardware="; ".join(sorted({t.hardware for t in training.values()})),
        protocol=Protocol(
            source=source,
            rule=events.config["split"]["rule"],
            split=first.report.split,
            targets=len(first.rows),
            users=board.users.count,
            users_in_training=first.report.users_in_training,
            click_rate=first.report.click_rate,
            context=context,
            threshold=metrics.THRESHOLD,
            bootstrap_samples=settings.bootstrap_samples,
            confidence=settings.confidence,
            seed=settings.seed,
            margin=config.comparison.margin,
            events=first.manifest.inputs["events"],
        ),
        paradigms={
            e.paradigm: Compared(
                **vars(board.figures(e.paradigm)),
                **vars(e.report.training),
                auc_streaming=board.auc(f"{e.paradigm} streaming"),
                prompts=e.report.prompts,
                slices=e.report.slices,
            )
            for e in evaluations
        },
        baselines={name: board.auc(name) for name in FLOORS},
        floors={name: board.figures(name) for name in FLOORS},
        best_possible_auc=board.auc("best_possible") if best is not None else None,
        best_possible=board.figures("best_possible") if best is not None else None,
        speedup={n: _seconds_per_target(training[base]) / _seconds_per_target(training[n]) for n in others},
        auc_delta={name: board.delta(name, base) for name in others},
        floor_delta={name: {floor: board.delta(name, floor) for floor in FLOORS} for name in compared},
        streaming_delta={name: board.delta(f"{name} streaming", name) for name in compared},
    )


def _seconds_per_target(training: TrainingSummary) -> float:
    return training.train_seconds / training.targets
