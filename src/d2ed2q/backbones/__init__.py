"""Staged encoder–decoders: the networks that base learners and the meta learner are made of."""

from d2ed2q.backbones.attention_unet import AttentionUNet
from d2ed2q.backbones.builders import backbone_names, build_backbone, canonical_name
from d2ed2q.backbones.ce_net import CENet
from d2ed2q.backbones.deeplab import DeepLabV3Plus
from d2ed2q.backbones.fcn import FCN
from d2ed2q.backbones.residual_unet import ResidualUNet
from d2ed2q.backbones.resnet import ResNetEncoder, load_imagenet_weights
from d2ed2q.backbones.segnet import SegNet
from d2ed2q.backbones.staged import StagedNetwork, Tap, TapHook
from d2ed2q.backbones.tapped import TappedNetwork
from d2ed2q.backbones.unet import UNet

__all__ = [
    "FCN",
    "AttentionUNet",
    "CENet",
    "DeepLabV3Plus",
    "ResNetEncoder",
    "ResidualUNet",
    "SegNet",
    "StagedNetwork",
    "Tap",
    "TapHook",
    "TappedNetwork",
    "UNet",
    "backbone_names",
    "build_backbone",
    "canonical_name",
    "load_imagenet_weights",
]
