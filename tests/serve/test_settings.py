from __future__ import annotations

from pathlib import Path

import pytest

from d2ed2q.cli import main
from d2ed2q.errors import ConfigError
from d2ed2q.serve.settings import PeerSettings, read_node_settings

WHOLE = """
state = "state"
name = "clinic-1"
refuse = 0.4

[http]
port = 8443
[http.tokens]
pacs = "%s"

[dicom]
ae_title = "NODE"
allowed = ["CAMERA"]
segmentation = "fractional"
[dicom.peers.archive]
ae_title = "ORTHANC"
host = "127.0.0.1"
port = 4242
[dicom.peers.web]
stow = "https://pacs.example/dicom-web/studies"

[mqtt]
host = "broker"

[[watch]]
folder = "%s"

[queue]
waiting = 10
"""
PEER = "[dicom.peers.a]\nport = 104\n"


def write(folder: Path, text: str) -> Path:
    path = folder / "node.toml"
    path.write_text(text)
    return path


def test_a_whole_file_is_read(tmp_path: Path) -> None:
    settings = read_node_settings(write(tmp_path, WHOLE % ("ab" * 32, tmp_path)))
    assert settings.name == "clinic-1"
    assert settings.state == Path("state")
    assert settings.http is not None
    assert settings.http.tokens == {"pacs": "ab" * 32}
    assert settings.dicom is not None
    assert settings.dicom.allowed == ("CAMERA",)
    assert settings.dicom.peers["archive"] == PeerSettings("ORTHANC", "127.0.0.1", 4242)
    assert settings.mqtt is not None
    assert settings.watch[0].folder == tmp_path
    assert settings.queue.waiting == 10
    assert settings.queue.attempts == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[http]", "key 'state' is missing"),
        ('state = "s"', "no door"),
        ('state = "s"\n[htp]', "did you mean 'http'"),
        ('state = "s"\n[http]\nprot = 1', r"unknown key 'http\.prot'; did you mean 'port'"),
        ('state = "s"\n[http]\nport = "eighty"', r"http\.port = 'eighty' is of the wrong type"),
        ('state = "s"\n[http]\nport = 70000', "70000"),
        ('state = "s"\nhttp = 3', "http must be a table"),
        ('state = "s"\n[http]\nhost = "0.0.0.0"', "nobody is asked who they are"),
        ('state = "s"\n[http.tokens]\nme = "secret"', r"http\.tokens\.me is not a SHA-256"),
        ('state = "s"\n[http.tls]\ncertificate = "c"', r"key 'http\.tls\.key' is missing"),
        ('state = "s"\n[http.tls]\ncertificate = "c"\nkey = "k"', "there is no file c"),
        ('state = "s"\nname = "a b"\n[http]', "name takes letters"),
        ('state = "s"\nrefuse = 2.0\n[http]', "refuse lies between 0 and 1"),
        ('state = "s"\nthreads = 0\n[http]', "threads"),
        ('state = "s"\n[http]\n[queue]\nwaiting = 0', r"queue\.waiting"),
        ('state = "s"\n[dicom]\nae_title = "MUCH TOO LONG A TITLE"', "application entity title"),
        ('state = "s"\n[dicom.peers.a]\nhost = "h"', r"dicom\.peers\.a\.port"),
        ('state = "s"\n[dicom.peers.a]\nport = 1', "either host, port and ae_title, or stow"),
        ('state = "s"\n[dicom.peers.a]\nstow = "pacs"', "no address"),
        ('state = "s"\n[dicom.peers.a]\nstow = "https://p/s"\ntoken_file = "t"', "there is no file t"),
        ('state = "s"\n[http]\n[mqtt]\nhost = "b"\ntopic = "a/#"', "topic"),
        ('state = "s"\n[http]\n[mqtt]\nport = 1883', r"key 'mqtt\.host' is missing"),
        ('state = "s"\n[[watch]]\nfolder = "nowhere"', "no folder nowhere"),
        ('state = "s"\nwatch = 3', "list of tables"),
        ("state = ", "not valid TOML"),
        ('state = "s"\n[dicom]\nae_title = " "', r"dicom\.ae_title: ' ' is no application entity title"),
        ('state = "s"\n[dicom]\nallowed = ["  "]', r"dicom\.allowed: '  ' is no application entity title"),
        (f'state = "s"\n{PEER}ae_title = "  "\nhost = "h"', r"dicom\.peers\.a\.ae_title: '  ' is no application"),
        ('state = "s"\n[http]\nhost = "pacs..clinic"', r"http\.host is 'pacs\.\.clinic', which is neither"),
        ('state = "s"\n[http]\nhost = ""', r"http\.host is ''"),
        (f'state = "s"\n[dicom]\nhost = "{"x" * 64}"', r"dicom\.host is 'x+'"),
        (f'state = "s"\n{PEER}ae_title = "A"\nhost = "pacs..clinic"', r"dicom\.peers\.a\.host is"),
        ('state = "s"\n[http]\n[mqtt]\nhost = "a b"', r"mqtt\.host is 'a b'"),
        (f'state = "s"\n{PEER}stow = "https://pacs:99999/x"', "no address"),
        (f'state = "s"\n{PEER}stow = "https://pacs..clinic/x"', "no address"),
        (f'state = "s"\n{PEER}stow = "https://[pacs/x"', "no address"),
        ('state = "s"\n[http]\n[queue]\nattempts = 9223372036854775808', r"queue\.attempts is 9223372036854775808"),
        ('state = "s"\n[dicom.peers."@mqtt"]\nstow = "https://p/s"', "MQTT broker so; take another name"),
        ('state = "s"\n[http]\nport = 5000\n[dicom]\nport = 5000', r"http\.port and dicom\.port are both 5000"),
        ('state = "s"\n[http]\nport = 5000\n[dicom]\nport = 5000\nhost = "0.0.0.0"', "are both 5000"),
        (f'state = "s"\n{PEER}ae_title = "A"\nhost = "h"\nauthority = "ca"', "authority and token_file are of stow"),
        (f'state = "s"\n{PEER}ae_title = "A"\nhost = "h"\ntoken_file = "t"', "authority and token_file are of stow"),
        (f'state = "s"\n{PEER}stow = "http://p/s"\nauthority = "ca"', "begin it with https"),
        ('state = "s"\n[http]\n[mqtt]\nhost = "b"\npassword_file = "p"', "not used without mqtt.user"),
    ],
)
def test_what_is_wrong_is_named(text: str, message: str, tmp_path: Path) -> None:
    path = write(tmp_path, text)
    with pytest.raises(ConfigError, match=message) as caught:
        read_node_settings(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value).split("TOML")[0]


@pytest.mark.parametrize("key", ["results", "failed"])
@pytest.mark.parametrize("spelled", ["{0}/camera", "{0}/camera/../camera", "{0}/link", "{0}/other"])
def test_what_the_node_writes_is_never_watched(key: str, spelled: str, tmp_path: Path) -> None:
    (tmp_path / "camera").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "camera")
    place = spelled.format(tmp_path)
    text = f'state = "s"\n[[watch]]\nfolder = "{tmp_path}/camera"\n{key} = "{place}"\n'
    text += f'[[watch]]\nfolder = "{tmp_path}/other"\n'
    number = 1 if spelled.endswith("other") else 0
    with pytest.raises(ConfigError, match=rf"watch\[0\]\.{key} is {place}, the folder that watch\[{number}\] watches"):
        read_node_settings(write(tmp_path, text))


@pytest.mark.parametrize("key", ["results", "failed"])
def test_folders_that_are_made_in_a_watched_one_are_not_watched_either(key: str, tmp_path: Path) -> None:
    (tmp_path / key).mkdir()
    text = f'state = "s"\n[[watch]]\nfolder = "{tmp_path}"\n[[watch]]\nfolder = "{tmp_path / key}"\n'
    with pytest.raises(ConfigError, match=rf"watch\[0\]\.{key} is .* that watch\[1\] watches"):
        read_node_settings(write(tmp_path, text))


def test_results_of_two_folders_go_to_two_places(tmp_path: Path) -> None:
    for name in ("left", "right", "both"):
        (tmp_path / name).mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "both")
    text = 'state = "s"\n'
    for name, results in (("left", "both"), ("right", "link")):
        text += f'[[watch]]\nfolder = "{tmp_path / name}"\nresults = "{tmp_path / results}"\n'
    with pytest.raises(ConfigError, match=rf"watch\[1\]\.results is {tmp_path}/link, where the results of watch\[0\]"):
        read_node_settings(write(tmp_path, text))
    assert len(read_node_settings(write(tmp_path, text.replace("link", "own"))).watch) == 2


def test_hosts_that_can_be_are_taken(tmp_path: Path) -> None:
    for host in ("pacs.clinic.example.", "10.0.0.7", "fe80::1", "büro"):
        text = f'state = "s"\n[http]\n[mqtt]\nhost = "{host}"\n{PEER}ae_title = "A"\nhost = "{host}"\n'
        read_node_settings(write(tmp_path, text))
    for stow in ("https://pacs:8443/studies", "http://[::1]:8042/dicom-web/studies", "https://10.0.0.7/s"):
        read_node_settings(write(tmp_path, f'state = "s"\n[dicom.peers.a]\nstow = "{stow}"\n'))


def test_folders_that_are_not_there_yet_are_made_and_so_pass_the_check(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "camera").mkdir()
    (tmp_path / "file").touch()
    text = f'state = "{tmp_path}/s"\n[[watch]]\nfolder = "{tmp_path}/camera"\nresults = "{tmp_path}/PLACE/results"\n'

    def checked(place: str) -> int:
        return main(["serve", str(bundle), "--config", str(write(tmp_path, text.replace("PLACE", place))), "--check"])

    assert checked("new/deep") == 0
    assert not (tmp_path / "new").exists(), "it is a check"
    assert checked("file") == 2
    assert capsys.readouterr().err == f"d2ed2q: the folder {tmp_path}/file is not there, or cannot be written to\n"


@pytest.mark.parametrize("option", [[], ["--check"]])
def test_a_node_that_would_watch_its_own_results_does_not_start(
    option: list[str], bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "camera").mkdir()
    text = f'state = "{tmp_path}/s"\n[[watch]]\nfolder = "{tmp_path}/camera"\nresults = "{tmp_path}/camera"\n'
    assert main(["serve", str(bundle), "--config", str(write(tmp_path, text)), *option]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"d2ed2q: {tmp_path / 'node.toml'}: watch[0].results is {tmp_path / 'camera'}, the folder")
    assert "name another folder" in line
    assert not (tmp_path / "s").exists(), "nothing was opened"
