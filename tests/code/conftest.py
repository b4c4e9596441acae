"""Fixtures of several files of these tests."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
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
