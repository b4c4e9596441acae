"""Loops over tokens, compiled by numba."""

from __future__ import annotations

from typing import Any

from numba import njit


def compiled(function: Any) -> Any:
    """Without the interpreter's lock; kept for the next process, if a folder can be written to, until its file changes:
    constants of other files have to be handed over."""
    try:
        return njit(cache=True, nogil=True)(function)
    except RuntimeError:  # numba has found none: the package is another user's, who has no home here
        return njit(nogil=True)(function)
