"""What a study consists of: a YAML file of logs and groups of runs, read into single runs.

A run is known by the digest of everything that shapes its figures. Two runs of one digest are one run, whatever group
asks for them; a run of another configuration is another run and never takes its place.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import yaml

from dti_pipeline.config import Config
from dti_pipeline.errors import InputError
from dti_pipeline.paths import PARADIGMS
from dti_pipeline.plain import from_plain, nearest
from dti_pipeline.study.rehearsal import Rehearsal

BASELINE = "sliding_window"
#: Sections of params.yaml that shape a log's events, those that shape its tokens, and those of a run beside them.
LOG_SECTIONS = ("synth", "events", "split")
DATA_SECTIONS = (*LOG_SECTIONS, "tokens")
RUN_SECTIONS = ("packing", "model", "training", "evaluation")
#: Keys that say where and how work is done, not what comes of it.
CIRCUMSTANCES = {
    "events": ("path", "items_path", "memory_limit"),
    "training": ("checkpoint_seconds", "device", "tokens_per_batch", "cuda_graph"),
    "evaluation": ("tokens_per_batch",),
}
#: Facts that tell the lines of one log's table apart, beside the paradigm.
FACTS = ("k", "n", "fixes", "model", "epochs", "max_targets")
#: What tables and pictures tell runs apart by.
SHOWN = ("dataset", "paradigm", *FACTS, "seed")


@dataclass(frozen=True)
class DataSet:
    """A log, how it is split, and the one recipe that every paradigm of it is trained by."""

    params: dict[str, Any] = field(default_factory=dict)  # sections of params.yaml
    note: str = ""  # what a reader of its figures must know
    # Made of another log, whose LOG_SECTIONS it has: to choose that log's recipe without a look at its test targets.
    rehearsal: Rehearsal | None = None


@dataclass(frozen=True)
class Group:
    """Runs that belong in one table: every combination of the lists."""

    name: str = ""
    data_sets: tuple[str, ...] = ()
    paradigms: tuple[str, ...] = PARADIGMS
    k: tuple[int | Literal["all"], ...] = ()  # none: the recipe's
    n: tuple[int, ...] = ()  # likewise
    fixes: tuple[str, ...] = ("",)  # names of `fixes`; "": none
    models: tuple[str, ...] = ("",)  # names of `models`; "": the recipe's
    epochs: tuple[float, ...] = ()  # none: the recipe's
    seeds: tuple[int, ...] = (1,)
    max_targets: int | None = None  # the same cut of the log for every run; None: the recipe's
    # quality: judged on the test targets. validation: a trial of a recipe, scored on the validation targets while it
    # trains and never on test targets. speed: trained with nothing beside it and not judged, so that its seconds count.
    measure: Literal["quality", "validation", "speed"] = "quality"
    # Which sliding window a run is held against. epochs: the one of as many epochs; seconds: the group's own, whose
    # epochs the grid chose to take as long.
    equal: Literal["epochs", "seconds"] = "epochs"
    params: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Grid:
    """The file. Its paths are relative to its own folder."""

    results: str = "results/study.json"
    document: str | None = None  # Markdown in which the tables stand between markers
    pictures: str | None = None  # folder
    figures: dict[str, tuple[str, ...]] = field(default_factory=dict)  # picture -> groups it draws
    speed: tuple[str, ...] = ()  # results of training-step benchmarks, drawn beside the study's own speed-ups
    data_sets: dict[str, DataSet] = field(default_factory=dict)
    fixes: dict[str, dict[str, Any]] = field(default_factory=dict)
    models: dict[str, dict[str, Any]] = field(default_factory=dict)
    groups: tuple[Group, ...] = ()
    others: tuple[str, ...] = ()  # groups of other kinds of models, whose rows scripts of their own make
    path: str = ""  # where it was read from

    def beside(self, name: str) -> Path:
        """A path of the file, from where the file lies."""
        return Path(self.path).parent / name

    @cached_property
    def runs(self) -> tuple[Run, ...]:
        """Every run once, in the order of the file; those that several groups ask for know all of them."""
        found: dict[str, Run] = {}
        for group in self.groups:
            for run in self._expand(group):
                known = found.setdefault(run.digest, run)
                if group.name not in known.groups:
                    found[run.digest] = replace(known, groups=(*known.groups, group.name))
        for run in found.values():
            if any(group.equal == "seconds" for name in run.groups for group in self.group(name)):
                found[run.digest] = replace(run, against_seconds=_as_long(run, self, found.values()))
        return tuple(found.values())

    def group(self, name: str) -> tuple[Group, ...]:
        """The entries of a group: it may be written in several parts."""
        return tuple(group for group in self.groups if group.name == name)

    @property
    def group_names(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(group.name for group in self.groups))

    def config(self, data_set: str, *changes: Mapping[str, Any]) -> Config:
        """The parameters of a log with changes on top; InputError names the wrong key and the file."""
        own = self.data_sets[data_set]
        merged: dict[str, Any] = {}
        if own.rehearsal:
            params = self.data_sets[own.rehearsal.of].params
            merged = {section: params[section] for section in LOG_SECTIONS if section in params}
        for change in (own.params, *changes):
            merged = _merge(merged, change)
        try:
            return from_plain(Config, merged)
        except InputError as error:
            raise InputError(f"{self.path}, data set {data_set}: {error}") from error

    def _expand(self, group: Group) -> Iterator[Run]:
        everything = itertools.product(
            group.data_sets, group.models, group.n or (None,), group.fixes, group.epochs or (None,), group.k or (None,),
            group.paradigms, group.seeds,
        )  # fmt: skip
        for data_set, model, n, fixes, epochs, k, paradigm, seed in everything:
            changes = (
                self.models.get(model, {}),
                group.params,
                {"packing": _given(context=n, max_targets=group.max_targets)},
                {"training": _given(seed=seed, epochs=epochs)},
                {"tracking": {"enabled": False}},
            )
            # The baseline trains on k = 1 whatever is asked; the recipe's k shapes the streaming form of its test.
            base = Run(
                (group.name,), data_set, BASELINE, "", model, group.measure, self.config(data_set, *changes),
                rehearsal=self.data_sets[data_set].rehearsal,
            )  # fmt: skip
            if paradigm == BASELINE and not fixes:
                yield base
                continue
            own = {} if paradigm == BASELINE else {"packing": _given(targets=k)}
            config = self.config(data_set, *changes, self.fixes.get(fixes, {}), own)
            if config.packing.targets == 1 and paradigm in ("dti", "dti_growing"):
                continue  # the sliding window itself: tests/model/test_proof_1_one_target_is_the_sliding_window.py
            yield replace(base, paradigm=paradigm, fixes=fixes, config=config, against=base.digest)


@dataclass(frozen=True)
class Run:
    """One training and its judgement."""

    groups: tuple[str, ...]
    data_set: str
    paradigm: str
    fixes: str
    model: str
    measure: str
    config: Config
    against: str | None = None  # the sliding window of equal epochs, by digest
    against_seconds: str | None = None  # the one that takes as long, where a group asks for it
    rehearsal: Rehearsal | None = None  # its log's

    @property
    def k(self) -> int | str:
        return 1 if self.paradigm == BASELINE else self.config.packing.targets

    @cached_property
    def digest(self) -> str:
        """12 hexadecimal characters of everything that shapes the figures."""
        sections = settings(self.config, (*DATA_SECTIONS, *RUN_SECTIONS))
        made = [asdict(self.rehearsal)] if self.rehearsal else []
        return _digest([self.data_set, self.paradigm, self.measure, sections, *made])

    @property
    def packing_digest(self) -> str:
        """What shapes its row plans."""
        return _digest([settings(self.config, ("packing",)), self.config.split.min_history])

    def facts(self) -> dict[str, Any]:
        """The columns that say which run it is."""
        training = self.config.training
        return {
            "dataset": self.data_set,
            "split": self.config.split.rule,
            "group": self.groups[0],
            "paradigm": self.paradigm,
            "k": self.k,
            "n": self.config.packing.context,
            "fixes": self.fixes,
            "model": self.model,
            "epochs": training.epochs,
            "seed": training.seed,
            "max_targets": self.config.packing.max_targets,
            "row_length": self.config.packing.row_length,
            "measure": self.measure,
            "config": self.digest,
            "command": f"dti study --only {self.groups[0]}",
        }

    def label(self) -> str:
        """For a line of a terminal."""
        facts = self.facts()
        parts = [self.data_set, self.paradigm, f"k={self.k}", f"n={facts['n']}", self.fixes, self.model]
        parts += [f"{facts['epochs']:g} epochs", f"seed {facts['seed']}"]
        parts += [f"{facts['max_targets']:,} targets"] if facts["max_targets"] else []
        return " ".join(part for part in parts if part)


def _as_long(run: Run, grid: Grid, runs: Iterable[Run]) -> str | None:
    """The sliding window of a run's group of equal seconds, of the same log, cut, n, model and seed."""
    names = {name for name in run.groups if any(group.equal == "seconds" for group in grid.group(name))}
    for other in runs:
        same = all(other.facts()[key] == run.facts()[key] for key in ("dataset", "max_targets", "n", "model", "seed"))
        if other.paradigm == BASELINE and run.paradigm != BASELINE and same and names & set(other.groups):
            return other.digest
    return None


def settings(config: Config, sections: tuple[str, ...]) -> dict[str, Any]:
    """What sections say that the defaults do not, without the keys that only say where and how work is done.

    The defaults are left out so that a parameter that is new tomorrow does not make other runs of today's.
    """
    own, default = config.sections(*sections), Config().sections(*sections)
    return {
        section: {
            key: value
            for key, value in values.items()
            if value != default[section][key] and key not in CIRCUMSTANCES.get(section, ())
        }
        for section, values in own.items()
    }


def load(path: Path) -> Grid:
    """Read a study's file. InputError names what is wrong in it, and the right name where one is near."""
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist: name the study's file") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" line {mark.line + 1}" if mark else ""
        raise InputError(f"{path}{line} is not YAML: {getattr(error, 'problem', error)}") from error
    try:
        grid = replace(from_plain(Grid, raw), path=str(path))
    except InputError as error:
        raise InputError(f"{path}: {str(error).replace('params key', 'key')}") from error
    _check(grid)
    return grid


def _check(grid: Grid) -> None:
    _check_rehearsals(grid)
    for figure, names in grid.figures.items():
        for name in names:
            if name not in grid.group_names:
                raise InputError(
                    f"{grid.path}, figures.{figure}: no group is named {name!r}{nearest(name, grid.group_names)}"
                )
    variants = {f"fixes.{name}": params for name, params in grid.fixes.items()}
    variants |= {f"models.{name}": params for name, params in grid.models.items()}
    variants |= {f"group {group.name}, params": group.params for group in grid.groups}
    for where, params in variants.items():
        if wrong := set(params) & {*DATA_SECTIONS, "validation"}:
            raise InputError(
                f"{grid.path}, {where}: `{min(wrong)}` shapes the log, not a run: make a data set of its own of it"
            )
    for group in grid.groups:
        if not group.name:
            raise InputError(f"{grid.path}: every group needs a name")
        named: dict[str, tuple[tuple[str, ...], list[str]]] = {
            "data_sets": (group.data_sets, list(grid.data_sets)),
            "paradigms": (group.paradigms, list(PARADIGMS)),
            "fixes": (group.fixes, ["", *grid.fixes]),
            "models": (group.models, ["", *grid.models]),
        }
        for key, (names, known) in named.items():
            for name in names:
                if name not in known:
                    raise InputError(
                        f"{grid.path}, group {group.name}: `{key}` has {name!r}, which is none of"
                        f" {', '.join(map(repr, known))}{nearest(name, known)}"
                    )
        for key in (f.name for f in fields(Group)):
            value = getattr(group, key)
            if isinstance(value, tuple) and not value and key not in ("k", "n", "epochs"):
                raise InputError(f"{grid.path}, group {group.name}: `{key}` is empty")
    _check_measures(grid)
    _check_told_apart(grid)


def _check_rehearsals(grid: Grid) -> None:
    logs = [name for name, data_set in grid.data_sets.items() if not data_set.rehearsal]
    for name, data_set in grid.data_sets.items():
        if data_set.rehearsal is None:
            continue
        where, of, train = f"{grid.path}, data set {name}", data_set.rehearsal.of, data_set.rehearsal.train
        if of not in logs:
            raise InputError(f"{where}: `rehearsal.of` is {of!r}, none of {', '.join(logs)}{nearest(of, logs)}")
        if not 0 < train < 1:
            raise InputError(f"{where}: `rehearsal.train` must be between 0 and 1, not {train}")
        if (rule := grid.config(of).split.rule) != "user_order":
            raise InputError(f"{where}: `rehearsal` needs a log split by user_order, and {of} is split by {rule}")
        if settings(grid.config(name), LOG_SECTIONS) != settings(grid.config(of), LOG_SECTIONS):
            raise InputError(f"{where}: a rehearsal has `{'`, `'.join(LOG_SECTIONS)}` of {of}: leave them out")


def _check_measures(grid: Grid) -> None:
    """Trials are scored on validation targets that are there, and stand in tables of their own."""
    for group in grid.groups:
        where, trial = f"{grid.path}, group {group.name}", group.measure == "validation"
        if any((other.measure == "validation") != trial for other in grid.group(group.name)):
            raise InputError(f"{where}: `measure` is validation in one part and not in another: name them apart")
        for name in group.data_sets:
            if grid.data_sets[name].rehearsal and not trial:
                raise InputError(f"{where}: {name} is a rehearsal, without test targets: say `measure: validation`")
            if trial and not grid.config(name).split.validation_share:
                raise InputError(f"{where}: {name} has no validation targets: `split.validation_share` is 0")
    for run in grid.runs:
        if run.measure == "validation" and run.config.training.evaluations < 1:
            raise InputError(f"{grid.path}, group {run.groups[0]}: a trial needs `training.evaluations` of at least 1")


def _check_told_apart(grid: Grid) -> None:
    """No two runs of a table or a picture differ in nothing that it shows: it would take them for seeds of one run."""
    together = {f"group {name}": {name} for name in grid.group_names}
    together |= {f"figures.{name}": set(groups) for name, groups in grid.figures.items()}
    for where, groups in together.items():
        known: dict[tuple[Any, ...], Run] = {}
        for run in grid.runs:  # every combination is a valid configuration, or its error names the key
            if groups & set(run.groups):
                other = known.setdefault(tuple(run.facts()[fact] for fact in SHOWN), run)
                if other is not run:
                    raise InputError(
                        f"{grid.path}, {where}: two runs of other parameters are both called {run.label()!r}: make a"
                        " model, a fix or a data set of the difference, which tables name"
                    )


def _given(**values: Any) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}


def _merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        merged[key] = _merge(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return merged


def _digest(content: Any) -> str:
    return hashlib.md5(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]
