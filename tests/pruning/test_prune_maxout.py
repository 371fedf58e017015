"""`prune_maxout`: the pieces that win stay."""

import keras
import numpy as np
import pytest

import keras_compress as kc
from tests.pruning.surgery.common import outputs

RNG = np.random.default_rng(0)


def net(pieces=4):
    model = keras.Sequential(
        [
            keras.Input((6, 6, 2)),
            kc.layers.MaxoutConv2D(3, 3, pieces, name="conv"),
            keras.layers.Flatten(),
            kc.layers.MaxoutDense(5, pieces, name="dense"),
            keras.layers.Dense(2),
        ]
    )
    for name in ("conv", "dense"):
        bias = model.get_layer(name).bias
        bias.assign(RNG.normal(size=bias.shape))
    return model


X = RNG.normal(size=(50, 6, 6, 2)).astype("float32")


def test_rueda_pieces_that_never_win_go_and_nothing_changes_on_that_data():
    model = net()
    for name in ("conv", "dense"):
        layer = model.get_layer(name)
        bias = keras.ops.convert_to_numpy(layer.bias).copy()
        # Another piece for each unit.
        for unit in range(len(bias)):
            bias[unit, [unit % 4, (unit + 2) % 4]] = -100.0
        layer.bias.assign(bias)
    before = model.get_weights()
    small = kc.pruning.prune_maxout(model, X, 2, batch_size=16)
    assert [small.get_layer(name).pieces for name in ("conv", "dense")] == [2, 2]
    assert small.count_params() - 12 == (model.count_params() - 12) / 2
    np.testing.assert_allclose(outputs(small, X)[0], outputs(model, X)[0], atol=1e-5)
    for a, b in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_rueda_the_most_active_pieces_stay():
    model = net()
    small = kc.pruning.prune_maxout(model, X, 1, layers="dense")
    assert small.get_layer("conv").pieces == 4
    features = keras.Model(model.inputs, model.layers[1].output).predict(X, verbose=0)
    kernel, bias = model.get_layer("dense").get_weights()
    values = np.einsum("ni,iup->nup", features, kernel) + bias
    best = [np.bincount(values[:, unit].argmax(-1), minlength=4).argmax() for unit in range(5)]
    expected = np.stack([kernel[:, unit, piece] for unit, piece in enumerate(best)], -1)
    np.testing.assert_array_equal(small.get_layer("dense").get_weights()[0][..., 0], expected)


def test_a_shared_layer_counts_all_its_calls():
    layer = kc.layers.MaxoutDense(1, 2, use_bias=False)
    first, second = keras.Input((1,)), keras.Input((1,))
    model = keras.Model([first, second], keras.layers.Add()([layer(first), layer(second)]))
    layer.kernel.assign([[[1.0, -1.0]]])
    # The first piece wins for positive inputs: once in the first one, three times in the second.
    data = [np.array([[1.0], [-1.0], [-1.0]]), np.array([[1.0], [1.0], [1.0]])]
    model.compile("sgd", "mse")
    small = kc.pruning.prune_maxout(model, data, 1)
    assert small.get_weights()[0].item() == 1.0 and small.compiled


def test_bad_input_is_refused():
    model = net(2)
    with pytest.raises(ValueError, match=r"more than 2 pieces \(has: 'conv': 2, 'dense': 2\)"):
        kc.pruning.prune_maxout(model, X, 2)
    with pytest.raises(ValueError, match="prune_maxout: `pieces` must be a positive integer"):
        kc.pruning.prune_maxout(model, X, 0)
    with pytest.raises(ValueError, match="prune_maxout: samples for input"):
        kc.pruning.prune_maxout(model, X[..., :1], 1)
    with pytest.raises(ValueError, match="No layer matches 'dens'. Did you mean 'dense'"):
        kc.pruning.prune_maxout(model, X, 1, layers="dens")
