"""What `quantize` asks of each layer, where it asks layer by layer."""

import dataclasses

from keras_compress import matching, validation
from keras_compress.export.structure import layer_paths
from keras_compress.layers.stored_kernel import CodebookKernel, GridKernel

#: Modes of a whole model that TensorFlow's converter carries out.
CONVERTER = (None, "float16", "dynamic", "int8")
#: All modes of a whole model or a layer; those beyond `CONVERTER` are ai-edge-quantizer's.
MODES = (*CONVERTER, "int4", "16x8")
#: Modes whose activations are integers, on ranges that calibration finds.
STATIC = ("int8", "16x8")

_BITS = {"float16": 16, "dynamic": 8, "int4": 4}


@dataclasses.dataclass(frozen=True)
class Modes:
    """Modes of a model's layers.

    Attributes:
        by_path: Dict from the path of each layer (see `structure.layer_paths`) to its mode.
        rest: Mode of operations that belong to no layer, such as `x + y`: that of `"*"`.
        chosen: List of `(key as errors name it, mode, paths that it chooses)`.
        explicit: Whether keys were given, and not one mode for all.
    """

    by_path: dict
    rest: str | None
    chosen: list
    explicit: bool

    @property
    def static(self):
        """Whether any mode needs calibration."""
        return any(mode in STATIC for mode in self.by_path.values())

    def of_layers(self, model):
        """Dict from `id(layer)` to its mode, for a copy of the model or itself."""
        return {id(layer): self.by_path[path] for path, layer in layer_paths(model)}


def modes_of(model, quantize):
    """Reads `quantize` as modes layer by layer.

    Args:
        model: A built Keras model.
        quantize: A mode, or a dict from keys (see `matching.matches`) to modes.

    Returns:
        `Modes`, or `None` where the converter quantises the whole model.

    Raises:
        ValueError: if a mode is unknown, the dict is empty or a key chooses no layer.
    """
    if not isinstance(quantize, dict):
        validation.one_of("quantize", quantize, MODES, "to_tflite")
        if quantize in CONVERTER:
            return None
    elif not quantize:
        raise ValueError(
            'to_tflite: `quantize` is empty; give a mode for all layers, or {"*": mode}.'
        )
    rules = quantize if isinstance(quantize, dict) else {"*": quantize}
    for key, mode in rules.items():
        validation.one_of(f"quantize[{matching.describe(key)}]", mode, MODES, "to_tflite")
    paths = {id(layer): path for path, layer in layer_paths(model)}
    by_path = dict.fromkeys(paths.values())
    chosen = {key: [] for key in rules}
    for layer, key in matching.resolve(rules, matching.leaf_layers(model)):
        by_path[paths[id(layer)]] = rules[key]
        chosen[key].append(paths[id(layer)])
    return Modes(
        by_path=by_path,
        rest=rules.get("*"),
        chosen=[(matching.describe(key), rules[key], chosen[key]) for key in rules],
        explicit=isinstance(quantize, dict),
    )


def described(quantize):
    """`quantize` as JSON holds it: keys that are no strings by their names."""
    if not isinstance(quantize, dict):
        return quantize
    return {
        key if isinstance(key, str) else matching.describe(key): mode
        for key, mode in quantize.items()
    }


def check_stored(modes, stored):
    """Raises `ValueError` if a layer's own stored form has more bits than its mode asks for.

    Args:
        modes: `Modes`.
        stored: List of `plan.Stored`.
    """
    for plan in stored if modes.explicit else []:
        mode = modes.by_path[plan.layer]
        if mode is not None and not _fits(plan.kernel, _BITS[mode]):
            raise ValueError(
                f"to_tflite: layer '{plan.layer}' is stored in a form of its own "
                f"({type(plan.kernel).__name__}), which is not {mode!r}. Keep that form by "
                f"{{{plan.layer.rpartition('/')[2]!r}: None}} in front of the other keys of "
                "`quantize`, or round its weights again by storage='dense'."
            )


def check_done(modes, done, operations):
    """Raises `ValueError` if a key has quantised nothing.

    Args:
        modes: `Modes`.
        done: Paths of the layers that have a quantised operation, or a stored form.
        operations: Dict from a path to names of its operations in the file.
    """
    for key, mode, paths in modes.chosen:
        if mode is None or not done.isdisjoint(paths) or not paths:
            continue
        found = ", ".join(
            f"'{path}' ({', '.join(operations.get(path) or ['fused or folded'])})" for path in paths
        )
        raise ValueError(
            f"to_tflite: no layer that {key} chooses has a form quantised as {mode!r}: {found}. "
            "Leave it float (None); a layer that is fused with the one in front of it has that "
            "one's mode."
        )


def _fits(kernel, bits):
    if isinstance(kernel, GridKernel):
        return kernel.bits is not None and kernel.bits <= bits
    return isinstance(kernel, CodebookKernel) and len(kernel.values) <= 2**bits
