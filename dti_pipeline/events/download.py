"""One file over HTTP, resumed where it stopped."""

from __future__ import annotations

import http.client
import re
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

from dti_pipeline.artifacts import file_digest
from dti_pipeline.errors import InputError

BLOCK = 1 << 18  # bytes
TIMEOUT = 60.0  # seconds without a byte
MOST = 64 << 30  # bytes of a file; the largest log in the catalogue has a third of it

#: Hears (bytes here, bytes in all or None) now and then.
Progress = Callable[[int, int | None], None]


def download(url: str, target: Path, md5: str | None = None, progress: Progress | None = None) -> str:
    """Fetch ``url`` to ``target`` through ``target.part`` and return the file's MD5.

    A part that is there is resumed if the server still has that same file; otherwise the file comes whole. Raises
    InputError when the server refuses or breaks off (the part stays) or when the checksum is not ``md5`` (it goes).
    """
    part, version = target.with_name(target.name + ".part"), target.with_name(target.name + ".version")
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        total = _receive(url, part, version, md5 is not None, progress)
    except urllib.error.HTTPError as error:
        raise InputError(f"{url} answers {error.code} {error.reason}") from error
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        raise InputError(f"{url} could not be fetched ({reason}): run it again to go on where it stopped") from error
    if total is not None and part.stat().st_size != total:
        raise InputError(
            f"{url} broke off after {part.stat().st_size} of {total} bytes: run it again to go on where it stopped"
        )
    found = file_digest(part)
    version.unlink(missing_ok=True)
    if md5 is not None and found != md5:
        part.unlink()
        raise InputError(f"{url} has MD5 {found}, not the published {md5}: what came was removed")
    part.replace(target)
    return found


def _receive(url: str, part: Path, version: Path, checked: bool, progress: Progress | None) -> int | None:
    """Append to the part, or begin it anew; returns the file's whole size where the server says it."""
    have = part.stat().st_size if part.is_file() else 0
    known = version.read_text() if version.is_file() else ""
    if not known and not checked:
        have = 0  # nothing could tell that the rest belongs to the same file
    request = urllib.request.Request(url, headers={"User-Agent": "dti-pipeline", "Accept-Encoding": "identity"})
    if have:
        request.add_header("Range", f"bytes={have}-")
        if known:
            request.add_header("If-Range", known)
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code != http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            raise
        part.unlink()  # the part is as long as the file or longer: whole, most likely, but only a new one is sure
        version.unlink(missing_ok=True)
        return _receive(url, part, version, checked, progress)
    with response:
        span = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", response.headers.get("Content-Range", ""))
        resumed = response.status == http.HTTPStatus.PARTIAL_CONTENT and span is not None and int(span[1]) == have
        length = response.headers.get("Content-Length")
        total = int(span[2]) if resumed and span else int(length) if length else None
        here = have if resumed else 0
        if (total or 0) > MOST:
            raise InputError(f"{url} has {total} bytes, more than {MOST}: it was not fetched")
        # A weak validator vouches for the meaning, not for the bytes, and may not be used with a range.
        tag = response.headers.get("ETag", "")
        validator = tag if tag and not tag.startswith("W/") else response.headers.get("Last-Modified", "")
        version.write_text(validator)
        with part.open("ab" if resumed else "wb") as handle:
            while block := response.read(BLOCK):
                handle.write(block)
                here += len(block)
                if here > MOST:
                    raise InputError(f"{url} has more than {MOST} bytes: it was not fetched")
                if progress:
                    progress(here, total)
    return total
