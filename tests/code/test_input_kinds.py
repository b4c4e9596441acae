"""Every kind of input of the table in docs/reliability.md gets what the table says."""

from __future__ import annotations

import pytest

from dti_pipeline.paths import Paths
from tests import input_kinds
from tests.kinds import KINDS, Kind

pytestmark = pytest.mark.slow  # whole stages: `make test` runs them


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: f"{kind.of}: {kind.name}")
def test_an_input_gets_what_the_table_says(home: Paths, kind: Kind) -> None:
    kind.tried(home)


def test_the_document_has_the_table() -> None:
    text = input_kinds.DOCUMENT.read_text(encoding="utf-8")
    assert text == input_kinds.rewritten(text), "run `python -m tests.input_kinds`"
