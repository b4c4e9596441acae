"""Readers of the known logs: the files with interactions, with titles and with users, and their forms."""

from __future__ import annotations

import difflib
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path

from dti_pipeline.config import EventsConfig, TokensConfig
from dti_pipeline.errors import InputError
from dti_pipeline.events.folders import below, chosen
from dti_pipeline.events.forms import INTERACTION, ITEM, USER, Form, Names, named, separated
from dti_pipeline.events.forms import listed as listed_names
from dti_pipeline.events.lines import encoding_of, head
from dti_pipeline.events.report import OtherFiles
from dti_pipeline.paths import Paths

#: Genre flags of MovieLens 100K's u.item, in the order of its last 19 fields.
GENRES_100K = (
    "unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama", "Fantasy",
    "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western",
)  # fmt: skip
#: Columns of the canonical interactions, before those that the template names.
CANONICAL = (
    "user_id", "item_id", "item_text", "timestamp", "rating", "label", "split", "position", "request", "known"
)  # fmt: skip
TABLES = (*(f"*.{kind}{packed}" for kind in ("csv", "tsv", "jsonl", "ndjson") for packed in ("", ".gz")), "*.parquet")
#: Tables whose own record says which of their files count, and where it lies.
_TABLES_WITH_A_RECORD = {"a Delta": "_delta_log/*.json", "an Iceberg": "metadata/*.metadata.json"}
REVIEWS = ("*.jsonl", "*.jsonl.gz", "*.json", "*.json.gz")  # .json: how the release of 2018 calls its lines


@dataclass(frozen=True)
class File:
    """A file of a log: where it is, what the ledger calls it, how it is written (None: it is empty)."""

    path: Path
    name: str
    form: Form | None


@dataclass(frozen=True)
class Log:
    """All of a log's files, sorted by name, the ends of its rating scale (None: open), and what is read besides."""

    logs: tuple[File, ...]
    items: tuple[File, ...]
    users: tuple[File, ...]
    lowest: float | None
    highest: float | None
    columns: tuple[str, ...] = ()
    others: OtherFiles = field(default_factory=OtherFiles)


_FormOf = Callable[[Path, EventsConfig], Form | None]


@dataclass(frozen=True)
class _Reader:
    """One source's file names, forms and rating scale."""

    logs: tuple[str, ...]  # name patterns of files with interactions
    items: tuple[str, ...]  # and of those with titles, beside them
    log_form: _FormOf
    item_form: _FormOf
    scale: tuple[float | None, float | None] = (None, None)
    users: tuple[str, ...] = ()  # name patterns of files with users, beside the log
    user_form: _FormOf = lambda path, config: None


def locate(config: EventsConfig, paths: Paths, words: TokensConfig | None = None) -> Log:
    """Find a log's files and learn their forms, with the columns that ``words`` name; nothing but their first lines is
    read. Files of users are looked for where words of users are wanted.

    Raises InputError where there is no such path, no file of the kind, no row in any of them, or no such column.
    """
    words = words or TokensConfig()
    columns = words.read_columns
    reader = _READERS[config.source]
    root = paths.resolve(config.path)
    if not root.exists():
        hint = ": run `dti synth` first" if config.source == "synthetic" else ""
        raise InputError(f"params key `events.path` names {root}, which does not exist{hint}")
    if root.suffix == ".zip":
        whole = zipfile.is_zipfile(root)
        state = "a zip archive: unpack it and name the folder" if whole else "not a whole zip archive"
        raise InputError(f"params key `events.path` names {root}, which is {state}")
    for record in _TABLES_WITH_A_RECORD.values():
        for path in root.glob(record):
            refuse_record(path.relative_to(root).as_posix(), str(root))
    folder = root if root.is_dir() else root.parent
    listed = _listed(config.items_path, "items_path", paths)
    listed_users = _listed(config.users_path, "users_path", paths)
    there, others = below(folder, deep=root.is_dir())  # what lies below a single file's folder is not its affair
    titles = chosen(there, reader.items)
    logs = [root]
    if root.is_dir():
        beside = {*titles, listed, listed_users}
        logs = [path for path in chosen(there, reader.logs) if path not in beside]
        others += [_name(path, folder) for path in there if path not in {*logs, *beside}]
    if not logs:
        found = f"; it has {listed_names(sorted(others))}" if others else ""
        raise InputError(f"{root} has no {config.source} log: looked for {' or '.join(reader.logs)}{found}")
    files = tuple(File(path, _name(path, folder), reader.log_form(path, config)) for path in logs)
    clocks = {file.form.clock: file for file in reversed(files) if file.form}  # the first one of each
    if not clocks:
        raise InputError(f"{root} is an empty log: it has no rows")
    if len(clocks) > 1:
        raise InputError(f"{clocks[False].path} has no timestamps and other files of the log do: keep them apart")
    items = tuple(
        File(path, _name(path, folder), reader.item_form(path, config)) for path in ([listed] if listed else titles)
    )
    users: tuple[File, ...] = ()
    if words.user_template is not None:
        people = [listed_users] if listed_users else chosen(there, reader.users)
        users = tuple(File(path, _name(path, folder), reader.user_form(path, config)) for path in people)
        others = [name for name in others if name not in {file.name for file in users}]
    if columns or words.rates:
        _check_columns(words, [file.form for file in (*files, *items, *users) if file.form])
    lowest, highest = reader.scale
    return Log(
        tuple(_with_columns(file, columns) for file in files),
        tuple(_with_columns(file, columns) for file in items),
        tuple(_with_columns(file, columns) for file in users),
        lowest if config.min_rating is None else config.min_rating,
        highest if config.max_rating is None else config.max_rating,
        columns,
        OtherFiles(len(others), tuple(sorted(others)[:20])) if root.is_dir() else OtherFiles(),
    )


def refuse_record(name: str, root: str) -> None:
    """Raise InputError for a file, by its name below the log's folder, which says that this is a table of a kind that
    is not read."""
    for kind, record in _TABLES_WITH_A_RECORD.items():
        if fnmatchcase(name, record):
            raise InputError(
                f"params key `events.path` names {root}, which is {kind} table: export its rows as Parquet, since files"
                " that no longer count lie beside the others"
            )


def beside(config: EventsConfig) -> tuple[str, ...]:
    """Name patterns of files that are read with a log that is one file, where they lie beside it."""
    reader = _READERS[config.source]
    return (*reader.items, *reader.users)


def _listed(path: str | None, name: str, paths: Paths) -> Path | None:
    """A file that a params key names, if it does."""
    listed = paths.resolve(path) if path else None
    if listed and not listed.is_file():
        raise InputError(f"params key `events.{name}` names {listed}, which is not a file")
    return listed


def _with_columns(file: File, names: Sequence[str]) -> File:
    return replace(file, form=file.form.with_columns(names)) if file.form and names else file


def _check_columns(words: TokensConfig, forms: Sequence[Form]) -> None:
    """Raise InputError for a column of a template that no file has, or that the words must not tell."""
    there, names = sorted({column for form in forms for column in form.columns}), words.read_columns
    for name in names:
        key = f"params key `{words.key_of(name)}` names {{{name}}}"
        if name in [form.rating for form in forms] or name.lower() in ("rating", "label"):
            raise InputError(f"{key}, which decides the label that is to be predicted")
        if name.lower() in CANONICAL:
            raise InputError(f"{key}, which is a column of the canonical interactions: rename that of the log")
        if name not in there:
            near = difflib.get_close_matches(name, there, cutoff=0.5)
            hint = f"did you mean {' or '.join(near)}?" if near else f"they have {listed_names(there)}"
            nobody = "neither the log nor its items or users" if words.user_columns else "neither the log nor its items"
            raise InputError(f"{key}, a column that {nobody} have: {hint}")
    for name in words.rates:
        if name in there:
            raise InputError(
                f"params key `tokens.template` names {{{name}}}, which is made of labels, and the log has a column of"
                " that name: rename that of the log"
            )
    if len({name.lower() for name in names}) < len(names):
        keys = dict.fromkeys(f"`{words.key_of(name)}`" for name in names)
        raise InputError(
            f"params key {' and '.join(keys)} names columns that differ in case only: {listed_names(names)}"
        )


def _name(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else path.name


def _rating_lines(path: Path, config: EventsConfig) -> Form | None:
    """``user::item::rating`` with or without ``::timestamp``, or the same with TABs: what most first lines have."""
    lines = head(path, 100)
    if not lines:
        return None
    separator = max("::", "\t", key=lambda mark: sum(mark in line for line in lines))
    widths = [line.count(separator) + 1 for line in lines]
    timed = max(4, 3, key=widths.count) == 4
    return separated(separator, 3 + timed, [1, 2, 3, 4 if timed else 0, 0, 0, 0], clock=timed)


def _title_lines(path: Path, config: EventsConfig) -> Form | None:
    if path.suffix.lower() == ".csv":
        return named(path, {"item_id": ["movieId"], "title": ["title"], "genres": ["genres"]}, ITEM, {})
    encoding = encoding_of(path)
    if path.name.lower() == "u.item":
        flags = range(6, 6 + len(GENRES_100K))
        return separated("|", 24, [1, 2, *flags], encoding=encoding, genres=GENRES_100K)
    return separated("::", 3, [1, 2, 3], encoding=encoding)


def _movielens_log(path: Path, config: EventsConfig) -> Form | None:
    if path.suffix.lower() == ".csv":
        names = {"user_id": ["userId"], "item_id": ["movieId"], "rating": ["rating"], "timestamp": ["timestamp"]}
        return named(path, names, INTERACTION, {})
    return _rating_lines(path, config)


def _table_log(path: Path, config: EventsConfig) -> Form | None:
    columns = {name: getattr(config.columns, name) for name in INTERACTION}
    names = {name: [column] for name, column in columns.items() if column is not None}
    return named(path, names, INTERACTION, {name: f"events.columns.{name}" for name in names})


def _table_items(path: Path, config: EventsConfig) -> Form | None:
    names = {name: [column] for name, column in zip(ITEM, config.item_columns, strict=False)}
    return named(path, names, ITEM, dict.fromkeys(names, "events.item_columns"))


def _table_users(path: Path, config: EventsConfig) -> Form | None:
    return named(path, {"user_id": [config.columns.user_id]}, USER, {"user_id": "events.columns.user_id"})


def _user_lines(separator: str, *columns: str) -> _FormOf:
    """Of users a line, whose fields are these, the id first."""
    return lambda path, config: (
        separated(separator, len(columns), [1], encoding=encoding_of(path), columns=columns) if head(path, 1) else None
    )


def _movielens_users(path: Path, config: EventsConfig) -> Form | None:
    """MovieLens 1M's users.dat, or 100K's u.user."""
    if path.name == "u.user":
        return _user_lines("|", "user_id", "age", "gender", "occupation", "zip_code")(path, config)
    return _user_lines("::", "user_id", "gender", "age", "occupation", "zip_code")(path, config)


def _columns(wanted: Sequence[str], names: Names) -> _FormOf:
    """Of a log whose columns have these names."""
    return lambda path, config: named(path, names, wanted, {})


#: Field names of Amazon's release of 2023, or those of 2018.
_AMAZON_LOG = {
    "user_id": ["user_id", "reviewerID"],
    "item_id": ["parent_asin", "asin"],
    "rating": ["rating", "overall"],
    "timestamp": ["timestamp", "unixReviewTime"],
}
_READERS = {
    "synthetic": _Reader(
        ("ratings*.csv",), ("items.csv",),
        _columns(INTERACTION, {name: [name] for name in INTERACTION[:4]}),
        _columns(ITEM, {"item_id": ["item_id"], "title": ["title"]}), (1, 5),
    ),
    "movielens": _Reader(
        ("ratings*.csv", "ratings*.dat", "u.data"), ("movies.csv", "movies.dat", "u.item"),
        _movielens_log, _title_lines, (0.5, 5), ("users.dat", "u.user"), _movielens_users,
    ),
    "movietweetings": _Reader(
        ("ratings*.dat",), ("movies*.dat",), _rating_lines, _title_lines, (0, 10),
        ("users*.dat",), _user_lines("::", "user_id", "twitter_id"),
    ),
    "amazon": _Reader(
        REVIEWS, tuple(f"meta{pattern}" for pattern in REVIEWS),
        _columns(INTERACTION, _AMAZON_LOG),
        _columns(ITEM, {"item_id": ["parent_asin", "asin"], "title": ["title"]}), (1, 5),
    ),
    "table": _Reader(TABLES, (), _table_log, _table_items, user_form=_table_users),
}  # fmt: skip
