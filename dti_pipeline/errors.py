"""The two ways in which a command fails on purpose. Any other exception is a bug and shows its traceback."""


class InputError(Exception):
    """Bad input or usage: one sentence that names the file, the line or the key. Exit code 2."""


class CheckFailed(Exception):
    """Valid input that failed a check or missed a target. Exit code 1."""
