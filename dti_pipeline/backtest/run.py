"""The backtest: each day of the log learns what became known on it, and is judged on the next day."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from numpy.typing import NDArray

from dti_pipeline import lineage
from dti_pipeline.backtest import publish
from dti_pipeline.backtest.begin import begin
from dti_pipeline.backtest.days import Days
from dti_pipeline.backtest.report import BacktestReport, Cost, Day, Score
from dti_pipeline.backtest.state import States, digest
from dti_pipeline.config import Config, TrainingConfig
from dti_pipeline.errors import InputError, Interrupted
from dti_pipeline.evaluation import metrics
from dti_pipeline.evaluation.predict import TOKENS_PER_BATCH, Batches
from dti_pipeline.modeling.network.ctr_model import CTRModel
from dti_pipeline.packing.plans import targets_per_prompt
from dti_pipeline.packing.reader import Rows
from dti_pipeline.packing.some import cut_some
from dti_pipeline.packing.store import TokenStore
from dti_pipeline.paradigms import named
from dti_pipeline.paths import Paths
from dti_pipeline.plain import require
from dti_pipeline.training import checkpoint
from dti_pipeline.training.checkpoint import Progress
from dti_pipeline.training.fit import fit
from dti_pipeline.training.optimizer import optimizer_for
from dti_pipeline.training.setup import accelerator_for, placed_model
from dti_pipeline.training.timeline import Timeline
from dti_pipeline.training.train import interruptible

log = logging.getLogger(__name__)
#: Hears of each finished day, in order, and whether it was trained just now or had been before.
Heard = Callable[[Day, bool], None]


def backtest(
    config: Config, paths: Paths, paradigm: str, heard: Heard = lambda day, now: None, asked: Sequence[str] = ()
) -> BacktestReport:
    """Backtest one paradigm and publish ``reports/backtest/<paradigm>`` with every finished day.

    ``asked`` names the days that are wanted, none: all; what is finished is not trained again. Raises InputError where
    the day before them is not trained.

    SIGINT, SIGTERM or a crash lose the day that it was at: the next call goes on with it, and on the CPU gives the same
    figures, but for seconds. Over a log that has changed it goes on from the first day whose targets did, with all days
    that were finished.
    """
    _check(config)
    with interruptible() as interrupted:
        home = begin(config, paths)
        run = Backtest(
            config, paradigm, home.store, home.days, home.states(paradigm), accelerator_for(config.training),
            interrupted, heard,
        )  # fmt: skip
        finished, note = run.all_days(asked)
        report = publish.publish(config, paths, paradigm, finished, run.hardware, note, home.inputs)
        run.states.remove_others()
    return report


def _check(config: Config) -> None:
    """Raise InputError for what a backtest does not do."""
    for key, value, plain in (
        ("training.average_decay", config.training.average_decay, 0),
        ("training.processes", config.training.processes, 1),
        ("packing.target_share", config.packing.target_share, 1),
        ("packing.max_targets", config.packing.max_targets, None),
    ):
        require(value == plain, key, f"{'null' if plain is None else plain} for `dti backtest`", value)
    rows = config.packing.row_length  # another could be best for a log that has grown
    require(rows != "auto", "packing.row_length", "a number for `dti backtest`", rows)


@dataclass
class Backtest:
    """A backtest in progress."""

    config: Config
    paradigm: str
    store: TokenStore
    days: Days
    states: States
    accelerator: Accelerator
    interrupted: Callable[[], bool]
    heard: Heard

    def __post_init__(self) -> None:
        self.device = self.accelerator.device
        self.batches = Batches(self.config.evaluation.tokens_per_batch or TOKENS_PER_BATCH[self.device.type])

    @property
    def hardware(self) -> str:
        return lineage.hardware([torch.cuda.get_device_name(self.device)] if self.device.type == "cuda" else [])

    def all_days(self, asked: Sequence[str]) -> tuple[list[Day], str | None]:
        """Every finished day's figures, as they were kept where it was finished before; what was done about a log that
        has changed since."""
        end = self._end(asked)
        finished, note = self._kept()
        for one in finished:
            self.heard(one, False)
        first = self.days.first + len(finished)
        if first >= end:
            return finished, note
        self.model, self.optimizer = self._new()
        before = self.states.of_day(first - 1)
        if finished and checkpoint.restore(before, self.model, self.optimizer) is None:
            raise InputError(f"{before} is damaged: remove {self.states.folder}, and the backtest begins anew")
        for day in range(first, end):
            finished.append(self._day(day))
            self.heard(finished[-1], True)
        return finished, note

    def _end(self, asked: Sequence[str]) -> int:
        """The day before which training ends: after the last that is asked for, or was finished before."""
        if not asked:
            return self.days.last
        wanted, reached = sorted(map(self.days.number, asked)), self.states.reached(self.days)
        if wanted[0] > reached:
            day, before, next_one = map(self.days.name, (wanted[0], wanted[0] - 1, reached))
            raise InputError(
                f"{day} starts from the weights of {before}, which is not trained: days are trained in order, and"
                f" {next_one} is the next of {self.paradigm}"
            )
        return max(wanted[-1] + 1, reached)

    def plans(self, day: int) -> tuple[Rows | None, Rows]:
        """What a day learns, None: nothing, and what it is judged on."""
        judged = self._rows(self.days.to_judge(day), "test")
        assert judged is not None
        return self._rows(self.days.to_learn(day), "train"), judged

    def _kept(self) -> tuple[list[Day], str | None]:
        """The finished days that still hold, and a sentence where others do not."""
        finished: list[Day] = []
        for day in range(self.days.first, self.days.last):
            found = self.states.finished(day)
            if found is None:
                break
            if found[0] != digest(*self.plans(day)):
                note = f"the targets of {self.days.name(day)} or the next day have changed since it was finished"
                if self._can_begin(day):
                    note = f"{note}: the backtest went on from that day"
                else:
                    note, finished = f"{note}, and weights before it are no longer kept: the backtest began anew", []
                self.states.begin_again(self.days.first + len(finished))
                log.warning("%s", note)
                return finished, note
            finished.append(found[1])
        return finished, None

    def _can_begin(self, day: int) -> bool:
        """Whether all weights that a day and those after it need of days before it are there."""
        oldest = day + 1 - max(self.config.backtest.staleness, default=0)
        return all(self.states.has_weights(one) for one in range(max(self.days.first, min(oldest, day - 1)), day))

    def _day(self, day: int) -> Day:
        """Learn a day, judge it on the next, and keep both."""
        config, name = self.config.backtest, self.days.name
        start, processor = time.perf_counter(), time.process_time()
        learnt, judged = self.plans(day)
        set_seed(self.config.training.seed + day - self.days.first)  # whatever was drawn before, after a resume too
        cost = self._learn(self.model, self.optimizer, learnt, self._settings(day), start, processor)
        folder = self.states.of_day(day)
        checkpoint.save(folder, Progress(), self.model, self.optimizer)
        target, score = self._score(self.model, judged)
        stale = {}
        for age in config.staleness:
            if day + 1 - age >= self.days.first:
                with checkpoint.weights_of(self.states.of_day(day + 1 - age), self.model):
                    stale[str(age)] = self._score(self.model, judged)[1]
        fresh, fresh_cost = self._fresh(day, judged) if config.fresh else (None, None)
        made = Day(name(day), cost, name(day + 1), len(target), score, stale, fresh, fresh_cost)
        self.states.finish(day, digest(learnt, judged), made)
        # The next day needs these weights, and those of `staleness`; late_days, as much before each day that is redone.
        self.states.drop_weights(day - max(config.staleness, default=1) - config.late_days)
        return made

    def _fresh(self, day: int, judged: Rows) -> tuple[Score, Cost]:
        """A new model that is trained on all that is known by the end of a day."""
        start, processor = time.perf_counter(), time.process_time()
        model, optimizer = self._new()
        rows = self._rows(self.days.learnt.until(day), "train")
        cost = self._learn(model, optimizer, rows, self.config.training, start, processor)
        return self._score(model, judged)[1], cost

    def _new(self) -> tuple[CTRModel, torch.optim.AdamW]:
        settings = self.config.training
        set_seed(settings.seed)
        row_length = self.config.packing.tokens_a_row
        model = placed_model(
            self.config, self.paradigm, self.store, row_length, self.accelerator, Timeline(time.monotonic())
        )
        return model, optimizer_for(model, settings)

    def _settings(self, day: int) -> TrainingConfig:
        """Of a day's training: each target once, at one rate on all days but the first."""
        settings = replace(self.config.training, epochs=1.0)
        if day == self.days.first:
            return settings
        rate = settings.learning_rate * self.config.backtest.learning_rate_share
        return replace(settings, learning_rate=rate, warmup_share=0.0, final_learning_rate_share=1.0)

    def _learn(
        self, model: CTRModel, optimizer: torch.optim.AdamW, rows: Rows | None, settings: TrainingConfig,
        start: float, processor: float,
    ) -> Cost:  # fmt: skip
        """Train on rows; cost since the clocks showed ``start`` and ``processor``."""
        progress: Progress | None = Progress()
        if rows is not None:
            progress = fit(model, optimizer, rows, settings, self.accelerator, self.interrupted)
        if progress is None or self.interrupted():
            raise Interrupted(f"the backtest of {self.paradigm} was interrupted; run it again to go on")
        seconds, processed = time.perf_counter() - start, time.process_time() - processor
        targets = 0 if rows is None else int(rows.targets().sum())
        return Cost(targets, progress.tokens_seen, round(seconds, 3), round(processed, 3))

    def _score(self, model: CTRModel, rows: Rows) -> tuple[NDArray[np.int64], Score]:
        """The targets of rows, and how the model does on them."""
        model.eval()
        autocast = torch.bfloat16 if self.config.training.dtype == "bfloat16" else None
        target, probability = self.batches.score(
            model, rows, np.arange(len(rows)), device=self.device, autocast=autocast
        )
        label = self.store.label[target]
        return target, Score(metrics.auc(label, probability), metrics.log_loss(label, probability))

    def _rows(self, targets: NDArray[np.int64], plan: str) -> Rows | None:
        """The prompts of some targets, in rows; None where there are none."""
        if not len(targets):
            return None
        packing = self.config.packing
        k = targets_per_prompt(self.config, plan, named(self.paradigm))
        prompts = cut_some(self.store, targets, packing.context, k, packing.tokens_a_row)
        return Rows.pack(self.store, prompts, packing.tokens_a_row, packing.seed)
