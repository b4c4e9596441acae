"""Dynamic Target Isolation for click-through-rate prediction, as a pipeline: a raw log in, a judged model out."""

import os

__version__ = "0.2.0"

# Threads without work soon sleep. By OpenMP's default they spin for long, and on a machine with other work take each
# other's processor: a training is then many times slower. A short spin serves an idle machine, where there is soon more
# to do. Read when torch is loaded, so set before any module here loads it.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # of GNU's OpenMP, which torch has on Linux
