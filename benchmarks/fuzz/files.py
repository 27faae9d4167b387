"""Damaged files of every kind but slides, through the code that reads them; see `benchmarks.fuzz.reading`."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from benchmarks.fuzz import reading
from benchmarks.fuzz.damage import as_json, damaged_bytes, damaged_tree, lost_sectors
from benchmarks.fuzz.pool import Row

Form = Literal["bytes", "database", "json", "yaml", "jsonl", "csv", "weights"]


@dataclass(frozen=True)
class Target:
    """What is damaged and who reads it.

    ``source`` is a folder of the seeds that is copied, or "" where ``files`` alone are; ``RUN`` stands for the only
    slide's folder of the run, whose run.json is copied beside it.
    """

    read: reading.Reading
    source: str
    files: tuple[str, ...]
    form: Form
    weight: float = 1.0


RUN = "RUN"
DIALECTS = ("dialect-cytochat.yaml", "dialect-json.yaml", "dialect-paligemma.yaml", "dialect-endochat.yaml",
            "dialect-own.yaml")  # fmt: skip
CONFIGS = (
    "config.json",
    "preprocessor_config.json",
    "generation_config.json",
    "manifest.json",
    "tokenizer_config.json",
)
TARGETS = {
    "journal": Target(reading.journal, RUN, ("journal.sqlite",), "database", 6),
    "review": Target(reading.review, RUN, ("review.sqlite",), "database", 4),
    "tiles": Target(reading.tiles, RUN, ("tiles.parquet",), "database", 4),
    "features": Target(
        reading.features, RUN, ("features.zarr/features/c/0/0", "features.zarr/zarr.json"), "bytes", 0.5
    ),
    "conversation": Target(reading.conversation, "", ("conversation.json",), "json", 3),
    "settings": Target(reading.settings, "", ("settings.yaml",), "yaml", 8),
    "manifest": Target(reading.manifest, "", ("manifest.csv",), "csv", 6),
    "system": Target(reading.system, "", ("system.yaml",), "yaml", 0.3),
    "system-extends": Target(reading.system, "", ("system-own.yaml",), "yaml", 1),
    "dialect": Target(reading.dialect, "", DIALECTS, "yaml", 1),
    "dataset": Target(reading.dataset, "data", ("cytology_train.jsonl",), "jsonl", 0.3),
    "dataset-info": Target(reading.dataset, "data", ("dataset_info.json", "build.json"), "json", 0.3),
    "predictions": Target(reading.predictions, "", ("predictions.jsonl",), "jsonl", 0.1),
    "aggregator": Target(reading.aggregator, "aggregator", ("aggregator.json",), "json", 1),
    "aggregator-signed": Target(reading.signed_aggregator, "aggregator", ("aggregator.json",), "json", 1),
    "attention": Target(reading.aggregator, "attention", ("aggregator.json", "attention.safetensors"), "json", 0.5),
    "model-config": Target(reading.model_config, "model", CONFIGS, "json", 0.3),
    "model-load": Target(reading.model, "model", (*CONFIGS, "tokenizer.json", "chat_template.jinja"), "json", 0.01),
    "model-weights": Target(reading.model, "model", ("model.safetensors",), "weights", 0.01),
    "report": Target(reading.report, RUN, ("report.json",), "json", 0.3),
    "report-others": Target(reading.report, RUN, ("tiles.parquet", "maps.zarr/zarr.json", "../run.json"), "bytes", 0.3),
    "report-written": Target(reading.report_written, RUN, ("report.json",), "json", 0.01),
    "chat": Target(reading.chat, RUN, ("report.json",), "json", 0.1),
    "chat-others": Target(reading.chat, RUN, ("tiles.parquet", "journal.sqlite", "../run.json"), "bytes", 0.1),
    "run": Target(reading.run_folder, RUN, ("../run.json", "../summary.csv"), "json", 2),
    "state": Target(reading.state, RUN, ("state.json",), "json", 2),
    "ancillary": Target(reading.ancillary, "", ("ancillary.yaml",), "yaml", 4),
    "box-precision": Target(reading.box_precision, "", ("evaluation.json",), "json", 4),
    "coco": Target(reading.coco, "", ("coco.json",), "json", 0.5),
    "voc": Target(reading.voc, "", ("voc.xml",), "bytes", 1),
    "geojson": Target(reading.geojson, "", ("annotations.geojson",), "json", 0.5),
    "captions": Target(reading.captions, "", ("captions.csv",), "csv", 0.5),
}


def targets(seeds: Path) -> dict[str, float]:
    """Every target that has its files, with its share of the cases."""
    return {name: target.weight for name, target in TARGETS.items() if _source(target, seeds / "files") is not None}


def _source(target: Target, seeds: Path) -> Path | None:
    """The folder that a target's files lie in."""
    if target.source == RUN:
        folder = next((path.parent for path in (seeds / "run").glob("*/report.json")), None)
    else:
        folder = seeds / target.source
    return folder if folder is not None and (folder / target.files[0]).exists() else None


def prepare(name: str, seeds: Path) -> Callable[[random.Random, int, Path], Row]:
    """What does one case of a target. Raises AssertionError where the sound files do not pass."""
    target = TARGETS[name]
    source = _source(target, seeds / "files")
    assert source is not None
    fields = seeds / "files/fields"
    sound: dict[str, Any] = {}
    checked: list[bool] = []

    def case(rng: random.Random, number: int, scratch: Path) -> Row:
        if not checked:
            _check_sound(name, lambda: _copied(target, source, scratch), fields, sound)
            checked.append(True)
        folder = _copied(target, source, scratch)
        chosen = rng.choice(target.files)
        kind, said = _damage(folder / chosen, target.form, rng)
        what: Row = {"damage": kind, "said": f"{chosen}: {said}"}
        try:
            return what | (target.read(reading.Given(folder, folder / chosen, fields, sound)) or {})
        except BaseException as error:
            error.fuzz = what  # type: ignore[attr-defined]  # its row says what was done
            raise

    return case


def _check_sound(name: str, copied: Callable[[], Path], fields: Path, sound: dict[str, Any]) -> None:
    """Raises AssertionError where a sound file does not pass: then no count would mean anything."""
    target = TARGETS[name]
    for file in target.files:
        folder = copied()
        try:
            told = target.read(reading.Given(folder, folder / file, fields, sound, is_sound=True))
        except Exception as error:
            raise AssertionError(f"{name}: {file} as it is: {error}") from error
        assert (told or {}).get("outcome", "ok") == "ok", f"{name}: {file} as it is: {told}"


def _copied(target: Target, source: Path, scratch: Path) -> Path:
    """A fresh copy of what the target reads."""
    place = scratch / "case"
    shutil.rmtree(place, ignore_errors=True)
    if not target.source:
        place.mkdir()
        for file in target.files:
            shutil.copy(source / file, place / file)
        return place
    if target.source != RUN:
        shutil.copytree(source, place)
        return place
    run = place / source.name
    if target.form == "database":
        run.mkdir(parents=True)
        for file in (*target.files, "report.json"):
            shutil.copy(source / file, run / file)
    else:
        shutil.copytree(source, run, ignore=shutil.ignore_patterns("*.pdf", "*.html"))
    for file in ("run.json", "summary.csv"):
        shutil.copy(source.parent / file, place / file)
    return run


# ------------------------------------------------------------------------------------------ damage


def _damage(file: Path, form: Form, rng: random.Random) -> tuple[str, str]:
    """Damage a file by its form: (kind of damage, what was done)."""
    data = file.read_bytes()
    by_suffix = {".csv": "csv", ".json": "json", ".geojson": "json"}
    form = form if form in ("database", "weights", "yaml", "jsonl") else by_suffix.get(file.suffix, "bytes")  # type: ignore[assignment]
    if form != "weights" and rng.random() < 0.35:
        form = "bytes"
    if form in ("bytes", "database"):
        lost = form == "database" and rng.random() < 0.3
        made, said = lost_sectors(data, rng) if lost else damaged_bytes(data, rng)
        file.write_bytes(made)
        return "sectors" if lost else "bytes", said
    if form == "weights":
        return "structure", _damage_weights(file, data, rng)
    if form == "jsonl":
        return "structure", _damage_line(file, data, rng)
    if form == "csv":
        return "structure", _damage_cells(file, data, rng)
    if form == "json":
        tree, said = damaged_tree(json.loads(data), rng)
        file.write_bytes(as_json(tree))
        return "structure", said
    tree, said = damaged_tree(yaml.safe_load(data), rng)
    try:
        text = yaml.safe_dump(tree, allow_unicode=True).encode("utf-8", "surrogatepass")
    except Exception:
        text = as_json(tree)
    if rng.random() < 0.15:
        tail = rng.choice(TAILS)
        text, said = text + tail.encode(), f"{said} + {tail.strip()[:30]}"
    file.write_bytes(text)
    return "structure", said


TAILS = [
    "\nx: !!python/object/apply:os.system ['true']\n", "\nx: &a [*a]\n", "\n? [1, 2]\n: 3\n", "\nx: 2001-99-99\n",
    "\nx: " + "9" * 5000 + "\n", "\n1: 2\n", "\nx: !!binary '@@'\n", "\n<<: 5\n", "\nx: " + "[" * 2000 + "\n",
    "\nx: 0x" + "f" * 3000 + "\n", "\ntrue: 1\n", "\nx: !!timestamp 'abc'\n", "\nx: 190:20:30:99999999999999999999\n",
    "\n.nan: 1\n", "\nx: " + "[" * 2000 + "]" * 2000 + "\n", "\nx: !!set {? a, ? b}\n", "\nx: !!omap [a: 1]\n",
    "\nx: 2001-12-14t21:59:43.10-05:00\n", "\nx: !!float 'nope'\n", "\nx: *nobody\n", "\n---\nx: 1\n",
    "\nx: !!int ''\n",
]  # fmt: skip
CELLS = [
    "", "nan", "-1", "1e999", '"', "'", "=cmd|' /C calc'!A0", "../../x", "\x00", "a" * 200_000, "é", "\ud83d", "1,2",
    ";", "\t", "/etc/passwd", "inf", "0x1", " ", "a\nb", '"a', "\ufeff", "~root/x", "0,25", "1_0", "٠.٢٥", "CON",
    "\x1b[2J",
]  # fmt: skip


def _damage_line(file: Path, data: bytes, rng: random.Random) -> str:
    lines = data.split(b"\n")
    number = rng.randrange(max(1, len(lines) - 1))
    if rng.random() < 0.7:
        tree, said = damaged_tree(json.loads(lines[number]), rng)
        lines[number] = as_json(tree)
    else:
        lines[number], said = damaged_bytes(lines[number], rng)
    file.write_bytes(b"\n".join(lines))
    return f"line {number}: {said}"


def _damage_cells(file: Path, data: bytes, rng: random.Random) -> str:
    rows = [line.split(",") for line in data.decode("utf-8-sig").splitlines()]
    for _ in range(rng.choice([1, 2])):
        row = rng.choice(rows)
        row[rng.randrange(len(row))] = rng.choice(CELLS)
    file.write_bytes("\n".join(",".join(row) for row in rows).encode("utf-8", "surrogatepass"))
    return "cells"


def _damage_weights(file: Path, data: bytes, rng: random.Random) -> str:
    size = int.from_bytes(data[:8], "little")
    what = rng.choice(["header", "header", "bytes", "length", "cut off", "nan", "longer"])
    made = data
    if what == "header":
        tree, what = damaged_tree(json.loads(data[8 : 8 + size]), rng)
        head = as_json(tree)
        made = len(head).to_bytes(8, "little") + head + data[8 + size :]
    elif what == "length":
        made = rng.choice([0, 1, size - 1, size + 1, 2**40, 2**63]).to_bytes(8, "little") + data[8:]
    elif what == "cut off":
        made = data[: rng.choice([0, 4, 8, 8 + size // 2, 8 + size, len(data) // 2, len(data) - 1])]
    elif what == "nan":
        at = 8 + size + 4 * rng.randrange((len(data) - 8 - size) // 4 - 400)
        made = data[:at] + b"\xff\xff\xff\x7f" * 400 + data[at + 1600 :]
    elif what == "longer":
        made = data + bytes(1000)
    else:
        made, what = damaged_bytes(data, rng)
    file.write_bytes(made)
    return what
