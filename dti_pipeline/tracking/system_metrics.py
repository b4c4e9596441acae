"""System metrics of a training: MLflow's own readings, under the names its page has a tab for.

MLflow's thread samples every ten seconds, so that a short training has none, and counts samples from 0 again after a
resume. Here they are read when the training reports a step, once a second at most, and belong to the targets seen by
then: any training has some, none has more than its reports, and none has one twice.
"""

from __future__ import annotations

import time
from contextlib import suppress

from mlflow.system_metrics.metrics.base_metrics_monitor import BaseMetricsMonitor
from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor

SECONDS = 1.0


class SystemMetrics:
    """The machine's sensors: CPU, memory, disk, network, and the GPUs where NVIDIA's library finds some."""

    def __init__(self) -> None:
        self._monitors: list[BaseMetricsMonitor] = [CPUMonitor(), DiskMonitor(), NetworkMonitor()]
        with suppress(ImportError, RuntimeError):  # no nvidia-ml-py, or no driver
            self._monitors.append(GPUMonitor())
        self._read_at = -SECONDS
        self._monitors[0].collect_metrics()  # CPU use is that since the last reading: this one starts it
        self._monitors[0].clear_metrics()

    def read(self) -> dict[str, float]:
        """Percentages, watts and megabytes; nothing within a second of the last reading, which CPU use counts from."""
        now = time.monotonic()
        if now - self._read_at < SECONDS:
            return {}
        self._read_at = now
        found: dict[str, float] = {}
        for monitor in self._monitors:
            monitor.collect_metrics()
            found |= {f"system/{name}": float(value) for name, value in monitor.aggregate_metrics().items()}
            monitor.clear_metrics()
        return found
