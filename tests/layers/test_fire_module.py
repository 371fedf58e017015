"""FireModule (SqueezeNet), also fitted to trained convolutions."""

import keras
import numpy as np
import pytest
from keras import ops

import keras_compress as kc
from keras_compress.decomposition.fire import FireFactors
from tests.layers.blocks import RNG, make, numpy, randomized, samples


def test_squeezenet_fire_module_is_two_convolutions_and_a_concat():
    fire, x = make("fire")
    relu = lambda z: ops.relu(z)  # noqa: E731
    squeezed = relu(ops.conv(x, fire.squeeze_conv.kernel, padding="valid") + fire.squeeze_conv.bias)
    small = relu(
        ops.conv(squeezed, fire.expand1x1_conv.kernel, padding="valid") + fire.expand1x1_conv.bias
    )
    large = relu(
        ops.conv(squeezed, fire.expand3x3_conv.kernel, padding="same") + fire.expand3x3_conv.bias
    )
    expected = np.concatenate([numpy(small), numpy(large)], -1)
    np.testing.assert_allclose(numpy(fire(x)), expected, rtol=1e-5, atol=1e-5)


def fire_kernel(tap, inputs=6, squeeze=2, small=3, large=4):
    """A 3x3 kernel that a fire module holds exactly."""
    mix = RNG.normal(size=(inputs, squeeze))
    kernel = np.zeros((3, 3, inputs, small + large))
    kernel[tap][:, :small] = mix @ RNG.normal(size=(squeeze, small))
    kernel[..., small:] = np.einsum("sr,ijrt->ijst", mix, RNG.normal(size=(3, 3, squeeze, large)))
    return kernel


@pytest.mark.parametrize(
    "size, strides, padding, tap",
    [((7, 6), 1, "same", (1, 1)), ((8, 9), 2, "same", (0, 1)), ((8, 7), 2, "valid", (1, 1))],
)
def test_a_kernel_of_that_structure_is_fitted_exactly(size, strides, padding, tap):
    conv = randomized(
        keras.layers.Conv2D(7, 3, strides, padding, activation="tanh", name="conv"), (*size, 6)
    )
    conv.kernel.assign(fire_kernel(tap))
    x = samples((*size, 6))
    fire = kc.layers.FireModule.from_layer(conv, 2, 3, input_size=size)
    assert (fire.name, fire.squeeze, fire.expand1x1, fire.expand3x3) == ("conv", 2, 3, 4)
    np.testing.assert_allclose(numpy(fire(x)), numpy(conv(x)), atol=2e-5)


def test_fits_are_least_squares():
    kernel = RNG.normal(size=(3, 3, 6, 7))
    factors = FireFactors.fit(kernel, 2, 3)
    parts = np.concatenate(
        [kernel[1, 1, :, :3], np.moveaxis(kernel[..., 3:], 2, 0).reshape(6, -1)], 1
    )
    values = np.linalg.svd(parts, compute_uv=False)
    left_out = np.sum(kernel[..., :3] ** 2) - np.sum(kernel[1, 1, :, :3] ** 2)
    error = np.sum((kernel - factors.reconstruct()) ** 2)
    np.testing.assert_allclose(error, np.sum(values[2:] ** 2) + left_out, rtol=1e-9)
    # Responses: the expansions are those of lstsq on what the squeeze gives.
    patches = RNG.normal(size=(300, 54)) @ RNG.normal(size=(54, 54)) + 1.0
    targets = patches @ kernel.reshape(54, 7) + 0.5
    fitted, bias = factors.fitted(kernel, patches, targets)
    given = patches @ fitted.reconstruct().reshape(54, 7) + bias
    squeezed = (patches.reshape(300, 9, 6) @ fitted.squeeze).reshape(300, -1)
    ones = np.ones((300, 1))
    best = np.concatenate(
        [
            rows @ np.linalg.lstsq(rows, wanted, rcond=None)[0]
            for rows, wanted in (
                (np.concatenate([squeezed[:, 8:10], ones], 1), targets[:, :3]),
                (np.concatenate([squeezed, ones], 1), targets[:, 3:]),
            )
        ],
        1,
    )
    np.testing.assert_allclose(given, best, atol=1e-3 * np.abs(targets).max())
    plain = patches @ factors.reconstruct().reshape(54, 7) + 0.5
    assert np.sum((given - targets) ** 2) < np.sum((plain - targets) ** 2)


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="`squeeze` must be below expand1x1 . expand3x3 = 8"):
        kc.layers.FireModule(8, 4, 4)
    conv = randomized(keras.layers.Conv2D(8, 5), (8, 8, 6))
    with pytest.raises(ValueError, match=r"kernel_size=\(5, 5\); this block stands for 3x3"):
        kc.layers.FireModule.from_layer(conv)
    conv = randomized(keras.layers.Conv2D(8, 3, 2, "same"), (8, 8, 6))
    with pytest.raises(ValueError, match="give input_size="):
        kc.layers.FireModule.from_layer(conv, 2)
    with pytest.raises(ValueError, match="`squeeze` must be an integer from 1 to 6; got squeeze=9"):
        kc.layers.FireModule.from_layer(conv, 9, input_size=(8, 8))
    with pytest.raises(ValueError, match="starts from a keras.layers.Conv2D; got Dense"):
        kc.layers.FireModule.from_layer(keras.layers.Dense(3))
