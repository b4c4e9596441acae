"""A training's events as a progress bar in the terminal."""

from __future__ import annotations

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from dti_pipeline.training.progress import Evaluated, Event, Finished, Listener, Started, Stepped


def progress_bar(console: Console) -> Listener:
    """A listener that draws targets seen, targets/s, loss, validation AUC and the time left."""
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:,.0f}/{task.total:,.0f} targets"),
        TextColumn("{task.fields[rate]} loss {task.fields[loss]} val AUC {task.fields[auc]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
    )
    task: TaskID | None = None

    def listen(event: Event) -> None:
        nonlocal task
        if isinstance(event, Started):
            for line in event.execution:
                console.print(line, style="dim", markup=False, highlight=False)
            bar.start()
            total, seen = event.targets_total, event.targets_seen
            task = bar.add_task(f"train {event.paradigm}", total=total, completed=seen, rate="", loss="-", auc="-")
        elif task is None:
            return
        elif isinstance(event, Stepped):
            rate = f"{event.targets_per_second:,.0f}/s"
            bar.update(task, completed=event.targets_seen, rate=rate, loss=f"{event.loss:.4f}")
        elif isinstance(event, Evaluated) and "auc" in event.metrics:
            bar.update(task, auc=f"{event.metrics['auc']:.4f}")
        elif isinstance(event, Finished):
            bar.stop()

    return listen
