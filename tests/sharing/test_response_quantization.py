"""`quantize_responses` (Q-CNN, Wu et al. 2016): layer after layer, errors corrected."""

import keras
import numpy as np
import pytest
from keras import layers, ops

from keras_compress import sharing
from keras_compress.layers import CodebookConv2D, CodebookDense
from keras_compress.sharing.response_fit import ResponseFit

RNG = np.random.default_rng(0)


def dense_model():
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [
            keras.Input((16,)),
            layers.Dense(32, activation="relu", bias_initializer="normal", name="one"),
            layers.Dense(64, activation="relu", bias_initializer="normal", name="two"),
        ]
    )


def conv_model(**config):
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [
            keras.Input((6, 7, 4)),
            layers.Conv2D(64, (3, 2), activation="relu", name="conv", **config),
            layers.Conv2D(64, 1, name="pointwise"),
            layers.Flatten(),
            layers.Dense(10, name="logits"),
        ]
    )


def fitted(kernel, given, wanted, segment, k):
    """Error correction on explicit samples."""
    flat = kernel.reshape(-1, kernel.shape[-1]).astype("float64")
    outputs = wanted @ flat
    book = sharing.fit_codebook(kernel, "pq", segment=segment, k=k)
    fit = ResponseFit(book, given.T @ given, given.T @ outputs, np.sum(outputs**2))
    return fit.run().codebook().decode()


def test_wu_inputs_come_from_the_quantised_layers_and_targets_from_the_original():
    model, x = dense_model(), RNG.normal(size=(150, 16)).astype("float32")
    small = sharing.quantize_responses(model, subspace=4, k=4, data=x, batch_size=40)
    assert [type(layer) for layer in small.layers] == [CodebookDense, CodebookDense]
    one, two = (ops.convert_to_numpy(layer.kernel) for layer in model.layers)
    bias = ops.convert_to_numpy(model.layers[0].bias)
    first = fitted(one, x.astype("float64"), x.astype("float64"), 4, 4)
    np.testing.assert_allclose(small.layers[0].reconstruct_kernel(), first, atol=1e-4)
    given = np.maximum(x @ small.layers[0].reconstruct_kernel() + bias, 0).astype("float64")
    wanted = np.maximum(x @ one + bias, 0).astype("float64")
    second = fitted(two, given, wanted, 4, 4)
    np.testing.assert_allclose(small.layers[1].reconstruct_kernel(), second, atol=1e-3)
    np.testing.assert_array_equal(small.layers[1].bias, model.layers[1].bias)


@pytest.mark.parametrize(
    "config", [{}, {"strides": 2, "padding": "same"}, {"dilation_rate": (2, 1), "padding": "same"}]
)
def test_wu_outputs_of_the_model_are_nearer_than_with_plain_pq(config):
    model = conv_model(**config)
    # Inputs that correlate, as those of images do.
    x = RNG.normal(size=(100, 1, 1, 4)) + 0.3 * RNG.normal(size=(100, 6, 7, 4))
    x = x.astype("float32")
    options = {"layers": ["conv", "pointwise"], "k": 6}
    plain = sharing.vector_quantize(model, "pq", segment=4, **options)
    small = sharing.quantize_responses(model, subspace=4, data=x, patches=8, **options)
    assert type(small.layers[0]) is CodebookConv2D and type(small.layers[1]) is CodebookConv2D
    expected = ops.convert_to_numpy(model(x))
    errors = [np.mean((ops.convert_to_numpy(each(x)) - expected) ** 2) for each in (small, plain)]
    assert errors[0] < 0.7 * errors[1]


def test_all_patches_of_a_convolution_give_the_fit_to_all_of_them():
    # A kernel as large as the input has one patch, which is drawn for sure.
    model = keras.Sequential([keras.Input((3, 2, 4)), layers.Conv2D(50, (3, 2), name="conv")])
    x = RNG.normal(size=(80, 3, 2, 4)).astype("float32")
    small = sharing.quantize_responses(model, 2, 4, data=x, patches=1, layers="conv")
    rows = x.reshape(80, -1).astype("float64")
    expected = fitted(ops.convert_to_numpy(model.layers[0].kernel), rows, rows, 2, 4)
    np.testing.assert_allclose(small.layers[0].reconstruct_kernel(), expected, atol=1e-4)


def test_wu_as_many_centres_as_vectors_change_nothing():
    model, x = dense_model(), RNG.normal(size=(50, 16)).astype("float32")
    small = sharing.quantize_responses(model, 4, 64, data=x, layers=["one", "two"], lookup=True)
    assert all(layer.lookup for layer in small.layers)
    np.testing.assert_allclose(small(x), model(x), atol=1e-4)


def test_layers_that_would_grow_and_odd_channels_stay_as_they_are():
    model, x = conv_model(), RNG.normal(size=(20, 6, 7, 4)).astype("float32")
    small = sharing.quantize_responses(model, subspace=8, k=16, data=[x])
    # Four channels are no segment of eight; a kernel for ten outputs is smaller than its books.
    kept = [layers.Conv2D, CodebookConv2D, layers.Flatten, layers.Dense]
    assert [type(layer) for layer in small.layers] == kept


def test_layers_called_twice_and_nested_models():
    keras.utils.set_random_seed(0)
    shared = layers.Dense(16, activation="tanh", name="shared")
    inner = keras.Sequential([keras.Input((16,)), shared, layers.Dense(16, name="inner")])
    inputs = {"a": keras.Input((16,), name="a"), "b": keras.Input((16,), name="b")}
    outputs = inner(inputs["a"]) + inner(shared(inputs["b"]))
    model = keras.Model(inputs, outputs)
    x = {name: RNG.normal(size=(60, 16)).astype("float32") for name in "ab"}
    before = [ops.convert_to_numpy(weight) for weight in model.weights]
    small = sharing.quantize_responses(model, 4, 6, data=x, layers=layers.Dense)
    plain = sharing.vector_quantize(model, "pq", segment=4, k=6, layers=layers.Dense)
    expected = ops.convert_to_numpy(model(x))
    errors = [np.mean((ops.convert_to_numpy(each(x)) - expected) ** 2) for each in (small, plain)]
    assert errors[0] < errors[1]
    for old, weight in zip(before, model.weights, strict=True):
        np.testing.assert_array_equal(old, ops.convert_to_numpy(weight))


@pytest.mark.parametrize(
    "options,message",
    [
        ({"data": None}, "quantize_responses: this needs data"),
        ({"subspace": 0}, "`subspace` must be a positive integer"),
        ({"layers": "one", "subspace": 5}, "segment=5"),
        ({"layers": "three"}, "No layer matches 'three'"),
        ({"k": 4096}, "no layer of model"),
    ],
)
def test_bad_arguments_are_refused(options, message):
    options = {"data": RNG.normal(size=(10, 16)), **options}
    with pytest.raises(ValueError, match=message):
        sharing.quantize_responses(dense_model(), **options)


def test_grouped_convolutions_are_refused_by_name():
    model = keras.Sequential([keras.Input((6, 6, 8)), layers.Conv2D(32, 3, groups=2, name="conv")])
    x = RNG.normal(size=(4, 6, 6, 8))
    with pytest.raises(ValueError, match="'conv' has 2. Leave it out"):
        sharing.quantize_responses(model, 4, 8, data=x, layers="conv")
