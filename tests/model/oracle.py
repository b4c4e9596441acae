"""An independent oracle: prompts and visibility in plain loops, from the method's text; no code of the package.

A history is a list of (text tokens, label). A token is a dict; visibility is decided pair by pair.
"""

from __future__ import annotations

from typing import Any

Token = dict[str, Any]


def prompt(history: list[tuple[list[int], int]], first: int, stop: int, context: int, special: dict[str, int],
           prefix: tuple[int, ...] = ()) -> list[Token]:  # fmt: skip
    """Tokens of one prompt whose targets are history[first:stop]."""
    tokens: list[Token] = []
    position = 0
    for token in prefix:
        tokens.append({"token": token, "kind": "prefix", "interaction": -1, "position": position, "row": -1})
        position += 1
    begin = first - context if first > context else 0
    for row in range(begin, stop):
        text, label = history[row]
        for token in text:
            tokens.append(
                {"token": token, "kind": "text", "interaction": row - begin, "position": position, "row": row}
            )
            position += 1
        if row >= first:
            tokens.append(
                {"token": special["sum"], "kind": "sum", "interaction": row - begin, "position": position, "row": row}
            )
        answer = special["yes"] if label else special["no"]
        tokens.append({"token": answer, "kind": "label", "interaction": row - begin, "position": position, "row": row})
        position += 1
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
    back = tokens[q]["interaction"] - tokens[k]["interaction"]
    if paradigm in ("sliding_window", "dti_growing"):
        return True
    if paradigm == "dti":
        return back <= context
    assert paradigm == "dti_isolated"
    return back <= context if tokens[q]["kind"] == "sum" else back == 0


def targets_of(labels: list[bool], k: int | None) -> list[tuple[int, int]]:
    """Spans of targets of one history: runs of True cut into pieces of at most k."""
    spans = []
    row = 0
    while row < len(labels):
        if not labels[row]:
            row += 1
            continue
        stop = row
        while stop < len(labels) and labels[stop] and (k is None or stop - row < k):
            stop += 1
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
