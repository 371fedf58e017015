"""ResponseFit: a product codebook fitted to what a layer answers, not to its weights."""

import numpy as np

from keras_compress.sharing.codebook import Codebook

#: Ridge of the least squares for a centre, as a share of the trace: inputs may be dependent. The
#: step stays one of descent.
_RIDGE = 1e-10


class ResponseFit:
    """Block coordinate descent on `||T - S W||^2` over a kernel `W` in product-quantised form.

    `S` are the inputs of the quantised layer, a row for each sample (of a convolution, each patch),
    and `T` the outputs to be met. Only `S'S` and `S'T` are kept, so that a step costs as much for
    many samples as for few.

    A block is one segment of the input channels: its centres by least squares, one after the other,
    then its codes by trying all centres, at one kernel position after the other. Each step is the
    exact optimum with everything else fixed, so that the error never rises.

    Args:
        codebook: The `Codebook` to start from, with a book for each segment and one stage.
        gram: Array `S'S`, `(inputs, inputs)`; of a convolution, inputs are kernel positions times
            channels, in the order of the kernel.
        cross: Array `S'T`, `(inputs, outputs)`.
        energy: `||T||^2`: what `error` counts from.

    Raises:
        ValueError: if the codebook is none of product quantisation, or shapes differ.

    Reference:
        Wu, Leng, Wang, Hu, Cheng, "Quantized Convolutional Neural Networks for Mobile Devices",
        2016, sections 3.3 and 3.4.

    Example:

    >>> from keras_compress.sharing import fit_codebook
    >>> rng = np.random.default_rng(0)
    >>> inputs, kernel = rng.normal(size=(50, 8)), rng.normal(size=(8, 30))
    >>> outputs = inputs @ kernel
    >>> fit = ResponseFit(
    ...     fit_codebook(kernel, "pq", segment=2, k=4),
    ...     inputs.T @ inputs,
    ...     inputs.T @ outputs,
    ...     np.sum(outputs**2),
    ... )
    >>> before = fit.error
    >>> fit.run().error < before
    True
    """

    def __init__(self, codebook, gram, cross, energy=0.0):
        stages, books, _, length = codebook.centres.shape
        segments, outputs = codebook.codes.shape[-2:]
        if stages != 1 or books != segments:
            raise ValueError(
                "ResponseFit: `codebook` must be one of product quantisation, with one stage and a "
                f"book for each segment; got {stages} stages, {books} books for {segments} "
                "segments. Use fit_codebook(kernel, 'pq')."
            )
        inputs = codebook.codes[..., 0].size * length
        if np.shape(gram) != (inputs, inputs) or np.shape(cross) != (inputs, outputs):
            raise ValueError(
                f"ResponseFit: for a kernel of shape {codebook.shape}, `gram` must have the shape "
                f"{(inputs, inputs)} and `cross` {(inputs, outputs)}; got {np.shape(gram)} and "
                f"{np.shape(cross)}."
            )
        self._shape = codebook.codes.shape
        self._centres = codebook.centres[0].astype("float64")
        self._codes = codebook.codes.reshape(-1, segments, outputs).astype("int64")
        self._gram = np.asarray(gram, "float64")
        self._cross = np.asarray(cross, "float64")
        self._energy = float(energy)
        self._kernel = codebook.decode().reshape(inputs, outputs).astype("float64")
        # S'(T - S W): the part of the outputs that is still to be explained.
        self._missing = self._cross - self._gram @ self._kernel

    @property
    def error(self):
        """`||T - S W||^2`."""
        return self._energy - float(np.sum(self._kernel * (self._cross + self._missing)))

    def codebook(self):
        """The `Codebook` as it stands."""
        return Codebook(self._codes.reshape(self._shape), self._centres[None])

    def run(self, sweeps=10, tolerance=1e-3):
        """Updates all segments, again and again.

        Args:
            sweeps: Most rounds over all segments.
            tolerance: A round that lowers the error by less than this share is the last.

        Returns:
            The object itself.
        """
        before = self.error
        for _ in range(sweeps):
            for segment in range(len(self._centres)):
                self.update(segment)
            error = self.error
            if error >= (1 - tolerance) * before:
                break
            before = error
        return self

    def update(self, segment):
        """Updates the centres, then the codes, of one segment at all kernel positions."""
        positions, segments, _ = self._codes.shape
        length = self._centres.shape[2]
        places = np.arange(positions)[:, None] * segments * length + segment * length
        rows = (places + np.arange(length)).ravel()
        block = _Block(
            self._codes[:, segment],
            self._centres[segment],
            self._gram[np.ix_(rows, rows)].reshape(positions, length, positions, length),
            self._kernel[rows].reshape(positions, length, -1),
            self._missing[rows].reshape(positions, length, -1),
        )
        block.update_centres()
        block.update_codes()
        moved = block.weights.reshape(len(rows), -1) - self._kernel[rows]
        self._kernel[rows] += moved
        self._missing -= self._gram[:, rows] @ moved


class _Block:
    """One segment: `codes` `(positions, outputs)` and `centres` are views, updated in place."""

    def __init__(self, codes, centres, gram, weights, missing):
        self.codes, self.centres = codes, centres
        self.gram, self.weights, self.missing = gram, weights, missing

    def update_centres(self):
        length = self.centres.shape[1]
        for code in np.unique(self.codes):
            outputs = np.flatnonzero((self.codes == code).any(axis=0))
            users = (self.codes[:, outputs] == code).astype("float64")
            # An output may use a centre at several positions.
            pairs = users @ users.T
            normal = np.einsum("pq,plqj->lj", pairs, self.gram, optimize=True)
            normal += (_RIDGE * np.trace(normal) + np.finfo("float64").tiny) * np.eye(length)
            wanted = np.einsum("po,plo->l", users, self.missing[..., outputs])
            step = np.linalg.solve(normal, wanted)
            self.centres[code] += step
            self.weights[..., outputs] += step[:, None] * users[:, None]
            self.missing[..., outputs] -= (self.gram @ step) @ users

    def update_codes(self):
        for position in range(len(self.codes)):
            own = self.gram[position, :, position]
            wanted = self.missing[position] + own @ self.weights[position]
            norms = np.einsum("kl,lj,kj->k", self.centres, own, self.centres, optimize=True)
            best = np.argmin(norms[:, None] - 2 * self.centres @ wanted, axis=0)
            moved = self.centres[best].T - self.weights[position]
            self.codes[position] = best
            self.weights[position] += moved
            self.missing -= self.gram[:, :, position] @ moved
