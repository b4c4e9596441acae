"""Automation conditions: cheap assets are made again when their inputs change; a model never is.

They take effect when the sensor ``refresh_cheap_stages`` is turned on.
"""

from __future__ import annotations

import dagster as dg


def _after(asset: str) -> dg.AutomationCondition[dg.AssetKey | dg.AssetCheckKey]:
    """Met when that input was made in a run without this asset, whatever happened to the other inputs."""
    updated = dg.AutomationCondition.newly_updated() & ~dg.AutomationCondition.executed_with_root_target()
    return (
        dg.AutomationCondition.any_deps_match(updated).allow(dg.AssetSelection.assets(asset)).since_last_handled()
        & ~dg.AutomationCondition.any_deps_in_progress()
        & ~dg.AutomationCondition.in_progress()
    ).with_label(f"after {asset}")


#: An asset that exists is made again when an input was; a missing one is not begun.
_REFRESH = (
    dg.AutomationCondition.eager()
    & dg.AutomationCondition.all_deps_blocking_checks_passed()
    & ~dg.AutomationCondition.missing()
).with_label("refresh")

#: By stage; the log comes from outside, the model from a person. An evaluation follows its model, not the log: after a
#: change of the log the old model belongs to other tokens.
CONDITIONS: dict[str, dg.AutomationCondition[dg.AssetKey | dg.AssetCheckKey]] = {
    **dict.fromkeys(("ingest", "validate", "tokenize", "pack"), _REFRESH),
    "evaluate": _after("model"),
    "compare": _after("evaluation"),
}
