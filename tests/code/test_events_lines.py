"""Every physical line of a file has its own number, whatever bytes and newlines are in it."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dti_pipeline.errors import InputError
from dti_pipeline.events import lines
from dti_pipeline.events.lines import Lines, encoding_of, head, record_pattern


def read(path: Path, **options) -> list[tuple[int, str, bool]]:
    table = Lines(path, **options).stream().read_all()
    return list(zip(*(table.column(name).to_pylist() for name in ("line", "text", "utf8")), strict=True))


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=60), block=st.integers(1, 70), skip=st.integers(0, 2))
def test_lines_of_any_bytes_are_those_between_newlines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, block: int, skip: int
) -> None:
    monkeypatch.setattr(lines, "BLOCK", block)
    path = tmp_path / "log"
    path.write_bytes(content)
    content = content.removeprefix(b"\xef\xbb\xbf")
    expected = content.split(b"\n")
    if expected[-1] == b"":
        expected.pop()

    rows = read(path, skip=skip)

    assert [number for number, _, _ in rows] == list(range(1 + skip, len(expected) + 1))
    for (_, text, utf8), raw in zip(rows, expected[skip:], strict=True):
        assert text == raw.decode(errors="backslashreplace") + "\n"
        assert utf8 == (raw.decode(errors="ignore").encode() == raw)


@pytest.mark.parametrize("block", [1, 7, 20, 1000])
def test_a_quoted_field_may_span_lines_and_keeps_the_number_of_its_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    monkeypatch.setattr(lines, "BLOCK", block)
    path = tmp_path / "log.csv"
    path.write_text('a,b\n1,"two\nlines"\n2,plain\n3,"one ""and""\n\nmore"\n4,end\n')
    rows = read(path, record=record_pattern(",", 2))
    assert [(number, text) for number, text, _ in rows] == [
        (1, "a,b\n"),
        (2, '1,"two\nlines"\n'),
        (4, "2,plain\n"),
        (5, '3,"one ""and""\n\nmore"\n'),
        (8, "4,end\n"),
    ]


@pytest.mark.parametrize("block", [1, 7, 1000])
def test_a_stray_quote_spoils_its_own_line_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr(lines, "BLOCK", block)
    path = tmp_path / "log.csv"
    path.write_text('1,"open,2\n3,4\n5,"quoted"\n6,"open again\n7,8\n')
    assert [number for number, _, _ in read(path, record=record_pattern(",", 2))] == [1, 2, 3, 4, 5]


def test_an_open_quote_gives_up_after_a_bounded_number_of_lines(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text('1,"open\n' + "2,x\n" * lines.RECORD_LINES + '3,close"\n')
    assert len(read(path, record=record_pattern(",", 2))) == lines.RECORD_LINES + 2


def test_zipped_lines_are_the_same_lines(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("one\ntwo")
    (tmp_path / "log.gz").write_bytes(gzip.compress(b"one\ntwo"))
    assert read(tmp_path / "log.gz") == read(tmp_path / "log") == [(1, "one\n", True), (2, "two\n", True)]


def test_iso_8859_1_is_read_as_such_when_asked(tmp_path: Path) -> None:
    path = tmp_path / "movies.dat"
    path.write_bytes("1::Café\n".encode("iso-8859-1"))
    assert encoding_of(path) == "iso-8859-1"
    assert read(path, encoding="iso-8859-1") == [(1, "1::Café\n", True)]
    path.write_bytes("1::Café\n".encode())
    assert encoding_of(path) == "utf-8"


def test_a_character_cut_by_a_block_is_still_utf8(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "BLOCK", 1)
    path = tmp_path / "movies.dat"
    path.write_bytes("é\n".encode())
    assert encoding_of(path) == "utf-8"
    assert read(path) == [(1, "é\n", True)]


def test_a_corrupt_gzip_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl.gz"
    path.write_bytes(b"not gzip")
    with pytest.raises(InputError, match=r"log.jsonl.gz is not a whole gzip file"):
        head(path, 1)
