"""The two ways a command can fail on purpose. Everything else is a bug and shows its traceback."""

import re

#: Characters of a sentence: what is cut away is somebody's value.
LONGEST = 2000


def masked(text: str) -> str:
    """Words without the passwords and tokens that addresses in them hold."""
    text = re.sub(r"://[^\s'\"]*@", "://***@", text)
    return re.sub(
        r"([?&][^=&\s]*(?:password|token|secret|key)[^=&\s]*=)[^&\s'\"]*", r"\1***", text, flags=re.IGNORECASE
    )


def one_line(text: str) -> str:
    """Words that may hold anything a file or a client says, on one line of characters that can be printed: others are
    escaped, so that they cannot steer a terminal either; passwords are masked. What is too long ends in "...".
    """
    text = masked(text[: 2 * LONGEST])
    text = re.sub(r"[\t\n\v\f\r\x1c-\x1f\x85\u2028\u2029]+", " ", text)
    if not text.isprintable():
        text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."


class InputError(Exception):
    """Bad input or usage: one sentence that names the file, the line or the key. Exit code 2."""

    def __init__(self, sentence: str) -> None:
        super().__init__(one_line(sentence))


class CheckFailed(Exception):
    """The input was read, and a check or a target failed. Exit code 1. ``report``: the stage's, if any."""

    def __init__(self, sentence: str, report: object = None) -> None:
        super().__init__(one_line(sentence))
        self.report = report


def check(holds: bool, sentence: str, report: object) -> None:
    """Raise CheckFailed with a report's sentence unless what it was made to show holds."""
    if not holds:
        raise CheckFailed(sentence, report)


class Interrupted(CheckFailed):
    """Somebody ended the work, which goes on where it stopped when it is started again."""
