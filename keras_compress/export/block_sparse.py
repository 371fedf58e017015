"""Block-sparse matrices as small matmuls: gathered blocks of the input times the blocks that stay.

Each block column of the kernel is one product `(rows, kept * height) x (kept * height, width)`.
Block columns that keep about as many blocks share one BATCH_MATMUL, padded to the fullest.
"""

import math

import numpy as np

#: A further BATCH_MATMUL must save as much as the product with this many weights takes.
_GROUP_COST = 4096
_MAX_GROUPS = 4


def block_groups(occupied, block):
    """Splits the block columns into groups that are padded alike.

    Args:
        occupied: Bool array `(block rows, block columns)`.
        block: `(height, width)` of a block.

    Returns:
        List of `(columns, kept)`: indices of block columns, and the number of blocks that each of
        them is padded to. Columns without any block are left out.
    """
    counts = occupied.sum(0)
    order = np.argsort(-counts, kind="stable")[: np.count_nonzero(counts)]
    counts, area = counts[order], math.prod(block)
    total = len(counts)
    # best[g][end]: least cost of the first `end` columns in g groups, and where the last begins.
    best = [{0: (0, 0)}]
    for _ in range(min(_MAX_GROUPS, total)):
        best.append(
            {
                end: min(
                    (cost + area * int(counts[begin]) * (end - begin) + _GROUP_COST, begin)
                    for begin, (cost, _) in best[-1].items()
                    if begin < end
                )
                for end in range(len(best), total + 1)
            }
        )
    number = min(range(1, len(best)), key=lambda g: best[g][total][0])
    groups, end = [], total
    for group in range(number, 0, -1):
        begin = best[group][end][1]
        groups.append((order[begin:end], int(counts[begin])))
        end = begin
    return groups[::-1]


def stored_entries(kernel):
    """Entries of a `BlockSparseKernel` that are stored, padding included."""
    groups = block_groups(kernel.occupied, kernel.block)
    return sum(len(columns) * kept for columns, kept in groups) * math.prod(kernel.block)


def expressible(site):
    """Whether the shapes at a site allow it: RESHAPE leaves one axis open at most."""
    return site.signature(site.output).count(-1) <= 1


def block_product(site, kernel):
    """Emits the product of a site's input and a `BlockSparseKernel`.

    Args:
        site: The `Site`, for which `expressible` holds.
        kernel: The kernel.
    """
    height, width = kernel.block
    shape = site.signature(site.output)
    rows = -1 if -1 in shape[:-1] else math.prod(shape[:-1])
    inputs = site.reshape(site.input, [rows, kernel.shape[0] // height, height])
    blocks, groups = kernel.blocks(), block_groups(kernel.occupied, kernel.block)
    products = [_group(site, inputs, blocks[:, columns], kept) for columns, kept in groups]
    order = np.concatenate([columns for columns, _ in groups])
    outputs = products[0]
    if len(products) > 1:
        outputs = site.value("columns", [len(order), rows, width])
        options = site.schema.ConcatenationOptionsT()
        options.axis = 0
        site.emit("CONCATENATION", products, [outputs], options)
    columns = blocks.shape[1]
    empty = np.setdiff1d(np.arange(columns), order)
    if len(empty):
        order = np.concatenate([order, empty])
        padded = site.value("padded", [columns, rows, width])
        amounts = site.indices("padding", [[0, len(empty)], [0, 0], [0, 0]])
        site.emit("PAD", [outputs, amounts], [padded], site.schema.PadOptionsT())
        outputs = padded
    if np.any(order != np.arange(columns)):
        outputs = _gather(site, outputs, np.argsort(order), 0, [columns, rows, width])
    outputs = _swapped(site, outputs, [columns, rows, width])
    _finish(site, outputs, shape)


def _group(site, inputs, blocks, kept):
    """One BATCH_MATMUL; `blocks` are those of its columns."""
    column_count, height, width = blocks.shape[1:]
    rows = site.signature(inputs)[0]
    places = np.zeros((column_count, kept), np.int32)
    weights = np.zeros((column_count, kept, height, width), blocks.dtype)
    for column in range(column_count):
        occupied = np.nonzero((blocks[:, column] != 0).any((1, 2)))[0]
        places[column, : len(occupied)] = occupied
        weights[column, : len(occupied)] = blocks[occupied, column]
    count, depth = column_count * kept, kept * height
    gathered = _gather(site, inputs, places.ravel(), 1, [rows, count, height])
    gathered = site.reshape(gathered, [rows, column_count, depth])
    gathered = _swapped(site, gathered, [rows, column_count, depth])
    kernel = site.float_constant("kernel", weights.reshape(column_count, depth, width))
    product = site.value("product", [column_count, rows, width])
    options = site.schema.BatchMatMulOptionsT()
    site.emit("BATCH_MATMUL", [gathered, kernel], [product], options)
    return product


def _gather(site, tensor, places, axis, shape):
    options = site.schema.GatherOptionsT()
    options.axis = axis
    output = site.value("gather", shape)
    places = site.constant("blocks", np.asarray(places, np.int32))
    site.emit("GATHER", [tensor, places], [output], options)
    return output


def _swapped(site, tensor, shape):
    """Exchanges the first two axes; with a single row or column that is a mere RESHAPE."""
    first, second, last = shape
    if 1 in (first, second):
        return site.reshape(tensor, [second, first, last])
    output = site.value("transpose", [second, first, last])
    options = site.schema.TransposeOptionsT()
    site.emit("TRANSPOSE", [tensor, site.indices("axes", [1, 0, 2])], [output], options)
    return output


def _finish(site, outputs, shape):
    """Shape of the output, bias and activation."""
    none = site.schema.ActivationFunctionType.NONE
    if site.bias == -1 and site.activation == none:
        site.emit_reshape(outputs, site.output, shape)
        return
    bias = site.bias
    if bias == -1:
        bias = site.constant("bias", np.zeros(shape[-1], "float32"))
    options = site.schema.AddOptionsT()
    options.fusedActivationFunction = site.activation
    site.emit("ADD", [site.reshape(outputs, shape), bias], [site.output], options)
