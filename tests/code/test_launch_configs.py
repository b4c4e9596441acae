"""The files for accelerate start as many processes as they say, and sharing out weights stays this project's."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from accelerate.commands.launch import _validate_launch_command, launch_command_parser

from dti_pipeline.config import TrainingConfig
from dti_pipeline.errors import InputError
from dti_pipeline.training.setup import accelerator_for

CONFIGS = sorted((Path(__file__).resolve().parents[2] / "configs").glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_accelerate_takes_the_command_that_the_file_names(path: Path) -> None:
    comments = " ".join(
        line.removeprefix("#").strip(" \\") for line in path.read_text().splitlines() if "#" in line[:1]
    )
    command = comments[comments.index("accelerate launch") :].replace(f"configs/{path.name}", str(path))
    arguments = launch_command_parser().parse_args(shlex.split(command)[2:])
    checked, _, _ = _validate_launch_command(arguments)
    assert checked.multi_gpu
    assert not checked.use_fsdp
    assert checked.num_processes == 8 * checked.num_machines
    assert f"training.processes={checked.num_processes}" in checked.training_script_args
    assert checked.module
    assert checked.training_script == "dti_pipeline.cli"
    if checked.num_machines > 1:
        assert (checked.machine_rank, checked.main_process_ip) == (0, "ADDRESS")


@pytest.mark.parametrize("engine", ["FSDP", "DEEPSPEED"])
def test_another_engine_that_shares_out_weights_is_refused(engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"ACCELERATE_USE_{engine}", "true")
    with pytest.raises(InputError, match=re.escape(f"accelerate was asked for {engine}")):
        accelerator_for(TrainingConfig(device="cpu"))


def test_there_are_files_for_one_machine_and_for_several() -> None:
    assert [path.stem for path in CONFIGS] == ["one_node_8_gpus", "several_nodes"]
