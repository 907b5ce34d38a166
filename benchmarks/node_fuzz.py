"""Hostile input against a running node: HTTP, tensors, pictures, DICOM files and associations, mutated at random.

Usage::

    python benchmarks/node_fuzz.py MODEL.d2q --inputs 20000 --out benchmarks/results/node-fuzz.json

The node runs as a process of its own. It must not end, never take longer than ten seconds for an answer, never answer
with a status of 500, and answer at both doors at the end. Nor must it grow: before and after, the same sound images of
nine sizes are sent, so that what the engine keeps for the sizes used last is the same; from the first tenth of the
inputs, by when libraries are loaded, to the end it may grow by 64 MB. Ends with 1 if anything fails. The same seed
gives the same inputs.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import random
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
from node_faults import free_port, photograph, running
from node_load import body_of, memory_of
from PIL import Image
from pynetdicom import AE

from d2ed2q.data import make_phantom
from d2ed2q.deploy import read_bundle
from d2ed2q.files import write_text
from d2ed2q.recipes.environment import environment

_LONGEST = 10.0
_GROWTH_MB = 64.0
_ODD = (b"\x00", b"\xff", b"\x7f\xff\xff\xff", b"\xff\xff\xff\xff", b"%s%n", b"\xf0\x9f\x92\xa9", b"9" * 30, b"[" * 500)


def mutated(data: bytes, rng: random.Random) -> bytes:
    """A file with some of it changed, cut, doubled, moved or put in."""
    content = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 8, 32))):
        if not content:
            break
        where = rng.randrange(min(len(content), rng.choice((64, 512, 1 << 30))))
        action = rng.randrange(7)
        if action == 0:
            content[where] ^= 1 << rng.randrange(8)
        elif action == 1:
            content[where] = rng.randrange(256)
        elif action == 2:
            del content[where : where + rng.randrange(1, 64)]
        elif action == 3:
            content[where:where] = rng.choice(_ODD)
        elif action == 4:
            content[where:where] = content[where : where + rng.randrange(1, 256)]
        elif action == 5:
            content[where : where + 4] = rng.choice(_ODD)[:4].ljust(4, b"\x00")
        else:
            del content[where:]
    return bytes(content)


def seeds() -> dict[str, list[bytes]]:
    """Sound files to begin with, by their kind."""
    rng = np.random.default_rng(0)
    picture = Image.fromarray(rng.integers(0, 256, (40, 48, 3)).astype(np.uint8))
    kinds: dict[str, list[bytes]] = {"picture": [], "dicom": []}
    for options in (
        {"format": "PNG"}, {"format": "JPEG"}, {"format": "TIFF"}, {"format": "TIFF", "compression": "tiff_lzw"},
        {"format": "BMP"}, {"format": "GIF"},
    ):  # fmt: skip
        buffer = io.BytesIO()
        picture.save(buffer, **options)
        kinds["picture"].append(buffer.getvalue())
    import pydicom
    from pydicom.uid import JPEGLSLossless, RLELossless

    for syntax in (None, RLELossless, JPEGLSLossless):
        image = photograph(3, 64)
        if syntax is not None:
            image.compress(syntax)
        buffer = io.BytesIO()
        pydicom.dcmwrite(buffer, image, enforce_file_format=True)
        kinds["dicom"].append(buffer.getvalue())
    return kinds


def association(port: int, rng: random.Random) -> bytes:
    """A C-STORE association as a real sender has it, recorded at a socket that does not answer."""
    called = "D2ED2Q".ljust(16).encode()
    items = b"\x10\x00" + (21).to_bytes(2, "big") + b"1.2.840.10008.3.1.1.1"
    abstract = b"\x30\x00" + (17).to_bytes(2, "big") + b"1.2.840.10008.1.1"
    transfer = b"\x40\x00" + (17).to_bytes(2, "big") + b"1.2.840.10008.1.2"
    context = b"\x01\x00\x00\x00" + abstract + transfer
    items += b"\x20\x00" + len(context).to_bytes(2, "big") + context
    user = b"\x51\x00\x00\x04\x00\x00\x40\x00" + b"\x52\x00\x00\x05" + b"1.2.3"
    items += b"\x50\x00" + len(user).to_bytes(2, "big") + user
    body = b"\x00\x01\x00\x00" + called + "FUZZ".ljust(16).encode() + bytes(32) + items
    request = b"\x01\x00" + len(body).to_bytes(4, "big") + body
    data = bytes(rng.randrange(256) for _ in range(rng.randrange(64)))
    return (
        request
        + b"\x04\x00"
        + (len(data) + 6).to_bytes(4, "big")
        + (len(data) + 2).to_bytes(4, "big")
        + b"\x01\x03"
        + data
    )


def echoes(port: int) -> bool:
    """Whether the DICOM door still answers."""
    entity = AE("FUZZ")
    entity.add_requested_context("1.2.840.10008.1.1")
    association = entity.associate("127.0.0.1", port, ae_title="D2ED2Q")
    if not association.is_established:
        return False
    status = association.send_c_echo()
    association.release()
    return bool(status.get("Status") == 0)


def attack(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Starts a node, attacks it and ends it, whatever happens."""
    http, dicom = free_port(), free_port()
    (folder / "node.toml").write_text(
        f'state = "{folder / "state"}"\n[http]\nport = {http}\nper_minute = 10000000\nlargest_mb = 2\n'
        f"[dicom]\nport = {dicom}\nlargest_mb = 2\n[queue]\nkeep_days = 0.0\n"
    )
    command = [sys.executable, "-m", "d2ed2q", "serve", str(options.model), "--config", str(folder / "node.toml")]
    with running(command, http) as node:
        return attacked(options, node.process, http, dicom)


def attacked(options: argparse.Namespace, process: subprocess.Popen[bytes], http: int, dicom: int) -> dict[str, Any]:
    """Sends everything to a running node, and sees what it makes of it."""
    rng, kinds = random.Random(options.seed), seeds()
    name = read_bundle(options.model).manifest.name
    tensor, headers = body_of(np.zeros((3, 32, 32), np.float32))
    length = int(headers["Inference-Header-Content-Length"])
    statuses: Counter[str] = Counter()
    slow: list[float] = []
    client = httpx2.Client(base_url=f"http://127.0.0.1:{http}", timeout=60)

    def post(kind: str, path: str, data: bytes, more: dict[str, str]) -> None:
        start = time.perf_counter()
        try:
            status = str(client.post(path, content=data, headers=more).status_code)
        except httpx2.HTTPError as error:
            status = type(error).__name__
        seconds = time.perf_counter() - start
        if seconds > _LONGEST:
            slow.append(seconds)
        statuses[f"{kind} {status}"] += 1

    def tensors() -> None:
        data = mutated(tensor, rng)
        changed = str(length if rng.random() < 0.6 else rng.randrange(-5, len(tensor) + 50))
        post("tensor", f"/v2/models/{name}/infer", data, {"Inference-Header-Content-Length": changed})

    def files(kind: str) -> Callable[[], None]:
        def send() -> None:
            accepted = {"Accept": rng.choice(("*/*", "image/png", "application/dicom"))}
            post(kind, "/segment", mutated(rng.choice(kinds[kind]), rng), accepted)

        return send

    def raw_http() -> None:
        head = f"POST /segment HTTP/1.1\r\nHost: x\r\nContent-Length: {rng.choice((0, 5, -1, 10**12))}\r\n\r\n".encode()
        talk("http bytes", http, mutated(head + kinds["picture"][0][:200], rng))

    def raw_dicom() -> None:
        talk("association", dicom, mutated(association(dicom, rng), rng))

    def talk(kind: str, port: int, data: bytes) -> None:
        start = time.perf_counter()
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), _LONGEST) as peer:
            peer.settimeout(0.05)
            peer.sendall(data)
            with contextlib.suppress(OSError):
                peer.recv(4096)
        if time.perf_counter() - start > _LONGEST:
            slow.append(time.perf_counter() - start)
        statuses[f"{kind} sent"] += 1

    def settled() -> float:
        """Megabytes after the same sound images."""
        for side in range(64, 64 + 9 * 16, 16):
            pixels = make_phantom(0, (side, 64)).image
            body, head = body_of(np.ascontiguousarray(pixels.transpose(2, 0, 1)))
            client.post(f"/v2/models/{name}/infer", content=body, headers=head).raise_for_status()
        return memory_of(process.pid) / 1e6

    ways: list[Callable[[], None]] = [tensors, files("picture"), files("dicom"), raw_http, raw_dicom]
    memory = []
    before = 0.0
    for number in range(options.inputs):
        if number % max(options.inputs // 10, 1) == 0:
            memory.append(memory_of(process.pid))
            print(f"{number} inputs, {memory[-1] / 1e6:.0f} MB", flush=True)
        if number == options.inputs // 10:
            before = settled()
        ways[number % len(ways)]()
        if process.poll() is not None:
            break
    alive = process.poll() is None
    well = alive and client.get("/v2/health/ready").status_code == 200 and echoes(dicom)
    grown = settled() - before if alive else float("nan")
    return {
        "inputs": sum(statuses.values()),
        "seed": options.seed,
        "alive": alive,
        "ready_at_the_end": well,
        "answers_of_500": sum(count for status, count in statuses.items() if status.endswith(" 500")),
        "longer_than_ten_seconds": len(slow),
        "memory_mb": [round(value / 1e6, 1) for value in memory],
        "grown_mb": round(grown, 1),
        "answers": dict(sorted(statuses.items())),
        "environment": environment(),
    }


def main() -> int:
    """Attacks and keeps the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--inputs", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="d2ed2q-fuzz-") as folder:
        result = attack(options, Path(folder))
    print(json.dumps({name: value for name, value in result.items() if name != "environment"}, indent=1))
    if options.out is not None:
        write_text(options.out, json.dumps(result, indent=1) + "\n")
    sound = result["alive"] and result["ready_at_the_end"] and not result["answers_of_500"]
    return 0 if sound and not result["longer_than_ten_seconds"] and result["grown_mb"] <= _GROWTH_MB else 1


if __name__ == "__main__":
    sys.exit(main())
