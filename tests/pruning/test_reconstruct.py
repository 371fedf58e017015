"""`reconstruct`: refits equal numpy's least squares, and errors do not add up."""

import keras
import numpy as np
import pytest
from keras import layers

import keras_compress as kc

RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def _seeded():
    """The same numbers for a test, whichever others run."""
    keras.utils.set_random_seed(0)
    RNG.bit_generator.state = np.random.default_rng(0).bit_generator.state


def conv_model(**options):
    x = inputs = keras.Input((7, 7, 2))
    x = layers.Conv2D(8, 3, activation="relu", name="a")(x)
    x = layers.Conv2D(6, 3, padding="same", strides=2, name="b", **options)(x)
    x = layers.BatchNormalization()(x)
    x = layers.ReLU()(x)
    x = layers.Conv2D(5, 2, activation="relu", name="c")(x)
    x = layers.Flatten()(x)
    model = keras.Model(inputs, layers.Dense(3, name="d")(x))
    for layer in model.layers:
        if getattr(layer, "bias", None) is not None:
            layer.bias.assign(RNG.normal(0, 0.3, layer.bias.shape))
    return model


def data(count=60):
    return RNG.normal(size=(count, 7, 7, 2)).astype("float32")


def patches(model, name, x):
    """Rows of a convolution at all positions, by TensorFlow-free arithmetic of unit kernels."""
    layer = model.get_layer(name)
    source = keras.Model(model.input, layer.input)(x)
    height, width, channels, _ = layer.kernel.shape
    count = height * width * channels
    unit = layers.Conv2D(count, (height, width), layer.strides, layer.padding, use_bias=False)
    unit.build(source.shape)
    unit.kernel.assign(np.eye(count).reshape(height, width, channels, count))
    return keras.ops.convert_to_numpy(unit(source)).reshape(-1, count).astype("float64")


def before_activation(model, name, x):
    layer = model.get_layer(name)
    return patches(model, name, x) @ array(layer.kernel).reshape(-1, layer.filters) + array(
        layer.bias
    )


def array(variable):
    return keras.ops.convert_to_numpy(variable).astype("float64")


def error(model, other, x):
    return np.square(array(model(x)) - array(other(x))).mean()


def test_least_squares_equals_numpys_on_what_the_pruned_model_reads():
    model, x = conv_model(), data()
    small = kc.pruning.remove_channels(model, {"a": [0, 2, 3, 6], "b": [1, 2, 5]})
    new = kc.pruning.reconstruct(small, model, x, "b", images=100, positions=100, damping=1e-12)
    rows = patches(small, "b", x)
    rows = np.concatenate([rows, np.ones((len(rows), 1))], 1)
    targets = before_activation(model, "b", x)[:, [1, 2, 5]]
    expected = np.linalg.lstsq(rows, targets, rcond=None)[0]
    np.testing.assert_allclose(
        array(new.get_layer("b").kernel).reshape(-1, 3), expected[:-1], atol=1e-4
    )
    np.testing.assert_allclose(array(new.get_layer("b").bias), expected[-1], atol=1e-4)
    # Nothing else changed, and neither model that was given.
    np.testing.assert_array_equal(new.get_layer("c").kernel, small.get_layer("c").kernel)
    np.testing.assert_array_equal(
        small.get_layer("b").kernel,
        array(model.get_layer("b").kernel)[:, :, [0, 2, 3, 6]][..., [1, 2, 5]],
    )


def test_scales_equal_numpys_least_squares():
    model, x = conv_model(), data()
    small = kc.pruning.remove_channels(model, {"a": [0, 2, 3, 6]})
    new = kc.pruning.reconstruct(
        small, model, x, method="scale", images=100, positions=100, damping=1e-12
    )
    kernel = array(small.get_layer("b").kernel)
    rows = patches(small, "b", x).reshape(-1, 9, 4)
    given = np.einsum("ntc,tcj->cnj", rows, kernel.reshape(9, 4, 6)).reshape(4, -1)
    targets = before_activation(model, "b", x) - array(model.get_layer("b").bias)
    scales = np.linalg.lstsq(given.T, targets.ravel(), rcond=None)[0]
    np.testing.assert_allclose(
        array(new.get_layer("b").kernel), kernel * scales[:, None], rtol=1e-4, atol=1e-6
    )
    np.testing.assert_array_equal(new.get_layer("b").bias, small.get_layer("b").bias)


def test_inputs_are_those_of_the_refitted_layers_before():
    model, x = conv_model(), data()
    keep = {"a": [0, 2, 3, 6], "b": [1, 2, 5]}
    small = kc.pruning.remove_channels(model, keep)
    options = {"images": 100, "positions": 100, "damping": 1e-12}
    first = kc.pruning.reconstruct(small, model, x, "b", **options)
    both = kc.pruning.reconstruct(small, model, x, ["c", "b"], **options)
    rows = patches(first, "c", x)
    rows = np.concatenate([rows, np.ones((len(rows), 1))], 1)
    expected = np.linalg.lstsq(rows, before_activation(model, "c", x), rcond=None)[0]
    np.testing.assert_allclose(
        array(both.get_layer("c").kernel).reshape(-1, 5), expected[:-1], atol=1e-4
    )


@pytest.mark.parametrize("method", ["least_squares", "scale"])
def test_full_count_gives_zero_error(method):
    model, x = conv_model(), data(20)
    new = kc.pruning.reconstruct(model, model, x, ["b", "c", "d"], method)
    np.testing.assert_allclose(new(x), model(x), atol=1e-5)


@pytest.mark.parametrize("method", ["least_squares", "scale"])
@pytest.mark.parametrize("count", [4, 60])
def test_refit_error_is_not_above_that_of_no_refit(method, count):
    # Also with fewer rows (4 x 9) than inputs (72).
    model, x = conv_model(), data(count)
    small = kc.pruning.remove_channels(model, {"a": [0, 2, 3, 6, 7]})
    new = kc.pruning.reconstruct(small, model, x, "b", method, images=100, positions=100)
    targets = before_activation(model, "b", x)
    errors = [np.square(before_activation(m, "b", x) - targets).sum() for m in (small, new)]
    assert errors[1] < errors[0]


def test_with_fewer_rows_than_inputs_the_nearest_solution_is_taken():
    inputs = keras.Input((10,))
    x = layers.Dense(30, name="a")(inputs)
    model = keras.Model(inputs, layers.Dense(2, use_bias=False, name="b")(x))
    small = kc.pruning.remove_channels(model, {"a": range(25)})
    x = RNG.normal(size=(6, 10)).astype("float32")
    new = kc.pruning.reconstruct(small, model, x, damping=1e-12)
    rows = array(small.get_layer("a")(x))
    kernel = array(small.get_layer("b").kernel)
    change = np.linalg.pinv(rows) @ (array(model(x)) - rows @ kernel)
    np.testing.assert_allclose(array(new.get_layer("b").kernel), kernel + change, atol=1e-4)


@pytest.mark.parametrize("criterion", ["lasso", "thinet", "l1"])
@pytest.mark.parametrize("method", ["least_squares", "scale"])
def test_prune_channels_refits_what_it_cut(criterion, method):
    model, x = conv_model(), data(40)
    plain = kc.pruning.prune_channels(model, criterion, 0.5, x, scope="layer")
    new = kc.pruning.prune_channels(model, criterion, 0.5, x, scope="layer", reconstruct=method)
    if method == "least_squares":
        assert error(model, new, x) < error(model, plain, x)
    expected = kc.pruning.reconstruct(plain, model, x, method=method)
    for variable, other in zip(new.weights, expected.weights, strict=True):
        np.testing.assert_allclose(variable, other, atol=1e-6)


def test_residual_and_nested_models_and_layers_without_bias():
    x = inner_inputs = keras.Input((5, 5, 4))
    y = layers.Conv2D(6, 3, padding="same", use_bias=False, name="wide")(x)
    y = layers.Conv2D(4, 3, padding="same", use_bias=False, name="narrow")(layers.ReLU()(y))
    block = keras.Model(inner_inputs, layers.Add()([x, y]), name="block")
    x = inputs = keras.Input((5, 5, 1))
    x = block(layers.Conv2D(4, 3, padding="same", name="stem")(x))
    model = keras.Model(inputs, layers.Dense(2)(layers.GlobalAveragePooling2D()(x)))
    x = RNG.normal(size=(40, 5, 5, 1)).astype("float32")
    small = kc.pruning.remove_channels(model, {"stem": [0, 2, 3], "block/wide": [1, 4, 5]})
    new = kc.pruning.reconstruct(small, model, x)
    assert error(model, new, x) < 0.9 * error(model, small, x)


def test_another_or_a_trained_model_is_refused():
    model, x = conv_model(), data(4)
    small = kc.pruning.remove_channels(model, {"a": [0, 2, 3, 6]})
    with pytest.raises(ValueError, match="the channels of 'a' in the pruned model are not a part"):
        kc.pruning.reconstruct(small, conv_model(), x)
    with pytest.raises(ValueError, match="`method` must be one of 'least_squares', 'scale'"):
        kc.pruning.reconstruct(small, model, x, method="svd")
    with pytest.raises(ValueError, match="`reconstruct` must be one of"):
        kc.pruning.prune_channels(model, "l1", 0.5, x, reconstruct="lasso")
    with pytest.raises(ValueError, match="needs data"):
        kc.pruning.prune_channels(model, "l1", 0.5, reconstruct="scale")
