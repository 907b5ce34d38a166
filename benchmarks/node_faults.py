"""Nothing is lost: images are sent to a node that is killed again and again, and whose archive goes away.

Usage::

    python benchmarks/node_faults.py MODEL.d2q --images 1000 --out benchmarks/results/node-faults.json

A node runs as a process of its own, with a real Orthanc as its peer. A sender stores images by C-STORE, and sends each
again until it is acknowledged. Meanwhile the node is killed (SIGKILL) five times and Orthanc is stopped twice. At the
end every image must have exactly one segmentation in Orthanc. Ends with 1 if one has none, or more.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian, generate_uid
from pynetdicom import AE

from d2ed2q.data import make_phantom
from d2ed2q.files import write_text
from d2ed2q.recipes.environment import environment

CAPTURE, SEGMENTATION = "1.2.840.10008.5.1.4.1.1.7", "1.2.840.10008.5.1.4.1.1.66.4"


def photograph(number: int, size: int) -> Dataset:
    """A made-up retina as a Secondary Capture Image; no two are alike."""
    pixels = np.roll(make_phantom(number % 16, (size, size)).image, number // 16, axis=1)
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = UID(CAPTURE)
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = generate_uid(), generate_uid()
    dataset.PatientName, dataset.PatientID = "Made^Up", str(number)
    dataset.PatientBirthDate = dataset.PatientSex = ""
    dataset.StudyDate = dataset.StudyTime = dataset.AccessionNumber = dataset.StudyID = ""
    dataset.ReferringPhysicianName, dataset.Modality, dataset.ConversionType = "", "OT", "DI"
    dataset.SeriesNumber, dataset.InstanceNumber = 1, 1
    dataset.Rows, dataset.Columns = pixels.shape[:2]
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation, dataset.PlanarConfiguration = 3, "RGB", 0
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 8, 8, 7, 0
    dataset.PixelData = pixels.tobytes()
    return dataset


def free_port() -> int:
    """A port that nobody has."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(port: int, seconds: float = 60) -> None:
    """Waits until somebody listens."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.05)
    raise SystemExit(f"nobody listens at port {port}")


class Process:
    """A program that is stopped, killed and started again.

    Args:
        command: what starts it.
        port: where it listens.
        silent: whether its complaints are dropped, for a program whose faults are made on purpose.
    """

    def __init__(self, command: list[str], port: int, silent: bool) -> None:
        self.command, self.port, self.silent = command, port, silent
        self.start()

    def start(self) -> None:
        """Starts it, and waits until it listens."""
        complaints = subprocess.DEVNULL if self.silent else None
        self.process = subprocess.Popen(self.command, stdout=subprocess.DEVNULL, stderr=complaints)
        try:
            wait_for(self.port)
        except BaseException:
            self.end(signal.SIGTERM)
            raise

    def end(self, number: signal.Signals) -> None:
        """Ends it."""
        self.process.send_signal(number)
        self.process.wait(60)


@contextlib.contextmanager
def running(command: list[str], port: int, silent: bool = False) -> Iterator[Process]:
    """A program that is ended whatever happens."""
    process = Process(command, port, silent)
    try:
        yield process
    finally:
        process.end(signal.SIGTERM)


def send(port: int, images: list[Dataset], acknowledged: list[int]) -> None:
    """Stores images, each until it is acknowledged."""
    entity = AE("CAMERA")
    entity.add_requested_context(CAPTURE)
    entity.connection_timeout = entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = 10
    left = list(enumerate(images))
    while left:
        association = entity.associate("127.0.0.1", port, ae_title="D2ED2Q")
        while association.is_established and left:
            number, image = left[0]
            try:
                status = association.send_c_store(image)
            except (RuntimeError, ValueError):
                break
            if status.get("Status") == 0:
                acknowledged.append(number)
                left.pop(0)
            elif status.get("Status") == 0xA700:  # its queue is full
                time.sleep(0.2)
            else:
                break
        with contextlib.suppress(Exception):
            association.release()
        if left:
            time.sleep(0.1)


def stored(port: int) -> Counter[str]:
    """How many segmentations the archive has of each study."""
    found: Counter[str] = Counter()
    all_series = asked(port, "/series?expand")  # the studies of all of these are there afterwards
    studies = {study["ID"]: study["MainDicomTags"]["StudyInstanceUID"] for study in asked(port, "/studies?expand")}
    for series in all_series:
        if series["MainDicomTags"]["Modality"] == "SEG":
            found[studies[series["ParentStudy"]]] += len(series["Instances"])
    return found


def asked(port: int, path: str) -> Any:
    """What the archive answers, in JSON."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}") as answer:
        return json.load(answer)


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """A folder that is removed at the end."""
    with tempfile.TemporaryDirectory(prefix="d2ed2q-faults-") as folder:
        yield Path(folder)


def run(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Sends, kills, stops, waits and counts."""
    dicom, archive, http = free_port(), free_port(), free_port()
    (folder / "orthanc").mkdir()
    orthanc_settings = {
        "StorageDirectory": str(folder / "orthanc"), "IndexDirectory": str(folder / "orthanc"), "DicomAet": "ORTHANC",
        "DicomPort": archive, "HttpPort": http, "AuthenticationEnabled": False, "DicomAlwaysAllowStore": True,
        "OverwriteInstances": False,
    }  # fmt: skip
    (folder / "orthanc.json").write_text(json.dumps(orthanc_settings))
    (folder / "node.toml").write_text(
        f'state = "{folder / "state"}"\n[dicom]\nport = {dicom}\noverlay = false\n[dicom.peers.archive]\n'
        f'ae_title = "ORTHANC"\nhost = "127.0.0.1"\nport = {archive}\n'
    )
    program = shutil.which("Orthanc") or shutil.which("Orthanc", path="/usr/sbin")
    if program is None:
        raise SystemExit("Orthanc is not installed here")
    command = [sys.executable, "-m", "d2ed2q", "serve", str(options.model), "--config", str(folder / "node.toml")]
    with (
        running([program, str(folder / "orthanc.json")], archive, silent=True) as orthanc,
        running(command, dicom, silent=True) as node,
    ):
        return faults_of(options, orthanc, node, http)


def faults_of(options: argparse.Namespace, orthanc: Process, node: Process, http: int) -> dict[str, Any]:
    """Sends images to a running node with a running archive, and what then happens to both."""
    images = [photograph(number, options.size) for number in range(options.images)]
    acknowledged: list[int] = []
    begun = time.monotonic()
    sender = threading.Thread(target=send, args=(node.port, images, acknowledged), daemon=True)
    sender.start()
    faults = {options.images * n // (options.kills + 1): "kill" for n in range(1, options.kills + 1)}
    faults |= {options.images * n // (options.stops + 1) + 7: "stop" for n in range(1, options.stops + 1)}
    for moment, fault in sorted(faults.items()):
        while len(acknowledged) < moment and sender.is_alive():
            time.sleep(0.02)
        print(f"{time.monotonic() - begun:6.1f} s, {len(acknowledged)} acknowledged: {fault}", flush=True)
        if fault == "kill":
            node.end(signal.SIGKILL)
            node.start()
        else:
            orthanc.end(signal.SIGTERM)
            time.sleep(options.away)
            orthanc.start()
    sender.join()
    sent = time.monotonic() - begun
    wait_for(http)
    end = time.monotonic() + options.patience
    while sum(stored(http).values()) < options.images and time.monotonic() < end:
        time.sleep(1)
    time.sleep(3)  # what would come twice comes now
    counts = stored(http)
    return {
        "images": options.images,
        "kills": options.kills,
        "stops": options.stops,
        "acknowledged": len(acknowledged),
        "without_a_result": sum(counts[str(image.StudyInstanceUID)] == 0 for image in images),
        "with_more_than_one": sum(counts[str(image.StudyInstanceUID)] > 1 for image in images),
        "seconds_to_send": round(sent, 1),
        "seconds": round(time.monotonic() - begun, 1),
        "environment": environment(),
    }


def main() -> int:
    """Runs it and keeps the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--stops", type=int, default=2)
    parser.add_argument("--away", type=float, default=10.0, help="seconds that Orthanc is away each time")
    parser.add_argument("--patience", type=float, default=900.0, help="seconds to wait for the last result")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    with scratch() as folder:
        result = run(options, folder)
    print(json.dumps({name: value for name, value in result.items() if name != "environment"}, indent=1))
    if options.out is not None:
        write_text(options.out, json.dumps(result, indent=1) + "\n")
    return 1 if result["without_a_result"] or result["with_more_than_one"] else 0


if __name__ == "__main__":
    sys.exit(main())
