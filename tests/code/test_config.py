"""Values of a configuration: where they come from, which are refused, how they are explained; and the recipes."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import Result
from typer.testing import CliRunner

from dti_pipeline import artifacts, config, explain, pipeline
from dti_pipeline.cli import app
from dti_pipeline.config import Config
from dti_pipeline.errors import InputError
from dti_pipeline.paths import Paths
from dti_pipeline.pipeline import STAGES
from dti_pipeline.plain import Range, from_plain, parse_yaml, to_plain

ROOT = Path(__file__).resolve().parents[2]
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))


@pytest.mark.parametrize(
    ("environment", "written", "overrides", "uri"),
    [
        ("", "", [], None),
        ("http://mlflow:5000", "", [], "http://mlflow:5000"),
        ("http://mlflow:5000", "tracking: {uri: http://mine:5000}", [], "http://mine:5000"),
        (
            "http://mlflow:5000",
            "tracking: {uri: http://mine:5000}",
            ["tracking.uri=http://this:5000"],
            "http://this:5000",
        ),
    ],
    ids=["home", "environment", "params.yaml", "override"],
)
def test_runs_are_recorded_where_the_nearest_one_says(
    home: Paths,
    monkeypatch: pytest.MonkeyPatch,
    environment: str,
    written: str,
    overrides: list[str],
    uri: str | None,
) -> None:
    monkeypatch.setenv("DTI_TRACKING_URI", environment)
    home.params.write_text(written)
    assert config.load(home.params, overrides).tracking.uri == uri


def command(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["config", *arguments])


@pytest.mark.parametrize(
    ("raw", "sentence"),
    [
        ({"model": {"dropout": 1.0}}, r"`model\.dropout` must be in \[0, 1\), not 1\.0"),
        ({"training": {"epochs": -1}}, r"`training\.epochs` must be 0 or more, not -1"),
        ({"training": {"learning_rate": float("nan")}}, r"`training\.learning_rate` must be a finite number, not nan"),
        ({"training": {"weight_decay": "-inf"}}, r"`training\.weight_decay` must be a finite number, not '-inf'"),
        ({"split": {"label_threshold": "nan"}}, r"`split\.label_threshold` must be a finite number, not 'nan'"),
        ({"training": {"warmup_share": float("inf")}}, r"`training\.warmup_share` must be a finite number, not inf"),
        ({"training": {"epochs": True}}, r"`training\.epochs` must be a number, not True"),
        ({"training": {"processes": False}}, r"`training\.processes` must be a whole number, not False"),
        ({"training": {"cuda_graph": 1}}, r"`training\.cuda_graph` must be true or false, not 1"),
        ({"model": {"heads": 0}}, r"`model\.heads` must be at least 1, not 0"),
        ({"model": {"lora": {"rank": -1}}}, r"`model\.lora\.rank` must be 0 or more, not -1"),
        ({"synth": {"items": 100_001}}, r"`synth\.items` must be in \[1, 100000\], not 100001"),
        ({"split": {"validation_share": 0.5}}, r"`split\.validation_share` must be in \[0, 0\.5\), not 0\.5"),
        ({"evaluation": {"confidence": 1}}, r"`evaluation\.confidence` must be in \(0, 1\), not 1"),
        ({"paradigms": ["dti", "dti"]}, r"`paradigms` must be a list with each paradigm once, not \['dti', 'dti'\]"),
        ({"backtest": {"paradigms": ["dti", "dti"]}}, r"`backtest\.paradigms` must be a list with each paradigm once"),
        ({"events": {"max_users": 0}}, r"`events\.max_users` must be a whole number from 1 or null, not 0"),
        ({"validation": {"label_rate": [0.5, 1.5]}}, r"`validation\.label_rate\[1\]` must be in \[0, 1\], not 1\.5"),
        ({"validation": {"label_rate": [0.5, 0.1]}}, r"`validation\.label_rate` must be two shares, the lower one"),
        ({"events": {"min_rating": 5, "max_rating": 1}}, r"`events\.min_rating` must be below events\.max_rating"),
        ({"training": {"sharding": "full"}}, r"`training\.sharding` must be none where training\.processes is 1"),
        ({"trainig": {}}, r"unknown params key `trainig`: did you mean `training`\?"),
        ({"model": {"name_dropout": 0.2}}, r"`model\.name_dropout` was removed: .* see tokens\.template"),
        ({"training": {"text_loss_weight": 0}}, r"`training\.text_loss_weight` was removed: "),
    ],
)
def test_a_wrong_value_is_one_sentence_that_names_its_key(raw: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        from_plain(Config, raw)


@pytest.mark.parametrize(
    ("bounds", "inside", "outside"),
    [
        (Range(0, 1), (0, 1), (-0.1, 1.1)),
        (Range(0, 1, "[)"), (0, 0.9), (1,)),
        (Range(0, 1, "()"), (0.1,), (0, 1)),
        (Range(0, ends="(]"), (1e-9,), (0, -1)),
        (Range(16), (16, 10**9), (15,)),
    ],
    ids=str,
)
def test_a_range_holds_its_closed_ends_and_not_its_open_ones(
    bounds: Range, inside: tuple[float, ...], outside: tuple[float, ...]
) -> None:
    assert [value in bounds for value in (*inside, *outside)] == [True] * len(inside) + [False] * len(outside)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("training: {epochs: 1}\nmodel: {}\ntraining: {epochs: 2}\n", "line 3 is not YAML: the key `training` stands"),
        ("training:\n  epochs: 1\n  seed: 1\n  epochs: 2\n", "line 4 is not YAML: the key `epochs` stands twice"),
        ("training: [", "line 1 is not YAML"),
        ("- training", "must hold a mapping of sections, not a list"),
    ],
)
def test_a_file_that_cannot_be_read_is_named_with_its_line(home: Paths, text: str, says: str) -> None:
    home.params.write_text(text)
    with pytest.raises(InputError) as refusal:
        config.load(home.params)
    assert f"{home.params} {says}" in str(refusal.value)


def test_a_merged_anchor_s_keys_may_be_set_again() -> None:
    text = "a: &a {x: 1, y: 2}\nb: &b {<<: *a, y: 3}\nc: {<<: *b, y: 4}\n"
    assert parse_yaml(text, "text")["c"] == {"x": 1, "y": 4}


def test_the_configuration_in_force_is_printed_as_yaml_that_loads_again(home: Paths) -> None:
    home.params.write_text("training: {epochs: 3}\nmodel: {lora: {rank: 4}}\n")
    done = command("--set", "tokens.template='{item_id}: {item_text} #1'")
    assert done.exit_code == 0, done.output
    assert "  epochs: 3.0  # default 2.0\n" in done.stdout
    home.params.write_text(done.stdout)
    again = config.load(home.params)
    assert (again.training.epochs, again.model.lora.rank) == (3, 4)
    assert again.tokens.template == "{item_id}: {item_text} #1"
    assert json.loads(command("--json").stdout) == to_plain(again)
    changed = yaml.safe_load(command("--changed").stdout)
    assert changed == {
        "tokens": {"template": "{item_id}: {item_text} #1"},
        "model": {"lora": {"rank": 4}},
        "training": {"epochs": 3.0},
    }


@pytest.mark.parametrize(
    "uri", ["postgresql://dti:Geheim/1@host/runs", "https://Geheim@host", "postgresql://host/runs?password=Geheim&a=b"]
)
def test_credentials_are_not_printed(home: Paths, uri: str) -> None:
    home.params.write_text(yaml.safe_dump({"tracking": {"uri": uri}}))
    for arguments in ([], ["--json"], ["--changed"], ["--explain", "tracking"], ["--explain", "tracking", "--json"]):
        done = command(*arguments)
        assert done.exit_code == 0
        assert "host" in done.stdout
        assert "Geheim" not in done.output


def test_a_key_is_explained_with_type_range_default_value_and_meaning(home: Paths) -> None:
    done = command("--explain", "training.adam_epsilon", "--set", "training.adam_epsilon=1e-5")
    title, kind, *meaning = done.stdout.splitlines()
    assert title == "training.adam_epsilon: 1.0e-05"
    assert kind == "    a number above 0; default 1.0e-08"
    assert "AdamW" in " ".join(meaning)


def test_a_section_is_explained_with_all_its_keys(home: Paths) -> None:
    done = command("--explain", "model.lora")
    assert "LoRA adapters" in done.stdout
    for name in ("rank", "alpha", "target_modules"):
        assert f"\nmodel.lora.{name}: " in done.stdout
    assert "training" not in done.stdout


@pytest.mark.parametrize(
    ("key", "meant"),
    [("adam_epsilon", "training.adam_epsilon"), ("model.lora.rnk", "model.lora.rank"), ("trainings", "training")],
)
def test_an_unknown_key_gets_the_nearest_one(home: Paths, key: str, meant: str) -> None:
    done = command("--explain", key)
    assert (done.exit_code, done.stdout) == (2, "")
    assert f"unknown params key `{key}`: did you mean `{meant}`?" in " ".join(done.stderr.split())


def test_a_removed_key_is_explained_by_what_to_do_instead(home: Paths) -> None:
    done = command("--explain", "model.name_dropout")
    assert done.exit_code == 2
    assert "was removed: " in done.stderr


def test_every_key_is_explained() -> None:
    for entry in explain.explained(Config(), ""):
        assert len(entry.documentation) > 3, entry.key


def test_reading_the_configuration_loads_no_heavy_library() -> None:
    heavy = {"torch", "transformers", "duckdb", "mlflow", "great_expectations", "numpy", "pyarrow", "typer"}
    script = f"import sys; import dti_pipeline.config; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["[]"]


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_is_a_whole_params_yaml(recipe: Path) -> None:
    """It loads, and holds every parameter that DVC watches, so that it can be copied over params.yaml."""
    config.load(recipe)
    plain = yaml.safe_load(recipe.read_text())
    for key in itertools.chain(*(stage.params for stage in STAGES), ["events.path"]):
        node = plain
        for part in key.split("."):
            assert part in node, key
            node = node[part]


def test_the_demo_s_recipe_is_params_yaml() -> None:
    assert (ROOT / "recipes/demo.yaml").read_text() == (ROOT / "params.yaml").read_text()


def test_a_recipe_is_found_from_any_folder(home: Paths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    assert "  row_length: 5120" in command("--params", "recipes/small.yaml").stdout
    (home.home / "mine.yaml").write_text("training: {seed: 3}")
    assert command("--params", "mine.yaml", "--changed").stdout == "training:\n  seed: 3  # default 7\n"
    (elsewhere / "mine.yaml").write_text("training: {seed: 4}")  # the nearest one counts
    assert "seed: 4" in command("--params", "mine.yaml", "--changed").stdout
    done = command("--params", "recipes/smal.yaml")
    assert done.exit_code == 2
    assert "did you mean `recipes/small.yaml`?" in " ".join(done.stderr.split())


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["demo", "small"])
def test_a_recipe_from_scratch_trains(home: Paths, recipe: str) -> None:
    overrides = [
        "events={source: synthetic}", "synth={users: 40, items: 60, interactions_per_user: 30}",
        "validation.min_rows=100", "training.epochs=0.5", "training.device=cpu", "training.dtype=float32",
        "tracking.enabled=false",
    ]  # fmt: skip
    settings = config.load(config.find(Path(f"recipes/{recipe}.yaml"), home.home), overrides)
    for stage in itertools.takewhile(lambda stage: stage.name != "evaluate", STAGES):
        pipeline.execute(stage, settings, home, "dti" if stage.per_paradigm else None)
    assert artifacts.read(home.model("dti"), "train").config == settings.sections("model", "training")


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
@pytest.mark.slow
def test_output_that_cannot_hold_a_letter_is_printed_all_the_same(tmp_path: Path, encoding: str) -> None:
    environment = {**os.environ, "PYTHONIOENCODING": encoding, "DTI_HOME": str(tmp_path)}
    program = [sys.executable, "-m", "dti_pipeline.cli"]
    done = subprocess.run([*program, "mask"], env=environment, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"?" in done.stdout
    shown = [*program, "config", "--set", "tracking.experiment=Δ–π", "--json"]
    done = subprocess.run(shown, env=environment, capture_output=True, check=True)
    assert json.loads(done.stdout)["tracking"]["experiment"] == "Δ–π"


def test_what_the_system_refuses_is_one_sentence(home: Paths) -> None:
    (home.home / "data").write_text("a file where a folder should be")
    done = CliRunner().invoke(app, ["synth"])
    assert done.exit_code == 2
    assert f"{home.home}/data" in done.output.replace("\n", "")
    assert "Traceback" not in done.output


def test_brackets_in_a_message_are_letters(home: Paths) -> None:
    done = CliRunner().invoke(app, ["ingest", "--set", "events.path=[INST] a [/INST]"])
    assert done.exit_code == 2
    assert "[INST] a [/INST]" in done.output
