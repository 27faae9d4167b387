"""Writes what was trained as others load it: weights in the base's number format, every other file as the base has it.

config.json, tokenizer, processor and chat template are copied byte for byte: the architecture has not changed, so
what loaded the base loads this.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from wsi_chat.dialects import Dialect, dialects, get_dialect
from wsi_chat.engines.sums import write_sums
from wsi_chat.errors import OutputError

COPIED = (".json", ".jinja", ".txt", ".model")
OWN = frozenset({"model.safetensors.index.json", "manifest.json", "training.json", "adapter_config.json"})
KEPT = ("tile_px", "mpp", "labels", "screen")
"""What of the embedded checkpoint's manifest stays true of a fine-tune; its measured figures do not."""


def write_checkpoint(model: Any, base: Path, out: Path, dialect: Dialect, about: Mapping[str, Any]) -> None:
    """A full checkpoint: safetensors and the base's other files. Raises OutputError."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        _save(model, out)
        copy_files(base, out)
        write_manifest(base, out, dialect, about)
        write_sums(out, leave=("training.json",))  # which is still being written
    except OSError as error:
        raise OutputError(f"{out} cannot be written: {error}.", hint="Free some space.") from error


def _save(model: Any, out: Path) -> None:
    import transformers

    blank: Any = transformers.GenerationConfig
    settings = model.generation_config
    try:
        # transformers refuses to write some that it reads; the base's own file is copied
        model.generation_config = blank()
        model.save_pretrained(str(out))
        (out / "generation_config.json").unlink(missing_ok=True)
    finally:
        model.generation_config = settings


def write_adapter(model: Any, base: Path, out: Path, dialect: Dialect, about: Mapping[str, Any]) -> None:
    """A peft adapter folder, with tokenizer, processor and chat template beside it. Raises OutputError."""
    try:
        model.save_pretrained(str(out))
        (out / "README.md").unlink(missing_ok=True)
        copy_files(base, out, leave=("config.json", "generation_config.json"))
        write_manifest(base, out, dialect, about)
    except OSError as error:
        raise OutputError(f"{out} cannot be written: {error}.", hint="Free some space.") from error


def copy_files(base: Path, out: Path, *, leave: tuple[str, ...] = ()) -> None:
    """Every file of the base but its weights and the records of its own making."""
    for path in sorted(base.iterdir()):
        if path.is_file() and path.suffix in COPIED and path.name not in OWN and path.name not in leave:
            # contents alone: a model cache holds links, and its files may be read-only
            shutil.copyfile(path, out / path.name)


def write_manifest(base: Path, out: Path, dialect: Dialect, about: Mapping[str, Any]) -> None:
    """manifest.json: the dialect to ask it in, and where it comes from."""
    kept: dict[str, Any] = {}
    if (base / "manifest.json").is_file():
        content = json.loads((base / "manifest.json").read_text(encoding="utf-8"))
        kept = {key: content[key] for key in KEPT if isinstance(content, dict) and key in content}
    name = dialect.name
    if name not in dialects() or get_dialect(name).spec != dialect.spec:
        name = "dialect.yaml"
        text = yaml.safe_dump(dialect.spec.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
        (out / name).write_text(text, encoding="utf-8")
    manifest = {"dialect": name, **kept, "fine_tuned": dict(about)}
    (out / "manifest.json").write_text(json.dumps(manifest, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
