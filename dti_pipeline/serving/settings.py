"""The section of params.yaml about the HTTP service."""

from __future__ import annotations

from dataclasses import dataclass

from dti_pipeline.plain import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt


@dataclass(frozen=True)
class ServingConfig:
    """`dti serve`: its limits, and how it collects requests into batches. No stage reads it."""

    # Interactions, of histories and candidates, that are scored together: bounds how long one batch holds up the next.
    batch_interactions: PositiveInt = 4096
    wait_ms: NonNegativeFloat = 2.0  # that the first request of a batch waits for others; 0: those that are there
    # Requests at a time: being read, waiting and being scored. One more is answered 429.
    open_requests: PositiveInt = 256
    patience_seconds: PositiveFloat = 5.0  # a request that has waited longer is answered 429 instead of being scored
    body_bytes: PositiveInt = 1 << 20  # of a request; a longer one is answered 413
    body_seconds: PositiveFloat = 10.0  # that a client has to send a request; a slower one is answered 408
    candidates: PositiveInt = 1000  # of a request; one with more is answered 413
    # Texts whose states are kept, for a model of dti_isolated that allows it; when they are full they are made anew. 0:
    # none. Worth it where requests have few candidates, since a history is then what takes the time.
    item_states: NonNegativeInt = 0
    # MiB for states of users, for a model of dti or dti_growing: a request with a user_id then computes only the events
    # that are new, and is scored in the prompt that training had, of many events. 0: none. Each user takes what n to
    # n + k interactions' keys and values take; who was asked for longest ago goes first.
    user_states_mib: NonNegativeInt = 0
    user_targets: PositiveInt = 50  # k: after so many events a user's state begins anew; as packing.targets was
    poll_seconds: NonNegativeFloat = 10.0  # between two looks for another model; 0: the model is kept
    stop_seconds: PositiveFloat = 30.0  # given to open requests when the service is told to stop
