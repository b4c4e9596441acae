"""The service's log: one JSON object a line, with nothing of what a request holds."""

from __future__ import annotations

import json
import logging
import sys
import time
from pathlib import Path


class JsonLines(logging.Formatter):
    """Time, level, event and a record's ``fields``. Of an exception its type and place: its text may quote a user."""

    def format(self, record: logging.LogRecord) -> str:
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line = {"time": f"{moment}.{record.msecs:03.0f}Z", "level": record.levelname.lower()}
        line |= {"event": record.getMessage(), **getattr(record, "fields", {})}
        if record.exc_info and record.exc_info[0] is not None:
            line["error"] = record.exc_info[0].__name__
            last = record.exc_info[2]
            while last is not None and last.tb_next is not None:
                last = last.tb_next
            if last is not None:
                line["at"] = f"{Path(last.tb_frame.f_code.co_filename).name}:{last.tb_lineno}"
        return json.dumps(line)


def to_standard_error() -> None:
    """Send the process's log to standard error: this package's from INFO on, other libraries' from WARNING on."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    logging.getLogger("dti_pipeline").setLevel(logging.INFO)
