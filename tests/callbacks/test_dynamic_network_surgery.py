"""DynamicNetworkSurgery during `fit`."""

import keras
import numpy as np
import pytest

import keras_compress as kc
from keras_compress.callbacks.surgery_mask import MaskUpdates, SurgeryMask

RNG = np.random.default_rng(0)
X = RNG.normal(size=(64, 12)).astype("float32")
Y = (X @ RNG.normal(size=(12, 3)) * RNG.choice([0.1, 1.0], size=3)).astype("float32")


def values(variable):
    return keras.ops.convert_to_numpy(variable)


def linear(optimizer, bias=False, **options):
    keras.utils.set_random_seed(1)
    model = keras.Sequential([keras.Input((12,)), keras.layers.Dense(3, use_bias=bias, name="fc")])
    model.compile(optimizer, "mse", **options)
    return model


def two_layers(**options):
    keras.utils.set_random_seed(1)
    model = keras.Sequential(
        [
            keras.Input((12,)),
            keras.layers.Dense(16, activation="relu", name="hidden"),
            keras.layers.Dense(3, name="logits"),
        ]
    )
    model.compile(**{"optimizer": "adam", "loss": "mse", **options})
    return model


def weights_and_mask(model, name="fc"):
    """All `W`, pruned ones too, and `T`."""
    layer = model.get_layer(name)
    mask = layer.kernel_constraint.read_mask()
    latent = values(layer.kernel_constraint.latent)
    return np.where(mask, values(layer.kernel), latent), mask


class Surgery:
    """The method in numpy: one linear layer, mean squared error, SGD with momentum."""

    def __init__(self, weights, c_rate, rate, momentum=0.0):
        self.weights, self.rate, self.momentum = weights.astype("float64"), rate, momentum
        self.mask = np.ones(weights.shape, bool)
        self.velocity = np.zeros(weights.shape)
        middle = np.abs(weights).mean() + c_rate * np.abs(weights).std()
        self.low, self.high = 0.9 * middle, 1.1 * middle
        self.pruned = self.spliced = 0

    def step(self, x, y, update=True):
        error = x @ (self.weights * self.mask) - y
        gradient = 2 / error.size * x.T @ error
        self.velocity = self.momentum * self.velocity - self.rate * gradient
        self.weights = self.weights + self.velocity
        if update:
            size, before = np.abs(self.weights), self.mask.copy()
            self.mask[size < self.low] = False
            self.mask[size >= self.high] = True
            self.pruned += int((before & ~self.mask).sum())
            self.spliced += int((~before & self.mask).sum())


def batches(epochs, size=8):
    for _ in range(epochs):
        for start in range(0, len(X), size):
            yield X[start : start + size], Y[start : start + size]


STEPS = {"plain": {}, "several": {"steps_per_execution": 4}, "jit": {"jit_compile": True}}


@pytest.mark.parametrize("step", STEPS)
def test_guo_training_is_the_algorithm_and_pruned_weights_are_spliced_back(step):
    """All W get the gradient of the masked weight; those that it drives above b come back."""
    model = linear(keras.optimizers.SGD(0.05, momentum=0.5), **STEPS[step])
    oracle = Surgery(values(model.layers[0].kernel), 0.0, 0.05, 0.5)
    surgery = kc.callbacks.DynamicNetworkSurgery(c_rate=0.0, gamma=0.0)
    history = model.fit(X, Y, batch_size=8, epochs=3, shuffle=False, callbacks=[surgery], verbose=0)
    for x, y in batches(3):
        oracle.step(x, y)
    weights, mask = weights_and_mask(model)
    assert oracle.pruned > 3 and oracle.spliced > 0
    np.testing.assert_array_equal(mask, oracle.mask)
    np.testing.assert_allclose(weights, oracle.weights, atol=1e-5)
    # The forward pass is that of W * T.
    np.testing.assert_allclose(
        model.predict(X, verbose=0), X @ (oracle.weights * oracle.mask), atol=1e-5
    )
    assert history.history["sparsity"][-1] == pytest.approx(1 - oracle.mask.mean())


def test_guo_gradient_accumulation_updates_every_weight_once_in_a_while():
    model = linear(keras.optimizers.SGD(0.05, gradient_accumulation_steps=2))
    oracle = Surgery(values(model.layers[0].kernel), 0.0, 0.05)
    surgery = kc.callbacks.DynamicNetworkSurgery(c_rate=0.0, gamma=0.0)
    model.fit(X, Y, batch_size=8, epochs=2, shuffle=False, callbacks=[surgery], verbose=0)
    gradients = []
    for x, y in batches(2):
        error = x @ (oracle.weights * oracle.mask) - y
        gradients.append(2 / error.size * x.T @ error)
        if len(gradients) == 2:
            oracle.weights -= 0.05 * np.mean(gradients, axis=0)
            gradients = []
        # The mask is chosen after every batch, from the weights that there are.
        size = np.abs(oracle.weights)
        oracle.mask[size < oracle.low] = False
        oracle.mask[size >= oracle.high] = True
    weights, mask = weights_and_mask(model)
    np.testing.assert_array_equal(mask, oracle.mask)
    np.testing.assert_allclose(weights, oracle.weights, atol=1e-5)


def test_guo_hysteresis_table():
    """Below a: pruned; at or above b: kept; between: as before. Signs do not matter."""
    mask = SurgeryMask((9,))
    mask.start(0.9, 1.1, 0.0)
    mask.updates = MaskUpdates(0.0, 1.0, None, 0)
    sizes = np.array([0.0, 0.89, 0.9, 1.0, 1.09, 1.1, 2.0, -1.0, -1.2], "float32")
    for before in (True, False):
        was = np.full(9, before, "float32")
        latent = np.zeros(9) if before else sizes
        weight = sizes if before else np.zeros(9)
        state = [was, latent.astype("float32"), np.int32(5)]
        state = [keras.ops.convert_to_tensor(value) for value in state]
        masked, (after, kept, _) = mask.step(
            keras.ops.convert_to_tensor(weight.astype("float32")), state
        )
        between = [before] * 3
        want = [False, False, *between, True, True, before, True]
        np.testing.assert_array_equal(values(after), want)
        np.testing.assert_array_equal(values(kept), sizes)
        np.testing.assert_array_equal(values(masked), np.where(want, sizes, 0))


def test_guo_masks_are_chosen_anew_with_falling_probability():
    """sigma(step) = (1 + gamma step)^-power, reproducible from the seed."""
    steps = np.arange(6000)
    updates = MaskUpdates(0.01, 0.7, 5000, seed=3)
    due = np.array(values(keras.ops.vectorized_map(updates.due, keras.ops.cast(steps, "int32"))))
    probability = (1 + 0.01 * steps) ** -0.7
    for first, last in ((0, 500), (500, 2000), (2000, 5000)):
        expected, spread = (
            probability[first:last].sum(),
            np.sqrt((probability * (1 - probability))[first:last].sum()),
        )
        assert abs(due[first:last].sum() - expected) < 4 * spread
    assert due[0] and not due[5000:].any()
    # Uncorrelated from one step to the next, once the trend is taken off.
    noise = (due - probability)[:5000]
    assert abs(np.corrcoef(noise[1:], noise[:-1])[0, 1]) < 0.06
    other = MaskUpdates(0.01, 0.7, 5000, seed=4)
    again = values(keras.ops.vectorized_map(other.due, keras.ops.cast(steps, "int32")))
    assert 0.1 < np.mean(again != due) < 0.5


def test_guo_masks_rest_after_stop_step_and_hidden_weights_still_move():
    def run(**options):
        model = linear(keras.optimizers.SGD(0.05))
        surgery = kc.callbacks.DynamicNetworkSurgery(0.0, gamma=0.0, **options)
        model.fit(X, Y, batch_size=8, epochs=2, shuffle=False, callbacks=[surgery], verbose=0)
        return model

    model = run(stop_step=2)
    oracle = Surgery(values(linear("sgd").layers[0].kernel), 0.0, 0.05)
    for step, (x, y) in enumerate(batches(2)):
        oracle.step(x, y, update=step < 2)
    weights, mask = weights_and_mask(model)
    np.testing.assert_array_equal(mask, oracle.mask)
    np.testing.assert_allclose(weights, oracle.weights, atol=1e-5)


def test_guo_finalize_gives_exact_zeros_and_a_plain_model():
    model = two_layers()
    surgery = kc.callbacks.DynamicNetworkSurgery({"hidden": 0.5, "logits": 0.0})
    model.fit(X, Y, epochs=2, callbacks=[surgery], verbose=0)
    plain = surgery.finalize()
    for name, share in (("hidden", 0.5), ("logits", 0.2)):
        mask = model.get_layer(name).kernel_constraint.read_mask()
        kernel = values(plain.get_layer(name).kernel)
        np.testing.assert_array_equal(kernel != 0, mask)
        assert np.mean(kernel == 0) > share
        assert plain.get_layer(name).kernel_constraint is None
        assert surgery.layer_sparsity[f"{name}/kernel"] == pytest.approx(np.mean(kernel == 0))
    assert len(plain.weights) == 4
    np.testing.assert_array_equal(plain.predict(X, verbose=0), model.predict(X, verbose=0))


def test_keras_file_carries_masks_and_hidden_weights(tmp_path):
    model = linear(keras.optimizers.SGD(0.05))
    surgery = kc.callbacks.DynamicNetworkSurgery(0.0, gamma=0.0)
    options = {"batch_size": 8, "shuffle": False, "verbose": 0}
    model.fit(X, Y, callbacks=[surgery], **options)
    model.save(tmp_path / "half.keras")
    loaded = keras.models.load_model(tmp_path / "half.keras")
    for a, b in zip(model.weights, loaded.weights, strict=True):
        np.testing.assert_array_equal(values(a), values(b))
    # Without the callback the mask stays, on every backend.
    mask = weights_and_mask(loaded)[1]
    rest = keras.models.load_model(tmp_path / "half.keras")
    rest.fit(X, Y, **options)
    np.testing.assert_array_equal(values(rest.layers[0].kernel) != 0, mask)
    # With it, training goes on as if nothing had been between: thresholds, draws and all.
    for one in (model, loaded):
        one.fit(X, Y, callbacks=[kc.callbacks.DynamicNetworkSurgery(0.0, gamma=0.0)], **options)
    for a, b in zip(model.weights, loaded.weights, strict=True):
        np.testing.assert_allclose(values(a), values(b), atol=1e-6)
    oracle = Surgery(values(linear("sgd").layers[0].kernel), 0.0, 0.05)
    for x, y in batches(2):
        oracle.step(x, y)
    np.testing.assert_array_equal(weights_and_mask(loaded)[1], oracle.mask)


class Interrupt(keras.callbacks.Callback):
    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 2:
            raise KeyboardInterrupt


@pytest.mark.parametrize("backup_first", [True, False])
def test_backup_and_restore_gives_the_uninterrupted_run(tmp_path, backup_first):
    def run(*more, backup=True):
        model = two_layers(optimizer=keras.optimizers.SGD(0.05, momentum=0.9))
        callbacks = [kc.callbacks.DynamicNetworkSurgery(0.2, gamma=0.01)]
        if backup:
            keeper = keras.callbacks.BackupAndRestore(tmp_path / "backup")
            callbacks.insert(0 if backup_first else 1, keeper)
        options = {"batch_size": 8, "epochs": 4, "shuffle": False, "verbose": 0}
        model.fit(X, Y, callbacks=[*callbacks, *more], **options)
        return model

    with pytest.raises(KeyboardInterrupt):
        run(Interrupt())
    resumed, whole = run(), run(backup=False)
    for a, b in zip(resumed.weights, whole.weights, strict=True):
        np.testing.assert_allclose(values(a), values(b), atol=1e-5)


@pytest.mark.parametrize("optimizer", ["ema", "loss_scale", "adamw"])
def test_zeros_are_exact_with_any_optimizer(optimizer):
    optimizer = {
        "ema": lambda: keras.optimizers.Adam(use_ema=True, ema_overwrite_frequency=3),
        "loss_scale": lambda: keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam(0.01)),
        "adamw": lambda: keras.optimizers.AdamW(0.01),
    }[optimizer]()
    model = two_layers(optimizer=optimizer)
    surgery = kc.callbacks.DynamicNetworkSurgery(0.5)
    model.fit(X, Y, batch_size=8, epochs=2, callbacks=[surgery], verbose=0)
    for name in ("hidden", "logits"):
        weights, mask = weights_and_mask(model, name)
        kernel = values(model.get_layer(name).kernel)
        np.testing.assert_array_equal(kernel, weights * mask)
        assert 0.1 < np.mean(kernel == 0) < 1 and (weights[~mask] != 0).all()


def test_mixed_precision_hidden_weights_stay_float32():
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model = two_layers(optimizer=keras.optimizers.SGD(1e-4))
    finally:
        keras.config.set_dtype_policy("float32")
    before = values(model.get_layer("hidden").kernel)
    surgery = kc.callbacks.DynamicNetworkSurgery(0.0)
    model.fit(X, Y, batch_size=8, epochs=4, callbacks=[surgery], verbose=0)
    weights, mask = weights_and_mask(model, "hidden")
    # Steps that half precision would round away have added up.
    moved = np.abs(weights - before)[~mask]
    assert (moved > 0).mean() > 0.9 and moved.max() < 1e-2


def test_layers_without_a_dense_kernel_are_masked_too():
    model = keras.Sequential(
        [
            keras.Input((6, 5, 2)),
            keras.layers.SeparableConv2D(4, 3, name="separable"),
            keras.layers.Reshape((12, 4)),
            keras.layers.GRU(3, name="gru"),
            keras.layers.Dense(1, name="out"),
        ]
    )
    model.compile("adam", "mse")
    surgery = kc.callbacks.DynamicNetworkSurgery(0.3, layers=["separable", "gru"])
    x, y = np.ones((8, 6, 5, 2), "float32"), np.ones((8, 1), "float32")
    model.fit(x, y, epochs=2, callbacks=[surgery], verbose=0)
    assert set(surgery.layer_sparsity) == {
        "separable/depthwise_kernel",
        "separable/pointwise_kernel",
        "gru/gru_cell/kernel",
        "gru/gru_cell/recurrent_kernel",
    }
    assert all(0 < sparsity < 1 for sparsity in surgery.layer_sparsity.values())
    assert (values(model.get_layer("out").kernel) != 0).all()


BAD = {
    "text": ({"c_rate": "high"}, "`c_rate` must be a number"),
    "gamma": ({"c_rate": 1, "gamma": -1}, "`gamma` must be a number"),
    "power": ({"c_rate": 1, "power": -1}, "`power` must be a number"),
    "stop": ({"c_rate": 1, "stop_step": 0}, "`stop_step` must be a positive integer"),
    "both": ({"c_rate": {"fc": 1}, "layers": ["fc"]}, "no `layers`"),
    "empty": ({"c_rate": {}}, "at least one"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_arguments_are_refused(case):
    arguments, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        kc.callbacks.DynamicNetworkSurgery(**arguments)


def test_bad_models_are_refused_before_training():
    def fit(model, **arguments):
        model.fit(X, Y, verbose=0, callbacks=[kc.callbacks.DynamicNetworkSurgery(**arguments)])

    model = linear("sgd")
    with pytest.raises(ValueError, match="No layer matches"):
        fit(model, c_rate={"conv*": 1.0})
    with pytest.raises(ValueError, match="lose all of its weights.*smaller c_rate"):
        fit(model, c_rate=50)
    assert len(model.weights) == 1
    unbuilt = keras.Sequential([keras.layers.Dense(3)])
    unbuilt.compile("sgd", "mse")
    with pytest.raises(ValueError, match="finalize.. comes after"):
        kc.callbacks.DynamicNetworkSurgery(1).finalize()
    with pytest.raises(ValueError, match="without weights"):
        kc.callbacks.DynamicNetworkSurgery(1).set_model(unbuilt)
    magnitude = kc.callbacks.MagnitudePruning(kc.pruning.OneShot(0.5))
    model.fit(X, Y, callbacks=[magnitude], verbose=0)
    with pytest.raises(ValueError, match="mask of another callback"):
        fit(model, c_rate=0.0)
