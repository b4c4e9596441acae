"""A certificate to read: fixed width for a terminal, Markdown for a page."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from typing import Any

from dti_pipeline.certify.report import FORMS, PARTS, Certificate, Proof
from dti_pipeline.plain import to_plain

JSON, MARKDOWN = "certificate.json", "certificate.md"
#: Columns of the terminal's table: what is asked, the largest difference in each form of prompt, the allowed one, the
#: outcome; of the audit: the rule, rows, broken ones, the outcome.
WIDTHS, AUDITED = (56, 9, 11, 9, 8, 9), (74, 12, 7, 11)
COLUMNS = ("", "prompts", "targets", "moved", "largest", "allowed", "")
#: Outcomes of one question in several forms: the first of these that there is.
OUTCOMES = ("FAILS", "holds", "measured", "no case")
LEGEND = "Columns: largest difference in requests to the scorer, in prompts of one request, in prompts of many targets."
EXPLAINED = {
    "no case": "-, no case: no drawn target, or no file, has what is asked about.",
    "measured": "measured: the paradigm promises nothing there (docs/dti.md, The leak).",
}


def plain(certificate: Certificate) -> dict[str, Any]:
    """certificate.json."""
    proofs = [{**to_plain(proof), "outcome": proof.outcome} for proof in certificate.proofs]
    return {**to_plain(certificate), "proofs": proofs}


def text(certificate: Certificate) -> str:
    """For a terminal: a line for each question, with the largest difference in each form of prompt."""
    lines = textwrap.wrap(facts(certificate), sum(WIDTHS) + 2 * (len(WIDTHS) - 1))
    for part, proofs in _parts(certificate):
        lines += ["", f"{PARTS[part]}."]
        if part == "log":
            lines.append(_fixed(("", "rows", "broken", ""), AUDITED))
            for one in proofs:
                what = f"{one.what} ({one.form})" if one.passed is False else one.what
                lines += _folded((what, f"{one.cases:,}", f"{one.moved:,}", one.outcome), AUDITED)
            continue
        lines.append(_fixed(("", *FORMS, "allowed", ""), WIDTHS))
        for what in dict.fromkeys(proof.what for proof in proofs):
            lines += _folded(_line([proof for proof in proofs if proof.what == what]), WIDTHS)
    outcomes = {proof.outcome for proof in certificate.proofs}
    lines += ["", LEGEND, *(words for outcome, words in EXPLAINED.items() if outcome in outcomes)]
    return "\n".join([*lines, "", f"{certificate.sentence}."])


def _line(proofs: list[Proof]) -> tuple[str, ...]:
    of = {proof.form: proof for proof in proofs}
    cells = [("-" if not of[form].cases else _largest(of[form])) if form in of else "" for form in FORMS]
    outcome = next(one for one in OUTCOMES if one in [proof.outcome for proof in proofs])
    return proofs[0].what, *cells, _allowed(proofs[0]), outcome


def markdown(certificate: Certificate) -> str:
    """certificate.md."""
    parts = [f"# Certificate: {_escaped(certificate.model)}", f"**{_escaped(certificate.sentence)}.**"]
    parts.append(_escaped(facts(certificate)))
    for part, rows in _parts(certificate):
        lines = [_columns(part), ("---",) * len(COLUMNS), *(tuple(map(_escaped, _cells(proof))) for proof in rows)]
        parts += [f"## {PARTS[part]}", "\n".join(f"| {' | '.join(line)} |" for line in lines)]
    return "\n\n".join(parts) + "\n"


def facts(certificate: Certificate) -> str:
    """One paragraph: the model, the rows, the machine."""
    one = certificate
    return (
        f"Model {one.model} ({one.paradigm}, digest {one.model_digest[:8]}), {one.compute} on {one.hardware}."
        f" {one.targets:,} targets of the {one.split} split, each of a request of its own, drawn with seed {one.seed};"
        " differences are of logits."
    )


def failure(proof: Proof) -> str:
    """What failed, in a clause."""
    if proof.part == "log":
        return f"{proof.what} ({proof.form}): {proof.moved:,} of {proof.cases:,} rows do not"
    what = f"{proof.what} ({proof.form})"
    if proof.part == "seen":
        return f"{what} moves {proof.moved:,} of {proof.cases:,} targets only"
    verb = "differ" if proof.part == "equal" else "moves its logit"
    return f"{what} {verb} by {proof.difference:.2g}, where {_allowed(proof)} is allowed"


def _parts(certificate: Certificate) -> Iterator[tuple[str, list[Proof]]]:
    for part in PARTS:
        rows = [proof for proof in certificate.proofs if proof.part == part]
        if rows:
            yield part, rows


def _columns(part: str) -> tuple[str, ...]:
    return ("", "files", "rows", "broken", "", "", "") if part == "log" else COLUMNS


def _cells(proof: Proof) -> tuple[str, ...]:
    if proof.part == "log":
        return proof.what, proof.form, f"{proof.cases:,}", f"{proof.moved:,}", "", "", proof.outcome
    counts = f"{proof.cases:,}", f"{proof.moved:,}"
    return proof.what, proof.form, *counts, _largest(proof), _allowed(proof), proof.outcome


def _allowed(proof: Proof) -> str:
    if proof.allowed is None:
        return ""
    return f"above {proof.allowed:g}" if proof.part == "seen" else f"{proof.allowed:g}"


def _largest(proof: Proof) -> str:
    return "" if proof.difference is None else f"{proof.difference:.1e}" if proof.difference else "0"


def _folded(cells: tuple[str, ...], widths: tuple[int, ...]) -> list[str]:
    head, *more = textwrap.wrap(cells[0], widths[0], subsequent_indent="  ")
    return [_fixed((head, *cells[1:]), widths), *more]


def _fixed(cells: tuple[str, ...], widths: tuple[int, ...]) -> str:
    first, *others = zip(cells, widths, strict=True)
    return "  ".join([first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in others)]).rstrip()


def _escaped(cell: str) -> str:
    return cell.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")
