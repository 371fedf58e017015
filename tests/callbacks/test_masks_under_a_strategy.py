"""Pruning callbacks under `tf.distribute.MirroredStrategy`, on two logical CPUs."""

import subprocess
import sys

import keras
import pytest

# Logical devices must be configured before TensorFlow starts: a process of its own.
SCRIPT = """
import contextlib
import numpy as np
import tensorflow as tf

(cpu,) = tf.config.list_physical_devices("CPU")
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
import keras
import keras_compress as kc

RNG = np.random.default_rng(0)
X = RNG.normal(size=(64, 12)).astype("float32")
Y = (X @ RNG.normal(size=(12, 3))).astype("float32")
RAMP = lambda: kc.pruning.PolynomialDecay(0.2, 0.6, 0, 8, frequency=3)
CALLBACKS = {
    "magnitude": lambda: kc.callbacks.MagnitudePruning(RAMP()),
    "surgery": lambda: kc.callbacks.DynamicNetworkSurgery(0.2, gamma=0.01),
    "thresholding": lambda: kc.callbacks.IterativeHardThresholding(0.5, 1, 1),
    "channels": lambda: kc.callbacks.ChannelPruning("l1", 0.5, RAMP()),
}

def run(make, strategy):
    with contextlib.nullcontext() if strategy is None else strategy.scope():
        keras.utils.set_random_seed(1)
        model = keras.Sequential([
            keras.Input((12,)),
            keras.layers.Dense(16, activation="tanh"),
            keras.layers.Dense(3),
        ])
        model.compile(keras.optimizers.SGD(0.05, momentum=0.5), "mse")
    callback = make()
    model.fit(X, Y, batch_size=8, epochs=3, shuffle=False, callbacks=[callback], verbose=0)
    return model, callback

strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
assert strategy.num_replicas_in_sync == 2
for name, make in CALLBACKS.items():
    (alone, one), (mirrored, two) = run(make, None), run(make, strategy)
    for a, b in zip(alone.weights, mirrored.weights, strict=True):
        for copy in b.value.values:
            np.testing.assert_allclose(a.numpy(), copy.numpy(), atol=1e-5, err_msg=name)
    assert one.sparsity == two.sparsity > 0.3, (name, one.sparsity, two.sparsity)
    print("same", name)
"""


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="tf.distribute")
def test_masks_and_weights_are_those_of_one_device():
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=600, check=False
    )
    assert result.returncode == 0, result.stderr[-3000:]
    names = ("magnitude", "surgery", "thresholding", "channels")
    assert all(f"same {name}" in result.stdout for name in names)
