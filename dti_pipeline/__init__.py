"""Dynamic Target Isolation for click-through-rate prediction, as a pipeline: a raw log in, a judged model out."""

import os

__version__ = "0.1.0"

# Threads without work sleep. By OpenMP's default they spin, and on a machine with other work take each other's
# processor: a training is then many times slower. Read when torch is loaded, so set before any module here loads it.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
