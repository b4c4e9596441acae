"""A full disk, a read-only home, few descriptors: one sentence, exit code 2, and the outputs from before are whole."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from dti_pipeline.paths import Paths
from dti_pipeline.plain import to_plain
from tests import small

ROOT = Path(__file__).resolve().parents[2]
#: Shell lines that restrict the home, where the process has mounts of its own.
LIMITS = {
    "full": "mount -t tmpfs -o size=40m none . && cd $PWD && cp -r $MADE/. . && ! cat /dev/zero > fill 2> /dev/null",
    "without inodes": "mount -t tmpfs -o nr_inodes=500 none . && cd $PWD && cp -r $MADE/. . && mkdir fill"
    " && ! (n=0; while : 2> /dev/null > fill/$n; do n=$((n+1)); done) 2> /dev/null",
    "read-only": "cp -r $MADE/. . && mount --bind . . && mount -o remount,ro,bind . && cd $PWD",
    "few descriptors": "cp -r $MADE/. . && ulimit -Sn 9",
}
STAGES = ("synth", "ingest", "validate", "tokenize", "pack", "train", "evaluate", "compare")
OUTPUTS = "ulimit -Sn 256; find data models reports -type f ! -name '*.lock' -exec md5sum {} + | sort"


def _mounts() -> bool:
    return (
        shutil.which("unshare") is not None
        and not subprocess.run(
            ["unshare", "-Urm", "mount", "-t", "tmpfs", "none", "/mnt"], capture_output=True, check=False
        ).returncode
    )


@pytest.fixture(scope="module")
def made(small_home: Paths, tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not _mounts():
        pytest.skip("no mounts without root here")
    home = tmp_path_factory.mktemp("refused") / "made"
    shutil.copytree(small_home.home, home)
    (home / "params.yaml").write_text(yaml.safe_dump(to_plain(small.configured())))
    return home


@pytest.mark.long
@pytest.mark.parametrize("limit", LIMITS)
@pytest.mark.parametrize("stage", STAGES)
def test_what_the_machine_refuses_is_one_sentence_and_loses_nothing(
    made: Path, tmp_path: Path, limit: str, stage: str
) -> None:
    command = f"{shlex.quote(sys.executable)} -m dti_pipeline.cli {stage}"
    script = f"{LIMITS[limit]}\nbefore=$({OUTPUTS})\nDTI_HOME=$PWD {command} > /dev/null\ncode=$?"
    script += f'\n[ "$before" = "$({OUTPUTS})" ] || echo changed\nexit $code'
    environment = {**os.environ, "MADE": str(made), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        ["unshare", "-Urm", "bash", "-c", script],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "Traceback" not in done.stderr
    if limit == "few descriptors" and done.returncode == 0:
        return  # they were enough
    assert (done.returncode, len(errors)) == (2, 1), done.stderr
    assert done.stdout == "", "an output from before is another"
