"""Ba and Caruana: regression of logits against numpy, and the linear bottleneck."""

import keras
import numpy as np
import pytest

import keras_compress as kc

RNG = np.random.default_rng(0)
TEACHER = RNG.normal(2, [1, 3, 9, 0.1], (50, 4)).astype("float32")
STUDENT = RNG.normal(0, 3, (50, 4)).astype("float32")
LogitRegression = kc.distillation.LogitRegression


def net(units=4, activation=None, width=5, tail=()):
    return keras.Sequential(
        [
            keras.Input((6,)),
            keras.layers.Dense(width, "relu"),
            keras.layers.Dense(units, activation=activation, name="logits"),
            *tail,
        ]
    )


def test_ba_caruana_loss_is_the_mean_squared_difference_of_logits():
    loss = LogitRegression(normalize=False)
    want = np.square(TEACHER.astype("float64") - STUDENT).mean()
    np.testing.assert_allclose(float(loss.compute_loss(TEACHER, STUDENT)), want, rtol=1e-5)
    assert float(loss.compute_loss(TEACHER, TEACHER)) == 0


def test_ba_caruana_loss_of_standardised_logits():
    """Both sides with the teacher's mean and deviation on its whole training set."""
    training_set = RNG.normal([5, 0, -3, 1], [1, 3, 9, 0.1], (400, 4))
    mean, std = training_set.mean(0), training_set.std(0)
    loss = LogitRegression()
    loss.adapt(training_set)
    want = np.square((TEACHER - mean) / std - (STUDENT - mean) / std).mean()
    np.testing.assert_allclose(float(loss.compute_loss(TEACHER, STUDENT)), want, rtol=1e-4)
    given = LogitRegression(standard_deviation=std.tolist())
    np.testing.assert_allclose(float(given.compute_loss(TEACHER, STUDENT)), want, rtol=1e-4)


@pytest.mark.parametrize("distiller", [keras.distillation.Distiller, kc.distillation.Distiller])
def test_probabilities_are_refused(distiller):
    def attempt(teacher, student, *names):
        return distiller(teacher, student, [LogitRegression(*names, normalize=False)])

    with pytest.raises(ValueError, match=r"teacher .* softmax.*`teacher_layer_name`.*copy the w"):
        attempt(net(activation="softmax"), net())
    with pytest.raises(ValueError, match=r"student .* sigmoid"):
        attempt(net(), net(activation="sigmoid"))
    with pytest.raises(ValueError, match=r"layer 'logits', must give logits.* softmax"):
        attempt(net(activation="softmax"), net(), "logits", "logits")
    # The remedy.
    tailed = net(tail=[keras.layers.Softmax()])
    with pytest.raises(ValueError, match="softmax"):
        attempt(tailed, net())
    attempt(tailed, net(), "logits", "logits")


def test_one_linear_output_is_regressed():
    kc.distillation.Distiller(net(1), net(1), LogitRegression(normalize=False))


def test_deviations_are_needed_before_training():
    with pytest.raises(ValueError, match=r"loss.adapt\(teacher.predict\(x\)\)"):
        kc.distillation.Distiller(net(), net(), LogitRegression())
    with pytest.raises(ValueError, match=r"each of the 4 classes; got 3"):
        kc.distillation.Distiller(net(), net(), LogitRegression(standard_deviation=[1, 2, 3]))
    with pytest.raises(ValueError, match=r"not in classes \[2\] of \(50, 4\)"):
        LogitRegression().adapt(TEACHER * [1, 1, 0, 1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"normalize": "yes"}, "`normalize`"),
        ({"standard_deviation": [1.0, 0.0]}, r"`standard_deviation\[1\]`"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        LogitRegression(**options)


@pytest.mark.filterwarnings("ignore:The structure of `inputs`")
def test_keras_distiller_gives_the_same_loss():
    x = RNG.normal(size=(20, 6)).astype("float32")
    teacher, student = net(width=20), net()
    loss = LogitRegression()
    loss.adapt(teacher.predict(x, verbose=0))
    values = []
    for cls in (keras.distillation.Distiller, kc.distillation.Distiller):
        distiller = cls(teacher, student, [loss], student_loss_weight=0.0)
        distiller.compile("sgd", "mse")
        values.append(float(distiller.compute_loss(x, np.zeros((20, 4)))))
    std = np.array(loss.standard_deviation)
    gap = (teacher.predict(x, verbose=0) - student.predict(x, verbose=0)) / std
    np.testing.assert_allclose(values, np.square(gap).mean(), rtol=1e-4)


def test_bottleneck_trains_and_folds_into_one_dense():
    """Shallow student: x -> U (linear) -> V -> ReLU -> logits, then one Dense instead of U V."""
    x = RNG.normal(size=(64, 6)).astype("float32")
    teacher = net(width=20)
    student = keras.Sequential(
        [
            keras.Input((6,)),
            kc.layers.FactorizedDense(30, activation="relu", rank=2, name="wide"),
            keras.layers.Dense(4),
        ]
    )
    loss = LogitRegression()
    loss.adapt(teacher.predict(x, verbose=0))
    distiller = kc.distillation.Distiller(teacher, student, loss, alpha=1.0)
    distiller.compile(keras.optimizers.Adam(0.01))
    history = distiller.fit(x, epochs=4, batch_size=16, verbose=0).history["loss"]
    assert history[-1] < history[0]
    folded = kc.convert(student, {"wide": lambda layer: layer.expand()})
    wide = folded.get_layer("wide")
    assert type(wide) is keras.layers.Dense
    left, right = (keras.ops.convert_to_numpy(f) for f in student.get_layer("wide").factors)
    np.testing.assert_allclose(keras.ops.convert_to_numpy(wide.kernel), left @ right, atol=1e-6)
    np.testing.assert_allclose(
        folded.predict(x, verbose=0), student.predict(x, verbose=0), atol=1e-5
    )


def test_config_round_trip():
    loss = LogitRegression("a", "b")
    loss.adapt(TEACHER)
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(loss))
    assert type(again) is LogitRegression and again.get_config() == loss.get_config()
    assert again.standard_deviation == loss.standard_deviation
