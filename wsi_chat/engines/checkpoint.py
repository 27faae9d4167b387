"""What is in a checkpoint folder: is it complete, what does it hold, which revision is it. No torch needed.

Nothing is unpickled and no code of a checkpoint is run: weights are safetensors, remote code stays off.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wsi_chat.engines.sums import SUFFIXES, check_sums
from wsi_chat.errors import EngineError

FULL_HASH_BYTES = 100 * 2**20
SAMPLES = 256
SAMPLE_BYTES = 16 * 2**10
MAX_HEADER_BYTES = 100 * 2**20
"""The safetensors format's own bound on its header."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A complete checkpoint folder. ``model_type`` is the architecture's name in its config."""

    path: Path
    model_type: str
    revision: str

    @property
    def name(self) -> str:
        return self.path.name


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Check a folder and hash it. Raises EngineError naming every file that is missing, or one that is broken."""
    folder = Path(path)
    for file in complete_checkpoint(folder):
        _check_weights(file)
    check_sums(folder)
    config = read_config(folder)
    return Checkpoint(folder, str(config.get("model_type", "")), revision(folder))


def complete_checkpoint(folder: Path) -> list[Path]:
    """The weights of a folder that lacks nothing, none of them read. Raises EngineError."""
    if not folder.is_dir():
        what = "is a file, not a folder" if folder.exists() else "does not exist"
        raise EngineError(
            f"checkpoint {folder} {what}", hint="Point --model to a folder with config.json and *.safetensors."
        )
    missing = [] if (folder / "config.json").is_file() else ["config.json"]
    weights, lost = _weights(folder)
    missing += lost
    if not _any(folder, "tokenizer.json") and not _any(folder, "vocab.json", "merges.txt"):
        missing.append("tokenizer.json")
    if not _any(folder, "preprocessor_config.json") and not _any(folder, "processor_config.json"):
        missing.append("preprocessor_config.json")
    if missing:
        pickled = sorted(p.name for p in (*folder.glob("*.bin"), *folder.glob("*.pt"), *folder.glob("*.pth")))
        hint = "Copy the checkpoint again, complete."
        if pickled and not weights:
            hint = f"{pickled[0]} is a pickle and is never loaded: convert the weights to safetensors."
        raise EngineError(f"checkpoint {folder} lacks {', '.join(missing)}", hint=hint)
    return weights


def check_checkpoint(folder: Path) -> None:
    """All that loading checks before the weights are loaded, and that the tokenizer can be read. Raises EngineError."""
    read_checkpoint(folder)
    path = folder / "tokenizer.json"
    if not path.is_file():
        return
    from tokenizers import Tokenizer

    try:
        Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing narrower
        raise EngineError(f"{path} is no tokenizer: {error}", hint="Copy the checkpoint again.") from error


def _any(folder: Path, *names: str) -> bool:
    return all((folder / name).is_file() for name in names)


def _weights(folder: Path) -> tuple[list[Path], list[str]]:
    """Weight files that are there, and names of those that are not."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        shards = _config(index).get("weight_map")
        names = sorted({str(name) for name in shards.values()}) if isinstance(shards, dict) else []
        there = [folder / name for name in names if (folder / name).is_file()]
        return there, [name for name in names if not (folder / name).is_file()] or ([] if names else [index.name])
    single = folder / "model.safetensors"
    return ([single], []) if single.is_file() else ([], ["model.safetensors"])


def read_config(folder: Path) -> dict[str, Any]:
    """A checkpoint's config.json. Raises EngineError."""
    return _config(folder / "config.json")


def _config(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise EngineError(f"{path} cannot be read: {error}", hint="Copy the checkpoint again.") from error
    if not isinstance(content, dict):
        raise EngineError(f"{path} holds no JSON object", hint="Copy the checkpoint again.")
    return content


def _check_weights(path: Path) -> None:
    """The header of a safetensors file promises a length; a cut-off copy is shorter."""
    size = path.stat().st_size
    try:
        tensors, start = _tensors(path)
        needed = start + max((entry["data_offsets"][1] for entry in tensors.values()), default=0)
    except UNREADABLE as error:
        raise EngineError(f"{path} is not a safetensors file: {error}", hint="Copy it again.") from error
    if size < needed:
        raise EngineError(f"{path} is cut off: {size} bytes of {needed}", hint="Copy it again.")


UNREADABLE = (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError, struct.error)
"""What reading a header that is none raises."""


def _tensors(path: Path) -> tuple[dict[str, Any], int]:
    """The tensors that a safetensors file's header lists, by name, and where their numbers begin."""
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        if length > min(path.stat().st_size, MAX_HEADER_BYTES):
            raise ValueError(f"its header claims {length} bytes")
        header = json.loads(file.read(length))
    return {name: entry for name, entry in header.items() if name != "__metadata__"}, 8 + length


def count_parameters(folder: Path) -> int | None:
    """How many numbers the weights of a checkpoint hold, by their headers; None where those cannot be read.

    Weights in 4 or 8 bits that share a number of their file count as one.
    """
    try:
        files, missing = _weights(folder)
        if missing:
            return None
        return sum(int(math.prod(entry["shape"])) for file in files for entry in _tensors(file)[0].values())
    except (EngineError, *UNREADABLE):
        return None


def revision(folder: Path) -> str:
    """sha256 (first 16 hex digits) over names, sizes and content of a checkpoint's files.

    Files below 100 MB are hashed whole. Of larger ones 256 blocks of 16 KiB are read, evenly spread from first
    to last byte: a fine-tune keeps names, sizes and headers and changes the numbers throughout.
    """
    digest = hashlib.sha256()
    for path in sorted(p for p in folder.iterdir() if p.suffix in SUFFIXES and p.is_file()):
        size = path.stat().st_size
        digest.update(f"{path.name}\0{size}\0".encode())
        with path.open("rb") as file:
            if size <= FULL_HASH_BYTES:
                digest.update(hashlib.file_digest(file, "sha256").digest())
                continue
            for number in range(SAMPLES):
                file.seek((size - SAMPLE_BYTES) * number // (SAMPLES - 1))
                digest.update(file.read(SAMPLE_BYTES))
    return digest.hexdigest()[:16]
