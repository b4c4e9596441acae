"""One prompt's mask in the terminal, as a picture and as JSON.

The packer lays the prompt out and :func:`dti_pipeline.modeling.masks.visibility.visible`, the specification, says who
sees whom: the mask that is drawn is the mask that is trained.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path as FilePath
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, PathPatch
from matplotlib.path import Path
from numpy.typing import NDArray
from rich.text import Text

from dti_pipeline import paradigms
from dti_pipeline.errors import InputError
from dti_pipeline.modeling.masks.visibility import Tokens, visible
from dti_pipeline.packing.layout import Kind
from dti_pipeline.packing.reader import Rows
from dti_pipeline.packing.store import uniform_store
from dti_pipeline.paradigms import Paradigm, named

#: Tokens of a prompt at most: beyond it the L x L matrix is no picture any more, and takes hundreds of megabytes.
LONGEST = 4096
NAMES = {Kind.TEXT: "text", Kind.SUM: "sum", Kind.LABEL: "label"}
#: Okabe and Ito's palette, and blocks that differ without it: key kind -> colour, two characters.
STYLES = {"text": ("#0072B2", "██"), "sum": ("#D55E00", "▐▌"), "label": ("#009E73", "▒▒")}
UNSEEN = " ·"
#: Context, targets and tokens of an interaction that are drawn where nothing else is asked for: small enough for one
#: screen, long enough for the first context interaction to leave the window of the last targets.
CONTEXT, TARGETS, TOKENS = 2, 4, 3


@dataclass(frozen=True)
class PromptMask:
    """A prompt of L tokens in natural order. Interactions 0 .. n-1 are context, n .. n+k-1 are targets."""

    paradigm: str
    context: int
    kind: tuple[str, ...]  # (L,) text, sum or label
    interaction: tuple[int, ...]  # (L,)
    visible: NDArray[np.bool_]  # (L, L) query q sees key k

    def plain(self) -> dict[str, Any]:
        return {
            "kind": list(self.kind),
            "interaction": list(self.interaction),
            "visible": self.visible.astype(int).tolist(),
        }


def prompt_mask(
    paradigm: Paradigm,
    context: int = CONTEXT,
    targets: int | None = None,
    tokens: int = TOKENS,
    known: Sequence[int] | None = None,
) -> PromptMask:
    """The mask of one prompt of ``context`` and ``targets`` interactions of ``tokens`` tokens each: tokens - 1 of
    text and the label, and in targets one [SUM] between them. ``known``: for each interaction the last one whose label
    is known to it, -1 for none; by default the one before. Cost: L² bytes, L = (n + k) c + k.

    Raises InputError for counts that make no prompt, and for a sliding window with more than one target: it has one.
    """
    if targets is None:
        targets = TARGETS if paradigm.streams else 1
    for name, value, least in (("context", context, 0), ("targets", targets, 1), ("tokens", tokens, 2)):
        if value < least:
            raise InputError(f"--{name} must be at least {least}, not {value}")
    if not paradigm.streams and targets > 1:
        same = next(
            (p.name for p in paradigms.PARADIGMS if p.streams and (p.text, p.sums) == (paradigm.text, paradigm.sums)),
            "",
        )
        hint = f": use {same} for its mask over more than one" if same else ""
        raise InputError(f"--targets is {targets}, but a prompt of {paradigm} has one target{hint}")
    interactions = context + targets
    length = interactions * tokens + targets
    if length > LONGEST:
        raise InputError(f"the prompt would have {length} tokens: draw at most {LONGEST}")
    one = np.zeros(1, np.int64)
    store = uniform_store(users=1, interactions=interactions, tokens=tokens)
    if known is not None:
        store = replace(store, known=_labels_known(known, interactions))
    rows = Rows(
        store=store,
        row_length=length,
        start=one,
        first_target=one + context,
        stop=one + interactions,
        row=one,
    )
    layout = rows.assemble(one)
    columns = (layout.document, layout.interaction, layout.kind, layout.seen, layout.known)
    as_tokens = Tokens(*(torch.from_numpy(x) for x in columns))
    return PromptMask(
        paradigm=paradigm.name,
        context=context,
        kind=tuple(NAMES[Kind(kind)] for kind in layout.kind[0]),
        interaction=tuple(layout.interaction[0].tolist()),
        visible=visible(as_tokens, paradigm, context)[0].numpy(),
    )


def numbers(text: str) -> list[int]:
    """The interactions that ``--known`` names, from what stands between its commas."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise InputError(f"--known {text} must name interactions by number: -1,0,1 for one") from error


def _labels_known(known: Sequence[int], interactions: int) -> NDArray[np.int32]:
    """How many labels each interaction knows, from the last that it knows."""
    if len(known) != interactions:
        raise InputError(f"--known names {len(known)} interactions, but the prompt has {interactions}: one for each")
    for i, last in enumerate(known):
        if not -1 <= last < i:
            raise InputError(f"--known says {last} of interaction {i}: it must be an earlier one, or -1 for none")
        if i and last < known[i - 1]:
            raise InputError(f"--known says {last} of interaction {i}, fewer than the one before it knows")
    return np.array(known, np.int32) + 1


def prompt_masks(
    paradigm: str | None,
    context: int = CONTEXT,
    targets: int | None = None,
    tokens: int = TOKENS,
    known: Sequence[int] | None = None,
) -> dict[str, PromptMask]:
    """The mask of the named paradigm, or with None of each; those that do not stream keep to one target, and to as much
    of ``known`` as a prompt of one target has."""
    if paradigm is not None:
        return {paradigm: prompt_mask(named(paradigm), context, targets, tokens, known)}
    single = None if known is None else known[: context + 1]
    return {
        p.name: prompt_mask(p, context, *((targets, tokens, known) if p.streams else (1, tokens, single)))
        for p in paradigms.PARADIGMS
    }


def text(mask: PromptMask, columns: int | None = None) -> Text:
    """The mask in blocks, one line a query, two characters a key; ``columns`` is the terminal's width, if it has one.

    Raises InputError where it does not fit.
    """
    wanted = 12 + 2 * len(mask.kind)
    if columns is not None and wanted > columns:
        raise InputError(
            f"this mask needs {wanted} columns and the terminal has {columns}: give --out FILE.svg, or draw fewer"
            " interactions"
        )
    drawn = Text(f"{_title(mask)}\n{'':12}")
    previous = None
    for kind, interaction in zip(mask.kind, mask.interaction, strict=True):
        drawn.append(f"{interaction % 100:<2}" if interaction != previous else "  ", STYLES[kind][0])
        previous = interaction
    for q, kind in enumerate(mask.kind):
        drawn.append(f"\n{_role(mask, q):>7} {mask.interaction[q]:<3} ", STYLES[kind][0])
        for k, key in enumerate(mask.kind):
            colour, block = STYLES[key]
            drawn.append(block if mask.visible[q, k] else UNSEEN, colour if mask.visible[q, k] else "dim")
    drawn.append("\nrows look at columns:")
    for kind, (colour, block) in STYLES.items():
        drawn.append(f"  {block}", colour)
        drawn.append(f" {'[SUM], itself only' if kind == 'sum' else kind}")
    return drawn.append(f"  {UNSEEN} unseen")


def picture(masks: Mapping[str, PromptMask], path: FilePath) -> None:
    """Draw masks side by side into ``path``, PNG or SVG by its ending: the same bytes for the same masks."""
    if path.suffix not in (".png", ".svg"):
        raise InputError(f"--out {path} must end in .png or .svg")
    if not path.parent.is_dir():
        raise InputError(f"--out {path}: {path.parent} is not a folder")
    widths = [len(mask.kind) for mask in masks.values()]
    figure = Figure(figsize=(0.13 * sum(widths) + 0.9 * len(widths), 0.13 * max(widths) + 1.3), layout="constrained")
    panels = figure.subplots(1, len(widths), width_ratios=widths, squeeze=False)[0]
    for axes, mask in zip(panels, masks.values(), strict=True):
        _panel(axes, mask)
    legend = [Patch(color=colour, label=kind) for kind, (colour, _) in STYLES.items() if kind != "sum"]
    legend.append(Patch(color=STYLES["sum"][0], label="[SUM] (seen by itself only)"))
    figure.legend(handles=legend, loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    with matplotlib.rc_context({"svg.hashsalt": "dti", "svg.fonttype": "none"}):
        figure.savefig(path, dpi=120, metadata={"Date": None} if path.suffix == ".svg" else {"Software": None})


def _panel(axes: Axes, mask: PromptMask) -> None:
    length = len(mask.kind)
    for kind, (colour, _) in STYLES.items():
        of_kind = np.array([key == kind for key in mask.kind])
        runs = [_rectangle(q, *run) for q, row in enumerate(mask.visible & of_kind) for run in _runs(row)]
        axes.add_patch(PathPatch(Path.make_compound_path(*runs), facecolor=colour, linewidth=0, clip_on=False))
    edges = [i for i in range(1, length) if mask.interaction[i] != mask.interaction[i - 1]]
    first_target = [i for i in edges if mask.interaction[i] == mask.context]
    # Unclipped: matplotlib names clip paths by memory address, and equal pictures are to be equal bytes.
    for lines, colour, width in ((range(1, length), "white", 0.5), (edges, "0.6", 0.4), (first_target, "0.4", 1.2)):
        grid = _lines(lines, length)
        axes.add_patch(PathPatch(grid, facecolor="none", edgecolor=colour, linewidth=width, clip_on=False))
    starts = [0, *edges]
    names = [f"{'target' if mask.interaction[s] >= mask.context else 'context'} {mask.interaction[s]}" for s in starts]
    middles = [(a + b) / 2 for a, b in zip(starts, [*edges, length], strict=True)]
    axes.set_yticks(middles, names, fontsize=7)
    axes.set_xticks(middles, [str(mask.interaction[s]) for s in starts], fontsize=7)
    axes.tick_params(length=0)
    axes.set(xlim=(0, length), ylim=(length, 0), aspect="equal", anchor="N")
    axes.set_title(_title(mask).partition(":")[0], fontsize=9)


def _runs(row: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """Spans [first, stop) of True: one rectangle each, so that a picture stays small."""
    changes = np.flatnonzero(np.diff(np.concatenate([[False], row, [False]])))
    return list(zip(changes[::2].tolist(), changes[1::2].tolist(), strict=True))


def _rectangle(query: int, first: int, stop: int) -> Path:
    corners = [(first, query), (stop, query), (stop, query + 1), (first, query + 1), (first, query)]
    return Path(corners, closed=True)


def _lines(at: Iterable[int], length: int) -> Path:
    """Lines across and down at each of the given tokens."""
    lines = [Path([(0, i), (length, i)]) for i in at] + [Path([(i, 0), (i, length)]) for i in at]
    return Path.make_compound_path(*lines) if lines else Path(np.zeros((0, 2)))


def _title(mask: PromptMask) -> str:
    """Before the colon the paradigm, after it what is drawn."""
    targets = max(mask.interaction) + 1 - mask.context
    return f"{mask.paradigm}: {mask.context} context and {targets} target interactions, {len(mask.kind)} tokens"


def _role(mask: PromptMask, token: int) -> str:
    """How a row is called: where its interaction begins, context or target; elsewhere the token's kind."""
    if mask.kind[token] == "sum":
        return "[SUM]"
    if mask.kind[token] == "label":
        return "label"
    begins = token == 0 or mask.interaction[token] != mask.interaction[token - 1]
    return ("target" if mask.interaction[token] >= mask.context else "context") if begins else "text"
