"""Large float kernels of dense layers: behind markers, like stored ones, though nothing changes.

TensorFlow's converter needs room for some five copies of a constant at a time. A kernel that waits
outside needs three: the transposed one that the file takes, the file, and the file as it grows.
"""

import dataclasses

import keras
import numpy as np
from keras import ops

from keras_compress.export import lowering, markers
from keras_compress.export.plan import Stored
from keras_compress.export.structure import layer_paths

#: Kernels of fewer bytes go through the converter, which may fuse what stands around them.
LARGE_BYTES = 2**25


@dataclasses.dataclass(frozen=True, eq=False)
class FloatKernel:
    """A float32 kernel, left in its variable until it is written.

    Attributes:
        variable: The Keras variable `(inputs, outputs)`.
    """

    variable: object

    @property
    def shape(self):
        """Shape of the kernel."""
        return tuple(self.variable.shape)


def large_kernels(model):
    """Large kernels of a model's stock dense layers.

    Args:
        model: A built Keras model in float32.

    Returns:
        List of `(layer, Stored)`.
    """
    return [
        (layer, Stored(path, FloatKernel(layer.kernel), None))
        for path, layer in layer_paths(model)
        if _is_plain_dense(layer) and 4 * np.prod(layer.kernel.shape) >= LARGE_BYTES
    ]


def marked_call(layer, number):
    """A dense layer's `call` with a marker in place of the product with its kernel."""
    multiply = markers.marked(ops.matmul, number)

    def call(inputs, training=None):
        # A marker looks at the kernel's shape only.
        outputs = multiply(inputs, layer.kernel)
        if layer.bias is not None:
            outputs = ops.add(outputs, layer.bias)
        return outputs if layer.activation is None else layer.activation(outputs)

    return call


@lowering.lower.register
def _(kernel: FloatKernel, site, geometry, optimize_for):
    rows = np.ascontiguousarray(ops.convert_to_numpy(kernel.variable).T)
    name = lowering.emit_product(site, site.constant("kernel", rows), geometry)
    return lowering.Outcome("float32", f"{name} float32", exact=True)


def _is_plain_dense(layer):
    # A LoRA or quantized layer computes with more than its kernel.
    return (
        type(layer) is keras.layers.Dense
        and not getattr(layer, "lora_enabled", False)
        and getattr(layer, "quantization_mode", None) is None
    )
