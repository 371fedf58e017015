"""Quiet TensorFlow, one thread a worker, and the backend that `KERAS_BACKEND` names."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
