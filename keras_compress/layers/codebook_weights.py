"""What the Codebook layers share: centres that train, and codes that stay."""

import math

import keras
import numpy as np
from keras import ops

from keras_compress import validation
from keras_compress.layers.base import initializer_stddev
from keras_compress.layers.stored_kernel import CodebookKernel, VectorCodebookKernel
from keras_compress.sharing.codebook import (
    Codebook,
    centre_count,
    check_keep_zero,
    code_dtype,
    code_offsets,
    fit_codebook,
    segment_length,
    stage_count,
)
from keras_compress.sharing.shared_take import shared_take

METHODS = ("kmeans", "pq", "rq")


class CodebookWeights:
    """Mixin, left of a base of compressed layers: a kernel of codes and centres.

    Args:
        *args: For the layer's own base.
        k: See `CodebookDense`.
        bits: See `CodebookDense`.
        method: See `CodebookDense`.
        segment: See `CodebookDense`.
        stages: See `CodebookDense`.
        keep_zero: See `CodebookDense`.
        lookup: See `CodebookDense`.
        **kwargs: For the layer's own base.
    """

    def __init__(
        self,
        *args,
        k=None,
        bits=None,
        method="kmeans",
        segment=None,
        stages=None,
        keep_zero=False,
        lookup=False,
        **kwargs,
    ):
        super().__init__(*args, **kwargs)
        self.k = centre_count(k, bits, self)
        self.method = validation.one_of("method", method, METHODS, self)
        self.stages = stage_count(method, stages, self)
        if segment is not None:
            segment = validation.positive_int("segment", segment, self)
        self.segment = segment
        check_keep_zero(keep_zero, method, segment, self.k, self)
        self.keep_zero = bool(keep_zero)
        _check_lookup(lookup, method, self)
        self.lookup = bool(lookup)

    def build_kernel(self, input_channels):
        *lead, inputs, outputs = self.kernel_shape(input_channels)
        length = segment_length(self.method, self.segment, inputs, self)
        segments = inputs // length
        books = 1 if self.method == "kmeans" else segments
        fan = math.prod(lead)
        sigma = initializer_stddev(self.kernel_initializer, fan * inputs, fan * outputs)
        # Not autocast: the bucket sum of the gradient is a long one.
        self.centres = self.add_kernel_weight(
            "centres",
            (self.stages, books, self.k - self.keep_zero, length),
            self.normal_initializer(sigma / math.sqrt(self.stages)),
            autocast=False,
        )
        self.codes = self.add_kernel_weight(
            "codes",
            (self.stages, *lead, segments, outputs),
            _RandomCodes(self.k, self.kernel_initializer.get_config().get("seed")),
            dtype=code_dtype(self.k),
            trainable=False,
        )

    def _all_centres(self):
        """Tensor `(stages, books, k, length)`."""
        centres = ops.convert_to_tensor(self.centres)
        if self.keep_zero:
            centres = ops.pad(centres, ((0, 0), (0, 0), (1, 0), (0, 0)))
        return centres

    def _wide_codes(self):
        return ops.cast(ops.convert_to_tensor(self.codes), "int32")

    def _rows(self):
        """Codes as int32 numbers of rows of all books under one another."""
        codes = self._wide_codes()
        books = (*self.centres.shape[:2], self.k, self.centres.shape[3])
        if books[0] * books[1] == 1:
            return codes
        return ops.add(codes, code_offsets(books, len(codes.shape)))

    def decoded_kernel(self, training=None):
        """The kernel as a tensor; its gradient sums over the segments of each code."""
        shape = self.kernel_shape(self.input_channels)
        length = self.centres.shape[3]
        table = ops.reshape(self._all_centres(), (-1,) if length == 1 else (-1, length))
        # Not fused in inference, so that saved graphs run without XLA.
        vectors = shared_take(table, self._rows(), bool(training))
        if length > 1:
            vectors = ops.swapaxes(vectors, -1, -2)
        kernel = vectors[0] if self.stages == 1 else ops.sum(vectors, axis=0)
        return ops.cast(ops.reshape(kernel, shape), self.compute_dtype)

    def call(self, inputs, training=None):
        return self.add_bias_and_activate(self.apply_kernel(inputs, training))

    def apply_kernel(self, inputs, training=None):
        if self.lookup:
            return self._apply_tables(inputs)
        return self.multiply(inputs, self.decoded_kernel(training))

    def _tables(self, inputs):
        """Inner products of each segment of the last axis with all centres of its book.

        Args:
            inputs: Tensor `(..., inputs)`.

        Returns:
            Tensor `(..., stages * segments * k)`.
        """
        stages, segments, k, length = self.centres.shape
        centres = ops.cast(self._all_centres(), self.compute_dtype)
        lead = tuple(-1 if size is None else size for size in inputs.shape[:-1])
        rows = ops.transpose(ops.reshape(inputs, (-1, segments, length)), (1, 0, 2))
        columns = ops.reshape(ops.transpose(centres, (1, 3, 0, 2)), (segments, length, -1))
        products = ops.reshape(ops.matmul(rows, columns), (segments, -1, stages, k))
        products = ops.transpose(products, (1, 2, 0, 3))
        width = stages * segments * k
        # Of several open axes only one can be -1.
        if lead.count(-1) > 1:
            size = ops.shape(inputs)[:-1]
            return ops.reshape(products, (*size, width))
        return ops.reshape(products, (*lead, width))

    def _look_up(self, tables, codes):
        """Sums up the table entries that the codes of each output name.

        Args:
            tables: Tensor of `_tables`.
            codes: int32 codes of one kernel position, `(stages, segments, outputs)`.
        """
        codes = ops.reshape(codes, (-1, codes.shape[-1]))
        # Of two axes: the converter takes a sum of three for a bias, and fails.
        rows = ops.add(codes, self.k * np.arange(codes.shape[0], dtype="int32")[:, None])
        return ops.sum(ops.take(tables, rows, axis=-1), axis=-2)

    def codebook(self):
        """The `kc.sharing.Codebook` of the kernel.

        Raises:
            ValueError: if the layer is not built.
        """
        self.check_built("codebook")
        return Codebook(
            ops.convert_to_numpy(self.codes),
            ops.convert_to_numpy(self._all_centres()),
            self.keep_zero,
        )

    def reconstruct_kernel(self):
        return self.codebook().decode()

    def kernel_bits(self):
        return self.codebook().storage_bits()

    def _stored_kernel(self):
        codebook = self.codebook()
        if self.method == "kmeans" and codebook.length == 1 and self.k <= 256:
            return CodebookKernel(codebook.codes[0], codebook.centres.ravel())
        return VectorCodebookKernel(codebook.codes, codebook.centres)

    @classmethod
    def fit_kernel(
        cls,
        kernel,
        *,
        k=None,
        bits=None,
        method="kmeans",
        segment=None,
        stages=None,
        keep_zero=None,
        lookup=False,
        init=None,
        seed=0,
        codebook=None,
    ):
        """Fits a codebook to a kernel: see `kc.sharing.fit_codebook`.

        Args:
            kernel: Trained kernel.
            k: As for the layer.
            bits: As for the layer.
            method: As for the layer, or `"binary"`.
            segment: As for the layer.
            stages: As for the layer.
            keep_zero: As for the layer; by default, if the kernel has zeros.
            lookup: As for the layer.
            init: First centres of k-means.
            seed: Seed of the first centres.
            codebook: A `kc.sharing.Codebook` of the kernel's shape to take, rather than to fit one;
                no other argument but `lookup` counts then.
        """
        if codebook is None:
            codebook = fit_codebook(kernel, method, k, bits, segment, stages, init, keep_zero, seed)
        elif codebook.shape != kernel.shape:
            raise ValueError(
                f"{cls.__name__}: `codebook` must be of a kernel of shape {kernel.shape}; got one "
                f"of {codebook.shape}."
            )
        _check_lookup(lookup, codebook.method, cls.__name__)
        arguments = {
            "k": codebook.k,
            "method": codebook.method,
            "segment": codebook.length,
            "stages": codebook.stages,
            "keep_zero": codebook.keep_zero,
            "lookup": lookup,
        }
        return arguments, [codebook.centres[:, :, int(codebook.keep_zero) :], codebook.codes]

    def get_config(self):
        return {
            **super().get_config(),
            "k": self.k,
            "method": self.method,
            "segment": self.segment,
            "stages": self.stages,
            "keep_zero": self.keep_zero,
            "lookup": self.lookup,
        }


def _check_lookup(lookup, method, owner):
    if lookup and method == "kmeans":
        raise ValueError(
            f"{validation.prefix(owner)}`lookup` needs a book for each segment of the inputs; got "
            "method='kmeans', which has one for all. Use method='pq' or 'rq'."
        )


class _RandomCodes(keras.initializers.Initializer):
    """Codes drawn uniformly, one seed on from that of the centres."""

    def __init__(self, k, seed=None):
        self.k = k
        self.seed = seed + 1 if isinstance(seed, int) else None

    def __call__(self, shape, dtype=None):
        codes = keras.random.randint(shape, 0, self.k, seed=self.seed)
        return ops.cast(codes, dtype or code_dtype(self.k))
