"""`RoundingPlan`: which values of a model are rounded, and which share a grid."""

import collections

from keras_compress.quantizers.quantizable import (
    FIXED,
    FUSED,
    KNOWN,
    activation_of,
    ends_in,
    kind_of,
)


class RoundingPlan:
    """Which values are rounded, and which of them share a grid: decided before layers are made.

    Args:
        graph: The `CallGraph`.
        scheme: See `quantize_aware`.
        chosen: Ids of the layers with a kernel to quantise, or `None` for all.

    Attributes:
        activations: Whether values are rounded at all.
        kinds: Dict from `Call` to a word of `kind_of`, `"float"` for those that are not quantised.
        folded: Dict from the call of a kernel to that of the batch normalisation that goes into it.
        rounded: The values that are on a grid when they leave the call that gives them, or, where
            the next call fuses or folds it away, would be.
        sites: Dict from what `FakeQuant` rounds with a range of its own (a value, or a call and the
            position of an input) to its site.
        counts: Dict from the group of values that share a grid to its number of sites.
        floats: What stays in float between quantised layers, in words.
    """

    def __init__(self, graph, scheme, chosen):
        self.activations = scheme == "int8"
        self.kinds, self.folded, self.rounded = {}, {}, set()
        self.sites, self.counts, self.floats = {}, {}, []
        self._root, self._joined, self._fixed, self._passing = {}, {}, set(), set()
        self._uses = collections.Counter(id(call.operation) for call in graph.calls)
        for call in graph.calls:
            self._classify(call, chosen)
        if self.activations:
            for call in graph.calls:
                self._find_sites(call)

    def group(self, value):
        """The value that stands for all that share a grid with this one."""
        value = self._root.get(value, value)
        while value in self._joined:
            value = self._joined[value]
        return value

    def is_fixed(self, value):
        """Whether the grid of a value is one that LiteRT fixes."""
        return self._root.get(value, value) in self._fixed

    def _classify(self, call, chosen):
        kind = kind_of(call)
        before = call.inputs[0].call if call.inputs else None
        inputs_rounded = bool(call.inputs) and all(v in self.rounded for v in call.inputs)
        if kind == "kernel":
            quantised = chosen is None or id(call.operation) in chosen
        elif kind == "norm" and self._folds(before, call):
            self.folded[before] = call
            kind, quantised = "folded", True
        else:
            quantised = self.activations and kind != "float" and (chosen is None or inputs_rounded)
        self.kinds[call] = kind if quantised else "float"
        if not self.activations:
            return
        if quantised:
            self._place(call, kind, before)
            if kind == "kernel" and ends_in(call) not in KNOWN:
                self.floats.append(f"the activation of '{call.operation.name}'")
        elif kind == "float" and any(value in self.rounded for value in call.inputs):
            self.floats.append(f"'{call.operation.name}' ({type(call.operation).__name__})")

    def _place(self, call, kind, before):
        """Puts the output of a quantised call into a group."""
        output = call.output
        roots = [self._root.setdefault(value, value) for value in call.inputs]
        self.rounded.add(output)
        self._root[output] = output
        if kind == "folded" or (kind == "activation" and self._fuses(before, call)):
            self._passing.add(call.inputs[0])
        if kind in ("same_values", "same_grid"):
            self._root[output] = roots[0]
        elif kind == "shared_grid":
            # A fixed grid is requantised, unless all are.
            free = [root for root in roots if root not in self._fixed] or roots[:1]
            self._root[output] = free[0]
            for root in free[1:]:
                mine, other = self.group(free[0]), self.group(root)
                if mine is not other:
                    self._joined[other] = mine
        elif kind in ("kernel", "activation") and ends_in(call) in FIXED:
            self._fixed.add(output)

    def _folds(self, before, norm):
        return (
            before is not None
            and self.kinds[before] == "kernel"
            and self._gives_to(before, norm)
            and self._uses[id(before.operation)] == self._uses[id(norm.operation)] == 1
            and getattr(before.operation, "data_format", "channels_last") == "channels_last"
        )

    def _fuses(self, before, activation):
        return (
            before is not None
            and activation_of(activation.operation) in FUSED
            and self.kinds[before] in ("kernel", "folded", "norm", "sum")
            and self._gives_to(before, activation)
        )

    def _gives_to(self, before, call):
        """Whether the plain sums of a call go to another one and nowhere else."""
        return before.sole_reader is call and ends_in(before) in (None, "linear")

    def _find_sites(self, call):
        kind = self.kinds[call]
        if kind == "float":
            return
        for value in call.inputs:
            if value not in self.rounded:
                self._add_site(value, value)
        output = call.output
        if kind == "shared_grid" and not self.is_fixed(output):
            for position, value in enumerate(call.inputs):
                if self.is_fixed(value):
                    self._add_site((call, position), output)
        own = self._root[output] is output and not self.is_fixed(output)
        if own and output not in self._passing:
            self._add_site(output, output)

    def _add_site(self, key, value):
        if key not in self.sites:
            group = self.group(value)
            self.sites[key] = self.counts.get(group, 0)
            self.counts[group] = self.sites[key] + 1
