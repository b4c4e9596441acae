"""The resource of every asset: the project's home and its configuration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import dagster as dg
from pydantic import Field

from dti_pipeline import config
from dti_pipeline.config import Config
from dti_pipeline.paths import Paths


@dataclass(frozen=True)
class Work:
    """Configuration and folders of one step."""

    config: Config
    paths: Paths
    overrides: tuple[str, ...]  # of params.yaml, in the configuration already


class Project(dg.ConfigurableResource[Any]):
    """params.yaml in the project's home (``DTI_HOME``, default: where Dagster was started), with overrides."""

    overrides: list[str] = Field(
        default=[],
        description="Parameters to change for this run, as on the command line: `section.key=value`."
        " What such a run makes is not recorded in DVC, since params.yaml would not describe it.",
    )

    def open(self) -> Work:
        """Read the configuration: an edited params.yaml counts from the next step on."""
        paths = Paths.from_env()
        return Work(config.load(paths.params, self.overrides), paths, tuple(self.overrides))
