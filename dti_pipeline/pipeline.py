"""The whole pipeline on one page.

Each stage is a plain function ``(config, paths) -> report`` (``(config, paths, paradigm) -> report`` where it exists
once for each paradigm). Dagster's assets, ``dvc.yaml`` and the command line are built from this table; a test holds
them together.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

from dti_pipeline import artifacts
from dti_pipeline.config import Config
from dti_pipeline.paths import Paths
from dti_pipeline.training.progress import Listener


@dataclass(frozen=True)
class Stage:
    """One step of the data's story.

    ``deps`` and ``outs`` are paths relative to the project's home; ``{paradigm}`` stands for the paradigm and
    ``${section.key}`` for a parameter, in DVC's own notation. ``params`` are the sections or keys of params.yaml that
    the stage reads: a change in any other key leaves its output valid.
    """

    name: str  # the verb: command, DVC stage
    asset: str  # the noun: Dagster asset
    function: str  # "package.module:function", imported only when the stage runs
    summary: str
    outs: tuple[str, ...]
    deps: tuple[str, ...] = ()
    params: tuple[str, ...] = ()
    per_paradigm: bool = False

    def run(self, config: Config, paths: Paths, paradigm: str | None = None, **options: Any) -> dict[str, Any]:
        """Import the stage's function and call it."""
        module, _, name = self.function.partition(":")
        function: Callable[..., dict[str, Any]] = getattr(importlib.import_module(module), name)
        arguments = (config, paths, paradigm) if self.per_paradigm else (config, paths)
        return function(*arguments, **options)


STAGES = (
    Stage(
        name="synth",
        asset="log",
        function="dti_pipeline.events.synthetic:synth",
        summary="The raw log. For `events.source: synthetic` it is made here; any other log is read where it lies.",
        outs=("data/raw/synthetic",),
        params=("synth",),
    ),
    Stage(
        name="ingest",
        asset="events",
        function="dti_pipeline.events.ingest:ingest",
        summary="Raw log to canonical interactions, ordered by user and time; bad rows quarantined with their reason.",
        deps=("${events.path}",),
        outs=("data/events", "data/staged"),
        params=("events", "split"),
    ),
    Stage(
        name="validate",
        asset="checks",
        function="dti_pipeline.validation.validate:validate",
        summary="Great Expectations suites over the raw and the canonical rows; a failure stops what comes after.",
        deps=("data/events", "data/staged"),
        outs=("data/checks",),
        params=("events", "split", "validation"),
    ),
    Stage(
        name="tokenize",
        asset="tokens",
        function="dti_pipeline.packing.tokenize:tokenize",
        summary="Every item text to tokens, once; interactions as memory-mapped columns beside them.",
        deps=("data/events", "data/checks"),
        outs=("data/tokens",),
        params=("tokens", "validation.required"),
    ),
    Stage(
        name="pack",
        asset="shards",
        function="dti_pipeline.packing.pack:pack",
        summary="Histories to prompts of n context interactions and k targets, prompts to rows of constant length.",
        deps=("data/tokens",),
        outs=("data/shards/{paradigm}",),
        params=("packing", "split.min_history"),
        per_paradigm=True,
    ),
    Stage(
        name="train",
        asset="model",
        function="dti_pipeline.training.train:train",
        summary="The language model learns P(click) at the [SUM] tokens; the same loop for every paradigm.",
        deps=("data/tokens", "data/shards/{paradigm}"),
        outs=("models/{paradigm}",),
        params=("model", "training"),
        per_paradigm=True,
    ),
    Stage(
        name="evaluate",
        asset="evaluation",
        function="dti_pipeline.evaluation.evaluate:evaluate",
        summary="Scores of the held-out targets, in sliding-window and in streaming prompts, and what they are worth.",
        deps=("data/events", "data/tokens", "data/shards/{paradigm}", "models/{paradigm}"),
        outs=("reports/evaluation/{paradigm}",),
        params=("evaluation",),
        per_paradigm=True,
    ),
    Stage(
        name="compare",
        asset="comparison",
        function="dti_pipeline.evaluation.compare:compare",
        summary="Paradigms side by side: AUC, training time, paired differences with intervals, cost-free floors.",
        deps=("data/events", "reports/evaluation"),
        outs=("reports/comparison", "reports/comparison.json", "reports/comparison.md", "reports/comparison.html"),
        params=("paradigms", "evaluation", "comparison"),
    ),
)

BY_NAME = {stage.name: stage for stage in STAGES}


def plan(config: Config) -> Iterator[tuple[Stage, str | None]]:
    """What ``dti run`` does, in order: a stage with its paradigm, or with None where it exists once."""
    for stage in STAGES:
        if stage.name == "synth" and config.events.source != "synthetic":
            continue
        for paradigm in config.paradigms if stage.per_paradigm else (None,):
            yield stage, paradigm


def execute(
    stage: Stage,
    config: Config,
    paths: Paths,
    paradigm: str | None = None,
    listeners: Iterable[Listener] = (),
    tags: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Run one stage with its record kept: what every door calls.

    ``listeners`` hear a training's events; ``tags`` (an orchestrator's run id, say) go onto the tracked run.
    """
    from dti_pipeline import tracking  # here, since a run that tracks nothing need not import it

    if stage.name == "train":
        assert paradigm is not None
        first = os.environ.get("RANK", "0") == "0"  # of the processes of one training
        with (
            artifacts.alone(paths.model(paradigm)) if first else nullcontext(),
            tracking.training_run(config, paths, paradigm, tags or {}) as run,
        ):
            return stage.run(config, paths, paradigm, listeners=(*listeners, run.listen), run_id=run.id)
    report = stage.run(config, paths, paradigm)
    if stage.name == "evaluate":
        assert paradigm is not None
        tracking.record_evaluation(config, paths, paradigm)
    if stage.name == "compare":
        tracking.record_comparison(config, paths)
        if config.tracking.promote and report["champion"] is not None:
            tracking.promote(config, paths, report["champion"])
    return report
