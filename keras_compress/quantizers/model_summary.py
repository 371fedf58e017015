"""`summary`: bits, memory and multiply-accumulates of a quantised model, layer by layer."""

import dataclasses

from keras_compress.layers.base import dtype_bits
from keras_compress.layers.quant_separable_conv2d import QuantSeparableConv2D
from keras_compress.profile.macs import call_macs, layer_calls
from keras_compress.profile.storage import storage_bits
from keras_compress.tables import Table


@dataclasses.dataclass(frozen=True)
class SummaryRow:
    """One layer, or the whole model.

    Attributes:
        name: Name of the layer.
        parameters: Number of weights.
        kernel_bits: Bits of one weight of the kernel, the widest of several; `None` for a layer
            without one.
        input_bits: Bits of one input to the kernel, likewise.
        nbytes: Bytes of all weights in their stored form.
        float_bytes: Bytes of all weights as float32.
        binary_macs: Multiply-accumulates of a sample of which both factors have one bit.
        int8_macs: Those of which both have at most 8 bits.
        float_macs: All others.
    """

    name: str
    parameters: int
    kernel_bits: int | None
    input_bits: int | None
    nbytes: int
    float_bytes: int
    binary_macs: int = 0
    int8_macs: int = 0
    float_macs: int = 0


class Summary:
    """What `summary` returns: prints as text, shows as HTML in a notebook.

    Iterating gives the `SummaryRow` of each layer; `total` is that of the model.
    """

    def __init__(self, rows):
        self.rows = list(rows)

    def __iter__(self):
        return iter(self.rows)

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, name):
        for row in self.rows:
            if row.name == name:
                return row
        raise KeyError(f"no layer {name!r}; there are {[row.name for row in self.rows]}")

    @property
    def total(self):
        """The sums over all layers."""
        counts = ("parameters", "nbytes", "float_bytes", "binary_macs", "int8_macs", "float_macs")
        sums = {field: sum(getattr(row, field) for row in self.rows) for field in counts}
        return SummaryRow(name="total", kernel_bits=None, input_bits=None, **sums)

    def table(self):
        """The rows as a `Table` of formatted cells."""
        header = [
            "layer",
            "weights",
            "kernel bits",
            "input bits",
            "KiB",
            "smaller",
            "1-bit MACs",
            "int8 MACs",
            "float MACs",
        ]
        body = [
            [
                row.name,
                f"{row.parameters:,}",
                "" if row.kernel_bits is None else row.kernel_bits,
                "" if row.input_bits is None else row.input_bits,
                f"{row.nbytes / 1024:,.2f}",
                f"{row.float_bytes / row.nbytes:.1f}x" if row.nbytes else "",
                f"{row.binary_macs:,}",
                f"{row.int8_macs:,}",
                f"{row.float_macs:,}",
            ]
            for row in [*self.rows, self.total]
        ]
        return Table(header, body)

    def __repr__(self):
        return self.table().to_text()

    def _repr_html_(self):
        return self.table().to_html()


def summary(model, verbose=True):
    """Tabulates bits, memory and multiply-accumulates of a model by layer.

    A multiply-accumulate counts by its factors: 1-bit if weights and inputs have one bit (an XNOR
    and a count), int8 if both have at most 8, else float. Memory is that of the stored form: codes
    and scales, latent weights left out. Layers without weights are not listed.

    Args:
        model: A built Sequential or functional model, nested ones included.
        verbose: Whether the table is printed.

    Returns:
        A `Summary`.

    Raises:
        ValueError: if the model has no graph, or a shape that the count needs is open.

    Example:

    >>> import keras
    >>> import keras_compress as kc
    >>> model = keras.Sequential([
    ...     keras.Input((256,)),
    ...     kc.layers.BinaryDense(64, use_bias=False, name="binary"),
    ...     keras.layers.Dense(10, use_bias=False, name="float"),
    ... ])
    >>> table = summary(model)
    layer   weights  kernel bits  input bits   KiB  smaller  1-bit MACs  int8 MACs  float MACs
    ------  -------  -----------  ----------  ----  -------  ----------  ---------  ----------
    binary   16,384            1           1  2.00    32.0x      16,384          0           0
    float       640           32          32  2.50     1.0x           0          0         640
    total    17,024                           4.50    14.8x      16,384          0         640
    """
    macs, order = {}, {}
    for call in layer_calls(model):
        order[id(call.layer)] = call.layer
        for product, count in _products(call):
            counts = macs.setdefault(id(call.layer), {})
            counts[product] = counts.get(product, 0) + count
    rows = [_row(layer, macs.get(key, {})) for key, layer in order.items() if layer.weights]
    result = Summary(rows)
    if verbose:
        print(result)
    return result


def _products(call):
    """The products in one call of a layer.

    Returns:
        List of `((kernel bits, input bits), multiply-accumulates)`.
    """
    layer, macs = call.layer, call_macs(call)
    if not macs:
        return []
    if isinstance(layer, QuantSeparableConv2D):
        depthwise = layer.depthwise.macs(call.input_shapes[0])
        return [
            (_factor_bits(layer.depthwise), depthwise),
            (_factor_bits(layer.pointwise), macs - depthwise),
        ]
    return [(_factor_bits(layer), macs)]


def _factor_bits(layer):
    # Layers of quantize_aware() have no quantizers of their own: inputs arrive rounded.
    aware = hasattr(layer, "weight_bits")
    kernel_bits = layer.weight_bits if aware else dtype_bits(layer.variable_dtype)
    input_bits = 8 if aware and not layer.weights_only else dtype_bits(layer.compute_dtype)
    return (
        _bits(layer, "kernel_quantizer", kernel_bits),
        _bits(layer, "input_quantizer", input_bits),
    )


def _row(layer, macs):
    bits = storage_bits(layer) if not hasattr(layer, "storage_bits") else layer.storage_bits()
    counts = {"binary_macs": 0, "int8_macs": 0, "float_macs": 0}
    for factors, count in macs.items():
        widest = max(factors)
        kind = "binary_macs" if widest == 1 else "int8_macs" if widest <= 8 else "float_macs"
        counts[kind] += count
    return SummaryRow(
        name=layer.name,
        parameters=layer.count_params(),
        kernel_bits=max((kernel for kernel, _ in macs), default=None),
        input_bits=max((inputs for _, inputs in macs), default=None),
        nbytes=-(-bits // 8),
        float_bytes=4 * layer.count_params(),
        **counts,
    )


def _bits(layer, attribute, default):
    quantizer = getattr(layer, attribute, None)
    return default if quantizer is None else quantizer.bits
