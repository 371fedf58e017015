"""Settings of all tests: quiet, and one thread a worker.

Two workers run at once; BLAS threads that spin against each other cost several times what they
gain.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "TF_NUM_INTRAOP_THREADS"):
    os.environ.setdefault(name, "1")
