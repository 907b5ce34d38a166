"""The engines that run a bundle's graph, all behind one small face."""

from __future__ import annotations

import contextlib
import ctypes
import math
import platform
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import Any, Protocol

import numpy as np

from d2ed2q.deploy.telemetry import without_telemetry
from d2ed2q.errors import BundleError, ConfigError, D2ED2QError, MissingExtraError, first_line
from d2ed2q.limits import usable_cores

__all__ = ["ENGINES", "Engine", "available_engines", "check_engine", "make_engine"]

_SHAPES_KEPT = 8  # compiled graphs are kept for this many image sizes
_PIXELS_KEPT = 2 << 20  # and for so many pixels of all: each holds some 0.3 kB for as long as its graph is kept


class Engine(Protocol):
    """Runs the graph of a bundle; may be called from several threads at once.

    Attributes:
        name: one of :data:`ENGINES`.
        version: of the library.
    """

    name: str
    version: str

    def run(self, image: np.ndarray) -> np.ndarray:
        """Of float32 ``1×C×H×W`` in [0, 1], the probabilities: float32 ``(K+1)×1×C×H×W``."""


class _SignalStack(ctypes.Structure):
    """``stack_t`` of sigaltstack(2)."""

    _fields_ = (("pointer", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))


@contextlib.contextmanager
def _keeping_signal_stack() -> Iterator[None]:
    """Puts the thread's alternate signal stack back to what it was.

    OpenVINO sets one of its own while it runs, and, when engines go in another order than they came, leaves one behind
    whose memory is gone. The next Ctrl-C would then be a segmentation fault.
    """
    if sys.platform != "linux":
        yield
        return
    library, before = ctypes.CDLL(None), _SignalStack()
    library.sigaltstack(None, ctypes.byref(before))
    try:
        yield
    finally:
        library.sigaltstack(ctypes.byref(before), None)


def _pixels(shape: tuple[int, ...]) -> int:
    """Of a batch ``N×C×*spatial``."""
    return math.prod(shape) // shape[1]


class OpenVinoEngine:
    """OpenVINO: the fast engine on x86 and ARM processors. The graph is compiled once for every image size.

    Graphs are kept for the sizes used last: eight, or as many as have two million pixels together.

    Args:
        model: ONNX bytes.
        threads: cores to use; None takes all.
        streams: images that are computed at the same time; 1 is the shortest wait, one a core the most images.
    """

    name = "openvino"

    def __init__(self, model: bytes, threads: int | None = None, streams: int = 1) -> None:
        without_telemetry()
        import openvino

        self.version = str(openvino.__version__).split("-")[0]
        self._core = openvino.Core()
        self._options: dict[str, Any] = {
            "NUM_STREAMS": streams,
            # What is not int8 is computed as it was trained; int8 layers are the same either way.
            "INFERENCE_PRECISION_HINT": "f32",
            "INFERENCE_NUM_THREADS": threads or usable_cores(),
        }
        if not _multiplies_int8_exactly():
            self._options["LP_TRANSFORMS_MODE"] = "NO"
        self._model = self._core.read_model(model)
        self._compiled: OrderedDict[tuple[int, ...], Any] = OrderedDict()
        self._lock = threading.Lock()
        self._local = threading.local()

    def _request(self, shape: tuple[int, ...]) -> Any:
        with self._lock:
            if shape not in self._compiled:
                self._make_room(_pixels(shape))
                model = self._model.clone()
                model.reshape(list(shape))
                self._compiled[shape] = self._core.compile_model(model, "CPU", self._options)
            self._compiled.move_to_end(shape)
            compiled = self._compiled[shape]
        # Requests hold buffers and belong to one thread each.
        if getattr(self._local, "compiled", None) is not compiled:
            self._local.compiled, self._local.request = compiled, compiled.create_infer_request()
        return self._local.request

    def _make_room(self, pixels: int) -> None:
        """Gives up the graphs used longest ago, so that one more, of so many pixels, does not need too much memory."""
        self._local.compiled = self._local.request = None  # this thread's request is of one of them
        kept = sum(_pixels(shape) for shape in self._compiled)
        while self._compiled and (len(self._compiled) >= _SHAPES_KEPT or kept + pixels > _PIXELS_KEPT):
            shape, _ = self._compiled.popitem(last=False)
            kept -= _pixels(shape)

    def run(self, image: np.ndarray) -> np.ndarray:
        """See :class:`Engine`."""
        with _keeping_signal_stack():
            request = self._request(image.shape)
            result: np.ndarray = request.infer([np.ascontiguousarray(image)])[0]
        return np.array(result)  # the engine writes its next result into the same memory


class OnnxRuntimeEngine:
    """ONNX Runtime: the portable engine.

    Args:
        model: ONNX bytes.
        threads: cores to use; None takes all.
        streams: images that are computed at the same time; each gets its share of the cores.
    """

    name = "onnxruntime"

    def __init__(self, model: bytes, threads: int | None = None, streams: int = 1) -> None:
        import onnxruntime

        self.version = str(onnxruntime.__version__)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = max(1, (threads or usable_cores()) // streams)
        options.log_severity_level = 3  # errors only
        options.add_session_config_entry("session.set_denormal_as_zero", "1")
        if not _multiplies_int8_exactly():
            # Sums of int8 products saturate there. Its own way out, session.x64quantprecision, ends in an error for
            # weights with a scale a channel and no zero points; computed as float, a graph is no slower there.
            options.add_session_config_entry("session.disable_quant_qdq", "1")
        self._session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])

    def run(self, image: np.ndarray) -> np.ndarray:
        """See :class:`Engine`."""
        result: np.ndarray = self._session.run(None, {"image": image})[0]
        return result


def _torch_engine(model: bytes, threads: int | None = None, streams: int = 1) -> Engine:
    from d2ed2q.deploy.torch_engine import TorchEngine

    return TorchEngine(model, threads, streams)


ENGINES: dict[str, tuple[tuple[str, ...], str, Callable[..., Engine]]] = {
    "openvino": (("openvino",), "runtime", OpenVinoEngine),
    "onnxruntime": (("onnxruntime",), "runtime", OnnxRuntimeEngine),
    "torch": (("torch", "onnx"), "export", _torch_engine),
}
"""Of every engine the packages it needs, the extra that brings them, and how it is made; the first is the default."""


def available_engines() -> list[str]:
    """Names of the engines whose packages are installed, the preferred one first."""
    return [name for name, (packages, _, _) in ENGINES.items() if all(_installed(package) for package in packages)]


def _installed(package: str) -> bool:
    try:
        return find_spec(package) is not None
    except (ImportError, ValueError):  # a package that was kept from being imported
        return False


def check_engine(name: str) -> str:
    """The name of an engine that is installed.

    Args:
        name: one of :data:`ENGINES`, or ``auto`` for the first that is installed.

    Raises:
        ConfigError: an unknown name.
        MissingExtraError: the engine is not installed.
    """
    available = available_engines()
    if name == "auto":
        if not available:
            raise MissingExtraError("no engine is installed to run a bundle; run: pip install 'd2ed2q[runtime]'")
        return available[0]
    if name not in ENGINES:
        raise ConfigError(f"unknown engine {name!r}: choose auto, {', '.join(ENGINES)}")
    if name not in available:
        packages, extra, _ = ENGINES[name]
        raise MissingExtraError(
            f"the engine {name} needs {' and '.join(packages)}, not installed here; run: pip install 'd2ed2q[{extra}]'"
        )
    return name


def make_engine(name: str, model: bytes, threads: int | None = None, streams: int = 1) -> Engine:
    """Makes an engine.

    Args:
        name: one of :data:`ENGINES`, or ``auto`` for the first that is installed.
        model: ONNX bytes.
        threads: cores to use; None takes all.
        streams: images that are computed at the same time.

    Raises:
        ConfigError: an unknown name.
        MissingExtraError: the engine is not installed.
        BundleError: the engine cannot read the graph.
    """
    name = check_engine(name)
    try:
        return ENGINES[name][2](model, threads, streams)
    except D2ED2QError:
        raise
    except Exception as error:  # whatever a library says of a graph it does not like
        raise BundleError(f"{name} cannot read the graph: {first_line(error)}") from error


def _multiplies_int8_exactly() -> bool:
    """Whether the processor sums products of 8-bit numbers without saturation.

    x86 processors before VNNI add pairs of products in 16 bits, where full-range weights overflow. There OpenVINO is
    told to compute in float32: slower, and right.
    """
    if platform.machine().lower() not in ("x86_64", "amd64", "i686", "i386"):
        return True
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            flags = next((line for line in file if line.startswith("flags")), "").split()
    except OSError:
        return False  # unknown: slow is better than wrong
    return any(flag in flags for flag in ("avx512_vnni", "avx_vnni", "amx_int8"))
