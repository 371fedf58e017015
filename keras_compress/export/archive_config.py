"""Configurations that an archive may hold: classes of Keras and of this package, and no code."""

import concurrent.futures
import copy
import json
import math
import zlib

import keras

from keras_compress.export.archive_format import DTYPES, ArchiveError, numpy_dtype

#: Modules of Keras whose classes describe a model.
_MODULES = {
    "keras.activations",
    "keras.constraints",
    "keras.dtype_policies",
    "keras.initializers",
    "keras.layers",
    "keras.quantizers",
    "keras.regularizers",
    "keras.src.models.functional",
}
_OPERATIONS = "keras.src.ops."
_OF_KERAS = {"DTypePolicy", "FloatDTypePolicy", "Functional", "Sequential"}
#: Built-in classes that run code of their own, read files, or keep state that is no weight.
_REFUSED = {
    "FeatureSpace", "FlaxLayer", "IntegerLookup", "JaxLayer", "Lambda", "StringLookup",
    "TFSMLayer", "TextVectorization", "TorchModuleWrapper",
}  # fmt: skip
_PLAIN = {"__bytes__", "__ellipsis__", "__keras_tensor__", "__slice__", "__tuple__"}
_ARRAYS = {"__numpy__", "__tensor__"}
_PACKAGE = "keras_compress>"
#: No size of a model is larger; a configuration has no use for it.
_MAX_INTEGER = 2**32
_MAX_DEPTH = 200


def config_of(model):
    """The configuration of a model as compressed JSON.

    Returns:
        `(config, stored bytes, bytes before compression)`.

    Raises:
        ValueError: if it has classes that are neither Keras's nor this package's, or code.
    """
    config = _without_compiling(keras.saving.serialize_keras_object(model))
    try:
        text = json.dumps(config, separators=(",", ":")).encode()
        config = json.loads(text)
        check_config(config)
    except (ArchiveError, TypeError) as error:
        raise ValueError(
            f"save_archive: model '{model.name}' cannot be in an archive: {error} An archive holds "
            "layers of Keras and of keras_compress only; keep others in a .keras file."
        ) from error
    return config, zlib.compress(text, 9), len(text)


def parse_config(content, what):
    """The configuration in JSON bytes, checked.

    Raises:
        ArchiveError: if it is no JSON, or holds what `config_of` would not write.
    """
    try:
        config = json.loads(bytes(content).decode())
    except (ValueError, RecursionError) as error:
        raise ArchiveError(f"{what}: the configuration is no JSON ({error}).") from error
    try:
        check_config(config)
    except ArchiveError as error:
        raise ArchiveError(f"{what}: {error}") from error
    return config


def check_config(config):
    """Raises `ArchiveError` unless every object of a configuration may be made."""
    whole = isinstance(config, dict) and config.get("class_name") in ("Sequential", "Functional")
    if not whole:
        raise ArchiveError("a Sequential or functional model is needed.")
    _check(config, 0)


def build_model(config, limit, what):
    """Makes the model of a checked configuration, with random weights.

    Args:
        config: The configuration.
        limit: Most bytes that its variables may take.
        what: Name for errors.

    Returns:
        A `keras.Model`.

    Raises:
        ArchiveError: if it is no model, or one that is too large.
    """
    needed = _bytes_needed(config, what)
    if needed > limit:
        raise ArchiveError(
            f"{what}: the model of its configuration has {needed:,} bytes of weights, and the file "
            f"holds {limit:,}."
        )
    return _make(config, what)


def _bytes_needed(config, what):
    """Bytes of the weights of the model of a configuration; nothing of that size is allocated."""

    def measure():
        with keras.StatelessScope(initialize_variables=False):
            weights = _make(config, what).weights
        return sum(math.prod(w.shape) * numpy_dtype(w.dtype).itemsize for w in weights)

    # Keras keeps a list, by thread, of variables without values, and would give them some when the
    # next scope ends; of a thread that has ended nothing is left.
    with concurrent.futures.ThreadPoolExecutor(1) as thread:
        return thread.submit(measure).result()


def _make(config, what):
    try:
        # A copy, since Keras takes some of its configurations apart.
        model = keras.saving.deserialize_keras_object(copy.deepcopy(config), safe_mode=True)
    except Exception as error:
        # Whatever Keras makes of a configuration that is wrong; it quotes all of it.
        said = str(error).split("\n\n")[-1][:300]
        raise ArchiveError(f"{what}: no model can be made of its configuration: {said}") from error
    if not isinstance(model, keras.Model) or not model.built:
        raise ArchiveError(f"{what}: its configuration is not that of a built model.")
    return model


def _without_compiling(value):
    if isinstance(value, dict):
        return {k: _without_compiling(v) for k, v in value.items() if k != "compile_config"}
    if isinstance(value, (list, tuple)):
        return [_without_compiling(each) for each in value]
    return value


def _check(value, depth):
    if depth > _MAX_DEPTH:
        raise ArchiveError(f"the configuration is nested more than {_MAX_DEPTH} levels deep.")
    if isinstance(value, list):
        for each in value:
            _check(each, depth + 1)
    elif isinstance(value, dict):
        if "compile_config" in value:
            raise ArchiveError("an archive holds no loss and no optimizer.")
        if "class_name" in value:
            _check_object(value)
        for each in value.values():
            _check(each, depth + 1)
    elif isinstance(value, int) and abs(value) > _MAX_INTEGER:
        raise ArchiveError(f"the configuration has the number {str(value)[:20]}, which is none.")
    elif value in keras.saving.get_custom_objects() and not str(value).startswith(_PACKAGE):
        # A string may stand for a registered function.
        raise ArchiveError(f"'{value}' is registered by another package.")


def _check_object(value):
    name, module = value["class_name"], value.get("module")
    registered = value.get("registered_name")
    texts = isinstance(name, str) and all(isinstance(t, str | None) for t in (module, registered))
    if not texts:
        raise ArchiveError("the configuration has an object whose class is no text.")
    if name in _REFUSED:
        raise ArchiveError(f"a {name} runs code, reads files or keeps state besides its weights.")
    if name in _PLAIN:
        return
    if name in _ARRAYS:
        inner = value.get("config")
        dtype = inner.get("dtype") if isinstance(inner, dict) else None
        if not isinstance(dtype, str) or dtype not in DTYPES:
            raise ArchiveError(f"an array of dtype {dtype!r} cannot be part of a configuration.")
        return
    if isinstance(registered, str) and registered.startswith(_PACKAGE):
        # `name` is of no consequence to Keras then.
        if keras.saving.get_registered_object(registered) is not None:
            return
        raise ArchiveError(f"keras_compress has no class '{registered[len(_PACKAGE) :]}'.")
    known = module in _MODULES or (module == "keras" and name in _OF_KERAS)
    operation = bool(module) and module.startswith(_OPERATIONS)
    function = name == "function" and module == "builtins"
    if not (known or operation or function) or registered not in (None, name, value.get("config")):
        raise ArchiveError(
            f"{module}.{name}{f' ({registered})' if registered else ''} is neither of Keras's "
            "layers and their parts nor of keras_compress."
        )
    if keras.saving.get_registered_object(name) is not None:
        raise ArchiveError(f"'{name}' is registered by another package.")
