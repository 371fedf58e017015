"""TensorFlow functions that a tf_keras graph calls on its tensors, as functions of `keras.ops`.

Each takes the arguments of the TensorFlow function. `tf.shape` gives a tuple with `None` for open
sizes, so that shape arithmetic is done while the graph is made, not in it.
"""

import inspect
import math
import operator

import keras
from keras import ops


def apply(function, symbol, args, kwargs):
    """Calls what stands for a TensorFlow function.

    Args:
        function: The TensorFlow function.
        symbol: Its public name without `tf.`, as `layer.symbol` of a `TFOpLambda` has it.
        args: Positional arguments, with tensors of Keras 3 and NumPy constants.
        kwargs: Keyword arguments, likewise.

    Raises:
        ValueError: if there is no equivalent here, or an argument that it has no equivalent of.
    """
    equivalent = _FUNCTIONS.get((symbol or "").removeprefix("compat.v1."))
    if equivalent is None:
        raise ValueError(f"`tf.{symbol}` has no translation to keras.ops")
    signature = inspect.signature(function)
    if all(p.kind is not p.VAR_POSITIONAL for p in signature.parameters.values()):
        # By name: versions of a function have the same arguments in different places.
        kwargs, args = signature.bind(*args, **kwargs).arguments, ()
    return equivalent(*args, **{key: v for key, v in kwargs.items() if key != "name"})


def _is_tensor(value):
    return isinstance(value, keras.KerasTensor) or getattr(value, "ndim", 0) > 0


def _dtype(dtype):
    return getattr(dtype, "name", dtype)


def _arithmetic(on_tensors, on_sizes):
    def call(x, y):
        if _is_tensor(x) or _is_tensor(y):
            return on_tensors(x, y)
        if x is None or y is None:
            raise ValueError("it computes with a size that is open in the model, as the batch's")
        return on_sizes(x, y)

    return call


def _binary(function):
    def call(x, y):
        return function(x, y)

    return call


def _unary(function):
    def call(x=None, **kwargs):
        # TensorFlow names the argument x, features, logits, input or input_tensor.
        given = [x, *kwargs.values()]
        (value,) = [value for value in given if value is not None]
        return function(value)

    return call


def _reduction(function):
    def call(input_tensor, axis=None, keepdims=False):
        return function(input_tensor, axis=axis, keepdims=keepdims)

    return call


def _only(allowed, **given):
    for name, value in given.items():
        if value not in allowed:
            raise ValueError(f"`{name}={value!r}` has no equivalent")


def _shape(input, *_, **__):
    return tuple(input.shape)


def _getitem(tensor, slice_spec, var=None):
    spec = slice_spec if isinstance(slice_spec, (list, tuple)) else (slice_spec,)
    spec = tuple(_slice(part) for part in spec)
    if isinstance(tensor, tuple):
        (spec,) = spec
    return tensor[spec]


def _slice(part):
    if isinstance(part, dict):
        return slice(part["start"], part["stop"], part["step"])
    return part if part is None or part is Ellipsis or isinstance(part, slice) else int(part)


def _reshape(tensor, shape):
    sizes = [None if size is None else int(size) for size in shape]
    if None in sizes:
        # tf.shape(x)[0] with the batch open: that axis stays the open one.
        rest = [size for size in sizes if size is not None]
        if -1 in rest:
            known = [size for size in tensor.shape if size is not None]
            if len(known) != len(tensor.shape) - 1:
                raise ValueError("it reshapes to two open sizes")
            sizes[sizes.index(-1)] = math.prod(known) // -math.prod(rest)
        sizes[sizes.index(None)] = -1
    if None in sizes:
        raise ValueError("it reshapes to two open sizes")
    return ops.reshape(tensor, sizes)


def _stack(values, axis=0):
    if not any(map(_is_tensor, values)):
        return tuple(values)
    return ops.stack(values, axis=axis)


def _unstack(value, num=None, axis=0):
    return list(value) if isinstance(value, tuple) else ops.unstack(value, num, axis)


def _split(value, num_or_size_splits, axis=0, num=None):
    if hasattr(num_or_size_splits, "__len__"):
        sizes = [int(size) for size in num_or_size_splits]
        if -1 in sizes:
            sizes[sizes.index(-1)] = value.shape[axis] - sum(sizes) - 1
        num_or_size_splits = [sum(sizes[: i + 1]) for i in range(len(sizes) - 1)]
    return list(ops.split(value, num_or_size_splits, axis=axis))


def _transpose(a, perm=None, conjugate=False):
    _only((False,), conjugate=conjugate)
    return ops.transpose(a, None if perm is None else [int(axis) for axis in perm])


def _squeeze(input, axis=None, squeeze_dims=None):
    axis = squeeze_dims if axis is None else axis
    return ops.squeeze(input, tuple(axis) if isinstance(axis, list) else axis)


def _gather(params, indices, validate_indices=None, axis=None, batch_dims=0):
    _only((0,), batch_dims=batch_dims)
    return ops.take(params, indices, axis=axis or 0)


def _pad(tensor, paddings, mode="CONSTANT", constant_values=0):
    pairs = [tuple(int(size) for size in pair) for pair in paddings]
    if mode.upper() == "CONSTANT":
        return ops.pad(tensor, pairs, mode="constant", constant_values=constant_values)
    return ops.pad(tensor, pairs, mode=mode.lower())


def _matmul(a, b, transpose_a=False, transpose_b=False, **flags):
    _only((False, None), **flags)
    a = ops.swapaxes(a, -1, -2) if transpose_a else a
    return ops.matmul(a, ops.swapaxes(b, -1, -2) if transpose_b else b)


def _tensordot(a, b, axes):
    return ops.tensordot(a, b, axes=axes)


def _l2_normalize(x, axis=None, epsilon=1e-12):
    square = ops.sum(ops.square(x), axis=axis, keepdims=True)
    return x * ops.rsqrt(ops.maximum(square, epsilon))


def _norm(tensor, ord="euclidean", axis=None, keepdims=False, keep_dims=None):
    _only(("euclidean", 2), ord=ord)
    return ops.sqrt(ops.sum(ops.square(tensor), axis=axis, keepdims=bool(keepdims or keep_dims)))


def _softmax(logits, axis=-1, dim=None):
    axis = axis if dim is None else dim
    return ops.softmax(logits, axis=-1 if axis is None else axis)


def _log_softmax(logits, axis=-1, dim=None):
    axis = axis if dim is None else dim
    return ops.log_softmax(logits, axis=-1 if axis is None else axis)


def _leaky_relu(features, alpha=0.2):
    return ops.leaky_relu(features, negative_slope=alpha)


def _gelu(features, approximate=False):
    return ops.gelu(features, approximate=approximate)


def _silu(features, beta=1.0):
    _only((1.0,), beta=beta)
    return ops.silu(features)


def _where(condition, x=None, y=None):
    if x is None or y is None:
        raise ValueError("its output has an open number of rows")
    return ops.where(condition, x, y)


def _one_hot(indices, depth, on_value=None, off_value=None, axis=None, dtype=None):
    _only((None, 1, 0), on_value=on_value, off_value=off_value)
    return ops.one_hot(
        indices, int(depth), axis=-1 if axis is None else axis, dtype=_dtype(dtype) or "float32"
    )


def _argmax(input, axis=None, output_type="int64"):
    return ops.cast(ops.argmax(input, axis=axis or 0), _dtype(output_type))


def _bias_add(value, bias, data_format=None):
    _only((None, "NHWC", "N...C"), data_format=data_format)
    return ops.add(value, bias)


def _resize(images, size, method="bilinear", preserve_aspect_ratio=False, antialias=False):
    _only((False,), preserve_aspect_ratio=preserve_aspect_ratio)
    size = tuple(int(side) for side in size)
    return ops.image.resize(
        images, size, interpolation=method, antialias=antialias, data_format="channels_last"
    )


def _cumsum(x, axis=0, exclusive=False, reverse=False):
    _only((False,), exclusive=exclusive, reverse=reverse)
    return ops.cumsum(x, axis=axis)


def _like(function):
    def call(input=None, dtype=None, tensor=None, optimize=True):
        return function(tensor if input is None else input, dtype=_dtype(dtype))

    return call


_FUNCTIONS = {
    "__operators__.add": _arithmetic(ops.add, operator.add),
    "__operators__.getitem": _getitem,
    "argmax": _argmax,
    "broadcast_to": lambda input, shape: ops.broadcast_to(input, tuple(shape)),
    "cast": lambda x, dtype: ops.cast(x, _dtype(dtype)),
    "clip_by_value": lambda t, clip_value_min, clip_value_max: ops.clip(
        t, clip_value_min, clip_value_max
    ),
    "concat": lambda values, axis: ops.concatenate(values, axis=int(axis)),
    "convert_to_tensor": lambda value, dtype=None, **_: value,
    "einsum": ops.einsum,
    "expand_dims": lambda input, axis: ops.expand_dims(input, axis),
    "gather": _gather,
    "identity": lambda input: input,
    "image.resize": _resize,
    "linalg.l2_normalize": _l2_normalize,
    "linalg.matmul": _matmul,
    "math.argmax": _argmax,
    "math.cumsum": _cumsum,
    "math.l2_normalize": _l2_normalize,
    "nn.bias_add": _bias_add,
    "nn.gelu": _gelu,
    "nn.l2_normalize": _l2_normalize,
    "nn.leaky_relu": _leaky_relu,
    "nn.log_softmax": _log_softmax,
    "nn.silu": _silu,
    "nn.softmax": _softmax,
    "nn.swish": _silu,
    "norm": _norm,
    "one_hot": _one_hot,
    "ones_like": _like(ops.ones_like),
    "pad": _pad,
    "repeat": lambda input, repeats, axis=None: ops.repeat(input, repeats, axis=axis),
    "reshape": _reshape,
    "reverse": lambda tensor, axis: ops.flip(tensor, axis=tuple(axis)),
    "roll": lambda input, shift, axis: ops.roll(input, shift, axis=axis),
    "shape": _shape,
    "split": _split,
    "squeeze": _squeeze,
    "stack": _stack,
    "stop_gradient": ops.stop_gradient,
    "tensordot": _tensordot,
    "tile": lambda input, multiples: ops.tile(input, [int(count) for count in multiples]),
    "transpose": _transpose,
    "unstack": _unstack,
    "where": _where,
    "zeros_like": _like(ops.zeros_like),
}
for _name, _of_sizes in {
    "add": operator.add,
    "divide": operator.truediv,
    "equal": operator.eq,
    "floordiv": operator.floordiv,
    "floormod": operator.mod,
    "greater": operator.gt,
    "greater_equal": operator.ge,
    "less": operator.lt,
    "less_equal": operator.le,
    "maximum": max,
    "minimum": min,
    "multiply": operator.mul,
    "not_equal": operator.ne,
    "pow": operator.pow,
    "subtract": operator.sub,
    "truediv": operator.truediv,
}.items():
    _keras_name = {"floordiv": "floor_divide", "floormod": "mod", "pow": "power"}.get(_name, _name)
    _keras_name = {"truediv": "true_divide"}.get(_keras_name, _keras_name)
    _FUNCTIONS[f"math.{_name}"] = _arithmetic(getattr(ops, _keras_name), _of_sizes)
for _name in ("logical_and", "logical_or", "logical_xor"):
    _FUNCTIONS[f"math.{_name}"] = _binary(getattr(ops, _name))
_FUNCTIONS["math.squared_difference"] = lambda x, y: ops.square(x - y)
for _name in (
    *("abs", "ceil", "cos", "erf", "exp", "expm1", "floor", "log", "log1p", "logical_not"),
    *("negative", "reciprocal", "round", "rsqrt", "sigmoid", "sign", "sin", "softplus"),
    *("sqrt", "square", "tan", "tanh"),
):
    _FUNCTIONS[f"math.{_name}"] = _unary(getattr(ops, _name))
for _name in ("elu", "relu", "relu6", "selu", "sigmoid", "softplus", "softsign", "tanh"):
    _FUNCTIONS[f"nn.{_name}"] = _unary(getattr(ops, _name))
for _name in ("all", "any", "logsumexp", "max", "mean", "min", "prod", "std", "sum", "var"):
    _FUNCTIONS[f"math.reduce_{_name}"] = _reduction(getattr(ops, _name))
_FUNCTIONS["math.reduce_variance"] = _FUNCTIONS.pop("math.reduce_var")
# The short names that TensorFlow has for some of them, too.
for _name in ("abs", "add", "divide", "exp", "floor", "maximum", "minimum", "multiply", "negative"):
    _FUNCTIONS[_name] = _FUNCTIONS[f"math.{_name}"]
for _name in ("pow", "round", "sigmoid", "sign", "sqrt", "square", "subtract", "tanh", "truediv"):
    _FUNCTIONS[_name] = _FUNCTIONS[f"math.{_name}"]
_FUNCTIONS["matmul"] = _matmul
_FUNCTIONS["floor_div"] = _FUNCTIONS["math.floordiv"]
