"""A text file as an Arrow stream of its physical lines: exact line numbers, out of core, whatever bytes are in it.

The quarantine names lines; DuckDB's own CSV reader skips blank ones and stops at bytes that are not UTF-8. So the file
is cut at its newlines here, without a Python object per line; all that looks into a line is SQL.
"""

from __future__ import annotations

import codecs
import gzip
import itertools
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import numpy as np
import pyarrow as pa

from dti_pipeline.errors import InputError

SCHEMA = pa.schema([("line", pa.int64()), ("text", pa.large_string()), ("utf8", pa.bool_())])
BLOCK = 8 << 20  # bytes read at a time
LONGEST = BLOCK  # bytes of a line: of a longer one a byte more is kept, which tells that it is too long
SHOWN = 1000  # characters of it that the quarantine has
TOO_LONG = f"longer than {LONGEST >> 20} MiB"
RECORD_LINES = 100  # a quoted CSV field may span this many lines; beyond it, its quote was never closed


@dataclass
class Lines:
    """One file's lines. ``error`` holds what stopped the stream, for DuckDB reports it only as text."""

    path: Path
    skip: int = 0  # header lines
    encoding: str = "utf-8"
    record: re.Pattern[bytes] | None = None  # a whole CSV record; fields in quotes may then hold newlines
    error: BaseException | None = field(default=None, init=False)

    def stream(self) -> pa.RecordBatchReader:
        """(line, text, utf8): number from 1, text with its ending, whether it was UTF-8. Memory: a few blocks."""
        return pa.RecordBatchReader.from_batches(SCHEMA, self._batches())

    def _batches(self) -> Iterator[pa.RecordBatch]:
        try:
            first, rest, last = 1, b"", False
            with reading(self.path) as handle:
                while not last:
                    block = handle.read(BLOCK)
                    last = not block
                    if len(rest) > LONGEST and b"\n" not in rest:
                        # No more of this line is kept.
                        rest, block = rest[: LONGEST + 1], block[end:] if (end := block.find(b"\n")) >= 0 else b""
                        if not block and not last:
                            continue
                    data = rest + block
                    if last and data and not data.endswith(b"\n"):
                        data += b"\n"
                    ends = np.flatnonzero(np.frombuffer(data, dtype=np.uint8) == ord("\n")) + 1
                    whole = np.ones(len(ends), dtype=bool)
                    if self.record is not None:
                        whole = _record_ends(data, ends, self.record, last or len(data) > 2 * LONGEST)
                        ends = ends[: len(whole)]
                    rest = data[ends[-1] if len(ends) else 0 :]
                    if len(ends):
                        yield self._batch(first, data, ends, whole)
                    first += len(ends)
        except BaseException as error:
            self.error = error
            raise

    def _batch(self, first: int, data: bytes, ends: np.ndarray, whole: np.ndarray) -> pa.RecordBatch:
        """One block's records: ``whole`` says of each line whether a record ends with it."""
        numbers = np.arange(first, first + len(ends))[np.concatenate([[True], whole[:-1]])]
        offsets = np.concatenate([[0], ends[whole]])
        skipped = int(np.searchsorted(numbers, self.skip, side="right"))
        numbers, offsets = numbers[skipped:], offsets[skipped:]
        text, utf8 = _texts(data, offsets, self.encoding)
        return pa.record_batch([pa.array(numbers), text, utf8], schema=SCHEMA)


def _texts(data: bytes, offsets: np.ndarray, encoding: str) -> tuple[pa.Array, pa.Array]:
    count = len(offsets) - 1
    if _is_utf8(data):
        array = pa.LargeStringArray.from_buffers(count, pa.py_buffer(offsets.astype(np.int64)), pa.py_buffer(data))
        return array, pa.array(np.ones(count, dtype=bool))
    parts = [data[start:end] for start, end in itertools.pairwise(offsets)]
    good = [encoding != "utf-8" or _is_utf8(part) for part in parts]
    return pa.array([part.decode(encoding, "backslashreplace") for part in parts], pa.large_string()), pa.array(good)


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def record_pattern(separator: str, width: int) -> re.Pattern[bytes]:
    """A whole CSV record of ``width`` fields: in quotes anything with quotes doubled, outside them no newline."""
    mark = re.escape(separator.encode())
    one = rb'(?:"(?:[^"]|"")*"|[^"\n' + mark + rb"][^\n" + mark + rb"]*|)"
    return re.compile(one + rb"(?:" + mark + one + rb"){%d}\r?\n" % (width - 1))


def _record_ends(data: bytes, ends: np.ndarray, record: re.Pattern[bytes], last: bool) -> np.ndarray:
    """For each line, whether a record ends with it; shorter than ``ends`` where the rest needs the next block.

    Only a line with an odd number of quotes can open a longer record. One that does not become a record within
    RECORD_LINES lines stands alone, so that a stray quote spoils its own line and no other.
    """
    whole = np.ones(len(ends), dtype=bool)
    quotes = np.flatnonzero(np.frombuffer(data, dtype=np.uint8) == ord('"'))
    odd = np.bincount(np.searchsorted(ends, quotes, side="right"), minlength=len(ends))[: len(ends)] % 2 == 1
    starts = np.concatenate([[0], ends[:-1]])
    done = 0
    for index in np.flatnonzero(odd).tolist():
        if index < done or record.fullmatch(data, starts[index], ends[index]):
            continue
        closing = np.flatnonzero(odd[index + 1 : index + RECORD_LINES])
        if len(closing):
            done = index + 2 + int(closing[0])
            if record.fullmatch(data, starts[index], ends[done - 1]):
                whole[index : done - 1] = False
            else:
                done = index + 1
        elif not last and index + RECORD_LINES > len(ends):
            return whole[:index]
    return whole


@contextmanager
def reading(path: Path) -> Iterator[IO[bytes]]:
    """The file's bytes, unzipped where its name ends in .gz, without a byte order mark.

    Raises InputError for a file that is missing, truncated or corrupt.
    """
    zipped = path.suffix.lower() == ".gz"
    try:
        with gzip.open(path) if zipped else path.open("rb") as handle:
            if handle.read(3) != codecs.BOM_UTF8:
                handle.seek(0)
            yield handle  # type: ignore[misc]  # of gzip too
    except (OSError, EOFError, zlib.error) as error:
        state = "is not a whole gzip file" if zipped and not isinstance(error, FileNotFoundError) else "cannot be read"
        raise InputError(f"{path} {state}: {error}") from error


#: First bytes of files that are no UTF-8 text, and what they are.
_OTHERS = {
    b"\xff\xfe": "UTF-16 text: save it as UTF-8",
    b"\xfe\xff": "UTF-16 text: save it as UTF-8",
    b"\x1f\x8b": "a gzip file: its name must end in .gz",
    b"PK\x03\x04": "a zip archive or a workbook: unpack it, or save it as CSV",
    b"PAR1": "a Parquet file: its name must end in .parquet",
    b"BZh": "a bzip2 file: unpack it",
    b"\x28\xb5\x2f\xfd": "a Zstandard file: unpack it",
    b"\xfd7zXZ": "an xz file: unpack it",
}


def _check(path: Path, start: bytes) -> None:
    """Raise InputError for what is no text in lines, as its first bytes say."""
    for mark, kind in _OTHERS.items():
        if start.startswith(mark):
            raise InputError(f"{path} is {kind}")
    if len(start) >= 8 and not all(any(start[first:40:2]) for first in (0, 1)):
        raise InputError(f"{path} has a zero in every second byte: it is UTF-16 text, save it as UTF-8")
    if start.rstrip(b"\r").count(b"\r") > 1 and b"\n" not in start:
        raise InputError(f"{path} has lines that end in CR alone: save it with LF or CR LF")


def head(path: Path, count: int) -> list[str]:
    """The first lines, ``count`` and a few MiB at most, without endings; those that are not UTF-8 as ISO-8859-1.
    Raises InputError as ``reading``, and for a file that is no text."""
    with reading(path) as handle:
        _check(path, handle.read(4096))
    with reading(path) as handle:
        lines: list[bytes] = []
        left = 2 * LONGEST
        while len(lines) < count and left > 0 and (line := handle.readline(LONGEST + 1)):
            lines.append(line)
            left -= len(line)
    if len(lines[0] if lines else b"") > LONGEST:
        raise InputError(f"{path} line 1 is {TOO_LONG}")
    return [(line.decode() if _is_utf8(line) else line.decode("iso-8859-1")).rstrip("\r\n") for line in lines if line]


def encoding_of(path: Path) -> str:
    """``utf-8``, or ``iso-8859-1`` for a file that is not. Cost: one read. Raises InputError as ``reading``."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        with reading(path) as handle:
            while block := handle.read(BLOCK):
                decoder.decode(block)
        decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        return "iso-8859-1"
    return "utf-8"
