"""Tokens and shards of a log that grows: earlier ones are kept, and prompts are those of one log."""

from __future__ import annotations

import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from dti_pipeline import artifacts
from dti_pipeline.config import Config, ExecutionConfig
from dti_pipeline.events.ingest import ingest
from dti_pipeline.events.published import interactions
from dti_pipeline.packing import pack as packing
from dti_pipeline.packing import plans, tokenize
from dti_pipeline.packing.layout import Kind
from dti_pipeline.packing.reader import Rows
from dti_pipeline.packing.store import TokenStore, read_columns
from dti_pipeline.packing.vocabulary import load_tokenizer
from dti_pipeline.paradigms import names
from dti_pipeline.paths import Paths
from dti_pipeline.validation.validate import validate
from tests import growing_logs as growing

WORDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "gap": {"template": "{gap} {item_text}"},
    "users": {"user_template": "taste {taste}"},
    "columns": {"template": "{item_text} {title}"},
    "rates": {"template": "{item_text} {item_rate}{user_rate}"},
    "prefix": {"prefix": "clicks of a user"},
}


def config(loads_from: str | None = growing.FIRST_LOAD, **tokens: Any) -> Config:
    """By the log's own split, so that loads and one log have the same targets."""
    own = {"item_text": "title", "split": "split", "request_id": "request"}
    return growing.config(
        loads_from,
        events={"columns": own},
        split={"rule": "column", "min_history": 2, "feedback_delay": 7200.0},
        tokens={"vocab_size": 400, **tokens},
        validation={"required": False},
    )


def write(home: Paths, days: range = range(growing.DAYS)) -> None:
    """Two days train, one validates, the others test; a user's taste is a column."""
    folder = home.home / "log"
    folder.mkdir(parents=True, exist_ok=True)
    for day in days:
        split = "train" if day < 3 else "validation" if day == 3 else "test"
        lines = [f"{line},{split},{int(line[1 : line.index(',')]) % 3}" for line in growing.lines(day)]
        (folder / growing.name(day)).write_text("\n".join([f"{growing.HEADER},split,taste", *lines, ""]))


def made(config: Config, home: Paths) -> None:
    ingest(config, home)
    tokenize.tokenize(config, home)
    for paradigm in names():
        packing.pack(config, home, paradigm)


def prompts(home: Paths, paradigm: str, plan: str) -> dict[tuple[Any, ...], str]:
    """Of each target, by what it is, the words that it may see: those of its context, and its own text."""
    tokenizer = load_tokenizer(home.tokens)
    store = TokenStore.open(home.tokens)
    table = [row for path in interactions(home.events) for row in pq.read_table(path).to_pylist()]
    rows = Rows.open(store, home.shards(paradigm), plan)
    layout = rows.assemble(np.arange(len(rows)))
    found = {}
    for row in range(len(layout.token)):
        for slot in np.flatnonzero(layout.target[row] >= 0):
            same = layout.document[row] == layout.document[row, slot]
            own = layout.interaction[row] == layout.interaction[row, slot]
            context = (layout.interaction[row] < layout.seen[row, slot]) & (layout.kind[row] != Kind.PREFIX)
            label = (layout.kind[row] != Kind.LABEL) | (layout.interaction[row] < layout.known[row, slot])
            opening = layout.kind[row] == Kind.PREFIX
            text = own & (layout.kind[row] == Kind.TEXT)
            seen = same & (opening | text | (context & label & (layout.kind[row] != Kind.SUM)))
            target = table[layout.target[row, slot]]
            key = tuple(target[name] for name in ("user_id", "item_id", "timestamp", "rating"))
            assert key not in found
            found[key] = tokenizer.decode(layout.token[row, seen].tolist())
    return found


@pytest.mark.parametrize("tokens", WORDS.values(), ids=WORDS)
def test_a_target_has_the_prompt_that_one_log_gives_it(home: Paths, tmp_path: Path, tokens: dict[str, Any]) -> None:
    write(home)
    made(config(**tokens), home)
    other = growing.afresh(home, tmp_path / "one")
    made(config(None, **tokens), other)
    for plan in ("train", "validation", "test"):
        wanted = prompts(other, "sliding_window", plan)
        assert len(wanted) > 50
        assert prompts(home, "sliding_window", plan) == wanted
    for plan in packing.PLANS:
        assert prompts(home, "dti", plan).keys() == prompts(other, "dti", plan).keys()


@pytest.mark.parametrize("tokens", WORDS.values(), ids=WORDS)
def test_what_was_made_before_is_kept_and_equals_what_is_made_at_once(
    home: Paths, tmp_path: Path, tokens: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    read, packed = Counter[str](), Counter[int]()
    log_read, pack_block = tokenize.Log.read, plans.Plan.pack

    def counted(path: Path, *rest: Any) -> Any:
        read[path.relative_to(home.events).as_posix()] += 1
        return log_read(path, *rest)

    def packs(plan: Any, store: Any, block: Any, kept: Any) -> Any:
        packed[block.number] += 1
        return pack_block(plan, store, block, kept)

    write(home, range(4))
    made(config(**tokens), home)
    monkeypatch.setattr(tokenize.Log, "read", counted)
    monkeypatch.setattr(plans.Plan, "pack", packs)
    before = read_columns(home.shards("dti") / "train.arrow")
    for day in range(4, growing.DAYS):
        write(home, range(day, day + 1))
        made(config(**tokens), home)
    assert read == {f"loads/{load}/interactions.parquet": 1 for load in (1, 2, 3)}
    assert packed == {load: len(packing.PLANS) * len(names()) for load in (1, 2, 3)}
    after = read_columns(home.shards("dti") / "train.arrow")
    assert all((after[name][: len(values)] == values).all() for name, values in before.items())
    monkeypatch.undo()
    other = growing.afresh(home, tmp_path / "at once")
    made(config(**tokens), other)
    for folder in ("data/tokens", *(f"data/shards/{paradigm}" for paradigm in names())):
        assert artifacts.folder_digest(home.home / folder) == artifacts.folder_digest(other.home / folder), folder


def test_a_named_tokenizer_is_that_of_all_loads_and_an_exchanged_one_counts(home: Paths, tmp_path: Path) -> None:
    """Its folder keeps its name; the vocabulary in it does not."""
    for name, size in (("one", 300), ("other", 330)):
        source = Paths(tmp_path / name)
        write(source)
        made(config(None, vocab_size=size), source)
    shutil.copytree(tmp_path / "one/data/tokens/tokenizer", tmp_path / "named")
    named = config(tokenizer=str(tmp_path / "named"))
    write(home, range(4))
    made(named, home)
    write(home, range(4, 6))
    made(named, home)
    assert equal_at_once(named, home, tmp_path / "first")
    shutil.rmtree(tmp_path / "named")
    shutil.copytree(tmp_path / "other/data/tokens/tokenizer", tmp_path / "named")
    write(home, range(6, 7))
    made(named, home)
    assert equal_at_once(named, home, tmp_path / "second")


@pytest.mark.slow
def test_buckets_and_processes_leave_the_bytes_as_they_are(home: Paths, tmp_path: Path) -> None:
    write(home)
    made(config(), home)
    validate(config(), home)
    in_parts = config()
    in_parts = replace(in_parts, events=replace(in_parts.events, buckets=3), execution=ExecutionConfig(workers=2))
    other = Paths(tmp_path / "parts")
    for days in (range(5), range(5, growing.DAYS)):
        write(other, days)
        made(in_parts, other)
        validate(in_parts, other)
    for folder in ("events", "checks", "tokens", *(f"shards/{paradigm}" for paradigm in names())):
        one, parts = (artifacts.folder_digest(paths.home / "data" / folder) for paths in (home, other))
        assert one == parts, folder


def equal_at_once(config: Config, home: Paths, elsewhere: Path) -> bool:
    other = growing.afresh(home, elsewhere)
    made(config, other)
    return artifacts.folder_digest(home.tokens) == artifacts.folder_digest(other.tokens)


def test_a_load_without_new_rows_adds_nothing(home: Paths) -> None:
    write(home, range(5))
    made(config(), home)
    before = growing.files(home.tokens) | growing.files(home.shards("dti"))
    (home.home / "log" / growing.name(5)).write_bytes((home.home / "log" / growing.name(4)).read_bytes())
    made(config(), home)
    after = growing.files(home.tokens) | growing.files(home.shards("dti"))
    names = [name for name in before if name.endswith(".arrow")]
    assert {name: after[name][1] for name in names} == {name: before[name][1] for name in names}


@pytest.mark.parametrize("packed", [{"target_share": 0.5}, {"max_targets": 200}])
def test_limits_of_the_whole_log_are_drawn_anew(home: Paths, tmp_path: Path, packed: dict[str, Any]) -> None:
    def limited() -> Config:
        made = config()
        return growing.config(
            events={"columns": vars(made.events.columns)}, split=vars(made.split), validation={"required": False},
            packing=packed,
        )  # fmt: skip

    for days in (range(4), range(4, growing.DAYS)):
        write(home, days)
        made(limited(), home)
    other = growing.afresh(home, tmp_path / "at once")
    made(limited(), other)
    assert artifacts.folder_digest(home.shards("dti")) == artifacts.folder_digest(other.shards("dti"))


@pytest.mark.parametrize("changed", [{"max_text_tokens": 2}, {"template": "the {item_text}"}])
def test_words_that_change_are_made_again(home: Paths, tmp_path: Path, changed: dict[str, Any]) -> None:
    write(home)
    made(config(), home)
    made(config(**changed), home)
    other = growing.afresh(home, tmp_path / "other")
    made(config(**changed), other)
    assert artifacts.folder_digest(home.tokens) == artifacts.folder_digest(other.tokens)
    assert artifacts.folder_digest(home.shards("dti")) == artifacts.folder_digest(other.shards("dti"))
