"""QuantSeparableConv2D: its two quantised kernels, their storage, and what knows of them."""

import keras
import numpy as np
import pytest
from keras import ops

import keras_compress as kc
from keras_compress.layers import QuantSeparableConv2D
from keras_compress.quantizers import FixedPoint, PowerOfTwo, Sign, StochasticTernary, Uniform
from tests.quantizers.stored_weights import stored_weights

RNG = np.random.default_rng(0)


def run(layer, inputs):
    return ops.convert_to_numpy(layer(np.asarray(inputs, "float32")))


def rounded(w, bits, axes):
    """w on the grid of `Uniform(bits)`, a scale for each output channel."""
    step = np.abs(w).max(axis=axes, keepdims=True) / (2 ** (bits - 1) - 1)
    return np.round(w / step) * step


def test_output_is_the_sum_over_channels_of_the_quantised_kernels_patch_by_patch():
    layer = QuantSeparableConv2D(
        5,
        3,
        depth_multiplier=2,
        depthwise_quantizer=Uniform(4),
        pointwise_quantizer=Uniform(3),
        input_quantizer=FixedPoint(8, 3),
        bias_initializer="normal",
    )
    x = RNG.normal(size=(2, 6, 7, 4)).astype("float32")
    outputs = run(layer, x)
    depthwise = rounded(np.asarray(layer.depthwise_kernel), 4, (0, 1))
    pointwise = rounded(np.asarray(layer.pointwise_kernel)[0, 0], 3, 0)
    x = np.round(x * 8) / 8
    for i, j in np.ndindex(4, 5):
        patch = x[:, i : i + 3, j : j + 3]
        between = np.einsum("nhwc,hwcm->ncm", patch, depthwise).reshape(2, 8)
        expected = between @ pointwise + np.asarray(layer.bias)
        np.testing.assert_allclose(outputs[:, i, j], expected, rtol=1e-4, atol=1e-5)


def test_storage_is_that_of_the_codes_and_scales_of_both_kernels():
    layer = QuantSeparableConv2D(
        16, 3, depth_multiplier=2, depthwise_quantizer="uniform", pointwise_quantizer=Sign()
    )
    layer.build((None, 9, 9, 4))
    assert layer.storage_bits() == (8 * 9 * 8 + 32 * 8) + 8 * 16 + 32 * 16
    assert layer.macs((None, 9, 9, 4)) == 7 * 7 * (9 * 8 + 8 * 16)


def test_one_quantizer_for_both_gives_each_kernel_a_generator_of_its_own():
    layer = QuantSeparableConv2D(4, 3, kernel_quantizer=StochasticTernary(seed=1))
    depthwise, pointwise = layer.depthwise.kernel_quantizer, layer.pointwise.kernel_quantizer
    assert depthwise.get_config() == pointwise.get_config()
    assert depthwise.seed_generator is not pointwise.seed_generator
    layer = QuantSeparableConv2D(4, 3, kernel_quantizer="sign", depthwise_quantizer="uniform")
    assert type(layer.depthwise.kernel_quantizer) is Uniform
    assert type(layer.pointwise.kernel_quantizer) is Sign


def test_arguments_of_the_keras_layer_reach_the_kernel_that_they_are_for():
    constraint = kc.quantizers.WeightClip(0.5)
    layer = QuantSeparableConv2D(
        4,
        3,
        depthwise_initializer="ones",
        pointwise_initializer="zeros",
        depthwise_regularizer="l2",
        pointwise_constraint=constraint,
        trainable=False,
    )
    layer.build((None, 7, 7, 2))
    depthwise, pointwise = layer.depthwise_kernel, layer.pointwise_kernel
    assert (np.asarray(depthwise) == 1).all() and (np.asarray(pointwise) == 0).all()
    assert depthwise.regularizer is not None and pointwise.regularizer is None
    assert pointwise.constraint is constraint and depthwise.constraint is None
    assert not layer.trainable_weights and len(layer.non_trainable_weights) == 3
    config = layer.get_config()
    assert QuantSeparableConv2D.from_config(config).get_config() == config
    stock = set(keras.layers.SeparableConv2D(4, 3).get_config())
    assert stock <= set(config)


def test_from_layer_brings_weights_into_the_range_of_fixed_levels():
    source = keras.layers.SeparableConv2D(6, 3)
    source.build((None, 8, 8, 4))
    layer = QuantSeparableConv2D.from_layer(
        source, pointwise_quantizer=Sign(), depthwise_regularizer="l1"
    )
    kernel = ops.convert_to_numpy(source.pointwise_kernel)
    np.testing.assert_allclose(layer.pointwise_kernel, kernel / np.abs(kernel).max(), rtol=1e-6)
    np.testing.assert_array_equal(layer.depthwise_kernel, source.depthwise_kernel)
    assert layer.depthwise_kernel.regularizer is not None


def test_trained_models_are_quantised_and_counted():
    model = keras.Sequential(
        [
            keras.Input((8, 8, 6)),
            keras.layers.SeparableConv2D(20, 3, name="separable", use_bias=False),
            keras.layers.GlobalAveragePooling2D(),
        ]
    )
    small = kc.quantizers.apply(model, Uniform(8))
    layer = small.get_layer("separable")
    assert type(layer) is QuantSeparableConv2D
    x = RNG.normal(size=(4, 8, 8, 6)).astype("float32")
    expected = run(model, x)
    np.testing.assert_allclose(run(small, x), expected, atol=0.02 * np.abs(expected).max())
    assert kc.profile.macs(small) == kc.profile.macs(model) == 36 * (9 * 6 + 6 * 20)
    assert kc.profile.storage_bits(small) == layer.storage_bits()


def test_summary_counts_each_product_by_its_own_factors():
    layer = QuantSeparableConv2D(
        20,
        3,
        depthwise_quantizer=Sign(),
        pointwise_quantizer=Uniform(4),
        input_quantizer="sign",
        use_bias=False,
        name="separable",
    )
    model = keras.Sequential([keras.Input((8, 8, 6)), layer])
    row = kc.quantizers.summary(model, verbose=False)["separable"]
    assert (row.binary_macs, row.int8_macs, row.float_macs) == (36 * 9 * 6, 0, 36 * 6 * 20)
    assert (row.kernel_bits, row.input_bits) == (4, 32)
    assert row.nbytes == -(-(9 * 6 + 4 * 120 + 32 * 20) // 8)


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="export runs on TensorFlow")
@pytest.mark.parametrize(
    "quantizer,bits", [(kc.quantizers.Ternary(), 2), (Uniform(4), 4), (Uniform(8), 8)]
)
def test_file_holds_the_pointwise_kernel_in_its_grid(quantizer, bits):
    layer = QuantSeparableConv2D(
        96, 3, padding="same", kernel_quantizer=quantizer, activation="relu", name="separable"
    )
    model = keras.Sequential([keras.Input((6, 6, 128)), layer])
    lite = kc.export.to_tflite(model)
    stored_bits, ints, scale = stored_weights(lite.content)
    assert stored_bits == bits and lite.layers[0].layer == "separable"
    kernel = ints.reshape(96, 128).T * scale
    np.testing.assert_allclose(kernel, layer.pointwise.reconstruct_kernel()[0, 0], rtol=1e-6)
    # The depthwise kernel and 8 KiB of graph, beside the codes.
    assert len(lite.content) < 4 * 9 * 128 + bits * 128 * 96 // 8 + 8192
    x = RNG.normal(size=(2, 6, 6, 128)).astype("float32")
    expected = run(model, x)
    np.testing.assert_allclose(lite.predict(x), expected, atol=0.02 * expected.max())


@pytest.mark.parametrize(
    "arguments,message",
    [
        ({"pointwise_quantizer": "tenary"}, "Did you mean 'ternary'"),
        ({"depthwise_quantizer": Uniform(4, axis=0)}, r"got depthwise_quantizer=Uniform\(axis=0\)"),
        ({"kernel_quantizer": Uniform(4, axis=0)}, "QuantSeparableConv2D: .*got kernel_quantizer"),
        ({"input_quantizer": "uniform"}, "QuantSeparableConv2D: .*would be one of the whole batch"),
        ({"depth_multiplier": 0}, "`depth_multiplier` must be a positive integer"),
        ({"update_quantizer": "power"}, "power_of_two"),
    ],
)
def test_bad_arguments_say_what_to_do(arguments, message):
    with pytest.raises(ValueError, match=message):
        QuantSeparableConv2D(4, 3, **arguments)


def test_gradients_of_stochastic_quantizers_train_both_kernels():
    keras.utils.set_random_seed(0)
    layer = QuantSeparableConv2D(
        4,
        3,
        kernel_quantizer=Uniform(4),
        grad_quantizer="dorefa_gradient",
        update_quantizer=PowerOfTwo(5, rounding="stochastic"),
    )
    model = keras.Sequential([keras.Input((6, 6, 3)), layer])
    model.compile(keras.optimizers.SGD(0.05), "mse", jit_compile=True)
    x = RNG.normal(size=(64, 6, 6, 3)).astype("float32")
    y = run(keras.layers.SeparableConv2D(4, 3), x)
    losses = model.fit(x, y, batch_size=16, epochs=15, verbose=0).history["loss"]
    assert losses[-1] < 0.5 * losses[0]
