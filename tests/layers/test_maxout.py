"""Maxout layers: the largest of some linear maps."""

import keras
import numpy as np
import pytest

import keras_compress as kc
from tests.pruning.surgery.common import outputs

RNG = np.random.default_rng(0)


def randomized(layer, shape):
    layer.build((None, *shape))
    for weight in layer.weights:
        weight.assign(RNG.normal(size=weight.shape))
    return layer


DENSE = (lambda **kw: kc.layers.MaxoutDense(5, 3, **kw), (7,))
SEQUENCE = (lambda **kw: kc.layers.MaxoutDense(5, 3, **kw), (4, 7))
CONV = (lambda **kw: kc.layers.MaxoutConv2D(5, 3, 3, strides=2, padding="same", **kw), (7, 6, 2))
CASES = {"dense": DENSE, "sequence": SEQUENCE, "conv": CONV}


def stock(layer, piece):
    """The stock layer of one piece of all units."""
    if isinstance(layer, kc.layers.MaxoutDense):
        new = keras.layers.Dense(layer.units, use_bias=layer.use_bias)
    else:
        new = keras.layers.Conv2D(
            layer.filters,
            layer.kernel_size,
            layer.strides,
            layer.padding,
            use_bias=layer.use_bias,
        )
    weights = [keras.ops.convert_to_numpy(w)[..., piece] for w in layer.weights]
    return new, weights


def pieces_of(layer, x):
    parts = []
    for piece in range(layer.pieces):
        new, weights = stock(layer, piece)
        new.build(x.shape)
        new.set_weights(weights)
        parts.append(keras.ops.convert_to_numpy(new(x)))
    return np.stack(parts, -1)


@pytest.mark.parametrize("use_bias", [True, False])
@pytest.mark.parametrize("name", CASES)
def test_maxout_is_the_max_over_stock_layers(name, use_bias):
    make, shape = CASES[name]
    layer = randomized(make(use_bias=use_bias), shape)
    x = RNG.normal(size=(6, *shape)).astype("float32")
    expected = pieces_of(layer, x)
    np.testing.assert_allclose(layer(x), expected.max(-1), rtol=1e-5, atol=1e-5)
    assert layer.compute_output_shape(x.shape) == expected.shape[:-1]
    wins = layer.count_wins(x)
    counts = [
        [np.count_nonzero(expected[..., unit, :].argmax(-1) == piece) for piece in range(3)]
        for unit in range(5)
    ]
    np.testing.assert_array_equal(wins, counts)
    # Win counts sum to the samples, and positions.
    assert (wins.sum(1) == np.prod(expected.shape[:-2])).all()


@pytest.mark.parametrize("activation", ["linear", "relu", "leaky_relu"])
def test_rueda_one_piece_is_dense_and_two_are_a_relu(activation):
    dense = keras.layers.Dense(5, activation=activation, name="fc", kernel_regularizer="l2")
    conv = keras.layers.Conv2D(4, (3, 2), padding="same", activation=activation, use_bias=False)
    for layer, cls, shape in (
        (dense, kc.layers.MaxoutDense, (7,)),
        (conv, kc.layers.MaxoutConv2D, (5, 6, 3)),
    ):
        new = cls.from_layer(randomized(layer, shape))
        x = RNG.normal(size=(8, *shape)).astype("float32")
        np.testing.assert_allclose(new(x), layer(x), rtol=1e-5, atol=1e-5)
        assert new.pieces == (1 if activation == "linear" else 2)
        assert (new.name, new.use_bias) == (layer.name, layer.use_bias)
        assert type(new.kernel_regularizer) is type(layer.kernel_regularizer)


@pytest.mark.parametrize("name", CASES)
def test_file_gradients_macs_and_tflite(name, tmp_path):
    make, shape = CASES[name]
    layer = randomized(make(), shape)
    model = keras.Sequential([keras.Input(shape), layer, keras.layers.Flatten()])
    x = RNG.normal(size=(16, *shape)).astype("float32")
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(outputs(model, x)[0], outputs(loaded, x)[0])
    assert loaded.layers[0].get_config() == layer.get_config()
    single = kc.profile.macs(
        keras.Sequential([keras.Input(shape), stock(layer, 0)[0], keras.layers.Flatten()])
    )
    assert kc.profile.macs(model) == 3 * single
    if keras.backend.backend() == "tensorflow":
        lite = kc.export.to_tflite(model, tmp_path / "model.tflite")
        np.testing.assert_allclose(lite.predict(x), outputs(model, x)[0], rtol=1e-4, atol=1e-5)
    model.compile("sgd", "mse")
    before = layer.get_weights()
    model.fit(x, np.ones(model.output_shape[1:]) + 0 * outputs(model, x)[0], verbose=0)
    for old, new in zip(before, layer.get_weights(), strict=True):
        # Every piece wins somewhere.
        assert (old != new).any(tuple(range(old.ndim - 2))).all()


def test_half_precision():
    layer = randomized(kc.layers.MaxoutDense(5, 3, dtype="mixed_float16"), (7,))
    x = RNG.normal(size=(4, 7))
    assert "float16" in str(layer(x).dtype)
    np.testing.assert_allclose(layer(x), pieces_of(layer, x).max(-1), atol=0.05)


def test_channel_surgery():
    conv = kc.layers.MaxoutConv2D(6, 3, 2, name="conv")
    dense = kc.layers.MaxoutDense(5, 3, name="dense")
    model = keras.Sequential(
        [keras.Input((6, 6, 2)), conv, keras.layers.Flatten(), dense, keras.layers.Dense(2)]
    )
    for layer in (conv, dense):
        layer.bias.assign(RNG.normal(size=layer.bias.shape))
    small = kc.pruning.remove_channels(model, {"conv": [0, 2, 5], "dense": [1, 4]})
    assert (small.get_layer("conv").filters, small.get_layer("dense").units) == (3, 2)
    kernel = keras.ops.convert_to_numpy(dense.kernel).reshape(4, 4, 6, 5, 3)
    expected = kernel[:, :, [0, 2, 5]][:, :, :, [1, 4]].reshape(48, 2, 3)
    np.testing.assert_array_equal(small.get_layer("dense").get_weights()[0], expected)
    np.testing.assert_array_equal(
        small.get_layer("conv").get_weights()[1], conv.get_weights()[1][[0, 2, 5]]
    )


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="MaxoutDense: `pieces` must be a positive integer; got"):
        kc.layers.MaxoutDense(3, 0)
    with pytest.raises(ValueError, match="MaxoutConv2D: `filters` must be"):
        kc.layers.MaxoutConv2D(2.5, 3)
    with pytest.raises(ValueError, match="`padding` must be one of 'valid', 'same'"):
        kc.layers.MaxoutConv2D(2, 3, padding="causal")
    dense = keras.layers.Dense(3, activation="tanh")
    with pytest.raises(ValueError, match="takes a built keras.layers.Dense; got Dense .not built"):
        kc.layers.MaxoutDense.from_layer(dense)
    dense.build((None, 2))
    with pytest.raises(ValueError, match="maxima of linear pieces; got 'tanh'"):
        kc.layers.MaxoutDense.from_layer(dense)
    conv = keras.layers.Conv2D(4, 3, groups=2)
    conv.build((None, 5, 5, 2))
    with pytest.raises(ValueError, match="without groups and dilation"):
        kc.layers.MaxoutConv2D.from_layer(conv)
