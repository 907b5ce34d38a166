from __future__ import annotations

import contextlib
import io
import json
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import JPEGExtended12Bit
from pynetdicom import AE, evt
from pynetdicom.dul import DULServiceProvider
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]

from d2ed2q.serve import denials
from d2ed2q.serve.audit import verify_audit
from d2ed2q.serve.node import Node
from d2ed2q.serve.outbox import Delivery
from d2ed2q.serve.settings import DicomSettings, PeerSettings, QueueSettings

from ..data.dicom_files import CAPTURE, CR, CT, DX, MR, OP8, US, as_bytes, make_dicom
from .helpers import audited, wait
from .test_association import request

SEGMENTATION = "1.2.840.10008.5.1.4.1.1.66.4"


class Archive:
    """A peer that keeps what it is sent."""

    def __init__(self) -> None:
        self.entity = AE("ARCHIVE")
        for uid in (SEGMENTATION, CAPTURE):
            self.entity.add_supported_context(uid)
        self.found: list[Dataset] = []
        self.status = 0x0000
        self.server: Any = None

    def start(self, port: int = 0) -> int:
        handlers = [(evt.EVT_C_STORE, self.store)]
        self.server = self.entity.start_server(("127.0.0.1", port), block=False, evt_handlers=handlers)  # type: ignore[arg-type]
        return int(self.server.server_address[1])

    def store(self, event: Any) -> int:
        if self.status == 0:
            self.found.append(pydicom.dcmread(io.BytesIO(event.encoded_dataset())))
        return self.status

    def stop(self) -> None:
        self.server.shutdown()


@pytest.fixture
def archive() -> Iterator[Archive]:
    archive = Archive()
    yield archive
    if archive.server is not None:
        archive.stop()


def dicom(port: int, **changes: Any) -> DicomSettings:
    values: dict[str, Any] = {"port": 0, "peers": {"archive": PeerSettings("ARCHIVE", "127.0.0.1", port)}} | changes
    return DicomSettings(**values)


def send(node: Node, dataset: Dataset, title: str = "CAMERA", called: str = "D2ED2Q") -> Any:
    entity = AE(title)
    entity.add_requested_context(dataset.SOPClassUID)
    entity.add_requested_context(Verification)
    association = entity.associate("127.0.0.1", node.dicom.port, ae_title=called)
    if not association.is_established:
        return None
    try:
        return association.send_c_store(pydicom.dcmread(io.BytesIO(as_bytes(dataset))))
    finally:
        association.release()


def test_a_photograph_comes_in_and_its_segmentation_goes_out(
    make_node: Callable[..., Node], archive: Archive, picture: np.ndarray, tmp_path: Path
) -> None:
    node = make_node(http=None, dicom=dicom(archive.start()))
    photograph = make_dicom(picture, OP8)
    with node.running():
        assert send(node, photograph).Status == 0
        wait(lambda: len(archive.found) == 2)
        assert send(node, photograph).Status == 0, "the same one again is nothing new"
        time.sleep(1)
        expected = node.model.segment(picture).prediction.mask
    assert len(archive.found) == 2
    by_class = {str(found.SOPClassUID): found for found in archive.found}
    result = by_class[SEGMENTATION]
    assert np.array_equal(result.pixel_array.reshape(expected.shape) > 0, expected > 0)
    for found in archive.found:
        for keyword in ("StudyInstanceUID", "PatientID", "PatientName", "AccessionNumber"):
            assert getattr(found, keyword) == getattr(photograph, keyword)
        assert "esearch use only" in found.SeriesDescription or "esearch use only" in str(found)
        assert found.SeriesInstanceUID != photograph.SeriesInstanceUID
    references = [element for element in result.iterall() if element.keyword == "ReferencedSOPClassUID"]
    assert {str(element.value) for element in references} == {OP8}
    log = node.audit.path.read_text()
    (received,) = (entry for entry in map(json.loads, log.splitlines()) if entry["event"] == "received")
    (repeated,) = (entry for entry in map(json.loads, log.splitlines()) if entry["event"] == "repeated")
    for same in ("job", "door", "client", "key"):
        assert repeated[same] == received[same]
    for secret in ("MU-1", "Made", str(photograph.SOPInstanceUID)):
        assert secret not in log
    validate(archive.found, tmp_path)


def validate(found: list[Dataset], folder: Path) -> None:
    """Asks dicom3tools, where they are installed, whether files are what the standard says."""
    if shutil.which("dciodvfy") is not None:
        for one in found:
            one.save_as(folder / "found.dcm", enforce_file_format=True)
            said = subprocess.run(["dciodvfy", str(folder / "found.dcm")], capture_output=True, text=True, check=False)
            assert not [line for line in said.stderr.splitlines() if line.startswith("Error")], said.stderr


def test_a_fractional_segmentation_has_the_probabilities(
    make_node: Callable[..., Node], archive: Archive, picture: np.ndarray, tmp_path: Path
) -> None:
    node = make_node(http=None, dicom=dicom(archive.start(), overlay=False, segmentation="fractional"))
    with node.running():
        assert send(node, make_dicom(picture, OP8)).Status == 0
        wait(lambda: len(archive.found) == 1)
        expected = node.model.segment(picture).prediction.probability[0]
    (result,) = archive.found
    assert (result.SegmentationType, result.SegmentationFractionalType) == ("FRACTIONAL", "PROBABILITY")
    found = result.pixel_array.reshape(expected.shape) / result.MaximumFractionalValue
    assert np.abs(found - expected).max() < 1.5 / 255
    assert len(np.unique(found)) > 10, "more than a mask"
    validate(archive.found, tmp_path)


def test_images_of_every_modality_come_in_and_their_segmentations_go_out(
    make_node: Callable[..., Node], archive: Archive, picture: np.ndarray
) -> None:
    grey = picture[..., 1]
    wide = grey.astype(np.uint16) * 16
    pixels = {CAPTURE: picture, US: grey, CR: wide, DX: wide, MR: wide, CT: grey.astype(np.int16) * 8 - 1000}
    images = [make_dicom(values, kind) for kind, values in pixels.items()]
    node = make_node(http=None, dicom=dicom(archive.start(), overlay=False))
    with node.running():
        for image in images:
            assert send(node, image).Status == 0
        wait(lambda: len(archive.found) == len(images))
    for image in images:
        (result,) = (found for found in archive.found if found.StudyInstanceUID == image.StudyInstanceUID)
        assert (result.Rows, result.Columns, result.Modality) == (*grey.shape, "SEG")
        elements = list(result.iterall())
        for keyword, value in (("Class", image.SOPClassUID), ("Instance", image.SOPInstanceUID)):
            assert {str(e.value) for e in elements if e.keyword == f"ReferencedSOP{keyword}UID"} == {str(value)}


# pynetdicom leaves the socket open of an association that nobody took.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_peer_that_is_away_gets_its_results_later(
    make_node: Callable[..., Node], archive: Archive, picture: np.ndarray
) -> None:
    port = archive.start()
    archive.stop()
    node = make_node(http=None, dicom=dicom(port, overlay=False))
    with node.running():
        assert send(node, make_dicom(picture, OP8)).Status == 0
        wait(lambda: node.metrics.deliveries.labels("archive", "retried")._value.get() > 0)
        archive.start(port)
        wait(lambda: node.store.counts()["deliveries_done"] == 1)  # which is noted after the archive has it
    assert len(archive.found) == 1


def test_a_peer_that_will_not_is_given_up(
    make_node: Callable[..., Node], archive: Archive, picture: np.ndarray
) -> None:
    archive.status = 0xA900
    queue = QueueSettings(delivery_hours=1e-9)
    node = make_node(http=None, dicom=dicom(archive.start(), overlay=False), queue=queue)
    with node.running():
        send(node, make_dicom(picture, OP8))
        wait(lambda: node.store.counts()["deliveries_failed"] == 1)


def test_an_instance_that_comes_again_is_sent_to_who_has_it_not(
    make_node: Callable[..., Node], archive: Archive, picture: np.ndarray
) -> None:
    node = make_node(http=None, dicom=dicom(archive.start(), overlay=False))
    photograph = make_dicom(picture, OP8)
    with node.running():
        assert send(node, photograph).Status == 0
        wait(lambda: node.store.counts()["deliveries_done"] == 1)
        node.store.outbox.give_up(Delivery(1, "archive", "segmentation.dcm", 1), "it was away")
        assert send(node, photograph).Status == 0
        wait(lambda: node.store.counts()["deliveries_done"] == 1)
        photograph.PatientID = "MU-2"  # the first was a mistake
        assert send(node, photograph).Status == 0
        wait(lambda: len(archive.found) == 3)
        assert node.store.counts()["done"] == 1
    assert [found.PatientID for found in archive.found] == ["MU-1", "MU-1", "MU-2"]


@pytest.mark.parametrize(
    ("dataset", "status"),
    [
        ({"NumberOfFrames": 2}, 0xC000),
        ({"Rows": None}, 0xC000),
        ({"StudyInstanceUID": None}, 0xC000),
        ({"SeriesInstanceUID": ""}, 0xC000),
    ],
)
def test_what_is_no_image_is_refused_at_once(
    dataset: dict[str, Any], status: int, make_node: Callable[..., Node], picture: np.ndarray
) -> None:
    node = make_node(http=None, dicom=DicomSettings(port=0))
    with node.running():
        assert send(node, make_dicom(picture, OP8, **dataset)).Status == status
        assert node.store.counts()["waiting"] == 0


def test_what_no_decoder_reads_is_refused_at_once(make_node: Callable[..., Node], picture: np.ndarray) -> None:
    deep = make_dicom(picture[..., 1].astype(np.uint16), CR, BitsStored=12, HighBit=11)
    deep.PixelData = encapsulate([b"\xff\xd8 12 bits \xff\xd9"])
    deep.file_meta.TransferSyntaxUID = JPEGExtended12Bit
    node = make_node(http=None, dicom=DicomSettings(port=0))
    entity = AE("CAMERA")
    entity.add_requested_context(deep.SOPClassUID, JPEGExtended12Bit)
    with node.running():
        association = entity.associate("127.0.0.1", node.dicom.port, ae_title="D2ED2Q")
        answer = association.send_c_store(pydicom.dcmread(io.BytesIO(as_bytes(deep))))
        association.release()
        assert answer.Status == 0xC000
        assert "JPEG Extended with 12 bits" in answer.ErrorComment
        assert node.store.counts()["waiting"] == 0


def test_strangers_and_giants_are_sent_away(make_node: Callable[..., Node], picture: np.ndarray) -> None:
    node = make_node(http=None, dicom=DicomSettings(port=0, allowed=("CAMERA",), largest_mb=1))
    with node.running():
        assert send(node, make_dicom(picture, OP8), title="STRANGER") is None
        assert send(node, make_dicom(picture, OP8), called="OTHER") is None
        large = make_dicom(np.zeros((800, 800, 3), np.uint8), OP8)
        assert "Status" not in send(node, large)
        assert send(node, make_dicom(picture, OP8)).Status == 0
    entries = audited(node)
    denied = [(entry["reason"], entry["entity"].strip()) for entry in entries if entry["event"] == "denied"]
    assert ("association", "STRANGER") in denied
    assert ("size", "CAMERA") in denied


# pynetdicom leaves the socket open of an association that nobody took.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_strangers_do_not_flood_the_audit_log(make_node: Callable[..., Node], picture: np.ndarray) -> None:
    most, now = denials._AUDITED, 0.0
    node = make_node(http=None, dicom=DicomSettings(port=0, allowed=("CAMERA",)))
    node.dicom.denials._limit._clock = lambda: now

    def knock(count: int, source: str = "127.0.0.1") -> None:
        for _ in range(count):
            entity = AE("STRANGER")
            entity.add_requested_context(Verification)
            there: Any = {"ae_title": "D2ED2Q", "bind_address": (source, 0)}
            assert entity.associate("127.0.0.1", node.dicom.port, **there).is_rejected

    def denied(source: str) -> int:
        entries = map(json.loads, node.audit.path.read_text().splitlines())
        return sum(entry["event"] == "denied" and entry["client"] == source for entry in entries)

    with node.running():
        knock(most + 5)
        wait(lambda: node.metrics.denied.labels("dicom", "association")._value.get() == most + 5)
        assert denied("127.0.0.1") == most, "the counters have them all"
        assert send(node, make_dicom(picture, OP8, Rows=None)).Status == 0xC000
        wait(lambda: node.metrics.denied.labels("dicom", "image")._value.get() == 1)
        assert denied("127.0.0.1") == most, "whatever the reason is"
        knock(1, "127.0.0.2")
        wait(lambda: denied("127.0.0.2") == 1)
        now = 60.0 / most  # time for one more
        knock(2)
        wait(lambda: node.metrics.denied.labels("dicom", "association")._value.get() == most + 8)
        assert denied("127.0.0.1") == most + 1
        assert send(node, make_dicom(picture, OP8)).Status == 0, "who is known is let in all the while"
    assert verify_audit(node.audit.path)[0] == len(node.audit.path.read_text().splitlines())


def test_a_full_queue_says_out_of_resources(make_node: Callable[..., Node], picture: np.ndarray) -> None:
    node = make_node(http=None, dicom=DicomSettings(port=0), queue=QueueSettings(waiting=1))
    node.store.add("other", "dicom", b"x")
    node.dicom.start()  # the door alone: nobody works
    try:
        assert send(node, make_dicom(picture, OP8)).Status == 0xA700
    finally:
        node.dicom.stop()


# The test's own side is left with sockets that the door has hung up on.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_peers_that_stay_connected_do_not_keep_the_node(make_node: Callable[..., Node]) -> None:
    def threads() -> list[DULServiceProvider]:
        found = (thread for thread in threading.enumerate() if isinstance(thread, DULServiceProvider))
        return [thread for thread in found if thread.assoc.is_acceptor]

    before = threads()
    node = make_node(http=None, dicom=DicomSettings(ae_title="DOOR", port=0))
    node.dicom.start()
    entity = AE("CAMERA")
    entity.add_requested_context(Verification)
    idle = entity.associate("127.0.0.1", node.dicom.port, ae_title="DOOR")
    assert idle.is_established
    with contextlib.ExitStack() as links:
        address = ("127.0.0.1", node.dicom.port)
        silent, deaf, slow = (links.enter_context(socket.create_connection(address)) for _ in range(3))
        silent.sendall(b"")
        deaf.sendall(request())  # whose association is not ended by its own side
        assert deaf.recv(1) == b"\x02", "it is accepted"
        slow.sendall(b"\x01\x00\x00")  # the beginning of a message
        wait(lambda: len(threads()) - len(before) == 4)
        start = time.monotonic()
        node.dicom.stop()
        wait(lambda: threads() == before, 5)
        assert time.monotonic() - start < 15
