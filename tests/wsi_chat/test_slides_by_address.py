"""From an address to a report: analyze, a manifest, resuming, the conversation, and what a run folder holds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import fsspec
import pytest
from typer.testing import CliRunner

import wsi_chat
from tilers.remote import RemotePath
from wsi_chat import cli
from wsi_chat.analysis.result import load_result
from wsi_chat.analysis.run_folder import RunFolder
from wsi_chat.analysis.slide_ids import slide_id
from wsi_chat.cohort import read_manifest
from wsi_chat.engines import ScriptedEngine
from wsi_chat.errors import SettingError
from wsi_chat.schema import Query

QUICK: dict[str, Any] = {"limit": 2, "coverage_floor": 0.0, "top_k": 1, "format": "json", "gallery": 0}


def calm(query: Query) -> str | dict[str, float]:
    return {"A": 0.9, "B": 0.1} if query.choices else f"No {query.target} is found."


@pytest.fixture
def address(small_slide: Path) -> str:
    """The small slide in fsspec's store in memory."""
    fsspec.filesystem("memory").pipe_file("/bucket/batch 1/cells.tiff", small_slide.read_bytes())
    return "memory://bucket/batch 1/cells.tiff"


def test_a_slide_by_address_has_the_report_of_its_file(address: str, small_slide: Path, tmp_path: Path) -> None:
    here = wsi_chat.analyze(small_slide, out=tmp_path / "here", engine=ScriptedEngine(calm), **QUICK)
    there = wsi_chat.analyze(address, out=tmp_path / "there", engine=ScriptedEngine(calm), **QUICK)
    leave = {"id", "reader"}
    assert there.report.slide.model_dump(exclude=leave) == here.report.slide.model_dump(exclude=leave)
    assert there.report.verdict == here.report.verdict
    record = json.loads((tmp_path / "there" / "run.json").read_text())
    assert record["slides"] == {there.report.slide.id: address}
    assert address not in (there.folder / "report.json").read_text()  # its name alone, as of a file
    assert not list(tmp_path.rglob("memory*"))
    again = load_result(there.folder)
    assert isinstance(again.slide_path, RemotePath)
    engine = ScriptedEngine(calm)
    wsi_chat.analyze(address, out=tmp_path / "there", engine=engine, **QUICK)
    assert engine.asked == []


def test_a_manifest_may_hold_addresses(address: str, small_slide: Path, tmp_path: Path) -> None:
    manifest = tmp_path / "m.csv"
    manifest.write_text(f"image_path,label\n{address},normal\n{small_slide},normal\nmemory://bucket/none.svs,\n")
    samples = read_manifest(manifest)
    assert [str(sample.path) for sample in samples] == [address, str(small_slide), "memory://bucket/none.svs"]
    out = tmp_path / "out"
    first = wsi_chat.analyze_cohort(manifest, out=out, engine=ScriptedEngine(calm), **QUICK)
    assert [state.status for state in first.states] == ["done", "done", "failed"]
    assert first.states[2].reason.startswith("There is nothing at .../none.svs")  # documents do not say where
    engine = ScriptedEngine(calm)
    second = wsi_chat.analyze_cohort(manifest, out=out, engine=engine, **QUICK)
    assert [state.status for state in second.states] == ["done", "done", "failed"]
    assert engine.asked == []
    fsspec.filesystem("memory").pipe_file("/bucket/batch 1/cells.tiff", small_slide.read_bytes()[:-1] + b"\0")
    third = wsi_chat.analyze_cohort(manifest, out=out, engine=engine, **QUICK)
    assert third.states[0].fingerprint != first.states[0].fingerprint


def test_an_address_with_a_signature_is_refused_by_its_line(tmp_path: Path) -> None:
    manifest = tmp_path / "m.csv"
    manifest.write_text("image_path\nhttps://host/a.svs?X-Amz-Signature=hunter2\n")
    with pytest.raises(
        SettingError, match=r"m\.csv, line 2, column image_path: The address https://host/\.\.\. goes on"
    ) as e:
        read_manifest(manifest)
    assert "hunter2" not in str(e.value)
    done = CliRunner().invoke(cli.app, ["analyze", "s3://AKIA:hunter2@bucket/a.svs", "-o", str(tmp_path / "out")])
    assert isinstance(done.exception, SettingError)
    assert "hunter2" not in done.output + str(done.exception)
    assert "hunter2" not in "".join(p.read_text() for p in tmp_path.rglob("*") if p.is_file() and p != manifest)


def test_a_cohort_is_no_address(tmp_path: Path) -> None:
    for source in ("s3://bucket/batch", Path("https://host/m.csv")):
        with pytest.raises(SettingError, match="is an address; a manifest or folder of this machine"):
            wsi_chat.analyze_cohort(source, out=tmp_path, engine=ScriptedEngine(calm))


def test_commands_take_addresses(address: str) -> None:
    done = CliRunner().invoke(cli.app, ["info", address, "--json"])
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert (told["reader"], told["id"], told["file"]) == ("tiff", slide_id(RemotePath(address)), "cells.tiff")


def test_the_page_and_questions_find_the_slide(address: str, tmp_path: Path) -> None:
    from wsi_chat.app.source import find_slides

    (entry,) = find_slides(Path(address), out=tmp_path).entries.values()
    assert str(entry.slide) == address
    assert RunFolder(tmp_path).slide(RemotePath(address)).id == entry.id
    asked = ScriptedEngine(calm)
    answer = wsi_chat.ask(address, "Locate all hsil.", region=(0, 0, 200, 200), engine=asked)
    assert (len(asked.asked), answer.boxes) == (1, ())
