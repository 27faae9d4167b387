"""Slides by address: an http server on loopback and fsspec's store in memory stand for the network."""

from __future__ import annotations

import contextlib
import gc
import http.server
import pickle
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import fsspec
import numpy as np
import pytest
from PIL import Image

from tilers import open_slide, stores
from tilers.photographs import read_listing
from tilers.remote import RemotePath, slide_path
from wsi_chat.errors import SettingError, SlideError, SlideNotFound, SlideUnreadable, SlideUnsupported

from .conftest import halved, textured, write_tiff
from .test_omezarr import write_zarr
from .test_tiff import write as write_flat


class Handler(http.server.BaseHTTPRequestHandler):
    """Files of a folder, in parts; ``moods`` of the server change what it does with a request."""

    protocol_version = "HTTP/1.1"
    moods: ClassVar[set[str]] = set()
    folder: ClassVar[Path]
    asked: ClassVar[list[tuple[str, str]]] = []
    woken: ClassVar[threading.Event]

    def handle(self) -> None:
        with contextlib.suppress(ConnectionError):  # a client that has seen enough
            super().handle()

    def log_message(self, *_: object) -> None:
        """Nothing on stderr."""

    def do_GET(self) -> None:
        wanted = self.headers.get("Range", "")
        self.asked.append((self.path, wanted))
        file = self.folder / self.path.lstrip("/")
        if "silent" in self.moods:
            self.woken.wait(20)
        if "forbidden" in self.moods:
            self.send_error(403)
        elif not file.is_file():
            self.send_error(404)
        else:
            self._send(file.read_bytes(), wanted)

    def _send(self, data: bytes, wanted: str) -> None:
        found = re.fullmatch(r"bytes=(\d+)-(\d+)", wanted)
        part = data
        if found and "whole" not in self.moods:
            first, last = int(found[1]), min(int(found[2]), len(data) - 1)
            part = data[first : last + 1]
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(data)}")
        else:
            self.send_response(200)
        if "short" in self.moods and len(part) > 1:
            part = part[:-1]
        self.send_header("Content-Length", str(len(part)))
        self.send_header("ETag", '"v1"')
        self.end_headers()
        self.wfile.write(part)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """The address of a server that offers ``tmp_path / "www"``."""
    Handler.folder, Handler.moods, Handler.asked = tmp_path / "www", set(), []
    Handler.woken = threading.Event()
    Handler.folder.mkdir()
    running = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=running.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{running.server_port}"
    Handler.woken.set()
    running.shutdown()
    running.server_close()
    thread.join()


def upload(path: Path) -> str:
    """A file or folder in the store in memory, and its address."""
    files = fsspec.filesystem("memory")
    files.store.clear()
    files.pseudo_dirs[:] = [""]
    files.put(str(path), "/bucket/" + path.name, recursive=path.is_dir())
    return f"memory://bucket/{path.name}"


# ------------------------------------------------------------------------------------------ addresses


def test_an_address_is_a_path_with_names_and_parents() -> None:
    path = slide_path("https://host.org:8443/a/b.ome.tif")
    assert isinstance(path, RemotePath)
    assert (str(path), path.name, path.suffix) == ("https://host.org:8443/a/b.ome.tif", "b.ome.tif", ".tif")
    assert str(path.parent / "c.tif") == "https://host.org:8443/a/c.tif"
    assert path.absolute() == path.resolve() == path == slide_path(Path("https://host.org:8443/a/b.ome.tif"))
    assert hash(path) == hash(pickle.loads(pickle.dumps(path)))
    assert str(pickle.loads(pickle.dumps(path))) == str(path)
    with pytest.raises(PermissionError, match="never written"):
        path.open("wb")


@pytest.mark.parametrize("text", ["a.svs", "/data/a.svs", r"C:\slides\a.svs", "C:/slides/a.svs", "10:30/a.svs"])
def test_paths_of_this_machine_stay_paths(text: str) -> None:
    assert slide_path(text) == Path(text)
    assert not isinstance(slide_path(text), RemotePath)
    assert slide_path("file:///data/a%20b.svs") == Path("/data/a b.svs")


SECRET = "hunter2"


@pytest.mark.parametrize(
    "text",
    [
        f"https://me:{SECRET}@host/a.svs",
        f"https://{SECRET}@host/a.svs",
        f"s3://AKIA:{SECRET}@bucket/a.svs",
        f"https://host/a.svs?X-Amz-Signature={SECRET}",
        f"https://host/a.svs#{SECRET}",
        f"HTTPS://me:{SECRET}@host/a.svs",
    ],
)
def test_an_address_with_credentials_is_refused_and_not_repeated(text: str) -> None:
    for given in (text, Path(text)):
        with pytest.raises(SettingError, match="written into reports and logs") as caught:
            open_slide(given)
        assert SECRET not in str(caught.value)


@pytest.mark.parametrize("text", ["foo://a/b.svs", "https://host", "s3:///b.svs//", "https://host/a/../b.svs"])
def test_addresses_that_cannot_be_kept_are_refused(text: str) -> None:
    with pytest.raises(SettingError):
        slide_path(text)


# ------------------------------------------------------------------------------------------ reading


@pytest.mark.parametrize("form", ["generic", "aperio", "planes", "picture"])
def test_a_file_by_address_shows_what_it_shows_here(tmp_path: Path, server: str, form: str) -> None:
    www, image = tmp_path / "www", textured(700, 500)
    if form == "generic":
        file = write_tiff(www / "a.tif", image, levels=2)
    elif form == "aperio":
        file = write_flat(
            www / "a.svs", image, tiled=True, photometric="rgb", description="Aperio |MPP = 0.5|AppMag = 20"
        )
    elif form == "planes":
        stack = np.stack([image[..., 0], image[..., 1]])
        file = write_flat(www / "a.ome.tif", stack, tiled=True, photometric="minisblack", metadata={"axes": "ZYX"})
    else:
        file = www / "a.png"
        Image.fromarray(image).save(file)
    with open_slide(file, mpp=0.5, z="mid") as here:
        for address in (f"{server}/{file.name}", upload(file)):
            with open_slide(address, mpp=0.5, z="mid") as there:
                assert (there.level_sizes, there.planes, there.notes) == (here.level_sizes, here.planes, here.notes)
                assert there.fingerprint == here.fingerprint
                assert str(there.path) == address
                for level in range(len(here.level_sizes)):
                    at = (97, 51, level, 150, 170)
                    assert np.array_equal(there.read_region(*at), here.read_region(*at))
                with there.clone() as twin:
                    assert np.array_equal(twin.read_region(0, 0, 0, 64, 64), here.read_region(0, 0, 0, 64, 64))


def test_of_a_large_slide_only_what_is_shown_is_sent(tmp_path: Path, server: str) -> None:
    noise = np.random.default_rng(1).integers(0, 256, (3072, 3072, 3), np.uint8)
    file = write_tiff(tmp_path / "www" / "a.tif", noise, compression=None)
    with open_slide(f"{server}/a.tif") as slide:
        assert np.array_equal(slide.read_region(1000, 2000, 0, 256, 256), noise[2000:2256, 1000:1256])
    sent = sum(int(last) - int(first) + 1 for first, last in re.findall(r"bytes=(\d+)-(\d+)", str(Handler.asked)))
    assert sent < file.stat().st_size / 4


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_ome_zarr_by_address(tmp_path: Path, server: str, version: str) -> None:
    image = textured(192, 128)
    levels = [a.transpose(2, 0, 1) for a in (image, halved(image))]
    path = write_zarr(tmp_path / "www" / "a.zarr", levels, version=version)
    for chunk in [p for p in path.rglob("*") if p.is_file()]:
        if chunk.relative_to(path).as_posix() in {f"0/c/{c}/1/2" for c in range(3)} | {f"0/{c}.1.2" for c in range(3)}:
            chunk.unlink()
    marks = set()
    for address in (str(path), f"{server}/a.zarr", upload(path)):
        with open_slide(address) as slide:
            got, scanned = slide.read_with_mask(0, 0, 0, 192, 128)
            assert scanned is not None
            assert scanned.sum() == 192 * 128 - 64 * 64
            assert np.array_equal(got[scanned], image[scanned])
            assert slide.mpp == 0.5
            marks.add(slide.fingerprint)
    assert len(marks) == 2  # by http a folder cannot be listed; here its files are
    levels[1][0, 0, 0] += 1
    write_zarr(tmp_path / "www" / "b.zarr", levels, version=version)
    with open_slide(f"{server}/b.zarr") as other:
        assert other.fingerprint not in marks


def test_a_listing_may_name_addresses(tmp_path: Path) -> None:
    (tmp_path / "a.fields").write_text("https://host/1.png\n2.png\n")
    assert [str(path) for path in read_listing(tmp_path / "a.fields")] == [
        "https://host/1.png",
        str(tmp_path / "2.png"),
    ]


# ------------------------------------------------------------------------------------------ what goes wrong


@pytest.mark.parametrize(
    ("mood", "kind", "message"),
    [
        ("whole", SlideUnsupported, "its server ignores Range and sends whole files only"),
        ("forbidden", SlideUnreadable, r"it refuses access \(403\)"),
        ("silent", SlideUnreadable, "no answer within 0.3 s"),
        ("short", SlideUnreadable, "bytes came where"),
    ],
)
def test_a_server_that_does_not_serve(
    tmp_path: Path, server: str, monkeypatch: pytest.MonkeyPatch, mood: str, kind: type[SlideError], message: str
) -> None:
    write_tiff(tmp_path / "www" / "a.tif", textured(300, 300))
    monkeypatch.setattr(stores, "READ_S", 0.3)
    Handler.moods = {mood}
    with pytest.raises(kind, match=message) as caught:
        open_slide(f"{server}/a.tif")
    assert caught.value.hint
    if mood == "whole":
        assert len(Handler.asked) == 1  # and its answer is not waited for


def test_nothing_at_an_address(server: str) -> None:
    with pytest.raises(SlideNotFound, match="There is nothing at http://127"):
        open_slide(f"{server}/none.svs")
    with pytest.raises(SlideNotFound, match="There is nothing at memory://"):
        open_slide("memory://bucket/none.svs")


@pytest.mark.parametrize(
    ("address", "says"),
    [
        (
            "http://127.0.0.1:9/a.svs",
            r"http://127\.0\.0\.1:9/a\.svs: its server cannot be reached \(connection refused\)\.",
        ),
        ("https://127.0.0.1:9/a.svs", r"a\.svs: its server cannot be reached \(connection refused\)\."),
        ("https://nowhere.invalid/a.svs", r"a\.svs: no server of that name was found\."),
    ],
)
def test_a_server_that_cannot_be_reached_is_told_in_plain_words(address: str, says: str) -> None:
    """It read ``ClientConnectorError: Cannot connect to host 127.0.0.1:9 ssl:default``."""
    with pytest.raises(SlideUnreadable, match=says) as caught:
        open_slide(address)
    assert "Client" not in caught.value.message
    assert "ssl" not in caught.value.message
    assert caught.value.hint == "Check the address and the network."


def test_a_server_without_encryption_behind_https_is_told_in_plain_words(server: str) -> None:
    with pytest.raises(SlideUnreadable, match="its server made no secure connection"):
        open_slide(f"{server.replace('http:', 'https:')}/a.svs")


def test_a_store_that_needs_more_than_an_address_is_refused_before_it_is_made(capsys: pytest.CaptureFixture) -> None:
    """ftp:// was a TypeError of fsspec, followed by a traceback of the half-made store."""
    with pytest.raises(SlideUnsupported, match=r"ftp:// cannot be read: fsspec must be told host") as caught:
        open_slide("ftp://127.0.0.1/a.svs")
    assert "FSSPEC_FTP_HOST" in (caught.value.hint or "")
    gc.collect()
    assert capsys.readouterr().err == ""


def test_a_connection_that_breaks_makes_tiles_unreadable(tmp_path: Path, server: str) -> None:
    write_tiff(tmp_path / "www" / "a.tif", textured(600, 600))
    with open_slide(f"{server}/a.tif") as slide:
        slide.read_region(0, 0, 0, 100, 100)
        Handler.moods = {"forbidden"}
        with pytest.raises(SlideUnreadable, match=r"a\.tif: 100 x 100 px at \(300, 300\) of level 0 cannot be read"):
            slide.read_region(300, 300, 0, 100, 100)
        Handler.moods = set()
        assert slide.read_region(300, 300, 0, 100, 100).shape == (100, 100, 3)


@pytest.mark.parametrize(
    ("scheme", "cure"), [("https", "wsi-chat[remote]"), ("s3", "wsi-chat[remote]"), ("gs", "gcsfs")]
)
def test_a_missing_package_is_named_with_its_cure(monkeypatch: pytest.MonkeyPatch, scheme: str, cure: str) -> None:
    def missing(protocol: str, **_: object) -> None:
        raise ImportError(f"no package for {protocol}")

    monkeypatch.setattr(fsspec, "filesystem", missing)
    with pytest.raises(SlideUnsupported, match=f"{scheme}:// needs a package that is not installed") as caught:
        open_slide(f"{scheme}://bucket/a.svs")
    assert cure in caught.value.hint


def test_readers_of_files_alone_say_so(tmp_path: Path) -> None:
    address = upload(write_tiff(tmp_path / "a.tif", textured(100, 100)))
    with pytest.raises(SettingError, match="openslide reads files of this machine only"):
        open_slide(address, reader="openslide")
    fsspec.filesystem("memory").pipe_file("/bucket/a.dcm", bytes(128) + b"DICM" + bytes(100))
    with pytest.raises(SlideUnsupported, match=r"a\.dcm cannot be opened") as caught:
        open_slide("memory://bucket/a.dcm")
    assert "copy the slide to this machine" in caught.value.hint
