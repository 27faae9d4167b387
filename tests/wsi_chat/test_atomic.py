"""What is half made is its owner's alone, and goes: with its writer, or at the next start."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from wsi_chat import atomic
from wsi_chat.atomic import replacing, scratch_folder, sweep, write_bytes

HALF_WAY = (
    "import sys, time\nfrom pathlib import Path\nfrom wsi_chat.atomic import replacing\n"
    "with replacing(Path(sys.argv[1])) as place:\n"
    "    place.write_bytes(b'half')\n    print('half', flush=True)\n    time.sleep(60)\n"
)


def test_while_it_is_made_a_file_can_be_entered_by_its_owner_alone(tmp_path: Path) -> None:
    with replacing(tmp_path / "scan.png") as place:
        place.write_bytes(b"half")
        assert place.name == "scan.png"
        assert stat.S_IMODE(place.parent.stat().st_mode) == 0o700
        assert place.parent.name.startswith(".")
    assert [path.name for path in tmp_path.iterdir()] == ["scan.png"]
    before = os.umask(0)
    os.umask(before)
    assert stat.S_IMODE((tmp_path / "scan.png").stat().st_mode) == 0o666 & ~before  # and then as every other file


def test_a_private_file_is_never_readable_by_others(tmp_path: Path) -> None:
    path = write_bytes(tmp_path / "names.json", b"{}", private=True)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_folder_takes_the_place_of_a_folder(tmp_path: Path) -> None:
    for content in ("old", "new"):
        with replacing(tmp_path / "maps.zarr") as place:
            place.mkdir()
            (place / content).write_text(content)
    assert [path.name for path in (tmp_path / "maps.zarr").iterdir()] == ["new"]
    assert [path.name for path in tmp_path.iterdir()] == ["maps.zarr"]


@pytest.mark.skipif(sys.platform == "win32", reason="there a process that is gone cannot be told from one elsewhere")
def test_what_a_killed_process_left_goes_at_the_next_start_and_what_a_living_one_makes_stays(tmp_path: Path) -> None:
    (tmp_path / "gallery").mkdir()
    writers = [
        subprocess.Popen([sys.executable, "-c", HALF_WAY, str(tmp_path / name)], stdout=subprocess.PIPE)
        for name in ("report.pdf", "gallery/1.png", "scan.jpg")
    ]
    for writer in writers:
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"half\n"
    for writer in writers[:2]:
        writer.send_signal(signal.SIGKILL)
        writer.wait()
    try:
        with scratch_folder(tmp_path) as mine:
            assert sweep(tmp_path) == 2
            assert mine.is_dir()
            assert len(list(tmp_path.rglob("*.part"))) == 2  # mine and the living writer's
    finally:
        writers[2].kill()
        writers[2].wait()
    assert sweep(tmp_path) == 1
    assert [path.name for path in tmp_path.rglob("*")] == ["gallery"]


def test_one_of_an_earlier_process_with_our_number_is_left_behind(tmp_path: Path) -> None:
    (tmp_path / f".{atomic._MACHINE}-{os.getpid()}-0123abcd.part").mkdir()
    assert sweep(tmp_path) == 1


def test_one_of_another_machine_goes_after_a_day(tmp_path: Path) -> None:
    part = tmp_path / ".00000000-1-0123abcd.part"
    part.mkdir()
    assert sweep(tmp_path) == 0
    os.utime(part, (time.time() - 90_000,) * 2)
    assert sweep(tmp_path) == 1


def test_only_our_own_folders_are_swept(tmp_path: Path) -> None:
    for name in (".hidden.part", ".cache", "x.part"):
        (tmp_path / name).mkdir()
    assert sweep(tmp_path) == 0
