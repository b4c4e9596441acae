"""The stage table, dvc.yaml and the asset graph say the same."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import yaml

from dti_pipeline import config, dvc
from dti_pipeline.definitions import build
from dti_pipeline.defs.days import key as days_of
from dti_pipeline.paradigms import names
from dti_pipeline.pipeline import BACKTEST, STAGES
from dti_pipeline.plain import to_plain

ROOT = Path(__file__).resolve().parents[2]
GRAPH = build(names()).resolve_asset_graph()
DEPS = {
    "log": set(),
    "events": {"log"},
    "checks": {"events"},
    "tokens": {"events", "checks"},
    "shards": {"tokens"},
    "model": {"tokens", "shards"},
    "evaluation": {"events", "tokens", "shards", "model"},
    "comparison": {"events", "evaluation"},
}


def test_committed_dvc_yaml_is_what_the_table_renders() -> None:
    text = (ROOT / "dvc.yaml").read_text()
    assert text == dvc.render(text)
    pictures = [plot for plot in yaml.safe_load(text)["plots"] if isinstance(plot, str)]
    assert pictures
    assert all((ROOT / picture).is_file() for picture in pictures)


def test_what_is_written_by_hand_stays_and_stages_do_not() -> None:
    text = (ROOT / "dvc.yaml").read_text()
    mine = text.replace("cmd: dti synth", "cmd: other").replace("title: Calibration", "title: Mine")
    assert dvc.render(mine) == text.replace("title: Calibration", "title: Mine")


def test_check_names_a_dvc_yaml_that_differs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    assert dvc.main(["--check"]) == 1
    assert "python -m dti_pipeline.dvc" in capsys.readouterr().err
    assert dvc.main([]) == 0
    assert dvc.main(["--check"]) == 0


def test_assets_are_the_stages_by_their_nouns() -> None:
    # A module with a @dg.definitions function loses its assets and says nothing: this is where it would show.
    assert {key.to_user_string() for key in GRAPH.get_all_asset_keys()} == {
        *(stage.asset for stage in STAGES),
        "item_states",
        *(f"{BACKTEST.asset}/{paradigm}" for paradigm in names()),
    }


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.asset)
def test_asset_depends_on_what_its_stage_reads(stage) -> None:
    node = GRAPH.get(dg.AssetKey(stage.asset))
    assert {key.to_user_string() for key in node.parent_keys} == DEPS[stage.asset]
    entry = yaml.safe_load(dvc.render())["stages"][stage.name]
    assert len(entry.get("deps", [])) == len(stage.deps)


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.asset)
def test_paradigms_are_partitions_and_a_matrix_exactly_where_the_table_says(stage) -> None:
    node = GRAPH.get(dg.AssetKey(stage.asset))
    keys = node.partitions_def.get_partition_keys() if node.partitions_def else None
    assert keys == (list(names()) if stage.per_paradigm else None)
    assert ("matrix" in yaml.safe_load(dvc.render())["stages"][stage.name]) == stage.per_paradigm


def test_comparison_reads_every_partition_of_the_evaluation() -> None:
    mapping = GRAPH.get_partition_mapping(dg.AssetKey("comparison"), dg.AssetKey("evaluation"))
    assert isinstance(mapping, dg.AllPartitionMapping)


def test_assets_draw_as_one_open_group_and_explain_themselves() -> None:
    nodes = [GRAPH.get(dg.AssetKey(stage.asset)) for stage in STAGES]
    assert {node.group_name for node in nodes} == {"dti"}
    days = [GRAPH.get(days_of(paradigm)) for paradigm in names()]
    assert {node.group_name for node in days} == {"backtest"}, "apart: its partitions are others"
    for node, stage in (*zip(nodes, STAGES, strict=True), *((node, BACKTEST) for node in days)):
        assert stage.summary in (node.description or "")
        assert node.owners
        assert node.kinds
        assert node.code_version
        (reference,) = node.metadata["dagster/code_references"].code_references
        line = Path(reference.file_path).read_text().splitlines()[reference.line_number - 1]
        assert line.startswith(f"def {stage.function.partition(':')[2]}(")


def test_every_step_waits_in_one_pool() -> None:
    pools: dict[str, set[str]] = {}
    for node in GRAPH.asset_nodes:
        (pool,) = node.pools
        pools.setdefault(pool, set()).add(node.key.to_user_string())
    assert pools == {
        "gpu": {"model", "evaluation", "item_states", *(f"{BACKTEST.asset}/{paradigm}" for paradigm in names())},
        "duckdb": {"events", "checks"},
        "dvc": {"log", "tokens", "shards", "comparison"},
    }


@pytest.mark.parametrize(
    "plain",
    [to_plain(config.Config()), yaml.safe_load((ROOT / "params.yaml").read_text())],
    ids=["configuration", "params.yaml"],
)
def test_every_parameter_that_dvc_watches_exists(plain: dict[str, Any]) -> None:
    # A section may be left out of params.yaml everywhere but here: DVC stops at a parameter that is not in the file.
    for stage in STAGES:
        for param in stage.params:
            node = plain
            for part in param.split("."):
                assert part in node, f"{stage.name} watches {param}"
                node = node[part]


def test_definitions_load_without_the_libraries_that_the_stages_use() -> None:
    heavy = ["torch", "transformers", "duckdb", "great_expectations", "mlflow", "pyarrow", "pandas", "matplotlib"]
    script = (
        "import sys, json; import dti_pipeline.definitions;"
        f" print(json.dumps([name for name in {heavy!r} if name in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    assert json.loads(done.stdout) == []
