"""Data sets: real digits enlarged, drawn digits that repeat, and what happens offline."""

import functools
import os
import subprocess
import sys
import urllib.error

import keras
import numpy as np
import pytest
from sklearn.datasets import load_digits

from keras_compress import datasets

SMALL = {"train": 60, "test": 20}


# Fonts are the same in every test.
distance_maps = functools.cache(datasets._distance_maps)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """No test reads or writes the cache of who runs it, Keras's included."""
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    monkeypatch.setattr("keras.src.backend.config._KERAS_DIR", str(tmp_path))
    monkeypatch.setattr(datasets, "_distance_maps", distance_maps)
    return tmp_path / "datasets"


def same(first, second):
    return all(
        np.array_equal(a, b)
        for split, other in zip(first, second, strict=True)
        for a, b in zip(split, other, strict=True)
    )


def test_digits_are_all_of_scikit_learns_and_split_without_overlap():
    (x, y), (x_test, y_test) = datasets.digits()
    scans, labels = load_digits(return_X_y=True)

    def rows(images, labels):
        return sorted(
            (*image.ravel().tolist(), int(k)) for image, k in zip(images, labels, strict=True)
        )

    together = rows(np.concatenate([x, x_test]), np.concatenate([y, y_test]))
    assert together == rows((scans / 16).astype("float32"), labels)
    assert not {image.tobytes() for image in x} & {image.tobytes() for image in x_test}


def test_digits_split_is_stratified_and_the_same_at_every_size():
    (_, y), (_, y_test) = datasets.digits()
    share = np.bincount(y_test) / (np.bincount(y) + np.bincount(y_test))
    np.testing.assert_allclose(share, 0.2, atol=0.006)
    (_, y_16), (_, y_test_16) = datasets.digits(16)
    np.testing.assert_array_equal(y, y_16)
    np.testing.assert_array_equal(y_test, y_test_16)


@pytest.mark.parametrize("size", [9, 16, 28])
def test_digits_are_enlarged_bilinearly(size):
    (small, _), _ = datasets.digits()
    (large, _), _ = datasets.digits(size)
    expected = keras.ops.image.resize(small[:50], (size, size), data_format="channels_last")
    np.testing.assert_allclose(large[:50], keras.ops.convert_to_numpy(expected), atol=1e-6)
    assert large.min() >= 0 and large.max() <= 1


def test_types_follow_the_promise():
    for (x, y), (x_test, y_test) in (datasets.digits(12), datasets.glyphs(12, **SMALL)):
        assert {a.dtype for a in (x, x_test)} == {np.dtype("float32")}
        assert {a.dtype for a in (y, y_test)} == {np.dtype("int32")}
        assert x.shape[1:] == x_test.shape[1:] == (12, 12, 1)
        assert len(x) == len(y) and len(x_test) == len(y_test)
        assert 0 <= x.min() < 0.1 and 0.9 < x.max() <= 1


def test_glyphs_repeat_in_a_fresh_process(cache):
    here = datasets.glyphs(**SMALL, seed=3)
    (file,) = cache.iterdir()
    written = dict(np.load(file))
    file.unlink()
    code = "from keras_compress import datasets; datasets.glyphs(train=60, test=20, seed=3)"
    environment = {**os.environ, "KERAS_HOME": str(cache.parent)}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
    for name, array in np.load(file).items():
        np.testing.assert_array_equal(array, written[name])
    assert same(datasets.glyphs(**SMALL, seed=3), here)


def test_glyphs_of_another_seed_or_split_are_other_pictures():
    (x, _), (x_test, _) = datasets.glyphs(**SMALL)
    (other, _), _ = datasets.glyphs(**SMALL, seed=1)
    pictures = [image.tobytes() for image in np.concatenate([x, x_test, other])]
    assert len(set(pictures)) == len(pictures)


def test_glyphs_classes_are_balanced_and_in_no_order():
    (_, y), (_, y_test) = datasets.glyphs(train=64, test=20)
    assert np.ptp(np.bincount(y, minlength=10)) == 1
    assert (np.bincount(y_test, minlength=10) == 2).all()
    assert not np.array_equal(y, np.sort(y)) and not np.array_equal(y, np.arange(64) % 10)


def test_glyphs_in_chunks_keep_every_label(monkeypatch):
    # A font whose 7 is all ink and whose other digits are none, so that a picture tells its label.
    monkeypatch.setattr(datasets, "_smooth", lambda rng, n, size, width: 0 * rng.random((n, 1, 1)))
    maps = np.full((1, 10, datasets._MAP, datasets._MAP), -9, "float32")
    maps[0, 7] = 9
    pictures, labels = datasets._draw(maps, 8, 50, np.random.default_rng(0), chunk=7)
    bright = np.median(pictures, axis=(1, 2)) > 128
    np.testing.assert_array_equal(bright, labels == 7)


def test_distance_maps_are_digits_of_one_height():
    maps = datasets._distance_maps(("DejaVuSans",))
    ink = maps[0] > 0
    rows = ink.any(axis=2).sum(axis=1)
    np.testing.assert_allclose(rows, datasets._FILL * datasets._MAP, atol=2)
    # The outside is one piece, and each hole: two in 8, one in 0, 4, 6 and 9.
    from scipy import ndimage

    pieces = [ndimage.label(~digit)[1] for digit in ink]
    assert pieces == [2, 1, 1, 1, 2, 1, 2, 1, 3, 2]
    # Half a stroke of DejaVu Sans is about 0.065 of its height at its thickest.
    assert 0.04 < maps[0, 1].max() < 0.12


def test_train_and_test_fonts_differ():
    assert not set(datasets.TRAIN_FONTS) & set(datasets.TEST_FONTS)


def test_glyphs_come_from_the_cache_the_second_time(cache, monkeypatch):
    first = datasets.glyphs(**SMALL)
    (file,) = cache.iterdir()
    assert file.suffix == ".npz"
    monkeypatch.setattr(datasets, "_draw", None)
    assert same(datasets.glyphs(**SMALL), first)
    with pytest.raises(TypeError):
        datasets.glyphs(**SMALL, seed=1)


def test_glyphs_are_drawn_again_over_a_broken_cache(cache):
    first = datasets.glyphs(**SMALL)
    (file,) = cache.iterdir()
    file.write_bytes(file.read_bytes()[:100])
    with pytest.warns(UserWarning, match="drawn again"):
        assert same(datasets.glyphs(**SMALL), first)
    assert same(datasets.glyphs(**SMALL), first)


def test_glyphs_without_a_cache_folder_come_with_a_warning(cache):
    cache.write_text("a file where the folder should be")
    with pytest.warns(UserWarning, match="set KERAS_HOME"):
        (x, _), _ = datasets.glyphs(**SMALL)
    assert len(x) == 60


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: datasets.digits(7), "`size` must be an integer >= 8; got size=7"),
        (lambda: datasets.digits(16.0), "`size` must be a positive integer"),
        (lambda: datasets.glyphs(size=4), "glyphs: `size` must be an integer >= 8"),
        (lambda: datasets.glyphs(train=0), "glyphs: `train` must be a positive integer"),
        (lambda: datasets.glyphs(test=-1), "glyphs: `test` must be a positive integer"),
        (lambda: datasets.glyphs(seed=-1), "glyphs: `seed` must be an integer >= 0"),
        (lambda: datasets.keras_dataset("mnits"), "Did you mean 'mnist'"),
    ],
)
def test_bad_arguments_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    ("name", "file"),
    [("mnist", "mnist.npz"), ("cifar10", "cifar-10-batches-py-target_archive")],
)
@pytest.mark.parametrize(
    "failure",
    [
        urllib.error.URLError("no route"),
        urllib.error.HTTPError("url", 503, "unavailable", None, None),
        ConnectionResetError("reset"),
    ],
)
def test_offline_says_where_to_put_the_file_and_what_needs_none(
    name, file, failure, cache, monkeypatch
):
    targets = []

    def urlretrieve(url, target, hook):
        targets.append((url, target))
        raise failure

    monkeypatch.setattr("keras.src.utils.file_utils.urlretrieve", urlretrieve)
    with pytest.raises(ValueError, match='or use data .* data="digits"') as raised:
        datasets.keras_dataset(name)
    # What we tell the user to fetch and where to put it is what Keras itself would have done.
    ((url, target),) = targets
    assert target == str(cache / file)
    assert f"Fetch {url} " in str(raised.value) and f"put it at {target}," in str(raised.value)


def test_other_errors_of_keras_are_not_called_offline(monkeypatch):
    def load_data():
        raise ValueError("Incomplete or corrupted file detected.")

    monkeypatch.setattr(keras.datasets.mnist, "load_data", load_data)
    with pytest.raises(ValueError, match="^Incomplete or corrupted"):
        datasets.keras_dataset("mnist")


@pytest.mark.parametrize(
    ("name", "shape", "label_shape"),
    [("mnist", (5, 28, 28), (5,)), ("cifar10", (5, 32, 32, 3), (5, 1))],
)
def test_keras_data_in_our_form(name, shape, label_shape, monkeypatch):
    rng = np.random.default_rng(0)
    x = rng.integers(256, size=shape, dtype="uint8")
    y = rng.integers(10, size=label_shape, dtype="uint8")
    monkeypatch.setattr(
        getattr(keras.datasets, name), "load_data", lambda: ((x, y), (x[:2], y[:2]))
    )
    (x_train, y_train), (x_test, y_test) = datasets.keras_dataset(name)
    channels = shape[3] if len(shape) == 4 else 1
    np.testing.assert_array_equal(np.rint(x_train * 255), x.reshape(*shape[:3], channels))
    np.testing.assert_array_equal(y_train, y.ravel())
    assert x_train.dtype == np.float32 and y_train.dtype == np.int32
    assert len(x_test) == len(y_test) == 2
