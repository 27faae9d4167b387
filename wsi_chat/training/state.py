"""The folder of a fine-tuning run: what it is, how far it came, and from where it goes on.

OUT/                    what came out: a checkpoint, or an adapter; with --merge OUT/merged/ too
OUT/training.json       settings, data, base checkpoint, versions, counts, best step and its metrics
OUT/metrics.jsonl       one line per logged step and per evaluation
OUT/loss.png            the curves
OUT/checkpoints/        the trainer's own state, from which --resume goes on
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from wsi_chat.atomic import write_text
from wsi_chat.errors import OutputError, SettingError

RECORD, METRICS, CURVES, STATE = "training.json", "metrics.jsonl", "loss.png", "checkpoints"


def take_folder(out: Path, identity: Mapping[str, Any], *, resume: bool, overwrite: bool) -> Path | None:
    """Make the folder ready; the trainer's checkpoint to go on from, None to begin.

    Raises:
        OutputError: the folder holds something else, or a run and neither ``resume`` nor ``overwrite``.
        SettingError: ``resume`` with other settings or other data than the run in the folder had.
    """
    try:
        used = out.is_dir() and any(out.iterdir())
        if used and not (out / RECORD).is_file():
            raise OutputError(f"{out} is not empty and holds no training run.", hint="Choose a new folder.")
        if used and not (resume or overwrite):
            raise OutputError(
                f"{out} holds a training run.", hint="Go on with --resume, or start anew with --overwrite."
            )
        if used and overwrite:
            _clear(out)
        elif used:
            _check_same(out, identity)
            return last_state(out)
        (out / STATE).mkdir(parents=True, exist_ok=True)
        write_record(out, {"state": "started", "identity": dict(identity)})
    except OSError as error:
        raise OutputError(f"{out} cannot be written: {error}.", hint="Choose another folder.") from error
    return None


def _clear(out: Path) -> None:
    """Everything that a run writes; the record goes last, so that a clearing that was stopped can be repeated."""
    for path in sorted(out.iterdir(), key=lambda path: path.name == RECORD):
        if path.is_dir():
            if path.name in (STATE, "merged"):
                shutil.rmtree(path)
        elif path.name == "SHA256SUMS" or path.suffix in (
            ".json", ".jsonl", ".png", ".safetensors", ".jinja", ".txt", ".model", ".yaml", ".md",
        ):  # fmt: skip
            path.unlink()


def _check_same(out: Path, identity: Mapping[str, Any]) -> None:
    before = read_record(out).get("identity")
    if not isinstance(before, dict):
        raise OutputError(f"{out / RECORD} does not say what was trained.", hint="Start anew with --overwrite.")
    for key in sorted({*before, *identity}):
        if before.get(key) != identity.get(key):
            raise SettingError(
                f"the run in {out} had {key} {before.get(key)!r}, now it is {identity.get(key)!r}.",
                hint="Go on with the same settings and data, or start anew with --overwrite.",
            )


def last_state(out: Path) -> Path | None:
    """The trainer's latest complete checkpoint. One that a kill left half-written is passed over."""
    found = []
    for folder in (out / STATE).glob("checkpoint-*"):
        number = folder.name.rpartition("-")[2]
        if number.isdigit() and _complete(folder, int(number)):
            found.append((int(number), folder))
    return max(found)[1] if found else None


def _complete(folder: Path, step: int) -> bool:
    # the trainer writes trainer_state.json last
    try:
        state = json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))
        return bool(state["global_step"] == step) and all(
            (folder / name).is_file() for name in ("optimizer.pt", "scheduler.pt")
        )
    except (OSError, ValueError, KeyError, TypeError):
        return False


def read_record(out: Path) -> dict[str, Any]:
    """training.json, empty where it cannot be read."""
    try:
        content = json.loads((out / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def write_record(out: Path, content: Mapping[str, Any]) -> None:
    """Replace training.json at once. Raises OutputError."""
    write_text(out / RECORD, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


class MetricsLog:
    """metrics.jsonl: appended to while training; rows beyond the step that a run resumes from are dropped."""

    def __init__(self, path: Path, *, from_step: int = 0) -> None:
        self.path = path
        kept = [row for row in read_metrics(path) if row["step"] <= from_step] if from_step else []
        try:
            path.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")
        except OSError as error:
            raise OutputError(f"{path} cannot be written: {error}.", hint="Free some space.") from error

    def add(self, row: Mapping[str, Any]) -> None:
        try:
            with self.path.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(dict(row)) + "\n")
        except OSError as error:
            raise OutputError(f"{self.path} cannot be written: {error}.", hint="Free some space.") from error


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The rows of a metrics.jsonl, without a last line that a kill cut off."""
    rows = []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    for line in lines:
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and isinstance(row.get("step"), int):
            rows.append(row)
    return rows
