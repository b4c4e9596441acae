"""Who may import whom: no circles, arrows from the entry points down, and the graph in CONTRIBUTING.md is today's."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import imports

GRAPH = imports.graph()
ROOMS = imports.rooms(GRAPH)
ENTRIES = {
    "clean",
    "cli",
    "cli_home",
    "cli_options",
    "cli_serving",
    "cli_store",
    "explain",
    "defs",
    "dvc",
    "ui",
    "experiments",
    "benchmarks",
}
MODELING = ("modeling/speed", "modeling/masks", "modeling/attention", "modeling/network")


def tier(room: str) -> int:
    """0 for what everybody may import, 1 for the stages' packages, 2 for the stage table, 3 for the entry points."""
    if room in ENTRIES:
        return 3
    if room == "pipeline":
        return 2
    return int((imports.ROOT / "dti_pipeline" / room).is_dir())


def test_no_import_leads_back_to_where_it_began() -> None:
    assert imports.circles(GRAPH) == []


def test_packages_import_one_another_one_way() -> None:
    assert imports.circles(ROOMS) == []


def test_nothing_imports_what_stands_above_it() -> None:
    assert [f"{room} -> {up}" for room, others in ROOMS.items() for up in others if tier(up) > tier(room)] == []


def test_modelings_rooms_stand_one_on_another() -> None:
    rooms = [room for room in MODELING if room in ROOMS]
    above = {room: set(rooms[index + 1 :]) for index, room in enumerate(rooms)}
    assert {room: ROOMS[room] & above[room] for room in rooms} == {room: set() for room in rooms}


def test_contributing_shows_the_graph_of_today() -> None:
    document = imports.DOCUMENT.read_text(encoding="utf-8")
    assert document == imports.rewritten(document), "run `python -m tests.imports`"


@pytest.mark.parametrize(
    "late",
    [
        "from dti_pipeline.b import B",
        "import dti_pipeline.b",
        "from . import b",
        "from .b import B",
        "def f():\n    from dti_pipeline import b",
        "if TYPE_CHECKING:\n    from dti_pipeline.b import B",
        "MODULE = 'dti_pipeline.b'",
        "FUNCTION = 'dti_pipeline.b:f'",
    ],
)
def test_a_circle_is_found_however_it_is_written(tmp_path: Path, late: str) -> None:
    package = tmp_path / "dti_pipeline"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "a.py").write_text(late)
    (package / "b.py").write_text("from dti_pipeline import a")
    (package / "c.py").write_text("'''Of dti_pipeline.b, in words.'''\nimport json\nfrom dti_pipeline.b import B")
    assert imports.circles(imports.graph(tmp_path)) == [["dti_pipeline.a", "dti_pipeline.b"]]
