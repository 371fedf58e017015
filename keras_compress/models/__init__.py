"""Small reference architectures, and trained models made compact: `kc.models`."""

from keras_compress.models.accelerate_by_wavelet import accelerate_by_wavelet
from keras_compress.models.densenet import DenseNetCIFAR
from keras_compress.models.lenet import LeNet5, LeNet300100
from keras_compress.models.make_compact import make_compact
from keras_compress.models.mobilenet import MobileNet
from keras_compress.models.resnet import ResNetCIFAR
from keras_compress.models.shufflenet import ShuffleNet
from keras_compress.models.squeezenet import SqueezeNet
from keras_compress.models.wavelet_auto_encoder import WaveletAutoEncoder

__all__ = [
    "DenseNetCIFAR",
    "LeNet300100",
    "LeNet5",
    "MobileNet",
    "ResNetCIFAR",
    "ShuffleNet",
    "SqueezeNet",
    "WaveletAutoEncoder",
    "accelerate_by_wavelet",
    "make_compact",
]
