"""MagnitudePruning during `fit`."""

import re

import keras
import numpy as np
import pytest

import keras_compress as kc

RNG = np.random.default_rng(0)
X = RNG.normal(size=(64, 20)).astype("float32")
Y = RNG.normal(size=(64, 3)).astype("float32")
RAMP = {"begin_step": 0, "end_step": 8, "frequency": 3}


def dense_model(**options):
    return keras.Sequential(
        [
            keras.Input((20,)),
            keras.layers.Dense(30, activation="relu", name="fc1", **options),
            keras.layers.Dense(3, name="logits"),
        ]
    )


def values(variable):
    return keras.ops.convert_to_numpy(variable)


def kernels(model):
    return {layer.name: values(layer.kernel) for layer in model.layers}


def ramp(final=0.8):
    return kc.pruning.PolynomialDecay(0.2, final, **RAMP)


class Watch(keras.callbacks.Callback):
    """Kernels and masks as they are before every batch."""

    def __init__(self, pruning, fail_at=None):
        super().__init__()
        self.pruning, self.fail_at = pruning, fail_at
        self.sparsity, self.leaks, self.steps = [], 0, 0

    def on_train_batch_begin(self, batch, logs=None):
        if self.steps == self.fail_at:
            raise KeyboardInterrupt
        if self.steps == 0:
            self.start = int(values(self.model.optimizer.iterations))
        self.steps += 1
        self.sparsity.append(round(self.pruning.sparsity, 4))
        if keras.backend.backend() == "jax":
            self.model.jax_state_sync()
        for layer in self.model.layers:
            mask = layer.kernel_constraint.read_mask()
            self.leaks += int((values(layer.kernel)[~mask] != 0).sum())
            # The step runs between two batches: surviving weights are all in use.
            assert np.mean(values(layer.kernel)[mask] != 0) > 0.95


def fit(model, pruning, epochs=2, watch=True, callbacks=(), **options):
    spy = Watch(pruning)
    spies = [spy] if watch else []
    options = {"batch_size": 8, "verbose": 0, **options}
    history = model.fit(X, Y, epochs=epochs, callbacks=[pruning, *spies, *callbacks], **options)
    return history, spy


OPTIMIZERS = {
    "adam": lambda: "adam",
    "momentum": lambda: keras.optimizers.SGD(0.05, momentum=0.9, nesterov=True),
    "ema": lambda: keras.optimizers.Adam(use_ema=True, ema_overwrite_frequency=3),
    "accumulation": lambda: keras.optimizers.SGD(0.05, 0.9, gradient_accumulation_steps=3),
    "loss_scale": lambda: keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam()),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_zeros_stay_zero_through_retraining(optimizer):
    """Han et al. 2015 (and Zhu and Gupta's ramp): exact zeros with any optimizer."""
    model = dense_model()
    model.compile(OPTIMIZERS[optimizer](), "mse")
    pruning = kc.callbacks.MagnitudePruning(ramp())
    history, spy = fit(model, pruning)
    assert spy.leaks == 0
    schedule = ramp()
    want = [schedule.sparsity_at(s) for s in (0, 0, 0, 3, 3, 3, 6, 6, 8, 8, 8, 8, 8, 8, 8, 8)]
    np.testing.assert_allclose(spy.sparsity, want, atol=2e-3)
    for name, kernel in kernels(model).items():
        assert (kernel == 0).sum() == int(0.8 * kernel.size + 0.5), name
    np.testing.assert_allclose(history.history["sparsity"], [0.8, 0.8], atol=2e-3)


@pytest.mark.parametrize(
    "compile_options",
    [{"steps_per_execution": 4}, {"jit_compile": True}, {"run_eagerly": True}],
    ids=str,
)
def test_compiled_steps(compile_options):
    model = dense_model()
    model.compile("adam", "mse", **compile_options)
    pruning = kc.callbacks.MagnitudePruning(ramp())
    _, spy = fit(model, pruning)
    assert spy.leaks == 0
    assert all(np.mean(kernel == 0) == pytest.approx(0.8) for kernel in kernels(model).values())
    if "steps_per_execution" in compile_options:
        # Due at step 3, applied at the next boundary, 4; due at 6 and 8, applied at 8.
        schedule = ramp()
        want = [schedule.sparsity_at(step) for step in (0, 3, 8, 8)]
        np.testing.assert_allclose(spy.sparsity, want, atol=2e-3)


def test_mixed_precision():
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model = dense_model()
    finally:
        keras.config.set_dtype_policy("float32")
    model.compile("adam", "mse")
    assert isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
    _, spy = fit(model, kc.callbacks.MagnitudePruning(ramp()))
    assert spy.leaks == 0 and np.mean(kernels(model)["fc1"] == 0) == pytest.approx(0.8)


def test_a_step_that_was_compiled_before_gets_the_mask():
    model = dense_model()
    model.compile("adam", "mse")
    model.fit(X, Y, verbose=0)
    _, spy = fit(model, kc.callbacks.MagnitudePruning(kc.pruning.OneShot(0.5)))
    assert spy.leaks == 0 and np.mean(kernels(model)["fc1"] == 0) == 0.5


def test_second_fit_goes_on_and_another_schedule_begins_anew():
    model = dense_model()
    model.compile("adam", "mse")
    fit(model, kc.callbacks.MagnitudePruning(ramp()), epochs=1, steps_per_epoch=4)
    assert np.mean(kernels(model)["fc1"] == 0) == pytest.approx(ramp().sparsity_at(3), abs=1e-3)
    mask = model.get_layer("fc1").kernel_constraint
    # A new optimizer counts from zero; an equal schedule still goes on.
    model.compile("sgd", "mse")
    again = kc.callbacks.MagnitudePruning(ramp())
    _, spy = fit(model, again, epochs=1)
    np.testing.assert_allclose(
        spy.sparsity, [ramp().sparsity_at(s) for s in (3, 3, 6, 6, 8, 8, 8, 8)], atol=2e-3
    )
    assert model.get_layer("fc1").kernel_constraint is mask
    _, spy = fit(model, kc.callbacks.MagnitudePruning(kc.pruning.OneShot(0.9, 2)), epochs=1)
    np.testing.assert_allclose(spy.sparsity, [0.8, 0.8] + [0.9] * 6, atol=2e-3)


@pytest.mark.parametrize("save_freq", ["epoch", 3])
def test_backup_and_restore_resumes_where_it_stopped(tmp_path, save_freq):
    schedule = kc.pruning.PolynomialDecay(0.1, 0.9, 0, 24, frequency=2)

    def run(fail_at=None):
        keras.utils.set_random_seed(1)
        model = dense_model()
        model.compile("adam", "mse")
        pruning = kc.callbacks.MagnitudePruning(schedule)
        # Before ours: it restores before our on_train_begin and saves before our on_epoch_end.
        backup = keras.callbacks.BackupAndRestore(
            tmp_path, save_freq=save_freq, delete_checkpoint=False
        )
        watch = Watch(pruning, fail_at)
        model.fit(
            X, Y, batch_size=8, epochs=3, shuffle=False, verbose=0,
            callbacks=[backup, pruning, watch],
        )  # fmt: skip
        return model, watch

    with pytest.raises(KeyboardInterrupt):
        run(fail_at=12)
    model, watch = run()
    assert watch.start == 8 if save_freq == "epoch" else 8 < watch.start <= 12
    done = [schedule.sparsity_at(step - step % 2) for step in (watch.start, watch.start + 1)]
    np.testing.assert_allclose(watch.sparsity[:2], done, atol=2e-3)
    assert watch.leaks == 0
    assert np.mean(kernels(model)["fc1"] == 0) == pytest.approx(0.9, abs=1e-3)


def test_keras_file_in_mid_pruning(tmp_path):
    model = dense_model(kernel_constraint="max_norm")
    model.compile("adam", "mse")
    fit(model, kc.callbacks.MagnitudePruning(ramp()), epochs=1, steps_per_epoch=5)
    model.save(tmp_path / "half.keras")
    loaded = keras.models.load_model(tmp_path / "half.keras")
    for a, b in zip(model.weights, loaded.weights, strict=True):
        np.testing.assert_array_equal(values(a), values(b))
    masks = model.layers[0].kernel_constraint.read_mask()
    assert np.mean(~masks) == pytest.approx(ramp().sparsity_at(3), abs=1e-3)
    # Training without the callback keeps the zeros, also on a backend whose step has no state.
    loaded.fit(X, Y, verbose=0)
    assert (values(loaded.layers[0].kernel)[~masks] == 0).all()
    _, spy = fit(loaded, kc.callbacks.MagnitudePruning(ramp()), epochs=1)
    assert spy.leaks == 0 and spy.sparsity[-1] == pytest.approx(0.8, abs=2e-3)
    plain = kc.pruning.strip(loaded)
    assert isinstance(plain.layers[0].kernel_constraint, keras.constraints.MaxNorm)
    np.testing.assert_array_equal(plain.predict(X, verbose=0), loaded.predict(X, verbose=0))


def test_std_threshold_keeps_exactly_the_weights_above():
    """Han et al. 2015: |w| >= q std stays."""
    model = dense_model()
    model.compile(keras.optimizers.SGD(0.0), "mse")
    before = kernels(model)
    pruning = kc.callbacks.MagnitudePruning(kc.pruning.OneShot(0.99), threshold="std", quality=0.8)
    fit(model, pruning, watch=False)
    for name, kernel in kernels(model).items():
        keep = np.abs(before[name]) >= 0.8 * before[name].std()
        np.testing.assert_array_equal(kernel, np.where(keep, before[name], 0))
    # The schedule's sparsity is a ceiling.
    model = dense_model()
    model.compile("sgd", "mse")
    capped = kc.callbacks.MagnitudePruning(kc.pruning.OneShot(0.25), threshold="std", quality=3.0)
    fit(model, capped)
    assert all((w == 0).sum() == int(0.25 * w.size + 0.5) for w in kernels(model).values())


def conv_model():
    return keras.Sequential(
        [
            keras.Input((8, 8, 4)),
            keras.layers.Conv2D(8, 3, name="conv"),
            keras.layers.DepthwiseConv2D(3, depth_multiplier=2, name="depthwise"),
            keras.layers.Conv2DTranspose(6, 3, name="transposed"),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(12, name="fc"),
            keras.layers.Dense(5, name="logits"),
            keras.layers.Softmax(),
        ]
    )


def fit_conv(model, **options):
    model.compile("adam", "mse")
    pruning = kc.callbacks.MagnitudePruning(kc.pruning.OneShot(0.5), **options)
    x, y = np.ones((8, 8, 8, 4)), np.zeros((8, 5))
    model.fit(x, y, batch_size=4, epochs=2, verbose=0, callbacks=[pruning])
    return {
        layer.name: values(layer.kernel) for layer in model.layers if hasattr(layer, "kernel")
    }, pruning


def test_filter_granularity_spares_the_outputs_of_the_model():
    kernel, pruning = fit_conv(conv_model(), granularity="filter")
    assert set(pruning.layer_sparsity) == {
        f"{name}/kernel" for name in ("conv", "depthwise", "transposed", "fc")
    }
    assert (~kernel["conv"].any((0, 1, 2))).sum() == 4
    assert (~kernel["depthwise"].any((0, 1))).sum() == 8
    assert (~kernel["transposed"].any((0, 1, 3))).sum() == 3
    assert (~kernel["fc"].any(0)).sum() == 6
    assert kernel["logits"].all()


def test_pattern_and_block_granularity():
    kernel, _ = fit_conv(conv_model(), granularity="2:4", layers=["conv", "fc"])
    for name, w in kernel.items():
        matrix = w.reshape(-1, w.shape[-1])
        zeros = (matrix[: len(matrix) // 4 * 4] == 0).reshape(-1, 4, w.shape[-1])
        assert (zeros.sum(1) == (2 if name in ("conv", "fc") else 0)).all()
    kernel, _ = fit_conv(conv_model(), granularity="block", block_size=(4, 4), layers="conv")
    blocks = (kernel["conv"].reshape(9, 4, 2, 4) == 0).sum((1, 3))
    assert sorted(blocks.ravel()) == [0] * 9 + [16] * 9


def test_layers_and_rules():
    model = conv_model()
    model.get_layer("fc").trainable = False
    kernel, _ = fit_conv(
        model,
        layers=[keras.layers.Conv2D, "transp*", "fc"],
        rules={
            "transposed": None,
            "logits": kc.pruning.OneShot(0.2),
            "conv": lambda step: (step == 0, 0.9),
        },
    )
    share = {name: round(float(np.mean(w == 0)), 2) for name, w in kernel.items()}
    assert share == {"conv": 0.9, "depthwise": 0, "transposed": 0, "fc": 0.5, "logits": 0.2}
    model = conv_model()
    model.get_layer("fc").trainable = False
    _, pruning = fit_conv(model)
    assert "fc/kernel" not in pruning.layer_sparsity and len(pruning.layer_sparsity) == 4


def test_keys_reach_into_nested_models_and_wrappers():
    inner = keras.Sequential([keras.Input((4,)), keras.layers.Dense(6, name="deep")], name="inner")
    inputs = keras.Input((5, 4))
    x = keras.layers.TimeDistributed(inner, name="each")(inputs)
    x = keras.layers.LSTM(3, name="lstm")(x)
    model = keras.Model(inputs, keras.layers.Dense(2, name="out")(x))
    model.compile("adam", "mse")
    pruning = kc.callbacks.MagnitudePruning(
        kc.pruning.OneShot(0.5), rules={"inner": kc.pruning.OneShot(0.25), "out": None}
    )
    x, y = RNG.normal(size=(8, 5, 4)), np.zeros((8, 2))
    history = model.fit(x, y, verbose=0, callbacks=[pruning])
    shares = {name: round(share, 2) for name, share in pruning.layer_sparsity.items()}
    assert shares == {
        "each/inner/deep/kernel": 0.25,
        "lstm/lstm_cell/kernel": 0.5,
        "lstm/lstm_cell/recurrent_kernel": 0.5,
    }
    assert np.mean(values(inner.layers[0].kernel) == 0) == 0.25
    assert history.history["sparsity"] == [pruning.sparsity]


def test_sparsity_is_seen_by_history_progress_bar_and_later_callbacks(tmp_path, capsys):
    model = dense_model()
    model.compile("sgd", "mse")
    log = keras.callbacks.CSVLogger(tmp_path / "log.csv")
    pruning = kc.callbacks.MagnitudePruning(ramp())
    history, _ = fit(model, pruning, callbacks=[log], verbose=2, validation_split=0.5)
    assert history.history["sparsity"][-1] == pytest.approx(0.8, abs=2e-3)
    assert re.search(r"sparsity: 0\.8", capsys.readouterr().out)
    assert "sparsity" in (tmp_path / "log.csv").read_text().splitlines()[0]


def test_tensorboard_gets_sparsity(tmp_path):
    pytest.importorskip("tensorboard")
    tf = pytest.importorskip("tensorflow")
    model = dense_model()
    model.compile("sgd", "mse")
    fit(model, kc.callbacks.MagnitudePruning(ramp()), callbacks=[
        keras.callbacks.TensorBoard(tmp_path, write_graph=False)
    ])  # fmt: skip
    tags = {
        value.tag
        for file in tmp_path.rglob("*.v2")
        for event in tf.compat.v1.train.summary_iterator(str(file))
        for value in event.summary.value
    }
    assert "epoch_sparsity" in tags


def test_schedule_that_the_fit_cuts_short_is_warned_about():
    model = dense_model()
    model.compile("sgd", "mse")
    with pytest.warns(UserWarning, match="ends at step 100, but this fit.. stops at step 8"):
        fit(model, kc.callbacks.MagnitudePruning(kc.pruning.OneShot(0.5, 100)), epochs=1)


def test_a_last_step_at_the_end_of_training_is_still_taken():
    model = dense_model()
    model.compile("sgd", "mse")
    history, _ = fit(model, kc.callbacks.MagnitudePruning(kc.pruning.OneShot(0.5, 16)))
    assert np.mean(kernels(model)["fc1"] == 0) == 0.5
    assert history.history["sparsity"] == [0, 0.5]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "schedule"),
        ({"schedule": 0.5}, "PolynomialDecay"),
        ({"schedule": kc.pruning.OneShot(0.8), "granularity": "2:4"}, "0.5"),
        ({"schedule": kc.pruning.OneShot(0.8), "threshold": "std"}, "quality"),
        ({"schedule": kc.pruning.OneShot(0.8), "threshold": "stdev"}, "'std'"),
        ({"schedule": kc.pruning.OneShot(0.8), "quality": 1.0}, "quality"),
        ({"schedule": kc.pruning.OneShot(0.8), "granularity": "block"}, "block_size"),
        ({"schedule": kc.pruning.OneShot(0.8), "layers": {"a": None}}, "rules"),
        ({"schedule": kc.pruning.OneShot(0.8), "rules": ["a"]}, "dict"),
        ({"rules": {"a": None}}, "no layer would be pruned"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        kc.callbacks.MagnitudePruning(**arguments)


class Lazy(keras.Model):
    def __init__(self):
        super().__init__()
        self.dense = keras.layers.Dense(3)

    def call(self, inputs):
        return self.dense(inputs)


def test_bad_models_are_refused_before_training():
    def start(model, **options):
        kc.callbacks.MagnitudePruning(kc.pruning.OneShot(0.5), **options).set_model(model)

    with pytest.raises(ValueError, match="'fc1'"):
        start(dense_model(), layers=["fcl"])
    with pytest.raises(ValueError, match="no layer with a kernel.*conv/kernel"):
        start(conv_model(), layers=["softmax*"])
    with pytest.raises(ValueError, match="no layer to prune"):
        start(keras.Sequential([keras.Input((3,)), keras.layers.Dropout(0.1)]))
    with pytest.raises(ValueError, match="call the model on a batch"):
        start(Lazy())
    model = Lazy()
    model.built = True
    with pytest.raises(ValueError, match="dense"):
        start(model)
