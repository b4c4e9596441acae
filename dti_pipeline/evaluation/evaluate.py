"""Evaluate one paradigm: score the held-out targets, in single and in streaming prompts, and measure the scores."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import astuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dti_pipeline import artifacts
from dti_pipeline.artifacts import Inputs
from dti_pipeline.config import Config
from dti_pipeline.errors import InputError
from dti_pipeline.evaluation import curves, interactions, metrics, plots
from dti_pipeline.evaluation.bootstrap import Scoreboard
from dti_pipeline.evaluation.interactions import Array, Interactions
from dti_pipeline.evaluation.report import Evaluation, Forms, PromptShape, Quality, Slices
from dti_pipeline.packing.report import PackReport
from dti_pipeline.packing.store import require_events
from dti_pipeline.paths import Paths
from dti_pipeline.plain import part_of, to_plain
from dti_pipeline.training.report import TrainingSummary, TrainReport

#: The two forms a target is scored in, by its column of scores. The first is what counts: a server sees one target.
FORMS = {"sliding_window": "probability", "streaming": "probability_streaming"}


def evaluate(config: Config, paths: Paths, paradigm: str) -> Evaluation:
    """Score the paradigm's model and publish its evaluation. InputError where a stage before has not run."""
    from dti_pipeline.evaluation.predict import predict  # imports torch, which measuring scores does not need

    inputs = _inputs(paths, paradigm)
    require_events(paths)
    predictions, seconds = predict(config, paths, paradigm, config.evaluation.split)
    return measure(config, paths, paradigm, predictions, seconds, inputs)


def measure(
    config: Config,
    paths: Paths,
    paradigm: str,
    predictions: pa.Table,
    seconds: Mapping[str, float],
    inputs: Inputs | None = None,
) -> Evaluation:
    """Measure scores and publish reports/evaluation/<paradigm>. InputError where they are of other events or no
    probabilities.

    ``predictions`` has a line for each target, ordered by row: ``row`` (of the log), ``label``, ``probability`` and
    ``probability_streaming``; ``seconds`` are facts on how long scoring took.
    ``inputs``: what they were made of, None: what is there now.
    """
    inputs = inputs or _inputs(paths, paradigm)
    model = artifacts.read(paths.model(paradigm), "train", TrainReport)
    shards = artifacts.read(paths.shards(paradigm), "pack", PackReport)
    log = interactions.read(paths, artifacts.read(paths.events, "ingest").config["split"]["min_history"])
    rows = _checked_rows(paradigm, predictions, log)
    label, user, settings = log.label[rows], log.user[rows], config.evaluation
    board = Scoreboard(label, user, settings)
    scores = {column: predictions[column] for column in FORMS.values()}
    for form, column in FORMS.items():
        board.add(form, scores[column].to_numpy())
    forms = Forms(**{form: board.figures(form) for form in FORMS})
    served = scores[FORMS["sliding_window"]].to_numpy()
    popularity = log.popularity()[rows]
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
            history_length=metrics.slices(label, served, log.request[rows], metrics.HISTORY_BUCKETS),
            item_popularity=metrics.slices(label, served, popularity, metrics.POPULARITY_BUCKETS),
            cold_items=metrics.slices(label, served, popularity, metrics.COLD_BUCKETS),
        ),
        scoring=dict(seconds),
        training=TrainingSummary(**part_of(model.report, TrainingSummary)),
        prompts=PromptShape(shards.report.context, shards.report.targets_per_prompt),
    )
    points = {
        "roc": [*metrics.roc(label, served)],
        "calibration": [astuple(one) for one in metrics.calibration(label, served, settings.calibration_bins)],
        "learning_curve": curves.read_csv(model.path / "history.csv", curves.COLUMNS["learning_curve"]),
    }
    drawn = curves.Curves(points, model.report.train_seconds, report.auc)
    with artifacts.publish(paths.evaluation(paradigm), "evaluate", config.sections("evaluation"), inputs) as draft:
        artifacts.write_json(draft.path / "metrics.json", to_plain(report))
        described = {name: log.table[name].take(rows) for name in ("user_id", "item_id", "position")}
        columns = {"row": predictions["row"], **described, "label": predictions["label"], **scores}
        pq.write_table(pa.table(columns), draft.path / "predictions.parquet")
        drawn.write(draft.path)
        plots.draw_all({paradigm: drawn}, draft.path)
        draft.report = report
    return report


def _inputs(paths: Paths, paradigm: str) -> Inputs:
    return Inputs.published(
        events=(paths.events, "ingest"),
        tokens=(paths.tokens, "tokenize"),
        shards=(paths.shards(paradigm), "pack"),
        model=(paths.model(paradigm), "train"),
    )


def _checked_rows(paradigm: str, predictions: pa.Table, log: Interactions) -> Array:
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
