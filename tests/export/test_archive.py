"""`.kcz` archives: exact, small, and hard to break."""

import contextlib
import json
import pathlib
import resource
import struct
import zlib

import keras
import numpy as np
import pytest
from keras import layers, ops

import keras_compress as kc
from keras_compress.export import ArchiveError, archive_to_tflite, load_archive, save_archive
from keras_compress.export.archive_config import build_model, config_of
from keras_compress.export.archive_format import DTYPES, Cursor, numpy_dtype
from keras_compress.export.archive_state import state_of
from keras_compress.export.archive_weights import decode, encode
from tests.export.archive_mutations import join, mutation, split
from tests.layers.protocol_cases import CASES

RNG = np.random.default_rng(0)


def compressed_model():
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((10, 10, 1)),
            layers.Conv2D(4, 3, name="conv"),
            layers.BatchNormalization(),
            layers.Flatten(),
            layers.Dense(20, activation="relu", name="hidden"),
            layers.Dense(3, name="logits"),
        ],
        name="small",
    )
    share = {"hidden": 0.9}
    return kc.sharing.deep_compress(
        model, share, 3, 3, layers=["conv", "hidden"], epochs=0, share_epochs=0
    ).model


@pytest.fixture(scope="module")
def content(tmp_path_factory):
    path = tmp_path_factory.mktemp("archive") / "model.kcz"
    save_archive(compressed_model(), path)
    return path.read_bytes()


@contextlib.contextmanager
def memory_below(megabytes):
    """Fails if the process has grown by more, tensors of the backend included."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 1024 * megabytes


def load(content, tmp_path, **options):
    path = tmp_path / "changed.kcz"
    path.write_bytes(content)
    return load_archive(path, **options)


def assert_same(model, again):
    # Through JSON, which knows no tuples.
    assert config_of(again)[0] == config_of(model)[0] and not again.compiled
    before, after = state_of(model), state_of(again)
    assert list(before) == list(after)
    for name, array in before.items():
        assert (array.dtype, array.shape) == (after[name].dtype, after[name].shape)
        assert array.tobytes() == after[name].tobytes(), name


# Exact.


def test_compiled_and_trained_model_with_every_kind_of_state(tmp_path):
    inputs = keras.Input((8, 8, 1))
    x = layers.Normalization()(inputs)
    x = layers.Conv2D(4, 3, dtype="mixed_bfloat16")(x)
    x = layers.Dropout(0.5)(layers.Flatten()(layers.BatchNormalization()(x)))
    y = layers.Dense(3, dtype="bfloat16")(layers.Dense(6, dtype="float16")(x))
    z = keras.Sequential([layers.Dense(3, activation="gelu"), layers.ReLU()])(x)
    shared = layers.Dense(2, kernel_regularizer="l2", name="twice")
    model = keras.Model(inputs, [shared(y), shared(z) + ops.relu(shared(z))])
    model.compile("adam", "mse", metrics=[["mae"], ["mae"]])
    x, y = RNG.normal(size=(8, 8, 8, 1)), RNG.normal(size=(8, 2))
    model.fit(x, [y, y], verbose=0)
    archive = save_archive(model, tmp_path / "model.kcz")
    again = load_archive(tmp_path / "model.kcz")
    assert_same(model, again)
    assert archive.nbytes == (tmp_path / "model.kcz").stat().st_size
    for old, new in zip(model.predict(x, verbose=0), again.predict(x, verbose=0), strict=True):
        np.testing.assert_array_equal(old, new)


@pytest.mark.parametrize(
    "case", {case.cls: case for case in CASES}.values(), ids=lambda case: case.cls.__name__
)
def test_every_compressed_layer(case, tmp_path):
    model = keras.Sequential([keras.Input(case.input_shape), case.cls(**case.arguments)])
    save_archive(model, tmp_path / "model.kcz")
    assert_same(model, load_archive(tmp_path / "model.kcz"))


def test_pruned_under_masks_recurrent_and_integer_models(tmp_path):
    dense = keras.Sequential([keras.Input((64,)), layers.Dense(48), layers.Dense(4)])
    masked = kc.pruning.prune_weights(dense, "magnitude", 0.75)
    recurrent = keras.Sequential([keras.Input((4, 5)), layers.Bidirectional(layers.GRU(3))])
    integer = keras.Sequential([keras.Input((16,)), layers.Dense(8), layers.Dense(4)])
    for layer in integer.layers:
        layer.quantize("int8")
    for model in (masked, recurrent, integer):
        save_archive(model, tmp_path / "model.kcz")
        again = load_archive(tmp_path / "model.kcz")
        assert_same(model, again)
    masks = [w.kind for w in save_archive(masked, tmp_path / "model.kcz").weights]
    assert "coded" in masks or "sparse" in masks


def test_floats_that_equal_and_differ_in_bits_stay_what_they_are():
    special = np.array([0.0, -0.0, np.inf, -np.inf, 1e-45, 1.0], "float32")
    array = RNG.choice(special, (50, 60))
    bits = array.view("uint32")
    bits[0, :3] = 0x7FC00001, 0xFFC00000, 0x7F800001  # NaNs
    found = round_trip(array)[1]
    np.testing.assert_array_equal(found.view("uint32"), bits)


@pytest.mark.parametrize("name", DTYPES)
@pytest.mark.parametrize("shape", [(), (0,), (1,), (7, 5), (300, 20)])
def test_arrays_of_every_dtype(name, shape):
    dtype = numpy_dtype(name)
    raw = RNG.integers(0, 256, (*shape, dtype.itemsize), "uint8")
    raw = raw & 1 if name == "bool" else raw
    for array in (raw.view(dtype)[..., 0], np.zeros(shape, dtype)):
        _, found = round_trip(array)
        assert found.tobytes() == array.tobytes() and found.shape == shape
        assert found.dtype == dtype


def round_trip(array):
    form = encode(array)
    found = decode(form.kind, Cursor(form.payload, "test"), array.shape, array.dtype)
    return form, found


# Small.


def test_entropy_of_codes_and_gaps_is_what_a_sparse_kernel_takes():
    mask = RNG.random((300, 400)) < 0.08
    kernel = np.where(mask, RNG.choice(RNG.normal(size=31), (300, 400)), 0).astype("float32")
    form, found = round_trip(kernel)
    assert form.kind == 3
    np.testing.assert_array_equal(found, kernel)
    share = mask.mean()
    gap = -(share * np.log2(share) + (1 - share) * np.log2(1 - share)) / share
    bound = mask.sum() * (gap + np.log2(31)) / 8
    assert bound < len(form.payload) < 1.05 * bound + 31 * 4


def test_codes_cost_their_entropy():
    codes = np.minimum(RNG.geometric(0.2, (200, 500)) - 1, 200).astype("uint8")
    form, found = round_trip(codes)
    np.testing.assert_array_equal(found, codes)
    shares = np.bincount(codes.ravel()) / codes.size
    entropy = -np.sum(shares[shares > 0] * np.log2(shares[shares > 0]))
    assert entropy * codes.size / 8 < len(form.payload) < 1.03 * entropy * codes.size / 8


def test_a_grid_with_a_scale_for_each_channel_costs_its_integers():
    ints = RNG.integers(-7, 8, (90, 400)).astype("float32")
    kernel = ints * RNG.uniform(0.01, 0.1, 400).astype("float32")
    form, found = round_trip(kernel)
    assert found.tobytes() == kernel.tobytes()
    assert len(form.payload) < 1.02 * ints.size * np.log2(15) / 8 + 4 * 400
    # Off the grid by one bit in one place, it is not taken for one.
    kernel[3, 3] = np.nextafter(kernel[3, 3], np.float32(1))
    form, found = round_trip(kernel)
    assert found.tobytes() == kernel.tobytes()


def test_values_around_another_one_than_zero_are_sparse_too():
    kernel = np.full(10_000, 1.0, "float32")
    kernel[RNG.choice(10_000, 100, replace=False)] = 0.5
    form, found = round_trip(kernel)
    np.testing.assert_array_equal(found, kernel)
    assert form.kind == 3 and len(form.payload) < 250


def test_random_floats_are_no_larger_than_they_are():
    kernel = RNG.integers(0, 2**32, 5000, dtype="uint32").view("float32")
    form, found = round_trip(kernel)
    assert form.kind == 0 and len(form.payload) == kernel.nbytes
    assert found.tobytes() == kernel.tobytes()


def test_the_file_is_the_sum_of_its_rows(tmp_path):
    archive = save_archive(compressed_model(), tmp_path / "model.kcz")
    _, config, bodies = split((tmp_path / "model.kcz").read_bytes())
    assert [w.nbytes for w in archive.weights] == [len(body) + 12 for body in bodies]
    assert sum(w.nbytes for w in archive.weights) < archive.nbytes
    assert json.loads(config)["class_name"] == "Sequential"
    assert str(archive) == archive.table().to_text() and "codebook_dense/2" in str(archive)
    assert archive._repr_html_().count("<tr>") == len(archive.weights) + 2


# To LiteRT.


def test_archive_to_tflite_gives_the_file_of_the_model(tmp_path):
    model = compressed_model()
    save_archive(model, tmp_path / "model.kcz")
    lite = archive_to_tflite(tmp_path / "model.kcz", tmp_path / "model.tflite")
    assert (tmp_path / "model.tflite").read_bytes() == lite.content
    x = RNG.normal(size=(3, 10, 10, 1)).astype("float32")
    np.testing.assert_array_equal(lite.predict(x), kc.export.to_tflite(model).predict(x))
    dense = archive_to_tflite(tmp_path / "model.kcz", storage="dense")
    np.testing.assert_allclose(dense.predict(x), model.predict(x, verbose=0), atol=1e-5)


# Hard to break.


def test_300_mutations_give_an_error_or_a_model(content, tmp_path):
    rng = np.random.default_rng(0)
    outcomes = {"loaded": 0, "refused": 0}
    with memory_below(200):
        for _ in range(300):
            try:
                model = load(mutation(content, rng), tmp_path)
            except ArchiveError as error:
                outcomes["refused"] += 1
                assert str(error).startswith(str(tmp_path)) and len(str(error)) < 600
            else:
                outcomes["loaded"] += 1
                assert isinstance(model, keras.Model)
    assert outcomes["refused"] > 200 and outcomes["loaded"] > 5


def test_cut_off_anywhere(content, tmp_path):
    for size in {*range(0, 80), *range(80, len(content), 97), len(content) - 1}:
        with pytest.raises(ArchiveError):
            load(content[:size], tmp_path)
    with pytest.raises(ArchiveError, match="its header says"):
        load(content + b"\0", tmp_path)


def test_any_flipped_bit_is_found(content, tmp_path):
    for at in range(0, len(content), 29):
        changed = bytearray(content)
        changed[at] ^= 1 << at % 8
        with pytest.raises(ArchiveError):
            load(bytes(changed), tmp_path)


def test_other_files_and_versions(content, tmp_path):
    with pytest.raises(ArchiveError, match=r"is no \.kcz archive; kc\.export\.save_archive"):
        load(b"PK\3\4" + bytes(100), tmp_path)
    later = content[:8] + struct.pack("<H", 2) + content[10:]
    with pytest.raises(ArchiveError, match="is of version 2 of the format.*Update keras_compress"):
        load(later, tmp_path)
    with pytest.raises(ValueError, match="there is no file"):
        load_archive(tmp_path / "none.kcz")
    assert issubclass(ArchiveError, ValueError)


def changed_config(content, change):
    header, config, bodies = split(content)
    config = json.loads(config)
    change(config)
    return join(header, json.dumps(config).encode(), bodies)


BOMB = "the model of its configuration has|no model can be made|the number 1"


@pytest.mark.parametrize(
    ("layer", "inner", "message"),
    [
        ({}, {"units": 10**9}, BOMB),
        ({}, {"units": 2**31}, BOMB),
        ({}, {"units": 10**30}, BOMB),
        ({}, {"units": None}, "no model can be made"),
        ({"class_name": "Lambda"}, {}, "a Lambda runs code"),
        ({"class_name": "TFSMLayer"}, {"filepath": "/tmp"}, "a TFSMLayer runs code"),
        ({"class_name": "StringLookup"}, {"vocabulary": "/etc/passwd"}, "a StringLookup runs"),
        ({"module": "keras.utils", "class_name": "get_file"}, {}, "get_file is neither"),
        ({"module": "keras.config", "class_name": "enable_unsafe_deserialization"}, {}, "neither"),
        ({"module": "os", "class_name": "system"}, {}, r"os\.system is neither"),
        ({"module": None, "class_name": "__lambda__"}, {}, "__lambda__ is neither"),
        ({"registered_name": "other>Layer"}, {}, r"\(other>Layer\) is neither"),
        ({"registered_name": "keras_compress>Nothing"}, {}, "has no class 'Nothing'"),
        ({"compile_config": {"optimizer": "adam"}}, {}, "holds no loss and no optimizer"),
        ({"class_name": ["Dense"]}, {}, "whose class is no text"),
        ({"module": []}, {}, "whose class is no text"),
    ],
)
def test_hostile_configurations(content, tmp_path, layer, inner, message):
    def change(config):
        logits = config["config"]["layers"][-1]
        logits.update(layer)
        logits["config"].update(inner)

    with memory_below(100), pytest.raises(ArchiveError, match=message):
        load(changed_config(content, change), tmp_path)


def test_functions_that_the_user_registered_are_not_called(content, tmp_path):
    @keras.saving.register_keras_serializable(package="strangers")
    def activation(x):
        raise AssertionError("called")

    def change(config):
        config["config"]["layers"][-1]["config"]["activation"] = "strangers>activation"

    with pytest.raises(ArchiveError, match="is registered by another package"):
        load(changed_config(content, change), tmp_path)


def test_deep_nesting_and_text_that_is_no_json(content, tmp_path):
    header, _, bodies = split(content)
    for text in (b"[" * 10**6, b'{"a":' * 10**5, b"\xff", b"", b"[]", b"null"):
        with pytest.raises(ArchiveError):
            load(join(header, text, bodies), tmp_path)


def test_more_weights_than_the_file_is_believed(content, tmp_path):
    with pytest.raises(ArchiveError, match=r"weights take .* bytes, and at most 5,000 .*max_bytes"):
        load(content, tmp_path, max_bytes=5000)
    load(content, tmp_path, max_bytes=10**6)
    with pytest.raises(ValueError, match="`max_bytes` must be a positive integer"):
        load(content, tmp_path, max_bytes=0)
    # Records and configuration agree on 4 GB, in a file of some kilobytes.
    dense = keras.Sequential([keras.Input((8,)), layers.Dense(4, use_bias=False)])
    save_archive(dense, tmp_path / "dense.kcz")

    def change(config):
        config["config"]["layers"][0]["config"]["batch_shape"] = [None, 2**28]
        config["config"]["layers"][1]["build_config"]["input_shape"] = [None, 2**28]

    header, config, _ = split((tmp_path / "dense.kcz").read_bytes())
    config = json.loads(config)
    change(config)
    constant = struct.pack("<BBBII", 2, 0, 2, 2**28, 4) + encode(np.ones(9, "float32")).payload
    with pytest.raises(ArchiveError, match="weights take 4,294,967,296 bytes"):
        load(join(header, json.dumps(config).encode(), [constant]), tmp_path)


def test_a_bomb_of_zlib_stops_at_the_size_that_it_states(content, tmp_path):
    bomb, stated = zlib.compress(bytes(2**28), 9), struct.pack("<I", 1000)
    parts = [bomb, struct.pack("<I", zlib.crc32(bomb))]
    head = content[:12] + struct.pack("<II", 0, len(bomb)) + stated
    head += struct.pack("<Q", 36 + sum(map(len, parts)))
    content = head + struct.pack("<I", zlib.crc32(head)) + b"".join(parts)
    with memory_below(100), pytest.raises(ArchiveError, match="not decompress to the 1000 bytes"):
        load(content, tmp_path)


def test_what_was_measured_is_not_allocated_later():
    config = keras.saving.serialize_keras_object(
        keras.Sequential([keras.Input((8,)), layers.Dense(4)])
    )
    config["config"]["layers"][1]["config"]["units"] = 2**27
    with memory_below(100):
        with pytest.raises(ArchiveError):
            build_model(config, 1000, "test")
        # Where Keras gives values to variables that were made in a scope without.
        with keras.StatelessScope():
            pass


def test_a_model_is_measured_before_it_is_made():
    config = keras.saving.serialize_keras_object(
        keras.Sequential([keras.Input((8,)), layers.Dense(4)])
    )
    config.pop("compile_config", None)
    assert build_model(config, 4 * 36, "test").count_params() == 36
    with pytest.raises(ArchiveError, match="has 144 bytes of weights, and the file holds 143"):
        build_model(config, 143, "test")


# What cannot be saved.


def test_models_that_no_archive_holds(tmp_path):
    path = tmp_path / "model.kcz"

    @keras.saving.register_keras_serializable(package="own")
    class Own(layers.Layer):
        def call(self, inputs):
            return inputs

        def compute_output_shape(self, shape):
            return shape

    for layer, name in (
        (layers.Lambda(lambda x: x), "a Lambda runs code"),
        (Own(), r"\(own>Own\) is neither"),
        (layers.Dense(2, activation=lambda x: x), "own|function|neither|lambda"),
    ):
        model = keras.Sequential([keras.Input((4,)), layer])
        with pytest.raises(ValueError, match=f"(?s)cannot be in an archive: .*{name}"):
            save_archive(model, path)
    with pytest.raises(ValueError, match="is not built"):
        save_archive(keras.Sequential([layers.Dense(2)]), path)
    with pytest.raises(ValueError, match="save_archive takes a keras.Model; got int"):
        save_archive(3, path)
    model = keras.Sequential([keras.Input((4,)), layers.Dense(2)])
    with pytest.raises(ValueError, match="which is no folder"):
        save_archive(model, tmp_path / "none" / "model.kcz")
    with pytest.raises(ValueError, match="is a folder"):
        save_archive(model, tmp_path)
    assert not list(tmp_path.iterdir())


def test_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "model.kcz"
    path.write_bytes(b"before")
    model = keras.Sequential([keras.Input((4,)), layers.Dense(2)])

    def fail(*args):
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr("os.replace", fail)
        with pytest.raises(OSError, match="disk full"):
            save_archive(model, path)
    assert path.read_bytes() == b"before" and list(tmp_path.iterdir()) == [path]


def test_the_specification_has_the_numbers_of_the_code():
    text = pathlib.Path(__file__).parents[2].joinpath("docs/kcz.md").read_text()
    for number, name in enumerate(DTYPES):
        assert f"{number} {name}" in text
