"""`deep_compress`: prune, share, fine-tune."""

import keras
import numpy as np
import pytest
from keras import layers, ops

from keras_compress import export, sharing
from keras_compress.layers import CodebookConv2D, CodebookDense
from keras_compress.sharing.kmeans import kmeans

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(96, 8, 8, 1)), RNG.integers(0, 4, 96)


def small_model():
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Conv2D(6, 3, activation="relu", name="conv"),
            layers.Flatten(),
            layers.Dense(40, activation="relu", name="hidden"),
            layers.Dense(4, name="logits"),
        ]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(0.01), loss)
    return model


def kernel_of(model, name):
    return ops.convert_to_numpy(model.get_layer(name).kernel)


def test_han_formula_4x4_weights_with_4_values_are_3_2_times_smaller():
    kernel = RNG.permutation(np.repeat([-1.0, 0.5, 1.5, 2.0], 4)).reshape(4, 4)
    book = sharing.fit_codebook(kernel, "kmeans", bits=2, keep_zero=False)
    assert 32 * kernel.size / book.storage_bits() == 3.2


def test_han_without_training_it_is_magnitude_then_k_means_begun_evenly():
    model = small_model()
    before = model.get_weights()
    result = sharing.deep_compress(
        model, {"conv": 0.5, "hid*": 0.9}, 3, 2, epochs=0, share_epochs=0
    )
    assert [type(layer) for layer in result.model.layers if layer.weights] == [
        CodebookConv2D,
        CodebookDense,
        CodebookDense,
    ]
    for name, share, bits in (("conv", 0.5, 3), ("hidden", 0.9, 2), ("logits", 0.0, 2)):
        kernel = kernel_of(model, name)
        stays = np.abs(kernel) > np.quantile(np.abs(kernel), share) if share else kernel != 0
        values = 2**bits - 1 if share else 2**bits
        centres, codes = kmeans(kernel[stays][None, :, None], values, "linear")
        expected = np.zeros_like(kernel)
        expected[stays] = centres[0, codes[0], 0]
        found = result.model.get_layer(name).reconstruct_kernel()
        np.testing.assert_array_equal(found, expected)
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_han_zeros_and_codes_stay_while_values_train():
    model = small_model()
    states = []

    class Note(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            layer = self.model.get_layer("hidden")
            if isinstance(layer, CodebookDense):
                states.append((layer.codebook().codes, layer.reconstruct_kernel()))

    result = sharing.deep_compress(
        model, 0.8, 4, 3, (X, Y), epochs=2, share_epochs=3, callbacks=[Note()], verbose=0
    )
    hidden = result.model.get_layer("hidden")
    kernel = hidden.reconstruct_kernel()
    assert np.mean(kernel == 0) == pytest.approx(0.8, abs=1e-3)
    assert len(np.unique(kernel)) <= 8
    for codes, at_epoch in states:
        np.testing.assert_array_equal(codes, hidden.codebook().codes)
        np.testing.assert_array_equal(at_epoch == 0, kernel == 0)
    assert len(states) == 3 and not np.array_equal(states[0][1], states[2][1])
    assert len(result.history["pruned"]["loss"]) == 2
    assert result.history["pruned"]["sparsity"][-1] == pytest.approx(0.8, abs=0.01)
    assert len(result.history["shared"]["loss"]) == 3
    # It goes on training as it is.
    assert result.model.compiled
    result.model.fit(X, Y, verbose=0)


def test_han_gradient_of_a_value_is_the_sum_over_its_weights():
    book = sharing.fit_codebook(
        np.where(RNG.random((12, 5)) < 0.6, 0, RNG.normal(size=(12, 5))), bits=2
    )
    dense = layers.Dense(5, use_bias=False)
    dense.build((None, 12))
    layer = CodebookDense.from_layer(dense, codebook=book)
    model = keras.Sequential([keras.Input((12,)), layer])
    rate = 0.1
    model.compile(keras.optimizers.SGD(rate), "mse")
    x, y = RNG.normal(size=(7, 12)).astype("float32"), RNG.normal(size=(7, 5)).astype("float32")
    before = layer.codebook().centres.ravel()
    model.fit(x, y, batch_size=7, epochs=1, verbose=0)
    gradient = 2 / y.size * x.T @ (x @ book.decode() - y)
    for value in range(1, book.k):
        expected = before[value] - rate * gradient[book.codes[0] == value].sum()
        assert layer.codebook().centres.ravel()[value] == pytest.approx(expected, abs=1e-6)
    assert layer.codebook().centres.ravel()[0] == 0


def test_report_counts_what_the_paper_counts():
    model = small_model()
    result = sharing.deep_compress(model, {"hidden": 0.9}, epochs=0, share_epochs=0)
    conv, hidden, logits = result.layers
    assert (hidden.layer, hidden.weights, hidden.kept) == ("hidden", 36 * 6 * 40, 0.1)
    assert (hidden.code_bits, hidden.gap_bits) == (5, 5)
    codes = result.model.get_layer("hidden").codebook().codes.ravel()
    # By hand: entries are the weights that stay and a filler for each 32 zeros between them.
    positions = np.flatnonzero(codes)
    entries = len(positions) + int(np.sum((np.diff(positions, prepend=-1) - 1) // 32))
    assert hidden.shared_bits == entries * 10 + 31 * 32
    assert hidden.bits < hidden.shared_bits
    assert hidden.huffman_code_bits < 5 and hidden.huffman_gap_bits < 5
    # No zeros: no positions.
    assert (conv.gap_bits, conv.kept, logits.gap_bits) == (0, 1.0, 0)
    assert logits.code_bits == 5 and conv.weights == 54
    text = str(result)
    assert "hidden" in text and "10.0%" in text and text == result.table().to_text()
    assert "<table>" in result._repr_html_()


def test_saved_it_is_read_again_to_the_last_bit(tmp_path):
    model = small_model()
    result = sharing.deep_compress(
        model, 0.9, data=(X, Y), epochs=1, share_epochs=1, layers=["hidden"], verbose=0
    )
    archive = result.save(tmp_path / "model.kcz")
    again = export.load_archive(archive.path)
    for old, new in zip(result.model.get_weights(), again.get_weights(), strict=True):
        assert old.tobytes() == new.tobytes()
    [codes] = [w for w in archive.weights if w.shape == (1, 216, 40)]
    # To the bytes of the report: the file may take other gaps than of 5 bits.
    [kernel] = result.layers
    values = 31 * 4
    assert codes.kind == "sparse"
    assert codes.nbytes < 1.1 * (kernel.bits / 8 - values) + 150


def test_datasets_of_batches_with_and_without_a_length():
    model = small_model()
    tf = pytest.importorskip("tensorflow")
    dataset = tf.data.Dataset.from_tensor_slices((X, Y)).batch(32)
    for data in (dataset, dataset.filter(lambda x, y: True)):
        result = sharing.deep_compress(model, 0.5, data=data, epochs=1, share_epochs=0, verbose=0)
        assert [kernel.kept for kernel in result.layers] == [0.5] * 3


def test_bad_arguments():
    model = small_model()
    with pytest.raises(ValueError, match=r"10 epochs of pruning and 5 .* no `data`"):
        sharing.deep_compress(model)
    for share in (1.0, -0.1, "0.9", True, {"hidden": 1.5}):
        with pytest.raises(ValueError, match=r"`sparsity` must be a share in \[0, 1\)"):
            sharing.deep_compress(model, share, data=(X, Y))
    with pytest.raises(ValueError, match="No layer matches 'hiden'. Did you mean 'hidden'"):
        sharing.deep_compress(model, {"hiden": 0.5}, data=(X, Y))
    with pytest.raises(ValueError, match="`conv_bits` must be an integer from 1 to 12"):
        sharing.deep_compress(model, conv_bits=0, data=(X, Y))
    with pytest.raises(ValueError, match="`dense_bits` must be an integer from 1 to 12"):
        sharing.deep_compress(model, dense_bits=32, data=(X, Y))
    with pytest.raises(ValueError, match="`epochs` must be an integer from 0"):
        sharing.deep_compress(model, data=(X, Y), epochs=-1)
    with pytest.raises(ValueError, match="no layer that has a codebook form"):
        sharing.deep_compress(model, data=(X, Y), layers=layers.Flatten)
    plain = keras.Sequential([keras.Input((4,)), layers.Dense(2)])
    with pytest.raises(ValueError, match=f"model '{plain.name}' not compiled"):
        sharing.deep_compress(plain, data=(X, Y))
    plain.trainable = False
    with pytest.raises(ValueError, match="no trainable Dense or Conv2D layer"):
        sharing.deep_compress(plain, epochs=0, share_epochs=0)
    with pytest.raises(ValueError, match="deep_compress takes a keras.Model"):
        sharing.deep_compress(None)
