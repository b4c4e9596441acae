"""What a stage publishes is of the inputs that it read, though others take their place while it runs."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from dti_pipeline import artifacts
from dti_pipeline.errors import InputError
from dti_pipeline.paths import Paths
from dti_pipeline.pipeline import BY_NAME
from dti_pipeline.training.progress import Event, Stepped
from tests import small

CONFIG = small.configured(validation={"required": False})
#: Of as many rows, with other items, labels and texts.
OTHER = small.configured(validation={"required": False}, synth={"seed": 99})


@pytest.fixture
def changed(small_home: Paths, tmp_path: Path) -> Paths:
    shutil.copytree(small_home.home, tmp_path / "home")
    return Paths(tmp_path / "home")


def replace_log(home: Paths, *stages: str) -> None:
    for name in stages:
        BY_NAME[name].run(OTHER, home)


def at_first_step(act: Callable[[], None]) -> Callable[[Event], None]:
    done: list[Event] = []

    def listen(event: Event) -> None:
        if isinstance(event, Stepped) and not done:
            done.append(event)
            act()

    return listen


def test_a_training_whose_log_is_replaced_publishes_nothing_and_trains_again(changed: Paths) -> None:
    before = artifacts.folder_digest(changed.model("dti"))
    listener = at_first_step(lambda: replace_log(changed, "synth", "ingest", "tokenize"))
    with pytest.raises(InputError, match=r"data/tokens changed while it was read, so nothing was published"):
        BY_NAME["train"].run(CONFIG, changed, "dti", listeners=[listener])
    assert artifacts.folder_digest(changed.model("dti")) == before
    with pytest.raises(InputError, match="run `dti train` again"):
        BY_NAME["evaluate"].run(CONFIG, changed, "dti")
    for name in ("pack", "train", "evaluate"):
        BY_NAME[name].run(OTHER, changed, "dti")
    claimed = artifacts.read(changed.model("dti"), "train").inputs
    assert claimed["tokens"] == artifacts.folder_digest(changed.tokens)


def test_a_training_whose_events_alone_are_replaced_is_of_its_tokens(changed: Paths) -> None:
    """It read no events. What would mix it with the new ones is refused."""
    tokens = artifacts.folder_digest(changed.tokens)
    BY_NAME["train"].run(
        CONFIG, changed, "dti", listeners=[at_first_step(lambda: replace_log(changed, "synth", "ingest"))]
    )
    assert artifacts.read(changed.model("dti"), "train").inputs["tokens"] == tokens
    with pytest.raises(InputError, match="is of other events"):
        BY_NAME["evaluate"].run(CONFIG, changed, "dti")


@pytest.mark.parametrize("name", ["tokenize", "pack", "evaluate", "compare"])
def test_a_stage_whose_events_are_replaced_while_it_writes_publishes_nothing(
    changed: Paths, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    stage = BY_NAME[name]
    paradigm = "dti" if stage.per_paradigm else None
    before, write = artifacts.folder_digest(stage.output(changed, paradigm)), artifacts.sealed

    def then_replaced(content: dict[str, object]) -> dict[str, object]:
        monkeypatch.setattr(artifacts, "sealed", write)
        replace_log(changed, "synth", "ingest", "tokenize")
        return write(content)

    monkeypatch.setattr(artifacts, "sealed", then_replaced)
    with pytest.raises(InputError, match="changed while it was read, so nothing was published"):
        stage.run(CONFIG, changed, paradigm)
    if name != "tokenize":  # which the replaced log made anew
        assert artifacts.folder_digest(stage.output(changed, paradigm)) == before
