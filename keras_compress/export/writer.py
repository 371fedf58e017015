"""The writer: puts stored kernels in the places that their markers kept."""

import dataclasses
import math

from keras_compress.export import lowering, markers, signs
from keras_compress.export.flatbuffer import Flatbuffer
from keras_compress.export.site import Site, sites


@dataclasses.dataclass(frozen=True)
class StoredLayer:
    """What the writer did with one kernel.

    Attributes:
        layer: Name of the Keras layer.
        form: How the kernel is stored, in words.
        dense_bytes: Bytes of the float32 kernel.
        nbytes: Bytes of the constants in its place.
        kernel: The operation that runs it.
        exact: Whether the operation computes in float32, with the very weights of the layer. If
            not, its inputs are quantised to int8 on the fly (signs exactly: see `export.signs`), or
            its weights are float16. Integers of a grid stay exact; values of a codebook or a hash
            are rounded to int8.
    """

    layer: str
    form: str
    dense_bytes: int
    nbytes: int
    kernel: str
    exact: bool


def write_stored(content, stored, optimize_for):
    """Replaces the markers of a converted model.

    Args:
        content: Bytes of a .tflite with markers.
        stored: List of `plan.Stored`, by number of the marker.
        optimize_for: `"latency"` or `"size"`.

    Returns:
        `(content, report, foreign)`: bytes without markers, a list of `StoredLayer`, and the names
        of custom operations that are no markers.
    """
    flatbuffer = Flatbuffer(content)
    report = {}
    for number, graph, operator in sites(flatbuffer, markers.number_of):
        plan = stored[number]
        site = Site(flatbuffer, graph, operator, plan.layer, number)
        lower = signs.lower_signs if plan.signs else lowering.lower
        outcome = lower(plan.kernel, site, plan.geometry, optimize_for)
        site.finish()
        # A layer called twice has two places, and (its buffers shared) one set of constants.
        report.setdefault(
            number,
            StoredLayer(
                layer=plan.layer,
                form=outcome.form,
                dense_bytes=4 * math.prod(plan.kernel.shape),
                nbytes=site.nbytes,
                kernel=outcome.kernel,
                exact=outcome.exact,
            ),
        )
    codes = (flatbuffer.custom_code(o) for graph in flatbuffer.subgraphs for o in graph.operators)
    foreign = sorted({code for code in codes if code})
    return flatbuffer.to_bytes(), [report[number] for number in sorted(report)], foreign
