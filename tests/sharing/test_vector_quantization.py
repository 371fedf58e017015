"""`vector_quantize` and `cluster`: whole models."""

import keras
import numpy as np
import pytest
from keras import layers, ops

from keras_compress import sharing
from keras_compress.layers import CodebookConv2D, CodebookDense

RNG = np.random.default_rng(0)


def small_model():
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Conv2D(8, 3, activation="relu", name="first"),
            layers.Conv2D(48, 3, strides=2, activation="relu", name="conv"),
            layers.Flatten(),
            layers.Dense(100, activation="relu", name="hidden"),
            layers.Dense(10, name="logits"),
        ]
    )


def kinds(model):
    return {layer.name: type(layer) for layer in model.layers if layer.weights}


def test_vector_quantize_gives_each_layer_the_codebook_of_its_kernel():
    model = small_model()
    before = [ops.convert_to_numpy(weight) for weight in model.weights]
    small = sharing.vector_quantize(model, "pq", segment=4, k=12, seed=3)
    assert kinds(small) == {
        # One channel is no segment of four; ten outputs have more book than kernel.
        "first": layers.Conv2D,
        "conv": CodebookConv2D,
        "hidden": CodebookDense,
        "logits": layers.Dense,
    }
    for name in ("conv", "hidden"):
        kernel = ops.convert_to_numpy(model.get_layer(name).kernel)
        expected = sharing.fit_codebook(kernel, "pq", segment=4, k=12, seed=3).decode()
        np.testing.assert_array_equal(small.get_layer(name).reconstruct_kernel(), expected)
        np.testing.assert_array_equal(small.get_layer(name).bias, model.get_layer(name).bias)
    for old, weight in zip(before, model.weights, strict=True):
        np.testing.assert_array_equal(old, ops.convert_to_numpy(weight))


def test_soulie_output_layer_alone_by_pq_with_few_centres():
    model = small_model()
    small = sharing.vector_quantize(model, method="pq", layers=["logits"], segment=4, k=4)
    assert kinds(small)["logits"] is CodebookDense and kinds(small)["hidden"] is layers.Dense
    assert small.get_layer("logits").k == 4


@pytest.mark.parametrize("method", ["binary", "kmeans", "pq", "rq"])
def test_gong_methods_of_dense_layers(method):
    model = small_model()
    small = sharing.vector_quantize(model, method, layers=layers.Dense, k=4)
    for name in ("hidden", "logits"):
        kernel = ops.convert_to_numpy(model.get_layer(name).kernel)
        expected = sharing.fit_codebook(kernel, method, k=4)
        np.testing.assert_array_equal(small.get_layer(name).reconstruct_kernel(), expected.decode())
    assert kinds(small)["conv"] is layers.Conv2D


def test_han_cluster_gives_few_values_that_train_while_zeros_stay():
    model = small_model()
    kernel = ops.convert_to_numpy(model.get_layer("hidden").kernel)
    pruned = np.where(np.abs(kernel) < np.quantile(np.abs(kernel), 0.8), 0, kernel)
    model.get_layer("hidden").kernel.assign(pruned)
    small = sharing.cluster(model, bits=3, init="linear")
    hidden = small.get_layer("hidden")
    expected = sharing.fit_codebook(pruned, "kmeans", k=8, init="linear").decode()
    np.testing.assert_array_equal(hidden.reconstruct_kernel(), expected)
    small.compile(keras.optimizers.Adam(0.01), "mse")
    x, y = RNG.normal(size=(64, 8, 8, 1)), RNG.normal(size=(64, 10))
    before = small.evaluate(x, y, verbose=0)
    small.fit(x, y, epochs=3, verbose=0)
    assert small.evaluate(x, y, verbose=0) < before
    trained = hidden.reconstruct_kernel()
    np.testing.assert_array_equal(trained == 0, pruned == 0)
    assert len(np.unique(trained)) <= 8 and np.abs(trained - expected).max() > 1e-3


def test_nested_and_functional_models():
    inner = small_model()
    inputs = keras.Input((8, 8, 1))
    outer = keras.Model(inputs, layers.Dense(3, name="head")(inner(inputs)))
    small = sharing.cluster(outer, k=4, layers=["hidden"])
    nested = next(layer for layer in small.layers if isinstance(layer, keras.Sequential))
    assert kinds(nested)["hidden"] is CodebookDense


@pytest.mark.parametrize(
    "call,message",
    [
        (lambda m: sharing.vector_quantize(m, "vq"), "vector_quantize: `method` must be one of"),
        (lambda m: sharing.vector_quantize(m, layers="hiden"), "Did you mean 'hidden'"),
        (lambda m: sharing.vector_quantize(m, layers="flat*"), "no layer that has a codebook form"),
        (lambda m: sharing.vector_quantize(m, layers="first", segment=4), "segment=4. Divisors: 1"),
        (lambda m: sharing.vector_quantize(m, segment=7), "segment=7 divides"),
        (lambda m: sharing.vector_quantize(m, segment=8, k=4096), "no layer of model"),
        (lambda m: sharing.cluster(m, init="random"), "cluster: `init` must be one of"),
        (lambda m: sharing.cluster(m, bits=4, k=16), "`k` or `bits`, not both"),
        (lambda m: sharing.cluster(None), "takes a keras.Model"),
    ],
)
def test_bad_arguments_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(small_model())


def test_unknown_names_are_attribute_errors():
    with pytest.raises(AttributeError, match="has no attribute 'clusters'"):
        _ = sharing.clusters
