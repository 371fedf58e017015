"""Tensor-train (TT) matrices: fitting, reconstruction and the cheapest order of contraction.

A matrix `W` of shape `(prod n_k, prod m_k)` is a chain of cores `G_k` of shape
`(r_{k-1}, n_k, m_k, r_k)` with `r_0 = r_d = 1`:
`W[(i_1..i_d), (j_1..j_d)] = G_1[:, i_1, j_1, :] @ ... @ G_d[:, i_d, j_d, :]`.

Reference:
    Novikov, Podoprikhin, Osokin, Vetrov, "Tensorizing Neural Networks", 2015.
    Oseledets, "Tensor-Train Decomposition", 2011 (TT-SVD).
"""

import functools
import math
import numbers

import numpy as np
from keras import ops

from keras_compress import validation

# LiteRT transposes tensors of at most 6 axes (XNNPACK as fast as a copy up to that); longer
# permutations are cut into block moves of at most 4.
_MAX_TRANSPOSE_AXES = 6


def balanced_modes(input_size, output_size, target=8):
    """Splits the two sizes of a matrix into the same number of modes, each as even as possible.

    Args:
        input_size: Rows of the matrix.
        output_size: Columns of the matrix.
        target: Mode size aimed at: the number of modes is `log(max size) / log(target)`, at
            least 2.

    Returns:
        `(input_modes, output_modes)`, two tuples of equal length.

    Example:

    >>> balanced_modes(4096, 64)
    ((8, 8, 8, 8), (2, 2, 4, 4))
    """
    larger = max(input_size, output_size)
    count = max(2, round(math.log(larger) / math.log(target)))
    return split_evenly(input_size, count), split_evenly(output_size, count)


def split_evenly(size, count):
    """Factors `size` into `count` integers whose product it is, in ascending order.

    Prime factors go, largest first, to the smallest product so far.
    """
    modes = [1] * count
    for prime in sorted(prime_factors(size), reverse=True):
        modes[modes.index(min(modes))] *= prime
    return tuple(sorted(modes))


def prime_factors(size):
    """Prime factors of a positive integer, ascending."""
    factors, divisor = [], 2
    while divisor * divisor <= size:
        while size % divisor == 0:
            factors.append(divisor)
            size //= divisor
        divisor += 1
    return factors + [size] if size > 1 else factors


def max_ranks(input_modes, output_modes):
    """Largest TT-rank that each of the `d - 1` bonds can need."""
    sizes = [n * m for n, m in zip(input_modes, output_modes, strict=True)]
    return tuple(min(math.prod(sizes[:k]), math.prod(sizes[k:])) for k in range(1, len(sizes)))


def resolve_ranks(rank, input_modes, output_modes, owner=None):
    """Makes the `d - 1` inner ranks explicit.

    Args:
        rank: An integer (an upper bound for every bond: bonds that cannot need it get what they
            can) or a sequence of `d - 1` integers (or `d + 1` with a 1 at both ends).
        input_modes: Tuple of `d` integers.
        output_modes: Tuple of `d` integers.
        owner: Whom an error speaks of.

    Returns:
        Tuple of `d - 1` integers.
    """
    limits, who = max_ranks(input_modes, output_modes), validation.prefix(owner)
    if isinstance(rank, numbers.Integral):
        rank = validation.positive_int("rank", rank, owner)
        if limits and rank > max(limits):
            raise ValueError(
                f"{who}`rank` is larger than the modes allow: got rank={rank}, the "
                f"largest useful rank is {max(limits)} (bonds: {limits}). Lower it, or choose "
                "more even modes."
            )
        return tuple(min(rank, limit) for limit in limits)
    if isinstance(rank, numbers.Real):
        raise ValueError(
            f"{who}a fractional `rank` is an error bound, which only a trained kernel can "
            f"meet; got rank={rank!r}. Use from_layer(), or give integers."
        )
    ranks = validation.positive_ints("rank", rank, owner)
    if len(ranks) == len(limits) + 2 and ranks[0] == ranks[-1] == 1:
        ranks = ranks[1:-1]
    if len(ranks) != len(limits):
        raise ValueError(
            f"{who}`rank` must be an integer or {len(limits)} integers, one between each "
            f"two of the {len(limits) + 1} modes; got rank={rank!r}."
        )
    for k, (value, limit) in enumerate(zip(ranks, limits, strict=True)):
        if value > limit:
            raise ValueError(
                f"{who}rank[{k}]={value} is larger than the modes allow ({limit}). The "
                f"largest useful ranks are {limits}."
            )
    return ranks


def tt_svd(matrix, input_modes, output_modes, rank):
    """Fits TT cores to a matrix by successive truncated SVDs.

    The squared error is at most the sum of what each truncation left out, so a bound `eps` is met
    by leaving out at most `eps / sqrt(d - 1)` of the norm at each.

    Args:
        matrix: Array of shape `(prod input_modes, prod output_modes)`.
        input_modes: Tuple of `d` integers.
        output_modes: Tuple of `d` integers.
        rank: Integer, sequence of `d - 1` integers, or a float in (0, 1): bound of the relative
            Frobenius error.

    Returns:
        `(cores, errors)`: `d` float32 arrays of shape `(r_{k-1}, n_k, m_k, r_k)`, and the
        `d - 1` relative truncation errors.
    """
    d = len(input_modes)
    matrix = np.asarray(matrix, "float32")
    norm = float(np.linalg.norm(matrix)) or 1.0
    if isinstance(rank, numbers.Real) and not isinstance(rank, numbers.Integral):
        bound = validation.number("rank", rank, 0, 1, low_open=True, high_open=True)
        ranks, allowed = None, bound * norm / math.sqrt(max(1, d - 1))
    else:
        ranks, allowed = resolve_ranks(rank, input_modes, output_modes), None

    rest = matrix.reshape(*input_modes, *output_modes)
    rest = rest.transpose([axis for k in range(d) for axis in (k, d + k)])
    cores, errors, left = [], [], 1
    for k in range(d - 1):
        rest = rest.reshape(left * input_modes[k] * output_modes[k], -1)
        basis, values = _left_singular_vectors(rest)
        # tail[r]: what is lost by keeping r of the singular values.
        tail = np.sqrt(np.append(np.cumsum(values[::-1] ** 2)[::-1], 0.0))
        if ranks is None:
            keep = max(1, int(np.argmax(tail <= allowed)))
        else:
            keep = min(ranks[k], basis.shape[1])
        errors.append(float(tail[keep]) / norm)
        basis = np.ascontiguousarray(basis[:, :keep], "float32")
        rest = basis.T @ rest
        if ranks is not None and keep < ranks[k]:
            # The layer's shapes are fixed by the ranks asked for: pad with zeros.
            basis = np.pad(basis, ((0, 0), (0, ranks[k] - keep)))
            rest = np.pad(rest, ((0, ranks[k] - keep), (0, 0)))
            keep = ranks[k]
        cores.append(basis.reshape(left, input_modes[k], output_modes[k], keep))
        left = keep
    cores.append(rest.reshape(left, input_modes[-1], output_modes[-1], 1))
    return cores, errors


def _left_singular_vectors(matrix):
    """Left singular vectors and singular values, largest first, of a float32 matrix.

    A wide matrix goes by its Gram matrix, summed in float64 over blocks of columns: the first
    unfolding of a 25088 x 4096 matrix has 8 rows and 13 million columns.
    """
    rows, columns = matrix.shape
    if rows > columns:
        basis, values, _ = np.linalg.svd(matrix, full_matrices=False)
        return basis, values.astype("float64")
    gram = np.zeros((rows, rows))
    step = max(1, 2**22 // rows)
    for start in range(0, columns, step):
        block = matrix[:, start : start + step].astype("float64")
        gram += block @ block.T
    squares, basis = np.linalg.eigh(gram)
    return basis[:, ::-1], np.sqrt(np.maximum(squares[::-1], 0.0))


def tt_to_matrix(cores):
    """Returns the matrix of shape `(prod n_k, prod m_k)` that a list of TT cores stands for."""
    product = np.ones((1, 1, 1), "float32")
    for core in cores:
        core = np.asarray(core, "float32")
        product = np.einsum("IJr,rnms->InJms", product, core, optimize=True)
        rows, n, columns, m, r = product.shape
        product = product.reshape(rows * n, columns * m, r)
    return product[:, :, 0]


@functools.lru_cache(maxsize=256)
def contraction_order(input_modes, output_modes, ranks):
    """Order in which to contract a vector with the cores for the fewest multiply-accumulates.

    Exact: a shortest path over the sets of cores already contracted (any core may come next, not
    only a neighbour of the last). Ties go to the earlier core.

    Args:
        input_modes: Tuple of `d` integers.
        output_modes: Tuple of `d` integers.
        ranks: Tuple of the `d - 1` inner ranks.

    Returns:
        `(order, macs)`: tuple of core indices, and the multiply-accumulates for one vector.
    """
    d = len(input_modes)
    bonds = (1, *ranks, 1)

    def step_macs(done, k):
        size = math.prod(output_modes[j] if done >> j & 1 else input_modes[j] for j in range(d))
        for bond in range(1, d):
            if (done >> (bond - 1) & 1) != (done >> bond & 1):
                size *= bonds[bond]
        left_open = k > 0 and not done >> (k - 1) & 1
        right_open = k < d - 1 and not done >> (k + 1) & 1
        return (
            size
            * output_modes[k]
            * (bonds[k] if left_open else 1)
            * (bonds[k + 1] if right_open else 1)
        )

    # Subsets in increasing order: every subset is reached before any of its supersets.
    best = {0: (0, ())}
    for done in range(1 << d):
        macs, order = best.pop(done) if done + 1 < 1 << d else best[done]
        for k in range(d):
            if done >> k & 1:
                continue
            reached = done | 1 << k
            candidate = (macs + step_macs(done, k), (*order, k))
            if reached not in best or candidate < best[reached]:
                best[reached] = candidate
    macs, order = best[(1 << d) - 1]
    return order, macs


def tt_matmul(inputs, cores, input_modes, output_modes, order):
    """Product of `inputs` with a TT matrix, one core at a time: the matrix is never formed.

    Each core is one matmul with a `(contracted, produced)` matrix, between a reshape and at most
    one transpose; a converter sees RESHAPE, TRANSPOSE and FULLY_CONNECTED.

    Args:
        inputs: Tensor of shape `(rows, prod input_modes)`.
        cores: List of tensors `(r_{k-1}, n_k, m_k, r_k)`.
        input_modes: Tuple of `d` integers.
        output_modes: Tuple of `d` integers.
        order: Core indices in the order of contraction.

    Returns:
        Tensor of shape `(rows, prod output_modes)`.
    """
    d = len(cores)
    # Axes are named ("n", k), ("m", k) and ("r", k), the bond between cores k - 1 and k.
    axes = [("n", k) for k in range(d)]
    sizes = {("n", k): input_modes[k] for k in range(d)}
    sizes |= {("m", k): output_modes[k] for k in range(d)}
    sizes |= {("r", k): cores[k].shape[0] for k in range(d)}
    x = inputs
    for k in order:
        core_axes = [("r", k), ("n", k), ("m", k), ("r", k + 1)]
        if k == 0:
            core_axes.remove(("r", 0))
        if k == d - 1:
            core_axes.remove(("r", d))
        contracted = [a for a in core_axes if a in axes]
        produced = [a for a in core_axes if a not in axes]
        # Outputs stay in ascending order, so that no transpose is left over at the end.
        rest = sorted(a for a in axes if a not in contracted and a[0] != "m")
        rest += sorted(a for a in axes if a[0] == "m")
        x = _permute(x, axes, rest + contracted, sizes)
        width = math.prod(sizes[a] for a in contracted)
        matrix = ops.reshape(cores[k], [sizes[a] for a in core_axes])
        matrix = ops.transpose(matrix, [core_axes.index(a) for a in contracted + produced])
        x = ops.matmul(ops.reshape(x, (-1, width)), ops.reshape(matrix, (width, -1)))
        axes = rest + produced
    x = _permute(x, axes, sorted(axes), sizes)
    return ops.reshape(x, (-1, math.prod(output_modes)))


def _permute(x, axes, wanted, sizes):
    """Transposes the named axes of `x` (rows first, then `axes` in any reshape) to `wanted`."""
    while axes != wanted:
        blocks = _moved_blocks(axes, wanted)
        if len(blocks) + 1 > _MAX_TRANSPOSE_AXES:
            axes, blocks, target = _first_block_move(axes, wanted)
        else:
            target = [blocks.index(b) for b in sorted(blocks, key=lambda b: wanted.index(b[0]))]
            axes = wanted
        shape = [math.prod(sizes[a] for a in block) for block in blocks]
        x = ops.transpose(ops.reshape(x, (-1, *shape)), (0, *(t + 1 for t in target)))
    return x


def _moved_blocks(axes, wanted):
    """Cuts `axes` into the longest runs that stay together in `wanted`."""
    blocks = [[axes[0]]]
    for before, axis in zip(axes, axes[1:], strict=False):
        if wanted.index(axis) == wanted.index(before) + 1:
            blocks[-1].append(axis)
        else:
            blocks.append([axis])
    return blocks


def _first_block_move(axes, wanted):
    """Moves the run that should stand first among those out of place: `(axes, blocks, order)`."""
    start = next(i for i, (a, w) in enumerate(zip(axes, wanted, strict=True)) if a != w)
    begin = axes.index(wanted[start])
    end = begin + 1
    while end < len(axes) and axes[end] == wanted[start + end - begin]:
        end += 1
    blocks = [axes[:start], axes[start:begin], axes[begin:end], axes[end:]]
    order = [0, 2, 1, 3]
    kept = [i for i in range(4) if blocks[i]]
    order = [kept.index(i) for i in order if i in kept]
    blocks = [blocks[i] for i in kept]
    return [a for i in order for a in blocks[i]], blocks, order
