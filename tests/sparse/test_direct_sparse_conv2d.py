"""Direct sparse convolution: equal to Conv2D, work by nonzeros, and where it pays."""

import keras
import numpy as np
import pytest

import keras_compress as kc

RNG = np.random.default_rng(0)
MACHINE = kc.sparse.Machine(50e9, 8e9, 2e-9, 20e9)


def pruned_conv(density=0.3, channels=4, filters=6, **arguments):
    layer = keras.layers.Conv2D(filters, **{"kernel_size": 3, **arguments})
    layer.build((None, None, None, channels))
    shape = layer.kernel.shape
    layer.kernel.assign(RNG.normal(size=shape) * (RNG.random(shape) < density))
    if layer.use_bias:
        layer.bias.assign(RNG.normal(size=filters))
    return layer


@pytest.mark.parametrize(
    "arguments",
    [
        {"activation": "relu"},
        {"strides": 2, "padding": "same", "use_bias": False},
        {"kernel_size": (2, 5), "strides": (3, 2), "padding": "same"},
        {"dilation_rate": (2, 3), "padding": "same"},
        {"dilation_rate": 2, "groups": 2},
        {"kernel_size": 1, "activation": "softmax"},
    ],
    ids=str,
)
def test_direct_sparse_conv_equals_conv2d(arguments):
    layer = pruned_conv(**arguments)
    x = RNG.normal(size=(3, 11, 9, 4)).astype("float32")
    outputs = kc.sparse.DirectSparseConv2D(layer)(x)
    np.testing.assert_allclose(outputs, keras.ops.convert_to_numpy(layer(x)), atol=1e-5)


def test_direct_sparse_conv_takes_channels_first_in_its_own_order():
    last = pruned_conv(strides=2, padding="same", activation="softmax")
    # Softmax is over the last axis, whatever that is: no activation here.
    last.activation = keras.activations.linear
    first = keras.layers.Conv2D(6, 3, strides=2, padding="same", data_format="channels_first")
    first.build((None, 4, 8, 7))
    first.set_weights(last.get_weights())
    x = RNG.normal(size=(2, 8, 7, 4)).astype("float32")
    outputs = kc.sparse.DirectSparseConv2D(first)(x.transpose(0, 3, 1, 2))
    expected = keras.ops.convert_to_numpy(last(x)).transpose(0, 3, 1, 2)
    np.testing.assert_allclose(outputs, expected, atol=1e-5)


def test_work_is_nonzeros_times_positions_and_each_weight_is_kept_once():
    layer = pruned_conv(density=0.2, padding="same")
    op = kc.sparse.DirectSparseConv2D(layer)
    nonzeros = np.count_nonzero(keras.ops.convert_to_numpy(layer.kernel))
    assert op.nonzeros == op.weights.nnz == nonzeros
    assert op.macs((1, 10, 12, 4)) == nonzeros * 10 * 12


def test_column_indices_are_offsets_of_rows_in_the_padded_input():
    layer = pruned_conv(density=0.0, dilation_rate=(2, 1))
    kernel = np.zeros(layer.kernel.shape, "float32")
    kernel[2, 1, 3, 5] = 7
    layer.kernel.assign(kernel)
    weights = kc.sparse.DirectSparseConv2D(layer).weights.tocoo()
    # Row 4 of the input, then channel 3 of 4, then tap 1 of 3.
    assert (weights.row, weights.col, weights.data) == (5, (4 * 4 + 3) * 3 + 1, 7)


def test_many_output_rows_are_taken_in_several_products():
    layer = pruned_conv(density=1.0, channels=8, filters=64, strides=2, padding="same")
    op = kc.sparse.DirectSparseConv2D(layer)
    x = RNG.normal(size=(1, 23, 6, 8)).astype("float32")
    np.testing.assert_allclose(op(x), keras.ops.convert_to_numpy(layer(x)), atol=1e-4)
    assert sorted(op._stacks) == [3]


def test_layer_without_any_weight_left_gives_its_bias():
    layer = pruned_conv(density=0.0)
    outputs = kc.sparse.DirectSparseConv2D(layer)(np.ones((1, 4, 4, 4)))
    np.testing.assert_array_equal(
        outputs, np.broadcast_to(keras.ops.convert_to_numpy(layer.bias), (1, 2, 2, 6))
    )


def test_ops_refuse_other_layers_and_inputs():
    with pytest.raises(ValueError, match="runs a keras.layers.Conv2D; got Dense"):
        kc.sparse.DirectSparseConv2D(keras.layers.Dense(2))
    with pytest.raises(ValueError, match="needs a built layer"):
        kc.sparse.SparseDense(keras.layers.Dense(2))
    with pytest.raises(ValueError, match="4 channels on axis -1; got shape"):
        kc.sparse.DirectSparseConv2D(pruned_conv())(np.ones((1, 5, 5, 3)))


def test_sparse_dense_equals_dense_on_sequences():
    layer = keras.layers.Dense(5, activation="softmax")
    layer.build((None, 7, 6))
    layer.kernel.assign(RNG.normal(size=(6, 5)) * (RNG.random((6, 5)) < 0.3))
    x = RNG.normal(size=(2, 7, 6)).astype("float32")
    np.testing.assert_allclose(
        kc.sparse.SparseDense(layer)(x), keras.ops.convert_to_numpy(layer(x)), atol=1e-6
    )


def conv_cost(sparsity, machine=MACHINE, **options):
    layer = keras.layers.Conv2D(64, 3, padding="same")
    layer.build((None, 28, 28, 64))
    shape = (None, 28, 28, 64)
    return kc.sparse.cost_model(layer, sparsity, input_shape=shape, machine=machine, **options)


def test_cost_model_is_the_longer_of_compute_and_bandwidth():
    cost = conv_cost(0.9, batch_size=4)
    weights, length = 9 * 64 * 64, 28 * 4
    assert cost.dense_seconds == pytest.approx(weights * 28 * length / 50e9)
    lowering = 8 * 30 * 64 * 3 * length / 20e9
    axpys = 0.1 * weights * 28 * (2e-9 + length / 8e9)
    assert cost.sparse_seconds == pytest.approx(3e-5 + lowering + axpys)
    assert cost.bound == "compute" and cost.speedup == cost.dense_seconds / cost.sparse_seconds
    slow = kc.sparse.Machine(50e9, 8e9, 2e-9, 20e6)
    assert conv_cost(0.9, slow).bound == "bandwidth" and not conv_cost(0.9, slow).pays


def test_window_of_sparsity_is_where_the_prediction_crosses_the_dense_one():
    cost = conv_cost(0.5)
    assert 0.5 < cost.lower < cost.upper < 1 and not cost.pays
    above, below = conv_cost(cost.lower + 1e-3), conv_cost(cost.lower - 1e-3)
    assert above.pays and not below.pays
    # Beyond the upper end, more zeros gain no computing any more.
    far = conv_cost(cost.upper + 0.5 * (1 - cost.upper))
    assert far.bound == "bandwidth" and conv_cost(cost.upper - 1e-3).bound == "compute"


def test_measured_machine_is_known_after_the_first_call():
    machine = kc.sparse.measure_machine()
    assert machine is kc.sparse.measure_machine()
    assert machine.dense_macs > machine.sparse_macs > 1e6
    # In this machine's own constants some sparsity pays for a large convolution.
    assert 0 < conv_cost(0.99, machine).lower < 1


def test_cost_model_refuses_what_it_cannot_know():
    layer = keras.layers.Conv2D(4, 3)
    layer.build((None, None, None, 2))
    with pytest.raises(ValueError, match="is in no model that tells the shape"):
        kc.sparse.cost_model(layer, 0.5, machine=MACHINE)
    with pytest.raises(ValueError, match="depends on a size that is open"):
        kc.sparse.cost_model(layer, 0.5, input_shape=(None, None, 8, 2), machine=MACHINE)
    with pytest.raises(ValueError, match="built Dense and Conv2D layers; got Flatten"):
        kc.sparse.cost_model(keras.layers.Flatten(), 0.5, machine=MACHINE)
    with pytest.raises(ValueError, match="`bandwidth` must be a number"):
        kc.sparse.Machine(1e9, 1e9, 1e-9, 0)
