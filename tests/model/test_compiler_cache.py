"""What is compiled is found by the next start; no training ends because it cannot be."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch

from dti_pipeline.modeling.speed import compiler, compiler_cache
from dti_pipeline.modeling.speed.compiler_cache import TORCH, TRITON
from tests.model.test_fallback import chosen

#: In three processes, forked before anything is compiled: compiles a function with an autograd function and a region of
#: another precision, and prints how torch found it. Before the third, what was kept is damaged.
COMPILES = """
import os, sys, torch
from pathlib import Path
from dti_pipeline.modeling.speed import compiler, compiler_cache

class Twice(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x + x

    @staticmethod
    def backward(ctx, gradient):
        return gradient + gradient

@torch.compile
def function(x):
    with torch.autocast("cpu", enabled=False):
        return Twice.apply(x.float()).sum()

def compiles():
    compiler_cache.keep(kept)
    compiler.allow_graphs()
    x = torch.ones(4, requires_grad=True)
    function(x).backward()
    assert x.grad.tolist() == [2.0] * 4
    counts = torch._dynamo.utils.counters["aot_autograd"]
    print([counts[f"autograd_cache_{what}"] for what in ("hit", "miss", "bypass")], flush=True)

kept = Path(sys.argv[1])
for number in range(3):
    if number == 2:
        for file in kept.rglob("*"):
            if file.is_file():
                file.write_bytes(b"not this")
    if child := os.fork():
        assert os.waitpid(child, 0)[1] == 0
    else:
        compiles()
        sys.exit()
"""


@pytest.fixture(autouse=True)
def untouched(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in (TORCH, TRITON):
        monkeypatch.setenv(variable, "")  # so that it is put back
        monkeypatch.delenv(variable)
    monkeypatch.setattr(compiler_cache, "_found", [])


@pytest.mark.slow
def test_the_next_process_finds_graphs_that_torch_alone_would_not_keep(tmp_path: Path) -> None:
    command = [sys.executable, "-c", COMPILES, str(tmp_path / "kept")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    first, second, third = done.stdout.splitlines()
    assert first == "[0, 1, 0]"
    assert second == "[1, 0, 0]"
    assert third, "it is done all the same"


def test_a_variable_of_the_users_own_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TRITON, "/mine")
    compiler_cache.keep(tmp_path)
    assert os.environ[TRITON] == "/mine"
    assert os.environ[TORCH] == str(tmp_path / "torch")


def test_a_folder_that_cannot_be_written_is_left_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    with caplog.at_level(logging.WARNING):
        compiler_cache.keep(tmp_path / "file" / "cache")
    assert TORCH not in os.environ
    assert len(caplog.messages) == 1
    assert "not kept for the next start" in caplog.text


def test_a_form_is_tried_again_without_what_was_compiled_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    kept = tmp_path / "kept"
    (kept / "older").mkdir(parents=True)
    compiler_cache.keep(kept)
    choice, runners, told = chosen([RuntimeError("broken"), None])
    assert runners[0].rows == [4, 4] * 2, "once with it, once without"
    assert choice.runner is runners[1]
    assert len(told) == 1
    assert not os.environ[TORCH].startswith(str(kept))
    assert not compiler_cache.holds_older()


def test_graphs_of_other_code_are_others(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(compiler_cache, "SOURCES", tmp_path)
    (tmp_path / "operator.py").write_text("gradient = 1")
    keys = [compiler_cache.key.__wrapped__()]
    (tmp_path / "operator.py").write_text("gradient = 2")
    keys.append(compiler_cache.key.__wrapped__())
    assert keys[0] != keys[1]


def test_a_key_of_the_users_own_stays() -> None:
    with torch.compiler.config.patch(cache_key_tag="mine"):
        compiler.allow_graphs()
        assert torch.compiler.config.cache_key_tag == "mine"
