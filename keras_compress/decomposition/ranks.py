"""Rank policies: how many terms of a decomposition to keep."""

import numbers

import numpy as np

from keras_compress import validation
from keras_compress.decomposition.evbmf import evbmf_of_spectrum


class RankPolicy:
    """Chooses ranks from the spectra of a kernel's unfoldings. Subclasses write `choose`."""

    def choose(self, squares, shape):
        """Rank for one unfolding.

        Args:
            squares: Squared singular values of the unfolding, largest first.
            shape: `(rows, columns)` of the unfolding.
        """
        raise NotImplementedError

    def resolve(self, spectra):
        """Ranks of a form: for each rank the largest that one of its unfoldings asks for.

        Args:
            spectra: For each rank of the form a list of `(squares, shape)`.
        """
        return tuple(max(self.choose(*unfolding) for unfolding in one) for one in spectra)


class Energy(RankPolicy):
    """Smallest rank that keeps a share of the squared singular values.

    For a form that truncates one unfolding (`"svd"`, `"spatial"`) the squared relative error of
    the kernel is then at most `1 - fraction`. `"tucker"` truncates two and may lose twice that;
    for `"cp"` it is the smallest rank that no unfolding rules out.

    Args:
        fraction: Share to keep, in (0, 1].

    Raises:
        ValueError: if `fraction` is outside (0, 1].

    Example:

    >>> Energy(0.9).choose([8.0, 1.5, 0.5], (3, 3))
    2
    """

    def __init__(self, fraction):
        self.fraction = validation.number("fraction", fraction, 0, 1, low_open=True, owner=self)

    def choose(self, squares, shape):
        squares = np.asarray(squares, "float64")
        # lost[r]: what is left out by keeping r + 1 of them.
        tail = np.cumsum(squares[::-1])[::-1]
        lost, total = np.append(tail[1:], 0.0), tail[0]
        # The slack is below float32 rounding: at fraction 1 no rank is spent on rounding errors.
        return 1 + int(np.argmax(lost <= (1 - self.fraction + 1e-12) * total))

    def __repr__(self):
        return f"Energy({self.fraction})"


class EVBMF(RankPolicy):
    """Number of singular values that noise cannot explain, at least 1: see `evbmf`.

    Example:

    >>> EVBMF().choose([900.0] + [1.0] * 9, (10, 40))
    1
    """

    def choose(self, squares, shape):
        return max(1, evbmf_of_spectrum(squares, shape).rank)

    def __repr__(self):
        return "EVBMF()"


def rank_policy(rank, owner=None):
    """Returns the policy that `rank` names, or `None` if `rank` is given in integers.

    Args:
        rank: A `RankPolicy`, a float in (0, 1] (`Energy`), `"evbmf"`, an integer or a sequence.
        owner: Whom an error speaks of.

    Raises:
        ValueError: if `rank` is none of these.
    """
    if isinstance(rank, RankPolicy):
        return rank
    if isinstance(rank, str):
        validation.one_of("rank", rank, ("evbmf",), owner)
        return EVBMF()
    if isinstance(rank, numbers.Real) and not isinstance(rank, numbers.Integral):
        if not 0 < rank <= 1:
            raise ValueError(
                f"{validation.prefix(owner)}a float `rank` is the share of the squared singular "
                f"values to keep, in (0, 1]; got rank={rank!r}. Give a number of terms as an "
                "integer."
            )
        return Energy(rank)
    return None


def resolve_rank(rank, limits, spectra=None, owner=None):
    """Makes the ranks of a form explicit.

    Args:
        rank: An integer (every rank of the form gets it, or as much as it can use), as many
            integers as the form has ranks, or what `rank_policy` takes.
        limits: Largest useful value of each rank.
        spectra: Function without arguments that gives, for each rank, a list of
            `(squares, shape)`; called only if `rank` depends on the kernel.
        owner: Whom an error speaks of.

    Returns:
        Tuple of integers, one for each entry of `limits`.

    Raises:
        ValueError: if a rank is out of range, or depends on a kernel and there is none.

    Example:

    >>> resolve_rank(16, limits=(64, 8))
    (16, 8)
    """
    policy = rank_policy(rank, owner)
    if policy is not None:
        if spectra is None:
            raise ValueError(
                f"{validation.prefix(owner)}rank={rank!r} is chosen by the singular values of a "
                "trained kernel, and a layer built from scratch has none. Use from_layer(), or "
                "give integers."
            )
        ranks = policy.resolve(spectra())
        return tuple(min(value, limit) for value, limit in zip(ranks, limits, strict=True))
    if not hasattr(rank, "__iter__"):
        return _one_integer(rank, limits, owner)
    ranks = validation.positive_ints("rank", rank, owner)
    if len(ranks) != len(limits):
        integers = "an integer" if len(limits) == 1 else f"an integer or {len(limits)} integers"
        raise ValueError(
            f"{validation.prefix(owner)}`rank` must be {integers} here; got rank={rank!r}."
        )
    for k, (value, limit) in enumerate(zip(ranks, limits, strict=True)):
        if value > limit:
            raise ValueError(
                f"{validation.prefix(owner)}rank[{k}]={value} is larger than the kernel allows "
                f"({limit}). The largest useful ranks are {limits}."
            )
    return ranks


def _one_integer(rank, limits, owner):
    rank = validation.positive_int("rank", rank, owner)
    if rank > max(limits):
        raise ValueError(
            f"{validation.prefix(owner)}`rank` is larger than the kernel allows: got rank={rank}, "
            f"the largest useful rank is {max(limits)}. Lower it."
        )
    return tuple(min(rank, limit) for limit in limits)
