"""RocketLaunching: shared layers, the gradient block, and what is deployed."""

import keras
import numpy as np
import pytest
from scipy.special import log_softmax

import keras_compress as kc

RNG = np.random.default_rng(0)
X = RNG.normal(size=(16, 6)).astype("float32")
Y = RNG.integers(0, 3, 16)
STEP = {"jit_compile": True} if keras.backend.backend() == "jax" else {"run_eagerly": True}
CROSSENTROPY = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def nets(tail=()):
    """A light net and a booster with one layer in common."""
    inputs = keras.Input((6,))
    low = keras.layers.Dense(4, activation="tanh", name="low")(inputs)
    outputs = keras.layers.Dense(3, name="light_logits")(low)
    for layer in tail:
        outputs = layer(outputs)
    light = keras.Model(inputs, outputs, name="light")
    deep = keras.layers.Dense(5, activation="tanh", name="deep")(low)
    booster = keras.Model(inputs, keras.layers.Dense(3, name="logits")(deep), name="booster")
    return light, booster


def plain(classes=3, name="net"):
    layers = [keras.Input((6,)), keras.layers.Dense(4), keras.layers.Dense(classes)]
    return keras.Sequential(layers, name=name)


def values(variables):
    return [keras.ops.convert_to_numpy(v).copy() for v in variables]


def compiled(rocket, rate):
    rocket.compile(keras.optimizers.SGD(rate), CROSSENTROPY, metrics=["accuracy"], **STEP)
    return rocket


def step(rocket, rate):
    compiled(rocket, rate).fit(X, Y, batch_size=16, shuffle=False, verbose=0)


def test_loss_is_both_cross_entropies_and_the_weighted_distance_of_logits():
    light, booster = nets()
    rocket = compiled(kc.distillation.RocketLaunching(light, booster, hint_weight=0.3), 0.0)
    got = rocket.evaluate(X, Y, batch_size=16, verbose=0, return_dict=True)
    z_l, z_b = (m.predict(X, verbose=0).astype("float64") for m in (light, booster))
    parts = [-log_softmax(z, -1)[np.arange(16), Y].mean() for z in (z_l, z_b)]
    hint = np.square(z_l - z_b).sum(-1).mean()
    assert got["student_loss"] == pytest.approx(parts[0], rel=1e-5)
    assert got["teacher_loss"] == pytest.approx(parts[1], rel=1e-5)
    assert got["hint_loss"] == pytest.approx(hint, rel=1e-5)
    assert got["loss"] == pytest.approx(sum(parts) + 0.3 * hint, rel=1e-5)


def test_hint_gradient_to_booster_only_weights_is_zero():
    """One step with the hint and one without: the light net, the shared layer too, differs by the
    gradient of the hint with constant targets, the booster's own layers not at all."""
    moved = {}
    start = None
    for weight in (0.0, 0.7):
        light, booster = nets()
        rocket = kc.distillation.RocketLaunching(light, booster, weight)
        variables = [*light.trainable_variables, *booster.trainable_variables[2:]]
        start = start or values(variables)
        for variable, value in zip(variables, start, strict=True):
            variable.assign(value)
        z = [m.predict(X, verbose=0).astype("float64") for m in (light, booster)]
        step(rocket, 0.5)
        moved[weight] = values(variables)
    for a, b in zip(moved[0.0][4:], moved[0.7][4:], strict=True):
        np.testing.assert_allclose(a, b, atol=1e-7)
    kernel, bias, head, _ = (v.astype("float64") for v in start[:4])
    hidden = np.tanh(X @ kernel + bias)
    error = 0.7 * 2 * (z[0] - z[1]) / 16
    back = error @ head.T * (1 - hidden**2)
    gradients = [X.T @ back, back.sum(0), hidden.T @ error, error.sum(0)]
    for a, b, g in zip(moved[0.0], moved[0.7], gradients, strict=False):
        np.testing.assert_allclose(b - a, -0.5 * g, atol=1e-5)


def test_hint_weight_0_equals_plain_training_of_both_with_shared_layers():
    light, booster = nets()
    joint = keras.models.clone_model(keras.Model(light.inputs, [light.output, booster.output]))
    names = ("low", "light_logits", "deep", "logits")
    for name in names:
        source = light if name in ("low", "light_logits") else booster
        joint.get_layer(name).set_weights(source.get_layer(name).get_weights())
    rocket = compiled(kc.distillation.RocketLaunching(light, booster, 0.0), 0.2)
    joint.compile(keras.optimizers.SGD(0.2), [CROSSENTROPY, CROSSENTROPY], **STEP)
    options = {"batch_size": 8, "epochs": 2, "shuffle": False, "verbose": 0}
    histories = [rocket.fit(X, Y, **options), joint.fit(X, [Y, Y], **options)]
    np.testing.assert_allclose(*(h.history["loss"] for h in histories), rtol=1e-5)
    for name in names:
        source = light if name in ("low", "light_logits") else booster
        for a, b in zip(
            source.get_layer(name).get_weights(), joint.get_layer(name).get_weights(), strict=True
        ):
            np.testing.assert_allclose(a, b, atol=1e-6)


def test_files_keep_shared_layers_one_object_and_light_has_no_booster_weight(tmp_path):
    light, booster = nets()
    rocket = kc.distillation.RocketLaunching(light, booster, 0.1)
    step(rocket, 0.1)
    assert rocket.student is light
    assert len(rocket.trainable_variables) == 8
    rocket.save(tmp_path / "rocket.keras")
    loaded = keras.models.load_model(tmp_path / "rocket.keras")
    assert loaded.student.get_layer("low") is loaded.teacher.get_layer("low")
    assert len(loaded.trainable_variables) == 8 and loaded.hint_weight == 0.1
    for a, b in ((light, loaded.student), (booster, loaded.teacher)):
        np.testing.assert_allclose(a.predict(X, verbose=0), b.predict(X, verbose=0), atol=1e-6)
    histories = [m.fit(X, Y, verbose=0, shuffle=False).history["loss"] for m in (rocket, loaded)]
    np.testing.assert_allclose(*histories, rtol=1e-5)
    light.save(tmp_path / "light.keras")
    alone = keras.models.load_model(tmp_path / "light.keras")
    sizes = [[tuple(v.shape) for v in m.variables] for m in (light, alone)]
    assert sizes[0] == sizes[1] == [(6, 4), (4,), (4, 3), (3,)]


BAD = {
    "apart": (lambda: (plain(), plain(name="b")), "must share layers"),
    "same": (lambda: (nets()[0],) * 2, "layers of its own"),
    "hint": (lambda: (*nets(), -1.0), "`hint_weight`"),
    "softmax": (lambda: nets([keras.layers.Softmax()]), "light 'light' must give logits.*softmax"),
    "classes": (lambda: (nets()[0], plain(4)), "same classes; got light: 3 and booster: 4"),
    "model": (lambda: (nets()[0], 3), "takes a keras.Model; got int"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case):
    make, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        kc.distillation.RocketLaunching(*make())
