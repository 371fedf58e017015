"""Lopes et al.: statistics of activations, and samples made from them alone."""

import keras
import numpy as np
import pytest

import keras_compress as kc

kd = kc.distillation
(X, Y), (X_TEST, Y_TEST) = kc.datasets.digits()
X = X[:600]
# XLA compiles slowly on the TensorFlow backend, and JAX does not run a step without it.
JIT = keras.backend.backend() == "jax"


def net(units, name, tail=True):
    layers = [
        keras.Input(X.shape[1:]),
        keras.layers.Flatten(),
        keras.layers.Dense(units, activation="relu", name="first"),
        keras.layers.Dense(units, activation="relu", name="second"),
        keras.layers.Dense(10, activation="softmax" if tail else None, name="top"),
    ]
    return keras.Sequential(layers, name=name)


@pytest.fixture(scope="module")
def teacher():
    keras.utils.set_random_seed(0)
    model = net(32, "teacher")
    model.compile(keras.optimizers.Adam(0.01), "sparse_categorical_crossentropy", jit_compile=JIT)
    model.fit(X, Y[:600], epochs=15, batch_size=60, verbose=0)
    return model


def insides(model, x):
    """Activations and logits by numpy."""
    values, found = x.reshape(len(x), -1).astype("float64"), []
    for name in ("first", "second", "top"):
        kernel, bias = model.get_layer(name).get_weights()
        values = values @ kernel.astype("float64") + bias
        found.append(values if name == "top" else np.maximum(values, 0))
        values = found[-1]
    return found


@pytest.fixture(scope="module")
def recorded(teacher):
    def record(kind, **options):
        return kd.record_metadata(teacher, X, kind, batch_size=600, **options)

    return {
        "top": record("top"),
        "dropout": record("top", dropout=0.5, masks=4),
        "all_layers": record("all_layers"),
        "spectral": record("spectral"),
    }


def test_statistics_equal_those_of_numpy(teacher, recorded):
    first, second, logits = insides(teacher, X)
    classes = logits.argmax(1)
    top, layers, dropout = (recorded[key] for key in ("top", "all_layers", "dropout"))
    assert layers.layers == ["first", "second"]
    for place, c in enumerate(top.classes):
        rows = classes == c
        assert top.counts[place] == rows.sum()
        np.testing.assert_allclose(top.means[0][place], logits[rows].mean(0), atol=1e-4)
        covariance = np.cov(logits[rows].T, bias=True)
        np.testing.assert_allclose(top.spreads[0][place], covariance, atol=1e-3)
        for feature, mean, spread in zip(
            (first, second, logits), layers.means, layers.spreads, strict=True
        ):
            np.testing.assert_allclose(mean[place], feature[rows].mean(0), atol=1e-4)
            np.testing.assert_allclose(spread[place], feature[rows].var(0), atol=1e-3)
        # Dropout masks on what the last layer takes, scaled as the layer scales.
        kernel, bias = teacher.get_layer("top").get_weights()
        for mask, mean in zip(dropout.masks, dropout.means, strict=True):
            assert set(np.unique(mask)) == {0, 2}
            want = (second[rows] * mask).mean(0) @ kernel + bias
            np.testing.assert_allclose(mean[place], want, atol=1e-4)


def test_spectral_basis_is_that_of_the_covariance_of_all_units(teacher, recorded):
    meta = recorded["spectral"]
    parts = [part - part.mean(0) for part in insides(teacher, X)]
    rows = np.concatenate([part / np.sqrt(np.square(part).sum(1).mean()) for part in parts], 1)
    values, vectors = np.linalg.eigh(np.cov(rows.T, bias=True))
    share = np.cumsum(values[::-1]) / values.sum()
    count = meta.basis.shape[1]
    assert share[count - 1] >= 0.95 > share[count - 2]
    want = vectors[:, ::-1][:, :count]
    np.testing.assert_allclose(meta.basis @ meta.basis.T, want @ want.T, atol=2e-2)
    coefficients = rows @ meta.basis
    classes = insides(teacher, X)[2].argmax(1)
    rest = np.square(rows).sum(1) - np.square(coefficients).sum(1)
    for place, c in enumerate(meta.classes):
        np.testing.assert_allclose(
            meta.means[0][place], coefficients[classes == c].mean(0), atol=1e-3
        )
        np.testing.assert_allclose(meta.means[1][place], rest[classes == c].mean(), atol=1e-3)


@pytest.mark.parametrize("key", ["top", "all_layers", "spectral"])
def test_distance_is_zero_for_the_data_and_equals_the_formula(key, teacher, recorded):
    meta = recorded[key]
    assert meta.distance(teacher, X) < 1e-4
    if key == "spectral":
        return
    other = X + np.random.default_rng(0).normal(0, 0.1, X.shape)
    features = insides(teacher, other)
    classes, want = features[2].argmax(1), 0.0
    features = features[2:] if key == "top" else features
    for feature, mean, spread in zip(features, meta.means, meta.spreads, strict=True):
        full = spread.ndim == 3
        variances = np.array([np.diag(s) if full else s for s in spread]).mean(1)
        scale = np.average(variances, weights=meta.counts)
        for place, c in enumerate(meta.classes):
            rows = feature[classes == c]
            found = np.cov(rows.T, bias=True) if full else rows.var(0)
            error = np.square(rows.mean(0) - mean[place]).sum() / scale
            error += np.square(found - spread[place]).sum() / scale**2
            want += len(rows) / len(X) * error / len(mean[place])
    assert meta.distance(teacher, other) == pytest.approx(want, rel=1e-3)


def test_file_holds_no_sample_and_gives_the_same_back(teacher, recorded, tmp_path):
    few = kd.record_metadata(teacher, X[:450], "spectral", energy=0.5, batch_size=450)
    few.save(tmp_path / "few.npz")
    many = kd.record_metadata(teacher, X, "spectral", energy=0.5, batch_size=600)
    many.save(tmp_path / "many.npz")
    files = [np.load(tmp_path / f"{name}.npz", allow_pickle=False) for name in ("few", "many")]
    shapes = [{key: file[key].shape for key in file} for file in files]
    axes = {size for shape in shapes[1].values() for size in shape}
    assert len(X) not in axes and shapes[0].keys() == shapes[1].keys()
    samples = [X.reshape(len(X), -1), *insides(teacher, X)]
    for meta in (many, recorded["top"], recorded["all_layers"]):
        for mean in meta.means:
            for rows in samples:
                if rows.shape[1] == mean.shape[1]:
                    assert np.abs(rows[:, None] - mean).max(-1).min() > 1e-2
    again = kd.Metadata.load(tmp_path / "many.npz")
    assert again.distance(teacher, X_TEST) == many.distance(teacher, X_TEST)
    (tmp_path / "few.npz").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="damaged"):
        kd.Metadata.load(tmp_path / "few.npz")


@pytest.fixture(scope="module")
def synthetic(teacher, recorded):
    return {
        key: kd.synthesize(teacher, meta, 300, bounds=(0, 1), steps=200, batch_size=300)
        for key, meta in recorded.items()
        if key in ("dropout", "spectral")
    }


def test_statistics_of_synthesised_samples_approach_the_recorded(teacher, recorded, synthetic):
    noise = np.random.default_rng(0).uniform(size=(300, *X.shape[1:]))
    logits = insides(teacher, noise)[2]
    for key, x in synthetic.items():
        assert x.shape == (300, *X.shape[1:]) and x.min() >= 0 and x.max() <= 1
        meta = recorded[key]
        # The classes' shares are the recorded ones, while noise falls into few.
        share = np.bincount(insides(teacher, x)[2].argmax(1), minlength=10) / 300
        assert np.abs(share[meta.classes] - meta.counts / meta.counts.sum()).max() < 0.05
        assert np.bincount(logits.argmax(1)).max() > 100
        assert meta.distance(teacher, x) < 0.1 * meta.distance(teacher, noise)


def test_student_without_any_sample_beats_chance_by_far(teacher, synthetic):
    student = net(16, "student", tail=False)
    loss = kd.LogitsDistillation(4.0, teacher_from_logits=False)
    distiller = kd.Distiller(teacher, student, loss, alpha=1.0)
    distiller.compile(keras.optimizers.Adam(0.02), jit_compile=JIT)
    distiller.fit(synthetic["spectral"], epochs=25, batch_size=60, verbose=0)
    # Chance is 0.1; on the noise that synthesis starts from the student gets to about 0.3.
    assert (insides(student, X_TEST)[2].argmax(1) == Y_TEST).mean() > 0.65


def test_other_models():
    """Two inputs, a convolution without a Dense head, regression; shares rounded to n."""
    one, two = keras.Input((4, 4, 1), name="one"), keras.Input((3,), name="two")
    maps = keras.layers.Conv2D(2, 3, name="maps")(one)
    joined = keras.layers.Concatenate()([keras.layers.GlobalAveragePooling2D()(maps), two])
    model = keras.Model({"one": one, "two": two}, joined)
    rng = np.random.default_rng(0)
    x = {"one": rng.normal(size=(40, 4, 4, 1)), "two": rng.normal(2, 1, (40, 3))}
    meta = kd.record_metadata(model, x, "all_layers", by_class=False, batch_size=16)
    assert meta.layers == ["maps"] and [mean.shape for mean in meta.means] == [(1, 8), (1, 5)]
    np.testing.assert_allclose(meta.means[1][0, 2:], x["two"].mean(0), rtol=1e-4)
    made = kd.synthesize(model, meta, 31, steps=100, batch_size=16, learning_rate=0.1)
    assert made["one"].shape == (31, 4, 4, 1)
    np.testing.assert_allclose(made["two"].mean(0), x["two"].mean(0), atol=0.2)


def test_bad_input(teacher, recorded):
    record, meta = kd.record_metadata, recorded["top"]
    other = net(8, "other")
    open_sizes = keras.Sequential(
        [keras.Input((None, None, 1)), keras.layers.Conv2D(2, 3), keras.layers.GlobalMaxPooling2D()]
    )
    wide = keras.Sequential([keras.Input((2,)), keras.layers.Dense(5000), keras.layers.Dense(2)])
    for make, message in (
        (lambda: record(teacher, X, "all"), "Did you mean 'all_layers'"),
        (lambda: record(teacher, X[:12], "top"), "fewer than 5 samples"),
        (lambda: record(teacher, X[:3], "top", by_class=False), "fewer than 5 samples"),
        (lambda: record(teacher, X, "spectral", dropout=0.5), "`dropout` goes with kind='top'"),
        (lambda: record(teacher, X, "top", layers="first"), "`layers` with the other kinds"),
        (lambda: record(teacher, X, layers="frist"), "mean 'first'"),
        (lambda: record(teacher, X, energy=0.0), "`energy`"),
        (lambda: record(wide, np.zeros((9, 2))), "5002 units.*choose some by `layers`"),
        (lambda: kd.synthesize(other, meta, 10), "not of the weights"),
        (lambda: meta.distance(other, X), "not of the weights"),
        (lambda: kd.synthesize(teacher, meta, 0), "`n`"),
        (lambda: kd.synthesize(teacher, meta, 10, bounds=(1, 0)), "`bounds`"),
        (lambda: kd.synthesize(teacher, "nowhere.npz", 10), "no metadata at"),
    ):
        with pytest.raises(ValueError, match=message):
            make()
    open_meta = record(open_sizes, np.random.rand(9, 5, 5, 1), "top", by_class=False)
    with pytest.raises(ValueError, match="open sizes"):
        kd.synthesize(open_sizes, open_meta, 10)
