"""`TieWeights`: groups of one value, trained by their mean gradient."""

import keras
import numpy as np
import pytest

import keras_compress as kc
from keras_compress.callbacks.tie_weights import group_values, tie_groups

RNG = np.random.default_rng(0)


def least_squares(kernel, penalty=None, **options):
    model = keras.Sequential(
        [
            keras.Input((kernel.shape[0],)),
            keras.layers.Dense(
                kernel.shape[1], use_bias=False, kernel_regularizer=penalty, **options
            ),
        ]
    )
    model.layers[0].kernel.assign(kernel)
    model.compile(keras.optimizers.SGD(0.05), "mse")
    return model


def kernel_of(model):
    return keras.ops.convert_to_numpy(model.layers[0].kernel)


class Record(keras.callbacks.Callback):
    """Kernels at the end of each epoch, and at the begin, after the callbacks before this one."""

    def on_train_begin(self, logs=None):
        self.begins, self.ends = [], []

    def on_epoch_begin(self, epoch, logs=None):
        self.begins.append(kernel_of(self.model))

    def on_epoch_end(self, epoch, logs=None):
        if keras.backend.backend() == "jax":
            self.model.jax_state_sync()
        self.ends.append(kernel_of(self.model))


def test_groups_are_chains_of_near_values_and_zero_is_one():
    weights = np.array([[0.10, -0.5, 0.004], [0.12, 0.9, -0.002], [0.14, -0.52, 0.0]])
    groups = tie_groups(weights, 0.05)
    assert groups.tolist() == [[2, 1, 0], [2, 3, 0], [2, 1, 0]]
    expected = [[0.12, -0.51, 0], [0.12, 0.9, 0], [0.12, -0.51, 0]]
    np.testing.assert_allclose(group_values(weights, groups), expected, atol=1e-12)
    # No tolerance ties equal values only; without a weight near zero no group is zero.
    assert tie_groups(np.array([0.5, 0.5, 0.6]), 0.0).tolist() == [1, 1, 2]


def test_a_tied_group_has_one_value_and_moves_by_its_mean_gradient():
    kernel = np.array([[1.0, 1.02], [-2.0, 1.01], [0.001, -2.02]], "float32")
    model = least_squares(kernel)
    x, y = RNG.normal(size=(32, 3)).astype("float32"), RNG.normal(size=(32, 2)).astype("float32")
    record = Record()
    ties = kc.callbacks.TieWeights(tolerance=0.05, free_epochs=1, tied_epochs=2, layers="dense*")
    model.fit(x, y, batch_size=32, epochs=3, initial_epoch=1, verbose=0, callbacks=[ties, record])
    groups = np.array([[2, 2], [1, 2], [0, 1]])
    means = [0, np.mean([-2.0, -2.02]), np.mean([1.0, 1.02, 1.01])]
    start = np.array(means, "float32")[groups]
    np.testing.assert_allclose(record.begins[0], start, atol=1e-6)
    for begin, end in zip(record.begins, record.ends, strict=True):
        gradient = 2 * x.T @ (x @ begin - y) / y.size
        for group in (1, 2):
            expected = begin[groups == group] - 0.05 * gradient[groups == group].mean()
            np.testing.assert_allclose(end[groups == group], expected, atol=1e-5)
            assert len(np.unique(end[groups == group])) == 1
        assert (end[groups == 0] == 0).all()


def test_phases_alternate_and_training_ends_tied():
    penalty = kc.regularizers.DensityDiversity(1e-3, 1e-3)
    model = least_squares(RNG.normal(size=(6, 8)).astype("float32"), penalty)
    x, y = RNG.normal(size=(64, 6)), RNG.normal(size=(64, 8))
    record = Record()
    ties = kc.callbacks.TieWeights(tolerance=0.1, free_epochs=2, tied_epochs=1)
    model.fit(x, y, epochs=5, verbose=0, callbacks=[ties, record])
    values = [len(np.unique(kernel)) for kernel in record.ends]
    assert values[0] == values[1] == values[3] == values[4] == 48
    assert values[2] < 30 and len(np.unique(kernel_of(model))) < 40
    # Nothing is left of it.
    variable = model.layers[0].kernel
    assert variable.constraint is None and variable.regularizer is penalty
    before = kernel_of(model)
    model.fit(x, y, epochs=1, verbose=0)
    assert len(np.unique(kernel_of(model))) == 48 > len(np.unique(before))


def test_the_penalty_is_off_while_weights_are_tied():
    penalty = kc.regularizers.DensityDiversity(10.0, 0.0)
    model = least_squares(np.ones((3, 2), "float32"), penalty)
    x, y = np.zeros((8, 3), "float32"), np.zeros((8, 2), "float32")
    ties = kc.callbacks.TieWeights(free_epochs=1, tied_epochs=1)
    history = model.fit(x, y, epochs=3, verbose=0, callbacks=[ties])
    losses = history.history["loss"]
    assert losses[0] > 0 and losses[1] == 0 and losses[2] > 0


def test_pruned_weights_stay_pruned():
    model = least_squares(RNG.normal(size=(8, 8)).astype("float32"))
    model = kc.pruning.prune_weights(model, "magnitude", 0.5)
    zeros = kernel_of(model) == 0
    x, y = RNG.normal(size=(32, 8)), RNG.normal(size=(32, 8))
    ties = kc.callbacks.TieWeights(0.05, layers="dense*")
    model.fit(x, y, epochs=4, verbose=0, callbacks=[ties])
    assert (kernel_of(model)[zeros] == 0).all() and (kernel_of(model) != 0).sum() > 16


def test_a_fit_that_was_interrupted_leaves_nothing_behind_for_the_next():
    class Stop(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            if epoch == 1:
                raise KeyboardInterrupt

    penalty = kc.regularizers.DensityDiversity(1e-3, 1e-3)
    model = least_squares(RNG.normal(size=(6, 8)).astype("float32"), penalty)
    x, y = RNG.normal(size=(64, 6)), RNG.normal(size=(64, 8))
    with pytest.raises(KeyboardInterrupt):
        model.fit(x, y, epochs=4, verbose=0, callbacks=[kc.callbacks.TieWeights(0.1), Stop()])
    record = Record()
    ties = kc.callbacks.TieWeights(0.1, free_epochs=9)
    model.fit(x, y, epochs=2, verbose=0, callbacks=[ties, record])
    assert len(np.unique(record.ends[-1])) == 48
    assert model.layers[0].kernel.regularizer is penalty


def test_a_model_with_nothing_to_tie_is_refused():
    model = least_squares(np.ones((3, 2), "float32"))
    data = np.ones((4, 3)), np.ones((4, 2))
    with pytest.raises(ValueError, match="DensityDiversity"):
        model.fit(*data, callbacks=[kc.callbacks.TieWeights()], verbose=0)
    with pytest.raises(ValueError, match="No layer matches 'other'"):
        model.fit(*data, callbacks=[kc.callbacks.TieWeights(layers="other")], verbose=0)
