"""Every kind of input in one table, which docs/reliability.md shows: ``python -m tests.input_kinds`` writes it."""

from __future__ import annotations

import re
from pathlib import Path

from tests import kinds_of_logs, kinds_of_others
from tests.kinds import KINDS

__all__ = ["KINDS", "kinds_of_logs", "kinds_of_others"]

DOCUMENT = Path(__file__).resolve().parents[1] / "docs" / "reliability.md"
BEGIN, END = "<!-- made by `python -m tests.input_kinds` -->\n", "<!-- end -->"


def rendered() -> str:
    of = [one.of for one in KINDS]
    lines = [f"| {one.of} | {one.name} | {one.gets} |" for one in sorted(KINDS, key=lambda one: of.index(one.of))]
    return "\n".join(["| input | kind | what it gets |", "|---|---|---|", *lines, ""])


def rewritten(document: str) -> str:
    """The document with the table and the number of kinds as they are."""
    before, _, rest = document.partition(BEGIN)
    text = f"{before}{BEGIN}{rendered()}{END}{rest.partition(END)[2]}"
    return re.sub(r"\*\*\d+ kinds\*\*", f"**{len(KINDS)} kinds**", text)


if __name__ == "__main__":
    DOCUMENT.write_text(rewritten(DOCUMENT.read_text(encoding="utf-8")), encoding="utf-8")
