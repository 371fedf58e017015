"""Energy of a model on an accelerator, layer by layer."""

import dataclasses
import math

from keras_compress import validation
from keras_compress.profile.macs import layer_calls
from keras_compress.profile.workload import workloads
from keras_compress.tables import Table

LEVELS = ("register", "array", "buffer", "dram")
_WORD = 16


@dataclasses.dataclass(frozen=True)
class Hierarchy:
    """Memory levels of an accelerator and what an access to each costs.

    Values move from DRAM to a buffer on the chip, from there through the array of processing
    elements (PEs), and lie in registers beside each multiplier. Energies are those of one 16-bit
    word, in units of one multiply-accumulate; sizes are words.

    The mapping is row-stationary (Eyeriss): a PE slides a row of the kernel over a row of the
    input, for as many channels and filters as fit in its registers; PEs above one another add up
    the rows of the kernel, and further sets of them more channels, or compute other filters.

    Args:
        mac: Of a multiply-accumulate.
        register: Of an access to a PE's registers.
        array: Of a word that moves to or between PEs.
        buffer: Of an access to the buffer.
        dram: Of an access to DRAM.
        rows: Rows of PEs.
        columns: Columns of PEs.
        input_registers: Input words that a PE holds.
        weight_registers: Weights that a PE holds.
        sum_registers: Partial sums that a PE holds.

    Reference:
        Chen, Krishna, Emer, Sze, "Eyeriss: An Energy-Efficient Reconfigurable Accelerator for Deep
        Convolutional Neural Networks", 2017.
    """

    mac: float = 1.0
    register: float = 1.0
    array: float = 2.0
    buffer: float = 6.0
    dram: float = 200.0
    rows: int = 12
    columns: int = 14
    input_registers: int = 12
    weight_registers: int = 224
    sum_registers: int = 24

    def accesses(self, workload, weight_bits=_WORD, activation_bits=_WORD):
        """Accesses of each level, in 16-bit words, that a `Workload` takes.

        Returns:
            Dict from each of `"register"`, `"array"`, `"buffer"`, `"dram"` to a number.
        """
        one = workload
        height, width = one.kernel
        # Channels and filters in the registers of a PE.
        channels = min(one.channels, max(1, self.input_registers // width))
        held = min(self.sum_registers, self.weight_registers // (channels * width))
        filters = min(one.filters, max(1, held))
        # Sets of PEs, each of the kernel's height: first for more channels, then for more filters.
        sets = max(1, self.rows // height)
        deep = min(sets, math.ceil(one.channels / channels))
        wide = min(max(1, sets // deep), math.ceil(one.filters / filters))
        input_passes = math.ceil(one.filters / (filters * wide))
        sum_passes = math.ceil(one.channels / (channels * deep))
        weight_passes = math.ceil(one.rows / self.columns)
        weight, value = weight_bits / _WORD, activation_bits / _WORD
        delivered = one.inputs * input_passes * value + one.weights * weight_passes * weight
        return {
            # Input, weight, partial sum read and written.
            "register": one.macs * (weight + 3 * value),
            # A partial sum moves on when its PE has added what it can.
            "array": delivered + one.macs / (width * channels) * value,
            # Inputs and weights are written once; partial sums go out and back after each pass.
            "buffer": delivered
            + one.inputs * value
            + one.weights * weight
            + 2 * sum_passes * one.outputs * value,
            "dram": one.weights * weight + (one.inputs + one.outputs) * value,
        }

    def energy(self, workload, weight_bits=_WORD, activation_bits=_WORD):
        """Energy of a `Workload`, in multiply-accumulates of 16 bits."""
        accesses = self.accesses(workload, weight_bits, activation_bits)
        macs = workload.macs * weight_bits * activation_bits / _WORD**2
        return self.mac * macs + sum(getattr(self, level) * accesses[level] for level in LEVELS)


HIERARCHIES = {"eyeriss": Hierarchy()}


@dataclasses.dataclass(frozen=True)
class LayerEnergy:
    """One call of a layer.

    Attributes:
        layer: The layer.
        macs: Multiply-accumulates with weights that are not zero.
        accesses: Dict from memory level to accesses, in 16-bit words.
        energy: In multiply-accumulates of 16 bits.
    """

    layer: object
    macs: int
    accesses: dict
    energy: float

    @property
    def name(self):
        """Name of the layer."""
        return self.layer.name


@dataclasses.dataclass(frozen=True)
class Energy:
    """Energy of a model, layer by layer.

    Attributes:
        layers: List of `LayerEnergy`, in the order of the model.
    """

    layers: list

    @property
    def total(self):
        """Energy of one sample, in multiply-accumulates of 16 bits."""
        return sum(row.energy for row in self.layers)

    def table(self):
        """The layers as a `Table`."""
        rows = [
            [
                row.name,
                f"{row.macs:,}",
                *(f"{row.accesses[level]:,.0f}" for level in LEVELS),
                f"{row.energy:,.0f}",
                f"{100 * row.energy / self.total:.1f} %",
            ]
            for row in self.layers
        ]
        return Table(["layer", "MACs", *LEVELS, "energy", "share"], rows)

    def __str__(self):
        return f"{self.table().to_text()}\nTotal: {self.total:,.0f} (1 is the energy of a MAC)."

    def _repr_html_(self):
        return self.table().to_html()


def energy(model, hierarchy="eyeriss", *, weight_bits=16, activation_bits=16):
    """Estimates the energy of one sample through a model, on an accelerator.

    Energy of a layer = MACs + sum over memory levels of accesses times the energy of an access.
    Weights that are zero are skipped and not stored; how many inputs are zero is not looked at.
    Accesses shrink with the bits, multiplications with the product of the bits. Counted are the
    layers that `kc.profile.macs` counts; layers without kernels pass on what they get.

    It is an estimate of where the energy goes, for comparing layers and models, not a measurement:
    the mapping is one plain row-stationary one, not the best for each layer.

    Args:
        model: A built Sequential or functional model, nested ones included.
        hierarchy: `"eyeriss"`, or a `kc.profile.Hierarchy`.
        weight_bits: Bits of a weight.
        activation_bits: Bits of inputs, outputs and partial sums.

    Returns:
        An `Energy`, which prints as a table; `.total` is the model's.

    Raises:
        ValueError: if the model has no graph or a shape is open.

    Reference:
        Yang, Chen, Sze, "Designing Energy-efficient Convolutional Neural Networks Using
        Energy-aware Pruning", 2017.

    Example:

    >>> import keras
    >>> import keras_compress as kc
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    >>> (row,) = kc.profile.energy(model).layers
    >>> row.macs, row.accesses["dram"]
    (12, 19.0)
    """
    hierarchy = get_hierarchy(hierarchy)
    bits = (
        validation.positive_int("weight_bits", weight_bits, "energy"),
        validation.positive_int("activation_bits", activation_bits, "energy"),
    )
    rows = []
    for call in layer_calls(model):
        parts = workloads(call)
        if parts:
            found = [hierarchy.accesses(part, *bits) for part in parts]
            rows.append(
                LayerEnergy(
                    call.layer,
                    sum(part.macs for part in parts),
                    {level: sum(one[level] for one in found) for level in LEVELS},
                    sum(hierarchy.energy(part, *bits) for part in parts),
                )
            )
    return Energy(rows)


def get_hierarchy(hierarchy):
    """A `Hierarchy`, given as one or by its name."""
    if isinstance(hierarchy, Hierarchy):
        return hierarchy
    return HIERARCHIES[validation.one_of("hierarchy", hierarchy, HIERARCHIES, "energy")]
