"""Fixtures of several files of these tests."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from threading import Event
from typing import TYPE_CHECKING

import pytest

from dti_pipeline.paths import Paths

if TYPE_CHECKING:
    from dti_pipeline.errors import InputError
    from dti_pipeline.serving.requests import Request
    from dti_pipeline.serving.scorer import Scored, Scorer
    from tests.objects import Store


@pytest.fixture(scope="module")
def whole_store() -> Iterator[Store]:
    from tests import objects  # its server takes a second to import, and most files need none

    with objects.store() as found:
        yield found


@pytest.fixture
def store(whole_store: Store, monkeypatch: pytest.MonkeyPatch) -> Store:
    """An S3-compatible store on loopback, empty, and its address and keys in the environment."""
    for name, value in whole_store.environment.items():
        monkeypatch.setenv(name, value)
    whole_store.clear()
    return whole_store


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Paths:
    """A home with small models of two paradigms, which no test changes."""
    from tests.code.services import NAMES  # these import torch
    from tests.small_models import train

    paths = Paths(tmp_path_factory.mktemp("home"))
    train(paths, NAMES, tokens={"template": "{item_text} ({item_id})"})
    return paths


@pytest.fixture(scope="session")
def scorers(served: Paths) -> dict[str, Scorer]:
    from dti_pipeline.serving.scorer import Scorer
    from tests.code.services import NAMES

    return {name: Scorer.load(served.model(name)) for name in NAMES}


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Event:
    """Scoring of what a service is asked waits for it."""
    from dti_pipeline.serving.scorer import Scorer

    opened, real = Event(), Scorer.score_each

    def held(self: Scorer, asked: Sequence[Request]) -> list[Scored | InputError]:
        assert opened.wait(20)
        return real(self, asked)

    monkeypatch.setattr(Scorer, "score_each", held)
    return opened
