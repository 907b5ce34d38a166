"""A network of the user's own by name: ``module:function``."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from d2ed2q.backbones.tapped import TappedNetwork
from d2ed2q.errors import ConfigError

__all__ = ["build_own_network"]


def build_own_network(name: str, in_channels: int, n_classes: int, dims: int, taps: Sequence[str]) -> TappedNetwork:
    """Imports a function, calls it, and wraps the network that it returns.

    Args:
        name: ``module:function``; the module may lie in the current folder.
        in_channels: channels of the images; the function's first argument.
        n_classes: channels of the logits; the function's second argument.
        dims: number of spatial axes; passed on as ``dims=`` where the function has such an argument.
        taps: names of submodules.

    Raises:
        ConfigError: there are no taps, the module or the function is missing or cannot be used, it returns something
            else than a network, or the network does not fit.
    """
    if not taps:  # before anything is imported: a name alone, from whatever file, runs no code
        raise ConfigError(
            f"{name} is a network of your own and needs taps: name the submodules whose outputs are fused"
        )
    with _current_folder_importable():  # while the function is called as well: it may import what lies beside it
        function = _function(name)
        network = _call(name, function, in_channels, n_classes, dims)
    if not isinstance(network, nn.Module):
        raise ConfigError(f"{name} returned {type(network).__name__}, not a torch.nn.Module: return the network")
    return TappedNetwork(network, taps, in_channels=in_channels, n_classes=n_classes, dims=dims)


@contextmanager
def _current_folder_importable() -> Iterator[None]:
    folder = str(Path.cwd())
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        if folder in sys.path:
            sys.path.remove(folder)


def _function(name: str) -> Callable[..., Any]:
    module_name, _, function_name = name.partition(":")
    if not module_name or not function_name:
        raise ConfigError(f"{name!r} does not name a network: write module:function, such as mynets:make_net")
    module = _module(name, module_name)
    found = getattr(module, function_name, None)
    if found is None:
        near = get_close_matches(function_name, [key for key in vars(module) if not key.startswith("_")], n=1)
        hint = f", did you mean {module_name}:{near[0]}?" if near else ": write its name after the colon"
        raise ConfigError(f"the module {module_name} has no function {function_name!r}{hint}")
    if not callable(found):
        raise ConfigError(f"{name} is not a function but of type {type(found).__name__}: name a function")
    function: Callable[..., Any] = found
    return function


def _module(name: str, module_name: str) -> ModuleType:
    importlib.invalidate_caches()
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        missing = error.name or module_name
        if module_name == missing or module_name.startswith(f"{missing}."):
            raise ConfigError(
                f"there is no module {missing!r} for {name}: run from the folder that holds it, or install it"
            ) from error
        raise ConfigError(f"the module {module_name} of {name} needs {missing!r}: install it") from error
    except Exception as error:  # whatever a user's file does when it is run
        raise ConfigError(
            f"the module {module_name} of {name} cannot be imported, {type(error).__name__}: {error}; mend it"
        ) from error


def _call(name: str, function: Callable[..., Any], in_channels: int, n_classes: int, dims: int) -> Any:
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # some functions written in C have none
        return function(in_channels, n_classes)
    options = {"dims": dims} if "dims" in signature.parameters else {}
    try:
        signature.bind(in_channels, n_classes, **options)
    except TypeError as error:
        raise ConfigError(
            f"{name}{signature} cannot be called with in_channels and n_classes, {error}: take these two"
        ) from error
    return function(in_channels, n_classes, **options)
