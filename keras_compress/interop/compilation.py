"""The compile() arguments of a tf_keras model, given to a Keras 3 one."""

import operator
import warnings

import keras

from keras_compress.interop.layers import arguments_of

_TAKEN = ("optimizer", "loss", "metrics", "weighted_metrics", "loss_weights", "run_eagerly")


def compile_like(model, source, custom_objects):
    """Compiles a model like one of tf_keras, if that is compiled.

    Where Keras 3 has not what that one is compiled with, it stays as it is, with a warning.

    Args:
        model: Model of Keras 3.
        source: Model of tf_keras.
        custom_objects: Dict from names to losses, metrics and so on for Keras 3.
    """
    if not getattr(source, "_is_compiled", False):
        return
    try:
        config = source.get_compile_config()
        given = {key: _value(config[key], custom_objects) for key in _TAKEN if config.get(key)}
        steps = config.get("steps_per_execution") or 1
        model.compile(**given, steps_per_execution=int(steps))
    except (AttributeError, KeyError, NotImplementedError, TypeError, ValueError) as error:
        warnings.warn(
            f"from_tf_keras: '{source.name}' is compiled, but not so that Keras 3 could be "
            f"compiled like it ({error}). Compile the new model, or name what is yours in "
            "`custom_objects`.",
            stacklevel=3,
        )


def _value(value, custom_objects):
    if isinstance(value, str):
        return custom_objects.get(value, value)
    if isinstance(value, (list, tuple)):
        return [_value(each, custom_objects) for each in value]
    if isinstance(value, dict):
        if "class_name" in value:
            return _object(value, custom_objects)
        return {key: _value(each, custom_objects) for key, each in value.items()}
    return value


def _object(value, custom_objects):
    kind, config = value["class_name"], value["config"]
    if kind == "function":
        known = hasattr(keras.losses, config) or hasattr(keras.metrics, config)
        if config not in custom_objects and not known:
            raise ValueError(f"the function '{config}' is not of Keras")
        return custom_objects.get(config, config)
    if kind == "LossScaleOptimizer":
        # Keras 3 scales losses by itself where the policy asks for it.
        return _value(config["inner_optimizer"], custom_objects)
    for name in (value.get("registered_name"), kind):
        if name in custom_objects:
            return custom_objects[name].from_config(config)
    module = str(value.get("module"))
    if not module.startswith("keras."):
        raise ValueError(f"{kind} of {module} is not of Keras")
    cls = operator.attrgetter(f"{module.removeprefix('keras.')}.{kind}")(keras)
    if config.get("decay"):
        raise ValueError(f"{kind} has decay={config['decay']}; use a learning-rate schedule")
    if config.get("reduction") == "auto":
        config = {**config, "reduction": "sum_over_batch_size"}
    # None is what tf_keras has for "no name"; Keras 3 would take it for the name.
    allowed = arguments_of(cls) - ({"name"} if config.get("name") is None else set())
    return cls(**{k: _value(v, custom_objects) for k, v in config.items() if k in allowed})
