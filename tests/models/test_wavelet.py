"""Wavelet-like auto-encoder, and classifiers that it makes work at half the resolution."""

import keras
import numpy as np
import pytest

import keras_compress as kc
from keras_compress.models import WaveletAutoEncoder, accelerate_by_wavelet

RNG = np.random.default_rng(0)
layers = keras.layers


def numpy(tensor):
    return keras.ops.convert_to_numpy(tensor)


def haar(x):
    """Means and differences of 2x2 pixels, band by band of each channel."""
    x = np.pad(x, ((0, 0), (0, x.shape[1] % 2), (0, x.shape[2] % 2), (0, 0)))
    a, b = x[:, ::2, ::2], x[:, ::2, 1::2]
    c, d = x[:, 1::2, ::2], x[:, 1::2, 1::2]
    bands = np.stack([a - b + c - d, a + b - c - d, a - b - c + d], -1) / 4
    return (a + b + c + d) / 4, bands.reshape(*bands.shape[:3], -1)


@pytest.fixture(scope="module")
def photographs():
    """Patches of scikit-learn's photograph: 24x24 pixels, 3 channels, with their mean taken off."""
    from sklearn.datasets import load_sample_image

    image = load_sample_image("china.jpg").astype("float32") / 255
    corners = RNG.integers(0, (400, 600), (64, 2))
    patches = np.stack([image[i : i + 24, j : j + 24] for i, j in corners])
    return patches - patches.mean()


@pytest.mark.parametrize(
    "options, size",
    [({}, (8, 6)), ({}, (7, 9)), ({"filters": (6, 8, 7), "kernel_size": 4}, (7, 8))],
)
def test_wae_with_haar_weights_is_haars_transform_and_reconstructs_exactly(options, size):
    wae = WaveletAutoEncoder(**options)
    x = RNG.normal(size=(2, *size, 3)).astype("float32")
    low, high = (numpy(part) for part in wae.encoder(x))
    # Half the resolution, odd sizes padded.
    assert low.shape == (2, -(-size[0] // 2), -(-size[1] // 2), 3)
    for part, expected in zip((low, high), haar(x), strict=True):
        np.testing.assert_allclose(part, expected, atol=1e-6)
    decoded = numpy(wae(x))
    assert decoded.shape == x.shape
    np.testing.assert_allclose(decoded, x, atol=1e-6)


def test_wae_energy_of_the_high_part_is_far_below_that_of_the_low_on_photographs(photographs):
    low, high = WaveletAutoEncoder().encoder(photographs)
    energy = np.square(numpy(high)).sum() / np.square(numpy(low)).sum()
    assert energy < 0.1


def test_wae_training_from_random_weights_reconstructs_and_moves_energy_to_the_low_part(
    photographs, tmp_path
):
    keras.utils.set_random_seed(0)
    wae = WaveletAutoEncoder(initial="random", energy_weight=0.3)
    low, high = (numpy(part) for part in wae.encoder(photographs))
    assert np.square(high).sum() > np.square(low).sum()
    wae.compile(keras.optimizers.Adam(0.05), jit_compile=False)
    expected = np.mean((numpy(wae(photographs)) - photographs) ** 2) + 0.3 * np.mean(high**2)
    before = wae.evaluate(photographs, verbose=0)
    np.testing.assert_allclose(before, expected, rtol=1e-4)
    wae.fit(photographs, batch_size=32, epochs=40, verbose=0)
    low, high = (numpy(part) for part in wae.encoder(photographs))
    error = np.mean((numpy(wae(photographs)) - photographs) ** 2)
    assert error < 0.02 * np.mean(photographs**2)
    assert np.square(high).sum() < 0.2 * np.square(low).sum()
    wae.save(tmp_path / "wae.keras")
    again = keras.models.load_model(tmp_path / "wae.keras")
    np.testing.assert_array_equal(numpy(again(photographs)), numpy(wae(photographs)))
    assert again.get_config() == wae.get_config()


def classifier(head, size=(24, 20), pools=1, padding="same"):
    """Two convolutions with batch normalisation, then pooling layers and a head."""
    keras.utils.set_random_seed(1)
    x = inputs = keras.Input((*size, 3))
    x = layers.Conv2D(32, 3, padding=padding, name="conv1")(x)
    x = layers.ReLU()(layers.BatchNormalization(name="norm")(x))
    x = layers.Conv2D(32, 3, padding="same", activation="relu", name="conv2")(x)
    for number in range(pools):
        x = layers.MaxPooling2D(name=f"pool{number + 1}")(x)
    x = layers.GlobalAveragePooling2D(name="pool")(x) if head == "global" else layers.Flatten()(x)
    x = layers.Dropout(0.2)(x)
    model = keras.Model(inputs, layers.Dense(5, name="logits")(x), name="net")
    norm = model.get_layer("norm")
    norm.set_weights([RNG.uniform(0.5, 1.5, 32).astype("float32") for _ in range(4)])
    return model


def weights(model, name):
    return [numpy(w) for w in model.get_layer(name).weights]


def test_wae_front_end_and_classifier_begin_as_the_classifier_at_half_resolution():
    model = classifier("global")
    fast = accelerate_by_wavelet(model, WaveletAutoEncoder())
    x = RNG.normal(size=(4, 24, 20, 3)).astype("float32")
    small = classifier("global", (12, 10))
    small.set_weights(model.get_weights())
    np.testing.assert_allclose(numpy(fast(x)), numpy(small(haar(x)[0])), atol=1e-5)
    # The convolutions of the classifier take a quarter, and the rest is little.
    share = kc.profile.macs(fast) / kc.profile.macs(model)
    assert 0.25 < share < 0.27
    assert fast.get_layer("high_add").output.shape == (None, 6, 5, 32)


def test_wae_trains_jointly_with_its_classifier_and_leaves_the_given_models_alone(tmp_path):
    model, wae = classifier("global"), WaveletAutoEncoder()
    model.compile(
        keras.optimizers.Adam(0.01), keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    )
    # Classes that differ in the high frequencies only.
    signs = np.stack([np.ones((2, 2)), [[1, -1], [1, -1]], [[1, 1], [-1, -1]], [[1, -1], [-1, 1]]])
    y = np.arange(64) % 4
    x = np.tile(signs[y], (1, 12, 10))[..., None] * RNG.uniform(0.5, 1, (64, 24, 20, 3))
    kept = [*model.get_weights(), *wae.get_weights()]
    fast = accelerate_by_wavelet(model, wae)
    before = fast.get_weights()
    fast.fit(x, y, batch_size=16, epochs=8, verbose=0)
    assert np.mean(numpy(fast(x)).argmax(-1) == y) > 0.9
    moved = [np.abs(a - b).max() > 0 for a, b in zip(before, fast.get_weights(), strict=True)]
    assert all(moved)
    for old, new in zip(kept, [*model.get_weights(), *wae.get_weights()], strict=True):
        np.testing.assert_array_equal(old, new)
    if keras.backend.backend() == "tensorflow":
        lite = kc.export.to_tflite(fast, tmp_path / "fast.tflite")
        x = x.astype("float32")
        np.testing.assert_allclose(lite.predict(x), numpy(fast(x)), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("size", [(24, 20), (25, 19)])
def test_wae_flatten_keeps_its_positions_where_a_pooling_less_makes_up_for_it(size):
    model = classifier("flatten", size)
    fast = accelerate_by_wavelet(model, WaveletAutoEncoder())
    names = [layer.name for layer in fast.layers]
    if size == (24, 20):
        assert "pool1" not in names
        for old, new in zip(weights(model, "logits"), weights(fast, "logits"), strict=True):
            np.testing.assert_array_equal(old, new)
        maps = classifier("flatten", (12, 10), 0)
        for name in ("conv1", "norm", "conv2", "logits"):
            maps.get_layer(name).set_weights(weights(model, name))
        x = RNG.normal(size=(2, *size, 3)).astype("float32")
        np.testing.assert_allclose(numpy(fast(x)), numpy(maps(haar(x)[0])), atol=1e-5)
    else:
        # 13x10 or 6x5 positions are not the 12x9 of before.
        assert "pool1" in names and weights(fast, "logits")[0].shape == (6 * 5 * 32, 5)


def test_wae_flatten_of_other_positions_gets_a_kernel_resampled_by_area():
    model = classifier("flatten", (11, 8), 0, "valid")
    fast = accelerate_by_wavelet(model, WaveletAutoEncoder())
    old = weights(model, "logits")[0].reshape(9, 6, 32, 5)
    new = weights(fast, "logits")[0].reshape(4, 2, 32, 5)
    # Each new column holds three old ones; a row two and a quarter.
    rows = np.zeros((4, 9))
    for i in range(36):
        rows[i // 9, i // 4] += 1 / 4
    expected = np.einsum("ir,rjcsu->ijsu", rows, old.reshape(9, 2, 3, 32, 5))
    np.testing.assert_allclose(new, expected, atol=1e-6)
    # So that a map without structure gives the same.
    np.testing.assert_allclose(new.sum((0, 1)), old.sum((0, 1)), atol=1e-5)


def test_wae_leaves_the_last_pooling_out_where_the_map_would_vanish():
    model = classifier("global", (8, 8), 3)
    fast = accelerate_by_wavelet(model, WaveletAutoEncoder())
    names = [layer.name for layer in fast.layers]
    assert "pool2" in names and "pool3" not in names
    with pytest.raises(ValueError, match="too small for this classifier at half the resolution"):
        accelerate_by_wavelet(classifier("global", (3, 3), 0, "valid"), WaveletAutoEncoder())


def test_wae_opens_nested_models_and_follows_branches():
    inner = keras.Sequential([keras.Input((16, 16, 3)), layers.Conv2D(8, 3, 2, "same", name="c")])
    x = inputs = keras.Input((16, 16, 3))
    y = keras.Model(inner.inputs[0], inner.outputs[0], name="inner")(layers.Rescaling(0.5)(x))
    z = layers.Conv2D(8, 1, 2, name="side")(x)
    y = keras.ops.relu(y + z)
    outputs = layers.Dense(2)(layers.GlobalMaxPooling2D()(y))
    model = keras.Model(inputs, outputs)
    fast = accelerate_by_wavelet(model, WaveletAutoEncoder(), name="fast")
    assert fast.name == "fast" and "inner_c" in [layer.name for layer in fast.layers]
    np.testing.assert_array_equal(weights(fast, "inner_c")[0], numpy(inner.weights[0]))


def test_wae_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match="`kernel_size` must be even"):
        WaveletAutoEncoder(kernel_size=3)
    with pytest.raises(ValueError, match="has 9 of high frequency; got high_channels=3"):
        WaveletAutoEncoder(high_channels=3)
    with pytest.raises(ValueError, match="need 6 filters.*set initial='random'"):
        WaveletAutoEncoder(filters=(16, 4))
    wae = WaveletAutoEncoder(1)
    model = classifier("global")
    with pytest.raises(ValueError, match="takes 3 channels, and `wae` 1; make Wavelet"):
        accelerate_by_wavelet(model, wae)
    with pytest.raises(ValueError, match="`wae` must be a kc.models.WaveletAutoEncoder"):
        accelerate_by_wavelet(model, model)
    with pytest.raises(ValueError, match="one image of fixed height and width"):
        accelerate_by_wavelet(
            keras.Sequential([keras.Input((None, 8, 1)), layers.GlobalMaxPooling2D()]), wae
        )
    with pytest.raises(ValueError, match="and the classifier has none"):
        accelerate_by_wavelet(
            keras.Sequential([keras.Input((8, 8, 1)), layers.Flatten(), layers.Dense(2)]), wae
        )
    normed = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Conv2D(2, 3),
            layers.Flatten(),
            layers.BatchNormalization(),
        ]
    )
    with pytest.raises(ValueError, match="only a Dense layer behind it can be made for that"):
        accelerate_by_wavelet(normed, wae)
