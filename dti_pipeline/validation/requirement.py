"""The requirement that events passed their checks before anything is spent on them."""

from __future__ import annotations

from dti_pipeline import artifacts
from dti_pipeline.config import Config
from dti_pipeline.errors import CheckFailed, InputError
from dti_pipeline.paths import Paths
from dti_pipeline.validation.report import ValidateReport


def require_passed(config: Config, paths: Paths) -> None:
    """Return where the events passed their checks, or where ``validation.required`` is false.

    An orchestrator's blocking check guards only its own run; this guards every entry point. Cost: a read of the events.
    Raises InputError where the events were never checked or have changed since, CheckFailed where they failed.
    """
    if not config.validation.required:
        return
    checks = artifacts.read(paths.checks, "validate", ValidateReport)
    if checks.inputs.get("events") != artifacts.digest(paths.events):
        raise InputError(f"{paths.checks} is of other events than {paths.events} holds: run `dti validate` again")
    if not checks.report.success:
        raise CheckFailed(
            f"{paths.events} failed {checks.report.failed} of {checks.report.expectations} checks:"
            " mend the log, or set `validation.required` to false to go on at your own risk"
        )
