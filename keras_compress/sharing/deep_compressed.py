"""What `deep_compress` returns: the compressed model and a report on it."""

import dataclasses

import numpy as np

from keras_compress.layers import CodebookConv2D
from keras_compress.sharing.gaps import CONV_BITS, DENSE_BITS, gaps_of
from keras_compress.sharing.huffman import HuffmanCode
from keras_compress.tables import Table


@dataclasses.dataclass(frozen=True)
class CompressedKernel:
    """One kernel after Deep Compression, in the columns of the reference's tables.

    Attributes:
        layer: Name of the layer.
        weights: Number of weights.
        kept: Share of them that is not zero.
        code_bits: Bits of a code.
        huffman_code_bits: The same after Huffman coding, on average.
        gap_bits: Bits of a difference of positions.
        huffman_gap_bits: The same after Huffman coding, on average.
        shared_bits: Bits of the kernel before Huffman coding: codes, differences, values.
        bits: Bits of it afterwards.
    """

    layer: str
    weights: int
    kept: float
    code_bits: int
    huffman_code_bits: float
    gap_bits: int
    huffman_gap_bits: float
    shared_bits: int
    bits: int

    @classmethod
    def of_layer(cls, layer):
        """Of a `CodebookDense` or `CodebookConv2D` of single weights."""
        book = layer.codebook()
        codes = book.codes.ravel()
        kept = codes != 0 if book.keep_zero else np.ones(codes.shape, bool)
        entries, gaps, gap_bits = codes, np.zeros(0, int), 0
        # Where every weight stays, there are no positions to store.
        if not kept.all():
            gap_bits = CONV_BITS if isinstance(layer, CodebookConv2D) else DENSE_BITS
            gaps, real = gaps_of(np.flatnonzero(kept), gap_bits)
            entries = np.zeros(len(gaps), codes.dtype)
            entries[real] = codes[kept]
        code_bits = (book.k - 1).bit_length()
        mean_code, mean_gap = _mean_bits(entries), _mean_bits(gaps)
        values = 32 * (book.k - book.keep_zero)
        return cls(
            layer.name,
            codes.size,
            float(kept.mean()),
            code_bits,
            mean_code,
            gap_bits,
            mean_gap,
            len(entries) * (code_bits + gap_bits) + values,
            round(len(entries) * (mean_code + mean_gap)) + values,
        )


class DeepCompression:
    """A compressed model, and what its kernels take: what `deep_compress` returns.

    Args:
        model: The compressed model.
        layers: Its compressed layers.
        history: Dict with what `fit` logged when weights went (`"pruned"`) and when values were
            trained (`"shared"`).
    """

    def __init__(self, model, layers, history):
        self.model = model
        self.history = history
        self._layers = list(layers)

    @property
    def layers(self):
        """A `CompressedKernel` for each compressed layer, of its weights as they are now."""
        return [CompressedKernel.of_layer(layer) for layer in self._layers]

    def table(self):
        """A row for each kernel and one for all: the reference's tables 2 and 3."""
        kernels = self.layers
        rows = [
            [k.layer, f"{k.weights:,}", f"{k.kept:.1%}", f"{k.code_bits}",
             f"{k.huffman_code_bits:.1f}", f"{k.gap_bits}", f"{k.huffman_gap_bits:.1f}",
             _ratio(k.weights, k.shared_bits), _ratio(k.weights, k.bits)]
            for k in kernels
        ]  # fmt: skip
        weights = sum(k.weights for k in kernels)
        kept = sum(k.kept * k.weights for k in kernels) / weights
        ratios = [_ratio(weights, sum(bits)) for bits in zip(*_sizes(kernels), strict=True)]
        rows.append(["all", f"{weights:,}", f"{kept:.1%}", "", "", "", "", *ratios])
        header = [
            "layer", "weights", "kept", "code bits", "Huffman", "gap bits", "Huffman",
            "smaller", "with Huffman",
        ]  # fmt: skip
        return Table(header, rows)

    def save(self, path):
        """Writes the model to a `.kcz` archive: see `kc.export.save_archive`.

        Args:
            path: The file.

        Returns:
            A `kc.export.Archive`.
        """
        # Up the floors, so only here.
        from keras_compress.export import save_archive

        return save_archive(self.model, path)

    def __repr__(self):
        return self.table().to_text()

    def _repr_html_(self):
        return self.table().to_html()


def _mean_bits(symbols):
    if not symbols.size:
        return 0.0
    counts = np.bincount(symbols)
    return HuffmanCode.of_counts(counts).mean_length(counts)


def _sizes(kernels):
    return [(k.shared_bits, k.bits) for k in kernels]


def _ratio(weights, bits):
    return f"{32 * weights / max(bits, 1):.1f}x"
