"""What cannot leave: models whose scores no plain causal language model gives."""

from __future__ import annotations

from dti_pipeline.errors import InputError
from dti_pipeline.modeling.network.ctr_model import CTRModel
from dti_pipeline.paradigms import Reach
from dti_pipeline.training.report import Texts


def require_plain(model: CTRModel, texts: Texts) -> None:
    """Return where a prompt of one target is a plain causal prompt; raise InputError with the reason and what to do.

    In such a prompt every token sees all before it, at its own place, and [SUM] stands last. `sliding_window`, `dti`
    and `dti_growing` have it so: with n interactions before the target no window cuts any off.
    """
    settings, knowledge = model.settings, texts.knowledge
    refusals = {
        f"its paradigm, {model.paradigm}, hides interactions from one another: train dti or dti_growing": (
            Reach.ITEM in (model.paradigm.text, model.paradigm.sums)
        ),
        f"its [SUM] reads without its place (model.sum_position = {settings.sum_position}): train with rope": (
            settings.sum_position != "rope"
        ),
        f"its [SUM] reads states that fade (model.forgetting = {settings.forgetting}): train with none": (
            settings.forgetting != "none"
        ),
        "its [SUM] and labels enter with their text's mean embedding added (model.summaries = pooled): train with"
        " plain": model.pooled,
        "it has learned from labels that come late (split.feedback_delay), which it may not see in its prompt: score it"
        " by `dti score` or `dti serve`": knowledge.feedback_delay is not None,
        "its tokens.template names {gap}, whose words depend on the times of a history: train without it": (
            "gap" in texts.named.names
        ),
    }
    for reason, holds in refusals.items():
        if holds:
            raise InputError(f"this model cannot be exported: {reason}. No other engine would give its probabilities")
