"""CompactLSTM: an LSTM whose gate matrices are low-rank or Toeplitz-like."""

import math

import keras
import numpy as np
from keras import ops

from keras_compress import validation
from keras_compress.layers.base import CompressedLayer, dtype_bits
from keras_compress.layers.compact_lstm_cell import CompactLSTMCell
from keras_compress.layers.gate_matrices import FORMS, GateMatrices

#: Arguments of the cell that a layer hands on.
_OF_CELL = (
    "kernel_initializer",
    "recurrent_initializer",
    "bias_initializer",
    "unit_forget_bias",
    "kernel_regularizer",
    "recurrent_regularizer",
    "bias_regularizer",
    "kernel_constraint",
    "recurrent_constraint",
    "bias_constraint",
    "dropout",
    "recurrent_dropout",
    "seed",
)
# Those that speak of a kernel which is stored in another form on the other side.
_OF_KERNELS = (
    "kernel_regularizer",
    "recurrent_regularizer",
    "kernel_constraint",
    "recurrent_constraint",
)


@keras.saving.register_keras_serializable(package="keras_compress")
class CompactLSTM(keras.layers.RNN):
    """LSTM whose recurrent kernel, and kernel if asked for, is low-rank or Toeplitz-like.

    The four gate matrices that read the state are stacked to one matrix, as in Keras:

    | `recurrent` | recurrent kernel | stored values |
    |---|---|---|
    | `"lowrank"` | `P Z`: a projection `P` for all gates, then `Z` | `rank (units + 4 units)` |
    | `"toeplitz_like"` | each gate as in `ToeplitzLikeDense` | `8 units rank` |

    A layer above reads the same `h` as the recurrence. With `share_projection=True` the layer gives
    `P h` in place of `h`, so that one `P` serves its own recurrence and the kernel of the layer
    above, whose `kernel` is then only the part behind `P`. The layer above needs no setting:

        keras.Sequential([
            keras.Input((100, 40)),
            CompactLSTM(512, rank=64, share_projection=True, return_sequences=True),
            CompactLSTM(512, rank=64),
        ])

    As `P h` is also the state that the recurrence reads, it is computed once a step. (This is what
    PyTorch calls `proj_size`.) The paper's best networks are Toeplitz-like at the bottom and
    low-rank with shared projections above. For a trained stack see `from_layers`.

    What it buys: in the .tflite bytes and multiply-accumulates of low-rank gates fall with the
    number of stored values; Toeplitz-like gates are small and slow, see `ToeplitzLikeDense`. Give
    the input a fixed batch size, or `unroll=True` and a fixed number of steps, to export it.

    Args:
        units: Size of the cell state, and of the output unless `share_projection`.
        activation: Activation function of candidate and output.
        recurrent_activation: Activation function of the gates.
        use_bias: Whether a bias is added.
        recurrent: Form of the recurrent kernel: `"lowrank"` or `"toeplitz_like"`.
        rank: Rank of the recurrent kernel, at most `units`. `from_layer` also takes, for
            `"lowrank"`, a float in (0, 1] (share of the squared singular values to keep),
            `"evbmf"` or a `kc.decomposition.RankPolicy`.
        share_projection: Whether the layer gives `P h`, of size `rank`, in place of `h`, of size
            `units`: as output, and as first state with `return_state` and `initial_state`. Only for
            `"lowrank"`.
        kernel: Form of the kernel of the inputs: `"dense"`, `"lowrank"` or `"toeplitz_like"`.
        kernel_rank: Rank of the kernel of the inputs; `None` for `rank`.
        **kwargs: The other arguments of `keras.layers.LSTM`, but for `use_cudnn`. Initializers are
            the spread of the dense kernels, regularizers and constraints act on each stored weight.
            `recurrent_dropout` has one mask for all gates, on the state as it is read.

    Call arguments:
        sequences: Tensor `(batch, steps, features)`.
        initial_state: List of two tensors, or `None` for zeros.
        mask: Tensor `(batch, steps)` of booleans, or `None`.
        training: Whether dropout is active.

    Input shape:
        `(batch, steps, features)`.

    Output shape:
        `(batch, units)`, or `(batch, steps, units)` with `return_sequences=True`; `rank` in the
        place of `units` with `share_projection=True`.

    Raises:
        ValueError: if a form is unknown, a rank too large or dependent on a kernel that a layer
            built from scratch does not have, or `share_projection` asked for of another form.

    Reference:
        Lu, Sindhwani, Sainath, "Learning Compact Recurrent Neural Networks", 2016.

    Example:

    >>> model = keras.Sequential([
    ...     keras.Input((100, 40)),
    ...     CompactLSTM(512, rank=64, share_projection=True, return_sequences=True),
    ...     CompactLSTM(512, rank=64),
    ... ])
    >>> model.count_params()
    544768
    >>> dense = keras.Sequential([
    ...     keras.Input((100, 40)),
    ...     keras.layers.LSTM(512, return_sequences=True),
    ...     keras.layers.LSTM(512),
    ... ])
    >>> dense.count_params()
    3231744
    """

    source = keras.layers.LSTM
    source_arguments = (
        "units",
        "recurrent_activation",
        "recurrent_initializer",
        "unit_forget_bias",
        "dropout",
        "recurrent_dropout",
        "seed",
        "return_sequences",
        "return_state",
        "go_backwards",
        "stateful",
        "unroll",
        "zero_output_for_mask",
    )
    #: Attributes of the stock layer's cell.
    source_kernels = ("kernel", "recurrent_kernel")
    _carried = CompressedLayer._carried
    check_built = CompressedLayer.check_built

    def __init__(
        self,
        units,
        activation="tanh",
        recurrent_activation="sigmoid",
        use_bias=True,
        *,
        recurrent="lowrank",
        rank,
        share_projection=False,
        kernel="dense",
        kernel_rank=None,
        **kwargs,
    ):
        of_cell = {name: kwargs.pop(name) for name in _OF_CELL if name in kwargs}
        cell = CompactLSTMCell(
            units,
            activation=activation,
            recurrent_activation=recurrent_activation,
            use_bias=use_bias,
            recurrent=recurrent,
            rank=rank,
            share_projection=share_projection,
            kernel=kernel,
            kernel_rank=kernel_rank,
            dtype=kwargs.get("dtype"),
            trainable=kwargs.get("trainable", True),
            name="compact_lstm_cell",
            **of_cell,
        )
        super().__init__(cell, **kwargs)
        self.input_spec = keras.layers.InputSpec(ndim=3)

    @property
    def units(self):
        """Size of the cell state."""
        return self.cell.units

    @property
    def activation(self):
        """Activation function of candidate and output."""
        return self.cell.activation

    @property
    def rank(self):
        """Rank of the recurrent kernel."""
        return self.cell.rank

    @property
    def share_projection(self):
        """Whether the output is `P h`."""
        return self.cell.share_projection

    @property
    def projection(self):
        """The projection `P` of a low-rank recurrent kernel, `(units, rank)`; else `None`."""
        return self.cell.projection

    @property
    def bias(self):
        """The bias of all gates, or `None`."""
        return self.cell.bias

    def reconstruct_kernels(self):
        """Kernel and recurrent kernel as dense numpy arrays, gates stacked as in Keras."""
        return [self.cell.input_gates.reconstruct(), self.cell.recurrent_gates.reconstruct()]

    @classmethod
    def from_layer(
        cls, layer, *, recurrent="lowrank", rank=None, kernel="dense", kernel_rank=None, **changed
    ):
        """Starts from a trained `keras.layers.LSTM`: fitted, not random.

        The low rank is by SVD of the stacked gates, the Toeplitz-like one by
        `decomposition.displacement.fit_displacement` of each gate. Name, activations, bias, states
        and whatever else the stock layer was made with carry over; regularizers and constraints of
        its kernels do not.

        Args:
            layer: A built `keras.layers.LSTM`.
            recurrent: As for the layer.
            rank: As for the layer; `None` for `"evbmf"` (low-rank) and 2 (Toeplitz-like).
            kernel: As for the layer.
            kernel_rank: As `rank`, for the kernel; `None` for `rank`.
            **changed: Arguments of `keras.layers.LSTM` to change.

        Returns:
            A built `CompactLSTM`.

        Raises:
            ValueError: if `layer` is of another class or not built, or `share_projection` is asked
                for: that takes two layers, see `from_layers`.
        """
        _check_source(cls, layer, "from_layer")
        validation.one_of("recurrent", recurrent, FORMS[1:], cls.__name__)
        validation.one_of("kernel", kernel, FORMS, cls.__name__)
        if changed.pop("share_projection", False):
            raise ValueError(
                f"{cls.__name__}.from_layer(): a shared projection serves two layers, the one "
                f"below and the one above; got '{layer.name}' alone. Use from_layers()."
            )
        inputs, recurrence = _kernels(layer)
        if kernel_rank is None:
            kernel_rank = rank
        rank, recurrent_values = GateMatrices.fit(recurrent, recurrence, rank)
        kernel_rank, values = GateMatrices.fit(kernel, inputs, kernel_rank)
        own = {
            "recurrent": recurrent,
            "rank": rank,
            "kernel": kernel,
            "kernel_rank": kernel_rank,
        }
        return cls._start(layer, {**own, **changed}, values, recurrent_values)

    @classmethod
    def from_layers(cls, layers, *, rank=None, kernel="dense", kernel_rank=None):
        """Starts from a trained stack of LSTMs, each of which reads the sequence of the one below.

        Each projection is shared by the recurrence of a layer and the kernel of the next:
        both matrices stand side by side, `[W_h, W_x]`, and are factorized together by one SVD, the
        best shared projection there is for the two. The last layer's projection is its own.

        The outputs of all layers but the last are projections, so that the new layers have to stand
        in the model one behind the other; what lies between them must not care (dropout does not, a
        normalization does).

        Args:
            layers: Two or more built `keras.layers.LSTM`, bottom first.
            rank: As for `from_layer`, or a list with one for each layer.
            kernel: Form of the kernel of the bottom layer.
            kernel_rank: Rank of the kernel of the bottom layer; `None` for its `rank`.

        Returns:
            List of built `CompactLSTM`, of which all but the last have `share_projection=True`.

        Raises:
            ValueError: if a layer is of another class or not built, there is but one, or one does
                not read the sequence of the one below.

        Example:

        >>> model = keras.Sequential([
        ...     keras.Input((100, 40)),
        ...     keras.layers.LSTM(64, return_sequences=True, name="bottom"),
        ...     keras.layers.LSTM(64, name="top"),
        ... ])
        >>> small = CompactLSTM.from_layers(model.layers, rank=16)
        >>> keras.Sequential([keras.Input((100, 40)), *small]).count_params()
        25088
        """
        layers = _check_stack(cls, layers, "from_layers", cls.source)
        ranks = rank if isinstance(rank, (list, tuple)) else [rank] * len(layers)
        if len(ranks) != len(layers):
            raise ValueError(
                f"{cls.__name__}.from_layers(): `rank` must be one for all layers or a list of "
                f"{len(layers)}; got rank={rank!r}."
            )
        validation.one_of("kernel", kernel, FORMS, cls.__name__)
        kernels = [_kernels(layer) for layer in layers]
        if kernel_rank is None:
            kernel_rank = ranks[0]
        kernel_rank, values = GateMatrices.fit(kernel, kernels[0][0], kernel_rank)
        own = {"kernel": kernel, "kernel_rank": kernel_rank}
        made = []
        for index, layer in enumerate(layers):
            matrix, last = kernels[index][1], index == len(layers) - 1
            if not last:
                matrix = np.concatenate([matrix, kernels[index + 1][0]], axis=1)
            found, (projection, rest) = GateMatrices.fit("lowrank", matrix, ranks[index])
            recurrence, above = np.split(rest, [4 * layer.units], axis=1)
            own |= {"recurrent": "lowrank", "rank": found, "share_projection": not last}
            made.append(cls._start(layer, own, values, [projection, recurrence]))
            own, values = {"kernel": "dense"}, [above]
        return made

    @classmethod
    def _start(cls, layer, own, values, recurrent_values):
        """A built layer with given weights that is like a stock layer otherwise."""
        config = layer.get_config()
        carried = {
            name: value for name, value in config.items() if name not in (*_OF_KERNELS, "use_cudnn")
        }
        new = cls.from_config({**carried, **own})
        batch = layer.states[0].shape[0] if layer.stateful else None
        # A dense kernel may be one behind the projection of the layer below.
        features = len(values[0]) if own["kernel"] == "dense" else _features(layer)
        new.build((batch, None, features))
        new.cell.input_gates.assign(values)
        new.cell.recurrent_gates.assign(recurrent_values)
        if new.bias is not None and layer.cell.bias is not None:
            new.bias.assign(ops.convert_to_numpy(layer.cell.bias))
        return new

    def expand(self):
        """Returns the equivalent `keras.layers.LSTM`, with the reconstructed kernels.

        Raises:
            ValueError: if the layer is not built, or gives `P h`, which no LSTM does: see
                `expand_layers`.
        """
        self.check_built("expand")
        if self.share_projection:
            raise ValueError(
                f"CompactLSTM '{self.name}' gives the projection of its output to the layer above, "
                "which keras.layers.LSTM cannot do. Expand both: CompactLSTM.expand_layers()."
            )
        return self._expand(self.reconstruct_kernels())

    @classmethod
    def expand_layers(cls, layers):
        """The way back of `from_layers`: stock LSTMs whose stack has the same outputs.

        Args:
            layers: Built `CompactLSTM`, bottom first, each of which reads the sequence of the one
                below; all but the last with `share_projection=True`.

        Returns:
            List of built `keras.layers.LSTM`.

        Raises:
            ValueError: if a layer is of another class or not built, there is but one, one does not
                read what the one below gives, or the last one is for another layer to read.
        """
        layers = _check_stack(cls, layers, "expand_layers", cls)
        shared = [layer.share_projection for layer in layers]
        if shared != [True] * (len(layers) - 1) + [False]:
            raise ValueError(
                f"{cls.__name__}.expand_layers() takes layers with share_projection=True and the "
                "one above them, without; got share_projection="
                f"{shared}. Give the whole stack, and other layers to expand()."
            )
        expanded, below = [], None
        for layer in layers:
            kernel, recurrent = layer.reconstruct_kernels()
            if below is not None:
                kernel = below @ kernel
            expanded.append(layer._expand([kernel, recurrent]))
            below = None if layer.projection is None else ops.convert_to_numpy(layer.projection)
        return expanded

    def _expand(self, kernels):
        config = self.get_config()
        carried = (*self._carried, *self.source_arguments)
        layer = self.source.from_config({name: config[name] for name in carried})
        batch = self.states[0].shape[0] if self.stateful else None
        layer.build((batch, None, kernels[0].shape[0]))
        for name, kernel in zip(self.source_kernels, kernels, strict=True):
            getattr(layer.cell, name).assign(kernel)
        if self.bias is not None:
            layer.cell.bias.assign(ops.convert_to_numpy(self.bias))
        return layer

    def storage_bits(self):
        """Bits that the stored weights need."""
        self.check_built("storage_bits")
        weights = self.cell.weights
        return int(sum(math.prod(w.shape) * dtype_bits(w.dtype) for w in weights))

    def macs(self, input_shape):
        """Multiply-accumulates of one sample.

        Args:
            input_shape: `(batch, steps, features)`; the batch size is ignored.
        """
        self.check_built("macs")
        return input_shape[1] * (self.cell.input_gates.macs() + self.cell.recurrent_gates.macs())

    def export_form(self):
        """The layer itself, or a copy whose Toeplitz-like gates are in the form to be stored."""
        self.check_built("export_form")
        if "toeplitz_like" not in (self.cell.recurrent, self.cell.kernel):
            return self
        form = self.from_config(self.get_config())
        batch = self.states[0].shape[0] if self.stateful else None
        form.build((batch, None, _features(self)))
        form.set_weights(self.get_weights())
        form.cell.input_gates.use_export_form()
        form.cell.recurrent_gates.use_export_form()
        return form

    def get_config(self):
        config, cell = super().get_config(), self.cell.get_config()
        del config["cell"]
        regularizer = keras.regularizers.serialize(self.activity_regularizer)
        return {**cell, **config, "activity_regularizer": regularizer}

    @classmethod
    def from_config(cls, config):
        return cls(**config)


def _kernels(layer):
    """Kernel and recurrent kernel of a stock LSTM."""
    kernels = (layer.cell.kernel, layer.cell.recurrent_kernel)
    return tuple(ops.convert_to_numpy(kernel).astype("float32") for kernel in kernels)


def _features(layer):
    """Features that a stock or compact LSTM reads at each step."""
    if isinstance(layer, CompactLSTM):
        return layer.cell.input_spec.axes[-1]
    return layer.cell.kernel.shape[0]


def _check_source(cls, layer, caller, source=None):
    source = source or cls.source
    name = source.__name__ if source is cls else f"keras.layers.{source.__name__}"
    if not isinstance(layer, source):
        raise ValueError(
            f"{cls.__name__}.{caller}() starts from a {name}; got {type(layer).__name__} "
            f"'{getattr(layer, 'name', layer)}'."
        )
    if not layer.built:
        raise ValueError(
            f"{cls.__name__}.{caller}() needs a built layer: call {source.__name__} "
            f"'{layer.name}' on an input, or its build(), first."
        )


def _check_stack(cls, layers, caller, source):
    """Returns the layers as a list in which each reads the sequence of the one below."""
    layers = list(layers) if isinstance(layers, (list, tuple)) else [layers]
    for layer in layers:
        _check_source(cls, layer, caller, source)
    if len(layers) < 2:
        raise ValueError(
            f"{cls.__name__}.{caller}() takes a stack of two layers or more, in a list; got "
            f"{len(layers)}."
        )
    for below, above in zip(layers, layers[1:], strict=False):
        given, taken = below.cell.output_size, _features(above)
        if not below.return_sequences or given != taken:
            raise ValueError(
                f"{cls.__name__}.{caller}(): '{above.name}' must read the sequence of "
                f"'{below.name}'; that has return_sequences={below.return_sequences} and "
                f"{given} values a step, and '{above.name}' reads {taken}. Give the layers of one "
                "stack, bottom first."
            )
    return layers
