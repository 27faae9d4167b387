"""What is served: squares with ETag, 304 and dropped readings; nothing outside of the run folder and its slide."""

from __future__ import annotations

import asyncio
import io
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from reports.maps import STATUS_CODES
from reports.mask import EMPTY, FOUND, OUTSIDE, UNREADABLE, UNSURE, Mask
from tests.app.asgi import Heard, ask
from wsi_chat.app.layers import extent_of, glass_png, heat_png, mask_png, read_grid
from wsi_chat.app.pictures import Pictures
from wsi_chat.app.slides import Shelf
from wsi_chat.app.source import find_slides
from wsi_chat.app.squares import SlideReader, Workshop


async def beyond(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 299, "headers": []})
    await send({"type": "http.response.body", "body": b"the page"})


class Served:
    def __init__(self, folder: Path) -> None:
        self.name = folder.name
        self.shelf = Shelf(find_slides(folder), lambda about: pytest.fail("nothing was asked"))
        self.workshop = Workshop(workers=2)
        self.app = Pictures(beyond, self.shelf, self.workshop)

    async def _all(self, paths: tuple[str, ...], headers: dict[str, str]) -> list[Heard]:
        return [await ask(self.app, path, **headers) for path in paths]

    def get(self, path: str, **headers: str) -> Heard:
        return self.get_all(path, **headers)[0]

    def get_all(self, *paths: str, **headers: str) -> list[Heard]:
        return asyncio.run(self._all(tuple(f"/slides/{self.name}{path}" for path in paths), headers))


@pytest.fixture
def served(folder: Path) -> Iterator[Served]:
    made = Served(folder)
    yield made
    made.workshop.close()
    made.shelf.close()


def test_a_square_is_a_picture_with_a_tag(served: Served) -> None:
    heard = served.get("/squares/0/1_1.jpg")
    assert heard.status == 200
    assert heard.headers["content-type"] == "image/jpeg"
    assert Image.open(io.BytesIO(heard.body)).size == (256, 256)
    assert heard.headers["etag"].startswith('"')


def test_who_has_the_picture_gets_304_and_nothing_is_read(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    tag = served.get("/squares/0/1_1.jpg").headers["etag"]
    monkeypatch.setattr(SlideReader, "square", lambda *_: pytest.fail("it was read"))
    for given in (tag, f"W/{tag}", f'"other", {tag}'):
        heard = served.get("/squares/0/1_1.jpg", if_none_match=given)
        assert (heard.status, heard.body) == (304, b"")
    assert served.get("/squares/0/1_1.jpg", if_none_match='"other"').status == 200  # kept, not read


def test_tags_differ_from_square_to_square(served: Served) -> None:
    heard = served.get_all("/squares/0/1_1.jpg", "/squares/0/1_2.jpg", "/squares/1/1_1.jpg", "/overview.jpg")
    assert len({one.headers["etag"] for one in heard}) == 4


@pytest.mark.parametrize(
    "path",
    [
        "/squares/0/6_0.jpg", "/squares/9/0_0.jpg", "/squares/-1/0_0.jpg", "/squares/0/a_b.jpg",
        "/squares/0/0_0.jpg?plane=1", "/label.jpg", "/macro.jpg", "/associated/label", "/files/journal.sqlite",
        "/files/review.sqlite", "/files/run.log", "/files/..%2f..%2frun.json", "/files/", "/../../etc/passwd",
        "/region.jpg/../files/journal.sqlite",
    ],
)  # fmt: skip
def test_what_is_not_offered_is_not_there(served: Served, path: str) -> None:
    assert served.get(path).status == 404


@pytest.mark.parametrize("name", ["..", "other-00000000", "%2e%2e", ""])
def test_another_id_is_not_there(served: Served, name: str) -> None:
    heard = asyncio.run(ask(served.app, f"/slides/{name}/files/report.json"))
    assert heard.status == 404


def test_a_link_out_of_the_folder_is_not_followed(served: Served, folder: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret.json"
    secret.write_text('{"secret": 1}')
    (folder / "findings.csv").unlink(missing_ok=True)
    (folder / "findings.csv").symlink_to(secret)
    assert served.get("/files/findings.csv").status == 404
    assert served.get("/files/report.json").status == 200


def test_documents_are_sandboxed(served: Served) -> None:
    heard = served.get("/files/report.html")
    assert heard.status == 200
    assert "sandbox" in heard.headers["content-security-policy"]
    assert "script-src" not in heard.headers["content-security-policy"]


def test_a_region_is_what_the_slide_shows_there(served: Served) -> None:
    heard = served.get("/region.jpg?box=100,200,356,456&px=256")
    shown = np.asarray(Image.open(io.BytesIO(heard.body))).astype(int)
    slide = served.shelf.get(served.name)
    assert slide is not None
    assert slide.reader is not None
    assert np.abs(shown - slide.reader.slide.read_region(100, 200, 0, 256, 256)).mean() < 4


@pytest.mark.parametrize(
    ("box", "status"),
    [("", 400), ("1,2,3", 400), ("a,b,c,d", 400), ("nan,0,1,1", 400), ("0,0,inf,1", 400), ("9,9,1,1", 400),
     ("5,5,5,5", 400), ("90000,90000,90001,90001", 404), ("-1e9,-1e9,1e9,1e9", 404)],
)  # fmt: skip
def test_a_region_that_is_none_is_refused(served: Served, box: str, status: int) -> None:
    assert served.get(f"/region.jpg?box={box}").status == status


def test_a_browser_that_left_is_not_read_for(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    going, read = threading.Event(), []
    plain = SlideReader.square

    def slow(self: SlideReader, z: int, x: int, y: int, plane: int | None = None) -> bytes:
        read.append((x, y))
        going.wait(10)
        return plain(self, z, x, y, plane)

    monkeypatch.setattr(SlideReader, "square", slow)

    async def storm() -> list[Heard]:
        base = f"/slides/{served.name}/squares/0"
        busy = [asyncio.ensure_future(ask(served.app, f"{base}/{n}_0.jpg")) for n in range(2)]
        await asyncio.sleep(0.3)
        left = [asyncio.ensure_future(ask(served.app, f"{base}/{n}_1.jpg", leaves=0.05)) for n in range(6)]
        gone = await asyncio.gather(*left)
        going.set()
        await asyncio.gather(*busy)
        return gone

    gone = asyncio.run(storm())
    assert {heard.status for heard in gone} == {499}
    assert sorted(read) == [(0, 0), (1, 0)]
    assert served.workshop.dropped == 6


def test_a_slide_that_is_gone_is_said_and_not_served(folder: Path, small_slide: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "other.tiff"
    Image.new("RGB", (600, 600), (250, 240, 245)).save(elsewhere)
    shelf = Shelf(find_slides(folder, slide=elsewhere), lambda about: pytest.fail("nothing was asked"))
    shown = shelf.get(folder.name)
    assert shown is not None
    assert shown.reader is None
    assert "not the slide that was analyzed" in shown.trouble
    shelf.close()
    shelf = Shelf(find_slides(folder, slide=tmp_path / "nowhere.tiff"), lambda about: pytest.fail("nothing was asked"))
    shown = shelf.get(folder.name)
    assert shown is not None
    assert "is not where it was" in shown.trouble
    shelf.close()


def test_a_tile_without_an_answer_is_never_drawn_as_low(folder: Path) -> None:
    grid = read_grid(folder)
    assert grid is not None
    grid.p_screen[0, 0] = np.nan
    grid.status[0, 0] = STATUS_CODES["screen_failed"]
    grid.p_screen[0, 1], grid.status[0, 1] = 0.0, STATUS_CODES["screened"]
    grid.p_screen[1, 0], grid.status[1, 0] = np.nan, STATUS_CODES["not_planned"]
    heat = np.asarray(Image.open(io.BytesIO(heat_png(grid))))
    assert tuple(heat[0, 0]) == (158, 158, 158, 255)
    assert heat[0, 1, 3] < 60
    assert heat[1, 0, 3] == 0
    mask = np.asarray(Image.open(io.BytesIO(mask_png(grid))))
    assert mask[1, 0, 3] == 255
    assert tuple(mask[0, 0, :3]) != tuple(mask[1, 0, :3])  # failed is not left out
    assert mask[0, 1, 3] == 0


def test_the_foreground_mask_is_a_layer_with_a_colour_for_each_kind(served: Served) -> None:
    kinds = np.array([[OUTSIDE, EMPTY, UNSURE], [FOUND, UNREADABLE, EMPTY]], np.uint8)
    shown = np.asarray(Image.open(io.BytesIO(glass_png(Mask(kinds, 64.0)))))
    assert shown[1, 0, 3] == 0, "where cells were found the slide is seen"
    assert len({tuple(pixel) for pixel in shown.reshape(-1, 4)}) == 5
    assert extent_of(Mask(kinds, 64.0), (180, 120)) == (0.0, 0.0, 192.0, 128.0)
    assert extent_of(Mask(kinds, None), (180, 120)) == (0.0, 0.0, 180.0, 120.0)
    heard = served.get("/glass.png")
    assert (heard.status, heard.headers["content-type"]) == (200, "image/png")
    assert served.get("/glass.png", if_none_match=heard.headers["etag"]).status == 304


def test_what_is_no_picture_goes_to_the_page(served: Served) -> None:
    assert asyncio.run(ask(served.app, "/s/x")).body == b"the page"
