"""The two ways a command can fail on purpose. Everything else is a bug and shows its traceback."""


class InputError(Exception):
    """Bad input or usage: one sentence that names the file, the line or the key. Exit code 2."""


class CheckFailed(Exception):
    """The input was read, and a check or a target failed. Exit code 1. ``report``: the stage's, if any."""

    def __init__(self, sentence: str, report: object = None) -> None:
        super().__init__(sentence)
        self.report = report


class Interrupted(CheckFailed):
    """Somebody ended the work, which goes on where it stopped when it is started again."""
