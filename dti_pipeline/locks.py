"""Who may write an output, and who reads it meanwhile, among all processes of a home.

A lock is the kernel's (flock) on ``.<name>.lock`` beside the output: it ends with its process, whatever ends that, and
no stale one can be left. On NFS it holds for all machines that mount it, unless with ``nolock``.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from pathlib import Path

from dti_pipeline.errors import InputError

log = logging.getLogger(__name__)
#: Lock files that this thread holds: what it calls may use them without waiting for itself.
_held: ContextVar[frozenset[Path]] = ContextVar("held", default=frozenset())


@contextmanager
def hold(writes: Iterable[Path] = (), reads: Iterable[Path] = (), wait: bool = True) -> Iterator[None]:
    """Hold outputs: alone those that are written, together with other readers those that are read.

    Waits for who uses them otherwise, and says for whom; all are asked for in one order, so that two never wait for
    each other. What is held already stays as it is. Raises InputError where ``wait`` is False and one is in use.
    """
    wanted = {_file(path): (path, fcntl.LOCK_SH) for path in reads}
    wanted |= {_file(path): (path, fcntl.LOCK_EX) for path in writes}
    before = _held.get()
    with ExitStack() as stack:
        for file, (path, how) in sorted(wanted.items()):
            if file not in before:
                held = _acquire(file, path, how, wait)
                if held is not None:
                    stack.callback(os.close, held)
        token = _held.set(before | wanted.keys())
        try:
            yield
        finally:
            _held.reset(token)


@contextmanager
def alone(target: Path) -> Iterator[None]:
    """Hold an output that is written: a second process that would make it waits for this one's end, whatever it is."""
    with hold([target]):
        yield


def try_folder(folder: Path) -> int | None:
    """Lock a folder itself until the descriptor is closed or the process ends; None where another holds it, or it is
    gone."""
    try:
        held = os.open(folder, os.O_RDONLY)
    except FileNotFoundError:
        return None
    if not _lock(held, fcntl.LOCK_EX):
        os.close(held)
        return None
    return held


def _file(path: Path) -> Path:
    """The lock file of an output; one that is a link to another home's is locked there."""
    path = path.resolve()
    return path.with_name(f".{path.name}.lock")


def _acquire(file: Path, path: Path, how: int, wait: bool) -> int | None:
    """A descriptor that holds the lock; None to read where nobody can write, or nothing is."""
    writes = how == fcntl.LOCK_EX
    while True:
        if writes:
            file.parent.mkdir(parents=True, exist_ok=True)
        try:
            held = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError as error:
            if writes and error.errno == errno.ENOENT:
                continue  # its folder was removed a moment ago
            if writes or error.errno not in (errno.ENOENT, errno.EROFS, errno.EACCES, errno.EPERM):
                raise
            return None
        try:
            if not _lock(held, how):
                use = f"{_holder(file)} {'uses' if writes else 'is making'} {path}"
                if not wait:
                    raise InputError(f"{use}: wait for it, or end it, and run the command again")
                log.warning("%s: waiting for it to end", use)
                fcntl.flock(held, how)
            if _same(held, file):
                return held
        except BaseException:
            os.close(held)
            raise
        os.close(held)  # somebody removed the file meanwhile, and others lock another one


def _lock(held: int, how: int) -> bool:
    try:
        fcntl.flock(held, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _same(held: int, file: Path) -> bool:
    try:
        there = file.stat()
    except FileNotFoundError:
        return False
    return os.path.samestat(os.fstat(held), there)


def _holder(file: Path) -> str:
    """Who holds a lock, as the kernel knows it: of another machine or container, and where it does not tell, "another
    process"."""
    try:
        facts, lines = file.stat(), Path("/proc/locks").read_text(encoding="ascii").splitlines()
        where = f"{os.major(facts.st_dev):02x}:{os.minor(facts.st_dev):02x}:{facts.st_ino}"
        # proc(5): number, kind, advice, access, process, file; a process that waits has `->` behind the number.
        number = next(words[4] for line in lines if (words := line.split())[1] == "FLOCK" and words[5] == where)
        words = Path(f"/proc/{number}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except (OSError, StopIteration, IndexError):
        return "another process"
    return f"process {number} ({_command(words)})"


def _command(words: list[str]) -> str:
    """A program and its command, as in ``dti train``: further words may hold a password."""
    if Path(words[0]).name.startswith("python"):
        words = words[1:]
    words = words[1:] if words[:1] == ["-m"] else words
    if not words or words[0].startswith("-"):
        return "python"
    command = [word for word in words[1:2] if word.isalpha()]
    return " ".join([Path(words[0]).name, *command])
