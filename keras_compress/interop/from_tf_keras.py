"""`from_tf_keras`: a model of tf_keras as one of Keras 3."""

import contextlib
import importlib.util
import itertools
import os
import pathlib
import warnings

import keras

from keras_compress.interop import tensorflow_ops, tfmot_wrappers, variables
from keras_compress.interop.compilation import compile_like
from keras_compress.interop.layers import LayerTranslator


def from_tf_keras(model, custom_objects=None):
    """Returns a Keras 3 model with the structure, the weights and the outputs of a tf_keras one.

    Sequential and functional models, nested ones, shared layers, several inputs and outputs. Layer
    names stay (with "_" for "/"), and so do inputs and outputs in their structure. TensorFlow
    functions in the graph (`tf.nn.relu(x)`, `x + y`, `x[:, 0]`, `tf.reshape(x, ...)`) become
    operations of `keras.ops`. A `Lambda` keeps its function: off the TensorFlow backend, one that
    calls TensorFlow is an error.

    What tensorflow-model-optimization wraps is unwrapped; its `strip_pruning` and
    `strip_clustering` need not be called:

    - `prune_low_magnitude`: the mask is applied, so that pruned weights are zeros;
    - `cluster_weights`: every weight is its centroid;
    - `quantize_annotate`: the layer that is annotated;
    - `quantize_apply`, `quantize_model`: the float layers, with the weights that were trained
      behind the fake quantisation, and a warning: outputs then differ by the rounding.

    The optimizer, losses and metrics of a compiled model are carried over where Keras 3 has them
    (if not, a warning names what is missing and the model is not compiled), but neither the
    optimizer's state nor a `train_step` of a class of one's own.

    Args:
        model: Built model of `tf_keras`, or the path of one that `tf_keras` saved (.h5, .keras or
            a SavedModel folder) from its own and tfmot's layers. It is not changed.
        custom_objects: Dict from the names of the user's layer classes, activations, initializers,
            regularizers, constraints, losses and metrics in the tf_keras model to the classes and
            functions that take their places in Keras 3. A layer class is made by `from_config` of
            the tf_keras configuration, and must have the same weights in the same order.

    Returns:
        A `keras.Model`, `keras.Sequential` for a Sequential one.

    Raises:
        ImportError: if a path is given and tf_keras is not installed.
        ValueError: if the model is no tf_keras model, is not built, or has a layer or function
            that Keras 3 has no equivalent of. The error names the layer.

    Example:

    ```python
    import keras_compress as kc

    plain = kc.interop.from_tf_keras(pruned_with_tfmot)
    kc.export.to_tflite(plain, "model.tflite")
    ```
    """
    if isinstance(model, (str, os.PathLike)):
        model = _load(pathlib.Path(model))
    if not _is_tf_keras_model(model):
        hint = " It is one of Keras 3 already." if isinstance(model, keras.Model) else ""
        raise ValueError(
            "from_tf_keras: `model` must be a model of tf_keras or the path of a saved one; got "
            f"{type(model).__module__}.{type(model).__name__}.{hint}"
        )
    translation = _Translation(custom_objects or {})
    new = translation.model(model)
    translation.assign()
    translation.warn()
    compile_like(new, model, translation.custom_objects)
    return new


def _load(path):
    if not path.exists():
        raise ValueError(f"from_tf_keras: there is no file or folder '{path}'.")
    try:
        tf_keras = importlib.import_module("tf_keras")
    except ImportError as error:
        raise ImportError(
            f"from_tf_keras: '{path}' must be read with tf_keras, which is not installed. Run: "
            'pip install "keras_compress[tfmot]"'
        ) from error
    try:
        with contextlib.ExitStack() as scopes:
            for scope in _tfmot_scopes():
                scopes.enter_context(scope)
            return tf_keras.models.load_model(path)
    except (AttributeError, KeyError, OSError, TypeError, ValueError) as error:
        raise ValueError(
            f"from_tf_keras: tf_keras could not load '{path}': {error}. If the model has classes "
            "of your own, load it with tf_keras.models.load_model(path, custom_objects=...), and "
            "give the model."
        ) from error


def _tfmot_scopes():
    """Contexts in which tf_keras knows tfmot's classes, where tfmot is installed."""
    if importlib.util.find_spec("tensorflow_model_optimization") is None:
        return []
    import tensorflow as tf

    # tfmot sets the variable, and with it, for good, which Keras `tf.keras` is: that stays as the
    # user has it.
    tf.keras.__version__  # noqa: B018
    legacy = os.environ.get("TF_USE_LEGACY_KERAS")
    tfmot = importlib.import_module("tensorflow_model_optimization")
    if legacy is None:
        os.environ.pop("TF_USE_LEGACY_KERAS", None)
    return [
        tfmot.sparsity.keras.prune_scope(),
        tfmot.clustering.keras.cluster_scope(),
        tfmot.quantization.keras.quantize_scope(),
    ]


def _is_tf_keras_model(model):
    return any(
        base.__module__ == "tf_keras.src.engine.training" and base.__name__ == "Model"
        for base in type(model).__mro__
    )


class _Translation:
    """The layers made so far for those of one model, and the values that they are to have."""

    def __init__(self, custom_objects):
        self.custom_objects = dict(custom_objects)
        self._translate = LayerTranslator(self.custom_objects, self.layer)
        self._made, self._values = {}, []
        self._quantized, self._own_classes = [], []

    def model(self, source):
        """The Keras 3 form of a model, top or nested."""
        if id(source) not in self._made:
            self._made[id(source)] = self._new_model(source)
        return self._made[id(source)]

    def assign(self):
        """Sets the values of all weights."""
        for layer, arrays in self._values:
            activation = getattr(layer, "activation", None)
            if isinstance(activation, keras.Layer) and not activation.built:
                # Keras 3 knows the output's shape without calling it.
                activation.build(layer._inbound_nodes[0].output_tensors[0].shape)
            variables.assign(layer, arrays)
            if hasattr(layer, "finalize_state"):
                layer.finalize_state()

    def warn(self):
        """Says what the new model does not have of the old one."""
        if self._quantized:
            names = ", ".join(self._quantized[:3]) + (", ..." if len(self._quantized) > 3 else "")
            warnings.warn(
                f"from_tf_keras: {len(self._quantized)} layers were made quantization-aware by "
                f"tfmot ({names}). Their float weights are taken over without the fake "
                "quantisation: outputs differ by its rounding. Quantise again with "
                "kc.quantizers.quantize_aware or kc.export.to_tflite(model, quantize=...).",
                stacklevel=3,
            )
        if self._own_classes:
            warnings.warn(
                f"from_tf_keras: {', '.join(self._own_classes)}: the graph and the weights of a "
                "model class of your own are taken over, but none of its methods (train_step and "
                "so on). Give custom_objects to name a Keras 3 class for it.",
                stacklevel=3,
            )

    def _new_model(self, source):
        kind = type(source).__name__
        if kind in self.custom_objects:
            return self._custom_model(source, self.custom_objects[kind])
        if not source.built or not getattr(source, "inputs", None):
            if kind == "Sequential":
                remedy = "is not built; give it an Input, or call it on data first"
            else:
                remedy = (
                    "is subclassed: there is no graph to walk. Write the class for Keras 3 and "
                    f"give custom_objects={{{kind!r}: your class}}"
                )
            raise ValueError(f"from_tf_keras: model '{source.name}' {remedy}.")
        if not type(source).__module__.startswith("tf_keras."):
            self._own_classes.append(f"'{source.name}' ({kind})")
        is_sequential = any(base.__name__ == "Sequential" for base in type(source).__mro__)
        new = self._sequential(source) if is_sequential else self._functional(source)
        if not source.trainable:
            new.trainable = False
        return new

    def _custom_model(self, source, cls):
        try:
            new = cls.from_config(source.get_config())
            if source.save_spec() is not None:
                args, kwargs = keras.tree.map_structure(_symbol, source.save_spec())
                new(*args, **kwargs)
        except Exception as error:
            raise _call_error(source, error) from error
        self._values.append((new, variables.of(source)))
        return new

    def _sequential(self, source):
        new = keras.Sequential([_input(source.inputs[0])], name=_name(source))
        for layer in source.layers:
            made = self.layer(layer)
            if made is not None:
                try:
                    new.add(made)
                except Exception as error:
                    raise _call_error(layer, error) from error
        return new

    def _functional(self, source):
        tensors = {id(tensor): _input(tensor) for tensor in source.inputs}
        for depth in sorted(source._nodes_by_depth, reverse=True):
            for node in source._nodes_by_depth[depth]:
                if not node.is_input:
                    self._call(node, tensors)
        inputs = _map(source._nested_inputs, tensors)
        outputs = _map(source._nested_outputs, tensors)
        _rename_operations(keras.tree.flatten(outputs), {_name(layer) for layer in source.layers})
        return keras.Model(inputs, outputs, name=_name(source))

    def _call(self, node, tensors):
        """Makes one call of the old graph in the new one."""
        args = _map(tuple(node.call_args), tensors)
        kwargs = _map(dict(node.call_kwargs), tensors)
        layer = node.layer
        kind = type(layer).__name__
        try:
            if kind in ("TFOpLambda", "SlicingOpLambda"):
                outputs = tensorflow_ops.apply(layer.function, layer.symbol, args, kwargs)
            else:
                new = self.layer(layer)
                if new is None:
                    outputs = args[0]
                else:
                    args, kwargs = _call_arguments(new, args, kwargs)
                    outputs = new(*args, **kwargs)
        except Exception as error:
            if str(error).startswith("from_tf_keras:"):
                raise
            raise _call_error(layer, error) from error
        _record(node.outputs, outputs, tensors)

    def layer(self, layer):
        """The Keras 3 form of a layer or nested model; `None` for one that only quantises."""
        if id(layer) in self._made:
            return self._made[id(layer)]
        if _is_tf_keras_model(layer):
            return self.model(layer)
        bare = tfmot_wrappers.bare(layer)
        if bare.quantized:
            self._quantized.append(layer.name)
        new = None
        if bare.layer is not None:
            new = self._translate(bare.layer)
            if bare.arrays and type(bare.layer).__name__ != "TimeDistributed":
                self._values.append((new, bare.arrays))
        self._made[id(layer)] = new
        return new


def _call_arguments(new, args, kwargs):
    """Arguments of a call, as Keras 3 takes them."""
    kwargs = {key: value for key, value in kwargs.items() if value is not None}
    states = isinstance(new, (keras.layers.RNN, keras.layers.Bidirectional))
    if states and isinstance(args[0], (list, tuple)):
        # tf_keras puts the initial state behind the inputs.
        kwargs["initial_state"] = list(args[0][1:])
        args = (args[0][0], *args[1:])
    if isinstance(new, keras.layers.MultiHeadAttention):
        names = ("attention_mask", "return_attention_scores", "training", "use_causal_mask")
        kwargs.update(zip(names, args[3:], strict=False))
        args = args[:3]
    return args, kwargs


def _input(tensor):
    name = tensor._keras_history.layer.name
    if type(tensor).__name__ == "RaggedKerasTensor":
        raise ValueError(
            f"from_tf_keras: input '{name}' is ragged, which Keras 3 inputs are not. Pad it to a "
            "dense tensor in the tf_keras model."
        )
    return keras.Input(
        batch_shape=tuple(tensor.shape),
        dtype=tensor.dtype.name,
        sparse=type(tensor).__name__ == "SparseKerasTensor",
        name=name.replace("/", "_"),
    )


def _symbol(spec):
    return keras.KerasTensor(tuple(spec.shape), spec.dtype.name)


def _map(structure, tensors):
    """A structure with the new tensors for the old ones, and arrays for constants."""
    if isinstance(structure, dict):
        return {key: _map(value, tensors) for key, value in structure.items()}
    if isinstance(structure, (list, tuple)):
        values = [_map(value, tensors) for value in structure]
        return tuple(values) if isinstance(structure, tuple) else values
    if id(structure) in tensors:
        return tensors[id(structure)]
    # Eager tensors and variables; symbolic ones have no values.
    return structure.numpy() if hasattr(structure, "numpy") else structure


def _record(old, new, tensors):
    """Enters the outputs of a call, structure by structure."""
    if isinstance(old, dict):
        for key in old:
            _record(old[key], new[key], tensors)
    elif isinstance(old, (list, tuple)):
        for each, value in zip(old, new, strict=True):
            _record(each, value, tensors)
    else:
        tensors[id(old)] = new


def _rename_operations(tensors, taken):
    """Gives operations that are no layers names that no layer has."""
    tensors, named, seen = list(tensors), set(), set()
    while tensors:
        operation, index, _ = tensors.pop()._keras_history
        if (id(operation), index) in seen:
            continue
        seen.add((id(operation), index))
        if not isinstance(operation, keras.Layer) and id(operation) not in named:
            if operation.name in taken:
                numbers = (f"{operation.name}_{number}" for number in itertools.count(1))
                operation.name = next(name for name in numbers if name not in taken)
            named.add(id(operation))
            taken.add(operation.name)
        tensors.extend(operation._inbound_nodes[index].input_tensors)


def _name(model):
    return model.name.replace("/", "_")


def _call_error(layer, error):
    return ValueError(
        f"from_tf_keras: layer '{layer.name}' ({type(layer).__name__}) cannot be called in "
        f"Keras 3: {error}."
    )
