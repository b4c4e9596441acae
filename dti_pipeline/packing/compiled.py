"""Loops over tokens, compiled by numba."""

from __future__ import annotations

from typing import Any

from numba import njit


def compiled(function: Any) -> Any:
    """Compile a loop, without the interpreter's lock; numba's cache keeps it for the next process where it can write.

    The cache is made anew when the function's own file changes: constants of other files have to be arguments."""
    try:
        return njit(cache=True, nogil=True)(function)
    except RuntimeError:  # numba has found none: the package is another user's, who has no home here
        return njit(nogil=True)(function)
