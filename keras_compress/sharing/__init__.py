"""Weights shared: codebooks and hashing: `kc.sharing`."""

import importlib

from keras_compress.sharing.codebook import Codebook, fit_codebook
from keras_compress.sharing.huffman import HuffmanCode, huffman_decode, huffman_encode
from keras_compress.sharing.mixture import Mixture

__all__ = [
    "Codebook",
    "HuffmanCode",
    "Mixture",
    "cluster",
    "deep_compress",
    "fit_codebook",
    "huffman_decode",
    "huffman_encode",
    "quantize_mixture",
    "quantize_responses",
    "vector_quantize",
]

_OF_MODELS = {
    "cluster": "vector_quantization",
    "deep_compress": "deep_compression",
    "quantize_mixture": "mixture_quantization",
    "quantize_responses": "response_quantization",
    "vector_quantize": "vector_quantization",
}


def __getattr__(name):
    # On first use: these need the layers, which need the codebooks.
    if name in _OF_MODELS:
        module = importlib.import_module(f"{__name__}.{_OF_MODELS[name]}")
        return getattr(module, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
