"""An audit of a home's published files: no future row, no label before its time, no test row in training.

It shares nothing with the code that makes these files: it imports none of this package, and takes their form from
docs/reliability.md (*What is audited*). It reads them as they lie there, digests included.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from string import Formatter
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

Array = NDArray[Any]
SPLITS, MANIFEST = ("train", "validation", "test"), "manifest.json"
#: Index of the split of a row of a load that is there for those behind it, and no target.
CONTEXT = len(SPLITS)
#: Rules that have no rows where the files are not there.
SHARDS = "no row of a later split stands in a prompt"
PREDICTIONS = "predictions are of each held-out target, and of no other row"


@dataclass(frozen=True)
class Check:
    """One rule, held against each of some rows."""

    rule: str
    where: str  # folder of the home
    rows: int
    broken: int
    first: int | None  # index of the first row that breaks it


def audit(home: Path, model: Path) -> list[Check]:
    """Every rule about the files of the home that a model's folder says it was made of, and its predictions.

    Shards or predictions that are of another model, or gone, are a rule without rows. Memory: some arrays of a number a
    row of the log.
    """
    trained = _manifest(model)
    paradigm, inputs = trained["report"]["paradigm"], trained["inputs"]
    events, tokens, shards = (home / "data" / name for name in ("events", "tokens", f"shards/{paradigm}"))
    log = _Log.read(events)
    log.seen = log.request if _manifest(tokens)["config"]["split"]["context"] == "shown" else log.known
    checks = [
        _whole(model, "the model"),
        _whole(events, "data/events"),
        _whole(tokens, "data/tokens", events=events),
        _check("the model was trained on these tokens", "data/tokens", np.array([inputs["tokens"] != _digest(tokens)])),
        *_events(log),
        *_tokens(tokens, log),
    ]
    where = f"data/shards/{paradigm}"
    if inputs.get("shards") == _digest(shards):
        checks += [_whole(shards, where, tokens=tokens), *_shards(shards, where, log)]
    else:
        checks.append(Check(SHARDS, where, 0, 0, None))
    predicted, where = home / "reports/evaluation" / paradigm, f"reports/evaluation/{paradigm}"
    if (predicted / MANIFEST).is_file() and _manifest(predicted)["inputs"].get("model") == _digest(model):
        checks += [_whole(predicted, where, events=events, tokens=tokens), *_predictions(predicted, where, log)]
    else:
        checks.append(Check(PREDICTIONS, where, 0, 0, None))
    return checks


@dataclass
class _Log:
    """data/events as arrays of a number a row, in the order of the files and of their rows."""

    table: pa.Table
    split_settings: dict[str, Any]
    has_request_ids: bool
    repeats: bool  # equal rows may be a row each
    load: Array  # 0 in interactions.parquet, n in loads/n/interactions.parquet
    user: Array  # a number for each user of each load
    position: Array
    request: Array
    known: Array
    seen: Array  # rows of the history before this position stand in a row's context
    time: Array | None
    label: Array
    split: Array  # index into SPLITS, or CONTEXT; -1: none of them
    history: Array  # index of the first row of each row's user, by its position

    @classmethod
    def read(cls, folder: Path) -> _Log:
        loads = sorted((folder / "loads").glob("*/interactions.parquet"), key=lambda path: int(path.parent.name))
        tables = [pq.read_table(path) for path in (folder / "interactions.parquet", *loads)]
        table, config = pa.concat_tables(tables), _manifest(folder)["config"]
        load = np.repeat(np.arange(len(tables)), [len(one) for one in tables])
        numbers = {name: table[name].to_numpy().astype(np.int64) for name in ("position", "request", "known", "label")}
        ids = table["user_id"].combine_chunks().dictionary_encode().indices.to_numpy()
        names = table["split"].combine_chunks().dictionary_encode()
        known = (*SPLITS, "context") if loads else SPLITS
        code = np.array([known.index(x) if x in known else -1 for x in names.dictionary.to_pylist()])
        split = code[names.indices.to_numpy()]
        clock = table["timestamp"].null_count == 0
        return cls(
            table=table,
            split_settings=config["split"],
            has_request_ids=(named := config["events"]["columns"]["request_id"] is not None),
            repeats=named or config["events"].get("duplicates") == "keep" or not clock,
            load=load,
            user=ids.astype(np.int64) * len(tables) + load,
            time=table["timestamp"].to_numpy() if clock and len(table) else None,
            split=split,
            seen=numbers["request"],
            history=np.arange(len(table)) - numbers["position"],
            **numbers,
        )

    def __len__(self) -> int:
        return len(self.user)

    @property
    def context(self) -> Array:
        """Whether a row is there for those behind it."""
        return self.split == CONTEXT

    @property
    def target(self) -> Array:
        """Whether a row has enough history to be predicted."""
        return self.request >= self.split_settings["min_history"]


def _check(rule: str, where: str, broken: Array) -> Check:
    wrong = np.flatnonzero(broken)
    return Check(rule, where, len(broken), len(wrong), int(wrong[0]) if len(wrong) else None)


def _events(log: _Log) -> Iterator[Check]:
    where, rows = "data/events", len(log)
    later = np.arange(1, rows)
    same_user = log.user[1:] == log.user[:-1]
    counted = np.where(same_user, log.position[:-1] + 1, 0)
    opens = np.unique(log.user, return_index=True)[1]
    wrong = np.append(log.position[:1] != 0, log.position[1:] != counted)
    wrong |= (log.position == 0) & ~np.isin(np.arange(rows), opens)  # a user that comes again
    yield _check("a user's rows stand together, and positions count them", where, wrong)
    safe = np.clip(log.history, 0, rows - 1)
    first = np.clip(safe + log.request, 0, rows - 1)
    in_one = log.request[1:] == log.request[:-1]
    wrong = (log.request > log.position) | (log.request < 0) | (log.user[first] != log.user)
    wrong |= (log.request[first] != log.request) | (log.known[first] != log.known)
    wrong |= (log.split[first] != log.split) & ~log.context & ~log.context[first]
    if log.time is not None and log.split_settings["ties"] == "together" and not log.has_request_ids:
        wrong[later[same_user & ~in_one & (log.time[1:] == log.time[:-1])]] = True
    yield _check("rows of a request, or of a moment, know the same, and are in one split", where, wrong)
    wrong = (log.known < 0) | (log.known > log.request)
    last = np.clip(safe + log.known - 1, 0, rows - 1)
    if log.time is not None:
        begins = _least_of_request(log)
        newest = _running_most(log.time, log.user)
        age = begins - newest[last]
        young = age < (log.split_settings["feedback_delay"] or 0)
        if log.split_settings["ties"] == "together" and not log.has_request_ids:
            young |= age <= 0
        wrong |= young & (log.known > 0)
        backwards = np.append(False, same_user & ~in_one & (begins[1:] < begins[:-1]))
        yield _check("time does not run backwards from one request of a user to the next", where, backwards)
        if log.split_settings["rule"] == "global_time":
            own = np.where(log.context, -1, log.split)
            start = [begins[own >= held_out].min(initial=np.inf) for held_out in (1, 2)]
            ahead = ((log.split == 0) & (begins >= start[0])) | ((log.split == 1) & (begins >= start[1]))
            yield _check("train ends before validation begins, and validation before test", where, ahead)
    if log.split_settings["feedback_until"] == "test_start":
        wrong |= (log.known > 0) & (log.split[last] == 2)
    yield _check("no label is known before its time", where, wrong)
    judged = _running_most(np.where(log.context, -1, log.split), log.user)  # the latest split of a user so far
    wrong = (log.split < 0) | (~log.context & (judged > log.split))
    yield _check("no training row of a user comes behind a held-out one", where, wrong)
    clicked = log.table["rating"].to_numpy() > log.split_settings["label_threshold"]
    yield _check("a label is 1 where the rating is above the threshold, else 0", where, log.label != clicked)
    for name in sorted({"item_rate", "user_rate"}.intersection(log.table.column_names)):
        wrong = log.table[name].to_numpy() != _rate(log, name).astype(str)
        yield _check(f"{name} counts labels that were known, and all of them", where, wrong)
    if log.load.any():
        rule = "rows for context are rows of an earlier load, and no row is a load's own twice"
        yield _check(rule, where, _twice(log))


def _rate(log: _Log, name: str) -> Array:
    """What a rate should be, 0 to 9."""
    known, clicks, share = np.zeros(len(log), np.int64), np.zeros(len(log), np.int64), np.full(len(log), 0.5)
    if name == "user_rate":
        known, liked = log.known, np.append(0, np.cumsum(log.label))
        clicks = liked[log.history + known] - liked[log.history]
    if log.time is not None:
        # What happens in one moment, to the microsecond, is not known to it.
        latest = _least_of_request(log) - max(log.split_settings["feedback_delay"] or 0, 5e-7)
        times = np.unique(np.append(log.time, latest))
        told, asked = np.searchsorted(times, log.time), np.searchsorted(times, latest)
        told_ever = ~log.context & ~((log.split == 2) & (log.split_settings["feedback_until"] == "test_start"))
        item = log.table["item_id"].combine_chunks().dictionary_encode().indices.to_numpy().astype(np.int64)
        for load in np.unique(log.load):  # each was made with the rows that were there
            here, tells = log.load == load, told_ever & (log.load <= load)
            seen, liked = _told(told[tells], log.label[tells], asked[here])
            share[here] = np.where(seen > 0, liked / np.maximum(seen, 1), 0.5)
            if name == "item_rate":
                times_of = item * (len(times) + 1)  # of one item behind those of another
                span = np.stack([times_of - 1, times_of + asked])[:, here]  # all before it, and all until it was asked
                counts = _told((times_of + told)[tells], log.label[tells], span)
                known[here], clicks[here] = (until - before for before, until in counts)
    return np.minimum(9, np.floor(10 * (clicks + 5 * share) / (known + 5) + 1e-9)).astype(np.int64)


def _told(when: Array, label: Array, until: Array) -> tuple[Array, Array]:
    """How many labels come by each moment of ``until``, and how many of them are clicks."""
    order = np.argsort(when, kind="stable")
    seen = np.searchsorted(when[order], until, side="right")
    return seen, np.append(0, np.cumsum(label[order]))[seen]


def _twice(log: _Log) -> Array:
    """Rows for context that no earlier load has as its own, and rows of a load that an earlier one has, where equal
    rows are one."""
    names = ("user_id", "item_id", "timestamp", "rating")
    words = [log.table[name].combine_chunks().dictionary_encode().indices.to_numpy() for name in names]
    row = np.unique(np.stack(words), axis=1, return_inverse=True)[1].reshape(-1)
    first = np.full(int(row.max(initial=-1)) + 1, len(log))
    np.minimum.at(first, row[~log.context], log.load[~log.context])
    return np.where(log.context, first[row] >= log.load, (first[row] < log.load) & (not log.repeats))


def _least_of_request(log: _Log) -> Array:
    """The earliest time of each row's request."""
    assert log.time is not None
    opens = np.append(True, (log.user[1:] != log.user[:-1]) | (log.request[1:] != log.request[:-1]))
    return np.minimum.reduceat(log.time, np.flatnonzero(opens))[np.cumsum(opens) - 1]


def _running_most(values: Array, user: Array) -> Array:
    """The largest value of each row's user so far."""
    found = values.copy()
    for begin, end in _spans(user):
        np.maximum.accumulate(values[begin:end], out=found[begin:end])
    return found


def _spans(user: Array) -> Iterator[tuple[int, int]]:
    bounds = [0, *(np.flatnonzero(user[1:] != user[:-1]) + 1).tolist(), len(user)]
    return pairwise(bounds)


def _tokens(folder: Path, log: _Log) -> Iterator[Check]:
    where, columns = "data/tokens", _arrow(folder / "interactions.arrow")
    if len(columns["label"]) != len(log):
        yield Check("there is a row for each interaction", where, len(log), abs(len(log) - len(columns["label"])), 0)
        return
    wrong = np.zeros(len(log), bool)
    for name in ("label", "split", "position", "request", "known"):
        wrong |= columns[name] != getattr(log, name)
    yield _check("label, split, place and what is known are those of the interaction", where, wrong)
    settings = _manifest(folder)["config"]["tokens"]
    named = {name for _, name, _, _ in Formatter().parse(settings["template"]) if name}
    if "gap" not in named:
        words = [log.table[name].combine_chunks().dictionary_encode().indices.to_numpy() for name in sorted(named)]
        text = _same_text(folder)[columns["text"]] if log.load.any() else columns["text"]
        order = np.lexsort((text, *words))
        same = np.logical_and.reduce([word[order][1:] == word[order][:-1] for word in words])
        wrong = np.zeros(len(log), bool)
        wrong[order[1:][same & (text[order][1:] != text[order][:-1])]] = True
        yield _check("rows with the same words have the same text, whatever their label", where, wrong)


def _same_text(folder: Path) -> Array:
    """Of each text of a token store the first that has the same tokens: each load has its own."""
    tokens, offsets = _arrow(folder / "texts.arrow")["token"], _arrow(folder / "offsets.arrow")["offset"]
    first: dict[bytes, int] = {}
    return np.array(
        [first.setdefault(tokens[begin:end].tobytes(), i) for i, (begin, end) in enumerate(pairwise(offsets))]
    )


def _shards(folder: Path, where: str, log: _Log) -> Iterator[Check]:
    manifest = _manifest(folder)
    n = manifest["config"]["packing"]["context"]
    for plan in ("train", "validation", "validation_streaming", "test", "test_streaming"):
        columns, split = _arrow(folder / f"{plan}.arrow"), SPLITS.index(plan.removesuffix("_streaming"))
        start, first, stop = (columns[name].astype(np.int64) for name in ("start", "first_target", "stop"))
        ordered = (start >= 0) & (start <= first) & (first < stop) & (stop <= len(log))
        if not ordered.all():
            yield _check("a prompt is context rows and then targets", where, ~ordered)
            continue
        later = np.append(0, np.cumsum((log.split > split) & ~log.context))
        yield _check(SHARDS, where, later[stop] > later[start])
        right = np.append(0, np.cumsum((log.split == split) & log.target))
        yield _check("targets are of the plan's split, with enough history", where,
                     right[stop] - right[first] != stop - first)  # fmt: skip
        begins = log.history[first] + np.maximum(0, log.seen[first] - n)
        yield _check("a prompt is of one user, and begins n rows before what its first target sees", where,
                     (log.user[start] != log.user[stop - 1]) | (start != begins))  # fmt: skip
        times = np.cumsum(np.bincount(first, minlength=len(log) + 1) - np.bincount(stop, minlength=len(log) + 1))[:-1]
        missing = ((log.split == split) & log.target & (times == 0)).sum()
        dropped = manifest["report"]["plans"][plan]["dropped"]
        twice = np.flatnonzero(times > 1)
        broken = len(twice) + int(abs(missing - dropped))
        first_of = int(twice[0]) if len(twice) else None
        yield Check("each target is in one prompt", where, int((log.split == split).sum()), broken, first_of)
        if plan in ("validation", "test"):
            apart = log.seen[first] != log.seen[stop - 1]
            yield _check("targets of a prompt that is served see the same rows", where, apart)


def _predictions(folder: Path, where: str, log: _Log) -> Iterator[Check]:
    found = pq.read_table(folder / "predictions.parquet")
    split = SPLITS.index(_manifest(folder)["config"]["evaluation"]["split"])
    row, wanted = found["row"].to_numpy(), np.flatnonzero((log.split == split) & log.target)
    wrong = np.setxor1d(row, wanted)
    yield Check(PREDICTIONS, where, len(wanted),
                len(wrong) + len(row) - len(np.unique(row)), int(wrong[0]) if len(wrong) else None)  # fmt: skip
    if len(wrong):
        return
    beside = np.zeros(len(row), bool)
    for name in ("user_id", "item_id", "position", "label"):
        beside |= pc.not_equal(found[name], log.table[name].take(row)).to_numpy()
    for name in ("probability", "probability_streaming"):
        value = found[name].to_numpy()
        beside |= ~((value >= 0) & (value <= 1))
    yield _check("user, item, place and label are the interaction's, and scores are probabilities", where, beside)


def _whole(folder: Path, where: str, **made_of: Path) -> Check:
    """A folder's files against its manifest, and the folders that it was made of against what it says of them."""
    manifest = _manifest(folder)
    files = sorted(manifest["files"].items())
    wrong = [not (folder / name).is_file() or _md5(folder / name) != md5 for name, md5 in files]
    wrong += [_digest(path) != manifest["inputs"][name] for name, path in made_of.items()]
    return _check("files and inputs are those of the manifest, by their digests", where, np.array(wrong, bool))


def _md5(path: Path) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "md5").hexdigest()


def _digest(folder: Path) -> str:
    """Of a folder: of the list of its files, each with its own; empty where there is none."""
    if not folder.is_dir():
        return ""
    files = sorted((path.relative_to(folder).as_posix(), path) for path in folder.rglob("*") if path.is_file())
    rows = [{"md5": _md5(path), "relpath": name} for name, path in files]
    return hashlib.md5(json.dumps(rows, sort_keys=True).encode()).hexdigest()


def _manifest(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    return content


def _arrow(path: Path) -> dict[str, Array]:
    table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
    return {name: table[name].to_numpy() for name in table.column_names}
