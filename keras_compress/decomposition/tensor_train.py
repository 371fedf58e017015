"""Tensor-train (TT) matrices: fitting, reconstruction and the cheapest order of contraction.

A matrix `W` of shape `(prod n_k, prod m_k)` is a chain of cores `G_k` of shape
`(r_{k-1}, n_k, m_k, r_k)` with `r_0 = r_d = 1`:
`W[(i_1..i_d), (j_1..j_d)] = G_1[:, i_1, j_1, :] @ ... @ G_d[:, i_d, j_d, :]`.

A convolution's kernel `(height, width, prod s_k, prod t_k)` is the chain of modes
`n = (height * width, s_1..s_d)` and `m = (1, t_1..t_d)`: the first core is a bank of `r_1` filters
that all channels share.

Reference:
    Novikov, Podoprikhin, Osokin, Vetrov, "Tensorizing Neural Networks", 2015.
    Garipov, Podoprikhin, Novikov, Vetrov, "Ultimate Tensorization: Compressing Convolutional and FC
    Layers Alike", 2016.
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


def check_modes(input_modes, output_modes, output_size, owner=None, output_name="units"):
    """Checks the modes that are known before the input is.

    Args:
        input_modes: Sequence of integers, or `None`.
        output_modes: Sequence of integers, or `None`.
        output_size: Product of the output modes.
        owner: Whom an error speaks of.
        output_name: What the output size is called there.

    Returns:
        `(input_modes, output_modes)`: tuples, or `None`.
    """
    if input_modes is not None:
        input_modes = validation.positive_ints("input_modes", input_modes, owner)
    if output_modes is not None:
        output_modes = validation.positive_ints("output_modes", output_modes, owner)
        _check_product("output_modes", output_modes, output_name, output_size, owner)
    if input_modes and output_modes and len(input_modes) != len(output_modes):
        raise ValueError(
            f"{validation.prefix(owner)}`input_modes` and `output_modes` must have as many entries "
            f"as each other; got input_modes={input_modes}, output_modes={output_modes}. Put 1s "
            "where there is nothing to split."
        )
    return input_modes, output_modes


def resolve_modes(
    input_modes, output_modes, input_size, output_size, owner=None, output_name="units"
):
    """Makes the modes explicit: those that are `None` are as even as possible.

    Args:
        input_modes: Sequence of integers, or `None`.
        output_modes: Sequence of integers, or `None`.
        input_size: Product of the input modes.
        output_size: Product of the output modes.
        owner: Whom an error speaks of.
        output_name: What the output size is called there.

    Returns:
        `(input_modes, output_modes)`, two tuples of equal length.

    Example:

    >>> resolve_modes((2, 4, 2), None, 16, 30)
    ((2, 4, 2), (2, 3, 5))
    """
    input_modes, output_modes = check_modes(
        input_modes, output_modes, output_size, owner, output_name
    )
    if input_modes is None and output_modes is None:
        return balanced_modes(input_size, output_size)
    if input_modes is None:
        input_modes = split_evenly(input_size, len(output_modes))
    if output_modes is None:
        output_modes = split_evenly(output_size, len(input_modes))
    _check_product("input_modes", input_modes, "input size", input_size, owner)
    return input_modes, output_modes


def _check_product(name, modes, what, size, owner):
    if math.prod(modes) != size:
        raise ValueError(
            f"{validation.prefix(owner)}the product of `{name}` must be the {what}, {size}; got "
            f"{name}={modes}, product {math.prod(modes)}. For {len(modes)} modes, "
            f"{split_evenly(size, len(modes))} would do."
        )


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
    step_macs = functools.partial(_step_macs, input_modes, output_modes, ranks)
    order = _cheapest_order(len(input_modes), step_macs)
    return order, sum(_macs_in_order(order, step_macs))


@functools.lru_cache(maxsize=256)
def conv_contraction_order(taps, shrinkage, input_modes, output_modes, ranks):
    """`contraction_order` for a convolution, whose first core is the bank of filters.

    What comes before the filters is done for each input pixel, the rest for each output pixel.

    Args:
        taps: Pixels of a filter.
        shrinkage: Input pixels for each output pixel: the product of the strides.
        input_modes: Tuple of `d` integers, of the channels alone.
        output_modes: Tuple of `d` integers, of the filters alone.
        ranks: Tuple of `d` integers.

    Returns:
        `(order, before, after)`: tuple of core indices, 0 being the filters, and the
        multiply-accumulates for one input pixel and for one output pixel.
    """

    def step_macs(done, k):
        # Of the first core as a matrix of one row and one column.
        macs = _step_macs((1, *input_modes), (1, *output_modes), ranks, done, k)
        return macs * taps if k == 0 else macs

    def weighted(done, k):
        return step_macs(done, k) * (1 if done & 1 or k == 0 else shrinkage)

    order = _cheapest_order(len(input_modes) + 1, weighted)
    macs, filters = _macs_in_order(order, step_macs), order.index(0)
    return order, sum(macs[:filters]), sum(macs[filters:])


def _step_macs(input_modes, output_modes, ranks, done, k):
    """Multiply-accumulates of contracting core `k` after those in the bit set `done`."""
    d = len(input_modes)
    bonds = (1, *ranks, 1)
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


def _cheapest_order(d, cost):
    """Order of `d` cores with the least sum of `cost(done, k)`."""
    # Subsets in increasing order: every subset is reached before any of its supersets.
    best = {0: (0, ())}
    for done in range(1 << d):
        total, order = best.pop(done) if done + 1 < 1 << d else best[done]
        for k in range(d):
            if done >> k & 1:
                continue
            reached = done | 1 << k
            candidate = (total + cost(done, k), (*order, k))
            if reached not in best or candidate < best[reached]:
                best[reached] = candidate
    return best[(1 << d) - 1][1]


def _macs_in_order(order, step_macs):
    return [step_macs(sum(1 << j for j in order[:i]), k) for i, k in enumerate(order)]


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
    axes, sizes = _named_axes(cores, input_modes, output_modes)
    x = inputs
    for k in order:
        x, axes = _contract(x, axes, sizes, cores[k], k)
    x = _permute(x, axes, sorted(axes), sizes)
    return ops.reshape(x, (-1, math.prod(output_modes)))


def tt_conv(inputs, cores, input_modes, output_modes, order, convolve):
    """Convolution with a TT kernel, one core at a time: the kernel is never formed.

    The bank of filters is one convolution of images of one channel, or into one: what is left of
    the channels at that point stands beside the batch.

    Args:
        inputs: Tensor of shape `(batch, height, width, prod input_modes)`.
        cores: List of tensors: the filters, `(kernel_height, kernel_width, r_1)`, and then
            `(r_k, s_k, t_k, r_{k+1})`.
        input_modes: Tuple of `d` integers, of the channels alone.
        output_modes: Tuple of `d` integers, of the filters alone.
        order: Core indices in the order of contraction, 0 being the filters.
        convolve: Function of images (channels last) and a kernel.

    Returns:
        Tensor of shape `(batch, new_height, new_width, prod output_modes)`.
    """
    filters, bond = cores[0], ("r", 1)
    axes, sizes = _named_axes(cores, (1, *input_modes), (1, *output_modes))
    axes.remove(("n", 0))
    size = ops.shape(inputs)[1:3]
    x = ops.reshape(inputs, (-1, inputs.shape[-1]))
    for k in order:
        if k:
            x, axes = _contract(x, axes, sizes, cores[k], k)
            continue
        rest = [a for a in axes if a != bond]
        from_bank = bond in axes
        x = _permute(x, axes, rest + [bond] if from_bank else rest, sizes)
        width = math.prod(sizes[a] for a in rest)
        kernel = ops.expand_dims(filters, -1 if from_bank else -2)
        x = _swap(x, size[0] * size[1], width, kernel.shape[2])
        x = convolve(ops.reshape(x, (-1, *size, kernel.shape[2])), kernel)
        size = ops.shape(x)[1:3]
        x = _swap(x, width, size[0] * size[1], kernel.shape[3])
        x = ops.reshape(x, (-1, width * kernel.shape[3]))
        axes = rest if from_bank else rest + [bond]
    x = _permute(x, axes, sorted(axes), sizes)
    return ops.reshape(x, (-1, *size, math.prod(output_modes)))


def _swap(x, outer, inner, kept):
    """Swaps the two middle axes of `(batch, outer, inner, kept)`, given in any reshape."""
    if any(isinstance(size, int) and size == 1 for size in (outer, inner)):
        return x
    return ops.transpose(ops.reshape(x, (-1, outer, inner, kept)), (0, 2, 1, 3))


def _named_axes(cores, input_modes, output_modes):
    """Axes of a vector of the input's grid, and the size of each axis that a chain has.

    Axes are named ("n", k), ("m", k) and ("r", k), the bond between cores k - 1 and k.
    """
    d = len(cores)
    sizes = {("n", k): input_modes[k] for k in range(d)}
    sizes |= {("m", k): output_modes[k] for k in range(d)}
    # The bonds at both ends are no axes.
    sizes |= {("r", k): cores[k].shape[0] for k in range(1, d)}
    return [("n", k) for k in range(d)], sizes


def _contract(x, axes, sizes, core, k):
    """Contracts the rows of `x`, whose named axes are `axes`, with core `k`: `(x, axes)`."""
    core_axes = [a for a in (("r", k), ("n", k), ("m", k), ("r", k + 1)) if a in sizes]
    contracted = [a for a in core_axes if a in axes]
    produced = [a for a in core_axes if a not in axes]
    # Outputs stay in ascending order, so that no transpose is left over at the end.
    rest = sorted(a for a in axes if a not in contracted and a[0] != "m")
    rest += sorted(a for a in axes if a[0] == "m")
    x = _permute(x, axes, rest + contracted, sizes)
    width = math.prod(sizes[a] for a in contracted)
    matrix = ops.reshape(core, [sizes[a] for a in core_axes])
    matrix = ops.transpose(matrix, [core_axes.index(a) for a in contracted + produced])
    x = ops.matmul(ops.reshape(x, (-1, width)), ops.reshape(matrix, (width, -1)))
    return x, rest + produced


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
