"""One layer of tf_keras as the same layer of Keras 3, without its weights' values."""

import inspect

import keras

from keras_compress.interop import tfmot_wrappers
from keras_compress.interop.activations import hard_sigmoid

# Settings that say nothing about the outputs, or the value that Keras 3 always has.
_WITHOUT_EFFECT = {
    *("batch_input_shape", "dynamic", "force_generator", "fused", "implementation", "input_length"),
    *("has_input_vocabulary", "key_shape", "query_shape", "rng_type", "sparse", "value_shape"),
    *("vocabulary_size",),
}
_AS_ALWAYS = {"groups": 1, "time_major": False}
# DepthwiseConv and SeparableConv of tf_keras inherit these from Conv and use their own.
_INHERITED = {"kernel_constraint", "kernel_initializer", "kernel_regularizer"}
_RENAMED = {"SyncBatchNormalization": "BatchNormalization", "ThresholdedReLU": "ReLU"}
_LOOKUPS = {"IntegerLookup", "StringLookup", "TextVectorization"}


class LayerTranslator:
    """Makes layers of Keras 3 like those of tf_keras.

    Args:
        custom_objects: Dict from names to the user's classes and functions for Keras 3.
        called: Function that gives the Keras 3 form, with weights, of a layer or model that the
            layer calls as a model would.
    """

    def __init__(self, custom_objects, called):
        self.custom_objects = custom_objects
        self.called = called

    def __call__(self, layer):
        """The new layer; it has weights once it is called.

        Raises:
            ValueError: if Keras 3 has no such layer, or not with such a setting.
        """
        kind = type(layer).__name__
        custom = self._custom(layer)
        if custom is not None:
            return self._make(layer, custom, layer.get_config())
        if not type(layer).__module__.startswith("tf_keras."):
            raise self._error(
                layer,
                f"is of your own class. Write it for Keras 3 and give custom_objects={{{kind!r}: "
                "your class}",
            )
        if kind == "Lambda":
            return keras.layers.Lambda(
                layer.function,
                mask=layer.mask,
                arguments=layer.arguments,
                name=_name(layer),
                dtype=_dtype(layer),
                trainable=layer.trainable,
            )
        cls = getattr(keras.layers, _RENAMED.get(kind, kind), None)
        if cls is None:
            raise self._error(
                layer,
                "has no counterpart in Keras 3. Replace it in the tf_keras model, or give a class "
                f"in custom_objects={{{kind!r}: your class}}",
            )
        return self._make(layer, cls, self._config(layer, cls))

    def _custom(self, layer):
        for name in (_registered_name(layer), type(layer).__name__):
            if name in self.custom_objects:
                return self.custom_objects[name]
            found = keras.saving.get_registered_object(name)
            if found is not None and issubclass(found, keras.layers.Layer):
                return found
        return None

    def _make(self, layer, cls, config):
        config = {**config, "name": _name(layer), "dtype": _dtype(layer)}
        config.pop("batch_input_shape", None)
        # Not every constructor takes it.
        trainable = config.pop("trainable", True)
        try:
            with keras.saving.custom_object_scope(self.custom_objects):
                new = cls.from_config(config) if self._custom(layer) else cls(**config)
        except (TypeError, ValueError, KeyError) as error:
            raise self._error(layer, f"could not be made in Keras 3: {error}") from error
        new.trainable = trainable
        return new

    def _config(self, layer, cls):
        kind = type(layer).__name__
        config = {key: self._value(layer, key, v) for key, v in layer.get_config().items()}
        change = getattr(self, f"_{kind}", None)
        if change is not None:
            config = change(layer, config)
        if kind in _LOOKUPS:
            config["vocabulary"] = layer.get_vocabulary(include_special_tokens=False) or None
            config.pop("idf_weights", None)
            if config["output_mode"] == "tf_idf":
                raise self._error(layer, "has output_mode='tf_idf', whose weights are not carried")
        allowed = arguments_of(cls) | {"trainable"}
        for key in [key for key in config if key not in allowed]:
            value = config.pop(key)
            inherited = key in _INHERITED and "depthwise_initializer" in allowed
            idle = value in (None, False) or _AS_ALWAYS.get(key) == value
            if not idle and not inherited and key not in _WITHOUT_EFFECT:
                raise self._error(layer, f"has {key}={value!r}, which Keras 3 has not")
        return config

    def _value(self, layer, key, value):
        """One entry of the configuration, with everything of tf_keras in it translated."""
        if key == "activation" or key.endswith("_activation"):
            return self.activation(layer, getattr(layer, key))
        if key in ("cell", "cells", "layer", "forward_layer", "backward_layer"):
            return None
        if type(value).__name__ == "ListWrapper":
            return list(value)
        if isinstance(value, dict) and "class_name" in value:
            return self._object(layer, key, value)
        return value

    def _object(self, layer, key, value):
        """An initializer, regularizer or constraint."""
        name = value["class_name"]
        custom = self.custom_objects.get(value.get("registered_name"))
        custom = self.custom_objects.get(name) if custom is None else custom
        if custom is not None:
            return custom.from_config(value["config"])
        if not str(value.get("module") or "keras").startswith("keras"):
            raise self._error(
                layer,
                f"has a {key} of your own class. Write it for Keras 3 and give "
                f"custom_objects={{{name!r}: your class}}",
            )
        return value

    def activation(self, layer, activation):
        """The Keras 3 form of an activation function.

        Args:
            layer: Layer that errors name.
            activation: Function or layer of tf_keras, a TensorFlow function, or the user's own.
        """
        activation = tfmot_wrappers.float_activation(activation)
        if activation is None:
            return "linear"
        if hasattr(activation, "get_config"):
            return self(activation)
        name = getattr(activation, "__name__", type(activation).__name__)
        if name in self.custom_objects:
            return self.custom_objects[name]
        module = getattr(activation, "__module__", "")
        known = module.startswith(("tf_keras.", "tensorflow."))
        if known and name == "hard_sigmoid":
            return hard_sigmoid
        name = {"identity": "linear"}.get(name, name)
        if known and hasattr(keras.activations, name):
            return name
        raise self._error(
            layer,
            f"has the activation {name!r}, which keras.activations has not. Give "
            f"custom_objects={{{name!r}: a function of keras.ops}}",
        )

    def _BatchNormalization(self, layer, config):
        if len(layer.axis) != 1:
            raise self._error(layer, f"normalises over axis={list(layer.axis)}; Keras 3 takes one")
        return {**config, "axis": int(layer.axis[0])}

    def _SyncBatchNormalization(self, layer, config):
        return {**self._BatchNormalization(layer, config), "synchronized": True}

    def _LeakyReLU(self, layer, config):
        config["negative_slope"] = config.pop("alpha")
        return config

    def _ThresholdedReLU(self, layer, config):
        config["threshold"] = float(config.pop("theta"))
        return config

    def _Bidirectional(self, layer, config):
        return {
            **config,
            "layer": self(layer.forward_layer),
            "backward_layer": self(layer.backward_layer),
        }

    def _RNN(self, layer, config):
        return {**config, "cell": self(layer.cell)}

    def _StackedRNNCells(self, layer, config):
        return {**config, "cells": [self(cell) for cell in layer.cells]}

    def _TimeDistributed(self, layer, config):
        return {**config, "layer": self.called(layer.layer)}

    def _SpectralNormalization(self, layer, config):
        return {**config, "layer": self(layer.layer)}

    @staticmethod
    def _error(layer, what):
        return ValueError(f"from_tf_keras: layer '{layer.name}' ({type(layer).__name__}) {what}.")


def _name(layer):
    # Keras 3 makes paths of names.
    return layer.name.replace("/", "_")


def _dtype(layer):
    return layer._dtype_policy.name


def _registered_name(layer):
    from tf_keras.src.saving import object_registration  # The layer is of tf_keras: it is there.

    return object_registration.get_registered_name(type(layer))


def arguments_of(cls):
    """Names of all arguments that a constructor takes, base classes' included."""
    names = set()
    for base in cls.__mro__:
        if "__init__" in vars(base) and base is not object:
            parameters = inspect.signature(base.__init__).parameters.values()
            names |= {parameter.name for parameter in parameters}
            if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
                break
    return names - {"self", "args", "kwargs"}
