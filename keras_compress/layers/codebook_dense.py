"""CodebookDense: a dense layer whose kernel is codes of a codebook."""

import math

import keras

from keras_compress.layers.codebook_weights import CodebookWeights
from keras_compress.layers.compressed_dense import CompressedDense
from keras_compress.layers.stored_layers import StoredDense


@keras.saving.register_keras_serializable(package="keras_compress")
class CodebookDense(CodebookWeights, CompressedDense):
    """Dense layer whose weights are drawn from a codebook: only codes and centres are stored.

    - `method="kmeans"`: one book of `k` values for the whole kernel (Deep Compression).
    - `method="pq"`: product quantisation. The weights of an output are cut into segments along the
      inputs, and each place of a segment has a book of `k` vectors: `log2(k) / segment` bits a
      weight.
    - `method="rq"`: residual quantisation: a segment is the sum of one vector from each of `stages`
      books.

    Codes stay as they are; the centres train, and the gradient of a centre is the sum of those of
    all weights that share it. With `keep_zero` the first value is zero for good, so that pruned
    weights stay pruned.

    What it buys: a .tflite that holds the codes, at `log2(k)` bits each, and the centres in int8.
    They are decoded once, when the file is loaded, into int8 weights. Codes of single weights with
    more than 16 values become plain int8, or stay codes with `optimize_for="size"`. In Keras the
    kernel is decoded in every call.

    `lookup=True` computes as Q-CNN does: the inner products of each input segment with its `k`
    centres once, then for each output a sum of table entries. That is fewer multiplications where
    `k` is below the number of outputs, but gathers are slow on most processors, and in a .tflite
    the codes take 4 bytes each.

    `from_layer` fits the codebook to the trained kernel (`kc.sharing.fit_codebook`); it also takes
    `method="binary"`, `init=`, `seed=`, and `codebook=`, one that is fitted already.

    Args:
        units: Size of the output.
        activation: Activation function.
        use_bias: Whether a bias is added. It is not coded.
        k: Centres of a book, at most 65536; by default 16. `from_layer` takes fewer where there are
            fewer vectors.
        bits: `log2` of `k`, in the place of it.
        method: `"kmeans"`, `"pq"` or `"rq"`.
        segment: Weights of a segment, a divisor of the input size; by default 1 for `"kmeans"`, 4
            (or the largest divisor that 4 and the input size share) for `"pq"`, the whole input for
            `"rq"`.
        stages: Stages of `"rq"`, by default 2.
        keep_zero: Whether the first value is zero, for `"kmeans"` of single weights. `from_layer`
            keeps zeros by default, if there are any.
        lookup: Whether inner products are looked up in tables; not for `"kmeans"`.
        **kwargs: The other arguments of `keras.layers.Dense`; `kernel_initializer` gives the spread
            of the kernel, regularizer and constraint of the kernel act on the centres.

    Input shape:
        `(batch, ..., input_dim)`.

    Output shape:
        `(batch, ..., units)`.

    Raises:
        ValueError: if an argument is not of these, or they do not go together.

    Reference:
        Gong, Liu, Yang, Bourdev, "Compressing Deep Convolutional Networks Using Vector
        Quantization", 2014.
        Han, Mao, Dally, "Deep Compression", 2016.
        Wu, Leng, Wang, Hu, Cheng, "Quantized Convolutional Neural Networks for Mobile Devices",
        2016.

    Example:

    >>> layer = CodebookDense(256, method="pq", segment=4, k=16, use_bias=False)
    >>> layer.build((None, 512))
    >>> 32 * 512 * 256 / layer.storage_bits()
    10.666666666666666
    >>> layer.expand().kernel.shape == (512, 256)
    True
    """

    def __init__(
        self,
        units,
        activation=None,
        use_bias=True,
        *,
        k=None,
        bits=None,
        method="kmeans",
        segment=None,
        stages=None,
        keep_zero=False,
        lookup=False,
        **kwargs,
    ):
        super().__init__(
            units,
            activation=activation,
            use_bias=use_bias,
            k=k,
            bits=bits,
            method=method,
            segment=segment,
            stages=stages,
            keep_zero=keep_zero,
            lookup=lookup,
            **kwargs,
        )

    def _apply_tables(self, inputs):
        return self._look_up(self._tables(inputs), self._wide_codes())

    def kernel_macs(self):
        if not self.lookup:
            return super().kernel_macs()
        # An inner product with each centre, then one addition for each code.
        return self.stages * self.k * self.input_channels + math.prod(self.codes.shape)

    def export_form(self):
        """Codes and centres, decoded once when the .tflite is loaded; tables stay tables."""
        return self if self.lookup else StoredDense.of(self, self._stored_kernel())
