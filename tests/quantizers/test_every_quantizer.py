"""What every quantizer keeps: codes, levels and call agree, configuration and names round trip."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_compress import quantizers
from tests.gradients import gradient
from tests.quantizers.common import normal, values

QUANTIZERS = [
    quantizers.DoReFaWeight(1),
    quantizers.DoReFaWeight(2),
    quantizers.DoReFaWeight(8),
    quantizers.DynamicTree8(),
    quantizers.FixedPoint(8, 6),
    quantizers.FixedPoint(16, 14),
    quantizers.FixedPoint(8, 6, "stochastic", seed=2),
    quantizers.Minifloat(),
    quantizers.Minifloat(2, 1),
    quantizers.Minifloat(4, 0),
    quantizers.PowerOfTwo(3),
    quantizers.PowerOfTwo(5),
    quantizers.PowerOfTwo(4, terms=2),
    quantizers.ResidualSign(1),
    quantizers.ResidualSign(2, axis=None),
    quantizers.ResidualSign(3, refine=True),
    quantizers.Sign(),
    quantizers.Sign("mean_abs"),
    quantizers.StochasticTernary(seed=1),
    quantizers.StochasticTernary("latent", seed=1),
    quantizers.Ternary(),
    quantizers.Ternary(axis=-1),
    quantizers.Uniform(4),
    quantizers.Uniform(8, axis=None),
    quantizers.UniformL2(7),
    quantizers.UniformL2(15, axis=-1),
    quantizers.UniformL2(7, step=0.4),
    quantizers.UnitUniform(3),
]


def label(quantizer):
    config = quantizer.get_config()
    changed = {k: v for k, v in config.items() if k not in ("ste", "seed")}
    return "-".join([type(quantizer).__name__, *map(str, changed.values())])


@pytest.fixture(params=QUANTIZERS, ids=label)
def quantizer(request):
    return request.param


@pytest.mark.parametrize("shape", [(30, 5), (3, 3, 4, 5)])
def test_codes_decode_to_what_the_call_gives(quantizer, shape):
    w = normal(*shape)
    codes = quantizer.encode(w)
    assert codes.ints.shape == shape and codes.ints.dtype.kind in "iu"
    np.testing.assert_array_equal(quantizer.decode(codes), values(quantizer, w))


def test_values_are_levels_and_levels_fit_in_the_bits(quantizer):
    w = normal(60, 5)
    levels, outputs = quantizer.levels(w), values(quantizer, w)
    assert levels.shape[0] in (1, 5) and levels.shape[1] <= 2**quantizer.bits
    assert (np.diff(levels, axis=1) >= 0).all()
    for channel, row in enumerate(np.broadcast_to(levels, (5, levels.shape[1]))):
        assert set(outputs[:, channel].tolist()) <= set(row.tolist())


def test_approximates_better_than_nothing(quantizer):
    w = np.clip(normal(500, 4), -1, 1)
    if isinstance(quantizer, quantizers.UnitUniform):
        w = np.abs(w)
    assert np.sum((values(quantizer, w) - w) ** 2) < np.sum(w**2)


def test_configuration_round_trip(quantizer):
    config = quantizers.serialize(quantizer)
    again = quantizers.get(config)
    assert type(again) is type(quantizer) and again.get_config() == quantizer.get_config()


def test_name_is_the_class_in_snake_case(quantizer):
    cls = type(quantizer)
    snake = {"DoReFaWeight": "dorefa_weight", "UniformL2": "uniform_l2"}
    name = snake.get(cls.__name__) or "".join(
        f"_{c.lower()}" if c.isupper() else c for c in cls.__name__
    ).lstrip("_")
    for identifier in (name, cls.__name__):
        assert type(quantizers.get(identifier)) is cls
        assert quantizers.get(identifier).get_config() == cls().get_config()


def test_a_gradient_reaches_the_weights_inside_of_a_compiled_step(quantizer):
    """Loops and table lookups included, under jit and differentiation."""
    w = np.clip(normal(12, 5), -0.9, 0.9)
    upstream = normal(12, 5, seed=1)

    def loss(w):
        return ops.sum(quantizer(w) * upstream)

    if keras.backend.backend() == "jax":
        import jax

        grad = jax.jit(jax.grad(loss))(w)
    elif keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        @tf.function(jit_compile=True)
        def step(w):
            with tf.GradientTape() as tape:
                tape.watch(w)
                result = loss(w)
            return tape.gradient(result, w)

        grad = step(tf.constant(w))
    else:
        grad = gradient(loss, w)
    np.testing.assert_allclose(ops.convert_to_numpy(grad), gradient(loss, w), rtol=1e-4, atol=1e-5)
    assert np.isfinite(grad).all() and np.any(np.asarray(grad) != 0)


def test_zeros_are_quantised_without_nan(quantizer):
    assert np.isfinite(values(quantizer, np.zeros((4, 3)))).all()
