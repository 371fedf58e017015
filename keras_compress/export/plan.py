"""What of a model is stored how: decided before conversion, from the layers alone."""

import dataclasses

import keras
import numpy as np

from keras_compress.convert import rebuild
from keras_compress.export import markers
from keras_compress.export.block_sparse import stored_entries
from keras_compress.export.modes import STATIC
from keras_compress.export.signs import positive
from keras_compress.export.sparsity import encode
from keras_compress.layers import CompressedConv2D
from keras_compress.layers.fake_quant import FakeQuant
from keras_compress.layers.stored_kernel import (
    BlockSparseKernel,
    CodebookKernel,
    Convolution,
    GridKernel,
    SparseKernel,
    block_of,
    grid_of,
)
from keras_compress.layers.stored_layers import StoredChain, StoredConv2D, StoredDense
from keras_compress.matching import leaf_layers
from keras_compress.quantizers import Sign

STORAGE = ("auto", "dense", "compact")

#: Largest share of the dense kernel's bytes that a sparse tensor may take.
MAX_SPARSE_SHARE = 0.9
#: Largest share of entries in blocks that are kept, and the width at which that pays off for any
#: number of rows: products of narrow blocks leave vector units idle.
MAX_BLOCK_SHARE = 0.5
FULL_WIDTH = 64
#: Kernels with fewer entries than this cost more to describe than they save.
MIN_ENTRIES = 1024


@dataclasses.dataclass(frozen=True)
class Stored:
    """One kernel that the writer will store.

    Attributes:
        layer: Name of the Keras layer; several kernels may be of one.
        kernel: An object of `layers.stored_kernel`.
        geometry: `Convolution`, or `None` for a dense layer.
        signs: Whether the kernel multiplies signs: see `export.signs`.
    """

    layer: str
    kernel: object
    geometry: Convolution | None
    signs: bool = False


def full_precision(model):
    """The model itself, or a float32 copy of one that computes in half precision.

    LiteRT's builtins compute in float32; half precision is a matter of storage there.
    """
    if not any(map(_is_half, leaf_layers(model))):
        return model
    full = {"dtype": "float32"}
    return rebuild(model, {}, lambda layer, config: config | (full if _is_half(layer) else {}))


def _is_half(layer):
    return not {"float16", "bfloat16"}.isdisjoint((layer.compute_dtype, layer.variable_dtype))


def is_quantize_aware(model):
    """Whether the model itself says on what grids its activations are."""
    return any(isinstance(layer, FakeQuant) for layer in leaf_layers(model))


def inference_form(model, storage="dense", quantize=None):
    """The model as it is converted, and what its markers stand for.

    Compressed layers are in their export form, stored kernels behind markers.

    Args:
        model: A built Keras model in full precision.
        storage: See `to_tflite`.
        quantize: A mode of `to_tflite`, or a dict from `id(layer)` to the mode of each layer. Of
            those, a layer whose activations become integers keeps its dense kernel: it is
            quantised with them.

    Returns:
        `(model, stored)`: a list of `Stored`, by number of the marker.
    """
    layers = leaf_layers(model)
    by_layer = isinstance(quantize, dict)
    modes = quantize if by_layer else {id(layer): quantize for layer in layers}
    dense = {key for key, mode in modes.items() if by_layer and mode in STATIC}
    forms = {}
    for layer in layers:
        if hasattr(layer, "export_form"):
            form = forms[id(layer)] = layer.export_form()
            if isinstance(form, StoredChain) and storage != "dense" and id(layer) not in dense:
                form.stored_parts = [
                    stock_form(part, storage, modes[id(layer)]) for part in form.stored_parts
                ]
        elif storage != "dense" and id(layer) not in dense:
            forms[id(layer)] = stock_form(layer, storage, modes[id(layer)])
    if all(forms.get(id(layer), layer) is layer for layer in layers):
        return model, []
    stored = []
    if storage != "dense":
        for layer in layers:
            form = forms.get(id(layer))
            for part in getattr(form, "stored_parts", (form,)):
                if id(layer) in dense or not storable(part):
                    continue
                signs = isinstance(getattr(layer, "input_quantizer", None), Sign)
                if signs:
                    part.input_quantizer = positive
                markers.mark(part, len(stored))
                stored.append(Stored(form.name, part.stored_kernel, _geometry(part), signs))
    return rebuild(model, forms), stored


def storable(form):
    """Whether the writer can store the kernel of an export form."""
    kernel = getattr(form, "stored_kernel", None)
    if kernel is None:
        return False
    geometry = _geometry(form)
    # LiteRT has channels last only, and no low-bit kernel for grouped convolutions.
    return geometry is None or (geometry.data_format == "channels_last" and geometry.groups == 1)


def stock_form(layer, storage, quantize=None):
    """The form in which a stock Keras layer's kernel is stored: itself, if dense is best.

    Zeros are kept out of the file whatever the storage, since that changes neither outputs nor
    speed. Few distinct values become a grid or a codebook only with `storage="compact"`: the
    kernels that run those quantise the inputs to 8 bits.

    Args:
        layer: A built Keras layer.
        storage: `"auto"` or `"compact"`.
        quantize: The layer's mode: see `to_tflite`.
    """
    form = {keras.layers.Dense: StoredDense, keras.layers.Conv2D: StoredConv2D}.get(type(layer))
    # A LoRA or quantized layer computes with more than its kernel.
    plain = form is not None and not getattr(layer, "lora_enabled", False)
    if not plain or getattr(layer, "quantization_mode", None) is not None:
        return layer
    kernel = keras.ops.convert_to_numpy(layer.kernel).astype("float32")
    if kernel.size < MIN_ENTRIES:
        return layer
    stored = few_values(kernel) if storage == "compact" else None
    if stored is None and quantize not in ("dynamic", "int4"):
        # Against int8 and int4 weights, float ones lose in speed, and mostly in size.
        stored = without_zeros(kernel.astype("float16" if quantize == "float16" else "float32"))
    if stored is None:
        return layer
    form = form.of(layer, stored)
    return form if storable(form) else layer


def without_zeros(kernel):
    """A `BlockSparseKernel` or `SparseKernel` for a kernel with many zeros, else `None`.

    Args:
        kernel: Array in Keras's layout, in the precision in which it would be stored.
    """
    if np.count_nonzero(kernel) > MAX_SPARSE_SHARE * kernel.size:
        return None
    sparse_bytes = sum(part.nbytes for part in encode(np.moveaxis(kernel, -1, 0)))
    if kernel.ndim == 2 and (block := block_of(kernel)) is not None:
        blocks = BlockSparseKernel(kernel, block)
        entries = stored_entries(blocks)
        share = min(MAX_BLOCK_SHARE, block[1] / FULL_WIDTH)
        # The limit of size is that of sparse tensors, which run at the speed of dense ones.
        if 0 < entries <= share * kernel.size and entries * kernel.itemsize <= sparse_bytes:
            return blocks
    return SparseKernel(kernel) if sparse_bytes <= MAX_SPARSE_SHARE * kernel.nbytes else None


def few_values(kernel):
    """A `GridKernel` or `CodebookKernel` for a kernel of at most 256 values, else `None`."""
    # A quick look spares the sort of a large kernel that has no such structure.
    if len(np.unique(kernel.ravel()[:4096])) > 256:
        return None
    values, codes = np.unique(kernel, return_inverse=True)
    if len(values) > 256:
        return None
    grid = grid_of(values)
    if grid is not None:
        ints, step = grid
        return GridKernel(ints[codes].reshape(kernel.shape), step)
    return CodebookKernel(codes.reshape(kernel.shape), values)


def _geometry(form):
    if not isinstance(form, CompressedConv2D):
        return None
    return Convolution(
        form.strides, form.padding, form.dilation_rate, form.groups, form.data_format
    )
