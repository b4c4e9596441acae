"""What torch's compiler and Triton have made, kept in a project's home, so that the next start finds it.

Only folders and a key are set here, in this process's environment; a variable that somebody has set stays as it is. No
training depends on the folder: one that cannot be written is left alone, and one whose content cannot be used is given
up.
"""

from __future__ import annotations

import hashlib
import logging
import os
import sys
import tempfile
from functools import cache
from pathlib import Path

log = logging.getLogger(__name__)

TORCH, TRITON = "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"
#: Code that compiled graphs are made of.
SOURCES = Path(__file__).resolve().parents[1]
#: Of this process: the folder in use, if it held anything before.
_found: list[Path] = []


def keep(folder: Path) -> None:
    """Keep what is compiled from now on in ``folder``, and use what lies there. To be called before anything is
    compiled; says in one line where the folder is of no use."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        warm = any(folder.iterdir())
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        log.warning("what is compiled is not kept for the next start: %s", error)
        return
    _found[:] = [folder] if warm else []
    _use(folder, replacing=False)


def holds_older() -> bool:
    """Whether something that an earlier process has compiled may be in use."""
    return bool(_found)


def give_up() -> None:
    """Compile everything anew from now on, in a folder of this process alone."""
    log.warning("compiling without what earlier starts have left, which may be broken")
    _found.clear()
    _use(Path(tempfile.mkdtemp(prefix="dti-compiler-")), replacing=True)
    if "torch._inductor" in sys.modules:
        from torch._inductor.utils import clear_caches

        clear_caches()


def _use(folder: Path, replacing: bool) -> None:
    for variable, below in ((TORCH, "torch"), (TRITON, "triton")):
        if replacing or not _chosen(os.environ.get(variable)):
            os.environ[variable] = str(folder / below)


def _chosen(folder: str | None) -> bool:
    """Whether somebody has chosen that folder. torch, too, sets the variables, to folders below its own default."""
    torch_s = sys.modules.get("torch._inductor.runtime.cache_dir_utils")
    return folder is not None and not (torch_s and Path(folder).is_relative_to(torch_s.default_cache_dir()))


@cache
def key() -> str:
    """A digest of the code that graphs are made of: torch would not notice that an operator of ours has another
    gradient now."""
    made = hashlib.sha256()
    for path in sorted(SOURCES.rglob("*.py")):
        made.update(path.relative_to(SOURCES).as_posix().encode() + b"\0" + path.read_bytes())
    return made.hexdigest()[:16]
