"""What runs are given: the project's home and configuration, and a logger for terminals."""

from __future__ import annotations

import logging
import sys
from dataclasses import dataclass
from typing import Any

import dagster as dg
from pydantic import Field

from dti_pipeline import config
from dti_pipeline.config import Config
from dti_pipeline.paths import Paths

#: Dagster's word that a training process has started, which tells a reader nothing.
PIPES_OPENED = "[pipes] external process successfully opened dagster pipes."


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


class Formatter(logging.Formatter):
    """Dagster's records carry the step and the bare message beside the composed one."""

    def format(self, record: logging.LogRecord) -> str:
        meta = getattr(record, "dagster_meta", {})
        message = f"{self.formatTime(record, '%H:%M:%S')}  {meta.get('step_key') or '':<12}{meta.get('orig_message')}"
        event = meta.get("dagster_event")
        failure = getattr(event.event_specific_data, "error", None) if event is not None else None
        return f"{message} {failure.message if failure else ''}".rstrip()


@dg.logger
def console(context: dg.InitLoggerContext) -> logging.Logger:
    """Time, asset, message. A run has it with ``loggers: {console: {}}`` in its configuration."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(Formatter())
    handler.addFilter(lambda record: not record.getMessage().endswith(PIPES_OPENED))
    log = logging.Logger("dti", logging.INFO)
    log.addHandler(handler)
    return log
