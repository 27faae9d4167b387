"""How one model family is asked and how its answers read: data in YAML, one parser per box grammar.

dialect = get_dialect("cytochat")
query, frame = dialect.build(tasks.ground("hsil"), image, model_id=..., decoding={})
reading = dialect.read_boxes(answer, frame, "hsil")      # pixels of the image as given
"""

from __future__ import annotations

import json
from functools import cache
from importlib import resources
from pathlib import Path

from pydantic import ValidationError

from wsi_chat.dialects.dialect import BoxReading, Dialect, DialectSpec
from wsi_chat.dialects.frame import Frame, ImagePolicy
from wsi_chat.errors import EngineError, SettingError

__all__ = [
    "BoxReading",
    "Dialect",
    "DialectSpec",
    "Frame",
    "ImagePolicy",
    "detect_dialect",
    "dialects",
    "get_dialect",
    "load_dialect",
]

FAMILIES = {"qwen2_vl": "qwen2-vl", "qwen2_5_vl": "qwen2.5-vl", "qwen3_vl": "qwen3-vl"}
"""A checkpoint's ``model_type`` -> the dialect of its family."""


@cache
def dialects() -> list[str]:
    """Names of the dialects in the package, sorted."""
    folder = resources.files(__name__)
    return sorted(Path(entry.name).stem for entry in folder.iterdir() if entry.name.endswith(".yaml"))


@cache
def get_dialect(name: str) -> Dialect:
    """A dialect of the package by name. Raises SettingError for an unknown one."""
    if name not in dialects():
        raise SettingError(f"there is no dialect {name!r}", hint=f"Choose one of: {', '.join(dialects())}.")
    return _read((resources.files(__name__) / f"{name}.yaml").read_text(encoding="utf-8"), f"{name}.yaml")


def load_dialect(path: Path) -> Dialect:
    """A dialect from a YAML file with the same fields as those in the package. Raises SettingError."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SettingError(f"dialect file {path} cannot be read: {error}", hint="Check the path.") from error
    return _read(text, str(path))


def _read(text: str, source: str) -> Dialect:
    import yaml

    try:
        return Dialect(DialectSpec.model_validate(yaml.safe_load(text)))
    except yaml.YAMLError as error:
        raise SettingError(f"dialect file {source} is not YAML: {error}", hint="Fix the file.") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise SettingError(
            f"dialect file {source}: {where}: {first['msg']}",
            hint="See wsi_chat/dialects/cytochat.yaml for the fields.",
        ) from error


def detect_dialect(checkpoint_dir: str | Path) -> str:
    """The dialect of a checkpoint folder: its ``manifest.json``, then a known name, then its ``model_type``.

    Raises EngineError where the folder has no readable config, SettingError where no dialect fits it.
    """
    folder = Path(checkpoint_dir)
    manifest = _json(folder / "manifest.json") if (folder / "manifest.json").is_file() else {}
    named = manifest.get("dialect")
    if isinstance(named, str):
        return get_dialect(named).name
    config = _json(folder / "config.json")
    if "cytochat" in f"{folder.resolve().name} {config.get('_name_or_path', '')}".lower():
        return "cytochat"
    family = FAMILIES.get(str(config.get("model_type")))
    if family not in dialects():
        raise SettingError(
            f"no dialect is known for {folder} (model_type {config.get('model_type')!r})",
            hint=f"Name one with --dialect: {', '.join(dialects())}.",
        )
    return family


def _json(path: Path) -> dict[str, object]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise EngineError(f"{path} is missing", hint="Point to a complete checkpoint folder.") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise EngineError(f"{path} cannot be read: {error}", hint="Copy the checkpoint again.") from error
    if not isinstance(content, dict):
        raise EngineError(f"{path} holds no JSON object", hint="Copy the checkpoint again.")
    return content
