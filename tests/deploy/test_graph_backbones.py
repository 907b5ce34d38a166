"""Every architecture, images and volumes, in the graph and in the engines that run it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from d2ed2q.backbones import FCN, AttentionUNet, DeepLabV3Plus, ResidualUNet, SegNet, StagedNetwork, UNet
from d2ed2q.deploy import make_engine
from d2ed2q.deploy.graph import learner_graph
from d2ed2q.ensemble import learner_probabilities

NETWORKS: dict[str, tuple[Callable[[], StagedNetwork], list[tuple[int, ...]]]] = {
    "fcn": (lambda: FCN(3, 2, (4, 4, 4, 4, 4), centre=8), [(32, 32), (64, 96)]),
    "segnet": (lambda: SegNet(3, 2, (4, 4, 4, 4, 4)), [(32, 32), (64, 96)]),
    "deeplab": (lambda: DeepLabV3Plus(3, 2, width=8), [(16, 32), (64, 48)]),
    "attention-unet": (lambda: AttentionUNet(3, 2, (4, 6, 8)), [(4, 8), (20, 12)]),
    "res-unet": (lambda: ResidualUNet(3, 2, (4, 6)), [(2, 8), (20, 12)]),
    "unet-3d": (lambda: UNet(3, 2, (4, 6), dims=3), [(2, 4, 8), (6, 20, 12)]),
    "attention-unet-3d": (lambda: AttentionUNet(3, 2, (4, 6, 8), dims=3), [(4, 4, 8), (8, 20, 12)]),
    "res-unet-3d": (lambda: ResidualUNet(3, 2, (4, 6), dims=3), [(2, 4, 8), (6, 20, 12)]),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_every_engine_gives_what_pytorch_gives_at_any_size(name: str) -> None:
    build, sizes = NETWORKS[name]
    network = build()
    with torch.no_grad():
        network(torch.rand(4, 3, *sizes[1]))
    network.eval()
    model = learner_graph(network).model
    assert not any(node.op_type == "BatchNormalization" for node in model.graph.node)
    for engine_name in ("openvino", "onnxruntime", "torch"):
        engine = make_engine(engine_name, model.SerializeToString(), 1)
        for size in sizes:
            x = torch.rand(1, 3, *size)
            with torch.no_grad():
                wanted = learner_probabilities(network(x)[None]).numpy()
            np.testing.assert_allclose(engine.run(x.numpy()), wanted, atol=1e-5)
