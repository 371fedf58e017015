"""`Oracle`: the loss's change by ablation."""

import keras
import numpy as np

import keras_compress as kc

RNG = np.random.default_rng(0)
Oracle = kc.pruning.criteria.Oracle


def branched_model():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((5, 5, 2))
    x = keras.layers.Conv2D(3, 3, padding="same", name="stem")(inputs)
    x = keras.layers.BatchNormalization(beta_initializer="ones", name="bn")(x)
    x = keras.layers.Activation("sigmoid", name="act")(x)
    y = keras.layers.Conv2D(3, 1, name="branch")(x)
    x = keras.layers.Flatten()(keras.layers.Add()([x, y]))
    return keras.Model(inputs, keras.layers.Dense(4, name="logits")(x))


def test_equals_a_model_whose_map_is_set_to_zero():
    model = branched_model()
    x = RNG.normal(size=(10, 5, 5, 2)).astype("float32")
    y = RNG.integers(0, 4, 10)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(loss=loss)
    signed = Oracle(signed=True)(model, data=(x, y), batch_size=4)

    def without(name, channel):
        """The loss of the same layers, called by hand."""

        def cut(tensor, owner):
            array = keras.ops.convert_to_numpy(tensor).copy()
            if owner == name and channel is not None:
                array[..., channel] = 0
            return array

        layer = model.get_layer
        h = cut(layer("act")(layer("bn")(layer("stem")(x))), "stem")
        h = h + cut(layer("branch")(h), "branch")
        return float(loss(y, cut(layer("logits")(h.reshape(10, -1)), "logits")))

    for name, number in {"stem": 3, "branch": 3, "logits": 4}.items():
        expected = [without(name, c) - without(None, None) for c in range(number)]
        np.testing.assert_allclose(signed[name], expected, atol=1e-5)
    absolute = Oracle()(model, data=(x, y))
    np.testing.assert_allclose(absolute["stem"], np.abs(signed["stem"]), atol=1e-6)


def test_a_map_that_nothing_reads_scores_0_and_the_model_is_not_changed():
    model = branched_model()
    layer = model.get_layer("branch")
    kernel = np.zeros(layer.kernel.shape)
    kernel[..., 0] = 1
    layer.set_weights([kernel, np.zeros(3)])
    before = model.get_weights()
    x, y = RNG.normal(size=(6, 5, 5, 2)), RNG.normal(size=(6, 4))
    scores = Oracle()(model, "branch", (x, y), loss="mse")["branch"]
    assert scores[0] > 0 and (scores[1:] == 0).all()
    for a, b in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
