"""Block-circulant matrices: the product by DFT, the nearest one to a matrix, forms for inference.

A matrix of shape `(p b, q b)` that multiplies rows from the right is cut into `p x q` blocks, the
transpose of a circulant each: block `(i, j)` is given by `b` numbers `w[i, j]`, the first column
of its circulant, and has the entry `w[i, j, (s - t) mod b]` in row `t`, column `s`. Blocks are kept
as one array `vectors` of shape `(p, q, b)`; `p = q = 1` is the full circulant. The spectrum of an
output block is the sum over `i` of (spectrum of input block `i`) times (spectrum of `w[i, j]`).

Reference:
    Cheng, Yu, Feris, Kumar, Choudhary, Chang, "An Exploration of Parameter Redundancy in Deep
    Networks with Circulant Projections", 2015.
    Cooley, Tukey, "An Algorithm for the Machine Calculation of Complex Fourier Series", 1965 (two
    stages).
"""

import functools
import math

import keras
import numpy as np
from keras import ops

# In a compiled step on a CPU (4096 x 4096, 32 rows) a DFT as matmul is at least as fast as the FFT
# of TensorFlow up to 128 or 256 points, and several times slower from 512 points on.
_MATMUL_LIMIT = 128

# Below this size the matrices of a one-stage DFT are a few kilobytes: two stages gain nothing.
_ALWAYS_ONE_STAGE = 32


def block_counts(input_size, output_size, block_size):
    """Blocks `(p, q)` that cover a matrix of shape `(input_size, output_size)`."""
    return -(-input_size // block_size), -(-output_size // block_size)


def circulant_to_matrix(vectors, input_size, output_size):
    """Returns the dense float32 matrix `(input_size, output_size)` of an array `(p, q, b)`."""
    vectors = np.asarray(vectors, "float32")
    p, q, b = vectors.shape
    # A single block may be much larger than the matrix: only what is seen of it is formed.
    t, s = (np.arange(min(b, size), dtype="int32") for size in (input_size, output_size))
    blocks = vectors[:, :, (s[None, :] - t[:, None]) % b]
    matrix = blocks.transpose(0, 2, 1, 3).reshape(p * len(t), q * len(s))
    return matrix[:input_size, :output_size]


def fit_circulant(matrix, block_size):
    """Fits a block-circulant matrix in the least-squares sense.

    The optimum is the mean along each wrapped diagonal of each block, over the entries that exist
    (the last blocks may stick out of the matrix); 0 where a diagonal has none.

    Args:
        matrix: Array of shape `(input_size, output_size)`.
        block_size: Integer `b`.

    Returns:
        float32 array of shape `(p, q, b)`.
    """
    matrix = np.asarray(matrix)
    (rows, columns), b = matrix.shape, block_size
    p, q = block_counts(rows, columns, b)
    exists = (np.arange(q * b) < columns).reshape(q, b)
    sums, counts = np.zeros((p, q, b)), np.zeros((p, q, b))
    for t in range(min(b, rows)):
        # Row t of every block that has one.
        values = np.pad(matrix[t::b], ((0, 0), (0, q * b - columns))).reshape(-1, q, b)
        sums[: len(values)] += np.roll(values, -t, axis=-1)
        counts[: len(values)] += np.roll(exists, -t, axis=-1)
    return (sums / np.maximum(counts, 1)).astype("float32")


def circulant_matmul(inputs, vectors):
    """Product of `inputs` with a block-circulant matrix, by DFT; differentiable in both.

    Computed in float32 at least: in half precision the transforms would lose what the result has.

    Args:
        inputs: Tensor of shape `(rows, p b)`.
        vectors: Tensor of shape `(p, q, b)`.

    Returns:
        Tensor of shape `(rows, q b)`, of the dtype that a product of the two has.
    """
    dtype = keras.backend.result_type(inputs.dtype, vectors.dtype)
    wide = keras.backend.result_type(dtype, "float32")
    p, q, b = vectors.shape
    x = _real_dft(ops.reshape(ops.cast(inputs, wide), (-1, p, b)))
    y = _multiply_spectra(x, _real_dft(ops.cast(vectors, wide)))
    return ops.cast(ops.reshape(_inverse_real_dft(y, b), (-1, q * b)), dtype)


def _multiply_spectra(x, w):
    """Complex product of spectra `(rows, p, f)` and `(p, q, f)`, as pairs (real, imaginary)."""
    (xr, xi), (wr, wi) = x, w
    p, q, _ = wr.shape
    if p == q == 1:
        wr, wi = wr[0], wi[0]
        return xr * wr - xi * wi, xr * wi + xi * wr
    # One real matmul a frequency: [xr, xi] @ [[wr, wi], [-wi, wr]].
    x = ops.transpose(ops.concatenate([xr, xi], axis=1), (2, 0, 1))
    upper, lower = ops.concatenate([wr, wi], axis=1), ops.concatenate([-wi, wr], axis=1)
    w = ops.transpose(ops.concatenate([upper, lower], axis=0), (2, 0, 1))
    y = ops.transpose(ops.matmul(x, w), (1, 2, 0))
    return y[:, :q], y[:, q:]


def _real_dft(x):
    """Real and imaginary part of the `b // 2 + 1` frequencies of the last axis."""
    b = x.shape[-1]
    if b > _MATMUL_LIMIT:
        return ops.rfft(x)
    spectrum = ops.matmul(x, ops.convert_to_tensor(np.hstack(_dft_matrices(b)), x.dtype))
    frequencies = b // 2 + 1
    return spectrum[..., :frequencies], spectrum[..., frequencies:]


def _inverse_real_dft(spectrum, b):
    """Inverse of `_real_dft` for `b` points."""
    if b > _MATMUL_LIMIT:
        return ops.irfft(spectrum, fft_length=b)
    matrix = ops.convert_to_tensor(np.vstack(_inverse_dft_matrices(b)), spectrum[0].dtype)
    return ops.matmul(ops.concatenate(spectrum, axis=-1), matrix)


@functools.lru_cache(maxsize=64)
def _dft_matrices(b):
    """`(cosines, -sines)` of shape `(b, b // 2 + 1)`: a real row times these is its spectrum."""
    # Indices are reduced before the division: angles stay exact for large b.
    angles = 2 * np.pi / b * (np.outer(np.arange(b), np.arange(b // 2 + 1)) % b)
    return np.cos(angles), -np.sin(angles)


@functools.lru_cache(maxsize=64)
def _inverse_dft_matrices(b):
    """`(A, B)` of shape `(b // 2 + 1, b)`: real part times A plus imaginary part times B."""
    cosines, sines = _dft_matrices(b)
    # All but the frequencies 0 and b / 2 stand for their conjugates too.
    weights = np.where(np.arange(b // 2 + 1) * 2 % b == 0, 1.0, 2.0)[:, None] / b
    return weights * cosines.T, weights * sines.T


def inference_form(p, q, b):
    """The form in which a block-circulant product is stored and run for inference.

    One DFT stage while the spectra of the weights outweigh the DFT matrices (`p q b` against
    `3 b^2` numbers), two stages beyond. Measured on LiteRT, that is also where each is the faster.

    Args:
        p: Input blocks.
        q: Output blocks.
        b: Block size.

    Returns:
        A `OneStage` or a `TwoStages`: `constants(vectors)` gives the arrays to store,
        `stored()` how many numbers those are, `matmul(inputs, constants)` the product as
        `circulant_matmul` gives it, and `macs()` its multiply-accumulates for one row.
    """
    if b <= _ALWAYS_ONE_STAGE or 3 * b <= p * q:
        return OneStage(p, q, b)
    return TwoStages(p, q, b)


class OneStage:
    """DFT of each block as one matmul, one real matmul a frequency, inverse DFT as one matmul.

    The real matmul of a complex product would store real and imaginary parts of the weights twice.
    Here they are stored once: the four partial products (or, with fewer input than output blocks,
    the operands of both parts) are spread over the rows and sorted out by the DFT matrix.

    Args:
        p: Input blocks.
        q: Output blocks.
        b: Block size.
    """

    def __init__(self, p, q, b):
        self.p, self.q, self.b = p, q, b
        self.frequencies = b // 2 + 1
        # Whichever side has fewer blocks gets the wider DFT matrix: parts of its spectra there.
        self.input_parts, self.output_parts = (2, 4) if q <= p else (4, 2)

    def constants(self, vectors):
        """Arrays to store: `dft`, `spectra` (frequencies, ., .) and `inverse_dft`."""
        c, s = _dft_matrices(self.b)
        real, imaginary = _inverse_dft_matrices(self.b)
        spectra = np.fft.rfft(vectors)
        if self.input_parts == 2:
            # Rows (re, im) times columns (re, im): re re, re im, im re, im im.
            dft, axis = [c, s], 1
            inverse = [real, imaginary, imaginary, -real]
        else:
            # Rows (re, -im) and (im, re), each times the column (re, im).
            dft, axis = [c, -s, s, c], 0
            inverse = [real, imaginary]
        weights = np.concatenate([spectra.real, spectra.imag], axis=axis)
        arrays = {
            "dft": np.hstack(dft),
            "spectra": weights.transpose(2, 0, 1),
            "inverse_dft": np.vstack(inverse),
        }
        return {name: array.astype("float32") for name, array in arrays.items()}

    def matmul(self, inputs, constants):
        """Product of `inputs` `(rows, p b)`: MATMUL, RESHAPE and TRANSPOSE only."""
        f, spectra = self.frequencies, constants["spectra"]
        x = ops.matmul(ops.reshape(inputs, (-1, self.b)), constants["dft"])
        x = ops.transpose(ops.reshape(x, (-1, self.p, self.input_parts, f)), (3, 0, 2, 1))
        y = ops.matmul(ops.reshape(x, (f, -1, spectra.shape[1])), spectra)
        y = ops.transpose(ops.reshape(y, (f, -1, self.output_parts, self.q)), (1, 3, 2, 0))
        y = ops.matmul(ops.reshape(y, (-1, self.output_parts * f)), constants["inverse_dft"])
        return ops.reshape(y, (-1, self.q * self.b))

    def stored(self):
        """How many numbers `constants` holds."""
        parts = self.input_parts + self.output_parts
        return self.frequencies * (parts * self.b + 2 * self.p * self.q)

    def macs(self):
        """Multiply-accumulates for one row."""
        transforms = self.p * self.input_parts + self.q * self.output_parts
        return self.frequencies * (transforms * self.b + 4 * self.p * self.q)


class TwoStages:
    """DFT of each block in two stages (Cooley-Tukey) of about sqrt(b) points, in real arithmetic.

    With `b = n1 n2`, `t = t1 n2 + t2` and `k = k1 + n1 k2` the DFT is one over `t1`, a
    multiplication by the twiddles `exp(-2 pi i t2 k1 / b)` and one over `t2`. Real input needs only
    `k1 <= n1 / 2`. The twiddles multiply (re, im) by (re, im), and the next matmul sums up the four
    products. A `b` without two balanced factors (a prime, say) is embedded in a larger circulant,
    of at least `2 b - 1`, if that stores less.

    Args:
        p: Input blocks.
        q: Output blocks.
        b: Block size.
    """

    def __init__(self, p, q, b):
        self.p, self.q, self.b = p, q, b
        # Any size that is large enough will do for the larger circulant: take the most even.
        side = math.isqrt(2 * b - 2) + 1
        sizes = [(n1, b // n1) for n1 in range(2, b // 2 + 1) if b % n1 == 0]
        sizes.append((-(-(2 * b - 1) // side), side))
        self.n1, self.n2 = min(sizes, key=self._stored)
        self.frequencies = self.n1 // 2 + 1

    def stored(self):
        """How many numbers `constants` holds."""
        return self._stored((self.n1, self.n2))

    def _stored(self, sizes):
        n1, n2 = sizes
        f = n1 // 2 + 1
        return 6 * n1 * f + 12 * n2 * n2 + 2 * f * n2 * (1 + self.p * self.q)

    def constants(self, vectors):
        """Arrays to store: four DFT matrices, `twiddles`, `real` and `imaginary` spectra."""
        n1, n2, f = self.n1, self.n2, self.frequencies
        n = n1 * n2
        if n != self.b:
            zeros = np.zeros((self.p, self.q, n - 2 * self.b + 1))
            vectors = np.concatenate([vectors, zeros, vectors[:, :, 1:]], axis=-1)
        # Frequency k1 + n1 k2, of which k1 <= n1 / 2 are kept.
        spectra = np.fft.fft(vectors).reshape(self.p, self.q, n2, n1)[..., :f]
        spectra = spectra.swapaxes(2, 3)
        twiddles = np.exp(-2j * np.pi / n * np.outer(np.arange(f), np.arange(n2)))
        inner = np.exp(-2j * np.pi / n2 * (np.outer(np.arange(n2), np.arange(n2)) % n2))
        from_real = np.hstack([inner.real, inner.imag])
        from_imaginary = np.hstack([-inner.imag, inner.real])
        inverse_inner = np.block([[inner.real, -inner.imag], [inner.imag, inner.real]])
        real, imaginary = _inverse_dft_matrices(n1)
        arrays = {
            "dft": np.hstack(_dft_matrices(n1)),
            "twiddles": np.stack([twiddles.real, twiddles.imag], axis=1)[:, None],
            # Of (re, im) times (re, im): re re, re im, im re, im im.
            "inner_dft": np.vstack([from_real, from_imaginary, from_imaginary, -from_real]),
            "real": spectra.real,
            "imaginary": spectra.imag,
            "inverse_inner_dft": inverse_inner / n2,
            # The same, by the conjugate twiddles.
            "inverse_dft": np.vstack([real, -imaginary, imaginary, real]),
        }
        return {name: array.astype("float32") for name, array in arrays.items()}

    def matmul(self, inputs, constants):
        """Product of `inputs` `(rows, p b)`: matmuls over last axes and element-wise products."""
        p, q, n1, n2, f = self.p, self.q, self.n1, self.n2, self.frequencies
        x = ops.reshape(inputs, (-1, self.b))
        if n1 * n2 != self.b:
            x = ops.pad(x, ((0, 0), (0, n1 * n2 - self.b)))
        x = ops.transpose(ops.reshape(x, (-1, n1, n2)), (0, 2, 1))
        x = ops.matmul(ops.reshape(x, (-1, n1)), constants["dft"])
        x = ops.transpose(ops.reshape(x, (-1, n2, 2, f)), (0, 3, 2, 1))
        x = ops.reshape(x, (-1, f, 2, 1, n2)) * constants["twiddles"]
        x = ops.matmul(ops.reshape(x, (-1, 4 * n2)), constants["inner_dft"])

        wr, wi = constants["real"], constants["imaginary"]
        if p == q == 1:
            # Fewer axes are quicker to broadcast.
            wr, wi = wr[0, 0], wi[0, 0]
            x = ops.reshape(x, (-1, f, 2 * n2))
        else:
            x = ops.reshape(x, (-1, p, 1, f, 2 * n2))
        xr, xi = x[..., :n2], x[..., n2:]
        yr, yi = xr * wr - xi * wi, xr * wi + xi * wr
        if p > 1:
            yr, yi = ops.sum(yr, axis=1), ops.sum(yi, axis=1)
        y = ops.concatenate([yr, yi], axis=-1)

        y = ops.matmul(ops.reshape(y, (-1, 2 * n2)), constants["inverse_inner_dft"])
        y = ops.reshape(y, (-1, f, 2, 1, n2)) * constants["twiddles"]
        y = ops.transpose(ops.reshape(y, (-1, f, 4, n2)), (0, 3, 2, 1))
        y = ops.matmul(ops.reshape(y, (-1, 4 * f)), constants["inverse_dft"])
        y = ops.reshape(ops.transpose(ops.reshape(y, (-1, n2, n1)), (0, 2, 1)), (-1, n1 * n2))
        if n1 * n2 != self.b:
            y = y[:, : self.b]
        return ops.reshape(y, (-1, q * self.b))

    def macs(self):
        """Multiply-accumulates for one row, the element-wise products included."""
        n1, n2, f, p, q = self.n1, self.n2, self.frequencies, self.p, self.q
        outer = 2 * f * n1 * n2 * (p + 2 * q)
        inner = 4 * f * n2 * n2 * (2 * p + q)
        return outer + inner + 4 * f * n2 * (p + q + p * q)
