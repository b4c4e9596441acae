"""A logger for terminals: time, asset, message. A run has it with ``loggers: {console: {}}`` in its configuration."""

import logging
import sys

import dagster as dg


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
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(Formatter())
    log = logging.Logger("dti", logging.INFO)
    log.addHandler(handler)
    return log
