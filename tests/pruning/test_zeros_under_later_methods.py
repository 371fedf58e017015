"""Pruned models through quantisation-aware training and clustering: zeros stay (PCP)."""

import keras
import numpy as np
import pytest

import keras_compress as kc

RNG = np.random.default_rng(0)
X = RNG.normal(size=(32, 8, 8, 2)).astype("float32")
Y = RNG.normal(size=(32, 3)).astype("float32")


def values(variable):
    return keras.ops.convert_to_numpy(variable)


def model_of():
    keras.utils.set_random_seed(0)
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input((8, 8, 2)),
            layers.Conv2D(6, 3, activation="relu", name="conv"),
            layers.Flatten(),
            layers.Dense(20, activation="relu", name="hidden"),
            layers.Dense(3, name="logits"),
        ]
    )
    model.compile(keras.optimizers.Adam(0.01), "mse")
    return model


CALLBACKS = {
    "magnitude": lambda: kc.callbacks.MagnitudePruning(kc.pruning.OneShot(0.6)),
    "surgery": lambda: kc.callbacks.DynamicNetworkSurgery(0.3),
    "thresholding": lambda: kc.callbacks.IterativeHardThresholding(0.6, 1, 1),
}


def pruned(name):
    model = model_of()
    model.fit(X, Y, callbacks=[CALLBACKS[name]()], verbose=0)
    zeros = {
        layer.name: values(layer.kernel) == 0 for layer in model.layers if hasattr(layer, "kernel")
    }
    assert all(0.3 < zero.mean() < 1 for zero in zeros.values())
    return model, zeros


@pytest.mark.parametrize("scheme", ["int8", "int4_weights"])
@pytest.mark.parametrize("callback", CALLBACKS)
def test_quantization_aware_training_keeps_zeros(callback, scheme):
    model, zeros = pruned(callback)
    trained = kc.quantizers.quantize_aware(model, scheme)
    trained.fit(X, Y, epochs=2, verbose=0)
    for name, zero in zeros.items():
        kernel = values(trained.get_layer(name).kernel)
        assert not kernel[zero].any() and kernel[~zero].all()
    # The caller's masks are not those of the copy.
    for layer in model.layers:
        if layer.name in zeros:
            assert trained.get_layer(layer.name).kernel_constraint is not layer.kernel_constraint


@pytest.mark.parametrize("callback", CALLBACKS)
def test_clustering_keeps_zeros_also_through_training(callback):
    model, zeros = pruned(callback)
    clustered = kc.sharing.cluster(model, bits=4)
    clustered.compile("adam", "mse")
    clustered.fit(X, Y, epochs=2, verbose=0)
    for name, zero in zeros.items():
        kernel = np.asarray(clustered.get_layer(name).reconstruct_kernel())
        assert not kernel[zero].any()
        assert len(np.unique(kernel)) <= 16
