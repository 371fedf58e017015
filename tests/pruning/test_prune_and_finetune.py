"""prune_and_finetune: steps of pruning and training."""

import re

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_compress as kc

RNG = np.random.default_rng(0)
X = RNG.normal(size=(64, 12)).astype("float32")
Y = X[:, :4].argmax(axis=1)


def values(variable):
    return keras.ops.convert_to_numpy(variable)


def model_of(optimizer=None, metrics=()):
    keras.utils.set_random_seed(5)
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input((12,)),
            layers.Dense(16, activation="relu", name="first"),
            layers.BatchNormalization(name="norm"),
            layers.Dense(8, activation="relu", name="second"),
            layers.Dense(4, name="logits"),
        ]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer or keras.optimizers.Adam(0.01), loss, metrics=list(metrics))
    return model


def dataset():
    return tf.data.Dataset.from_tensor_slices((X, Y)).batch(16)


def prune(model, data=None, **options):
    options = {"steps": 3, "epochs": 2, "verbose": 0, **options}
    return kc.pruning.prune_and_finetune(model, dataset() if data is None else data, **options)


def units(model):
    return model.get_layer("first").units, model.get_layer("second").units


@pytest.mark.parametrize("distill", [True, False])
def test_share_is_met_in_equal_steps_and_history_has_all_epochs(distill):
    model = model_of(metrics=["accuracy"])
    before = [values(weight) for weight in model.weights]
    small = prune(model, (X, Y), target=0.5, distill=distill, validation_data=(X, Y))
    assert sum(units(small)) == 12
    history = small.history.history
    assert history["channels_removed"] == [4, 4, 8, 8, 12, 12]
    assert history["step"] == [1, 1, 2, 2, 3, 3]
    assert {"loss", "accuracy", "val_accuracy"} <= set(history)
    assert ("distillation_loss" in history) == distill
    # The caller's model is as it was, though it has been a teacher.
    assert all(layer.trainable for layer in model.layers) and model.optimizer.iterations == 0
    for a, b in zip(before, model.weights, strict=True):
        np.testing.assert_array_equal(a, values(b))
    assert small.compiled and np.isfinite(small.evaluate(X, Y, verbose=0, return_dict=True)["loss"])


def test_without_training_the_steps_are_those_of_prune_channels():
    model = model_of(keras.optimizers.SGD(0.0))
    model.get_layer("norm").trainable = False
    small = prune(model, target=0.5, distill=False)
    want = kc.pruning.prune_channels(model, "l1", 4 / 24)
    want = kc.pruning.prune_channels(want, "l1", 4 / 20)
    want = kc.pruning.prune_channels(want, "l1", 4 / 16)
    for a, b in zip(want.trainable_weights, small.trainable_weights, strict=True):
        np.testing.assert_array_equal(values(a), values(b))


def test_budget_is_met_step_by_step():
    model = model_of()
    macs = []

    class Count(keras.callbacks.Callback):
        def on_train_begin(self, logs=None):
            macs.append(kc.profile.macs(self.model.student))

    small = prune(model, target=kc.pruning.Budget(macs=0.4), callbacks=[Count()], epochs=1)
    shares = np.array(macs) / kc.profile.macs(model)
    for share, allowed in zip(shares, (0.8, 0.6, 0.4), strict=True):
        assert allowed - 0.1 < share <= allowed
    assert kc.profile.macs(small) <= 0.4 * kc.profile.macs(model)


def test_distillation_draws_the_student_to_the_unpruned_model():
    model = model_of()
    model.fit(X, Y, epochs=30, verbose=0)
    want = model.predict(X, verbose=0)

    def distance(**options):
        small = prune(model, (X, Y), target=0.4, epochs=15, **options)
        return np.square(small.predict(X, verbose=0) - want).mean()

    assert distance(alpha=1.0, temperature=2.0) < 0.5 * distance(distill=False)


class Interrupt(keras.callbacks.Callback):
    """Stops the run when the given epoch, counted over all steps, begins."""

    def __init__(self, at):
        super().__init__()
        self.left = at

    def on_epoch_begin(self, epoch, logs=None):
        if self.left == 0:
            raise KeyboardInterrupt
        self.left -= 1


@pytest.mark.parametrize("at", [1, 2, 3])
def test_a_run_that_was_interrupted_goes_on_to_the_same_end(tmp_path, at):
    def run(folder, *callbacks):
        return prune(model_of(), steps=2, checkpoint=tmp_path / folder, callbacks=callbacks)

    with pytest.raises(KeyboardInterrupt):
        run("a", Interrupt(at))
    resumed, whole = run("a"), run("b")
    for a, b in zip(resumed.weights, whole.weights, strict=True):
        np.testing.assert_allclose(values(a), values(b), atol=1e-5)
    assert resumed.history.history.keys() == whole.history.history.keys()
    for name, entries in whole.history.history.items():
        np.testing.assert_allclose(resumed.history.history[name], entries, atol=1e-4, err_msg=name)
    # Finished: nothing is trained again.
    again = run("a", Interrupt(0))
    np.testing.assert_allclose(
        again.predict(X, verbose=0), resumed.predict(X, verbose=0), atol=1e-6
    )
    with pytest.raises(ValueError, match="holds another run"):
        prune(model_of(), steps=3, checkpoint=tmp_path / "a")


def test_one_progress_bar_over_all_epochs(capsys):
    prune(model_of(), verbose=1)
    output = capsys.readouterr().out
    assert re.search(r"6/6\b", output) and "channels_removed" in output


def test_bad_arguments_are_refused():
    model = model_of()
    plain = keras.Sequential([keras.Input((12,)), keras.layers.Dense(4)])
    with pytest.raises(ValueError, match="is not compiled"):
        prune(plain)
    with pytest.raises(ValueError, match="`steps` must be a positive integer"):
        prune(model, steps=0)
    with pytest.raises(ValueError, match="goes with distill=True"):
        prune(model, distill=False, teacher=model_of())
    with pytest.raises(ValueError, match="scores single weights"):
        prune(model, criterion="magnitude")
    with pytest.raises(ValueError, match="cannot be met"):
        prune(model, target=kc.pruning.Budget(macs=0.001))
