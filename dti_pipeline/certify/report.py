"""Report of a certification: what was asked of a trained model on rows of its log, and what it answered."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

#: Parts of a certificate, in its order, and what each asks.
PARTS = {
    "equal": "Served equals trained: the same target, computed in two ways",
    "hidden": "Nothing leaks: what a target may not see is changed",
    "seen": "The proofs above can fail: what it may see is changed, and must move it",
    "log": "The files themselves, read by code that shares nothing with what made them",
}
#: Forms of a target's prompt: what a server makes of a request; that of the log's request; one of many targets.
SERVER, ALONE, STREAMING = FORMS = ("server", "one request", "streaming")


@dataclass(frozen=True)
class Proof:
    """One question, asked of many targets, or of many rows of the files."""

    part: Literal["equal", "hidden", "seen", "log"]
    what: str
    form: str  # of prompt, or the files
    cases: int  # targets or rows that it could be asked of
    # Targets whose logit moved by more than is allowed, or rows that break the rule.
    moved: int
    difference: float | None  # largest, of a logit; None: rows are counted
    allowed: float | None  # None: it is measured, and nothing is promised
    passed: bool | None  # None: measured only, or there was no case

    @property
    def outcome(self) -> str:
        if not self.cases:
            return "no case"
        return {None: "measured", True: "holds", False: "FAILS"}[self.passed]


@dataclass(frozen=True)
class Certificate:
    """Proofs on a model's trained weights and rows of the split that it is judged on."""

    model: str  # as it was asked for
    model_digest: str  # of its folder
    paradigm: str
    mlflow_run_id: str | None  # of its training
    passed: bool
    sentence: str  # the outcome in one
    targets: int  # asked of, each of a request of its own
    split: str
    seed: int  # they were drawn by
    events_digest: str
    tokens_digest: str
    device: str
    compute: str  # float32 or bfloat16
    digits: int | None  # behind the point, to which all logits are equal that are to be; None: they are not equal
    # Of a logit, between prompts of many targets, as in training, and those of a server; None: it trains on the latter.
    streaming_difference: float | None
    commit: str | None  # of the code that asked
    hardware: str
    proofs: tuple[Proof, ...]

    @property
    def failed(self) -> tuple[Proof, ...]:
        return tuple(proof for proof in self.proofs if proof.passed is False)
