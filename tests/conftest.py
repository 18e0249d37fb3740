"""The tests' networks are small: on a busy machine the threads of NumPy's matrix products would wait for each other."""

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # before any test imports NumPy
