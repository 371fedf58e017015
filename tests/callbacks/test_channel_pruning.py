"""ChannelPruning during `fit`."""

import keras
import numpy as np
import pytest

import keras_compress as kc

RNG = np.random.default_rng(0)
X = RNG.normal(size=(32, 6, 6, 2)).astype("float32")
Y = RNG.integers(0, 3, size=32)


def values(variable):
    return keras.ops.convert_to_numpy(variable)


def residual(activation="relu", optimizer="adam", **options):
    """Two residual additions, a depthwise convolution, batch norms, and a wide inner layer."""
    keras.utils.set_random_seed(3)
    layers = keras.layers
    inputs = keras.Input((6, 6, 2))
    x = layers.Conv2D(6, 3, padding="same", name="stem")(inputs)
    x = layers.BatchNormalization(name="stem_bn")(x)
    x = layers.Activation(activation)(x)
    y = layers.DepthwiseConv2D(3, padding="same", name="depthwise")(x)
    y = layers.Conv2D(8, 1, name="wide")(y)
    y = layers.BatchNormalization(name="wide_bn")(y)
    y = layers.Activation(activation)(y)
    y = layers.Conv2D(6, 3, padding="same", name="narrow")(y)
    x = layers.Add()([x, y])
    x = layers.Activation(activation)(x)
    x = layers.GlobalAveragePooling2D()(x)
    model = keras.Model(inputs, layers.Dense(3, name="logits")(x))
    model.compile(
        optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True), **options
    )
    return model


def ramp(end=8, frequency=3):
    return kc.pruning.PolynomialDecay(0.0, 0.5, 0, end, power=1, frequency=frequency)


def fit(model, pruning, epochs=3, callbacks=(), **options):
    options = {"batch_size": 8, "verbose": 0, **options}
    return model.fit(X, Y, epochs=epochs, callbacks=[pruning, *callbacks], **options)


CASES = {
    "relu": {},
    "sigmoid": {"activation": "sigmoid"},
    "momentum": {"optimizer": keras.optimizers.SGD(0.05, momentum=0.9).get_config()},
    "several": {"steps_per_execution": 2},
    "jit": {"jit_compile": True},
    "accumulation": {"accumulate": 3},
}


@pytest.mark.parametrize("case", CASES)
def test_cut_model_gives_the_outputs_of_the_masked_one(case):
    options = dict(CASES[case])
    if "optimizer" in options:
        options["optimizer"] = keras.optimizers.SGD.from_config(options["optimizer"])
    if "accumulate" in options:
        steps = options.pop("accumulate")
        options["optimizer"] = keras.optimizers.Adam(gradient_accumulation_steps=steps)
    model = residual(**options)
    pruning = kc.callbacks.ChannelPruning("l1", 0.5, ramp(), scope="layer")
    fit(model, pruning)
    before = [values(weight) for weight in model.weights]
    small = pruning.finalize()
    np.testing.assert_allclose(small.predict(X, verbose=0), model.predict(X, verbose=0), atol=1e-5)
    assert small.count_params() < 0.7 * kc.pruning.strip(model).count_params()
    assert small.get_layer("stem").filters == small.get_layer("narrow").filters < 6
    assert small.compiled and not any("mask" in weight.path for weight in small.weights)
    for a, b in zip(before, model.weights, strict=True):
        np.testing.assert_array_equal(a, values(b))


class Channels(keras.callbacks.Callback):
    """Which channels of the residual stream and of the wide layer are alive after every batch."""

    def on_train_begin(self, logs=None):
        self.alive = []

    def on_train_batch_end(self, batch, logs=None):
        if keras.backend.backend() == "jax":
            self.model.jax_state_sync()
        get = self.model.get_layer
        kernels = {
            name: values(get(name).kernel) for name in ("stem", "wide", "narrow", "depthwise")
        }
        stem = kernels["stem"].any(axis=(0, 1, 2))
        wide = kernels["wide"].any(axis=(0, 1, 2))
        # All that is tied goes together: bias, batch norm, depthwise, and what reads it.
        for gone, arrays in (
            (
                ~stem,
                [
                    values(get("stem").bias),
                    values(get("stem_bn").gamma),
                    values(get("stem_bn").beta),
                    kernels["depthwise"][..., 0].reshape(-1, 6).T,
                    np.moveaxis(kernels["wide"], 2, 0),
                    np.moveaxis(kernels["narrow"], 3, 0),
                    values(get("narrow").bias),
                    values(get("logits").kernel),
                ],
            ),
            (
                ~wide,
                [
                    values(get("wide").bias),
                    values(get("wide_bn").gamma),
                    np.moveaxis(kernels["narrow"], 2, 0),
                ],
            ),
        ):
            for array in arrays:
                assert (array[gone] == 0).all()
        self.alive.append((stem, wide))


def test_channels_go_on_schedule_stay_gone_and_take_what_is_tied_with_them():
    model = residual()
    pruning = kc.callbacks.ChannelPruning("l1", 0.5, ramp())
    watch = Channels()
    history = fit(model, pruning, callbacks=[watch])
    # 14 channels: 6 of the residual stream, 8 inside; due at steps 0, 3, 6 and 8.
    shares = [0, 0, 0, 3, 3, 3, 6, 6, 8, 8, 8, 8]
    gone = [int((~stem).sum() + (~wide).sum()) for stem, wide in watch.alive]
    assert gone == [int(np.floor(0.5 * share / 8 * 14 + 0.5)) for share in shares]
    for (stem, wide), (later_stem, later_wide) in zip(watch.alive, watch.alive[1:], strict=False):
        assert not (later_stem & ~stem).any() and not (later_wide & ~wide).any()
    assert history.history["sparsity"] == pytest.approx([3 / 14, 0.5, 0.5])
    assert pruning.layer_sparsity["stem"] == pruning.layer_sparsity["narrow"]


def test_one_shot_takes_what_prune_channels_takes():
    """Same criterion, same choice: only that training goes on under masks."""
    model = residual(optimizer=keras.optimizers.SGD(0.0))
    want = kc.pruning.prune_channels(model, "l2", 0.4, scope="layer")
    pruning = kc.callbacks.ChannelPruning("l2", 0.4, scope="layer")
    fit(model, pruning, epochs=1)
    small = pruning.finalize()
    for a, b in zip(want.trainable_weights, small.trainable_weights, strict=True):
        np.testing.assert_array_equal(values(a), values(b))


def test_budget_is_met():
    model = residual()
    pruning = kc.callbacks.ChannelPruning("l1", kc.pruning.Budget(macs=0.5), ramp())
    fit(model, pruning)
    share = kc.profile.macs(pruning.finalize()) / kc.profile.macs(kc.pruning.strip(model))
    assert 0.25 < share <= 0.5


def test_criterion_of_data_sees_the_model_as_it_is():
    model = residual()
    pruning = kc.callbacks.ChannelPruning("taylor", 0.5, ramp(), data=(X, Y))
    fit(model, pruning)
    small = pruning.finalize()
    np.testing.assert_allclose(small.predict(X, verbose=0), model.predict(X, verbose=0), atol=1e-5)
    assert small.get_layer("stem").filters + small.get_layer("wide").filters == 7


def test_keras_file_in_mid_pruning(tmp_path):
    model = residual()
    fit(model, kc.callbacks.ChannelPruning("l1", 0.5, ramp()), epochs=1, steps_per_epoch=4)
    model.save(tmp_path / "half.keras")
    loaded = keras.models.load_model(tmp_path / "half.keras")
    gone = ~values(loaded.get_layer("stem").kernel).any(axis=(0, 1, 2))
    small = kc.callbacks.ChannelPruning().finalize(loaded)
    np.testing.assert_allclose(small.predict(X, verbose=0), model.predict(X, verbose=0), atol=1e-5)
    # Training without the callback keeps the channels away; with it, goes on.
    loaded.fit(X, Y, verbose=0)
    assert not values(loaded.get_layer("stem").kernel)[..., gone].any()
    pruning = kc.callbacks.ChannelPruning("l1", 0.5, ramp())
    history = fit(loaded, pruning, epochs=2)
    assert history.history["sparsity"][-1] == pytest.approx(0.5)
    assert not values(loaded.get_layer("stem").kernel)[..., gone].any()


class Interrupt(keras.callbacks.Callback):
    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 2:
            raise KeyboardInterrupt


def test_backup_and_restore_gives_the_uninterrupted_run(tmp_path):
    def run(*more, backup=True):
        model = residual(optimizer=keras.optimizers.SGD(0.05, momentum=0.9))
        pruning = kc.callbacks.ChannelPruning("l1", 0.5, ramp(12))
        if backup:
            more = (keras.callbacks.BackupAndRestore(tmp_path / "backup"), *more)
        options = {"batch_size": 8, "epochs": 4, "shuffle": False, "verbose": 0}
        model.fit(X, Y, callbacks=[*more[:1], pruning, *more[1:]], **options)
        return pruning.finalize()

    with pytest.raises(KeyboardInterrupt):
        run(Interrupt())
    for a, b in zip(run().weights, run(backup=False).weights, strict=True):
        np.testing.assert_allclose(values(a), values(b), atol=1e-5)


def test_what_cannot_be_masked_is_kept():
    keras.utils.set_random_seed(3)
    inputs = keras.Input((5, 8))
    x = keras.layers.Dense(8, name="before")(inputs)
    x = keras.layers.MultiHeadAttention(2, 4, name="attention")(x, x)
    x = keras.layers.Dense(6, activation="relu", name="free")(x)
    model = keras.Model(inputs, keras.layers.Dense(2, name="out")(x))
    model.compile("adam", "mse")
    pruning = kc.callbacks.ChannelPruning("l1", 0.5)
    x, y = RNG.normal(size=(8, 5, 8)), RNG.normal(size=(8, 5, 2))
    model.fit(x, y, epochs=2, callbacks=[pruning], verbose=0)
    small = pruning.finalize()
    np.testing.assert_allclose(small.predict(x, verbose=0), model.predict(x, verbose=0), atol=1e-5)
    assert small.get_layer("free").units == 3 and small.get_layer("before").units == 8


def test_mixed_precision():
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = residual()
    finally:
        keras.config.set_dtype_policy("float32")
    pruning = kc.callbacks.ChannelPruning("l1", 0.5, ramp())
    fit(model, pruning)
    small = pruning.finalize()
    np.testing.assert_allclose(
        small.predict(X, verbose=0).astype("float32"),
        model.predict(X, verbose=0).astype("float32"),
        atol=2e-2,
    )
    assert small.get_layer("wide").filters < 8


BAD = {
    "target": ({"target": 1.0}, "`target` must be a number"),
    "criterion": ({"criterion": "l3"}, "`criterion` must be one of"),
    "data": ({"criterion": "taylor"}, "looks at data; give data"),
    "scope": ({"scope": "all"}, "`scope` must be one of"),
    "schedule": ({"schedule": lambda step: (True, 0.5)}, "must say with what sparsity"),
    "weights": ({"criterion": "magnitude"}, "scores single weights"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_arguments_are_refused(case):
    arguments, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        kc.callbacks.ChannelPruning(**arguments)


def test_bad_models_are_refused():
    model = residual()
    with pytest.raises(ValueError, match="finalize.. comes after"):
        kc.callbacks.ChannelPruning().finalize()
    fit(model, kc.callbacks.MagnitudePruning(kc.pruning.OneShot(0.5)), epochs=1)
    with pytest.raises(ValueError, match="mask of single weights"):
        fit(model, kc.callbacks.ChannelPruning())
