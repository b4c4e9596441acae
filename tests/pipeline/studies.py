"""A study of two paradigms on a small log, for the tests of `dti study`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from experiments import analyse
from experiments import grid as grids
from experiments.grid import Grid
from tests.project import TINY

STUDY: dict[str, Any] = {
    "results": ".",
    "document": "results.md",
    "pictures": "img",
    "data_sets": {"demo": {"note": "made here", "params": {"events": {"source": "synthetic"}, **TINY}}},
    "groups": [{"name": "main", "data_sets": ["demo"], "paradigms": ["sliding_window", "dti"], "n": [5], "k": [10]}],
    "figures": {"leak_k": ["main"], "speedup_k": ["main"]},
}
DOCUMENT = """# Results

<!-- study: main -->
<!-- end -->

<!-- histories: main -->
<!-- end -->

<!-- figure: leak_k -->
<!-- end -->

<!-- figure: auc_n -->
<!-- end -->

What we learned.
"""


def study(home: Path, **training: Any) -> Grid:
    """The small study, written into a folder with a document that asks for its table."""
    content = json.loads(json.dumps(STUDY))
    content["data_sets"]["demo"]["params"]["training"] |= training
    home.mkdir(parents=True, exist_ok=True)
    (home / "study.yaml").write_text(yaml.safe_dump(content))
    (home / "results.md").write_text(DOCUMENT)
    return grids.load(home / "study.yaml")


def rows_of(home: Path) -> list[analyse.Row]:
    """The rows of the results in the study's folder."""
    return analyse.read(grids.load(home / "study.yaml"))
