"""Codebook: a kernel as numbers of centres. k-means, product and residual quantisation."""

import dataclasses
import math

import numpy as np

from keras_compress import validation
from keras_compress.sharing.kmeans import INITS, kmeans

METHODS = ("binary", "kmeans", "pq", "rq")
#: A code is at most a uint16.
MAX_CENTRES = 2**16
DEFAULT_CENTRES = 16
DEFAULT_SEGMENT = 4
DEFAULT_STAGES = 2


@dataclasses.dataclass(frozen=True, eq=False)
class Codebook:
    """A kernel whose input axis is cut into segments, each the sum of one centre a stage.

    Scalar k-means has segments of one weight and one book for all; product quantisation a book for
    each place of a segment along the input axis; residual quantisation several stages.

    Args:
        codes: Integers `(stages, ..., segments, outputs)`: the layout of the kernel, its input axis
            cut. Kept as uint8, or uint16 for more than 256 centres.
        centres: Floats `(stages, books, k, length)`, where `books` is 1 (one book for all) or the
            number of segments.
        keep_zero: Whether centre 0 is zero for good, and not stored.

    Reference:
        Gong, Liu, Yang, Bourdev, "Compressing Deep Convolutional Networks Using Vector
        Quantization", 2014.
        Han, Mao, Dally, "Deep Compression", 2016.

    Example:

    >>> book = Codebook(codes=[[[0, 1], [1, 1]]], centres=[[[[0.5], [2.0]]]])
    >>> book.decode().tolist()
    [[0.5, 2.0], [2.0, 2.0]]
    >>> book.storage_bits()
    68
    """

    codes: np.ndarray
    centres: np.ndarray
    keep_zero: bool = False

    def __post_init__(self):
        centres = np.asarray(self.centres, "float32")
        codes = np.asarray(self.codes)
        if centres.ndim != 4 or codes.ndim < 3 or len(codes) != len(centres):
            raise ValueError(
                "Codebook: `codes` must have the shape (stages, ..., segments, outputs), `centres` "
                f"(stages, books, k, length); got {codes.shape} and {centres.shape}."
            )
        if centres.shape[1] not in (1, codes.shape[-2]):
            raise ValueError(
                "Codebook: there must be one book, or one for each of the "
                f"{codes.shape[-2]} segments; got {centres.shape[1]}."
            )
        if codes.size and not 0 <= codes.min() <= codes.max() < centres.shape[2]:
            raise ValueError(
                f"Codebook: codes must be integers from 0 to {centres.shape[2] - 1}, numbers of "
                f"centres; got {codes.min()} to {codes.max()}."
            )
        object.__setattr__(self, "centres", centres)
        object.__setattr__(self, "codes", codes.astype(code_dtype(centres.shape[2])))

    @property
    def k(self):
        """Centres of each book."""
        return self.centres.shape[2]

    @property
    def length(self):
        """Weights of a segment."""
        return self.centres.shape[3]

    @property
    def stages(self):
        """Centres that are summed up for a segment."""
        return self.centres.shape[0]

    @property
    def shape(self):
        """Shape of the kernel."""
        *lead, segments, outputs = self.codes.shape[1:]
        return (*lead, segments * self.length, outputs)

    @property
    def method(self):
        """`"kmeans"`, `"pq"` or `"rq"`: how `fit_codebook` would get a book of this form."""
        if self.stages > 1:
            return "rq"
        shared = self.centres.shape[1] == 1 and (self.length == 1 or self.codes.shape[-2] > 1)
        return "kmeans" if shared else "pq"

    def decode(self):
        """Returns the float32 kernel."""
        return _fold(self._vectors().sum(axis=0))

    def storage_bits(self):
        """Bits of the codes, at `ceil(log2 k)` each, and of the float32 centres."""
        stages, books, k, length = self.centres.shape
        entries = stages * books * (k - self.keep_zero) * length
        return int(self.codes.size * code_bits(k) + 32 * entries)

    def arrays(self):
        """What a file must hold: dict of numpy arrays, from which `from_arrays` makes it again."""
        return {
            "codes": self.codes,
            "centres": self.centres,
            "keep_zero": np.asarray(self.keep_zero),
        }

    @classmethod
    def from_arrays(cls, arrays):
        """The codebook of a dict of `arrays()`."""
        return cls(arrays["codes"], arrays["centres"], bool(arrays["keep_zero"]))

    def _vectors(self):
        """Array `(stages, ..., segments, outputs, length)`."""
        flat = self.centres.reshape(-1, self.length)
        return flat[self.codes + code_offsets(self.centres.shape, self.codes.ndim)]


def fit_codebook(
    kernel,
    method="kmeans",
    k=None,
    bits=None,
    segment=None,
    stages=None,
    init=None,
    keep_zero=None,
    seed=0,
):
    """Fits a codebook to a kernel.

    Args:
        kernel: Float array `(..., inputs, outputs)`, as Keras lays out dense and convolution
            kernels. A convolution's books are shared by its kernel positions.
        method: `"kmeans"`: one book for the whole kernel. `"pq"`: product quantisation, a book for
            each segment of the input axis. `"rq"`: residual quantisation, k-means of what the
            stages before have left. `"binary"`: signs, times the mean magnitude.
        k: Most centres of a book, at most 65536; fewer if it has fewer vectors. 16 by default.
        bits: `log2` of `k`, in the place of it.
        segment: Weights of a segment, a divisor of `inputs`. By default 1 for `"kmeans"`, 4 for
            `"pq"`, the whole axis for `"rq"`.
        stages: Stages of `"rq"`, by default 2.
        init: First centres: see `kmeans`.
        keep_zero: Whether zeros stay zero: centre 0 is, and only the other weights are clustered.
            For `"kmeans"` of single weights. By default, if the kernel has zeros.
        seed: Seed of the first centres.

    Returns:
        A `Codebook`.

    Raises:
        ValueError: if an argument is not of these, or the kernel has no finite values.

    Reference:
        Gong, Liu, Yang, Bourdev, "Compressing Deep Convolutional Networks Using Vector
        Quantization", 2014. `"kmeans"` of single weights with first centres and zeros as in Han,
        Mao, Dally, "Deep Compression", 2016.

    Example:

    >>> kernel = np.random.default_rng(0).normal(size=(64, 128))
    >>> book = fit_codebook(kernel, "pq", segment=4, k=16)
    >>> book.codes.shape, book.centres.shape
    ((1, 16, 128), (1, 16, 16, 4))
    >>> 32 * kernel.size / book.storage_bits()
    6.4
    """
    kernel = np.asarray(kernel, "float32")
    if kernel.ndim < 2 or not kernel.size or not np.isfinite(kernel).all():
        raise ValueError(
            "fit_codebook: `kernel` must be an array (..., inputs, outputs) of finite values; got "
            f"shape {kernel.shape}{'' if np.isfinite(kernel).all() else ' with NaN or infinity'}."
        )
    validation.one_of("method", method, METHODS, "fit_codebook")
    if method == "binary":
        mean = np.abs(kernel).mean()
        return Codebook((kernel >= 0)[None], np.reshape([-mean, mean], (1, 1, 2, 1)))
    k = centre_count(k, bits, "fit_codebook")
    stages = stage_count(method, stages, "fit_codebook")
    segment = segment_length(method, segment, kernel.shape[-2], "fit_codebook")
    init = _check_init(init, segment)
    seed = validation.seed(seed, "fit_codebook")
    if keep_zero is None:
        keep_zero = method == "kmeans" and segment == 1 and k > 1 and not kernel.all()
    check_keep_zero(keep_zero, method, segment, k, "fit_codebook")
    if keep_zero:
        return _without_zeros(kernel, k, init, seed)
    points = _cut(kernel, segment, shared=method == "kmeans")
    k = min(k, points.shape[1])
    left, codes, centres = points, [], []
    for stage in range(stages):
        books, found = kmeans(left, k, init, seed + stage)
        centres.append(books)
        codes.append(found)
        left = left - np.take_along_axis(books, found[..., None], axis=1)
    return Codebook(_laid_out(np.stack(codes), kernel.shape, segment), np.stack(centres))


def _without_zeros(kernel, k, init, seed):
    codes = np.zeros(kernel.shape, "int32")
    survivors = kernel[kernel != 0]
    # A book of zeros alone must still have the form of one with other centres.
    centres = np.zeros((1, 1, 1 + max(1, min(k - 1, survivors.size)), 1), "float32")
    if survivors.size:
        found = kmeans(survivors[None, :, None], centres.shape[2] - 1, init, seed)
        centres[0, :, 1:], codes[kernel != 0] = found[0], found[1][0] + 1
    return Codebook(codes[None], centres, keep_zero=True)


def _cut(kernel, length, shared):
    """Vectors of each book: array `(books, vectors, length)`."""
    vectors = unfold(kernel, length)
    if shared:
        return vectors.reshape(1, -1, length)
    return np.moveaxis(vectors, -3, 0).reshape(vectors.shape[-3], -1, length)


def _laid_out(codes, shape, length):
    """Codes `(stages, books, vectors)` of `_cut` in the layout of the kernel."""
    stages, books, _ = codes.shape
    *lead, inputs, outputs = shape
    if books == 1:
        return codes.reshape(stages, *lead, inputs // length, outputs)
    return np.moveaxis(codes.reshape(stages, books, *lead, outputs), 1, -2)


def unfold(kernel, length):
    """Segments of a kernel `(..., inputs, outputs)`: `(..., segments, outputs, length)`."""
    *lead, inputs, outputs = kernel.shape
    return np.swapaxes(kernel.reshape(*lead, inputs // length, length, outputs), -1, -2)


def _fold(vectors):
    *lead, segments, outputs, length = vectors.shape
    return np.swapaxes(vectors, -1, -2).reshape(*lead, segments * length, outputs)


def code_offsets(centres_shape, code_ndim):
    """What to add to codes to make them rows of all books under one another.

    Args:
        centres_shape: `(stages, books, k, length)`.
        code_ndim: Number of axes of the codes.

    Returns:
        int32 array that broadcasts with codes `(stages, ..., segments, outputs)`.
    """
    stages, books, k, _ = centres_shape
    offsets = k * np.arange(stages * books, dtype="int32").reshape(stages, books)
    return offsets.reshape(stages, *[1] * (code_ndim - 3), books, 1)


def code_bits(k):
    """Bits of a code of a book with `k` centres."""
    return (k - 1).bit_length()


def code_dtype(k):
    """Name of the smallest integer type that holds the code of a book with `k` centres."""
    return "uint8" if k <= 256 else "uint16"


def centre_count(k, bits, owner):
    """The number of centres that `k` or `bits` asks for."""
    if k is not None and bits is not None:
        raise ValueError(
            f"{validation.prefix(owner)}give `k` or `bits`, not both; got k={k!r}, bits={bits!r}."
        )
    if bits is not None:
        return 2 ** validation.integer("bits", bits, 1, 16, owner)
    return validation.integer("k", DEFAULT_CENTRES if k is None else k, 1, MAX_CENTRES, owner)


def stage_count(method, stages, owner):
    """The number of stages, by default that of the method."""
    if stages is None:
        return DEFAULT_STAGES if method == "rq" else 1
    stages = validation.positive_int("stages", stages, owner)
    if stages > 1 and method != "rq":
        raise ValueError(
            f"{validation.prefix(owner)}only method='rq' has several stages; got "
            f"method={method!r}, stages={stages}."
        )
    return stages


def segment_length(method, segment, inputs, owner):
    """The length of a segment, by default that of the method.

    Raises:
        ValueError: if it does not divide `inputs`; the divisors are given.
    """
    if segment is None:
        segment = {"kmeans": 1, "pq": math.gcd(DEFAULT_SEGMENT, inputs), "rq": inputs}[method]
    segment = validation.positive_int("segment", segment, owner)
    if inputs % segment:
        divisors = [str(d) for d in range(1, inputs + 1) if inputs % d == 0]
        listed = divisors if len(divisors) <= 12 else [*divisors[:11], "..."]
        raise ValueError(
            f"{validation.prefix(owner)}`segment` must divide the input axis of the kernel, "
            f"{inputs}; got segment={segment}. Divisors: {', '.join(listed)}."
        )
    return segment


def check_keep_zero(keep_zero, method, segment, k, owner):
    """Raises `ValueError` if zeros cannot be kept in such a book."""
    if keep_zero and (method != "kmeans" or segment not in (None, 1) or k < 2):
        raise ValueError(
            f"{validation.prefix(owner)}`keep_zero` needs method='kmeans' with segments of one "
            f"weight and k >= 2; got method={method!r}, segment={segment}, k={k}."
        )


def _check_init(init, segment):
    if init is None:
        return None
    validation.one_of("init", init, INITS, "fit_codebook")
    if segment > 1 and init != "kmeans++":
        raise ValueError(
            f"fit_codebook: init={init!r} is for single weights; got segment={segment}. Use "
            "init='kmeans++'."
        )
    return init
