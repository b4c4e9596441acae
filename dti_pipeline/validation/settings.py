"""The section of params.yaml about validation."""

from __future__ import annotations

from dataclasses import dataclass

from dti_pipeline.plain import NonNegativeFloat, NonNegativeInt, Share, require


@dataclass(frozen=True)
class ValidationConfig:
    """Checks that a batch must pass before it is tokenised."""

    required: bool = True  # what fails a check stops here; false: it is warned of, and used at your own risk
    max_quarantined_share: Share = 0.05  # of rows read
    max_untitled_share: Share = 0.05  # of kept rows: items without a title of their own
    min_rows: NonNegativeInt = 1000  # kept rows
    min_users: NonNegativeInt = 20  # users of the kept rows
    min_targets: NonNegativeInt = 10  # in each split: below it no metric of that split means anything
    label_rate: tuple[Share, Share] = (0.02, 0.98)  # range in which the share of clicks must lie
    # Range of the chance that of two rows of a user, a click and a skip, the click is the later one. Outside it the
    # order of the rows tells their labels, as where a file has all skips of a user and then all clicks.
    click_later: tuple[Share, Share] = (0.1, 0.9)
    max_label_rate_drift: Share = 0.1  # absolute change of that share against the previous accepted batch
    min_volume_ratio: NonNegativeFloat = 0.5  # rows against the previous accepted batch
    max_shown_rows: NonNegativeInt = 20  # failing rows shown for each failed expectation

    def __post_init__(self) -> None:
        for name in ("label_rate", "click_later"):
            low, high = getattr(self, name)
            require(low < high, f"validation.{name}", "two shares, the lower one first", (low, high))
