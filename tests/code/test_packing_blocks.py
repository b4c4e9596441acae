"""A log that is packed and tokenised a block at a time gives what one block gives."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dti_pipeline import config
from dti_pipeline.events import spans
from dti_pipeline.events.published import SPLITS
from dti_pipeline.packing import log_columns, pack, plans, tokenize
from dti_pipeline.packing.store import TokenStore, read_columns
from dti_pipeline.packing.vocabulary import load_tokenizer
from dti_pipeline.paths import Paths
from tests.code.token_stores import publish_events

USERS = 30
SETTINGS = config.from_plain(
    config.Config,
    {
        "validation": {"required": False},
        "tokens": {"vocab_size": 300},
        "packing": {"context": 4, "targets": 6, "row_length": 128},
        "split": {"min_history": 2},
    },
)


@pytest.fixture
def events(home: Paths) -> Paths:
    """Events of 30 users whose items, splits and titles change along the file."""
    draw = np.random.default_rng(5)
    lengths = draw.integers(1, 40, USERS)
    position = np.concatenate([np.arange(n) for n in lengths])
    item = draw.integers(0, 50, len(position))
    split = np.concatenate([np.sort(draw.integers(0, 3, n)) for n in lengths])
    table = pa.table(
        {
            "item_id": [str(i) for i in item],
            "item_text": [
                f"title {i}" if i % 7 else f"title {i} of {p % 2}" for i, p in zip(item, position, strict=True)
            ],
            "label": draw.integers(0, 2, len(position)).astype(np.int8),
            "split": [SPLITS[s] for s in split],
            **dict.fromkeys(("position", "request", "known"), position.astype(np.int32)),
        }
    )
    publish_events(home, table, row_group_size=64)
    return home


def test_tokens_are_the_same_whatever_the_block(events: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenize.tokenize(SETTINGS, events)
    whole = {path.name: path.read_bytes() for path in events.tokens.glob("*.*")}
    monkeypatch.setattr(spans, "BATCH", 17)
    monkeypatch.setattr(log_columns, "ROWS", 100)
    tokenize.tokenize(SETTINGS, events)
    assert {path.name: path.read_bytes() for path in events.tokens.glob("*.*")} == whole
    log = pq.read_table(events.events / "interactions.parquet")
    store = TokenStore.open(events.tokens)
    assert [SPLITS[s] for s in store.split] == log["split"].to_pylist()
    assert store.label.tolist() == log["label"].to_pylist()
    tokenizer = load_tokenizer(events.tokens)
    texts = [
        tokenizer.decode(store.tokens[a:b]).strip() for a, b in zip(store.offsets, store.offsets[1:], strict=False)
    ]
    assert [texts[i] for i in store.text] == log["item_text"].to_pylist()


def test_processes_make_what_one_process_makes(events: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plans, "BLOCK", 200)

    def made(settings: config.Config) -> dict[str, bytes]:
        tokenize.tokenize(settings, events)
        pack.pack(settings, events, "dti")
        folders = (events.tokens, events.shards("dti"))
        return {str(path): path.read_bytes() for folder in folders for path in folder.rglob("*") if path.is_file()}

    one = made(SETTINGS)
    monkeypatch.setattr(log_columns, "ROWS", 100)
    assert made(replace(SETTINGS, execution=config.ExecutionConfig(workers=2))) == one
    left = [path.name for folder in (events.tokens.parent, events.shards("dti").parent) for path in folder.glob(".*")]
    assert not left


def test_the_catalogue_names_every_item_once(events: Paths) -> None:
    tokenize.tokenize(SETTINGS, events)
    items = pq.read_table(events.tokens / "items.parquet").to_pydict()
    log = pq.read_table(events.events / "interactions.parquet")
    assert items["item_id"] == sorted(set(log["item_id"].to_pylist()))
    assert set(zip(items["item_id"], items["item_text"], strict=True)) <= set(
        zip(log["item_id"].to_pylist(), log["item_text"].to_pylist(), strict=True)
    )


@pytest.mark.parametrize("block", [1, 50, 1 << 20])
def test_every_target_is_in_one_prompt_whatever_the_block(
    events: Paths, monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    tokenize.tokenize(SETTINGS, events)
    monkeypatch.setattr(plans, "BLOCK", block)
    store = TokenStore.open(events.tokens)
    history = np.arange(len(store.position)) - store.position
    report = pack.pack(SETTINGS, events, "dti")
    for plan, facts in report.plans.items():
        columns = read_columns(Path(events.shards("dti") / f"{plan}.arrow"))
        targets = np.concatenate(
            [np.arange(a, b) for a, b in zip(columns["first_target"], columns["stop"], strict=True)]
        )
        wanted = (store.split == SPLITS.index(plan.removesuffix("_streaming"))) & (store.position >= 2)
        assert sorted(targets) == np.flatnonzero(wanted).tolist()
        assert (history[columns["start"]] == history[columns["stop"] - 1]).all()
        assert (
            columns["first_target"] - columns["start"] == np.minimum(4, store.position[columns["first_target"]])
        ).all()
        assert np.unique(columns["row"]).tolist() == list(range(facts.rows))
        assert (np.diff(columns["row"]) >= 0).all()


def test_prompts_that_a_full_row_ended_are_counted(events: Paths) -> None:
    tokenize.tokenize(SETTINGS, events)
    narrow = config.from_plain(
        config.Config, config.to_plain(SETTINGS) | {"packing": {"context": 1, "targets": 30, "row_length": 40}}
    )
    facts = pack.pack(narrow, events, "dti").plans["train"]
    columns = read_columns(events.shards("dti") / "train.arrow")
    first = set(columns["first_target"].tolist())
    short = columns["stop"] - columns["first_target"] < 30
    assert facts.prompts_cut_by_row == sum(stop in first for stop in columns["stop"][short].tolist()) > 0
