"""What to try next where no model is shown to be above the floors: what the figures themselves point to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from dti_pipeline.evaluation.curves import Curves
from dti_pipeline.evaluation.floors import IN_WORDS
from dti_pipeline.evaluation.report import Comparison

#: A difference of AUC that is worth a word.
WORTH = 0.002


def sentence(comparison: Comparison, curves: Mapping[str, Curves]) -> str | None:
    """One sentence on the model with the highest AUC; None where it is above every floor, or nothing is known."""
    judged = {name: row.auc for name, row in comparison.paradigms.items() if row.auc is not None}
    if not judged:
        return None
    best = max(judged, key=judged.__getitem__)
    if all(delta.ci_low is not None and delta.ci_low > 0 for delta in comparison.floor_delta[best].values()):
        return None
    said = "; ".join([*_of_floors(best, comparison), *_of_curve(curves[best])])
    return f"To try next with {best}, which is not shown to be above every floor: {said}." if said else None


def _of_floors(best: str, comparison: Comparison) -> Iterator[str]:
    deltas = comparison.floor_delta[best]
    means = {floor: delta.mean for floor, delta in deltas.items() if delta.mean is not None}
    if means and min(means.values()) > 0:
        yield "more test rows, since its lead over the floors may be chance (`split.test_share`, a longer log)"
    elif means and IN_WORDS not in deltas:
        yield (
            "the click rates of item and user in its words, as far as their labels were known"
            ' (`tokens.template: "{item_text}, {item_rate}{user_rate}"`, for a log with a clock)'
        )
    elif means:
        yield (
            "an item's id in its text, so that its click rate is learnt in one place"
            ' (`tokens.template: "{item_id} {item_text}"`, as in recipes/small-log.yaml)'
        )
    last, every = (comparison.baselines[f"item_and_user_rate{rows}"] for rows in ("", "_all_rows"))
    if last is not None and every is not None and every > last + WORTH:
        yield (
            f"more context, since a user's rate over all earlier rows is worth {every - last:+.4f} AUC more than over"
            f" the last {comparison.protocol.context} (`packing.context`)"
        )


def _of_curve(curve: Curves) -> Iterator[str]:
    aucs = [auc for _, _, auc in curve.points["learning_curve"]]
    if len(aucs) < 2:
        return
    if aucs[-1] > max(aucs[:-1]) + WORTH:
        yield "a longer training, since validation AUC was still rising at its end (`training.epochs`)"
    elif max(aucs[:-1]) > aucs[-1] + WORTH:
        yield (
            f"a shorter training or more dropout, since validation AUC fell from {max(aucs):.4f} to {aucs[-1]:.4f}"
            " before its end (`training.epochs`, `model.dropout`)"
        )
