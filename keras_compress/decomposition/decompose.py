"""`decompose`: a trained kernel into factors of a named form."""

import numpy as np

from keras_compress import validation
from keras_compress.decomposition.bicluster import BiclusterFactors
from keras_compress.decomposition.cp import CPFactors
from keras_compress.decomposition.depthwise import DepthwiseFactors
from keras_compress.decomposition.depthwise_separable import DepthwiseSeparableFactors
from keras_compress.decomposition.kernel_ridge import KernelRidgeFactors
from keras_compress.decomposition.monochromatic import MonochromaticFactors
from keras_compress.decomposition.separable_basis import SeparableBasisFactors
from keras_compress.decomposition.sparse_basis import SparseBasisFactors
from keras_compress.decomposition.spatial import SpatialFactors
from keras_compress.decomposition.spatial_channel import SpatialChannelFactors
from keras_compress.decomposition.svd import SVDFactors
from keras_compress.decomposition.ternary import TernaryFactors
from keras_compress.decomposition.tucker import TuckerFactors

#: Every form by its name.
FORMS = {
    cls.form: cls
    for cls in (
        SVDFactors,
        SpatialFactors,
        TuckerFactors,
        CPFactors,
        SeparableBasisFactors,
        SpatialChannelFactors,
        MonochromaticFactors,
        BiclusterFactors,
        DepthwiseFactors,
        DepthwiseSeparableFactors,
        SparseBasisFactors,
        TernaryFactors,
        KernelRidgeFactors,
    )
}


def decompose(kernel, form, rank, owner=None, **options):
    """Fits the factors of a form to a trained kernel.

    Args:
        kernel: Array `(height, width, c_in, c_out)` of a convolution, or `(n_in, n_out)` of a
            dense layer (`"svd"`, `"ternary"` and `"kernel_ridge"`).
        form: `"svd"`, `"spatial"`, `"tucker"`, `"cp"`, `"separable_basis"`,
            `"spatial_channel"`, `"monochromatic"`, `"bicluster"`, `"depthwise"`,
            `"depthwise_separable"`, `"sparse_basis"`, `"ternary"` or `"kernel_ridge"`.
        rank: Number of terms (of `"sparse_basis"`: q, filters of a channel): an integer, as many
            integers as the form has ranks (`"tucker"` and `"spatial_channel"` have two,
            `"bicluster"` four), a float in (0, 1] (share of the squared singular values kept in
            each unfolding), `"evbmf"`, or a `RankPolicy`. For `"kernel_ridge"` a float is the share
            of the inputs.
        owner: Whom an error speaks of.
        **options: Of `"kernel_ridge"`: see `KernelRidgeFactors.fit`.

    Returns:
        `Factors` of that form.

    Raises:
        ValueError: if the form is unknown or cannot hold such a kernel, the kernel is not finite,
            or the rank is out of range.

    Example:

    >>> import numpy as np
    >>> kernel = np.random.default_rng(0).normal(size=(3, 3, 8, 16))
    >>> factors = decompose(kernel, "tucker", rank=(4, 8))
    >>> factors.params()
    448
    >>> 0 < factors.error(kernel) < 1
    True
    """
    cls = FORMS[validation.one_of("form", form, FORMS, owner)]
    kernel = np.asarray(kernel)
    if kernel.dtype not in (np.float32, np.float64):
        kernel = kernel.astype("float32")
    if kernel.ndim not in cls.kernel_ndims:
        axes = " or ".join(map(str, cls.kernel_ndims))
        raise ValueError(
            f"{validation.prefix(owner)}form={form!r} takes a kernel with {axes} axes; got "
            f"kernel.shape={kernel.shape}. For the kernel of a dense layer use form='svd', "
            "'ternary' or 'kernel_ridge', which takes no other."
        )
    if 0 in kernel.shape or not np.isfinite(kernel).all():
        raise ValueError(
            f"{validation.prefix(owner)}`kernel` must have entries, all of them finite; got "
            f"kernel.shape={kernel.shape}. Look for NaN or infinity in the trained weights."
        )
    return cls.fit(kernel, cls.resolve_rank(rank, kernel, owner), **options)
