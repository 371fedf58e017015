"""decompose(): what every form has in common, and what is refused."""

import numpy as np
import pytest

from keras_compress.decomposition import FORMS, decompose

RNG = np.random.default_rng(0)
KERNEL = RNG.normal(size=(3, 3, 4, 6))
#: Forms that hold convolutions.
CONVOLUTIONS = [name for name, cls in FORMS.items() if 4 in cls.kernel_ndims]
#: A rank that each form can have here.
RANKS = dict.fromkeys(CONVOLUTIONS, 3) | {"bicluster": (2, 3, 2, 1)}
#: Forms whose rank is how much of the kernel is kept.
GRADED = [form for form in CONVOLUTIONS if form not in ("monochromatic", "bicluster")]


@pytest.mark.parametrize("form", CONVOLUTIONS)
def test_error_is_the_relative_frobenius_norm_and_params_count_the_arrays(form):
    factors = decompose(KERNEL, form, RANKS[form])
    assert type(factors) is FORMS[form] and factors.form == form
    residual = np.sqrt(np.sum((KERNEL - factors.reconstruct()) ** 2) / np.sum(KERNEL**2))
    assert factors.error(KERNEL) == pytest.approx(residual)
    shapes = FORMS[form].shapes(KERNEL.shape, factors.rank)
    assert [a.shape for a in factors.arrays] == shapes
    assert factors.params() == sum(np.prod(shape) for shape in shapes)
    assert len(FORMS[form].stages) == len(shapes)


@pytest.mark.parametrize("form", GRADED)
def test_more_terms_never_fit_worse(form):
    errors = [decompose(KERNEL, form, rank).error(KERNEL) for rank in (1, 2, 3, 4)]
    assert errors == sorted(errors, reverse=True)


@pytest.mark.parametrize("form", CONVOLUTIONS)
@pytest.mark.parametrize(
    "dtype,expected",
    [("float32", "float32"), ("float64", "float64"), ("float16", "float32"), ("int8", "float32")],
)
def test_dtype_of_the_factors(form, dtype, expected):
    kernel = (4 * KERNEL).astype(dtype)
    factors = decompose(kernel, form, RANKS[form])
    orders = [stage.kind == "order" for stage in factors.stages]
    for array, order in zip(factors.arrays, orders, strict=True):
        assert array.dtype == ("int32" if order else expected)
    reference = decompose(kernel.astype("float64"), form, RANKS[form])
    np.testing.assert_allclose(factors.error(kernel), reference.error(kernel), rtol=1e-3)


@pytest.mark.parametrize("form", CONVOLUTIONS)
def test_kernels_are_left_as_they_were(form):
    kernel = KERNEL.copy()
    decompose(kernel, form, RANKS[form])
    np.testing.assert_array_equal(kernel, KERNEL)


@pytest.mark.parametrize(
    "kernel,form,message",
    [
        (KERNEL, "tuker", "`form` must be one of .*; got form='tuker'. Did you mean 'tucker'"),
        (KERNEL, None, "`form` must be one of"),
        (KERNEL[0, 0], "tucker", r"takes a kernel with 4 axes; got kernel.shape=\(4, 6\).*'svd'"),
        (KERNEL[0], "svd", r"takes a kernel with 2 or 4 axes; got kernel.shape=\(3, 4, 6\)"),
        (np.full((2, 2), np.nan), "svd", "`kernel` must have entries, all of them finite"),
        (np.full((2, 2), np.inf), "svd", "Look for NaN or infinity"),
        (np.ones((0, 3)), "svd", r"must have entries.*kernel.shape=\(0, 3\)"),
    ],
)
def test_bad_arguments_are_refused(kernel, form, message):
    with pytest.raises(ValueError, match=message):
        decompose(kernel, form, 1)


def test_errors_name_their_owner():
    with pytest.raises(ValueError, match="^Someone: `form`"):
        decompose(KERNEL, "dct", 1, owner="Someone")


@pytest.mark.parametrize("form", [form for form in CONVOLUTIONS if form != "ternary"])
def test_scaled_factors_stand_for_the_kernel_with_scaled_outputs(form):
    factors, scale = decompose(KERNEL, form, RANKS[form]), RNG.normal(size=6)
    np.testing.assert_allclose(
        factors.scaled(scale).reconstruct(), factors.reconstruct() * scale, atol=1e-12
    )


@pytest.mark.parametrize("form", CONVOLUTIONS)
def test_pack_and_unpack_are_the_same_permutation_of_a_kernel(form):
    factors = decompose(KERNEL, form, RANKS[form])
    np.testing.assert_array_equal(factors.pack(factors.unpack(KERNEL)), KERNEL)


@pytest.mark.parametrize("form", CONVOLUTIONS)
def test_macs_of_ranks_are_those_of_the_steps_one_by_one(form):
    factors = decompose(KERNEL, form, RANKS[form])
    size, macs = [9, 7], 0
    for stage, array in zip(factors.stages, factors.arrays, strict=True):
        if stage.kind != "order":
            size = [(5, 4)[a] if a in stage.axes else n for a, n in enumerate(size)]
            macs += size[0] * size[1] * array.size
    assert type(factors).macs(KERNEL.shape, factors.rank, (9, 7), (5, 4)) == macs
