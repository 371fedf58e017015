"""Export under another backend says what to do."""

import keras
import pytest


def test_export_needs_tensorflow_and_says_so(monkeypatch):
    from keras_compress.export import to_tflite

    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    with pytest.raises(ValueError, match="KERAS_BACKEND=tensorflow"):
        to_tflite(keras.Sequential([keras.Input((2,)), keras.layers.Dense(2)]))
