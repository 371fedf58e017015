"""Argument checks whose errors name the argument, the value, what is allowed and the remedy."""

import difflib
import numbers


def positive_int(name, value, owner=None):
    """Returns `value` as an `int`, or raises `ValueError` if it is not an integer >= 1."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < 1:
        raise ValueError(
            f"{prefix(owner)}`{name}` must be a positive integer; got {name}={value!r}."
        )
    return int(value)


def positive_ints(name, values, owner=None):
    """Returns `values` as a tuple of `int`, each >= 1."""
    if isinstance(values, (str, bytes)) or not hasattr(values, "__iter__"):
        raise ValueError(
            f"{prefix(owner)}`{name}` must be a sequence of positive integers; "
            f"got {name}={values!r}."
        )
    return tuple(positive_int(f"{name}[{i}]", value, owner) for i, value in enumerate(values))


def integer(name, value, low, high, owner=None):
    """Returns `value` as an `int`, or raises `ValueError` if it is no integer in `[low, high]`."""
    whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if not whole or not low <= value <= high:
        raise ValueError(
            f"{prefix(owner)}`{name}` must be an integer from {low} to {high}; "
            f"got {name}={value!r}."
        )
    return int(value)


def number(name, value, low=None, high=None, *, low_open=False, high_open=False, owner=None):
    """Returns `value` as a `float` inside the given interval, or raises `ValueError`."""
    real = isinstance(value, numbers.Real) and not isinstance(value, bool)
    ok = real and value == value
    if ok and low is not None:
        ok = value > low if low_open else value >= low
    if ok and high is not None:
        ok = value < high if high_open else value <= high
    if not ok:
        left = "(" if low_open or low is None else "["
        right = ")" if high_open or high is None else "]"
        low_text = "-inf" if low is None else low
        high_text = "inf" if high is None else high
        raise ValueError(
            f"{prefix(owner)}`{name}` must be a number in {left}{low_text}, {high_text}{right}; "
            f"got {name}={value!r}."
        )
    return float(value)


def seed(value, owner=None):
    """Returns a seed that weights are made again from as an `int` in [0, 2**32)."""
    integer = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if not integer or not 0 <= value < 2**32:
        raise ValueError(
            f"{prefix(owner)}`seed` must be an integer in [0, 2**32), since it is part of the "
            f"model: weights are made again from it; got seed={value!r}."
        )
    return int(value)


def one_of(name, value, allowed, owner=None):
    """Returns `value` if it is one of `allowed`, else a `ValueError` with the nearest."""
    allowed = tuple(allowed)
    if value not in allowed:
        raise ValueError(
            f"{prefix(owner)}`{name}` must be one of {', '.join(map(repr, allowed))}; "
            f"got {name}={value!r}.{did_you_mean(value, allowed)}"
        )
    return value


def did_you_mean(name, names):
    """Returns `" Did you mean 'a' or 'b'?"` for the nearest `names`, or `""` if none is near."""
    near = difflib.get_close_matches(
        str(name), [n for n in names if isinstance(n, str)], n=3, cutoff=0.4
    )
    return f" Did you mean {' or '.join(map(repr, near))}?" if near else ""


def prefix(owner):
    """`"Owner: "`, the start of an error message, or `""`; `owner` is an object or a name."""
    if owner is None:
        return ""
    return f"{owner if isinstance(owner, str) else type(owner).__name__}: "
