"""tf_keras and tfmot for the tests that need them; those are skipped where there are none."""

import importlib.util
import os

import keras
import numpy as np
import pytest

REMEDY = 'not installed: pip install "keras_compress[tfmot]"'
needs_tf_keras = pytest.mark.skipif(
    importlib.util.find_spec("tf_keras") is None, reason=f"tf_keras is {REMEDY}"
)
needs_tfmot = pytest.mark.skipif(
    importlib.util.find_spec("tensorflow_model_optimization") is None, reason=f"tfmot is {REMEDY}"
)


def tf_keras():
    import tf_keras

    return tf_keras


def tfmot():
    """The module, imported without the environment variable that it sets for the process."""
    import tensorflow as tf

    assert tf.keras.__version__[0] == "3"  # Settles what tf.keras is, for the tests that follow.
    before = os.environ.get("TF_USE_LEGACY_KERAS")
    import tensorflow_model_optimization

    if before is None:
        os.environ.pop("TF_USE_LEGACY_KERAS", None)
    return tensorflow_model_optimization


def fill(model, seed=0):
    """Gives every weight a value that no initializer gives."""
    rng = np.random.default_rng(seed)
    for weight in model.weights:
        if weight.dtype.is_floating:
            value = 0.5 * rng.normal(size=weight.shape)
            weight.assign(np.abs(value) + 0.5 if "variance" in weight.name else value)
    return model


def assert_same_outputs(old, new, *inputs, tolerance=1e-5):
    """Compares the outputs of a tf_keras and a Keras 3 model, one by one."""
    inputs = inputs[0] if len(inputs) == 1 else list(inputs)
    want = keras.tree.flatten(keras.tree.map_structure(np.asarray, old(inputs, training=False)))
    got = [
        keras.ops.convert_to_numpy(output)
        for output in keras.tree.flatten(new(inputs, training=False))
    ]
    assert len(want) == len(got)
    for a, b in zip(want, got, strict=True):
        np.testing.assert_allclose(b, a, rtol=tolerance, atol=tolerance)
