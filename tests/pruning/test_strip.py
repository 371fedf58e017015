"""`strip` leaves a plain model."""

import json

import keras
import numpy as np
import pytest

import keras_compress as kc

RNG = np.random.default_rng(0)


def pruned(model, shape, schedule=None, **options):
    model.compile(keras.optimizers.SGD(0.05, momentum=0.9), "mse")
    x = RNG.normal(size=(16, *shape)).astype("float32")
    y = np.zeros((16, *model.output_shape[1:]), "float32") if hasattr(model, "outputs") else x
    pruning = kc.callbacks.MagnitudePruning(schedule or kc.pruning.OneShot(0.75), **options)
    model.fit(x, y, batch_size=8, epochs=1, verbose=0, callbacks=[pruning])
    return model, x


def mixed_model():
    inner = keras.Sequential(
        [keras.Input((6, 6, 4)), keras.layers.Conv2D(4, 3, padding="same")], name="inner"
    )
    shared = keras.layers.DepthwiseConv2D(3, padding="same")
    inputs = keras.Input((6, 6, 4))
    x = keras.layers.BatchNormalization()(inner(inputs))
    x = keras.layers.Add()([shared(x), shared(x)]) + x
    x = keras.layers.SeparableConv2D(6, 3)(x)
    x = keras.layers.Dropout(0.1)(keras.layers.Reshape((4, 24))(x))
    x = keras.layers.TimeDistributed(keras.layers.Dense(5))(x)
    x = keras.layers.Bidirectional(keras.layers.LSTM(3, return_sequences=True))(x)
    x = keras.layers.MultiHeadAttention(2, 3)(x, x)
    x = keras.layers.Flatten()(x)
    return keras.Model(inputs, keras.layers.Dense(2, kernel_constraint="max_norm")(x))


def weights_of(model):
    return [keras.ops.convert_to_numpy(v) for v in model.weights]


def test_strip_leaves_no_trace():
    plain_before = mixed_model()
    model, x = pruned(keras.models.clone_model(plain_before), (6, 6, 4))
    assert len(model.weights) > len(plain_before.weights)
    plain = kc.pruning.strip(model)
    assert len(plain.weights) == len(plain_before.weights)
    text = json.dumps(plain.get_config(), default=str)
    assert "keras_compress" not in text and "PruningMask" not in text
    assert isinstance(plain.layers[-1].kernel_constraint, keras.constraints.MaxNorm)
    np.testing.assert_array_equal(plain.predict(x, verbose=0), model.predict(x, verbose=0))
    kernels = [w for w in weights_of(plain) if w.ndim > 1 and w.size >= 24]
    assert len(kernels) == 14
    assert all(np.mean(w == 0) > 0.7 for w in kernels)
    # The pruned model is as it was, and shares nothing with the copy.
    before = weights_of(model)
    plain.set_weights([w + 1 for w in weights_of(plain)])
    for a, b in zip(before, weights_of(model), strict=True):
        np.testing.assert_array_equal(a, b)


def test_stripped_model_is_compiled_and_trains_freely():
    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4)])
    model, x = pruned(model, (8,))
    plain = kc.pruning.strip(model)
    plain.fit(x, np.ones((16, 4)), verbose=0)
    assert (weights_of(plain)[0] != 0).all()


def test_strip_of_a_model_without_masks_is_a_copy():
    model = mixed_model()
    plain = kc.pruning.strip(model)
    for a, b in zip(weights_of(model), weights_of(plain), strict=True):
        np.testing.assert_array_equal(a, b)


@keras.saving.register_keras_serializable(package="test_strip")
class Subclassed(keras.Model):
    def __init__(self, units, **kwargs):
        super().__init__(**kwargs)
        self.units = units
        self.first = keras.layers.Dense(units, activation="relu")
        self.last = keras.layers.Dense(8)

    def call(self, inputs):
        return self.last(self.first(inputs))

    def get_config(self):
        return {**super().get_config(), "units": self.units}


class WithoutConfig(keras.Model):
    def __init__(self, units):
        super().__init__()
        self.dense = keras.layers.Dense(units)

    def call(self, inputs):
        return self.dense(inputs)


def test_strip_of_a_subclassed_model():
    model = Subclassed(5)
    model(np.zeros((1, 8)))
    model, x = pruned(model, (8,))
    plain = kc.pruning.strip(model)
    assert len(plain.weights) == 4
    np.testing.assert_array_equal(plain.predict(x, verbose=0), model.predict(x, verbose=0))
    assert np.mean(weights_of(plain)[0] == 0) == 0.75


def test_strip_says_what_it_cannot_do(tmp_path):
    with pytest.raises(ValueError, match="not built"):
        kc.pruning.strip(keras.Sequential([keras.layers.Dense(3)]))
    with pytest.raises(ValueError, match="keras.Model"):
        kc.pruning.strip(keras.layers.Dense(3))
    model = WithoutConfig(8)
    model(np.zeros((1, 8)))
    model, x = pruned(model, (8,))
    with pytest.raises(ValueError, match="get_config"):
        kc.pruning.strip(model)
    # The remedy that the message names.
    model.save_weights(tmp_path / "pruned.weights.h5")
    fresh = WithoutConfig(8)
    fresh(np.zeros((1, 8)))
    fresh.load_weights(tmp_path / "pruned.weights.h5")
    np.testing.assert_array_equal(fresh.predict(x, verbose=0), model.predict(x, verbose=0))
