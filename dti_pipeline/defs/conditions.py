"""When an asset may be made anew without a person: what is cheap, when its inputs have changed. Training never is.

Nothing acts on them until the sensor ``refresh_cheap_stages`` is turned on.
"""

from __future__ import annotations

import dagster as dg


def _after(asset: str) -> dg.AutomationCondition:
    """When that input was made in a run without this asset; the other inputs were what it was made from."""
    updated = dg.AutomationCondition.newly_updated() & ~dg.AutomationCondition.executed_with_root_target()
    return (
        dg.AutomationCondition.any_deps_match(updated).allow(dg.AssetSelection.assets(asset)).since_last_handled()
        & ~dg.AutomationCondition.any_deps_in_progress()
        & ~dg.AutomationCondition.in_progress()
    ).with_label(f"after {asset}")


#: What is there is made anew when an input was; what nobody has asked for yet is not begun.
_REFRESH = (
    dg.AutomationCondition.eager()
    & dg.AutomationCondition.all_deps_blocking_checks_passed()
    & ~dg.AutomationCondition.missing()
).with_label("refresh")

#: By stage. The log comes from outside and the model from a person. A model is judged as soon as it is trained, and
#: not when the log has changed under it: it was trained on other tokens.
CONDITIONS = {
    **dict.fromkeys(("ingest", "validate", "tokenize", "pack"), _REFRESH),
    "evaluate": _after("model"),
    "compare": _after("evaluation"),
}
