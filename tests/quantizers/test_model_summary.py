"""`kc.quantizers.summary`: bits, memory and kinds of multiply-accumulates."""

import keras
import numpy as np
import pytest

import keras_compress as kc
from keras_compress.quantizers import FixedPoint, Sign, Ternary, Uniform


def model():
    return keras.Sequential(
        [
            keras.Input((10, 10, 3)),
            keras.layers.Conv2D(8, 3, padding="same", name="float"),
            keras.layers.BatchNormalization(name="bn"),
            kc.layers.BinaryConv2D(16, 3, padding="same", use_bias=False, name="binary"),
            keras.layers.ReLU(name="relu"),
            kc.layers.QuantConv2D(
                4,
                1,
                kernel_quantizer=Ternary(),
                input_quantizer=FixedPoint(8, 4),
                use_bias=False,
                name="ternary",
            ),
            kc.layers.QuantDepthwiseConv2D(
                3, kernel_quantizer=Uniform(4), use_bias=False, name="depthwise"
            ),
            keras.layers.Flatten(name="flat"),
            kc.layers.QuantDense(5, kernel_quantizer=Sign(), name="weights_only"),
        ]
    )


def test_rows_are_counted_by_hand():
    table = kc.quantizers.summary(model(), verbose=False)
    assert [row.name for row in table] == [
        "float",
        "bn",
        "binary",
        "ternary",
        "depthwise",
        "weights_only",
    ]
    bits = {row.name: (row.kernel_bits, row.input_bits) for row in table}
    assert bits == {
        "float": (32, 32),
        "bn": (None, None),
        "binary": (1, 1),
        "ternary": (2, 8),
        "depthwise": (4, 32),
        "weights_only": (1, 32),
    }
    nbytes = {row.name: row.nbytes for row in table}
    assert nbytes == {
        "float": 4 * (3 * 3 * 3 * 8 + 8),
        "bn": 4 * 4 * 8,
        "binary": 3 * 3 * 8 * 16 // 8,
        "ternary": 16 * 4 * 2 // 8 + 4,
        "depthwise": 9 * 4 * 4 // 8 + 4 * 4,
        "weights_only": 8 * 8 * 4 * 5 // 8 + 4 * 5,
    }
    macs = {row.name: (row.binary_macs, row.int8_macs, row.float_macs) for row in table}
    assert macs == {
        "float": (0, 0, 100 * 27 * 8),
        "bn": (0, 0, 0),
        "binary": (100 * 72 * 16, 0, 0),
        "ternary": (0, 100 * 16 * 4, 0),
        "depthwise": (0, 0, 64 * 9 * 4),
        "weights_only": (0, 0, 256 * 5),
    }


def test_total_agrees_with_the_profile_of_the_model():
    net = model()
    total = kc.quantizers.summary(net, verbose=False).total
    assert total.binary_macs + total.int8_macs + total.float_macs == kc.profile.macs(net)
    assert abs(8 * total.nbytes - kc.profile.storage_bits(net)) < 8 * 6
    assert total.parameters == net.count_params()
    assert total.float_bytes == 4 * net.count_params()


def test_a_layer_called_twice_computes_twice_and_is_stored_once():
    shared = kc.layers.BinaryDense(6, use_bias=False, name="shared")
    inputs = keras.Input((6,))
    net = keras.Model(inputs, shared(shared(inputs)))
    table = kc.quantizers.summary(net, verbose=False)
    assert len(table) == 1
    assert table["shared"].binary_macs == 2 * 36 and table["shared"].parameters == 36


def test_prints_and_shows_a_table(capsys):
    table = kc.quantizers.summary(model())
    printed = capsys.readouterr().out
    assert printed.strip() == repr(table)
    lines = printed.splitlines()
    assert "kernel bits" in lines[0] and "float MACs" in lines[0]
    assert lines[4].split() == ["binary", "1,152", "1", "1", "0.14", "32.0x", "115,200", "0", "0"]
    assert lines[-1].startswith("total")
    assert "<td" in table._repr_html_()
    with pytest.raises(KeyError, match="no layer 'conv'"):
        table["conv"]


def test_half_precision_layers_have_sixteen_bits_of_input():
    net = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, dtype="mixed_bfloat16")])
    (row,) = kc.quantizers.summary(net, verbose=False)
    assert (row.kernel_bits, row.input_bits, row.float_macs) == (32, 16, 12)
    assert np.isclose(row.float_bytes, row.nbytes)


def test_layers_of_quantize_aware_count_as_int8():
    model = keras.Sequential([keras.Input((16,)), keras.layers.Dense(8, name="fc")])
    aware = kc.quantizers.quantize_aware(model)
    row = next(row for row in kc.quantizers.summary(aware, verbose=False) if row.int8_macs)
    assert (row.kernel_bits, row.input_bits, row.int8_macs) == (8, 8, 128)
