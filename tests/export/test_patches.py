"""Patches: FULLY_CONNECTED on them is the convolution."""

import keras
import numpy as np
import pytest

from keras_compress.layers.stored_kernel import GridKernel
from tests.export.stored_models import assert_runs_like, constants, conv, export

pytestmark = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="export needs the TensorFlow backend"
)

RNG = np.random.default_rng(0)


@pytest.mark.parametrize(
    "size,config",
    [
        ((3, 3), {"padding": "valid"}),
        ((3, 3), {"padding": "same"}),
        ((3, 3), {"padding": "same", "strides": 2}),
        ((3, 3), {"padding": "valid", "strides": (2, 3)}),
        ((3, 2), {"padding": "same", "dilation_rate": 2}),
        ((2, 4), {"padding": "same"}),
        ((2, 2), {"padding": "same", "strides": 2}),
        ((1, 5), {"padding": "valid", "dilation_rate": (1, 2)}),
    ],
)
@pytest.mark.parametrize("batch_size", [1, None])
def test_patches_times_rows_is_the_convolution(size, config, batch_size):
    kernel = GridKernel(RNG.integers(-3, 4, size=(*size, 5, 200)), 0.5)
    layer = conv(kernel, **config, activation="relu")
    model, lite = export(layer, (9, 10, 5), optimize_for="size", batch_size=batch_size)
    assert "CONV_2D" not in lite.ops and lite.layers[0].form == "int4"
    ((ints, _),) = [c for c in constants(lite, "INT4") if c[0].ndim == 2]
    np.testing.assert_array_equal(ints, np.moveaxis(kernel.ints, -1, 0).reshape(200, -1))
    x = RNG.normal(size=(batch_size or 3, 9, 10, 5)).astype("float32")
    assert_runs_like(model, lite, x, 0.04)
