"""SoftWeightSharing during fit: weights and mixture learn together, inside the compiled step."""

import warnings

import keras
import numpy as np
import pytest
from keras import ops

import keras_compress as kc
from tests.gradients import gradient

RNG = np.random.default_rng(0)
X = RNG.normal(size=(256, 10)).astype("float32")
Y = (X[:, :3] @ RNG.normal(size=(3, 2))).astype("float32")


def array(variable):
    return ops.convert_to_numpy(variable)


def two_layers(optimizer=None, **kwargs):
    keras.utils.set_random_seed(0)
    layers = [keras.layers.Dense(8, name="first"), keras.layers.Dense(2, name="last")]
    model = keras.Sequential([keras.Input((10,)), *layers])
    model.compile(optimizer or keras.optimizers.Adam(0.01), "mse", **kwargs)
    return model


def prior_of(**kwargs):
    return kc.regularizers.SoftWeightSharing(
        **{"components": 5, "pi_zero": 0.6, "examples": 256, **kwargs}
    )


@pytest.mark.parametrize("jit_compile", [False, True])
def test_ullrich_one_step_is_the_formula_for_weights_and_mixture(jit_compile):
    """The weights by plain SGD on loss and penalty; the first step of Adam is the rate's size."""
    model = two_layers(keras.optimizers.SGD(0.1), jit_compile=jit_compile)
    prior = prior_of(tau=0.05, examples=4)
    kernels = [model.get_layer(name).kernel for name in ("first", "last")]
    plain = two_layers(keras.optimizers.SGD(0.1))
    plain.fit(X, Y, batch_size=256, verbose=0)
    # The penalty adds its gradient to that of the task.
    prior.start([array(kernel) for kernel in kernels])
    before = [array(kernel) for kernel in kernels]
    pulls = [gradient(prior, kernel) for kernel in before]
    mixture = [array(v) for v in prior.trainable_variables]

    def total(values):
        with keras.StatelessScope(
            state_mapping=list(zip(prior.trainable_variables, values, strict=True))
        ):
            return sum(prior(w) for w in before) + prior._hyper_penalty(values[1])

    slopes = []
    for index, value in enumerate(mixture):

        def loss(moved, index=index):
            values = [ops.convert_to_tensor(v) for v in mixture]
            values[index] = moved
            return total(values)

        slopes.append(gradient(loss, value))
    sharing = kc.callbacks.SoftWeightSharing(prior, learning_rate=1e-3, log_learning_rate=5e-3)
    model.fit(X, Y, batch_size=256, callbacks=[sharing], verbose=0)
    for kernel, other, pull in zip(
        kernels, (plain.get_layer(n).kernel for n in ("first", "last")), pulls, strict=True
    ):
        np.testing.assert_allclose(array(kernel), array(other) - 0.1 * pull, atol=1e-5)
    for variable, start, slope, rate in zip(
        prior.trainable_variables, mixture, slopes, (1e-3, 5e-3, 5e-3), strict=True
    ):
        assert (np.abs(slope) > 1e-4).all()
        np.testing.assert_allclose(array(variable) - start, -rate * np.sign(slope), rtol=2e-2)


def test_ullrich_retraining_gathers_the_weights_at_the_means():
    model = two_layers()
    model.fit(X, Y, epochs=40, verbose=0)
    prior = prior_of(components=9)
    kernels = [model.get_layer(name).kernel for name in ("first", "last")]

    def apart():
        mixture = prior.mixture
        return max(np.abs(mixture.quantize(array(k)) - array(k)).max() for k in kernels)

    prior.start([array(kernel) for kernel in kernels])
    before, start = apart(), prior.mixture
    sharing = kc.callbacks.SoftWeightSharing(prior, learning_rate=2e-3, log_learning_rate=0.02)
    model.fit(X, Y, epochs=60, callbacks=[sharing], verbose=0)
    assert apart() < before / 2
    assert prior.mixture.sigmas.max() < start.sigmas.max() / 4
    small = kc.sharing.quantize_mixture(model, prior)
    values = np.concatenate([array(small.get_layer(n).kernel).ravel() for n in ("first", "last")])
    assert len(np.unique(values)) <= 9 and (values == 0).mean() > 0.2
    small.compile(loss="mse")
    assert small.evaluate(X, Y, verbose=0) < 0.05 * np.mean(Y**2)


def test_a_fit_leaves_the_model_as_it_was():
    l2 = keras.regularizers.L2(1e-3)
    model = keras.Sequential([keras.Input((10,)), keras.layers.Dense(2, kernel_regularizer=l2)])
    optimizer = keras.optimizers.Adam(0.01)
    model.compile(optimizer, "mse")
    model.fit(X, Y, verbose=0)
    weights, config = [id(w) for w in model.weights], model.get_config()
    prior = prior_of()
    during = []

    class Watch(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            during.append((len(model.trainable_variables), logs["loss"]))

    callbacks = [kc.callbacks.SoftWeightSharing(prior), Watch()]
    model.fit(X, Y, epochs=2, callbacks=callbacks, verbose=0)
    assert during[0][0] == 2 + 3
    assert [id(w) for w in model.weights] == weights and model.get_config() == config
    assert model.optimizer is optimizer and int(array(optimizer.iterations)) == 3 * 8
    assert model.layers[0].kernel.regularizer is l2
    task = np.mean((model.predict(X, verbose=0) - Y) ** 2) + float(l2(model.layers[0].kernel))
    np.testing.assert_allclose(model.evaluate(X, Y, verbose=0), task, rtol=1e-4)
    model.fit(X, Y, verbose=0)


def test_a_second_fit_goes_on_with_the_mixture_also_after_an_interruption():
    model = two_layers()
    model.fit(X, Y, epochs=5, verbose=0)
    prior = prior_of()

    class Stop(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            raise KeyboardInterrupt

    sharing = kc.callbacks.SoftWeightSharing(prior)
    with pytest.raises(KeyboardInterrupt):
        model.fit(X, Y, callbacks=[sharing, Stop()], verbose=0)
    prior.means.assign([-0.7, -0.2, 0.3, 0.6])
    again = kc.callbacks.SoftWeightSharing(prior, layers="last", learning_rate=1e-6)
    model.fit(X, Y, callbacks=[again], verbose=0)
    np.testing.assert_allclose(array(prior.means), [-0.7, -0.2, 0.3, 0.6], atol=1e-4)
    assert len(model.weights) == 4 and isinstance(model.optimizer, keras.optimizers.Adam)
    assert all(w.regularizer is None for w in model.weights)


def test_files_written_meanwhile_are_those_of_the_plain_model(tmp_path):
    model = two_layers()
    model.fit(X, Y, verbose=0)
    path = tmp_path / "model.keras"
    callbacks = [kc.callbacks.SoftWeightSharing(prior_of()), keras.callbacks.ModelCheckpoint(path)]
    model.fit(X, Y, epochs=2, callbacks=callbacks, verbose=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded = keras.models.load_model(path)
    for found, kept in zip(loaded.variables, model.variables, strict=True):
        np.testing.assert_array_equal(array(found), array(kept))
    assert len(loaded.optimizer.variables) == len(model.optimizer.variables)
    for found, kept in zip(loaded.optimizer.variables, model.optimizer.variables, strict=True):
        np.testing.assert_array_equal(array(found), array(kept))


def test_backup_and_restore_carries_the_mixture_and_its_adam(tmp_path):
    class Stop(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 2:
                raise KeyboardInterrupt

    def run(*more):
        model, prior = two_layers(), prior_of()
        sharing = kc.callbacks.SoftWeightSharing(prior, learning_rate=0.01)
        callbacks = [sharing, *more]
        model.fit(X, Y, epochs=4, shuffle=False, callbacks=callbacks, verbose=0)
        return [array(w) for w in (*model.weights, *prior.weights)]

    whole = run()
    with pytest.raises(KeyboardInterrupt):
        run(keras.callbacks.BackupAndRestore(tmp_path), Stop())
    resumed = run(keras.callbacks.BackupAndRestore(tmp_path))
    for one, other in zip(whole, resumed, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="`prior` must be a kc.regularizers.SoftWeightSharing"):
        kc.callbacks.SoftWeightSharing(keras.regularizers.L2())
    with pytest.raises(ValueError, match=r"`learning_rate` must be a number in \(0"):
        kc.callbacks.SoftWeightSharing(prior_of(), learning_rate=0)
    model = two_layers()
    with pytest.raises(ValueError, match="No layer matches 'lst'. Did you mean 'last'"):
        model.fit(X, Y, callbacks=[kc.callbacks.SoftWeightSharing(prior_of(), "lst")], verbose=0)
    model = two_layers(keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD()))
    with pytest.raises(ValueError, match="the optimizer scales the loss"):
        model.fit(X, Y, callbacks=[kc.callbacks.SoftWeightSharing(prior_of())], verbose=0)
