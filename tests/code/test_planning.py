"""`dti plan`: formulas against known figures, counts against the packer, measured runs beside both."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from typer.testing import CliRunner

from dti_pipeline import artifacts, config
from dti_pipeline.cli import app
from dti_pipeline.config import PACKAGE
from dti_pipeline.errors import InputError
from dti_pipeline.packing import prompts
from dti_pipeline.packing.pack import pack
from dti_pipeline.packing.store import uniform_store, write_columns
from dti_pipeline.paradigms import named, names
from dti_pipeline.paths import Paths
from dti_pipeline.planning import cluster, cost, hardware
from dti_pipeline.planning.plan import plan
from dti_pipeline.planning.render import render
from dti_pipeline.planning.shape import SHAPES, shape_of
from tests import reports
from tests.project import ROOT

N = 20
TARGETS = (5, 10, 20, 50, 180, None)  # None: k -> all, the limit
#: Speed-up by FLOP of LoRA on an 8B body over a padding-free sliding window, the vocabulary's head at [SUM]s only.
LIMITS = {
    12: (4.14, 6.81, 10.05, 14.08, 17.44, 19.2),
    20: (4.16, 6.87, 10.19, 14.35, 17.87, 19.7),
    30: (4.16, 6.89, 10.24, 14.45, 18.03, 19.9),
}
LLAMA = SHAPES["llama-3.1-8b"]
LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def flop(paradigm: str, k: int, c: int) -> float:
    """FLOP of one prompt of n context interactions and k targets, no padding."""
    store = uniform_store(users=1, interactions=N + k, tokens=c)
    cut, _ = prompts.cut(store.position >= N, store.position, store.seen, store.lengths(), N, k, 10**6)
    pairs = cost.visible_pairs(named(paradigm), cut, store, N)
    head = LLAMA.vocabulary * LLAMA.hidden
    return cost.training_flop(LLAMA, int(cut.length.sum()), pairs, k, adapters=0, head=head)


@pytest.mark.parametrize("c", LIMITS)
@pytest.mark.parametrize("column", range(len(TARGETS)))
def test_the_table_of_limits_is_reproduced_to_its_last_digit(c: int, column: int) -> None:
    k = TARGETS[column]
    # From n targets on, each further one costs the same: a difference is the limit.
    a_target = flop("dti", k, c) / k if k else flop("dti", 3 * N + 1, c) - flop("dti", 3 * N, c)
    assert round(flop("sliding_window", 1, c) / a_target, 2 if k else 1) == LIMITS[c][column]


@pytest.mark.parametrize(("n", "c", "k"), [(20, 12, 50), (5, 7, 3), (1, 2, 1)])
def test_formulas_count_what_the_packer_lays_out(n: int, c: int, k: int) -> None:
    store = uniform_store(users=3, interactions=n + k, tokens=c)
    for targets, expected in ((1, cost.sliding_window_tokens(n, c)), (k, cost.streaming_tokens(n, c, k))):
        cut, _ = prompts.cut(store.position >= n, store.position, store.seen, store.lengths(), n, targets, 10**6)
        assert cut.length.sum() / cut.targets == pytest.approx(expected)
    assert cost.token_speedup(n, c, 10**9) == pytest.approx(((n + 1) * c + 1) / (c + 1), rel=1e-6)


@pytest.mark.parametrize(
    ("name", "parameters"),  # as the makers' model cards and checkpoints have them
    [
        ("llama-3.1-8b", 8_030_261_248),
        ("llama-3.2-1b", 1_235_814_400),
        ("mistral-7b", 7_248_023_552),
        ("smollm2-135m", 134_515_008),
        ("qwen2.5-1.5b", 1_543_714_304 - 28 * (1536 + 2 * 256)),  # less biases of queries, keys and values
        ("gemma-3-270m", 268_098_176 - 18 * (2 * 640 + 2 * 256)),  # less two norms a layer, and of queries and keys
    ],
)
def test_weights_are_those_of_the_checkpoints(name: str, parameters: int) -> None:
    assert SHAPES[name].parameters == parameters
    assert LLAMA.adapters(16, ["q_proj", "v_proj"]) == 6_815_744


def test_adapters_save_a_third_of_the_products_and_cost_their_own() -> None:
    """4 FLOP a frozen weight and token, as no gradient of it is made; 6 one that is trained, body or adapter."""
    shape, adapters = SHAPES["smollm2-135m"], SHAPES["smollm2-135m"].adapters(16, LINEAR)
    assert adapters == 30 * 16 * (2 * (576 + 576) + 2 * (576 + 192) + 3 * (576 + 1536))
    whole = cost.training_flop(shape, tokens=100, pairs=0, targets=0, adapters=None)
    assert whole == 100 * 6 * shape.body
    assert cost.training_flop(shape, 100, 0, 0, adapters) == 100 * (4 * shape.body + 6 * adapters)
    assert cost.training_flop(shape, 100, 0, 0, adapters=0) == pytest.approx(whole * 2 / 3)


@pytest.mark.parametrize(("model", "rank", "advised"), [("smollm2-135m", 16, True), ("smollm2-135m", 0, False),
                                                        ("llama-3.2-1b", 16, False)])  # fmt: skip
def test_a_narrow_model_with_adapters_is_advised_on(home: Paths, model: str, rank: int, advised: bool) -> None:
    arguments = ["plan", "--model", model, "--users", "50", "--interactions", "60"]
    page = CliRunner().invoke(app, [*arguments, "--set", f"model.lora.rank={rank}"]).stdout
    *found, last = [line for line in page.splitlines() if line.startswith("advice")]
    assert "tokens.prefix" in last
    assert len(found) == advised
    assert all("model.lora.rank: 0" in line for line in found)
    assert max(map(len, [*found, last])) <= 110
    opened = CliRunner().invoke(app, [*arguments, "--set", "tokens.prefix=Films:"]).stdout
    assert "tokens.prefix" not in opened


def store_on_disk(paths: Paths, users: int = 30, interactions: int = 40, tokens: int = 9) -> None:
    store = uniform_store(users, interactions, tokens, train_share=0.8)
    columns = {name: getattr(store, name) for name in ("text", "label", "split", "position", "request", "known")}
    with artifacts.publish(paths.tokens, "tokenize") as draft:
        write_columns(draft.path / "texts.arrow", {"token": store.tokens})
        write_columns(draft.path / "offsets.arrow", {"offset": store.offsets})
        write_columns(draft.path / "interactions.arrow", columns)
        draft.report = replace(reports.TOKENIZE, special_tokens=store.special, prefix_tokens=(5, 6), vocabulary=64)


SETTINGS = config.from_plain(
    config.Config, {"packing": {"context": 6, "targets": 10, "row_length": 256}, "training": {"epochs": 2}}
)


@pytest.mark.parametrize("paradigm", names())
def test_the_plan_counts_what_dti_pack_then_makes(home: Paths, paradigm: str) -> None:
    store_on_disk(home)
    planned = plan(SETTINGS, home)["paradigms"][paradigm]
    packed = pack(SETTINGS, home, paradigm)
    for key in ("targets", "prompts", "tokens", "tokens_per_target", "padding_share"):
        assert planned[key] == getattr(packed, key)


def test_cost_follows_epochs_gpu_and_processes(home: Paths) -> None:
    store_on_disk(home)
    one = plan(SETTINGS, home, "H100", "llama-3.1-8b")
    assert one["log"]["source"] == "data/tokens"
    rows = one["paradigms"]
    for row in rows.values():
        assert row["hours"] == pytest.approx(row["flop"] / (989e12 * 0.55) / 3600)
    # A sliding window trained twice as long, on half as fast a card, on four of them: the same hours.
    double = config.from_plain(
        config.Config,
        {"packing": {"context": 6, "targets": 10, "row_length": 256}, "training": {"epochs": 4, "processes": 4}},
    )
    other = plan(double, home, "H100", "llama-3.1-8b", utilisation=0.55 / 2)
    assert other["paradigms"]["sliding_window"]["hours"] == pytest.approx(rows["sliding_window"]["hours"])
    assert rows["dti_isolated"]["visible_pairs"] < rows["dti"]["visible_pairs"] < rows["dti_growing"]["visible_pairs"]
    assert rows["sliding_window"]["speedup_tokens"] == rows["sliding_window"]["speedup_formula"] == 1
    assert 1 < rows["dti"]["speedup_tokens"] < cost.token_speedup(6, 9, 10)  # histories end, formulas do not


def test_recomputed_layers_cost_a_third_or_a_half_more_and_take_less_memory(home: Paths) -> None:
    store_on_disk(home)
    for settings, more in (("lora", 1.5), ("all", 4 / 3)):
        model = {"lora": {"rank": 16 if settings == "lora" else 0}}
        sections = {"packing": {"context": 6, "targets": 10, "row_length": 256}, "model": model}
        kept, again = (
            plan(
                config.from_plain(config.Config, {**sections, "training": {"activation_checkpointing": on}}),
                home, "H100", "llama-3.1-8b",
            )
            for on in (False, True)
        )  # fmt: skip
        for name in names():
            ratio = again["paradigms"][name]["flop"] / kept["paradigms"][name]["flop"]
            assert ratio == pytest.approx(more, abs=0.01)
        assert again["memory"]["activations_gb"] < kept["memory"]["activations_gb"] / 10


def test_memory_of_an_8b_model_with_adapters_and_without(home: Paths) -> None:
    adapters = plan(SETTINGS, home, "H100", "llama-3.1-8b")
    assert adapters["model"]["method"] == "lora"
    assert adapters["memory"]["weights_gb"] == pytest.approx(16.06, abs=0.01)
    assert adapters["memory"]["fits"]
    full = config.from_plain(config.Config, {"model": {"lora": {"rank": 0}}})
    memory = plan(full, home, "H100", "llama-3.1-8b")["memory"]
    assert memory["weights_gb"] + memory["optimizer_gb"] == pytest.approx(16 * 8.03, rel=1e-3)
    assert not memory["fits"]
    shared = {"model": {"lora": {"rank": 0}}, "training": {"processes": 8, "sharding": "full"}}
    an_eighth = plan(config.from_plain(config.Config, shared), home, "H100", "llama-3.1-8b")["memory"]
    assert an_eighth["weights_gb"] + an_eighth["optimizer_gb"] == pytest.approx(2 * 8.03, rel=1e-3)
    assert an_eighth["activations_gb"] == memory["activations_gb"], "every process has passes of its own"


def test_shape_comes_from_a_folder_s_config(tmp_path) -> None:
    content = {
        "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "intermediate_size": 96, "vocab_size": 100, "tie_word_embeddings": True,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(content))
    shape = shape_of(config.ModelConfig(), 1, str(tmp_path))
    assert (shape.head_dim, shape.body) == (16, 2 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 96))
    for wrong, message in (({}, r"config\.json"), ({**content, "num_local_experts": 4}, "mixture of experts")):
        (tmp_path / "config.json").write_text(json.dumps(wrong))
        with pytest.raises(InputError, match=message):
            shape_of(config.ModelConfig(), 1, str(tmp_path))


def trained(home: Paths, paradigm: str, targets_per_second: float, tokens_per_target: float, hardware: str) -> None:
    with artifacts.publish(home.model(paradigm), "train") as draft:
        draft.report = replace(
            reports.TRAIN,
            targets_per_second=targets_per_second,
            tokens_per_second=targets_per_second * tokens_per_target,
            tokens_per_target=tokens_per_target,
            hardware=hardware,
        )


def test_measured_runs_stand_beside_their_own_formula(home: Paths) -> None:
    trained(home, "sliding_window", 100.0, 200.0, "card A")
    trained(home, "dti", 900.0, 20.0, "card A")
    trained(home, "dti_growing", 900.0, 20.0, "card B")
    found = plan(SETTINGS, home)["measured"]
    assert found["dti"]["speedup"] == 9
    assert found["dti"]["speedup_formula"] == 10
    assert found["dti"]["off_formula"] == pytest.approx(-0.1)
    assert "speedup" not in found["dti_growing"]  # other hardware: no ratio
    page = CliRunner().invoke(app, ["plan"]).stdout
    assert "-10%" in page
    assert "card A, card B" in page


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--gpu", "H1000"], "did you mean `H100`"),
        (["--model", "no-such-model"], "llama-3.1-8b"),
        (["--users", "0"], "--users"),
        (["--tokens", "1"], "--tokens"),
        (["--utilisation", "1.5"], "--utilisation"),
        (["--set", "events.source=movielens"], "dti tokenize"),
        (["--interactions", "4"], "min_history"),
        (["--tokens", "60", "--set", "packing.row_length=128"], "packing.row_length"),
    ],
)  # fmt: skip
def test_what_cannot_be_planned_is_refused_in_one_sentence(home: Paths, arguments: list[str], named: str) -> None:
    done = CliRunner().invoke(app, ["plan", *arguments])
    assert (done.exit_code, done.stdout) == (2, "")
    assert named in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("recipe", sorted(path.stem for path in PACKAGE.glob("recipes/*.yaml")))
def test_every_recipe_can_be_planned_and_fits_an_h100(home: Paths, recipe: str) -> None:
    arguments = ["--params", f"recipes/{recipe}.yaml", "--users", "90", "--interactions", "60", "--json"]
    report = json.loads(CliRunner().invoke(app, ["plan", *arguments]).stdout)
    assert report["memory"]["fits"]
    assert report["paradigms"]["dti"]["padding_share"] < 0.2


def test_names_of_the_hub_have_the_shapes_of_their_models() -> None:
    for name, shape in (("meta-llama/Llama-3.1-8B", LLAMA), ("x/SmolLM2-135M-Instruct", SHAPES["smollm2-135m"])):
        assert shape_of(config.ModelConfig(name_or_path=name), 1) == shape


def test_json_and_page_tell_the_same(home: Paths) -> None:
    arguments = ["plan", "--model", "qwen2.5-0.5b", "--gpu", "l4", "--users", "50", "--interactions", "60"]
    report = json.loads(CliRunner().invoke(app, [*arguments, "--json"]).stdout)
    page = CliRunner().invoke(app, arguments).stdout
    assert report["log"]["source"] == "assumed"
    for name, row in report["paradigms"].items():
        line = next(line for line in page.splitlines() if line.split()[:1] == [name])
        assert f"{row['targets']:,}" in line
        assert f"{row['speedup_flop']:.2f}" in line
    assert max(map(len, page.splitlines())) <= 120


def test_planning_loads_no_torch() -> None:
    script = (
        "import sys; from dti_pipeline.cli import app;"
        "app(['plan', '--users', '9', '--interactions', '40'], standalone_mode=False);"
        "print(sorted({'torch', 'transformers', 'mlflow', 'duckdb', 'dagster'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_gpus_are_found_in_any_case() -> None:
    assert hardware.named("a100-40gb").memory_gb == 40
    assert np.all([gpu.teraflops > 100 for gpu in hardware.GPUS.values()])


def test_hours_and_gib_of_data_stages_on_a_cluster() -> None:
    """By hand: 10^9 rows, 4 machines of 8 cores."""
    ingest = cluster.Stage("ingest", 10, whole=7, own=2, tasks=8, rows=cluster.BUCKET, left=40, beside=60, task_gib=1)
    pack = cluster.Stage("pack dti", 1, whole=0.4, own=0, tasks=0.5, rows=10**6, left=4, beside=0, task_gib=0.25)
    found = cluster.data_plan(10**9, 4, 8, [ingest, pack])
    # 954 buckets of 1,048,219 rows; 32 workers have 30 of them at most.
    first, second = found["stages"].values()
    assert (found["buckets"], first["tasks"], second["tasks"]) == (954, 954, 1000)
    assert first["hours"] * 3600 == pytest.approx(10 + 2000 + 30 * 1_048_219 * 8 / 1e6)
    assert first["one_process_hours"] * 3600 == 2010
    assert first["core_hours"] * 3600 == 10 + 2000 + 8000
    # A thousand blocks: the busiest worker has 32.
    assert second["hours"] * 3600 == pytest.approx(1 + 32 * 0.5)
    assert found["hours"] == first["hours"] + second["hours"]
    assert found["disk_gib"] * 2**30 == pytest.approx(44e9)
    assert found["most_disk_gib"] * 2**30 == pytest.approx(100e9)  # while it ingests
    assert (first["task_gib"], second["task_gib"]) == (1, 0.25)
    alone = cluster.data_plan(10**9, 1, 1, [ingest])
    assert alone["buckets"] == 1
    assert alone["hours"] * 3600 == 10 + 7000
    # From 2^31 rows on a plan's spans have 64 bits.
    wide = cluster.data_plan(10**10, 4, 8, [pack])
    assert wide["disk_gib"] * 2**30 == pytest.approx(70e9)


def test_a_cluster_is_planned_for_a_log_that_is_only_a_number(home: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten times the rows are ten times the training; the data stages are said in words."""
    monkeypatch.setattr("dti_pipeline.planning.plan.SAMPLE", 20_000)
    shared = {"packing": {"context": 6, "targets": 10, "row_length": 256}}
    settings = config.from_plain(config.Config, shared)
    small, large = (
        plan(settings, home, "H200", "llama-3.1-8b", interactions=50, rows=rows, machines=4, cores=8)
        for rows in (10**9, 10**10)
    )
    assert (small["log"]["interactions"], small["log"]["users"]) == (10**9, 2 * 10**7)
    for name, row in large["paradigms"].items():
        for key in ("hours", "flop", "tokens", "targets"):
            assert row[key] == pytest.approx(10 * small["paradigms"][name][key], rel=1e-6)
    few, many = (found["cluster"]["stages"]["tokenize"] for found in (small, large))
    assert many["disk_gib"] == pytest.approx(10 * few["disk_gib"])
    first = render(large).splitlines()[0]
    assert re.fullmatch(r"10,000,000,000 rows take [\d.]+ (hours|days) from .* on 4 machines of 8 cores,", first)


@pytest.mark.parametrize(
    ("hours", "said"),
    [
        (1e-7, "less than a second"),
        (0.01, "36 seconds"),
        (0.5, "30 minutes"),
        (3.14, "3.1 hours"),
        (100, "4.2 days"),
        (30_000, "3.4 years"),
    ],
)
def test_times_are_said_as_people_say_them(hours: float, said: str) -> None:
    assert cluster.span(hours) == said


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"rows": 0}, "--rows must be at least 1, not 0"),
        ({"rows": 5, "users": 5}, "give one"),
        ({"machines": 2}, "--machines and --cores are for a log of so many --rows"),
    ],
)
def test_a_cluster_that_is_none_is_refused(home: Paths, options: dict[str, int], said: str) -> None:
    with pytest.raises(InputError, match=said):
        plan(config.Config(), home, **options)


def measured(name: str) -> dict[tuple[int, str], dict[str, float]]:
    rows = json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text())
    return {(row["rows"], row["stage"]): row for row in rows}


def test_rates_are_the_published_ones() -> None:
    whole, tasks = measured("data_stages"), measured("cluster")
    for stage in cluster.STAGES:
        seconds = [whole[rows, stage.name]["cpu_seconds"] for rows in (10**6, 10**8)]
        assert stage.whole == pytest.approx((seconds[1] - seconds[0]) / 99, rel=0.02)
        assert stage.start == pytest.approx(max(0, seconds[0] - stage.whole), abs=0.1)
        assert stage.own + stage.tasks == pytest.approx(1.3 * stage.whole, rel=0.03)
        small, large = (tasks[rows, stage.name] for rows in (10**6, 10**7))
        own, shared = (large[name] - small[name] for name in ("own_cpu_seconds", "task_cpu_seconds"))
        assert stage.own / (stage.own + stage.tasks) == pytest.approx(own / (own + shared), abs=0.02)
        assert stage.left == pytest.approx(large["bytes_a_row"], abs=0.5)
        assert stage.beside == pytest.approx(large["more_while_it_runs"], abs=0.5)
        rows = 10**7 / 8 if stage.name == "ingest" else stage.rows
        assert stage.task_gib * rows / stage.rows == pytest.approx(large["task_gib"], rel=0.03)


def test_the_page_says_how_far_the_formula_is_off() -> None:
    """One worker, from a raw file to the plan of dti."""
    page, found = (ROOT / "docs" / "howto" / "cluster.md").read_text(), measured("data_stages")
    for rows in (10**6, 10**7, 10**8):
        formula = sum(cluster.alone(stage, rows) for stage in cluster.STAGES[:4])
        seconds = found[rows, "raw file to row plans"]["cpu_seconds"]
        assert f"| {rows // 10**6} M | {formula:,.0f} | {seconds:,.0f} | {formula / seconds - 1:+.1%} |" in page
