"""`IntraKernelStrided`: the pattern, and the lowered product that it makes smaller."""

import keras
import numpy as np
import pytest

import keras_compress as kc

RNG = np.random.default_rng(0)
IntraKernelStrided = kc.pruning.criteria.IntraKernelStrided


def pruned(model, **options):
    new = kc.pruning.prune_weights(model, IntraKernelStrided(**options))
    return keras.ops.convert_to_numpy(new.get_layer("conv").kernel), new


def conv_model(size=3, **options):
    conv = keras.layers.Conv2D(6, size, use_bias=False, name="conv", **options)
    return keras.Sequential([keras.Input((7, 7, 4)), conv])


@pytest.mark.parametrize("stride", [2, 3])
def test_kept_positions_follow_the_stride_and_the_best_offset(stride):
    model = conv_model((3, 5))
    weights = keras.ops.convert_to_numpy(model.layers[0].kernel).reshape(15, 4, 6)
    found = pruned(model, stride=stride)[0].reshape(15, 4, 6)
    for channel in range(4):
        sums = [np.abs(weights[offset::stride, channel]).sum() for offset in range(stride)]
        expected = np.zeros((15, 6), "float32")
        best = int(np.argmax(sums))
        expected[best::stride] = weights[best::stride, channel]
        np.testing.assert_array_equal(found[:, channel], expected)


@pytest.mark.parametrize("options", [{}, {"strides": 2, "padding": "same"}])
def test_lowered_product_with_deleted_rows_equals_the_masked_convolution(options):
    model = conv_model(**options)
    kernel, new = pruned(model, stride=3)
    x = RNG.normal(size=(5, 7, 7, 4)).astype("float32")
    step, pad = (2, 1) if options else (1, 0)
    padded = np.pad(x, [(0, 0), (pad, pad), (pad, pad), (0, 0)])
    side = (7 + 2 * pad - 3) // step + 1
    lowered = np.stack(
        [
            padded[:, step * r : step * r + 3, step * c : step * c + 3].reshape(5, -1)
            for r in range(side)
            for c in range(side)
        ],
        1,
    )
    matrix = kernel.reshape(36, 6)
    rows = np.flatnonzero(matrix.any(1))
    # A third of the rows of the matrix, and of the columns of the lowered input, are left.
    assert len(rows) == 12
    product = (lowered[..., rows] @ matrix[rows]).reshape(5, side, side, 6)
    np.testing.assert_allclose(product, new.predict(x, verbose=0), atol=1e-5)


def test_rows_of_zeros_in_the_pattern_stay():
    model = conv_model()
    model.layers[0].kernel.assign(np.zeros((3, 3, 4, 6)))
    new = kc.pruning.prune_weights(model, IntraKernelStrided(3, offset=2))
    mask = new.layers[0].kernel_constraint.read_mask()
    np.testing.assert_array_equal(np.flatnonzero(mask[..., 0, 0].ravel()), [2, 5, 8])


def test_layers_with_one_position_are_left_out_or_refused():
    model = keras.Sequential(
        [
            keras.Input((7, 7, 4)),
            keras.layers.DepthwiseConv2D(3, name="conv"),
            keras.layers.Conv2D(4, 1, name="point"),
            keras.layers.Flatten(),
            keras.layers.Dense(2, name="fc"),
        ]
    )
    scores = IntraKernelStrided()(model)
    assert list(scores) == ["conv/kernel"] and (scores["conv/kernel"] > 0).mean() >= 4 / 9
    with pytest.raises(ValueError, match="'point/kernel' have 1 positions"):
        IntraKernelStrided()(model, layers="point")
    with pytest.raises(ValueError, match="from 0 to 1"):
        IntraKernelStrided(2, offset=2)


def test_transposed_convolution_has_its_input_maps_last():
    model = keras.Sequential(
        [keras.Input((4, 4, 3)), keras.layers.Conv2DTranspose(2, 3, name="conv")]
    )
    kernel = pruned(model, stride=2)[0].reshape(9, 2, 3)
    assert ((kernel != 0).any(1) == (kernel != 0).all(1)).all()
    assert set((kernel != 0).all(1).sum(0)) <= {4, 5}
