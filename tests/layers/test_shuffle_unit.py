"""ShuffleUnit (ShuffleNet), also fitted to trained convolutions."""

import keras
import numpy as np
import pytest

import keras_compress as kc
from tests.layers.blocks import RNG, make, numpy, randomized, samples


def test_shufflenet_every_output_group_depends_on_every_input_group():
    unit = randomized(
        kc.layers.ShuffleUnit(12, 3, bottleneck=9, shortcut=False, activation=None), (5, 5, 6)
    )
    x = samples((5, 5, 6), 1)
    base = numpy(unit(x))
    for group in range(3):
        changed = x.copy()
        # One channel.
        changed[..., 2 * group] += 1.0
        moved = np.abs(numpy(unit(changed)) - base).reshape(-1, 3, 4).max((0, 2))
        assert (moved > 1e-4).all()
    # Without the shuffle a group only reaches itself.
    chain = [unit.compress, unit.compress_norm, unit.depthwise, unit.expansion]
    run = lambda z: numpy(kc.layers.block.chain(chain, z))  # noqa: E731
    changed = x.copy()
    changed[..., 0] += 1.0
    moved = np.abs(run(changed) - run(x)).reshape(-1, 3, 4).max((0, 2))
    assert moved[0] > 1e-4 and (moved[1:] == 0).all()


def test_shufflenet_shortcuts_are_added_or_pooled_and_concatenated():
    unit, x = make("shuffle")
    unit.expand_norm.gamma.assign(np.zeros(12))
    unit.expand_norm.beta.assign(np.zeros(12))
    np.testing.assert_allclose(numpy(unit(x)), np.maximum(x, 0), atol=1e-6)
    unit, x = make("shuffle-strided")
    pooled = keras.layers.AveragePooling2D(3, 2, "same")(x)
    outputs = numpy(unit(x))
    assert outputs.shape[-1] == 20
    np.testing.assert_allclose(outputs[..., :12], np.maximum(numpy(pooled), 0), atol=1e-6)


@pytest.mark.parametrize("groups, strides, padding", [(2, 1, "same"), (3, 2, "valid")])
def test_a_kernel_of_that_structure_is_fitted_exactly(groups, strides, padding):
    conv = keras.layers.Conv2D(12, 3, strides, padding, activation="tanh", name="conv")
    randomized(conv, (7, 8, 6))
    # Each pair of an input and an output group has one separable term.
    kernel = np.zeros((3, 3, 6, 12))
    a, b = 6 // groups, 12 // groups
    for p in range(groups):
        for q in range(groups):
            kernel[:, :, p * a : (p + 1) * a, q * b : (q + 1) * b] = np.einsum(
                "ij,s,t->ijst", RNG.normal(size=(3, 3)), RNG.normal(size=a), RNG.normal(size=b)
            )
    conv.kernel.assign(0.3 * kernel)
    x = samples((7, 8, 6))
    unit = kc.layers.ShuffleUnit.from_layer(conv, groups, 1)
    assert (unit.name, unit.bottleneck) == ("conv", groups**2)
    np.testing.assert_allclose(numpy(unit(x)), numpy(conv(x)), atol=1e-4)


def test_more_rank_and_data_lower_the_error():
    conv = randomized(keras.layers.Conv2D(8, 3, padding="same"), (6, 6, 4))
    x = samples((6, 6, 4), 16)
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (1, 2))
    patches = windows.transpose(0, 1, 2, 4, 5, 3).reshape(-1, 36).astype("float64")

    def error(**options):
        unit = kc.layers.ShuffleUnit.from_layer(conv, 2, **options)
        return np.square(numpy(unit(x)) - numpy(conv(x))).mean()

    errors = [error(rank=rank) for rank in (1, 2, 4)]
    assert errors[0] > errors[1] > errors[2]
    assert error(rank=1, patches=patches) < errors[0]


def test_groups_that_do_not_go_are_refused():
    with pytest.raises(ValueError, match="`groups` must divide the number of bottleneck channels"):
        kc.layers.ShuffleUnit(12, 2)
    with pytest.raises(ValueError, match="number of output channels; got groups=3 with 16 output"):
        kc.layers.ShuffleUnit(16, 3, bottleneck=6)
    with pytest.raises(ValueError, match="number of input channels; got groups=3 with 8"):
        kc.layers.ShuffleUnit(12, 3, shortcut=False).build((None, 8, 8, 8))
    with pytest.raises(ValueError, match="Give filters=8, strides=2 or shortcut=False"):
        kc.layers.ShuffleUnit(16, 2).build((None, 8, 8, 8))
    with pytest.raises(ValueError, match="Give more than 16"):
        kc.layers.ShuffleUnit(16, 2, 2).build((None, 8, 8, 16))
    conv = randomized(keras.layers.Conv2D(8, 3), (6, 6, 4))
    with pytest.raises(ValueError, match="groups=3 with 4 input channels"):
        kc.layers.ShuffleUnit.from_layer(conv, 3)
