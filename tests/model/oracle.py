"""An independent oracle: prompts and visibility in plain loops, from the method's text; no code of the package.

A history is a list of (text tokens, label). A token is a dict; visibility is decided pair by pair. ``seen`` and
``known`` say of each row of a history how many rows are in its context, and how many labels it knows; without them each
row is a request of its own that knows all before it.
"""

from __future__ import annotations

from typing import Any

Token = dict[str, Any]


def prompt(history: list[tuple[list[int], int]], first: int, stop: int, context: int, special: dict[str, int],
           prefix: tuple[int, ...] = (), seen: list[int] | None = None,
           known: list[int] | None = None) -> list[Token]:  # fmt: skip
    """Tokens of one prompt whose targets are history[first:stop]."""
    seen = list(range(len(history))) if seen is None else seen
    known = list(range(len(history))) if known is None else known
    tokens: list[Token] = []
    about = {"interaction": -1, "row": -1, "seen": 0, "known": 0}
    for position, token in enumerate(prefix):
        tokens.append({"token": token, "kind": "prefix", "position": position, **about})
    begin = seen[first] - context if seen[first] > context else 0
    behind = {}
    for row in range(begin, stop):
        if row < first and row >= seen[stop - 1]:
            continue  # no target sees it
        text, label = history[row]
        position = behind[seen[row] - 1] if seen[row] > begin else len(prefix)
        about = {"interaction": row - begin, "row": row}
        about |= {"seen": max(0, seen[row] - begin), "known": max(0, known[row] - begin)}
        for token in text:
            tokens.append({"token": token, "kind": "text", "position": position, **about})
            position += 1
        if row >= first:
            tokens.append({"token": special["sum"], "kind": "sum", "position": position, **about})
        answer = special["yes"] if label else special["no"]
        tokens.append({"token": answer, "kind": "label", "position": position, **about})
        behind[row] = position + 1
    return tokens


def sees(paradigm: str, context: int, tokens: list[Token], q: int, k: int) -> bool:
    """Whether token q of a prompt may look at token k of the same prompt."""
    if q == k:
        return True
    if k > q or tokens[k]["kind"] == "sum":
        return False
    if tokens[k]["kind"] == "prefix":
        return True
    if tokens[q]["kind"] == "prefix":
        return False
    own, other = tokens[q]["interaction"], tokens[k]["interaction"]
    if own == other:
        return True
    if other >= tokens[q]["seen"]:
        return False
    if tokens[k]["kind"] == "label" and other >= tokens[q]["known"]:
        return False
    near = other >= tokens[q]["seen"] - context
    if paradigm in ("sliding_window", "dti_growing"):
        return True
    if paradigm == "dti":
        return near
    assert paradigm == "dti_isolated"
    return near if tokens[q]["kind"] == "sum" else False


def targets_of(labels: list[bool], k: int | None, seen: list[int] | None = None) -> list[tuple[int, int]]:
    """Spans of targets of one history: runs of True cut into pieces of at most k, requests whole."""
    seen = list(range(len(labels))) if seen is None else seen
    spans = []
    row = 0
    while row < len(labels):
        if not labels[row]:
            row += 1
            continue
        stop = row
        while stop < len(labels) and labels[stop]:
            whole = stop  # the end of the request that begins here
            while whole < len(labels) and labels[whole] and seen[whole] == seen[stop]:
                whole += 1
            if stop > row and k is not None and whole - row > k:
                break
            stop = whole
        spans.append((row, stop))
        row = stop
    return spans


def reaches(paradigm: str, context: int, tokens: list[Token], layers: int, pooled: bool) -> list[set[int]]:
    """For each token of a prompt: the tokens whose embedding its last state can depend on, through any path."""
    count = len(tokens)
    state = [{q} for q in range(count)]
    if pooled:  # [SUM] and label begin with their own item's text
        for q in range(count):
            if tokens[q]["kind"] in ("sum", "label"):
                for k in range(count):
                    if tokens[k]["kind"] == "text" and tokens[k]["interaction"] == tokens[q]["interaction"]:
                        state[q].add(k)
    for _ in range(layers):
        below = state
        state = []
        for q in range(count):
            seen: set[int] = set()
            for k in range(count):
                if sees(paradigm, context, tokens, q, k):
                    seen |= below[k]
            state.append(seen)
    return state
