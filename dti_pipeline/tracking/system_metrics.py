"""How busy the machine is while it trains: MLflow's own readings, under the names its page has a tab for.

MLflow's thread samples every ten seconds, so that a short training has none, and counts samples from 0 again after a
resume. Here they are read when the training reports a step, and belong to the targets seen by then: any training has
some, at most :data:`dti_pipeline.training.loop.REPORTS`, and none twice.
"""

from __future__ import annotations

from contextlib import suppress

from mlflow.system_metrics.metrics.base_metrics_monitor import BaseMetricsMonitor
from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor


class SystemMetrics:
    """The machine's sensors: CPU, memory, disk, network, and the GPUs where NVIDIA's library finds some."""

    def __init__(self) -> None:
        self._monitors: list[BaseMetricsMonitor] = [CPUMonitor(), DiskMonitor(), NetworkMonitor()]
        with suppress(ImportError, RuntimeError):  # no nvidia-ml-py, or no driver
            self._monitors.append(GPUMonitor())
        self.read()  # CPU use is that since the last reading: this one starts it

    def read(self) -> dict[str, float]:
        """Percentages, watts and megabytes now; CPU use since the last call."""
        found: dict[str, float] = {}
        for monitor in self._monitors:
            monitor.collect_metrics()
            found |= {f"system/{name}": float(value) for name, value in monitor.aggregate_metrics().items()}
            monitor.clear_metrics()
        return found
