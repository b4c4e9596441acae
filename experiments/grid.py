"""The grid of a study: a YAML file of logs and groups of runs, expanded into single runs.

A run is identified by the digest of everything that shapes its figures. Two runs of one digest are one run, whichever
group asks for them; a run of another configuration never takes its place.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, reduce
from pathlib import Path
from typing import Any, Literal

from dti_pipeline import paradigms
from dti_pipeline.config import Config
from dti_pipeline.errors import InputError
from dti_pipeline.plain import from_plain, nearest, parse_yaml
from experiments.identity import DATA_SECTIONS, LOG_SECTIONS, RUN_SECTIONS, UNTRAINED, merge, settings
from experiments.identity import digest as digest_of

BASELINE = paradigms.BASELINE.name
#: Columns that tell the lines of one log's table apart, beside the paradigm.
FACTS = ("k", "n", "delay", "fixes", "model", "epochs", "share")
#: Columns that tell runs apart in tables and pictures.
SHOWN = ("dataset", "paradigm", *FACTS, "seed")


@dataclass(frozen=True)
class Rehearsal:
    """Makes a log from the past of another log, to choose that log's recipe without its test targets."""

    of: str = ""
    train: float = 0.6  # the first share of every user's rows


@dataclass(frozen=True)
class DataSet:
    """A log, its split, and the one recipe that trains every paradigm on it."""

    recipe: str = ""  # a file of parameters; none: the defaults
    params: dict[str, Any] = field(default_factory=dict)  # sections of params.yaml, on top of the recipe's
    note: str = ""  # for the reader of its figures
    log: str = ""  # the log's own name, where one log stands under several recipes; "": the data set's
    model: str = ""  # the name of the recipe's model, where pictures and tables tell models apart
    rehearsal: Rehearsal | None = None  # the log then has LOG_SECTIONS of the log it is made from


@dataclass(frozen=True)
class Group:
    """Runs that belong in one table: every combination of the lists. An empty list of k, n or epochs: the recipe's."""

    name: str = ""
    data_sets: tuple[str, ...] = ()
    paradigms: tuple[str, ...] = paradigms.names()
    k: tuple[int | Literal["all"], ...] = ()
    n: tuple[int, ...] = ()
    fixes: tuple[str, ...] = ("",)  # names of `fixes`; "": none
    models: tuple[str, ...] = ("",)  # names of `models`; "": the recipe's
    epochs: tuple[float, ...] = ()
    shares: tuple[float, ...] = (1.0,)  # of the training targets, see packing.target_share
    delays: tuple[float | None, ...] = (None,)  # seconds after which a label is known; null: what the log says
    seeds: tuple[int, ...] = (1,)
    # quality: evaluated on the test targets. validation: a trial of a recipe, scored on the validation targets while it
    # trains, never on test targets. speed: trained alone on its machine and not evaluated, so that its seconds count.
    measure: Literal["quality", "validation", "speed"] = "quality"
    # The sliding window that a run is compared with. epochs: the one of as many epochs; seconds: the group's own, whose
    # epochs the grid chose to take as long.
    equal: Literal["epochs", "seconds"] = "epochs"
    params: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Grid:
    """The file. Its paths are relative to its own folder."""

    results: str = "results"  # folder: see experiments/analyse.py
    flat: str | None = None  # JSON file with a row for each evaluated run, see experiments/flat.py
    document: str | None = None  # Markdown in which the tables stand between markers
    pictures: str | None = None  # folder
    figures: dict[str, tuple[str, ...]] = field(default_factory=dict)  # picture -> the groups it draws
    speed: tuple[str, ...] = ()  # results of training-step benchmarks, drawn beside the study's own speed-ups
    data_sets: dict[str, DataSet] = field(default_factory=dict)
    fixes: dict[str, dict[str, Any]] = field(default_factory=dict)
    models: dict[str, dict[str, Any]] = field(default_factory=dict)
    groups: tuple[Group, ...] = ()
    others: tuple[str, ...] = ()  # groups of other kinds of models, whose rows their own scripts make
    path: str = ""  # where it was read from

    def beside(self, name: str) -> Path:
        """A path named in the file, resolved against the file's folder."""
        return Path(self.path).parent / name

    @cached_property
    def runs(self) -> tuple[Run, ...]:
        """Every run once, in the order of the file; a run of several groups has the names of all."""
        found: dict[str, Run] = {}
        for group in self.groups:
            for run in self._expand(group):
                known = found.setdefault(run.digest, run)
                if group.name not in known.groups:
                    found[run.digest] = replace(known, groups=(*known.groups, group.name))
        windows = {
            key: run.digest for run in found.values() if run.paradigm == BASELINE for key in self._equal_seconds(run)
        }
        for run in found.values():
            if run.paradigm != BASELINE and (keys := self._equal_seconds(run)):
                found[run.digest] = replace(run, against_seconds=windows.get(keys[0]))
        return tuple(found.values())

    def _equal_seconds(self, run: Run) -> list[tuple[Any, ...]]:
        """A key for each of a run's groups of equal seconds; the group's sliding window has the same key."""
        facts = run.facts()
        same = tuple(facts[key] for key in ("dataset", "n", "delay", "model", "share", "seed"))
        return [(name, *same) for name in run.groups if any(part.equal == "seconds" for part in self.group(name))]

    def group(self, name: str) -> tuple[Group, ...]:
        """The parts of a group, which may be several."""
        return tuple(group for group in self.groups if group.name == name)

    @property
    def group_names(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(group.name for group in self.groups))

    def chosen(self, only: Iterable[str] = ()) -> tuple[Run, ...]:
        """All runs, or those of the named groups."""
        wanted = set(only)
        known(f"{self.path}: asked for group", wanted, self.group_names)
        return tuple(run for run in self.runs if not wanted or wanted & set(run.groups))

    def config(self, data_set: str, *changes: Mapping[str, Any]) -> Config:
        """The parameters of a log with changes on top; InputError names the wrong key and the file."""
        try:
            return from_plain(Config, reduce(merge, changes, self._params(data_set)))
        except InputError as error:
            raise InputError(f"{self.path}, data set {data_set}: {error}") from error

    @cached_property
    def _recipes(self) -> dict[str, dict[str, Any]]:
        files = {data_set.recipe for data_set in self.data_sets.values() if data_set.recipe}
        return {"": {}} | {file: _read(self.beside(file)) for file in files}

    def _params(self, data_set: str) -> dict[str, Any]:
        own = self.data_sets[data_set]
        recipe = self._recipes[own.recipe]
        if own.rehearsal:
            log = self._params(own.rehearsal.of)
            recipe = recipe | {section: log[section] for section in LOG_SECTIONS if section in log}
        return merge(recipe, own.params)

    def _expand(self, group: Group) -> Iterator[Run]:
        everything = itertools.product(
            group.data_sets, group.delays, group.models, group.n or (None,), group.fixes, group.epochs or (None,),
            group.k or (None,), group.shares, group.paradigms, group.seeds,
        )  # fmt: skip
        for data_set, delay, model, n, fixes, epochs, k, share, paradigm, seed in everything:
            changes = (
                self.models.get(model, {}),
                group.params,
                {"packing": {**_given(context=n), "target_share": share}, "training": _given(seed=seed, epochs=epochs)},
                {"split": _given(feedback_delay=delay), "tracking": {"enabled": False}},
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
            asked = paradigms.named(paradigm)
            if config.packing.targets == 1 and asked.streams and not asked.items_stand_alone:
                continue  # the sliding window itself: tests/model/test_proof_1_one_target_is_the_sliding_window.py
            yield replace(base, paradigm=paradigm, fixes=fixes, config=config, against=base.digest)


@dataclass(frozen=True)
class Run:
    """One training and its evaluation."""

    groups: tuple[str, ...]
    data_set: str
    paradigm: str
    fixes: str
    model: str
    measure: str
    config: Config
    against: str | None = None  # digest of the sliding window of equal epochs
    against_seconds: str | None = None  # digest of the one that takes as long, where a group asks for it
    rehearsal: Rehearsal | None = None  # its log's

    @property
    def k(self) -> int | str:
        return 1 if self.paradigm == BASELINE else self.config.packing.targets

    @property
    def delay(self) -> float | None:
        return self.config.split.feedback_delay

    @property
    def home(self) -> str:
        """The folder of its log, as :func:`home` calls it."""
        return home(self.data_set, self.delay)

    @cached_property
    def digest(self) -> str:
        """12 hexadecimal characters of everything that shapes the figures: of a model that is not trained, no learning
        rate."""
        sections = settings(self.config, (*DATA_SECTIONS, *RUN_SECTIONS))
        if not self.config.training.epochs:
            sections["training"] = {key: sections["training"][key] for key in UNTRAINED & sections["training"].keys()}
        made = [asdict(self.rehearsal)] if self.rehearsal else []
        return digest_of([self.data_set, self.paradigm, self.measure, sections, *made])

    @property
    def packing_digest(self) -> str:
        """12 hexadecimal characters of everything that shapes its row plans."""
        return digest_of([settings(self.config, ("packing",)), self.config.split.min_history])

    def facts(self) -> dict[str, Any]:
        """The columns that identify the run in the results."""
        packing, training = self.config.packing, self.config.training
        return {
            "dataset": self.data_set,
            "split": self.config.split.rule,
            "group": self.groups[0],
            "paradigm": self.paradigm,
            "k": self.k,
            "n": packing.context,
            "delay": self.delay,
            "fixes": self.fixes,
            "model": self.model,
            "epochs": training.epochs,
            "share": packing.target_share if packing.target_share < 1 else None,  # null: all training targets
            "seed": training.seed,
            "row_length": packing.row_length,
            "measure": self.measure,
            "config": self.digest,
            "command": f"dti study --only {self.groups[0]}",
        }

    def label(self) -> str:
        """For a line of a terminal."""
        facts = self.facts()
        late = "" if self.delay is None else f"delay {self.delay:g} s"
        part = "" if facts["share"] is None else f"{facts['share']:.0%} of the targets"
        parts = [self.data_set, self.paradigm, f"k={self.k}", f"n={facts['n']}", late, self.fixes, self.model, part]
        return " ".join(part for part in (*parts, f"{facts['epochs']:g} epochs", f"seed {facts['seed']}") if part)


def home(data_set: str, delay: float | None) -> str:
    """The name of a log's folder in the study's: a delay of labels has one of its own."""
    return data_set if delay is None else f"{data_set}-{delay:g}s"


def load(path: Path) -> Grid:
    """Read a study's file. InputError names the error in it, and the right name where one is near."""
    try:
        grid = replace(from_plain(Grid, _read(path)), path=str(path))
    except InputError as error:
        raise InputError(f"{path}: {str(error).replace('params key', 'key')}") from error
    for check in (_check_names, _check_rehearsals, _check_measures, _check_told_apart):
        check(grid)
    return grid


def _read(path: Path) -> dict[str, Any]:
    try:
        return parse_yaml(path.read_text(encoding="utf-8"), str(path))
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist") from error


def known(where: str, asked: Iterable[str], names: Iterable[str]) -> None:
    """InputError where one that is ``asked`` for is none of ``names``, with the nearest of them."""
    names = list(names)
    for name in asked:
        if name not in names:
            raise InputError(f"{where} {name!r}, none of {', '.join(map(repr, names))}{nearest(name, names)}")


def _check_names(grid: Grid) -> None:
    """Groups and figures name what there is, and no run changes its log."""
    changes = {f"{kind}.{name}": one for kind in ("fixes", "models") for name, one in getattr(grid, kind).items()}
    changes |= {f"group {group.name}, params": group.params for group in grid.groups}
    for where, params in changes.items():
        if wrong := set(params) & {*DATA_SECTIONS, "validation"}:
            said = f"`{min(wrong)}` shapes the log, not a run: make a data set of its own of it"
            raise InputError(f"{grid.path}, {where}: {said}")
    allowed = {
        "data_sets": grid.data_sets, "paradigms": paradigms.names(), "fixes": ["", *grid.fixes],
        "models": ["", *grid.models],
    }  # fmt: skip
    for group in grid.groups:
        if not group.name:
            raise InputError(f"{grid.path}: every group needs a name")
        where = f"{grid.path}, group {group.name}:"
        for key, names in allowed.items():
            known(f"{where} `{key}` has", getattr(group, key), names)
        for key in (*allowed, "seeds", "delays", "shares"):
            if not getattr(group, key):
                raise InputError(f"{where} `{key}` is empty")
    for figure, names in grid.figures.items():
        known(f"{grid.path}, figures.{figure}: it draws", names, grid.group_names)


def _check_rehearsals(grid: Grid) -> None:
    logs = [name for name, data_set in grid.data_sets.items() if not data_set.rehearsal]
    for name, data_set in grid.data_sets.items():
        if data_set.rehearsal is None:
            continue
        where, of, train = f"{grid.path}, data set {name}:", data_set.rehearsal.of, data_set.rehearsal.train
        known(f"{where} `rehearsal.of` is", [of], logs)
        if not 0 < train < 1:
            raise InputError(f"{where} `rehearsal.train` must be between 0 and 1, not {train}")
        if (rule := grid.config(of).split.rule) != "user_order":
            raise InputError(f"{where} `rehearsal` needs a log split by user_order, and {of} is split by {rule}")
        if settings(grid.config(name), LOG_SECTIONS) != settings(grid.config(of), LOG_SECTIONS):
            raise InputError(f"{where} a rehearsal has `{'`, `'.join(LOG_SECTIONS)}` of {of}: leave them out")


def _check_measures(grid: Grid) -> None:
    """Trials are scored on validation targets that exist, and stand in tables of their own."""
    for group in grid.groups:
        where, trial = f"{grid.path}, group {group.name}:", group.measure == "validation"
        if any((other.measure == "validation") != trial for other in grid.group(group.name)):
            raise InputError(f"{where} `measure` is validation in one part and not in another: name them apart")
        for name in group.data_sets:
            if grid.data_sets[name].rehearsal and not trial:
                raise InputError(f"{where} {name} is a rehearsal, without test targets: say `measure: validation`")
            if trial and not grid.config(name).split.validation_share:
                raise InputError(f"{where} {name} has no validation targets: `split.validation_share` is 0")
    for run in grid.runs:
        if run.measure == "validation" and run.config.training.evaluations < 1:
            raise InputError(f"{grid.path}, group {run.groups[0]}: a trial needs `training.evaluations` of at least 1")


def _check_told_apart(grid: Grid) -> None:
    """Two runs of a table or a picture differ in a column that it shows: else they would pass for seeds of one run."""
    together = {f"group {name}": {name} for name in grid.group_names}
    together |= {f"figures.{name}": set(groups) for name, groups in grid.figures.items()}
    for where, groups in together.items():
        seen: set[tuple[Any, ...]] = set()
        for run in (run for run in grid.runs if groups & set(run.groups)):
            facts = tuple(run.facts()[fact] for fact in SHOWN)
            if facts in seen:
                raise InputError(
                    f"{grid.path}, {where}: two runs of other parameters are both called {run.label()!r}: make a model,"
                    " a fix or a data set of the difference, which tables name"
                )
            seen.add(facts)


def _given(**values: Any) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}
