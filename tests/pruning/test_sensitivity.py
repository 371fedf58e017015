"""`sensitivity`: the curves are those of models that are really cut."""

import keras
import numpy as np
import pytest
from keras import layers

import keras_compress as kc


def _compiled(seed=0):
    keras.utils.set_random_seed(seed)
    x = inputs = keras.Input((8, 8, 1))
    x = layers.Conv2D(8, 3, padding="same", activation="relu", name="first")(x)
    x = layers.BatchNormalization()(x)
    y = layers.Conv2D(8, 3, padding="same", name="second")(x)
    x = layers.Add()([x, y])
    x = layers.Conv2D(6, 3, activation="relu", name="third")(x)
    model = keras.Model(inputs, layers.Dense(4, name="logits")(layers.Flatten()(x)))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("adam", loss, metrics=["accuracy"])
    return model


X = np.random.default_rng(0).normal(size=(64, 8, 8, 1)).astype("float32")
Y = np.arange(64) % 4


def test_curves_are_those_of_cut_models():
    model = _compiled()
    found = kc.pruning.sensitivity(model, (X, Y), shares=[0.25, 0.5], monitor="loss", verbose=0)
    assert list(found.curves) == ["first + second", "third"]
    for row in found.rows:
        name = row.name.split(" + ")
        small = kc.pruning.prune_channels(model, "l1", row.share, layers=name)
        expected = small.evaluate(X, Y, verbose=0, return_dict=True)["loss"]
        assert row.metric == pytest.approx(expected, rel=1e-4)
    whole = model.evaluate(X, Y, verbose=0, return_dict=True)["loss"]
    assert found.whole == pytest.approx(whole, rel=1e-5)


def test_table_frame_and_plot(tmp_path):
    found = kc.pruning.sensitivity(_compiled(), (X, Y), shares=[0.5], layers="third", verbose=0)
    assert found.monitor == "accuracy"
    assert "50% gone" in repr(found) and "third" in repr(found)
    assert len(found.to_pandas()) == 1
    found.plot(tmp_path / "sensitivity.png")
    assert (tmp_path / "sensitivity.png").stat().st_size > 1000


def test_bad_arguments():
    model = _compiled()
    with pytest.raises(ValueError, match=r"`shares\[1\]` must be a number in \(0.*, 1.*\)"):
        kc.pruning.sensitivity(model, (X, Y), shares=[0.5, 1.0])
    with pytest.raises(ValueError, match="No layer matches 'fourth'"):
        kc.pruning.sensitivity(model, (X, Y), layers="fourth", verbose=0)
    with pytest.raises(ValueError, match="sensitivity: .*not compiled"):
        kc.pruning.sensitivity(keras.Sequential([keras.Input((4,)), layers.Dense(2)]), (X, Y))
