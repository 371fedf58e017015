"""Surgery: channels followed through a model's graph, and removed or copied for good."""

# The rules register themselves.
from keras_compress.pruning.surgery import channel_layers, channel_shapes
from keras_compress.pruning.surgery.channel_graph import (
    FIXED,
    ChannelGraph,
    ChannelGroup,
    Consumer,
    Producer,
    feature_maps,
)
from keras_compress.pruning.surgery.channel_rules import register_channel_rule
from keras_compress.pruning.surgery.remove import Cutter, cut, remove_channels

__all__ = [
    "FIXED",
    "ChannelGraph",
    "ChannelGroup",
    "Consumer",
    "Cutter",
    "Producer",
    "channel_layers",
    "channel_shapes",
    "cut",
    "feature_maps",
    "register_channel_rule",
    "remove_channels",
]
