"""The whole pipeline on one page: the table from which the command line, Dagster's assets and ``dvc.yaml`` are built.

Each stage is a plain function ``(config, paths) -> report``, or ``(config, paths, paradigm) -> report`` where it exists
once for each paradigm.
"""

from __future__ import annotations

import os
import pkgutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from dti_pipeline import locks, tracking
from dti_pipeline.backtest.report import BacktestReport
from dti_pipeline.config import Config
from dti_pipeline.evaluation.report import Comparison, Evaluation
from dti_pipeline.events.report import IngestReport, SynthReport
from dti_pipeline.packing.report import PackReport, TokenizeReport
from dti_pipeline.paradigms import names
from dti_pipeline.paths import Paths
from dti_pipeline.training.progress import Listener
from dti_pipeline.training.report import TrainReport
from dti_pipeline.training.timeline import Timeline
from dti_pipeline.validation.report import ValidateReport

R = TypeVar("R")


@dataclass(frozen=True)
class Stage(Generic[R]):
    """One step from the raw log to the comparison.

    ``deps`` and ``outs`` are paths below the project's home; ``{paradigm}`` stands for the paradigm and, in DVC's
    notation, ``${section.key}`` for a parameter. A change of a key that is not in ``params`` leaves the output valid.
    """

    name: str  # the verb: command, DVC stage
    asset: str  # the noun: Dagster asset
    function: str  # "package.module:function", imported only when the stage runs
    report: type[R]  # what the function returns
    summary: str
    outs: tuple[str, ...]
    deps: tuple[str, ...] = ()
    params: tuple[str, ...] = ()  # the sections or keys of params.yaml that it reads
    per_paradigm: bool = False
    listed: str = "paradigms"  # the key of params.yaml that lists the paradigms it has in DVC
    # It takes hours: listeners hear how far it has come, and a timeline keeps where its start went.
    told: bool = False
    needed: Callable[[Config], bool] = lambda config: True  # False: its output is there without it
    gives: str | None = None  # the parameter that says where its output is read

    def run(self, config: Config, paths: Paths, paradigm: str | None = None, **options: Any) -> R:
        """Import the stage's function and call it."""
        function: Callable[..., R] = pkgutil.resolve_name(self.function)
        arguments = (config, paths, paradigm) if self.per_paradigm else (config, paths)
        return function(*arguments, **options)

    def output(self, paths: Paths, paradigm: str | None = None) -> Path:
        """The folder that it publishes."""
        return paths.resolve(self.outs[0].format(paradigm=paradigm))


SYNTH = Stage(
    name="synth", asset="log", function="dti_pipeline.events.synthetic:synth", report=SynthReport,
    summary="The raw log. For `events.source: synthetic` it is made here; any other log is read where it lies.",
    outs=("data/raw/synthetic",), params=("synth",),
    needed=lambda config: config.events.source == "synthetic", gives="${events.path}",
)  # fmt: skip
INGEST = Stage(
    name="ingest", asset="events", function="dti_pipeline.events.ingest:ingest", report=IngestReport,
    summary="Raw log to canonical interactions, ordered by user and time; bad rows quarantined with their reason.",
    deps=("${events.path}",), outs=("data/events", "data/staged"),
    params=("events", "split", "tokens.template", "tokens.user_template"),
)  # fmt: skip
VALIDATE = Stage(
    name="validate", asset="checks", function="dti_pipeline.validation.validate:validate", report=ValidateReport,
    summary="Great Expectations suites over the raw and the canonical rows; a failure stops what comes after.",
    deps=("data/events", "data/staged"), outs=("data/checks",),
    params=("events", "split", "validation", "packing.context", "tokens.template", "tokens.user_template"),
)  # fmt: skip
TOKENIZE = Stage(
    name="tokenize", asset="tokens", function="dti_pipeline.packing.tokenize:tokenize", report=TokenizeReport,
    summary="Every item text to tokens, once; interactions as memory-mapped columns beside them.",
    deps=("data/events", "data/checks"), outs=("data/tokens",), params=("tokens", "split", "validation.required"),
)  # fmt: skip
PACK = Stage(
    name="pack", asset="shards", function="dti_pipeline.packing.pack:pack", report=PackReport, per_paradigm=True,
    summary="Histories to prompts of n context interactions and k targets, prompts to rows of constant length.",
    deps=("data/tokens",), outs=("data/shards/{paradigm}",), params=("packing", "split.min_history"),
)  # fmt: skip
TRAIN = Stage(
    name="train", asset="model", function="dti_pipeline.training.train:train", report=TrainReport, per_paradigm=True,
    summary="The language model learns P(click) at the [SUM] tokens; the same loop for every paradigm.", told=True,
    deps=("data/tokens", "data/shards/{paradigm}"), outs=("models/{paradigm}",), params=("model", "training"),
)  # fmt: skip
EVALUATE = Stage(
    name="evaluate", asset="evaluation", function="dti_pipeline.evaluation.evaluate:evaluate", report=Evaluation,
    summary="Scores of the held-out targets, in sliding-window and in streaming prompts, and what they are worth.",
    deps=("data/events", "data/tokens", "data/shards/{paradigm}", "models/{paradigm}"),
    outs=("reports/evaluation/{paradigm}",), params=("evaluation",), per_paradigm=True,
)  # fmt: skip
COMPARE = Stage(
    name="compare", asset="comparison", function="dti_pipeline.evaluation.compare:compare", report=Comparison,
    summary="Paradigms side by side: AUC, training time, paired differences with intervals, cost-free floors.",
    deps=("data/events", "reports/evaluation"), params=("paradigms", "evaluation", "comparison"),
    outs=("reports/comparison", "reports/comparison.json", "reports/comparison.md", "reports/comparison.html"),
)  # fmt: skip

STAGES: tuple[Stage[Any], ...] = (SYNTH, INGEST, VALIDATE, TOKENIZE, PACK, TRAIN, EVALUATE, COMPARE)
#: Beside the way from log to comparison: not a part of `dti run`.
BACKTEST = Stage(
    name="backtest", asset="backtest", function="dti_pipeline.backtest.run:backtest", report=BacktestReport,
    summary="A model for every day of the log, from the weights of the day before, judged on the day after.",
    deps=("data/events", "data/tokens"), outs=("reports/backtest/{paradigm}",), per_paradigm=True,
    listed="backtest.paradigms", params=("backtest", "packing", "split.min_history", "model", "training"),
)  # fmt: skip
BY_NAME = {stage.name: stage for stage in STAGES}


def plan(config: Config) -> Iterator[tuple[Stage[Any], str | None]]:
    """The steps of ``dti run``, in order: a stage with its paradigm, or with None where it exists once."""
    for stage in STAGES:
        if stage.needed(config):
            for paradigm in config.paradigms if stage.per_paradigm else (None,):
                yield stage, paradigm


def upstream(stage: Stage[Any]) -> list[Stage[Any]]:
    """The stages that make what this one reads, in the table's order."""

    def makes(other: Stage[Any], dep: str) -> bool:
        return dep == other.gives or any(f"{out}/".startswith(f"{dep}/") for out in other.outs)

    return [other for other in STAGES if any(makes(other, dep) for dep in stage.deps)]


def held(steps: Iterable[tuple[Stage[Any], str | None]], config: Config, paths: Paths) -> AbstractContextManager[None]:
    """Hold what stages make, and what they read of others, until the block ends: another process that would change or
    read it meanwhile waits. A stage's output folder stands for all that it writes.
    """
    writes, reads = set(), set()
    for stage, paradigm in steps:
        writes.add(stage.output(paths, paradigm))
        for other in upstream(stage):
            of = (paradigm,) if paradigm else names() if other.per_paradigm else (None,)
            if other.needed(config):
                reads |= {other.output(paths, one if other.per_paradigm else None) for one in of}
    return locks.hold(writes, reads)


def execute(
    stage: Stage[R],
    config: Config,
    paths: Paths,
    paradigm: str | None = None,
    listeners: Iterable[Listener] = (),
    tags: Mapping[str, str] | None = None,
    **options: Any,
) -> R:
    """Run one stage and record it: what command line, orchestrators and studies call. It waits for other processes that
    use what it makes or reads (:func:`held`).

    ``listeners`` hear the events of a stage that is ``told``; ``tags``, such as an orchestrator's run id, go onto the
    tracked run; ``options`` are the function's own.
    """
    timeline = Timeline.begin()
    timeline.mark("process")
    first = os.environ.get("RANK", "0") == "0"  # of the processes of one training
    with held([(stage, paradigm)], config, paths) if first else nullcontext():
        timeline.mark("waiting")
        with ExitStack() as recorded:
            if stage.told:
                if first:
                    listeners = (recorded.enter_context(tracking.listener(config, paths, tags or {})), *listeners)
                    timeline.mark("tracking")
                options |= {"listeners": listeners, "timeline": timeline}
            report = stage.run(config, paths, paradigm, **options)
        tracking.record(config, paths, report)
    return report
