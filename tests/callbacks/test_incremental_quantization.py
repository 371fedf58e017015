"""IncrementalQuantization during `fit`."""

import keras
import numpy as np
import pytest

import keras_compress as kc

RNG = np.random.default_rng(0)
X = RNG.normal(size=(64, 20)).astype("float32")
Y = RNG.normal(size=(64, 3)).astype("float32")
PORTIONS = (0.5, 0.75, 0.875, 1.0)


def dense_model(**options):
    keras.utils.set_random_seed(3)
    return keras.Sequential(
        [
            keras.Input((20,)),
            keras.layers.Dense(30, activation="relu", name="fc1", **options),
            keras.layers.Dense(3, name="logits"),
        ]
    )


def values(variable):
    return keras.ops.convert_to_numpy(variable).copy()


def kernels(model):
    return {layer.name: values(layer.kernel) for layer in model.layers}


def paper_levels(kernel, bits):
    """INQ's levels of a kernel, from the formulas of the paper."""
    n1 = int(np.floor(np.log2(4 * np.abs(kernel).max() / 3)))
    n2 = n1 + 1 - 2 ** (bits - 1) // 2
    powers = 2.0 ** np.arange(n2, n1 + 1)
    return np.concatenate([-powers[::-1], [0], powers])


class Before(keras.callbacks.Callback):
    """Kernels as each epoch finds them; goes before the quantizing callback."""

    def __init__(self):
        super().__init__()
        self.kernels = []

    def on_epoch_begin(self, epoch, logs=None):
        self.kernels.append(kernels(self.model))


class After(keras.callbacks.Callback):
    """What is frozen, and weights that left their frozen value, at every batch and epoch."""

    def __init__(self):
        super().__init__()
        self.frozen, self.moved = [], 0

    def state(self):
        return {layer.name: values(layer.kernel_constraint.frozen) for layer in self.model.layers}

    def on_epoch_begin(self, epoch, logs=None):
        self.frozen.append(self.state())
        self.count()

    def on_train_batch_end(self, batch, logs=None):
        self.count()

    def count(self):
        if keras.backend.backend() == "jax":
            self.model.jax_state_sync()
        for layer in self.model.layers:
            frozen = self.frozen[-1][layer.name]
            held = ~np.isnan(frozen)
            self.moved += int((values(layer.kernel)[held] != frozen[held]).sum())


def inq(bits=5, **options):
    options = {"portions": PORTIONS, "epochs_per_step": 2, **options}
    return kc.callbacks.IncrementalQuantization(kc.quantizers.PowerOfTwo(bits), **options)


def fit(model, callback, epochs=7):
    before, after = Before(), After()
    model.fit(X, Y, batch_size=8, epochs=epochs, verbose=0, callbacks=[before, callback, after])
    return before, after


OPTIMIZERS = {
    "adam": lambda: keras.optimizers.Adam(0.01),
    "momentum": lambda: keras.optimizers.SGD(0.05, momentum=0.9, nesterov=True),
    "ema": lambda: keras.optimizers.Adam(0.01, use_ema=True, ema_overwrite_frequency=3),
    "weight_decay": lambda: keras.optimizers.AdamW(0.01, weight_decay=0.1),
}
STEPS = {
    "plain": {},
    "several": {"steps_per_execution": 4},
    "jit": {"jit_compile": True},
    "eager": {"run_eagerly": True},
}


@pytest.mark.parametrize(
    ("optimizer", "step"),
    [
        *((name, "plain") for name in OPTIMIZERS),
        *(("momentum", name) for name in STEPS if name != "plain"),
    ],
)
def test_inq_frozen_weights_are_bitwise_unchanged_and_end_on_levels(optimizer, step):
    model = dense_model()
    model.compile(OPTIMIZERS[optimizer](), "mse", **STEPS[step])
    start = kernels(model)
    before, after = fit(model, inq())
    assert after.moved == 0
    for name, kernel in kernels(model).items():
        assert set(kernel.ravel()) <= set(paper_levels(start[name], 5).astype("float32"))
        # Each weight still has the value that it got when it was frozen.
        for state in after.frozen:
            held = ~np.isnan(state[name])
            np.testing.assert_array_equal(kernel[held], state[name][held])
    # Free weights were trained.
    free = np.isnan(after.frozen[1]["fc1"])
    assert (before.kernels[1]["fc1"] != before.kernels[2]["fc1"])[free].mean() > 0.9


def test_inq_frozen_share_is_the_portion_and_the_largest_free_weights_join():
    model = dense_model()
    model.compile(keras.optimizers.SGD(0.1, momentum=0.9), "mse")
    before, after = fit(model, inq())
    for name in ("fc1", "logits"):
        last = np.zeros_like(after.frozen[0][name], bool)
        for epoch, portion in enumerate(np.repeat(PORTIONS, 2)[:7]):
            mask = ~np.isnan(after.frozen[epoch][name])
            assert abs(mask.mean() - portion) <= 1 / mask.size
            assert (mask >= last).all()
            magnitude = np.abs(before.kernels[epoch][name])
            new, free = mask & ~last, ~mask
            if new.any() and free.any():
                assert magnitude[new].min() >= magnitude[free].max()
            last = mask


def test_inq_rounding_is_the_rule_of_the_paper():
    model = dense_model()
    model.compile(keras.optimizers.SGD(0.0), "mse")
    start = kernels(model)
    fit(model, inq(bits=3))
    for name, kernel in kernels(model).items():
        positive = [v for v in paper_levels(start[name], 3) if v >= 0]
        expected = np.zeros_like(kernel)
        for alpha, beta in zip(positive[:-1], positive[1:], strict=True):
            size = np.abs(start[name])
            chosen = ((alpha + beta) / 2 <= size) & (size < 3 * beta / 2)
            expected[chosen] = beta * np.sign(start[name][chosen])
        np.testing.assert_array_equal(kernel, expected)


def test_inq_levels_of_the_catalogue():
    """b=3 and n1=-1 give 0, 1/4, 1/2; a largest weight of 1 gives n1=0."""
    for largest, bits, levels in (
        (0.5, 3, [0, 0.25, 0.5]),
        (1.0, 5, [0, *2.0 ** np.arange(-7, 1)]),
    ):
        model = keras.Sequential([keras.Input((200,)), keras.layers.Dense(4, name="fc")])
        kernel = largest * RNG.uniform(-1, 1, size=(200, 4)).astype("float32") ** 5
        kernel[0, 0] = largest
        model.layers[0].kernel.assign(kernel)
        model.compile(keras.optimizers.SGD(0.0), "mse")
        x, y = np.ones((8, 200)), np.ones((8, 4))
        model.fit(x, y, epochs=4, verbose=0, callbacks=[inq(bits, epochs_per_step=1)])
        np.testing.assert_array_equal(np.unique(np.abs(kernels(model)["fc"])), levels)


def test_inq_largest_level_is_that_of_the_start_though_weights_grow():
    model = keras.Sequential([keras.Input((20,)), keras.layers.Dense(3, name="fc")])
    model.compile(keras.optimizers.SGD(0.5), "mse")
    model.layers[0].kernel.assign(RNG.uniform(-0.1, 0.1, size=(20, 3)))
    levels = paper_levels(values(model.layers[0].kernel), 4)
    before = Before()
    x, y = 3 * X, 100 * Y
    model.fit(
        x,
        y,
        epochs=3,
        batch_size=64,
        verbose=0,
        callbacks=[before, inq(4, portions=(0.2, 1.0), epochs_per_step=2)],
    )
    assert np.abs(before.kernels[2]["fc"]).max() > 10 * levels.max()
    kernel = kernels(model)["fc"]
    assert set(kernel.ravel()) <= set(levels.astype("float32"))
    assert np.abs(kernel).max() == levels.max()


def test_inq_leaves_a_plain_model(tmp_path):
    model = dense_model(kernel_constraint="max_norm")
    model.compile("adam", "mse")
    config, count = model.get_config(), len(model.weights)
    fit(model, inq())
    assert model.get_config() == config and len(model.weights) == count
    assert isinstance(model.layers[0].kernel.constraint, keras.constraints.MaxNorm)
    assert model.layers[1].kernel.constraint is None
    quantised = kernels(model)["logits"]
    model.save(tmp_path / "plain.keras")
    loaded = keras.models.load_model(tmp_path / "plain.keras")
    np.testing.assert_array_equal(kernels(loaded)["logits"], quantised)
    # The next step is compiled without what was frozen.
    model.fit(X, Y, verbose=0)
    assert (kernels(model)["logits"] != quantised).mean() > 0.9


def test_inq_goes_on_where_an_unfinished_fit_stopped(tmp_path):
    model = dense_model()
    model.compile("adam", "mse")
    with pytest.warns(UserWarning, match="needs 6 epochs, but this fit.. has 3"):
        _, after = fit(model, inq(), epochs=3)
    model.save(tmp_path / "half.keras")
    loaded = keras.models.load_model(tmp_path / "half.keras")
    _, again = fit(loaded, inq(), epochs=4)
    shares = [np.mean(~np.isnan(state["fc1"])) for state in after.frozen + again.frozen]
    np.testing.assert_allclose(shares, np.repeat(PORTIONS, 2)[:7], atol=1 / 600)
    held = ~np.isnan(after.frozen[-1]["fc1"])
    np.testing.assert_array_equal(kernels(loaded)["fc1"][held], after.frozen[-1]["fc1"][held])
    assert again.moved == 0 and len(loaded.weights) == 4


@pytest.mark.parametrize("backup_first", [True, False])
def test_inq_backup_and_restore_resumes_where_it_stopped(tmp_path, backup_first):
    def run(fail_at=None):
        model = dense_model()
        model.compile("adam", "mse")
        after = After()
        backup = keras.callbacks.BackupAndRestore(tmp_path, delete_checkpoint=False)
        callbacks = [backup, inq(), after] if backup_first else [inq(), backup, after]

        def stop(epoch, logs=None):
            if epoch == fail_at:
                raise KeyboardInterrupt

        stopper = keras.callbacks.LambdaCallback(on_epoch_begin=stop)
        model.fit(X, Y, batch_size=8, epochs=7, verbose=0, callbacks=[*callbacks, stopper])
        return model, after

    with pytest.raises(KeyboardInterrupt):
        run(fail_at=3)
    model, after = run()
    shares = [np.mean(~np.isnan(state["fc1"])) for state in after.frozen]
    np.testing.assert_allclose(shares, np.repeat(PORTIONS, 2)[3:7], atol=1 / 600)
    assert after.moved == 0 and len(model.weights) == 4
    assert len(np.unique(np.abs(kernels(model)["fc1"]))) <= 9


def test_inq_with_mixed_precision_and_gradient_accumulation():
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model = dense_model()
    finally:
        keras.config.set_dtype_policy("float32")
    model.compile(keras.optimizers.SGD(0.05, 0.9, gradient_accumulation_steps=3), "mse")
    start = kernels(model)
    _, after = fit(model, inq())
    assert after.moved == 0
    for name, kernel in kernels(model).items():
        assert set(kernel.ravel()) <= set(paper_levels(start[name], 5).astype("float32"))


def test_inq_weights_are_their_own_quantisation():
    """`apply` with the same quantizer, for a small file, changes no weight."""
    model = dense_model()
    model.compile("adam", "mse")
    fit(model, inq(bits=4))
    small = kc.quantizers.apply(model, kc.quantizers.PowerOfTwo(4))
    for layer in small.layers:
        np.testing.assert_array_equal(layer.reconstruct_kernel(), kernels(model)[layer.name])


def test_inq_holds_the_zeros_of_pruning():
    model = dense_model()
    model.compile("adam", "mse")
    pruning = kc.callbacks.MagnitudePruning(kc.pruning.OneShot(0.5))
    model.fit(X, Y, verbose=0, callbacks=[pruning])
    zeros = kernels(model)["fc1"] == 0
    fit(model, inq())
    assert (kernels(model)["fc1"][zeros] == 0).all()
    assert isinstance(model.layers[0].kernel_constraint, kc.pruning.PruningMask)


def test_inq_layers_choose():
    model = dense_model()
    model.compile("adam", "mse")
    model.fit(X, Y, epochs=4, verbose=0, callbacks=[inq(3, epochs_per_step=1, layers="fc*")])
    assert len(np.unique(kernels(model)["fc1"])) <= 5 < len(np.unique(kernels(model)["logits"]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"portions": (0.5, 0.5, 1.0)}, "`portions` must be increasing"),
        ({"portions": (0.5, 0.9)}, "end at 1"),
        ({"portions": ()}, "end at 1"),
        ({"portions": 1.0}, "end at 1"),
        ({"portions": (0.0, 1.0)}, r"portions\[0\]"),
        ({"epochs_per_step": 0}, "epochs_per_step"),
        ({"layers": 5}, "`layers` must be a list"),
        ({"quantizer": "ternary"}, "PowerOfTwo"),
        ({"quantizer": kc.quantizers.PowerOfTwo(4, terms=2)}, "one term"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        kc.callbacks.IncrementalQuantization(**arguments)


def test_bad_models_are_refused_before_training():
    with pytest.raises(ValueError, match="'fc1'"):
        inq(layers="fcl").set_model(dense_model())
    with pytest.raises(ValueError, match="no trainable layer with a kernel"):
        inq().set_model(keras.Sequential([keras.Input((3,)), keras.layers.Dropout(0.1)]))
    with pytest.raises(ValueError, match="call the model on a batch"):
        inq().set_model(keras.Sequential([keras.layers.Dense(2)]))
