"""Parameters that a log of one's own asks for, each with its reason: ``dti init --from``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dti_pipeline.config import Config, from_plain, recipe
from dti_pipeline.errors import InputError
from dti_pipeline.events.facts import Facts, facts
from dti_pipeline.events.folders import below, chosen
from dti_pipeline.events.lines import head
from dti_pipeline.events.sources import TABLES
from dti_pipeline.homes import columns
from dti_pipeline.homes.columns import Roles
from dti_pipeline.paths import Paths

#: Rows up to which a log gets the recipe that was chosen on small logs.
SMALL = 300_000
#: Share of rows within a minute of the user's row before, above which labels are taken to come late.
HASTY = 0.1
#: Seconds after which a label is then taken to be known.
DELAY = 3600
DAY = 86_400
#: By the highest rating, the one above which a rating is usually called a click.
USUAL = {5.0: 3.0, 10.0: 7.0}
TOKENS = {
    "template": "Text of an interaction; it may name any column that was known before the click.",
    "prefix": "An instruction, which every target sees: say what your rows are.",
    "user_template": 'Text of a user: "{age} {occupation}", columns of the log.',
}
RATES_TOLD = " Rates count labels that were known by then; a request to the model has to give them."
#: In place of a recipe's, which is of its own log.
PREFIX = "Items that one person was shown, oldest first, and whether they were liked:"


@dataclass(frozen=True)
class Setting:
    """A key of params.yaml with the reason for its value; "": none is needed."""

    key: str
    value: Any
    why: str = ""


def propose(
    source: Path, home: Path, named: Mapping[str, str] | None = None, name: str | None = None, gpu: bool = False
) -> list[Setting]:
    """The parameters for the log at ``source``, in the order of params.yaml.

    ``named``: columns that a person has named, by role; ``name``: a recipe that a person has chosen; ``gpu``: whether
    one is there to train on. Cost: one parse of the log. Raises InputError where something cannot be told, with what to
    choose from, and where the log has only one label.
    """
    source = source.resolve()
    if not source.exists():
        raise InputError(f"--from {source}: there is no such file or folder")
    reading = [] if named else _known(source)
    if not reading:
        reading = _table(source, named or {})
    reading = [Setting(one.key, _below(one.value, home), one.why) if _is_path(one) else one for one in reading]
    own = any(one.key == "events.columns.split" for one in reading)
    log = facts(_config([*reading, *([Setting("split.rule", "column")] if own else [])]), Paths(home))
    reading = [_told(one, log) for one in reading]
    settings = [*reading, *_split(log, own), *_validation(log), *_recipe(log, name, gpu)]
    _config(settings)  # or it is refused here, and not by the first command
    return settings


def _config(settings: Sequence[Setting]) -> Config:
    return from_plain(Config, plain(settings))


def plain(settings: Sequence[Setting]) -> dict[str, Any]:
    """The settings as params.yaml has them."""
    found: dict[str, Any] = {}
    for one in settings:
        node = found
        *parents, leaf = one.key.split(".")
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = one.value
    return found


def _is_path(one: Setting) -> bool:
    return one.key in ("events.path", "events.items_path")


def _below(path: str, home: Path) -> str:
    """A path as params.yaml has it: relative where it lies in the home."""
    inside = Path(path).is_relative_to(home.resolve())
    return Path(path).relative_to(home.resolve()).as_posix() if inside else path


# ---- how the log is read


def _known(source: Path) -> list[Setting]:
    """A log that has a reader of its own, by the names of its files; nothing for any other."""
    folder = source if source.is_dir() else source.parent
    names = {path.name.lower(): path for path in folder.iterdir() if path.is_file()}
    lines = [names[name] for name in sorted(names) if name.startswith("ratings") and name.endswith(".dat")]
    log = None
    if "u.data" in names:
        log, scale = "movielens", "MovieLens 100K"
    elif lines and (source.is_dir() or source in lines):
        ratings = [line.split("::") for line in head(lines[0], 5000)]
        high = max((float(row[2]) for row in ratings if len(row) > 2 and row[2].isdigit()), default=0)
        log, scale = ("movietweetings", "ratings to 10") if high > 5 else ("movielens", "ratings to 5")
    elif "ratings.csv" in names and (source.is_dir() or source == names["ratings.csv"]):
        header = head(names["ratings.csv"], 1)
        if header and header[0].startswith("userId,movieId,rating,timestamp"):
            log, scale = "movielens", "the header of its ratings.csv"
    if log is None:
        return []
    return [
        Setting("events.source", log, f"By the names of its files and {scale}: this log has a reader of its own."),
        Setting("events.path", str(folder)),
    ]


def _table(source: Path, named: Mapping[str, str]) -> list[Setting]:
    """A table with names of columns, alone or beside others."""
    folder = source if source.is_dir() else source.parent
    there = chosen(below(folder, deep=source.is_dir())[0], TABLES)
    path, table, found = source, None, Roles()
    if source.is_dir():
        path, table, found = _log_of(source, there, named)
    else:
        if source not in there:
            raise InputError(f"--from {source}: a log is CSV, TSV, JSONL or Parquet, or a folder of them")
        table = columns.sample(source)
        found = columns.roles(table, named)
    settings = [
        Setting("events.source", "table", "Columns of a table, by their names."),
        Setting("events.path", str(path)),
        *(Setting(f"events.columns.{role}", found.columns[role], f"{_capital(found.why[role])}.")
          for role in ("user_id", "item_id", "rating")),
    ]  # fmt: skip
    if "timestamp" in found.columns:
        column = found.columns["timestamp"]
        settings.append(Setting("events.columns.timestamp", column, f"{_capital(found.why['timestamp'])}."))
    else:
        settings.append(
            Setting("events.columns.timestamp", None, "No column holds times: the rows have only an order.")
        )
    for role, use in (("request_id", "rows of one request know nothing of each other"), ("split", "")):
        if role in found.columns:
            why = _capital(found.why[role]) + (f": {use}." if use else ".")
            settings.append(Setting(f"events.columns.{role}", found.columns[role], why))
    if "item_text" in found.columns:
        return [*settings, Setting("events.columns.item_text", found.columns["item_text"], "The words of an item.")]
    beside = [one for one in there if one != path]
    ids = table.of(found.columns["item_id"])[:200]
    if (items := columns.items_beside(beside, ids)) is None:
        return settings
    file, key, text = items
    return [
        *settings,
        Setting("events.items_path", str(file), "The table beside the log that has its items, with texts."),
        Setting("events.item_columns", [key, text]),
    ]


def _log_of(folder: Path, there: Sequence[Path], named: Mapping[str, str]) -> tuple[Path, columns.Table, Roles]:
    """The log in a folder: its one file, or the folder where all files are parts of it."""
    logs: list[tuple[Path, columns.Table, Roles]] = []
    others, first = [], None
    for path in there:
        try:
            table = columns.sample(path)
            logs.append((path, table, columns.roles(table, named)))
        except InputError as error:
            others.append(path)
            first = first or error
    if not logs:
        raise first or InputError(f"--from {folder} has no CSV, TSV, JSONL or Parquet file")
    alike = all(found.columns == logs[0][2].columns for _, _, found in logs)
    if len(logs) == 1:
        return logs[0]
    if not alike or len(others) > 1:
        raise InputError(
            f"--from {folder} has several tables that could be the log ({', '.join(path.name for path, _, _ in logs)}):"
            " name one, or keep its parts in a folder of their own"
        )
    return folder, *logs[0][1:]


def _capital(words: str) -> str:
    return words[:1].upper() + words[1:]


def _told(one: Setting, log: Facts) -> Setting:
    """The setting with what the whole log says of it."""
    if one.key == "events.path":
        bad = log.read - log.rows
        left = f"; {bad:,} rows cannot be read, most of them: {log.reason}" if bad else ""
        return Setting(one.key, one.value, f"{log.rows:,} rows, {log.users:,} users, {log.items:,} items{left}.")
    if one.key == "events.columns.request_id" and log.shared:
        return Setting(one.key, None, f"{one.value} joins rows of several users, so it is no request: not used.")
    return one


# ---- what a click is, and which rows are targets


def _split(log: Facts, own: bool) -> list[Setting]:
    threshold, why = _threshold(log)
    if own and (log.early or set(log.splits) != {"train", "validation", "test"}):
        lacks = (
            "not all of train, validation and test" if not log.early else f"{log.early:,} users with a late train row"
        )
        raise InputError(
            f"the log's own split has {lacks}, so it cannot be used: leave its column out of the file, or rename it"
        )
    if own:
        counts = ", ".join(f"{log.splits[name]:,} {name}" for name in ("train", "validation", "test"))
        rule = Setting("split.rule", "column", f"The log's own: {counts}.")
    elif log.first is not None and log.last is not None:
        days = (log.last - log.first) / DAY
        rule = Setting(
            "split.rule", "global_time", f"The log has a clock, over {days:,.0f} days: one cut for all users."
        )
    else:
        rule = Setting(
            "split.rule",
            "user_order",
            "No clock: each user's last rows are the test. It does not compare with time splits.",
        )
    return [
        rule,
        Setting("split.label_threshold", threshold, why),
        _min_history(log, own),
        _delay(log),
    ]


def _threshold(log: Facts) -> tuple[float, str]:
    """The rating above which a row is a click, and the share of clicks that it gives."""
    if not log.ratings:
        middle = log.quartiles[1]
        return middle, (
            "CHOOSE: ratings are a quantity (quarters at"
            f" {log.quartiles[0]:g}, {middle:g}, {log.quartiles[2]:g}). Above the median is a click until you say."
        )
    values = [value for value, _ in log.ratings]
    if len(values) == 1:
        raise InputError(
            f"all {log.rows:,} ratings are {values[0]:g}: a log needs clicks and skips, the items shown and not clicked"
        )
    above = {}
    for value in values[:-1]:
        above[value] = sum(count for other, count in log.ratings if other > value) / log.rows
    if len(values) == 2:
        return sum(values) / 2, f"{values[1]:g} is a click, {values[0]:g} none: {above[values[0]]:.1%} clicks."
    cut, known = min(above, key=lambda value: abs(above[value] - 0.5)), "the nearest to one half"
    usual = USUAL.get(values[-1])
    if usual in above and 0.2 <= above[usual] <= 0.8:
        cut, known = usual, f"the usual cut of ratings to {values[-1]:g}"
    near = [value for value in above if value != cut]
    others = ", ".join(f"{above[value]:.0%} above {value:g}" for value in sorted(near, key=lambda v: abs(v - cut))[:2])
    return cut, f"A rating above {cut:g} is a click: {above[cut]:.0%} clicks, {known} ({others})."


def _min_history(log: Facts, own: bool) -> Setting:
    if own:
        return Setting("split.min_history", 0, "As published: every row of the split is a target.")
    for least in (5, 1):
        share = log.targets[least] / log.rows
        if share >= 0.3 or least == 1:
            return Setting(
                "split.min_history", least, f"{share:.0%} of the rows have {least} rows of their user before them."
            )
    raise AssertionError


def _delay(log: Facts) -> Setting:
    key = "split.feedback_delay"
    if log.hasty is None:
        return Setting(key, None, "A delay needs a clock: each label is known to the row after it.")
    share = f"{log.hasty:.0%} of a user's requests come within a minute of the one before"
    if log.hasty > HASTY:
        return Setting(
            key, DELAY, f"{share}: no server has that label yet. Seconds; set your own; null: known at once."
        )
    return Setting(key, None, f"{share}: labels are taken to be known at once. Else the seconds that yours take.")


def _validation(log: Facts) -> list[Setting]:
    settings = [Setting("validation.required", True)]
    if not log.words:
        why = "No file has texts of items: they are known by their ids alone, and a new item by nothing."
        settings.append(Setting("validation.max_untitled_share", 1.0, why))
    threshold, _ = _threshold(log)
    rate = sum(count for value, count in log.ratings if value > threshold) / log.rows
    if 0 < rate < 0.04:
        settings.append(Setting("validation.label_rate", [round(rate / 4, 5), 0.98], "Clicks are rare here."))
    return settings


# ---- the model


def _recipe(log: Facts, name: str | None, gpu: bool) -> list[Setting]:
    chosen_by = "As you said."
    if name is None:
        name = "small-log" if log.rows <= SMALL else "small"
        chosen_by = f"For {log.rows:,} rows of {log.users:,} users, from scratch; it was chosen on logs of this size."
        if gpu and log.words and name == "small-log":
            chosen_by += " On such logs the pretrained model of --recipe smollm2-135m had a higher AUC."
    sections = recipe(name)
    context, why = _context(log, gpu)
    settings = [
        Setting(
            "paradigms", ["sliding_window", "dti_isolated"], "The usual way, and the one that serves as it trains."
        ),
    ]
    tokens = sections["tokens"] | {"user_template": None, "template": _template(sections["tokens"]["template"], log)}
    if "prefix" in tokens and " " in tokens["prefix"]:
        tokens["prefix"] = PREFIX
    told = TOKENS | ({"template": TOKENS["template"] + RATES_TOLD} if "_rate}" in tokens["template"] else {})
    for key, value in tokens.items():
        settings.append(Setting(f"tokens.{key}", value, told.get(key, "")))
    scratch = not sections["model"].get("name_or_path")
    packing = sections["packing"] | {"context": context} | ({"row_length": "auto"} if scratch else {})
    length = f"The length in which prompts take the fewest tokens; titles have {log.words:.1f} words."
    if not scratch:
        length = "As the recipe has it: longer rows would make steps of more targets than it was chosen with."
    reasons = {"context": why, "row_length": length}
    settings += [Setting(f"packing.{key}", value, reasons.get(key, "")) for key, value in packing.items()]
    first = f"Recipe {name}. {chosen_by}"
    for key, value in sections["model"].items():
        settings.append(Setting(f"model.{key}", value, first))
        first = ""
    training = dict(sections["training"])
    why = "As the recipe has it."
    if scratch:
        training["dtype"] = "bfloat16" if gpu else "float32"
        why = "A GPU is here." if gpu else "No GPU is here. `dti plan` says what it costs before anything is spent."
    training |= {} if gpu or "tokens_per_batch" not in training else {"tokens_per_batch": 32_768}
    settings += [Setting(f"training.{key}", value, why if key == "dtype" else "") for key, value in training.items()]
    return settings


def _template(template: str, log: Facts) -> str:
    """A recipe's, as far as the log has what it names."""
    if not log.words:
        template = template.replace("{item_id} ", "").replace("{item_text}", "{item_id}")
    return template if log.first is not None else template.replace("{item_rate}", "")


def _context(log: Facts, gpu: bool) -> tuple[int, str]:
    """n: interactions before the first target."""
    n = 50 if gpu and log.long[50] >= 0.05 else 20
    more = "" if gpu else "; 50 is better, and on a CPU the sliding window then takes 2.5 times as long"
    return n, f"n: {log.long[n]:.0%} of the rows have as many of their user before them{more}."
