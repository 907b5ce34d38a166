"""A network of the user's own by ``module:function``."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from d2ed2q.backbones import TappedNetwork, build_backbone
from d2ed2q.errors import ConfigError

SOURCE = """
from torch import nn

def make_net(in_channels, n_classes):
    import own_beside  # lies beside this file, and is needed only now
    width = own_beside.WIDTH
    return nn.Sequential(nn.Conv2d(in_channels, width, 3, padding=1), nn.Conv2d(width, n_classes, 1))

def make_any(in_channels, n_classes, *, dims):
    layer = {2: nn.Conv2d, 3: nn.Conv3d}[dims]
    return nn.Sequential(layer(in_channels, 4, 1), layer(4, n_classes, 1))

def make_three(in_channels, n_classes):
    return nn.Sequential(nn.Conv2d(in_channels, 4, 1), nn.Conv2d(4, 3, 1))

def make_nothing(in_channels, n_classes):
    return {"net": in_channels}

def make_bare():
    return nn.Conv2d(3, 1, 1)

number = 3
"""


@pytest.fixture(autouse=True)
def _own_modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_nets.py").write_text(SOURCE, encoding="utf-8")
    (tmp_path / "own_beside.py").write_text("WIDTH = 5\n", encoding="utf-8")
    (tmp_path / "own_needy.py").write_text("import no_such_package_at_all\n", encoding="utf-8")
    (tmp_path / "own_broken.py").write_text("1 / 0\n", encoding="utf-8")
    path = list(sys.path)
    yield
    assert sys.path == path
    for name in [name for name in sys.modules if name.startswith("own_")]:
        del sys.modules[name]


def test_a_function_in_the_current_folder_is_called() -> None:
    network = build_backbone("own_nets:make_net", 3, 2, taps=["0"])

    assert isinstance(network, TappedNetwork)
    assert [(tap.name, tap.channels) for tap in network.taps] == [("tap_0", 5)]
    assert network(torch.rand(1, 3, 7, 9)).shape == (1, 2, 7, 9)


@pytest.mark.parametrize("dims", [2, 3])
def test_dims_are_passed_on_where_they_are_taken(dims: int) -> None:
    assert build_backbone("own_nets:make_any", 1, 2, dims=dims, taps=["0"]).dims == dims


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("own_netz:make_net", "no module 'own_netz' for own_netz:make_net: run from the folder that holds it"),
        ("own_nets.deep:make_net", r"no module 'own_nets\.deep'|cannot be imported"),
        ("own_nets:make_nett", "has no function 'make_nett', did you mean own_nets:make_net"),
        ("own_nets:number", "own_nets:number is not a function but of type int"),
        ("own_nets:make_nothing", "returned dict, not a torch.nn.Module"),
        ("own_nets:make_bare", r"make_bare\(\) cannot be called with in_channels and n_classes"),
        ("own_nets:make_three", "logits of 3 channels, not of n_classes = 1"),
        ("own_needy:make_net", "own_needy of own_needy:make_net needs 'no_such_package_at_all': install it"),
        ("own_broken:make_net", "cannot be imported, ZeroDivisionError: division by zero"),
        (":make_net", "write module:function"),
        ("own_nets:", "write module:function"),
    ],
)
def test_what_cannot_be_used_is_named(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_backbone(name, 3, 1, taps=["0"])


def test_without_taps_nothing_is_even_imported() -> None:
    with pytest.raises(ConfigError, match="own_broken:make_net is a network of your own and needs taps"):
        build_backbone("own_broken:make_net", 3, 1)


def test_volumes_for_a_network_of_images_are_named() -> None:
    with pytest.raises(ConfigError, match="2 spatial axes, not dims = 3"):
        build_backbone("own_nets:make_net", 3, 1, dims=3, taps=["0"])


def test_imagenet_weights_are_not_for_a_network_of_your_own(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not own_nets:make_net"):
        build_backbone("own_nets:make_net", 3, 1, imagenet_weights=tmp_path / "w.pth", taps=["0"])
