"""`grad_quantizer=` and `update_quantizer=` of the Quant layers: what comes back."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_compress import datasets, layers, quantizers
from keras_compress.quantizers import DoReFaGradient, FixedPoint, PowerOfTwo, StochasticTernary
from tests.gradients import gradient

RNG = np.random.default_rng(0)

# Layers and the shape of their inputs, with stock layers of the same arguments.
LAYERS = {
    "dense": (layers.QuantDense, (6,), {"units": 5}),
    "sequence": (layers.QuantDense, (3, 6), {"units": 5}),
    "conv": (
        layers.QuantConv2D,
        (7, 6, 4),
        {"filters": 6, "kernel_size": 3, "strides": 2, "padding": "same", "groups": 2},
    ),
    "dilated": (
        layers.QuantConv2D,
        (7, 8, 3),
        {"filters": 4, "kernel_size": (3, 2), "dilation_rate": 2},
    ),
    "depthwise": (
        layers.QuantDepthwiseConv2D,
        (7, 6, 3),
        {"kernel_size": 3, "depth_multiplier": 2},
    ),
}


@pytest.fixture(params=LAYERS)
def case(request):
    cls, shape, arguments = LAYERS[request.param]
    return cls, RNG.normal(size=(4, *shape)).astype("float32"), arguments


def kernel_gradient(layer, x, upstream, **options):
    """Gradient of `sum(layer(x, **options) * upstream)` with respect to the kernel."""
    frozen = [ops.convert_to_tensor(v) for v in layer.non_trainable_variables]
    index = [v is layer.kernel for v in layer.trainable_variables].index(True)

    def loss(kernel):
        values = [ops.convert_to_tensor(v) for v in layer.trainable_variables]
        values[index] = kernel
        outputs, _ = layer.stateless_call(values, frozen, x, **options)
        return ops.sum(outputs * upstream)

    return gradient(loss, ops.convert_to_numpy(layer.kernel))


def stock(layer, arguments):
    """The stock layer with the float kernel of a Quant layer."""
    source = layer.source(use_bias=False, **arguments)
    source.build(layer._build_shape())
    source.kernel.assign(layer.kernel)
    return source


def upstream_of(layer, x):
    return RNG.normal(size=layer(x).shape).astype("float32")


@pytest.mark.parametrize("stochastic", [False, True])
def test_lin_kernel_gradient_is_that_of_the_quantised_inputs(case, stochastic):
    cls, x, arguments = case
    rounding = "stochastic" if stochastic else "nearest"
    layer = cls(
        **arguments,
        use_bias=False,
        kernel_quantizer=StochasticTernary(seed=1),
        update_quantizer=PowerOfTwo(5, rounding=rounding, seed=2),
    )
    upstream = upstream_of(layer, x)
    got = kernel_gradient(layer, x, upstream, training=True)
    rounded = PowerOfTwo(5, rounding=rounding, seed=2).quantize(ops.convert_to_tensor(x), True)
    rounded = ops.convert_to_numpy(rounded)
    assert (np.frexp(rounded[rounded != 0])[0].astype(float) % 0.5 == 0).all()
    expected = kernel_gradient(stock(layer, arguments), rounded, upstream)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)
    if cls is layers.QuantDense:
        flat = [a.reshape(-1, a.shape[-1]) for a in (rounded, upstream)]
        np.testing.assert_allclose(got, flat[0].T @ flat[1], rtol=1e-4, atol=1e-4)


def test_lin_output_and_input_gradient_are_those_of_the_quantised_kernel(case):
    cls, x, arguments = case
    layer, plain = (
        cls(**arguments, kernel_quantizer=quantizers.Ternary(), update_quantizer=update)
        for update in (PowerOfTwo(4, rounding="stochastic"), None)
    )
    upstream = upstream_of(layer, x)
    plain(x)
    plain.kernel.assign(layer.kernel)
    results = [
        (
            ops.convert_to_numpy(each(x, training=True)),
            gradient(lambda x, each=each: ops.sum(each(x, training=True) * upstream), x),
        )
        for each in (layer, plain)
    ]
    np.testing.assert_array_equal(results[0][0], results[1][0])
    np.testing.assert_allclose(results[0][1], results[1][1], rtol=1e-5, atol=1e-6)
    # Outside of training nothing is rounded.
    np.testing.assert_allclose(
        kernel_gradient(layer, x, upstream, training=False),
        kernel_gradient(plain, x, upstream, training=False),
        rtol=1e-5,
        atol=1e-5,
    )


def test_gupta_gradients_of_kernel_bias_and_input_are_those_of_the_rounded_gradient():
    layer = layers.QuantDense(5, kernel_quantizer=FixedPoint(8, 4), grad_quantizer=FixedPoint(8, 4))
    x = RNG.normal(size=(4, 6)).astype("float32")
    upstream = upstream_of(layer, x)
    rounded = np.round(upstream * 16) / 16
    weights = np.round(ops.convert_to_numpy(layer.kernel) * 16) / 16
    got = gradient(lambda x: ops.sum(layer(x, training=True) * upstream), x)
    np.testing.assert_allclose(got, rounded @ weights.T, rtol=1e-5, atol=1e-6)
    got = kernel_gradient(layer, x, upstream, training=True)
    np.testing.assert_allclose(got, x.T @ rounded, rtol=1e-5, atol=1e-5)
    model = keras.Sequential([keras.Input((6,)), layer])
    model.compile(keras.optimizers.SGD(1.0), loss=lambda t, y: ops.sum(y * t, axis=-1) * 4)
    model.fit(x, upstream, batch_size=4, verbose=0)
    np.testing.assert_allclose(layer.bias, -rounded.sum(axis=0), rtol=1e-5, atol=1e-5)


def test_dorefa_gradient_in_the_layer_is_the_gradient_quantizer_behind_it(case):
    cls, x, arguments = case
    layer = cls(**arguments, grad_quantizer=DoReFaGradient(3, seed=1), activation="tanh")
    upstream = upstream_of(layer, x)
    outputs = ops.convert_to_numpy(layer(x, training=True))
    np.testing.assert_array_equal(outputs, ops.convert_to_numpy(layer(x)))
    # The draws of the forward pass just done.
    behind = quantizers.GradientQuantizer(DoReFaGradient(3, seed=1))
    plain = cls(**arguments, activation="tanh")
    plain(x)
    plain.kernel.assign(layer.kernel)
    behind(outputs, training=True)
    got = gradient(lambda x: ops.sum(layer(x, training=True) * upstream), x)
    expected = gradient(lambda x: ops.sum(behind(plain(x), training=True) * upstream), x)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)
    exact = gradient(lambda x: ops.sum(layer(x, training=False) * upstream), x)
    assert np.abs(exact - got).max() > 1e-3


def test_separable_quantises_the_gradient_of_both_convolutions():
    grid = FixedPoint(8, 3)
    layer = layers.QuantSeparableConv2D(5, 3, use_bias=False, grad_quantizer=grid)
    x = RNG.normal(size=(2, 6, 6, 3)).astype("float32")
    upstream = upstream_of(layer, x)
    got = gradient(lambda x: ops.sum(layer(x, training=True) * upstream), x)
    between = np.round(upstream * 8) / 8 @ ops.convert_to_numpy(layer.pointwise_kernel)[0, 0].T
    between = np.round(between * 8) / 8
    expected = np.zeros_like(x)
    kernel = ops.convert_to_numpy(layer.depthwise_kernel)[..., 0]
    for i, j in np.ndindex(4, 4):
        expected[:, i : i + 3, j : j + 3] += between[:, i, j][:, None, None] * kernel
    # A gradient half way between two values may fall to either side.
    assert (np.abs(got - expected) > 1e-4).mean() < 0.02


@pytest.mark.parametrize("cls", [layers.BinaryDense, layers.BinaryConv2D])
def test_binary_layers_take_both(cls):
    first = {"units": 4} if cls is layers.BinaryDense else {"filters": 4, "kernel_size": 1}
    layer = cls(
        **first, grad_quantizer="dorefa_gradient", update_quantizer="power_of_two", scale="mean_abs"
    )
    config = layer.get_config()
    assert cls.from_config(config).get_config() == config
    assert type(layer.grad_quantizer) is DoReFaGradient
    assert type(layer.update_quantizer) is PowerOfTwo


@pytest.mark.parametrize("jit_compile", [False, True])
def test_draws_move_on_in_a_compiled_step_and_the_file_keeps_the_quantizers(jit_compile, tmp_path):
    layer = layers.QuantDense(
        5,
        grad_quantizer=DoReFaGradient(4, seed=1),
        update_quantizer=PowerOfTwo(4, rounding="stochastic", seed=2),
    )
    model = keras.Sequential([keras.Input((6,)), layer])
    model.compile("sgd", "mse", jit_compile=jit_compile)
    x = RNG.normal(size=(8, 6)).astype("float32")
    model.fit(x, np.ones((8, 5)), batch_size=4, epochs=2, verbose=0)
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras").layers[0]
    assert again.get_config() == layer.get_config()
    # Four steps have drawn from both generators.
    assert len(layer.non_trainable_variables) == 2
    for state in layer.non_trainable_variables:
        assert ops.convert_to_numpy(state)[1] == 4


def test_lin_ternary_connect_with_quantised_back_propagation_trains():
    keras.utils.set_random_seed(0)
    (x, y), (x_test, y_test) = datasets.digits()

    def dense(units):
        return layers.QuantDense(
            units,
            kernel_quantizer=StochasticTernary("latent"),
            kernel_constraint=quantizers.WeightClip(),
            update_quantizer=PowerOfTwo(4, rounding="stochastic"),
            use_bias=False,
        )

    model = keras.Sequential(
        [
            keras.Input(x.shape[1:]),
            keras.layers.Flatten(),
            dense(96),
            keras.layers.BatchNormalization(),
            keras.layers.ReLU(),
            dense(10),
            keras.layers.BatchNormalization(),
        ]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(0.01), loss, metrics=["accuracy"])
    model.fit(x, y, batch_size=64, epochs=12, verbose=0)
    assert model.evaluate(x_test, y_test, verbose=0)[1] > 0.92
