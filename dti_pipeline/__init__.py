"""Dynamic Target Isolation for click-through-rate prediction, as a pipeline: a raw log in, a judged model out."""

__version__ = "0.1.0"
