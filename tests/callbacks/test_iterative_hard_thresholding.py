"""IterativeHardThresholding during `fit`."""

import keras
import numpy as np
import pytest

import keras_compress as kc

RNG = np.random.default_rng(0)
X = RNG.normal(size=(32, 10)).astype("float32")
Y = (X @ RNG.normal(size=(10, 3))).astype("float32")


def values(variable):
    return keras.ops.convert_to_numpy(variable)


def model_of(optimizer="adam", policy="float32", **options):
    keras.utils.set_random_seed(2)
    model = keras.Sequential(
        [
            keras.Input((10,)),
            keras.layers.Dense(7, activation="tanh", name="hidden", dtype=policy),
            keras.layers.Dense(3, name="logits", dtype=policy),
        ]
    )
    model.compile(optimizer, "mse", **options)
    return model


def sync(model):
    if keras.backend.backend() == "jax":
        model.jax_state_sync()


class Watch(keras.callbacks.Callback):
    """Kernels after every batch, epoch by epoch."""

    def on_train_begin(self, logs=None):
        self.epochs = []

    def on_epoch_begin(self, epoch, logs=None):
        self.epochs.append([])

    def on_train_batch_end(self, batch, logs=None):
        sync(self.model)
        self.epochs[-1].append([values(layer.kernel) for layer in self.model.layers])


def fit(model, thresholding, epochs, *more, watch=True, **options):
    spy = Watch()
    callbacks = [thresholding, *([spy] if watch else []), *more]
    options = {"batch_size": 8, "verbose": 0, **options}
    return model.fit(X, Y, epochs=epochs, callbacks=callbacks, **options), spy


OPTIONS = {
    "momentum": lambda: {"optimizer": keras.optimizers.SGD(0.05, momentum=0.9)},
    "several": lambda: {"optimizer": "adam", "steps_per_execution": 2},
    "mixed": lambda: {"optimizer": "adam", "policy": "mixed_float16"},
    "jit": lambda: {"optimizer": "adam", "jit_compile": True},
    "accumulation": lambda: {"optimizer": keras.optimizers.Adam(gradient_accumulation_steps=2)},
}


@pytest.mark.parametrize("case", OPTIONS)
def test_jin_sparse_phases_have_k_weights_and_dense_phases_train_all(case):
    """L0 norm in phase 1 equals k exactly, after every batch; phase 2 trains all weights."""
    model = model_of(**OPTIONS[case]())
    thresholding = kc.callbacks.IterativeHardThresholding(0.6, sparse_epochs=2, dense_epochs=1)
    history, spy = fit(model, thresholding, 7)
    for epoch, batches in enumerate(spy.epochs):
        dense = epoch % 3 == 2
        # A unit that lost all of its outputs has no gradient until one of them is back.
        for kernels in batches[-1:] if dense else batches:
            for kernel in kernels:
                kept = kernel.size - int(0.6 * kernel.size + 0.5)
                assert np.count_nonzero(kernel) == (kernel.size if dense else kept)
    sparse = pytest.approx(0.6, abs=0.02)
    assert history.history["sparsity"] == [sparse, sparse, 0.0, sparse, sparse, 0.0, sparse]


def test_jin_masks_keep_the_largest_and_are_chosen_anew_each_cycle():
    model = model_of(keras.optimizers.Adam(0.05))
    first = [values(layer.kernel) for layer in model.layers]
    _, spy = fit(model, kc.callbacks.IterativeHardThresholding(0.5, 1, 2), 4)
    sparse = [kernels[-1] for kernels in (spy.epochs[0], spy.epochs[3])]
    for layer, start in enumerate(first):
        order = np.argsort(np.abs(start), axis=None)
        support = np.zeros(start.size, bool)
        support[order[int(0.5 * start.size + 0.5) :]] = True
        np.testing.assert_array_equal(sparse[0][layer].ravel() != 0, support)
        before = spy.epochs[2][-1][layer]
        order = np.argsort(np.abs(before), axis=None)
        support[:] = False
        support[order[int(0.5 * start.size + 0.5) :]] = True
        np.testing.assert_array_equal(sparse[1][layer].ravel() != 0, support)
    # Weights that were zero in the first cycle are back in the second.
    assert any(((a == 0) & (b != 0)).any() for a, b in zip(*sparse, strict=True))


def test_jin_ties_are_broken_by_place():
    model = model_of(keras.optimizers.SGD(0.0))
    for layer in model.layers:
        layer.kernel.assign(np.full(layer.kernel.shape, -0.5))
    fit(model, kc.callbacks.IterativeHardThresholding(0.5, 1, 1), 1, watch=False)
    for layer in model.layers:
        kernel = values(layer.kernel).ravel()
        drop = int(0.5 * kernel.size + 0.5)
        assert (kernel[:drop] == 0).all() and (kernel[drop:] == -0.5).all()


def test_jin_a_fit_that_ends_dense_takes_a_last_threshold():
    model = model_of()
    thresholding = kc.callbacks.IterativeHardThresholding(0.7, 1, 1)
    _, spy = fit(model, thresholding, 2)
    for layer, before in zip(model.layers, spy.epochs[1][-1], strict=True):
        kernel = values(layer.kernel)
        drop = int(0.7 * kernel.size + 0.5)
        smallest = np.argsort(np.abs(before), axis=None)[:drop]
        assert (kernel.ravel()[smallest] == 0).all() and np.count_nonzero(kernel) == (
            kernel.size - drop
        )
    assert thresholding.sparsity == pytest.approx(0.7, abs=0.02)


def test_a_later_fit_goes_on_in_the_cycle_also_from_a_file(tmp_path):
    def thresholding():
        return kc.callbacks.IterativeHardThresholding(0.5, 2, 1)

    model = model_of()
    fit(model, thresholding(), 1, watch=False)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    history, _ = fit(loaded, thresholding(), 3, watch=False)
    assert history.history["sparsity"] == pytest.approx([0.5, 0.0, 0.5], abs=0.01)
    # Another cycle begins at its beginning.
    other = kc.callbacks.IterativeHardThresholding(0.25, 1, 1)
    history, _ = fit(loaded, other, 2, watch=False)
    assert history.history["sparsity"] == pytest.approx([0.25, 0.0], abs=0.01)
    plain = kc.pruning.strip(loaded)
    assert len(plain.weights) == 4
    np.testing.assert_array_equal(plain.predict(X, verbose=0), loaded.predict(X, verbose=0))


class Interrupt(keras.callbacks.Callback):
    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 4:
            raise KeyboardInterrupt


@pytest.mark.parametrize("backup_first", [True, False])
def test_backup_and_restore_gives_the_uninterrupted_run(tmp_path, backup_first):
    def run(*more, backup=True):
        model = model_of(keras.optimizers.SGD(0.05, momentum=0.9))
        callbacks = [kc.callbacks.IterativeHardThresholding(0.5, 2, 1)]
        if backup:
            keeper = keras.callbacks.BackupAndRestore(tmp_path / "backup")
            callbacks.insert(0 if backup_first else 1, keeper)
        options = {"batch_size": 8, "epochs": 6, "shuffle": False, "verbose": 0}
        model.fit(X, Y, callbacks=[*callbacks, *more], **options)
        return model

    with pytest.raises(KeyboardInterrupt):
        run(Interrupt())
    for a, b in zip(run().weights, run(backup=False).weights, strict=True):
        np.testing.assert_allclose(values(a), values(b), atol=1e-6)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((1.0, 1, 1), "`sparsity` must be a number"),
        ((0.5, 0, 1), "`sparse_epochs` must be a positive integer"),
        ((0.5, 1, 0.5), "`dense_epochs` must be a positive integer"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        kc.callbacks.IterativeHardThresholding(*arguments)


def test_bad_models_are_refused_before_training():
    with pytest.raises(ValueError, match="No layer matches 'conv'"):
        fit(model_of(), kc.callbacks.IterativeHardThresholding(0.5, 1, 1, layers="conv"), 1)
