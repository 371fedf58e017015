"""TTConv2D: what the protocol tests do not cover."""

import itertools

import keras
import numpy as np
import pytest
from keras import ops

from keras_compress.layers import TTConv2D, TTDense

on_tensorflow = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="export needs the TensorFlow backend"
)

MODES = {"input_modes": (2, 3), "output_modes": (4, 2)}


def built(kernel_size=3, **arguments):
    layer = TTConv2D(8, kernel_size, **{**MODES, "rank": 3, **arguments})
    layer.build((None, 9, 8, 6))
    return layer


def inputs(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def kernel_by_the_definition(layer):
    """K[i, j, (s..), (t..)] = G0[i, j] G1[s1, t1] ... Gd[sd, td], entry by entry."""
    first, *rest = (ops.convert_to_numpy(core).astype("float64") for core in layer.cores)
    kernel = np.zeros((*first.shape[:2], layer.input_channels, layer.filters))
    grids = [range(n) for core in rest for n in core.shape[1:3]]
    for i, j in np.ndindex(*first.shape[:2]):
        for modes in itertools.product(*grids):
            s, t, row = 0, 0, first[i, j][None]
            for core, a, b in zip(rest, modes[::2], modes[1::2], strict=True):
                s, t = s * core.shape[1] + a, t * core.shape[2] + b
                row = row @ core[:, a, b]
            kernel[i, j, s, t] = row[0, 0]
    return kernel


def test_garipov_kernel_is_the_product_of_the_cores_slices():
    layer = built((3, 2), rank=(5, 3))
    np.testing.assert_allclose(
        layer.reconstruct_kernel(), kernel_by_the_definition(layer), atol=1e-5
    )


@pytest.mark.parametrize("padding", ["valid", "same"])
@pytest.mark.parametrize("strides, dilation_rate", [((2, 1), 1), (1, (1, 2)), (3, 1)])
def test_garipov_layer_equals_conv2d_with_the_kernel(padding, strides, dilation_rate):
    layer = built(strides=strides, dilation_rate=dilation_rate, padding=padding)
    stock = keras.layers.Conv2D(
        8, 3, strides=strides, dilation_rate=dilation_rate, padding=padding, use_bias=False
    )
    stock.build((None, 9, 8, 6))
    stock.kernel.assign(kernel_by_the_definition(layer))
    x = inputs(2, 9, 8, 6)
    np.testing.assert_allclose(layer(x), stock(x), atol=1e-4)


@pytest.mark.parametrize("place", range(4))
def test_garipov_filters_may_come_at_any_place_of_the_chain(place):
    layer = TTConv2D(8, 3, input_modes=(2, 1, 3), output_modes=(2, 2, 2), rank=2)
    layer.build((None, 7, 6, 6))
    x, results = inputs(2, 7, 6, 6), []
    for rest in itertools.permutations((1, 2, 3)):
        layer._order = (*rest[:place], 0, *rest[place:])
        results.append(ops.convert_to_numpy(layer(x)))
    for result in results:
        np.testing.assert_allclose(result, layer.expand()(x), atol=1e-5)


def test_garipov_params_are_the_sum_of_the_core_sizes():
    layer = built(rank=(5, 4), use_bias=False)
    assert layer.count_params() == 9 * 5 + 5 * 2 * 4 * 4 + 4 * 3 * 2 * 1
    assert layer.storage_bits() == 32 * layer.count_params()


def test_garipov_with_one_pixel_is_ttdense_of_each_pixel():
    layer = built(1, rank=(1, 3))
    dense = TTDense(8, **MODES, rank=3)
    dense.build((None, 6))
    scale, *cores = (ops.convert_to_numpy(core) for core in layer.cores)
    dense.cores[0].assign(scale[0, 0, 0] * cores[0])
    dense.cores[1].assign(cores[1])
    x = inputs(2, 5, 4, 6)
    np.testing.assert_allclose(layer(x), dense(x), atol=1e-5)


def test_garipov_splitting_the_channels_beats_the_tt_without_splits():
    """The paper's point: at equal size, on a kernel with structure across its modes."""
    stock = keras.layers.Conv2D(16, 3)
    stock.build((None, 8, 8, 16))
    source = TTConv2D(16, 3, input_modes=(4, 4), output_modes=(4, 4), rank=3)
    source.build((None, 8, 8, 16))
    kernel = source.reconstruct_kernel()
    stock.kernel.assign(kernel)
    split = TTConv2D.from_layer(stock, input_modes=(4, 4), output_modes=(4, 4), rank=3)
    plain = TTConv2D.from_layer(stock, input_modes=(16, 1), output_modes=(1, 16), rank=(3, 4))
    assert plain.count_params() > split.count_params() - 100
    errors = [
        np.linalg.norm(layer.reconstruct_kernel() - kernel) / np.linalg.norm(kernel)
        for layer in (split, plain)
    ]
    assert errors[0] < 1e-5 < 0.1 < errors[1]


def test_an_error_bound_chooses_the_ranks():
    stock = keras.layers.Conv2D(8, 3)
    stock.build((None, 5, 5, 6))
    kernel = ops.convert_to_numpy(stock.kernel)
    layer = TTConv2D.from_layer(stock, rank=0.3)
    error = np.linalg.norm(layer.reconstruct_kernel() - kernel) / np.linalg.norm(kernel)
    assert error <= 0.3


def test_macs_are_those_of_the_operations():
    layer = built(rank=(5, 4), strides=2)
    # For each order: what each step multiplies, filters at input or output pixels.
    (h, w), (a, b) = (9, 8), (4, 3)
    before, after = h * w, a * b
    # Cores (2 x 4, ranks 5 and 4) and (3 x 2, rank 4); the input is 2 x 3.
    orders = {
        (0, 1, 2): after * (6 * 9 * 5 + 2 * 3 * 5 * 4 * 4 + 3 * 4 * 4 * 2),
        (0, 2, 1): after * (6 * 9 * 5 + 2 * 3 * 5 * 2 * 4 + 2 * 2 * 5 * 4 * 4),
        (1, 0, 2): before * 2 * 3 * 4 * 5 * 4 + after * (9 * 5 * 3 * 4 * 4 + 3 * 4 * 4 * 2),
        (2, 0, 1): before * 2 * 3 * 2 * 4 + after * (9 * 5 * 2 * 2 * 4 + 2 * 2 * 5 * 4 * 4),
        (2, 1, 0): before * (2 * 3 * 2 * 4 + 2 * 4 * 2 * 4 * 5) + after * 9 * 5 * 8,
        (1, 2, 0): before * (2 * 3 * 4 * 5 * 4 + 5 * 4 * 3 * 4 * 2) + after * 9 * 5 * 8,
    }
    assert layer.macs((None, h, w, 6)) == orders[layer._order] == min(orders.values())


def test_open_height_and_width():
    layer = TTConv2D(8, 3, **MODES, strides=2, padding="same", rank=2)
    model = keras.Sequential([keras.Input((None, None, 6)), layer])
    x = inputs(1, 7, 9, 6)
    np.testing.assert_allclose(model(x), layer.expand()(x), atol=1e-5)


def test_spread_of_the_virtual_kernel():
    keras.utils.set_random_seed(1)
    layer = TTConv2D(64, 3, rank=8)
    layer.build((None, 8, 8, 64))
    stock = keras.layers.Conv2D(64, 3)
    stock.build((None, 8, 8, 64))
    ratio = np.std(layer.reconstruct_kernel()) / np.std(ops.convert_to_numpy(stock.kernel))
    assert 0.7 < ratio < 1.4


@on_tensorflow
@pytest.mark.parametrize("size", [(8, 8), (None, None)])
def test_tflite_stores_the_cores_alone(size):
    from keras_compress.export import to_tflite

    layer = TTConv2D(128, 3, padding="same", rank=8, bias_initializer="ones")
    model = keras.Sequential([keras.Input((*size, 64)), layer])
    x = inputs(2, 8, 8, 64)
    lite = to_tflite(model)
    assert lite.nbytes < 1.15 * layer.storage_bits() / 8 + 8192 < 4 * 9 * 64 * 128 / 9
    # `size` open: the interpreter is given the shape of its input.
    if size[0]:
        np.testing.assert_allclose(lite.predict(x), model.predict(x, verbose=0), atol=1e-4)


@pytest.mark.parametrize(
    "arguments,message",
    [
        ({"output_modes": (3, 3)}, "product of `output_modes` must be the filters, 8"),
        ({"output_modes": (8,)}, "as many entries"),
        ({"rank": 99}, "largest useful rank"),
        ({"rank": (10, 2)}, "larger than the modes allow"),
        ({"rank": 0.1}, "error bound"),
        ({"input_modes": (2, 0)}, "input_modes"),
        ({"groups": 2}, "`groups` must be 1"),
    ],
)
def test_bad_arguments_are_refused_at_construction(arguments, message):
    with pytest.raises(ValueError, match=f"TTConv2D: .*{message}"):
        TTConv2D(8, 3, **{**MODES, "rank": 3, **arguments})


def test_what_does_not_fit_the_input_is_refused():
    with pytest.raises(ValueError, match=r"TTConv2D: the product of `input_modes`.*would do"):
        TTConv2D(8, 3, **MODES, rank=2).build((None, 9, 9, 7))
    grouped = keras.layers.Conv2D(8, 3, groups=2)
    grouped.build((None, 9, 9, 6))
    with pytest.raises(ValueError, match="`groups` must be 1; got groups=2"):
        TTConv2D.from_layer(grouped)
