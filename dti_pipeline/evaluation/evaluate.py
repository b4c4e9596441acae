"""Evaluate one paradigm: score the held-out targets, in single and in streaming prompts, and measure the scores.

Files of an evaluation folder: ``metrics.json`` (every figure), ``predictions.parquet`` (every score, so that anybody
can measure something else), ``roc.csv``, ``calibration.csv`` and ``learning_curve.csv`` with their plots.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dti_pipeline import artifacts
from dti_pipeline.config import Config
from dti_pipeline.errors import InputError
from dti_pipeline.evaluation import interactions, metrics, plots
from dti_pipeline.evaluation.curves import Curves, LearningPoint
from dti_pipeline.evaluation.interactions import Interactions
from dti_pipeline.evaluation.report import Evaluation, Forms, PromptShape, Quality, Slices
from dti_pipeline.evaluation.scoreboard import Scoreboard
from dti_pipeline.packing.report import PackReport
from dti_pipeline.paths import Paths
from dti_pipeline.plain import part_of, to_plain
from dti_pipeline.training.report import TrainingSummary, TrainReport

#: The two forms a target is scored in, by its column of scores. The first is what counts: a server sees one target.
FORMS = {"sliding_window": "probability", "streaming": "probability_streaming"}


def evaluate(config: Config, paths: Paths, paradigm: str) -> Evaluation:
    """Score the paradigm's model and publish its evaluation. InputError where a stage before has not run."""
    from dti_pipeline.evaluation.predict import (
        predict,  # torch: only where a model is run, not where scores are measured
    )

    predictions, seconds = predict(config, paths, paradigm, config.evaluation.split)
    return measure(config, paths, paradigm, predictions, seconds)


def measure(
    config: Config, paths: Paths, paradigm: str, predictions: pa.Table, seconds: Mapping[str, float]
) -> Evaluation:
    """Measure scores and publish reports/evaluation/<paradigm>.

    ``predictions`` has a line for each target, ordered by row: ``row`` (index into the interactions), ``label``,
    ``probability`` and ``probability_streaming``; ``seconds`` are facts on how long scoring took. Raises InputError
    where the predictions do not belong to the events (another label at a row), or a score is no probability.
    """
    model = artifacts.read(paths.model(paradigm), "train", TrainReport)
    shards = artifacts.read(paths.shards(paradigm), "pack", PackReport)
    min_history = artifacts.read(paths.events, "ingest").config["split"]["min_history"]
    log = interactions.read(paths, min_history)
    rows = _checked_rows(paradigm, predictions, log)
    label, user = log.label[rows], log.user[rows]
    scores = {form: predictions[column].to_numpy() for form, column in FORMS.items()}
    settings = config.evaluation
    board = Scoreboard(label, user, settings)
    for form, score in scores.items():
        board.add(form, score)
    forms = Forms(**{form: board.figures(form) for form in FORMS})
    served = scores["sliding_window"]
    report = Evaluation(
        **part_of(forms.sliding_window, Quality),
        paradigm=paradigm,
        split=settings.split,
        targets=len(rows),
        users=board.users.count,
        users_in_training=len(np.intersect1d(user, log.user[log.train])),
        click_rate=float(label.mean()),
        auc_streaming=forms.streaming.auc,
        forms=forms,
        slices=Slices(
            history_length=metrics.slices(label, served, log.position[rows], metrics.HISTORY_BUCKETS),
            item_popularity=metrics.slices(label, served, log.popularity()[rows], metrics.POPULARITY_BUCKETS),
        ),
        scoring=dict(seconds),
        training=TrainingSummary(**part_of(model.report, TrainingSummary)),
        prompts=PromptShape(shards.report.context, shards.report.targets_per_prompt),
    )
    curves = Curves(
        roc=metrics.roc(label, served),
        calibration=metrics.calibration(label, served, settings.calibration_bins),
        learning=learning_curve(model.path),
        train_seconds=model.report.train_seconds,
        auc=report.auc,
    )
    inputs = {"events": paths.events, "tokens": paths.tokens, "shards": shards.path, "model": model.path}
    with artifacts.publish(paths.evaluation(paradigm), "evaluate", config.sections("evaluation"), inputs) as draft:
        artifacts.write_json(draft.path / "metrics.json", to_plain(report))
        pq.write_table(_described(predictions, rows, log), draft.path / "predictions.parquet")
        curves.write(draft.path)
        plots.draw_all({paradigm: curves}, draft.path)
        draft.report = report
    return report


def _checked_rows(paradigm: str, predictions: pa.Table, log: Interactions) -> interactions.Array:
    rows = predictions["row"].to_numpy()
    if len(rows) == 0:
        raise InputError(f"{paradigm}: the evaluated split has no target; use a longer log or another split")
    if (np.diff(rows) <= 0).any() or rows[0] < 0 or rows[-1] >= len(log.label):
        raise InputError(f"{paradigm}: predictions must have one line for each target, ordered by row of the events")
    if (predictions["label"].to_numpy() != log.label[rows]).any():
        raise InputError(f"{paradigm}: predictions were made from other events: run `dti tokenize` and on again")
    for column in FORMS.values():
        score = predictions[column].to_numpy()
        wrong = np.flatnonzero(~((score >= 0) & (score <= 1)))
        if len(wrong):
            raise InputError(
                f"{paradigm}: {column} of {len(wrong)} targets is no probability (first: row {rows[wrong[0]]},"
                f" {score[wrong[0]]}): the training diverged"
            )
    return rows


def _described(predictions: pa.Table, rows: interactions.Array, log: Interactions) -> pa.Table:
    own = log.table.select(["user_id", "item_id", "position"]).take(rows)
    columns = {"row": predictions["row"], **{name: own[name] for name in own.column_names}}
    return pa.table(columns | {name: predictions[name] for name in ("label", *FORMS.values())})


def learning_curve(model: Path) -> list[LearningPoint]:
    """The points of a model folder's history.csv at which the validation targets were scored, in order."""
    with (model / "history.csv").open(newline="", encoding="utf-8") as handle:
        return [
            LearningPoint(float(line["train_seconds"]), int(line["targets_seen"]), float(line["val_auc"]))
            for line in csv.DictReader(handle)
            if line["val_auc"]
        ]
