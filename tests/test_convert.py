"""kc.convert over every kind of graph."""

import keras
import numpy as np
import pytest
from keras import ops

import keras_compress as kc


def to_tt(layer):
    return kc.layers.TTDense.from_layer(layer, rank=4)


def run(model, x):
    return ops.convert_to_numpy(model(x))


def sequential():
    return keras.Sequential(
        [
            keras.Input((16,)),
            keras.layers.Dense(16, activation="relu", name="fc1"),
            keras.layers.BatchNormalization(name="norm"),
            keras.layers.Dense(16, name="fc2"),
            keras.layers.Dense(4, name="logits"),
        ],
        name="seq",
    )


def residual_with_shared_layer():
    x = keras.Input((16,))
    shared = keras.layers.Dense(16, name="shared")
    y = shared(x) + ops.tanh(shared(ops.multiply(x, 2.0)))
    return keras.Model(x, keras.layers.Dense(4, name="logits")(y))


def nested():
    x = keras.Input((16,))
    y = sequential()(x)
    z = residual_with_shared_layer()(x)
    return keras.Model(x, {"sum": y + z, "y": y})


def exact(layer):
    return kc.layers.TTDense.from_layer(layer, rank=1e-6)


X = np.random.default_rng(0).normal(size=(5, 16)).astype("float32")


@pytest.mark.parametrize("build", [sequential, residual_with_shared_layer, nested])
def test_an_exact_replacement_leaves_the_outputs_and_the_model_as_they_were(build):
    model = build()
    before = [w.copy() for w in model.get_weights()]
    expected = keras.tree.map_structure(ops.convert_to_numpy, model(X))
    new = kc.convert(model, {keras.layers.Dense: exact})
    got = keras.tree.map_structure(ops.convert_to_numpy, new(X))
    keras.tree.map_structure(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), got, expected
    )
    for old, now in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, now)
    kinds = {type(layer) for layer in kc.matching.leaf_layers(new)}
    assert kc.layers.TTDense in kinds and keras.layers.Dense not in kinds


def test_other_weights_carry_over_and_are_not_shared():
    model = sequential()
    model.get_layer("norm").gamma.assign(np.arange(16.0))
    new = kc.convert(model, {"fc1": to_tt})
    np.testing.assert_array_equal(new.get_layer("norm").gamma, np.arange(16.0))
    new.get_layer("logits").kernel.assign(np.zeros((16, 4)))
    assert np.abs(run(model, X)).max() > 0


def test_a_shared_layer_stays_shared():
    new = kc.convert(residual_with_shared_layer(), {"shared": to_tt})
    layer = new.get_layer("shared")
    assert isinstance(layer, kc.layers.TTDense)
    assert len(new.trainable_weights) == len(layer.trainable_weights) + 2


@pytest.mark.parametrize(
    "key,changed",
    [
        ("fc1", {"fc1"}),
        ("fc*", {"fc1", "fc2"}),
        (keras.layers.Dense, {"fc1", "fc2", "logits"}),
        (lambda layer: getattr(layer, "units", 0) == 4, {"logits"}),
    ],
)
def test_keys_are_names_globs_classes_and_predicates(key, changed):
    new = kc.convert(sequential(), {key: to_tt_any})
    assert {x.name for x in new.layers if isinstance(x, kc.layers.TTDense)} == changed


def to_tt_any(layer):
    return kc.layers.TTDense.from_layer(layer, rank=2)


def test_the_first_key_that_matches_counts():
    calls = []

    def note(name):
        return lambda layer: (calls.append((name, layer.name)), to_tt_any(layer))[1]

    kc.convert(sequential(), {"fc1": note("name"), keras.layers.Dense: note("class")})
    assert calls == [("name", "fc1"), ("class", "fc2"), ("class", "logits")]


def test_the_new_model_is_compiled_like_the_old_and_saves(tmp_path):
    model = sequential()
    model.compile("sgd", "mse", metrics=["mae"])
    new = kc.convert(model, {"fc*": to_tt_any})
    assert new.compiled
    new.fit(X, np.zeros((5, 4)), verbose=0)
    new.save(tmp_path / "m.keras")
    again = keras.saving.load_model(tmp_path / "m.keras")
    np.testing.assert_allclose(run(again, X), run(new, X), atol=1e-6)


@pytest.mark.parametrize(
    "model,rules,message",
    [
        (sequential, {"fc9": to_tt}, r"No layer matches 'fc9'.*Did you mean.*fc"),
        (sequential, {}, "empty"),
        (sequential, {"fc1": lambda layer: 3}, "must give a Keras layer"),
        (sequential, {3: to_tt}, "name, glob, layer class"),
        (lambda: keras.Sequential([keras.layers.Dense(3)]), {"*": to_tt}, "not built"),
        (lambda: "model", {"*": to_tt}, "keras.Model"),
    ],
)
def test_what_cannot_be_converted_is_refused(model, rules, message):
    with pytest.raises(ValueError, match=message):
        kc.convert(model(), rules)


def test_subclassed_models_are_refused_with_the_remedy():
    class Own(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = keras.layers.Dense(3)

        def call(self, x):
            return self.dense(x)

    model = Own()
    model(X)
    with pytest.raises(ValueError, match="functional API"):
        kc.convert(model, {"dense*": to_tt})


def test_a_python_lambda_beside_a_replaced_layer_is_kept():
    model = keras.Sequential(
        [
            keras.Input((8,)),
            keras.layers.Dense(8, name="fc"),
            keras.layers.Lambda(lambda x, factor: factor * x, arguments={"factor": 3.0}),
        ]
    )
    new = kc.convert(model, {"fc": lambda fc: kc.layers.FactorizedDense.from_layer(fc, rank=8)})
    x = np.random.default_rng(0).normal(size=(4, 8)).astype("float32")
    np.testing.assert_allclose(
        keras.ops.convert_to_numpy(new(x)), keras.ops.convert_to_numpy(model(x)), atol=1e-4
    )
