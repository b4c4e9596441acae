"""The two ways a command can fail on purpose. Everything else is a bug and shows its traceback."""


class InputError(Exception):
    """Bad input or usage: one sentence that names the file, the line or the key. Exit code 2."""


class CheckFailed(Exception):
    """The input was read and judged, and the judgement is no: a failed check or target. Exit code 1."""
