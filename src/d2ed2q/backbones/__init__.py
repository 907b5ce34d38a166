"""Staged encoder–decoders: the networks that base learners and the meta learner are made of."""

from d2ed2q.backbones.builders import backbone_names, build_backbone
from d2ed2q.backbones.ce_net import CENet
from d2ed2q.backbones.resnet import ResNet34Encoder, load_imagenet_weights
from d2ed2q.backbones.staged import StagedNetwork, Tap, TapHook
from d2ed2q.backbones.unet import UNet

__all__ = [
    "CENet",
    "ResNet34Encoder",
    "StagedNetwork",
    "Tap",
    "TapHook",
    "UNet",
    "backbone_names",
    "build_backbone",
    "load_imagenet_weights",
]
