"""Convolution over nonzero inputs: equal to Conv2D, one axpy for each output that one touches."""

import keras
import numpy as np
import pytest

import keras_compress as kc

RNG = np.random.default_rng(0)


def touched(shape, kernel, strides, pads):
    """Brute force: for each position, the windows that hold it."""
    counts = np.zeros(shape, int)
    padded = [length + sum(pad) for length, pad in zip(shape, pads, strict=True)]
    for top in range(0, padded[0] - kernel[0] + 1, strides[0]):
        for left in range(0, padded[1] - kernel[1] + 1, strides[1]):
            for h in range(kernel[0]):
                for w in range(kernel[1]):
                    y, x = top + h - pads[0][0], left + w - pads[1][0]
                    if 0 <= y < shape[0] and 0 <= x < shape[1]:
                        counts[y, x] += 1
    return counts


CASES = [
    ((3, 3), (1, 1), "valid", ((0, 0), (0, 0))),
    ((3, 3), (1, 1), "same", ((1, 1), (1, 1))),
    ((5, 2), (2, 3), "same", ((2, 2), (0, 0))),
    ((1, 2), (3, 3), "valid", ((0, 0), (0, 0))),
]


@pytest.mark.parametrize("kernel_size, strides, padding, pads", CASES)
def test_relu_sparse_conv_equals_conv2d_and_counts_its_axpys(kernel_size, strides, padding, pads):
    x = np.maximum(RNG.normal(size=(2, 9, 8, 3)), 0.3).astype("float32") - np.float32(0.3)
    kernel = RNG.normal(size=(*kernel_size, 3, 4)).astype("float32")
    outputs, axpys = kc.sparse.relu_sparse_conv2d(x, kernel, strides, padding)
    expected = keras.ops.conv(x, kernel, strides, padding)
    np.testing.assert_allclose(outputs, keras.ops.convert_to_numpy(expected), atol=1e-5)
    counts = touched((9, 8), kernel_size, strides, pads)
    assert axpys == ((x != 0) * counts[None, :, :, None]).sum()


def test_axpys_are_proportional_to_density():
    x, kernel = np.ones((1, 16, 16, 8), "float32"), np.ones((3, 3, 8, 4), "float32")
    _, every = kc.sparse.relu_sparse_conv2d(x, kernel)
    assert every == 14 * 14 * 9 * 8
    x[..., ::4] = 0
    assert kc.sparse.relu_sparse_conv2d(x, kernel)[1] == 0.75 * every
    assert kc.sparse.relu_sparse_conv2d(0 * x, kernel)[1] == 0


def test_arguments_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="with the same channels; got"):
        kc.sparse.relu_sparse_conv2d(np.ones((1, 5, 5, 2)), np.ones((3, 3, 3, 4)))
    with pytest.raises(ValueError, match="does not fit into an input"):
        kc.sparse.relu_sparse_conv2d(np.ones((1, 2, 5, 2)), np.ones((3, 3, 2, 4)))
