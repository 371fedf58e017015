"""MEC: equal to a convolution, lowered along the width only, products on views."""

import tracemalloc

import keras
import numpy as np
import pytest
from scipy.signal import correlate

import keras_compress as kc
from keras_compress.ops.mec import PAPER_LAYERS

RNG = np.random.default_rng(0)


def normal(*shape):
    return RNG.normal(size=shape).astype("float32")


def brute_force(x, kernel, strides=(1, 1), pads=((0, 0), (0, 0))):
    """scipy's correlation at every position, then every stride-th of them."""
    x = np.pad(x, ((0, 0), *pads, (0, 0)))
    full = np.stack(
        [
            [correlate(one, kernel[..., f], "valid")[:, :, 0] for f in range(kernel.shape[-1])]
            for one in x
        ]
    )
    return full.transpose(0, 2, 3, 1)[:, :: strides[0], :: strides[1]]


@pytest.mark.parametrize("strides", [(1, 1), (2, 3)])
def test_mec_equals_conv2d_also_with_strides(strides):
    x, kernel = normal(2, 9, 11, 3), normal(3, 4, 3, 5)
    expected = brute_force(x, kernel, strides)
    tensor = keras.ops.convert_to_numpy(kc.ops.mec_conv2d(x, kernel, strides))
    np.testing.assert_allclose(tensor, expected, atol=1e-5)
    array = kc.ops.mec_conv2d_numpy(x, kernel, strides)
    np.testing.assert_allclose(array, expected, atol=1e-5)


def test_mec_pads_as_keras_does_on_odd_sizes():
    x, kernel = normal(1, 8, 7, 2), normal(4, 3, 2, 3)
    # 4 windows of 4 entries at a distance of 2 cover 10, that is 2 more; 4 of 3 cover 9.
    expected = brute_force(x, kernel, (2, 2), ((1, 1), (1, 1)))
    np.testing.assert_allclose(kc.ops.mec_conv2d_numpy(x, kernel, 2, "same"), expected, atol=1e-5)
    tensor = kc.ops.mec_conv2d(x, kernel, 2, "same")
    np.testing.assert_allclose(keras.ops.convert_to_numpy(tensor), expected, atol=1e-5)


def test_mec_dilation_is_a_kernel_with_zeros_between():
    x, kernel = normal(1, 9, 9, 2), normal(3, 2, 2, 3)
    spread = np.zeros((5, 4, 2, 3), "float32")
    spread[::2, ::3] = kernel
    tensor = kc.ops.mec_conv2d(x, kernel, dilation_rate=(2, 3))
    np.testing.assert_allclose(
        keras.ops.convert_to_numpy(tensor), brute_force(x, spread), atol=1e-5
    )


@pytest.mark.parametrize("strides", [1, 2])
def test_lowered_size_is_the_formula_and_holds_the_windows_of_each_row(strides):
    x = normal(2, 9, 8, 3)
    lowered = kc.ops.mec_lower(x, (3, 2), strides)
    out_w = (8 - 2) // strides + 1
    assert lowered.shape == (2, out_w, 9, 2, 3)
    assert lowered.size == kc.ops.mec_lowered_size(x.shape, (3, 2), strides)
    for w in range(out_w):
        np.testing.assert_array_equal(lowered[:, w], x[:, :, strides * w : strides * w + 2])


def test_lowered_matrix_of_the_paper_s_layers_is_smaller_than_im2col_by_kernel_over_stride():
    for (height, width, channels), (rows, columns), _, stride in PAPER_LAYERS.values():
        shape = (1, height, width, channels)
        out_h, out_w = (height - rows) // stride + 1, (width - columns) // stride + 1
        im2col = out_h * out_w * rows * columns * channels
        assert kc.ops.im2col_size(shape, (rows, columns), stride) == im2col
        lowered = kc.ops.mec_lowered_size(shape, (rows, columns), stride)
        assert lowered * out_h * rows == im2col * height
        # Windows of the last rows overlap fewer others.
        assert out_h * rows / height == pytest.approx(rows / stride, rel=0.3)


def test_matrices_are_overlapping_views_of_the_lowered_input_and_im2col_in_content():
    x = normal(2, 7, 6, 3)
    lowered = kc.ops.mec_lower(x, (3, 2), (2, 1))
    matrices = kc.ops.mec_matrices(lowered, 3, 2)
    assert np.shares_memory(matrices, lowered) and matrices.base is not None
    assert matrices.size == kc.ops.im2col_size(x.shape, (3, 2), (2, 1)) > lowered.size
    assert np.shares_memory(matrices[:, 0], matrices[:, 1])
    windows = np.lib.stride_tricks.sliding_window_view(x, (3, 2), axis=(1, 2))[:, ::2]
    np.testing.assert_array_equal(
        matrices, windows.transpose(0, 1, 2, 4, 5, 3).reshape(matrices.shape)
    )
    with pytest.raises(ValueError, match="as mec_lower"):
        kc.ops.mec_matrices(lowered[:, ::2], 3)


def test_numpy_form_needs_the_lowered_input_and_the_output_and_no_more():
    x, kernel = normal(1, 40, 40, 16), normal(5, 5, 16, 4)
    tracemalloc.start()
    outputs = kc.ops.mec_conv2d_numpy(x, kernel)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    lowered = 4 * kc.ops.mec_lowered_size(x.shape, (5, 5))
    assert peak < lowered + outputs.nbytes + 20_000
    assert peak < 0.3 * 4 * kc.ops.im2col_size(x.shape, (5, 5))


def test_layer_starts_from_conv2d_and_takes_images_of_any_size():
    dense = keras.layers.Conv2D(4, 3, strides=2, padding="same", activation="relu")
    dense.build((None, None, None, 2))
    layer = kc.layers.MECConv2D.from_layer(dense)
    inputs = keras.Input((None, None, 2))
    model = keras.Model(inputs, layer(inputs))
    for size in ((6, 9), (7, 5)):
        x = normal(2, *size, 2)
        np.testing.assert_allclose(
            model.predict(x, verbose=0), keras.ops.convert_to_numpy(dense(x)), atol=1e-5
        )
    assert layer.lowered_size((1, 7, 7, 2)) == kc.ops.mec_lowered_size(
        (1, 7, 7, 2), (3, 3), 2, "same"
    )


def test_bad_arguments_are_refused():
    x, kernel = normal(1, 5, 5, 2), normal(3, 3, 2, 3)
    with pytest.raises(ValueError, match="same channels; got"):
        kc.ops.mec_conv2d(x, normal(3, 3, 1, 3))
    with pytest.raises(ValueError, match="does not fit into an input of"):
        kc.ops.mec_conv2d(x, normal(6, 3, 2, 3))
    with pytest.raises(ValueError, match="`padding` must be one of 'valid', 'same'"):
        kc.ops.mec_conv2d_numpy(x, kernel, padding="full")
    with pytest.raises(ValueError, match="`strides` must be an integer or a pair"):
        kc.ops.mec_conv2d(x, kernel, (1, 1, 1))
    with pytest.raises(ValueError, match="`groups` must be 1"):
        kc.layers.MECConv2D(4, 3, groups=2)
