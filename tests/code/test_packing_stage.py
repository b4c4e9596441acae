"""The pack stage: what its manifest says is what its plans hold, and no target is lost."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dti_pipeline import artifacts
from dti_pipeline.config import Config, from_plain
from dti_pipeline.errors import InputError
from dti_pipeline.events.published import SPLITS
from dti_pipeline.packing.layout import Kind
from dti_pipeline.packing.pack import PLANS, pack
from dti_pipeline.packing.reader import Rows
from dti_pipeline.packing.report import PackReport
from dti_pipeline.packing.store import TokenStore
from dti_pipeline.paradigms import names
from dti_pipeline.paths import Paths
from tests.code.token_stores import random_users, write_store


def config(min_history: int = 2, **packing: Any) -> Config:
    packing = {"context": 3, "targets": 5, "row_length": 128, **packing}
    return from_plain(Config, {"packing": packing, "split": {"min_history": min_history}})


def plan_of(paths: Paths, plan: str, paradigm: str = "dti") -> Rows:
    return Rows.open(TokenStore.open(paths.tokens), paths.shards(paradigm), plan)


def target_rows(rows: Rows) -> list[int]:
    return [row for a, b in zip(rows.first_target, rows.stop, strict=True) for row in range(a, b)]


@given(
    users=st.integers(1, 12),
    seed=st.integers(0, 1000),
    min_history=st.integers(0, 4),
    packing=st.fixed_dictionaries(
        {
            "context": st.integers(0, 8),
            "targets": st.one_of(st.integers(1, 9), st.just("all")),
            "row_length": st.sampled_from([96, 128, 256]),
        }
    ),
    prefix=st.sampled_from([(), (7, 8, 9)]),
)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_manifest_counts_what_the_plans_hold(
    tmp_path_factory: pytest.TempPathFactory, users: int, seed: int, min_history: int, packing: dict[str, Any],
    prefix: tuple[int, ...],
) -> None:  # fmt: skip
    paths = Paths(tmp_path_factory.mktemp("home"))
    histories = random_users(users, seed, shortest=min_history + 5)
    write_store(paths, histories, prefix)
    report = pack(config(min_history, **packing), paths, "dti")
    assert artifacts.read(paths.shards("dti"), "pack", PackReport).report == report
    store = TokenStore.open(paths.tokens)
    for plan in PLANS:
        said = report.plans[plan]
        rows = plan_of(paths, plan)
        layout = rows.assemble(np.arange(len(rows)))
        split = SPLITS.index(plan.removesuffix("_streaming"))
        expected = np.flatnonzero((store.split == split) & (store.position >= min_history)).tolist()
        assert sorted(target_rows(rows)) == expected, "every target of the log, once"
        assert sorted(layout.target[layout.target >= 0].tolist()) == expected
        filled = int((layout.kind != Kind.PAD).sum())
        k = 1 if plan in ("validation", "test") else packing["targets"]
        assert said.targets == said.targets_in_log == len(expected) == int(rows.targets().sum())
        assert said.dropped == 0
        assert said.dropped_reason is None
        assert said.rows == len(rows)
        assert said.prompts == len(rows.start)
        assert said.tokens == filled
        assert said.tokens_per_target == pytest.approx(filled / max(len(expected), 1), abs=1e-4)
        assert said.padding_share == pytest.approx(1 - filled / max(layout.kind.size, 1), abs=1e-6)
        assert said.targets_per_prompt == k
        # A prompt that ends with fewer than k targets though its user's next row is a target was cut by its row.
        position, flags = store.position, set(expected)
        cut = sum(
            (k == "all" or b - a < k) and b in flags and position[b] > 0
            for a, b in zip(rows.first_target.tolist(), rows.stop.tolist(), strict=True)
        )
        assert said.prompts_cut_by_row == cut


@pytest.mark.parametrize("paradigm", names())
def test_packing_again_gives_the_same_bytes_and_another_seed_other_rows(home: Paths, paradigm: str) -> None:
    write_store(home, random_users(20, 0))

    def packed(seed: int) -> dict[str, str]:
        pack(config(seed=seed), home, paradigm)
        return artifacts.read(home.shards(paradigm), "pack").files

    first = packed(7)
    assert packed(7) == first
    assert packed(8)["train.arrow"] != first["train.arrow"]


def test_streaming_paradigms_share_their_plans(home: Paths) -> None:
    """They differ by mask alone, so that a comparison compares masks."""
    write_store(home, random_users(20, 0))
    files = {}
    for paradigm in names():
        pack(config(), home, paradigm)
        files[paradigm] = artifacts.read(home.shards(paradigm), "pack").files
    assert files["dti"] == files["dti_growing"] == files["dti_isolated"]
    assert {name for name in files["dti"] if files["dti"][name] != files["sliding_window"][name]} == {"train.arrow"}


def test_a_budget_of_targets_keeps_whole_users_and_counts_the_rest(home: Paths) -> None:
    histories = random_users(30, 1)
    write_store(home, histories)
    everything = pack(config(), home, "dti")
    most = everything.targets // 3
    report = pack(config(max_targets=most), home, "dti")
    assert 0 < report.targets <= most
    assert report.targets + report.dropped == report.targets_in_log == everything.targets
    assert report.dropped_reason == f"packing.max_targets = {most}"
    user = np.cumsum(TokenStore.open(home.tokens).position == 0) - 1
    kept = user[target_rows(plan_of(home, "train"))]
    in_log = [sum(split == "train" and i >= 2 for i, (_, split) in enumerate(history)) for history in histories]
    assert all((kept == u).sum() == in_log[u] for u in set(kept.tolist()))
    assert report.plans["test"] == everything.plans["test"], "what is judged is never thinned out"
    baseline = pack(config(max_targets=most), home, "sliding_window")
    assert sorted(target_rows(plan_of(home, "train", "sliding_window"))) == sorted(target_rows(plan_of(home, "train")))
    assert baseline.targets == report.targets


def test_n_larger_than_any_history_is_the_whole_history(home: Paths) -> None:
    write_store(home, random_users(6, 2, longest=12))
    report = pack(config(context=1000, row_length=256), home, "dti")
    rows = plan_of(home, "train")
    store = TokenStore.open(home.tokens)
    assert report.targets == report.targets_in_log
    assert (store.position[rows.start] == 0).all()


@pytest.mark.parametrize(
    ("packing", "sentence"),
    [
        (
            {"context": 30, "row_length": 64},
            r"`packing\.row_length` is 64, but the longest prompt of packing\.context = 30",
        ),
        ({"max_targets": 1}, r"`packing\.max_targets` is 1: too few for even one user's targets"),
    ],
)
def test_parameters_that_leave_nothing_to_train_are_one_sentence(
    home: Paths, packing: dict[str, Any], sentence: str
) -> None:
    write_store(home, random_users(5, 3, shortest=20))
    with pytest.raises(InputError, match=sentence):
        pack(config(**packing), home, "dti")
    assert not home.shards("dti").exists(), "nothing half-made is left"


def test_histories_too_short_for_any_target_are_one_sentence(home: Paths) -> None:
    write_store(home, random_users(5, 3, longest=6))
    with pytest.raises(InputError, match=r"none has split\.min_history = 50 rows before its request"):
        pack(config(min_history=50), home, "dti")


@pytest.mark.parametrize(
    ("raw", "sentence"),
    [
        ({"packing": {"context": -1}}, r"`packing\.context` must be 0 or more, not -1"),
        ({"packing": {"context": 2.5}}, r"`packing\.context` must be a whole number, not 2\.5"),
        ({"packing": {"targets": 0}}, r"`packing\.targets` must be a whole number from 1 or 'all', not 0"),
        ({"packing": {"targets": "many"}}, r"`packing\.targets` must be a whole number from 1 or 'all', not 'many'"),
        ({"packing": {"row_length": 8}}, r"`packing\.row_length` must be a whole number from 16 or 'auto', not 8"),
        ({"packing": {"contxt": 3}}, r"unknown params key `packing\.contxt`: did you mean `context`\?"),
        (
            {"paradigms": ["dti_isolatd"]},
            r"unknown paradigm 'dti_isolatd': use one of .*: did you mean `dti_isolated`\?",
        ),
        ({"model": {"sum_position": "alibi"}}, r"`model\.sum_position` must be one of rope, rope_alibi, nope_alibi"),
        ({"model": {"forgetting": "cubic"}}, r"`model\.forgetting` must be one of none, linear"),
        ({"model": {"forgetting_max": 1.5}}, r"`model\.forgetting_max` must be in \[0, 1\], not 1\.5"),
        ({"model": {"kv_heads": 3}}, r"`model\.kv_heads` must be a divisor of model\.heads \(4\), not 3"),
    ],
)
def test_wrong_parameters_are_named_where_they_are_read(raw: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        from_plain(Config, raw)


def test_packing_before_tokenising_says_what_to_run(home: Paths) -> None:
    with pytest.raises(InputError, match="run `dti tokenize` first"):
        pack(config(), home, "dti")


def test_tokens_of_other_events_are_not_packed(home: Paths) -> None:
    write_store(home, random_users(20, 0))
    manifest = json.loads((home.tokens / "manifest.json").read_text())
    with artifacts.publish(home.events, "ingest") as draft:
        (draft.path / "interactions.parquet").write_bytes(b"first")
    manifest["inputs"]["events"] = artifacts.folder_digest(home.events)
    artifacts.write_json(home.tokens / "manifest.json", artifacts.sealed(manifest))
    pack(config(), home, "dti")
    with artifacts.publish(home.events, "ingest") as draft:
        (draft.path / "interactions.parquet").write_bytes(b"second")
    with pytest.raises(InputError, match=r"is of other events than .*: run `dti tokenize` again"):
        pack(config(), home, "sliding_window")
    assert not home.shards("sliding_window").exists()
