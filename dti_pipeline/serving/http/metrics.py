"""What the service counts, for Prometheus."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

#: Seconds; a batch of a small model takes milliseconds, one of a large model on a CPU seconds.
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
REQUESTS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """Counters of one service, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.requests = Counter(
            "dti_requests", "Requests by the status of their answer.", ["status"], registry=registry
        )
        self.candidates = Counter("dti_candidates", "Candidates that were scored.", registry=registry)
        self.seconds = Histogram(
            "dti_request_seconds", "From a request's headers to its answer.", buckets=SECONDS, registry=registry
        )
        self.open = Gauge("dti_open_requests", "Requests being read, waiting or being scored.", registry=registry)
        self.batch = Histogram(
            "dti_batch_requests", "Requests that were scored together.", buckets=REQUESTS, registry=registry
        )
        self.batch_seconds = Histogram(
            "dti_batch_seconds", "Seconds that a batch took.", buckets=SECONDS, registry=registry
        )
        self.loads = Counter("dti_model_loads", "Models that were loaded or refused.", ["outcome"], registry=registry)
        self.model = Gauge("dti_model_info", "1 for the model in use.", ["model", "paradigm"], registry=registry)
