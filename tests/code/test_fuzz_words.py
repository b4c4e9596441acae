"""Whatever stands in params.yaml, on the command line, in a request or in a manifest: read, or refused in one sentence;
and whatever the histories, the packer loses no target."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import strategies as st

from dti_pipeline import artifacts
from dti_pipeline.config import Config, from_plain, load, to_plain
from dti_pipeline.events.published import SPLITS
from dti_pipeline.packing.pack import PLANS
from dti_pipeline.packing.plans import plan_rows
from dti_pipeline.packing.prompts import Prompts
from dti_pipeline.packing.store import TokenStore
from dti_pipeline.paradigms import named, names
from dti_pipeline.serving import requests
from tests.fuzz import NUMBER, PLAIN, TEXT, WORDS, as_json, counts, damaged, each, refused

ROOT = Path(__file__).resolve().parents[2]
PARAMS = (ROOT / "params.yaml").read_bytes()
KNOWN = to_plain(Config())
#: YAML that grows, nests, or is no value of its type.
LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join(['*' + before] * 9)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
FOUND = [
    LAUGHS, LAUGHS + "training: *i\n", "synth: {users: *a}\n", "[" * 5000, "training: " + "{a: " * 3000, "- &a [*a]",
    "a: &a {b: *a}", "training: &a {seed: *a}", "2020-13-45", "training: {seed: 2020-13-45}", "seed: !!int x",
    "seed: !!python/object/apply:os.system [id]", "? [a]\n: b", "<<: 5", "training: {<<: 5}", "1: 2", "null: null",
    f"training: {{seed: {'9' * 5000}}}", "training: {seed: 1_000}", "training: {epochs: .nan}",
    "training: {seed: !!timestamp x}", "a: !!bool x", "a: !!int ''", "training: {seed: !!binary x}",
    "paradigms: dti", "paradigms: []", "paradigms: [[dti]]", "events: {columns: {user_id: }}", "%YAML 9.9\n---\n",
    "a\0b", "\tseed: 1", "training: {seed: 0x" + "f" * 5000 + "}", "training: {seed: !!set {a}}",
]  # fmt: skip
KEYS = [f"{section}.{key}" for section, keys in KNOWN.items() if isinstance(keys, dict) for key in keys]


@st.composite
def params(draw: st.DrawFn) -> str:
    """params.yaml of some keys, most of them known, with values of any kind."""
    content: dict[str, Any] = {}
    for key in draw(st.lists(st.sampled_from(KEYS), max_size=4)):
        section, _, name = key.partition(".")
        content.setdefault(section, {})[name] = draw(PLAIN | st.sampled_from(WORDS))
    content |= draw(st.dictionaries(st.sampled_from(list(KNOWN)) | TEXT, PLAIN, max_size=1))
    return as_json(content).decode("utf-8", "surrogatepass")


@counts(30, 6000)
def test_params(tmp_path: Path, examples: int) -> None:
    def check(content: bytes | str) -> None:
        (tmp_path / "params.yaml").write_bytes(
            content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass")
        )
        found = refused(lambda: load(tmp_path / "params.yaml"))
        if found is not None:
            assert from_plain(Config, to_plain(found)) == found

    yaml = st.lists(st.sampled_from([*WORDS, *"-:{}[],&*!|>%@#\n", " ", "\n  ", "training", ": "])).map("".join)
    each(params() | damaged(PARAMS) | yaml, examples, check, FOUND)


@counts(40, 3000)
def test_overrides(tmp_path: Path, examples: int) -> None:
    found = [
        "",
        "=",
        "a=",
        "training=1",
        "training.seed",
        "training.seed.x=1",
        "paradigms=[dti",
        "training.seed=[" * 500,
    ]
    drawn = st.builds(
        "{}{}{}".format, st.sampled_from(KEYS) | TEXT, st.sampled_from(["=", "", "=="]), TEXT | PLAIN.map(repr)
    )
    each(drawn, examples, lambda text: void(refused(lambda: load(tmp_path / "none.yaml", [text]))), found)


ITEM = st.dictionaries(
    st.sampled_from(["item_id", "item_text", "label", "timestamp", "request_id", "genres"]) | TEXT, PLAIN, max_size=4
)
GOOD_ITEM = st.builds(
    lambda item, label: {"item_id": str(item), "label": label}, st.integers(0, 60), st.sampled_from([0, 1, None])
)
SHOWN_ITEM = st.builds(
    lambda item, time, request: item | {"timestamp": time, "request_id": request},
    GOOD_ITEM, st.integers(0, 3), st.integers(0, 2),
)  # fmt: skip
REQUEST = st.fixed_dictionaries(
    {
        "history": st.lists(SHOWN_ITEM, max_size=4) | st.lists(ITEM | GOOD_ITEM, max_size=4) | PLAIN,
        "candidates": st.lists(ITEM | GOOD_ITEM, max_size=3) | PLAIN,
    },
    optional={"user_id": PLAIN, "timestamp": NUMBER | PLAIN, "request_id": PLAIN, "user": PLAIN, "more": PLAIN},
)
GOOD_REQUEST = json.dumps(
    {
        "user_id": "7",
        "timestamp": 9,
        "request_id": "r2",
        "history": [{"item_id": "1", "label": 1, "timestamp": 5, "request_id": "r1"}],
        "candidates": [{"item_text": "é"}],
    }
).encode()
LINE = REQUEST.map(as_json) | PLAIN.map(as_json) | damaged(GOOD_REQUEST)
BAD_LINES = [
    b"[" * 100_000, b'{"history": ' + b"[" * 5000 + b"}", b"9" * 5000, b'{"user_id": 1e999}', b"\xff",
    b"\xef\xbb\xbf{}",
    b'{"history": [], "candidates": [], "user": {"\\ud83d": 1}}', b'{"\\ud83d": 1}', b'{"a\\nb": 1}',
    b'{"history": [], "candidates": [{"item_id": "1", "a\\nb\\u2028": "\\ud83d"}]}',
]  # fmt: skip


@counts(60, 10_000)
def test_requests_of_a_line(examples: int) -> None:
    each(LINE, examples, lambda line: void(refused(lambda: requests.parse_line(line, "line 1"))), BAD_LINES)


@counts(20, 1500)
def test_requests_of_a_table(tmp_path: Path, examples: int) -> None:
    """CSV and Parquet."""

    def check(content: bytes) -> None:
        for name in ("r.csv", "r.parquet"):
            (tmp_path / name).write_bytes(content)
            refused(lambda name=name: list(requests.read(tmp_path / name)))  # type: ignore[misc]

    csv = b'history,candidates,user_id\n"[]","[{""item_id"": 1}]",7\n'
    table = io.BytesIO()
    item = [{"item_id": "1", "label": 1}]
    pq.write_table(pa.table({"history": [item] * 3, "candidates": [item] * 3, "user_id": ["a"] * 3}), table)
    each(damaged(csv) | damaged(table.getvalue()), examples, check)


@counts(30, 2000)
def test_a_manifest(tmp_path: Path, examples: int) -> None:
    """Whatever takes the place of one, it is never read for another."""
    with artifacts.publish(tmp_path / "out", "pack") as draft:
        (draft.path / "a").write_text("a")
        draft.report = {"a": 1}
    good = (tmp_path / "out" / artifacts.MANIFEST).read_bytes()

    def check(content: bytes) -> None:
        (tmp_path / "out" / artifacts.MANIFEST).write_bytes(content)
        found = refused(lambda: artifacts.read(tmp_path / "out", "pack"))
        assert found is None or json.loads(content) == json.loads(good)

    each(damaged(good) | PLAIN.map(as_json), examples, check)


USER = st.lists(
    st.tuples(st.integers(1, 9), st.booleans(), st.integers(0, 9), st.integers(0, 2)), min_size=1, max_size=25
)
PACKING = st.fixed_dictionaries(
    {
        "context": st.integers(0, 6), "targets": st.integers(1, 7) | st.just("all"), "row_length": st.integers(16, 200),
        "seed": st.integers(0, 9),
    },
    optional={"max_targets": st.integers(1, 30), "target_share": st.floats(0.1, 1)},
)  # fmt: skip


def store_of(users: list[list[tuple[int, bool, int, int]]], context: str) -> TokenStore:
    """A store whose rows have (tokens of the text, begins a request, labels known less than all, split)."""
    position, request, known = ([], [], [])  # type: tuple[list[int], list[int], list[int]]
    for user in users:
        for index, (_, begins, hidden, _) in enumerate(user):
            position.append(index)
            request.append(index if begins or not index else request[-1])
            before = known[-1] if index else 0
            known.append(min(request[-1], max(before, request[-1] - hidden)))
            if index and request[-1] == request[-2]:
                known[-1] = known[-2]
    lengths = [length for user in users for length, *_ in user]
    rows = len(lengths)
    splits = [split for user in users for split in sorted(split for *_, split in user)]
    return TokenStore(
        tokens=np.full(sum(lengths), 4, np.int32), offsets=np.cumsum([0, *lengths]),
        text=np.arange(rows, dtype=np.int32),
        label=np.zeros(rows, np.int8), split=np.array(splits, np.int8), position=np.array(position, np.int32),
        request=np.array(request, np.int32), known=np.array(known, np.int32), prefix=np.zeros(0, np.int32),
        special={"pad": 0, "sum": 1, "yes": 2, "no": 3}, context=context,  # type: ignore[arg-type]
    )  # fmt: skip


@counts(25, 4000)
def test_the_packer_loses_no_target_and_fills_no_row_beyond_its_end(examples: int) -> None:
    def check(drawn: tuple[Any, ...]) -> None:
        users, settings, paradigm, plan, context, least = drawn
        config = from_plain(Config, {"packing": settings, "split": {"min_history": least, "context": context}})
        store = store_of(users, context)
        found = refused(lambda: plan_rows(config, store, named(paradigm), plan))
        if found is None:
            return
        report, cut, row = found
        split = SPLITS.index(plan.removesuffix("_streaming"))
        wanted = {i for i in range(len(store.split)) if store.split[i] == split and store.request[i] >= least}
        placed = [i for a, b in zip(cut.first_target, cut.stop, strict=True) for i in range(a, b)]
        assert len(placed) == len(set(placed)) == report.targets
        assert set(placed) <= wanted
        assert len(wanted) == report.targets_in_log == report.targets + report.dropped
        assert report.dropped == 0 or plan == "train"
        filled = np.zeros(report.rows, int)
        for number, (start, first, stop) in enumerate(zip(cut.start, cut.first_target, cut.stop, strict=True)):
            assert tokens_of(store, cut, number) == cut.length[number]
            user = store.position[start:stop]
            assert (np.diff(user) == 1).all(), "a prompt is of one user"
            assert first - start >= 0
            filled[row[number]] += cut.length[number]
        assert (filled <= config.packing.tokens_a_row).all()
        assert (filled > 0).all()

    plans = st.tuples(
        st.lists(USER, min_size=1, max_size=5), PACKING, st.sampled_from(names()), st.sampled_from(PLANS),
        st.sampled_from(["shown", "known"]), st.integers(0, 4),
    )  # fmt: skip
    each(plans, examples, check)


def tokens_of(store: TokenStore, cut: Prompts, number: int) -> int:
    """Tokens of a prompt, counted row by row: context that some target sees, and targets with a [SUM] each."""
    start, first, stop = (int(column[number]) for column in (cut.start, cut.first_target, cut.stop))
    history = first - store.position[first]
    last = max(history + store.seen[i] for i in range(first, stop))
    context = [i for i in range(start, first) if i < last]
    return sum(int(store.lengths()[i]) for i in context) + sum(int(store.lengths()[i]) + 1 for i in range(first, stop))


def void(_: object) -> None:
    """A check whose judgement is made."""
