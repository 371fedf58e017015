"""Group-equivariant layers: P4Conv2D, P4MConv2D, GroupPool, GroupBatchNormalization."""

import keras
import numpy as np
import pytest
from keras import layers, ops

import keras_compress as kc

on_tensorflow = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="export needs the TensorFlow backend"
)
CONVOLUTIONS = {"p4": kc.layers.P4Conv2D, "p4m": kc.layers.P4MConv2D}
ROTATION, MIRROR = np.array([[0, -1], [1, 0]]), np.array([[1, 0], [0, -1]])


def values(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def elements(group):
    """Matrices that act on (row, column), in the order of the layers: r^s m^b at 4 b + s."""
    # Row numbers grow downwards: counterclockwise is (row, column) -> (-column, row).
    mirrors = [np.eye(2, dtype=int)] + [MIRROR] * (group == "p4m")
    return [np.linalg.matrix_power(ROTATION, s) @ m for m in mirrors for s in range(4)]


def place(matrix, group):
    return next(i for i, g in enumerate(elements(group)) if (g == matrix).all())


def transformed(image, matrix):
    """An image (..., height, width, channels) moved by a matrix, pixel by pixel."""
    height, width = image.shape[-3:-1]
    new_height, new_width = np.abs(matrix @ [height, width])
    result = np.zeros((*image.shape[:-3], new_height, new_width, image.shape[-1]), image.dtype)
    for row, column in np.ndindex(height, width):
        centred = 2 * np.array([row, column]) - [height - 1, width - 1]
        i, j = (matrix @ centred + [new_height - 1, new_width - 1]) // 2
        result[..., i, j, :] = image[..., row, column, :]
    return result


def permuted(maps, matrix, group):
    """Feature maps moved by a matrix: each orientation goes where the matrix takes it."""
    every = elements(group)
    moved = transformed(maps, matrix)
    split = moved.reshape(*moved.shape[:-1], -1, len(every))
    result = np.zeros_like(split)
    for h, g in enumerate(every):
        result[..., place(matrix @ g, group)] = split[..., h]
    return result.reshape(moved.shape)


def randomized(model, seed=3):
    rng = np.random.default_rng(seed)
    for variable in model.variables:
        variable.assign(rng.uniform(0.2, 1.0, variable.shape) * rng.choice([-1, 1], variable.shape))
        if "variance" in variable.name:
            variable.assign(np.abs(variable))
    return model


@pytest.mark.parametrize("group", CONVOLUTIONS)
@pytest.mark.parametrize("lifting", [True, False])
def test_cohen_bank_is_the_definition(group, lifting):
    """K_g(y, h) = K(g^-1 y, g^-1 h), entry by entry."""
    order = len(elements(group))
    layer = CONVOLUTIONS[group](2 * order, 3, lifting=lifting)
    layer.build((None, 6, 6, 2 if lifting else 2 * order))
    kernel = ops.convert_to_numpy(layer.kernel)
    split = kernel.reshape(3, 3, 2, 1 if lifting else order, 2)
    bank = layer.reconstruct_kernel().reshape(3, 3, 2, split.shape[3], 2, order)
    for g, matrix in enumerate(elements(group)):
        undo = np.linalg.inv(matrix).astype(int)
        for i, j, h in np.ndindex(3, 3, split.shape[3]):
            y = undo @ [i - 1, j - 1] + 1
            source = 0 if lifting else place(undo @ elements(group)[h], group)
            expected = split[y[0], y[1], :, source]
            np.testing.assert_array_equal(bank[i, j, :, h, :, g], expected)


@pytest.mark.parametrize(
    "group, lifting, size, arguments",
    [
        ("p4", True, (7, 6), {"padding": "same", "activation": "relu"}),
        ("p4", False, (9, 9), {"strides": 2}),
        ("p4", False, (7, 9), {"strides": 2, "padding": "same", "bias_initializer": "ones"}),
        ("p4m", True, (8, 8), {"kernel_size": 4, "strides": 2, "padding": "same"}),
        ("p4m", False, (7, 6), {"dilation_rate": 2, "padding": "same"}),
    ],
)
def test_cohen_transformed_inputs_give_transformed_outputs(group, lifting, size, arguments):
    every = elements(group)
    layer = CONVOLUTIONS[group](
        **{"filters": 2 * len(every), "kernel_size": 3, "lifting": lifting, **arguments}
    )
    x = values(2, *size, 3 if lifting else 3 * len(every))
    expected = ops.convert_to_numpy(layer(x))
    assert np.ptp(expected) > 0.1
    for matrix in every:
        moved = transformed(x, matrix) if lifting else permuted(x, matrix, group)
        np.testing.assert_allclose(layer(moved), permuted(expected, matrix, group), atol=1e-5)


def network(group, mode="max"):
    """Everything that keeps equivariance, one after the other."""
    convolution, order = CONVOLUTIONS[group], len(elements(group))
    x = inputs = keras.Input((12, 12, 2))
    x = convolution(2 * order, 3, padding="same", lifting=True, name="lift")(x)
    x = kc.layers.GroupBatchNormalization(group)(x)
    x = layers.MaxPooling2D()(layers.ReLU()(x))
    y = convolution(2 * order, 3, padding="same", activation="tanh", name="deep")(x)
    x = layers.Concatenate()([layers.Add()([x, y]), y])
    x = convolution(order, 3)(layers.AveragePooling2D(2)(x))
    x = kc.layers.GroupPool(group, mode)(x)
    return randomized(keras.Model(inputs, layers.GlobalAveragePooling2D()(x)))


@pytest.mark.parametrize("group, mode", [("p4", "max"), ("p4m", "mean")])
def test_cohen_network_is_invariant_after_the_pools(group, mode):
    model, x = network(group, mode), values(2, 12, 12, 2)
    for matrix in elements(group):
        np.testing.assert_allclose(model(transformed(x, matrix)), model(x), atol=1e-5)
    # p4 alone does not know mirrors.
    mirrored = ops.convert_to_numpy(model(transformed(x, MIRROR)))
    assert (np.abs(mirrored - model(x)).max() > 1e-3) == (group == "p4")


def test_cohen_free_weights():
    """k^2 c_in c_out when lifting, k^2 |G| c_in c_out between groups; c counts feature maps."""
    for group, convolution in CONVOLUTIONS.items():
        order = len(elements(group))
        lifting = convolution(5 * order, 3, lifting=True)
        lifting.build((None, 8, 8, 3))
        assert lifting.count_params() == 9 * 3 * 5 + 5
        between = convolution(5 * order, 3)
        between.build((None, 8, 8, 6 * order))
        assert between.count_params() == 9 * order * 6 * 5 + 5
        assert between.storage_bits() == 32 * between.count_params()
        assert between.expand().kernel.shape == (3, 3, 6 * order, 5 * order)


def test_cohen_expanded_layer_has_the_bias_of_each_map():
    for data_format, shape in (("channels_last", (6, 5, 8)), ("channels_first", (8, 6, 5))):
        layer = kc.layers.P4Conv2D(
            8, 3, data_format=data_format, bias_initializer=keras.initializers.RandomNormal()
        )
        x = values(2, *shape)
        np.testing.assert_allclose(layer(x), layer.expand()(x), atol=1e-5)
        bias = ops.convert_to_numpy(layer.bias)
        np.testing.assert_array_equal(layer.expand().bias, np.repeat(bias, 4))


@pytest.mark.parametrize("group", CONVOLUTIONS)
def test_from_layer_is_the_least_squares_fit(group):
    convolution, order = CONVOLUTIONS[group], len(elements(group))
    source = layers.Conv2D(order, 3, bias_initializer=keras.initializers.RandomNormal())
    source.build((None, 6, 6, order))
    layer = convolution.from_layer(source)
    # Columns: the bank of each free weight.
    size = int(np.prod(layer.kernel.shape))
    probe = convolution(order, 3)
    probe.build((None, 6, 6, order))
    columns = []
    for unit in np.eye(size, dtype="float32"):
        probe.kernel.assign(unit.reshape(probe.kernel.shape))
        columns.append(probe.reconstruct_kernel().ravel())
    target = ops.convert_to_numpy(source.kernel).ravel()
    expected = np.linalg.lstsq(np.array(columns).T, target, rcond=None)[0]
    np.testing.assert_allclose(ops.convert_to_numpy(layer.kernel).ravel(), expected, atol=1e-5)
    np.testing.assert_allclose(layer.bias, ops.convert_to_numpy(source.bias).mean(), atol=1e-6)
    again = convolution.from_layer(layer.expand())
    np.testing.assert_allclose(again.kernel, layer.kernel, atol=1e-6)
    np.testing.assert_allclose(again.bias, layer.bias, atol=1e-6)


@pytest.mark.parametrize("axis", [-1, 1])
def test_group_batch_normalization_shares_statistics_over_orientations(axis):
    x = values(4, 8, 6, 8)
    layer = kc.layers.GroupBatchNormalization("p4", axis=axis, momentum=0.5)
    outputs = ops.convert_to_numpy(layer(x, training=True))
    split = np.moveaxis(x, axis, -1).reshape(4, -1, 2, 4).astype("float64")
    mean, variance = split.mean((0, 1, 3)), split.var((0, 1, 3))
    expected = (split - mean[:, None]) / np.sqrt(variance[:, None] + 1e-3)
    np.testing.assert_allclose(
        np.moveaxis(outputs, axis, -1).reshape(4, -1, 2, 4), expected, atol=1e-4
    )
    np.testing.assert_allclose(layer.moving_mean, 0.5 * mean, atol=1e-5)
    np.testing.assert_allclose(layer.moving_variance, 0.5 + 0.5 * variance, atol=1e-5)
    randomized(layer)
    np.testing.assert_allclose(layer(x), layer.expand()(x), atol=1e-5)
    assert layer.expand().axis == axis


def test_group_pool_is_the_maximum_or_mean_of_neighbouring_channels():
    x = values(2, 5, 4, 16)
    for group, order in (("p4", 4), ("p4m", 8)):
        split = x.reshape(2, 5, 4, -1, order)
        np.testing.assert_array_equal(kc.layers.GroupPool(group)(x), split.max(-1))
        first = kc.layers.GroupPool(group, "mean", data_format="channels_first")
        pooled = np.moveaxis(ops.convert_to_numpy(first(np.moveaxis(x, -1, 1))), 1, -1)
        np.testing.assert_allclose(pooled, split.mean(-1), atol=1e-6)


def test_keras_file_and_training(tmp_path):
    model, x = network("p4"), values(8, 12, 12, 2)
    model.compile("sgd", "mse")
    model.fit(x, values(8, 1), verbose=0)
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(again(x), model(x))
    # Training leaves it what it is.
    np.testing.assert_allclose(model(np.rot90(x, 1, (1, 2))), model(x), rtol=1e-5)


@on_tensorflow
def test_tflite_holds_the_whole_bank_as_ordinary_convolutions():
    model, x = network("p4"), values(2, 12, 12, 2)
    lite = kc.export.to_tflite(model)
    np.testing.assert_allclose(lite.predict(x), model(x), atol=1e-4)
    assert not any(op.startswith(("FLEX", "CUSTOM", "GATHER")) for op in lite.ops)
    # The batch normalization went into the convolution.
    assert "MUL" not in lite.ops
    wide = sum(model.get_layer(n).expand().count_params() for n in ("lift", "deep"))
    assert lite.nbytes > 4 * wide


@pytest.mark.parametrize("group", CONVOLUTIONS)
@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"filters": 12 - 2}, "`filters` counts all output channels"),
        ({"kernel_size": (3, 5)}, "`kernel_size` must be the same"),
        ({"strides": (2, 1)}, "`strides` must be the same"),
        ({"groups": 2}, "`groups` must be 1"),
        ({"kernel_size": 2, "padding": "same"}, "do not lie symmetrically"),
        ({"lifting": 1}, "`lifting` must be True or False"),
    ],
)
def test_bad_arguments_are_refused_at_construction(group, arguments, message):
    with pytest.raises(ValueError, match=message):
        CONVOLUTIONS[group](**{"filters": 8, "kernel_size": 3, **arguments})


def test_what_does_not_fit_the_input_is_refused():
    with pytest.raises(ValueError, match="3 channels. For images.* lifting=True"):
        kc.layers.P4Conv2D(8, 3).build((None, 8, 8, 3))
    strided = kc.layers.P4Conv2D(8, 3, strides=2, padding="same", lifting=True)
    with pytest.raises(ValueError, match="at an image size of 8, the windows do not lie"):
        strided(keras.Input((9, 8, 3)))
    with pytest.raises(ValueError, match="at an image size of 8"):
        kc.layers.P4Conv2D(8, 3, strides=2, lifting=True)(values(1, 9, 8, 3))
    source = layers.Conv2D(6, 3)
    source.build((None, 8, 8, 4))
    with pytest.raises(ValueError, match="P4Conv2D: `filters` counts"):
        kc.layers.P4Conv2D.from_layer(source)
    for layer in (kc.layers.GroupPool("p4"), kc.layers.GroupBatchNormalization("p4")):
        with pytest.raises(ValueError, match="got 6 channels"):
            layer(values(1, 4, 4, 6))
    with pytest.raises(ValueError, match="`group` must be one of 'p4', 'p4m'"):
        kc.layers.GroupPool("p5")
    with pytest.raises(ValueError, match="renorm"):
        kc.layers.GroupBatchNormalization(renorm=True)
