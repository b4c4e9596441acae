"""Benchmarks run, say what they ran on, and docs/benchmark.md holds what they found."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import packing, plan_memory, service
from benchmarks.lib import harness, summaries, timing

pytestmark = pytest.mark.slow  # whole scripts: `make test` runs them

ROOT = Path(__file__).resolve().parents[2]
#: What `make bench` runs; docs/benchmark.md has a table of each.
ON_CPU = (
    "loader", "packing", "data_stages", "evaluation", "serving", "service", "train_step_cpu", "orchestration",
    "float8_quality", "plan_memory", "cluster", "growing",
)  # fmt: skip
#: What needs GPUs; the document has a table of each that has been measured.
ON_GPU = {
    "train_step": "train_step",
    "train_step_float8": "train_step",
    "train_step_profile": "train_step",
    "memory": "memory",
    "whole_training": "whole_training",
    **{f"scaling_{count}": "scaling" for count in (2, 4, 8)},
    "epoch": "epoch",
    "first_step": "first_step",
    "evaluation_gpu": "evaluation",
    "attention": "attention",
    "epoch_home": "epoch",
}
MEASURED = (*ON_CPU, *(name for name in ON_GPU if (harness.RESULTS / f"{name}.json").is_file()))


def bench(
    name: str, results: Path, *options: str, launcher: tuple[str, ...] = (), result: str | None = None
) -> tuple[list[dict], str]:
    """The rows of a benchmark, or of its ``result`` of another name, and its output."""
    done = subprocess.run(
        [sys.executable, *launcher, "-m", f"benchmarks.{name}", "--results", str(results), *options],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((results / f"{result or name}.json").read_text()), done.stdout


def test_make_bench_runs_them() -> None:
    shown = subprocess.run(["make", "-n", "bench"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in ON_CPU:
        assert name in shown


@pytest.mark.parametrize("name", MEASURED)
def test_the_document_holds_the_committed_figures(name: str) -> None:
    rows = json.loads((harness.RESULTS / f"{name}.json").read_text())
    for row in rows:
        assert all(row[fact] for fact in harness.FACTS)
        script = ON_GPU.get(name, name)
        assert {f"benchmarks.{script}", f"benchmarks/{script}.py"} & set(row["command"].split())  # as it was typed then
    measured = [{key: value for key, value in row.items() if key not in harness.FACTS} for row in rows]
    assert harness.table(summaries.summary(name, measured)) in (ROOT / "docs" / "benchmark.md").read_text()


def test_a_result_says_what_it_was_made_by_and_not_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    home = tmp_path / "ml-1m"
    home.mkdir()
    monkeypatch.setattr(sys, "argv", ["x/loader.py", "--home", str(home), "--results", str(tmp_path), "--rows", "7"])
    options = harness.parser("", home=True)
    options.add_argument("--rows")
    harness.publish("loader", [{"a_b": 1234567, "c": 0.25}, {"a_b": 2, "d": None}], options.parse_args())
    first, second = json.loads((tmp_path / "loader_home.json").read_text())
    assert first["command"] == second["command"] == "python -m benchmarks.loader --home ml-1m --rows 7"
    assert (first["a_b"], first["c"]) == (1234567, 0.25)
    said = capsys.readouterr().out
    assert "| a b | c | d |\n| --- | ---: | ---: |\n| 1,234,567 | 0.25 |  |\n| 2 |  |  |" in said
    assert str(tmp_path) not in said


def test_a_call_replaces_the_rows_of_its_own_case_and_no_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measure(trained: str, figures: list[int], commit: str) -> list[tuple]:
        monkeypatch.setattr(sys, "argv", ["x/steps.py", "--results", str(tmp_path), "--commit", commit])
        rows = [{"model": "a", "trained": trained, "figure": figure} for figure in figures]
        harness.publish("steps", rows, harness.parser("").parse_args(), case=("model", "trained"))
        kept = json.loads((tmp_path / "steps.json").read_text())
        return [(row["trained"], row["figure"], row["commit"]) for row in kept]

    (tmp_path / "steps.json").write_text('[{"model": "a", "figure": 0, "commit": "of an older form"}]')
    assert measure("lora", [1, 2], "x") == [("lora", 1, "x"), ("lora", 2, "x")]
    assert measure("all", [3], "y") == [("lora", 1, "x"), ("lora", 2, "x"), ("all", 3, "y")]
    assert measure("lora", [4], "z") == [("all", 3, "y"), ("lora", 4, "z")]


def test_calls_are_timed_in_turn_and_the_first_turn_is_not_kept() -> None:
    order: list[str] = []
    seconds = timing.alternate({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, 2)
    assert order == ["a", "b"] * 3
    assert {name: len(times) for name, times in seconds.items()} == {"a": 2, "b": 2}


def test_a_command_that_fails_ends_the_benchmark_with_its_words(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="no such thing"):
        harness.run([sys.executable, "-c", "raise ValueError('no such thing')"], tmp_path)


def test_peak_memory_is_the_commands_own(tmp_path: Path) -> None:
    mine = np.ones(60_000_000)  # 0.45 GiB that the command has no part in
    small = harness.run([sys.executable, "-c", "pass"], tmp_path)[2]
    large = harness.run([sys.executable, "-c", "x = bytearray(300_000_000)"], tmp_path)[2]
    assert small < 0.2 < large < 0.45
    assert len(mine)


def test_a_generated_log_is_a_log() -> None:
    store = harness.token_store(20, 1000)
    starts = np.flatnonzero(store.position == 0)
    assert len(starts) == 20
    assert (np.diff(store.position)[store.position[1:] > 0] == 1).all()
    assert len(store.tokens) == store.offsets[-1]
    assert store.lengths().min() >= 2


def test_first_fit_is_first_fit() -> None:
    assert packing.first_fit(np.array([6, 5, 4, 5, 10, 1]), 10) == 4  # 6 4 | 5 5 | 10 | 1
    assert packing.padding(np.array([6, 5, 4, 5, 10, 1]), 4, 10) == pytest.approx(1 - 31 / 40)


@pytest.mark.slow
def test_loader_and_packing_measure(tmp_path: Path) -> None:
    rows, said = bench("loader", tmp_path, "--interactions", "20000")
    assert {row["plan"] for row in rows} == {"sliding_window", "dti k=50", "dti k=all"}
    assert all(row["tokens_per_second"] > 0 and row["plan_over_copies"] < 0.05 for row in rows)
    assert "sliding_window" in said
    rows, _ = bench("packing", tmp_path, "--interactions", "20000")
    assert all(row["sample_padding_best_fit"] <= row["sample_padding_first_fit"] for row in rows)


def test_memory_of_a_plan_is_counted(tmp_path: Path) -> None:
    """Arrays of all rows take what the formula says; parts take less than they do, on a plan of one part too."""
    plan_memory.write(tmp_path / "plan.arrow", 200_000, 10)
    for form in ("whole", "parts"):
        row = plan_memory.measure(tmp_path / "plan.arrow", form, 200_000, 10, steps=2)
        assert row["peak_mib"] == pytest.approx(row["formula_mib"], rel=0.05)


def measured_by_mode(rows: list[dict], modes: list[str], paradigm: str) -> None:
    assert [(row["mode"], row["paradigm"], row["candidates"]) for row in rows] == [
        (mode, paradigm, 3) for mode in modes
    ]
    assert all(row["candidates_per_second"] > 0 and 0 < row["p50_ms"] <= row["p99_ms"] for row in rows)
    assert rows[0]["speedup"] == 1


@pytest.mark.slow
def test_a_scorer_of_a_shape_is_measured_in_every_mode(tmp_path: Path) -> None:
    """The script itself compares the answers of the modes."""
    few = ("--requests", "1", "--candidates", "3")
    rows, _ = bench("serving", tmp_path, *few, "--shape", "tiny", "--paradigms", "dti")
    measured_by_mode(rows, ["one_prompt", "one_history", "user_states"], "dti")
    assert rows[2]["state_kib"] > 0


@pytest.mark.slow
@pytest.mark.long
def test_a_trained_scorer_is_measured_in_every_mode(tmp_path: Path) -> None:
    rows, _ = bench("serving", tmp_path, "--requests", "1", "--candidates", "3", "--paradigms", "dti_isolated")
    measured_by_mode(rows, ["one_prompt", "one_history", "item_states"], "dti_isolated")
    assert {row["model"] for row in rows} == {"demo"}


@pytest.mark.slow
@pytest.mark.long
def test_a_service_is_measured_under_every_load(tmp_path: Path) -> None:
    """The script itself compares the answers; it measures MLflow's server too where it is not told otherwise."""
    few = ("--requests", "8", "--bad", "20", "--candidates", "3", "--clients", "1", "4")
    rows, _ = bench(
        "service", tmp_path, *few, "--minutes", "0.05", "--changes", "2", "--services", "dti", "user_states"
    )
    loads = ["1 client", "4 clients", "70% of the most"]
    assert [row["load"] for row in rows] == [
        *loads, "40% of the most, 0.05 minutes", "8 clients, bad requests", *loads, "8 clients, the model changes"
    ]  # fmt: skip
    assert all(0 < row["p50_ms"] <= row["p99_ms"] for row in rows)
    assert rows[0]["requests_a_batch"] == 1
    assert all(row["memory_mib"] > 100 for row in rows)


@pytest.mark.parametrize(
    ("paradigm", "states"), [("dti", "item_states"), ("dti_isolated", "user_states"), ("sliding_window", "user_states")]
)
def test_a_service_is_not_measured_with_states_that_its_model_cannot_keep(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], paradigm: str, states: str
) -> None:
    monkeypatch.setattr(sys, "argv", ["service.py", "--paradigm", paradigm, "--services", "dti", states])
    with pytest.raises(SystemExit):
        service.main()
    assert f"--services {states}: a model of {paradigm} keeps no such states" in capsys.readouterr().err


@pytest.mark.long
def test_memory_is_watched_under_good_requests_and_bad_ones(tmp_path: Path) -> None:
    """The script itself looks at the status of every answer."""
    few = ("--rows", "5000", "--requests", "30")
    rows, _ = bench("extremes", tmp_path, *few, "--only", "requests", "bad requests")
    loads = [("30 requests", "score"), ("30 requests", "serve"), ("30 bad requests", "serve")]
    assert [(row["case"], row["step"]) for row in rows] == loads
    assert all(row["peak_memory_gib"] > 0.1 and row["flat"] in ("yes", "no") for row in rows)


@pytest.mark.slow
def test_every_data_stage_is_timed(tmp_path: Path) -> None:
    rows, _ = bench("data_stages", tmp_path, "--rows", "20000")
    stages = [row["stage"] for row in rows]
    assert stages == ["ingest", "validate", "tokenize", "pack dti", "pack sliding_window", "raw file to row plans"]
    assert rows[-1]["seconds"] == pytest.approx(sum(row["seconds"] for row in rows[:4]), abs=0.03)
    assert all(row["peak_memory_gib"] > 0 for row in rows)


def test_a_day_added_is_measured_beside_the_whole(tmp_path: Path) -> None:
    rows, said = bench("growing", tmp_path, "--rows", "20000")
    assert [row["stage"] for row in rows[1:]] == ["ingest", "validate", "tokenize", "pack dti", "pack sliding_window"]
    assert rows[0]["day_share"] == pytest.approx(rows[0]["day_seconds"] / rows[0]["whole_seconds"], abs=0.05)
    assert "1 of 1 files of events kept their bytes" in said
