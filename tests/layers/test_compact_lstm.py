"""CompactLSTM against keras.layers.LSTM, explicit matrices and the best shared projection."""

import keras
import numpy as np
import pytest
import scipy.linalg
from keras import ops

from keras_compress import convert, profile
from keras_compress.layers import CompactLSTM, CompactLSTMCell
from tests.gradients import gradient

on_tensorflow = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="export needs the TensorFlow backend"
)

any_backend = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow",
    reason="nothing here depends on the backend, and JAX compiles every shape anew",
)


def sequences(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def randomize(layer, seed=1, scale=0.4):
    rng = np.random.default_rng(seed)
    for weight in layer.weights:
        weight.assign(scale * rng.normal(size=weight.shape))
    return layer


def trained_lstm(units, features, seed=1, **arguments):
    lstm = keras.layers.LSTM(units, **arguments)
    lstm.build((None, None, features))
    return randomize(lstm, seed)


def trained_stack(sizes=(12, 9, 7), features=5):
    layers = []
    for index, units in enumerate(sizes):
        above = index < len(sizes) - 1
        layers.append(
            trained_lstm(units, features, index, return_sequences=above, name=f"lstm_{index}")
        )
        features = units
    return layers


def stacked(layers, shape):
    return keras.Sequential([keras.Input(shape), *layers])


def lstm_by_definition(x, kernel, recurrent, bias, projection=None):
    """All outputs of an LSTM, in numpy."""
    units = recurrent.shape[1] // 4
    sigmoid = lambda z: 1 / (1 + np.exp(-z))  # noqa: E731
    h = np.zeros((len(x), len(recurrent)))
    carry, outputs = np.zeros((len(x), units)), []
    for step in range(x.shape[1]):
        i, f, c, o = np.split(x[:, step] @ kernel + h @ recurrent + bias, 4, axis=1)
        carry = sigmoid(f) * carry + sigmoid(i) * np.tanh(c)
        h = sigmoid(o) * np.tanh(carry)
        h = h if projection is None else h @ projection
        outputs.append(h)
    return np.stack(outputs, axis=1)


def explicit_toeplitz_like(layer):
    """`1/2 sum Z_1(g) Z_-1(J h)`, transposed and cut to the layer's kernel."""
    total = 0
    for g, h in zip(ops.convert_to_numpy(layer.g).T, ops.convert_to_numpy(layer.h).T, strict=True):
        h = h[::-1]
        skew = scipy.linalg.toeplitz(h, np.concatenate([h[:1], -h[:0:-1]]))
        total = total + scipy.linalg.circulant(g) @ skew
    return (total / 2)[: layer.units, : layer.input_channels].T


@pytest.mark.parametrize("share_projection", [False, True])
def test_lu_with_full_rank_and_the_identity_as_projection_equals_lstm(share_projection):
    lstm = trained_lstm(6, 4, return_sequences=True)
    layer = CompactLSTM(6, rank=6, share_projection=share_projection, return_sequences=True)
    layer.build((None, None, 4))
    layer.projection.assign(np.eye(6))
    layer.cell.recurrent_gates.products[0].factors[1].assign(lstm.cell.recurrent_kernel)
    layer.cell.input_gates.products[0].kernel.assign(lstm.cell.kernel)
    layer.bias.assign(lstm.cell.bias)
    x = sequences(3, 7, 4)
    np.testing.assert_allclose(layer(x), lstm(x), atol=1e-5)


def test_lu_lowrank_gates_follow_the_definition():
    layer = CompactLSTM(8, rank=3, share_projection=True, return_sequences=True)
    layer.build((None, None, 5))
    randomize(layer)
    p, z = (ops.convert_to_numpy(f) for f in layer.cell.recurrent_gates.products[0].factors)
    kernel = ops.convert_to_numpy(layer.cell.input_gates.products[0].kernel)
    x, bias = sequences(2, 6, 5), ops.convert_to_numpy(layer.bias)
    projected = lstm_by_definition(x, kernel, z, bias, projection=p)
    np.testing.assert_allclose(layer(x), projected, atol=1e-5)
    # P h of the LSTM whose recurrent kernel is P Z: what the layer above reads of it.
    plain = lstm_by_definition(x, kernel, p @ z, bias) @ p
    np.testing.assert_allclose(layer(x), plain, atol=1e-5)


def test_lu_projection_is_one_weight_whose_gradient_is_the_sum_of_both_uses():
    below = CompactLSTM(6, rank=3, share_projection=True, return_sequences=True, unroll=True)
    above = CompactLSTM(5, rank=2, unroll=True)
    model = stacked([below, above], (4, 3))
    assert sum(w is below.projection for w in model.trainable_weights) == 1
    assert sum(tuple(w.shape) == (6, 3) for w in model.trainable_weights) == 1
    randomize(model)
    x = ops.convert_to_tensor(sequences(2, 4, 3))
    z = ops.convert_to_tensor(below.cell.recurrent_gates.products[0].factors[1])

    def loss(recurrent_use, above_use):
        """The two layers with one copy of P for each use."""
        h = carry = ops.zeros((2, 6))
        outputs = []
        for step in range(4):
            gates = below.cell.input_gates(x[:, step]) + below.bias
            gates = gates + ops.matmul(ops.matmul(h, recurrent_use), z)
            i, f, c, o = ops.split(gates, 4, axis=-1)
            carry = ops.sigmoid(f) * carry + ops.sigmoid(i) * ops.tanh(c)
            h = ops.sigmoid(o) * ops.tanh(carry)
            outputs.append(ops.matmul(h, above_use))
        return ops.sum(above(ops.stack(outputs, axis=1)) ** 2)

    p = ops.convert_to_numpy(below.projection)
    np.testing.assert_allclose(loss(p, p), ops.sum(model(x) ** 2), rtol=1e-5)
    of_recurrence = gradient(lambda value: loss(value, p), p)
    of_above = gradient(lambda value: loss(p, value), p)
    assert np.abs(of_recurrence).max() > 1e-3 and np.abs(of_above).max() > 1e-3
    # One step of plain gradient descent shows the gradient of the weight itself.
    model.compile(keras.optimizers.SGD(1.0), loss=lambda y, outputs: ops.sum(outputs**2, axis=-1))
    model.train_on_batch(x, np.zeros((2, 5)))
    moved = 2 * (p - ops.convert_to_numpy(below.projection))
    np.testing.assert_allclose(moved, of_recurrence + of_above, atol=1e-5)


@pytest.mark.parametrize("units, features", [(6, 9), (9, 5)])
def test_lu_toeplitz_like_gates_equal_lstm_of_their_matrices(units, features):
    layer = CompactLSTM(units, recurrent="toeplitz_like", kernel="toeplitz_like", rank=2)
    layer.build((None, None, features))
    randomize(layer)
    matrices = [
        np.concatenate([explicit_toeplitz_like(gate) for gate in gates.products], axis=1)
        for gates in (layer.cell.input_gates, layer.cell.recurrent_gates)
    ]
    lstm = trained_lstm(units, features)
    lstm.set_weights([*matrices, ops.convert_to_numpy(layer.bias)])
    x = sequences(3, 5, features)
    np.testing.assert_allclose(layer(x), lstm(x), atol=1e-5)
    np.testing.assert_allclose(layer(x), layer.expand()(x), atol=1e-5)


def test_params_and_macs_are_those_of_the_stored_forms():
    lowrank = CompactLSTM(20, rank=4, kernel="lowrank", kernel_rank=3, use_bias=False)
    lowrank.build((None, 7, 10))
    stored = 4 * (20 + 80) + 3 * (10 + 80)
    assert lowrank.count_params() == stored and lowrank.storage_bits() == 32 * stored
    assert lowrank.macs((None, 7, 10)) == 7 * stored
    toeplitz = CompactLSTM(20, recurrent="toeplitz_like", rank=2, use_bias=False)
    toeplitz.build((None, 7, 10))
    assert toeplitz.count_params() == 8 * 20 * 2 + 10 * 80
    stack = stacked([CompactLSTM(20, rank=4, share_projection=True)], (7, 10))
    assert profile.macs(stack) == 7 * (4 * (20 + 80) + 10 * 80)


def test_from_layer_is_the_best_recurrent_kernel_of_its_rank():
    lstm = trained_lstm(10, 6)
    kernel, recurrent, bias = (ops.convert_to_numpy(w) for w in lstm.weights)
    values = np.linalg.svd(recurrent, compute_uv=False)
    layer = CompactLSTM.from_layer(lstm, rank=4)
    found = layer.reconstruct_kernels()
    np.testing.assert_array_equal(found[0], kernel)
    np.testing.assert_array_equal(layer.bias, bias)
    squared = np.sum((found[1] - recurrent) ** 2)
    assert squared == pytest.approx(np.sum(values[4:] ** 2), rel=1e-4)


def test_lu_from_layers_gives_the_best_shared_projections():
    layers = trained_stack()
    small = CompactLSTM.from_layers(layers, rank=4)
    assert [layer.share_projection for layer in small] == [True, True, False]
    for below, above, found, over in zip(layers, layers[1:], small, small[1:], strict=False):
        side_by_side = np.concatenate([below.cell.recurrent_kernel, above.cell.kernel], axis=1)
        values = np.linalg.svd(side_by_side, compute_uv=False)
        p = ops.convert_to_numpy(found.projection)
        fitted = [found.reconstruct_kernels()[1], p @ over.reconstruct_kernels()[0]]
        error = np.sum((np.concatenate(fitted, axis=1) - side_by_side) ** 2)
        assert error == pytest.approx(np.sum(values[4:] ** 2), rel=1e-4)
        # The two-step recipe (projection of the recurrence alone, then least squares) is no better.
        alone = np.linalg.svd(below.cell.recurrent_kernel)[0][:, :4]
        assert error <= np.sum((side_by_side - alone @ alone.T @ side_by_side) ** 2)


@any_backend
def test_from_layers_and_expand_layers_keep_the_outputs_at_full_rank():
    layers = trained_stack()
    small = CompactLSTM.from_layers(layers, rank=[12, 9, 7])
    x = sequences(3, 6, 5)
    expected = stacked(layers, (6, 5))(x)
    np.testing.assert_allclose(stacked(small, (6, 5))(x), expected, atol=1e-5)
    low = CompactLSTM.from_layers(layers, rank=3, kernel="lowrank", kernel_rank=2)
    again = CompactLSTM.expand_layers(low)
    assert [type(layer) for layer in again] == [keras.layers.LSTM] * 3
    outputs = stacked(low, (6, 5))(x)
    np.testing.assert_allclose(stacked(again, (6, 5))(x), outputs, atol=1e-5)


@any_backend
def test_lu_shared_stack_survives_convert_and_both_kinds_of_keras_files(tmp_path):
    layers = trained_stack((8, 6))
    x = keras.Input((6, 5))
    outputs = keras.layers.Dropout(0.2)(layers[0](x))
    model = keras.Model(x, keras.layers.Dense(3)(layers[1](outputs)))
    small = CompactLSTM.from_layers(layers, rank=4)
    by_name = {layer.name: layer for layer in small}
    functional = convert(model, {"lstm_*": lambda layer: by_name[layer.name]})
    sequential = stacked(CompactLSTM.from_layers(layers, rank=4), (6, 5))
    values = sequences(3, 6, 5)
    for index, one in enumerate((functional, sequential)):
        one.save(tmp_path / f"{index}.keras")
        again = keras.saving.load_model(tmp_path / f"{index}.keras")
        np.testing.assert_array_equal(again(values), one(values))
        assert [w.shape for w in again.trainable_weights].count((8, 4)) == 1
        # A copy shares the projection as well: it is one weight of one layer.
        copy = keras.models.clone_model(one)
        assert copy.count_params() == one.count_params()
    np.testing.assert_allclose(
        ops.convert_to_numpy(functional.layers[-1](sequential(values))),
        functional(values),
        atol=1e-6,
    )


def test_cells_in_a_keras_rnn_equal_the_layers():
    cells = [CompactLSTMCell(8, rank=3, share_projection=True), CompactLSTMCell(6, rank=2)]
    rnn = keras.layers.RNN(cells)
    rnn.build((None, None, 5))
    randomize(rnn)
    layers = [
        CompactLSTM(8, rank=3, share_projection=True, return_sequences=True),
        CompactLSTM(6, rank=2),
    ]
    model = stacked(layers, (4, 5))
    model.set_weights(rnn.get_weights())
    x = sequences(3, 4, 5)
    np.testing.assert_allclose(rnn(x), model(x), atol=1e-6)
    again = keras.layers.RNN.from_config(rnn.get_config())
    assert again.get_config() == rnn.get_config()


@pytest.mark.parametrize("share_projection", [False, True])
def test_masks_states_and_directions_are_those_of_lstm(share_projection):
    options = {"return_sequences": True, "return_state": True, "go_backwards": True}
    layer = CompactLSTM(6, rank=3, share_projection=share_projection, **options)
    layer.build((None, None, 4))
    randomize(layer)
    plain = CompactLSTM(6, rank=3, **options)
    plain.build((None, None, 4))
    plain.set_weights(layer.get_weights())
    lstm = plain.expand()
    x, mask = sequences(3, 5, 4), np.arange(5) < np.array([[5], [2], [4]])
    h, carry = sequences(3, 6, seed=2), sequences(3, 6, seed=3)
    p = ops.convert_to_numpy(layer.projection) if share_projection else np.eye(6)
    found = layer(x, mask=mask, initial_state=[h @ p, carry])
    outputs, last, last_carry = lstm(x, mask=mask, initial_state=[h, carry])
    expected = (ops.matmul(outputs, p), ops.matmul(last, p), last_carry)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_stateful_layer_starts_from_a_stateful_lstm_and_goes_on_from_its_state():
    lstm = keras.layers.LSTM(5, stateful=True)
    lstm.build((2, 3, 4))
    randomize(lstm)
    layer = CompactLSTM.from_layer(lstm, rank=5)
    for seed in range(2):
        x = sequences(2, 3, 4, seed=seed)
        np.testing.assert_allclose(layer(x), lstm(x), atol=1e-5)


def test_dropout_of_inputs_and_state_acts_in_training_only():
    layer = CompactLSTM(6, rank=3, share_projection=True, dropout=0.5, recurrent_dropout=0.5)
    x = sequences(3, 5, 4)
    np.testing.assert_array_equal(layer(x), layer(x))
    assert np.abs(layer(x, training=True) - layer(x)).max() > 1e-4
    # Nothing is left of the inputs: the same outputs whatever they are.
    empty = CompactLSTM(6, rank=3, recurrent_dropout=0.999999, dropout=0.999999, seed=0)
    outputs = empty(x, training=True)
    np.testing.assert_allclose(outputs, empty(2 * x, training=True), atol=1e-6)


@any_backend
def test_initializers_are_the_spread_of_the_dense_kernels():
    keras.utils.set_random_seed(0)
    for form in ("lowrank", "toeplitz_like"):
        layer = CompactLSTM(64, recurrent=form, kernel=form, rank=16)
        layer.build((None, None, 48))
        stock = keras.layers.LSTM(64)
        stock.build((None, None, 48))
        kernels = (stock.cell.kernel, stock.cell.recurrent_kernel)
        for found, kernel in zip(layer.reconstruct_kernels(), kernels, strict=True):
            assert np.std(found) == pytest.approx(np.std(kernel), rel=0.2)
        np.testing.assert_array_equal(layer.bias, stock.cell.bias)


@any_backend
def test_bidirectional_wrapper_takes_the_layer():
    layer = keras.layers.Bidirectional(CompactLSTM(6, rank=3, share_projection=True))
    x = sequences(2, 5, 4)
    outputs = ops.convert_to_numpy(layer(x))
    forward, backward = layer.forward_layer(x), layer.backward_layer(x)
    np.testing.assert_allclose(outputs, np.concatenate([forward, backward], axis=1), atol=1e-6)


@on_tensorflow
def test_tflite_of_a_shared_stack_is_builtin_and_stores_the_factors_alone():
    from keras_compress.export import to_tflite

    layers = [
        CompactLSTM(64, rank=8, share_projection=True, return_sequences=True),
        CompactLSTM(64, rank=8),
    ]
    # A fixed batch: a loop. One copy of the weights serves all steps.
    model = keras.Sequential([keras.Input((12, 16), batch_size=1), *layers])
    x = sequences(1, 12, 16)
    lite = to_tflite(model, calibration=x)
    assert lite.max_error < 1e-5
    assert "WHILE" in lite.ops
    stored = sum(layer.storage_bits() for layer in layers) / 8
    # The rest is the description of two loops, whatever the size of the layers.
    assert lite.nbytes < stored + 20_000


@on_tensorflow
def test_tflite_of_toeplitz_like_gates_stores_the_generators_alone():
    from keras_compress.export import to_tflite

    layer = CompactLSTM(96, recurrent="toeplitz_like", rank=1)
    model = keras.Sequential([keras.Input((2, 8), batch_size=1), layer])
    x = sequences(1, 2, 8)
    lite = to_tflite(model, calibration=x)
    assert lite.max_error < 1e-4
    assert lite.nbytes < 4 * layer.expand().count_params() / 3


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"rank": 0}, "`rank` must be a positive integer"),
        ({"rank": 7}, "got rank=7, the largest useful rank is 6"),
        ({"rank": "evbmf"}, "chosen by the singular values"),
        (
            {"rank": 2, "recurrent": "dense"},
            "`recurrent` must be one of 'lowrank', 'toeplitz_like'",
        ),
        ({"rank": 2, "kernel": "low_rank"}, "Did you mean 'lowrank'"),
        ({"rank": 2, "kernel_rank": 2}, "`kernel_rank` goes with"),
        ({"rank": 2, "kernel": "lowrank", "kernel_rank": 0.5}, "`kernel_rank` must be a positive"),
        (
            {"rank": 2, "recurrent": "toeplitz_like", "share_projection": True},
            "goes with recurrent='lowrank'",
        ),
    ],
)
def test_bad_arguments_are_refused_at_construction(arguments, message):
    with pytest.raises(ValueError, match=f"CompactLSTMCell: .*{message}"):
        CompactLSTM(6, **arguments)


def test_a_kernel_rank_above_the_features_is_refused_at_build():
    with pytest.raises(ValueError, match="`kernel_rank` .* at most 4 .* got 5"):
        CompactLSTM(6, rank=5, kernel="lowrank")(sequences(2, 3, 4))


def test_stacks_that_are_none_are_refused():
    below, above = trained_stack((6, 5))
    with pytest.raises(ValueError, match="Use from_layers"):
        CompactLSTM.from_layer(below, rank=2, share_projection=True)
    with pytest.raises(ValueError, match="two layers or more"):
        CompactLSTM.from_layers([below], rank=2)
    with pytest.raises(ValueError, match="'lstm_0' must read the sequence of 'lstm_1'"):
        CompactLSTM.from_layers([above, below], rank=2)
    with pytest.raises(ValueError, match="a list of 2; got"):
        CompactLSTM.from_layers([below, above], rank=[2])
    small = CompactLSTM.from_layers([below, above], rank=2)
    with pytest.raises(ValueError, match="expand_layers"):
        small[0].expand()
    with pytest.raises(ValueError, match=r"share_projection=\[True, True\]"):
        wide = CompactLSTM.from_layers([trained_lstm(6, 2, return_sequences=True), above], rank=2)
        CompactLSTM.expand_layers([small[0], wide[0]])
