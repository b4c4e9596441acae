"""A damaged file of any folder of a home is named, and nothing is computed from it."""

from __future__ import annotations

import logging
import random
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

from dti_pipeline import artifacts
from dti_pipeline.errors import InputError
from dti_pipeline.modeling.network import storage
from dti_pipeline.paths import Paths
from dti_pipeline.pipeline import BY_NAME
from dti_pipeline.serving.scorer import Scorer
from dti_pipeline.tracking import registry
from dti_pipeline.training import checkpoint
from dti_pipeline.training.checkpoint import Progress
from tests import small
from tests.pipeline.recorded import settings, train

CONFIG = small.configured()


@dataclass(frozen=True)
class Kind:
    """A folder of a home, and whoever reads it."""

    folder: Callable[[Paths], Path]
    read: Callable[[Paths], object]


def stage(name: str) -> Callable[[Paths], object]:
    made = BY_NAME[name]
    return lambda paths: made.run(CONFIG, paths, "dti" if made.per_paradigm else None)


KINDS = {
    "events": Kind(lambda home: home.events, stage("tokenize")),
    "events, beside tokens": Kind(lambda home: home.events, stage("pack")),
    "events, beside evaluations": Kind(lambda home: home.events, stage("compare")),
    "staged": Kind(lambda home: home.staged, stage("validate")),
    "checks": Kind(lambda home: home.checks, stage("tokenize")),
    "tokens": Kind(lambda home: home.tokens, stage("pack")),
    "shards": Kind(lambda home: home.shards("dti"), stage("train")),
    "model": Kind(lambda home: home.model("dti"), stage("evaluate")),
    "model, served": Kind(lambda home: home.model("dti"), lambda home: Scorer.load(home.model("dti"))),
    "evaluation": Kind(lambda home: home.evaluation("dti"), stage("compare")),
}
TIMES = [2, pytest.param(40, marks=pytest.mark.long)]


@pytest.fixture(scope="module")
def changed(small_home: Paths, tmp_path_factory: pytest.TempPathFactory) -> Paths:
    home = tmp_path_factory.mktemp("damaged") / "home"
    shutil.copytree(small_home.home, home)
    return Paths(home)


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


@contextmanager
def damaged(path: Path, how: random.Random, cut: bool) -> Iterator[None]:
    """One bit of a file is another, or its end is missing."""
    content = path.read_bytes()
    place = how.randrange(len(content))
    broken = content[:place] if cut else content[:place] + bytes([content[place] ^ 1 << how.randrange(8)])
    try:
        path.write_bytes(broken + content[place + 1 :] if not cut else broken)
        yield
    finally:
        path.write_bytes(content)


def state(home: Paths) -> dict[Path, str]:
    return {path: artifacts.file_digest(path) for path in files(home.home) if path.suffix != ".lock"}


@pytest.mark.parametrize("times", TIMES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_flipped_bit_or_a_cut_in_any_file_is_named(changed: Paths, kind: str, times: int) -> None:
    folder = KINDS[kind].folder(changed)
    for path in files(folder):
        how = random.Random(f"{kind} {path.relative_to(folder)}")
        for number in range(times):
            with damaged(path, how, cut=number % 2 == 1):
                before = state(changed)
                with pytest.raises(InputError, match=re.escape(str(path))):
                    KINDS[kind].read(changed)
                assert state(changed) == before, "nothing was made of it"
    assert len(files(folder)) >= 2


@pytest.mark.parametrize("times", TIMES)
def test_a_damaged_copy_of_the_registry_is_named(tracked: Paths, times: int) -> None:
    train(tracked)
    copy = registry.folder(settings(tracked), tracked, "models:/dti@dti")
    for path in files(copy):
        how = random.Random(path.name)
        for number in range(times):
            with damaged(path, how, cut=number % 2 == 1), pytest.raises(InputError, match=re.escape(str(path))):
                registry.folder(settings(tracked), tracked, "models:/dti@dti")
    assert registry.folder(settings(tracked), tracked, "models:/dti@dti") == copy


@pytest.mark.parametrize("times", TIMES)
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(
    changed: Paths, tmp_path: Path, caplog: pytest.LogCaptureFixture, times: int
) -> None:
    """The weights and the state, its step among it."""
    model = storage.load(changed.model("dti"), torch.device("cpu"))
    optimizer = torch.optim.AdamW(model.parameters())
    for step in (5, 10):
        newest = checkpoint.save(tmp_path, Progress(step=step, targets_seen=32 * step), model, optimizer)
    assert sorted(path.name for path in newest.iterdir()) == ["state.json", "state.safetensors"]
    for path in files(newest):
        how = random.Random(path.name)
        for number in range(times):
            caplog.clear()
            with damaged(path, how, cut=number % 2 == 1), caplog.at_level(logging.WARNING):
                found = checkpoint.restore(tmp_path, model, optimizer)
            assert found == Progress(step=5, targets_seen=160)
            assert f"{newest} is damaged" in caplog.text
    assert checkpoint.restore(tmp_path, model, optimizer) == Progress(step=10, targets_seen=320)


@pytest.mark.parametrize("times", TIMES)
def test_a_damaged_part_is_read_again(changed: Paths, caplog: pytest.LogCaptureFixture, times: int) -> None:
    events = state(replace(changed, home=changed.events))
    for path in files(changed.staged):
        how = random.Random(path.name)
        for number in range(times):
            caplog.clear()
            with damaged(path, how, cut=number % 2 == 1), caplog.at_level(logging.WARNING):
                BY_NAME["ingest"].run(CONFIG, changed)
            assert f"{path} is damaged" in caplog.text
            assert state(replace(changed, home=changed.events)) == events
