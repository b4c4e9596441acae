"""A process that trains a home's model until the first optimizer step is done, and writes where the time went.

It does what ``dti train`` does, but reads no raw log and tells no tracker.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from dti_pipeline.training.timeline import Timeline

if TYPE_CHECKING:
    from dti_pipeline.training.progress import Event

RESULT = "first_step.json"


class Enough(BaseException):
    """The first step is done."""


def main() -> None:
    timeline = Timeline.begin()
    timeline.mark("process")
    from dti_pipeline import config
    from dti_pipeline.paths import Paths
    from dti_pipeline.training.progress import FellBack, FirstStep
    from dti_pipeline.training.train import train

    paths = Paths.from_env()

    def listen(event: Event) -> None:
        if isinstance(event, FellBack):
            raise SystemExit(event.line)  # a benchmark measures what it names
        if isinstance(event, FirstStep):
            (paths.home / RESULT).write_text(json.dumps({"seconds": event.seconds, **event.parts}))
            print(event.line)
            raise Enough

    try:
        train(config.load(paths.params), paths, sys.argv[1], [listen], timeline)
    except Enough:
        return
    raise SystemExit(f"{Path(sys.argv[0]).stem}: the training took no step")


if __name__ == "__main__":
    main()
