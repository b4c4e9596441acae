"""Verdicts: one plain sentence on each paradigm, and notes. No claim goes beyond its interval."""

from __future__ import annotations

from dti_pipeline.evaluation import speed
from dti_pipeline.evaluation.gate import BASE
from dti_pipeline.evaluation.report import Comparison, SameTime

BLUNT = 0.01  # half an interval: the verdict says that a wider one is no evidence of equality
SAME_SPEED = 0.05  # speed-ups closer to 1 than this are called the same
FEW_USERS = 100  # intervals over fewer are called rough
OTHER_STEPS = 1.5  # times more steps of a training at the same data are worth a note


#: The floors in words, long and to fit a terminal.
FLOORS = {
    "item_rate": ("item rate", "item rate"),
    "item_and_user_rate": ("item and user rate (last {} rows)", "+ user, last {}"),
    "item_and_user_rate_all_rows": ("item and user rate (all earlier rows)", "+ user, all rows"),
    "rates_in_words": ("rates in words, user rate (last {} rows)", "words, last {}"),
}


def floor_label(name: str, context: int, short: bool = False) -> str:
    """A floor's name in words."""
    return FLOORS[name][short].format(context)


def sentence(paradigm: str, comparison: Comparison) -> str:
    """AUC against the baseline's with its interval, training time for each target, what the time saved buys, the
    floors."""
    auc = comparison.paradigms[paradigm].auc
    if auc is None:
        return "AUC is not defined: the evaluated targets are all of one class."
    parts = [f"AUC {auc:.4f}{_difference(paradigm, comparison)}"]
    if paradigm in comparison.speedup:
        parts.append(f"{_speed(comparison.speedup[paradigm])} ({speed.in_words(comparison.speed[paradigm])})")
    if paradigm in comparison.same_time:
        parts.append(_same_time(comparison.same_time[paradigm]))
    parts.append(_floors(paradigm, comparison))
    return "; ".join(parts) + "."


def _difference(paradigm: str, comparison: Comparison) -> str:
    percent = f"{100 * comparison.protocol.confidence:g} % interval"
    delta = comparison.auc_delta.get(paradigm)
    if delta is None:
        interval = comparison.paradigms[paradigm].auc_interval
        return f" ({percent} {interval[0]:.4f} .. {interval[1]:.4f})" if interval else ""
    text = f" against {comparison.paradigms[BASE].auc:.4f}: {delta.mean:+.4f}"
    low, high = delta.ci_low, delta.ci_high
    if low is None or high is None:
        return f"{text} (no interval: too few users)"
    text += f" ({percent} {low:+.4f} .. {high:+.4f}), "
    if low > 0:
        return text + "better"
    if high < 0:
        return text + "worse"
    half = (high - low) / 2
    blunt = f" (this test cannot see differences below about {half:.3f})" if half > BLUNT else ""
    return f"{text}no measurable difference{blunt}"


def _speed(speedup: float) -> str:
    if abs(speedup - 1) < SAME_SPEED:
        return "the same training time per target"
    amount = f"{speedup:.1f}x less" if speedup > 1 else f"{1 / speedup:.1f}x more"
    return f"{amount} training time per target"


def _same_time(found: SameTime) -> str:
    reached = "is not judged so early" if found.baseline is None else f"has validation AUC {found.baseline:.4f}"
    return (
        f"in as much time {BASE} gets through {100 * found.share:.0f} % of its training and {reached}, where this one"
        f" has {found.own:.4f}"
    )


def _floors(paradigm: str, comparison: Comparison) -> str:
    below, level = [], []
    floors = comparison.floor_delta[paradigm]
    for name, delta in floors.items():
        label = f"{floor_label(name, comparison.protocol.context)} {comparison.baselines[name]:.4f}"
        if delta.ci_high is not None and delta.ci_high < 0:
            below.append(f"below {label}")
        elif delta.ci_low is None or delta.ci_low <= 0:
            level.append(f"no measurable difference from {label}")
    beaten = len(floors) - len(below) - len(level)
    if beaten == len(floors):
        return f"above all {beaten} floors"
    return f"above {beaten or 'none'} of the {len(floors)} floors: {', '.join(below + level)}"


def notes(comparison: Comparison) -> list[str]:
    """Limits of the comparison, one sentence each."""
    protocol, paradigms, found = comparison.protocol, comparison.paradigms, []
    if BASE not in paradigms:
        found.append(f"{BASE} has no evaluation here: no speed-up and no AUC difference can be given.")
    disturbed = [name for name, one in comparison.speed.items() if not one.undisturbed]
    if disturbed:
        found.append(
            f"The machine had other work while {BASE} or {', '.join(disturbed)} trained: seconds by the clock are not"
            " compared."
        )
    if protocol.users < FEW_USERS:
        found.append(
            f"The evaluated targets come from {protocol.users} users, {protocol.users_in_training} of them seen in"
            " training: intervals by user are wide and rough."
        )
    if protocol.rule == "user_order":
        found.append(
            "The split follows each user's row order, not one clock: compare these figures with one another, not with"
            " figures of a split by time."
        )
    if protocol.source == "synthetic" and comparison.best_possible is None:
        found.append("The synthetic log's true probabilities do not cover every target: the best possible is left out.")
    unequal = {
        "hardware": "were trained on different hardware, so the speed-ups compare machines too",
        "targets": "saw different numbers of training targets, so AUC is not at equal data",
        "context": "see different numbers of context interactions",
    }
    for key, meaning in unequal.items():
        values = {name: getattr(row.prompts if key == "context" else row, key) for name, row in paradigms.items()}
        if len(set(values.values())) > 1:
            found.append(f"The paradigms {meaning}: {', '.join(f'{n} {v}' for n, v in values.items())}.")
    steps = {name: row.steps for name, row in paradigms.items() if row.steps}
    if steps and max(steps.values()) > OTHER_STEPS * min(steps.values()):
        found.append(
            "The paradigms took different numbers of optimizer steps, so AUC compares recipes too: "
            f"{', '.join(f'{n} {v:,}' for n, v in steps.items())}. A row that holds more targets than"
            " training.targets_per_step is a step of its own."
        )
    if any(one.baseline is not None for one in comparison.same_time.values()):
        found.append(
            f"In as much time: {BASE} is judged on the way through its training; a shorter one that ends there may have"
            " more."
        )
    for name, delta in comparison.streaming_delta.items():
        if delta.ci_low is not None and delta.ci_high is not None and not delta.ci_low <= 0 <= delta.ci_high:
            found.append(
                f"{name} scores {delta.mean:+.4f} AUC in streaming prompts against the single prompts a server sees"
                f" ({delta.ci_low:+.4f} .. {delta.ci_high:+.4f})."
            )
    return found
