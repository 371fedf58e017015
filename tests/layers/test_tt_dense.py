"""TTDense: what the protocol tests do not cover."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_compress.layers import TTDense

MODES = {"input_modes": (2, 3, 4), "output_modes": (3, 2, 2)}


def built(**arguments):
    layer = TTDense(12, **{**MODES, "rank": 3, **arguments})
    layer.build((None, 24))
    return layer


def test_novikov_params_are_the_sum_of_the_core_sizes():
    layer = built(rank=(2, 3))
    assert layer.count_params() == 1 * 2 * 3 * 2 + 2 * 3 * 2 * 3 + 3 * 4 * 2 * 1 + 12
    assert layer.storage_bits() == 32 * layer.count_params()


def test_novikov_gradient_equals_finite_differences():
    keras.utils.set_random_seed(0)
    layer = built(dtype="float64")
    x = np.random.default_rng(0).normal(size=(4, 24))
    y = np.random.default_rng(1).normal(size=(4, 12))
    model = keras.Sequential([keras.Input((24,), dtype="float64"), layer])
    model.compile(keras.optimizers.SGD(1.0), loss="mse")

    def loss():
        return float(np.mean((ops.convert_to_numpy(layer(x)) - y) ** 2))

    start = [ops.convert_to_numpy(core).copy() for core in layer.cores]
    model.train_on_batch(x, y)
    gradients = [s - ops.convert_to_numpy(c) for s, c in zip(start, layer.cores, strict=True)]
    for core, value in zip(layer.cores, start, strict=True):
        core.assign(value)
    layer.bias.assign(np.zeros(12))
    # The loss is quadratic in any one entry, so that the central difference is exact at any step: a
    # large one leaves the rounding of JAX's float32 behind.
    step = 0.1
    for core, value, gradient in zip(layer.cores, start, gradients, strict=True):
        for index in [(0, 0, 0, 0), tuple(s - 1 for s in value.shape)]:
            moved = value.copy()
            moved[index] += step
            core.assign(moved)
            up = loss()
            moved[index] -= 2 * step
            core.assign(moved)
            down = loss()
            core.assign(value)
            assert (up - down) / (2 * step) == pytest.approx(gradient[index], rel=1e-3, abs=1e-6)


def test_modes_are_chosen_when_none_are_given():
    layer = TTDense(64, rank=2)
    layer.build((None, 512))
    assert np.prod(layer.input_modes) == 512 and np.prod(layer.output_modes) == 64
    assert len(layer.input_modes) == len(layer.output_modes) == 3


def test_an_error_bound_chooses_the_ranks():
    dense = keras.layers.Dense(12)
    dense.build((None, 24))
    layer = TTDense.from_layer(dense, **MODES, rank=0.3)
    kernel = ops.convert_to_numpy(dense.kernel)
    error = np.linalg.norm(layer.reconstruct_kernel() - kernel) / np.linalg.norm(kernel)
    assert error <= 0.3


def test_glorot_spread_of_the_virtual_kernel():
    keras.utils.set_random_seed(1)
    layer = TTDense(512, input_modes=(8, 8, 8), output_modes=(8, 8, 8), rank=8)
    layer.build((None, 512))
    assert np.std(layer.reconstruct_kernel()) == pytest.approx((2 / 1024) ** 0.5, rel=0.3)


def test_cores_differ_and_a_seed_repeats_them():
    a, b = (
        built(kernel_initializer=keras.initializers.GlorotUniform(seed=5), rank=2) for _ in range(2)
    )
    for first, second in zip(a.cores, b.cores, strict=True):
        np.testing.assert_array_equal(first, second)
    assert not np.allclose(ops.ravel(a.cores[0])[:8], ops.ravel(a.cores[1])[:8])


@pytest.mark.parametrize(
    "arguments,message",
    [
        ({"output_modes": (3, 2, 3)}, "product of `output_modes`"),
        ({"output_modes": (3, 4)}, "as many entries"),
        ({"rank": 99}, "largest useful rank"),
        ({"rank": 0.1}, "error bound"),
        ({"input_modes": (2, 0, 4)}, "input_modes"),
        ({"units": 0}, "units"),
    ],
)
def test_bad_arguments_are_refused_at_construction(arguments, message):
    with pytest.raises(ValueError, match=message):
        TTDense(**{"units": 12, **MODES, "rank": 3, **arguments})


def test_input_modes_that_do_not_fit_the_input_are_refused_at_build():
    with pytest.raises(ValueError, match=r"product of `input_modes`.*would do"):
        TTDense(12, **MODES, rank=2).build((None, 25))
