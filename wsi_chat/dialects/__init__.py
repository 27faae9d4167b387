"""How one model family is asked and how its answers read: data in YAML, one parser per box grammar.

dialect = get_dialect("cytochat")
query, frame = dialect.build(tasks.ground("hsil"), image, model_id=..., decoding={})
reading = dialect.read_boxes(answer, frame, "hsil")      # pixels of the image as given
"""

from __future__ import annotations

import os
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from wsi_chat.bounded import load_json, load_yaml, parse_yaml
from wsi_chat.dialects.dialect import BoxReading, Dialect
from wsi_chat.dialects.frame import Frame, ImagePolicy
from wsi_chat.dialects.spec import DialectSpec
from wsi_chat.errors import DocumentError, EngineError, SettingError
from wsi_chat.names import from_home

__all__ = [
    "BoxReading",
    "Dialect",
    "DialectSpec",
    "Frame",
    "ImagePolicy",
    "detect_dialect",
    "dialect_of_name",
    "dialects",
    "get_dialect",
    "load_dialect",
]

DEEPEST = 8
"""How many files may extend one another in a row."""


@cache
def dialects() -> list[str]:
    """Names of the dialects in the package, sorted."""
    folder = resources.files(__name__)
    return sorted(Path(entry.name).stem for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def get_dialect(name: str) -> Dialect:
    """A dialect of the package by name, or one of the user's by the path of its YAML file.

    A path ends in ``.yaml`` or ``.yml`` or holds a separator. Raises SettingError for an unknown name and for a
    file that cannot be read or is not a dialect.
    """
    if _is_path(name):
        return load_dialect(from_home(name))
    return _packaged(name)


def _is_path(name: str) -> bool:
    return name.lower().endswith((".yaml", ".yml")) or "/" in name or os.sep in name


@cache
def _packaged(name: str) -> Dialect:
    if name not in dialects():
        raise SettingError(
            f"there is no dialect {name!r}",
            hint=f"Choose one of: {', '.join(dialects())}; or give the path of a YAML file.",
        )
    text = (resources.files(__name__) / f"{name}.yaml").read_text(encoding="utf-8")
    content = parse_yaml(text, f"{name}.yaml")
    return _dialect_of(_extended(content, Path(f"{name}.yaml")), f"{name}.yaml")


def load_dialect(path: Path) -> Dialect:
    """A dialect from a YAML file with the same fields as those in the package. Raises SettingError.

    ``extends: qwen2-vl`` takes every field that the file leaves out from that dialect of the package, or from the
    YAML file whose path follows, seen from this file; mappings such as ``prompts`` are merged key by key. Nothing
    but the file's own ``name`` is needed beside it.
    """
    return _dialect_of(_fields_of(path), str(path))


def _fields_of(path: Path, depth: int = 0) -> Any:
    try:
        content = load_yaml(path)
    except DocumentError as error:
        raise SettingError(f"Dialect file {error.message}", hint=error.hint) from error
    return _extended(content, path, depth)


def _extended(content: Any, path: Path, depth: int = 0) -> Any:
    """What a YAML file says, together with what it takes over from the dialect that it extends."""
    if not isinstance(content, dict) or "extends" not in content:
        return content
    if depth >= DEEPEST:
        raise SettingError(
            f"dialect file {path}: more than {DEEPEST} files extend one another", hint="Check what each one extends."
        )
    base = str(content.pop("extends"))
    if _is_path(base):
        inherited = _fields_of(path.parent / from_home(base), depth + 1)
    else:
        inherited = _packaged(base).spec.model_dump()
    merged = dict(inherited) if isinstance(inherited, dict) else {}
    merged.pop("name", None)  # two dialects of one name could not be told apart in a report
    for key, value in content.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = merged[key] | value if both else value
    return merged


def _dialect_of(content: Any, source: str) -> Dialect:
    try:
        return Dialect(DialectSpec.model_validate(content))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise SettingError(
            f"dialect file {source}: {where}: {first['msg']}",
            hint="See wsi_chat/dialects/cytochat.yaml for the fields.",
        ) from error


def detect_dialect(checkpoint_dir: str | Path) -> str:
    """The dialect of a checkpoint folder, as `get_dialect` takes it.

    The first of: ``dialect`` in its ``manifest.json`` (a name, or a YAML file's path from the folder), a known
    fine-tune's name, the ``model_type`` and then the ``architectures`` of its ``config.json``. Raises EngineError
    where the folder has no readable config, SettingError where no dialect fits it.
    """
    folder = Path(checkpoint_dir)
    if not folder.is_dir():
        what = "is a file, not a folder" if folder.exists() else "does not exist"
        raise EngineError(
            f"checkpoint {folder} {what}", hint="Point --model to a folder with config.json and *.safetensors."
        )
    manifest = _json(folder / "manifest.json") if (folder / "manifest.json").is_file() else {}
    named = manifest.get("dialect")
    if isinstance(named, str):
        own = folder / named
        return str(own) if own.is_file() and get_dialect(str(own.resolve())) else get_dialect(named).name
    config = _json(folder / "config.json")
    known_as = f"{folder.resolve().name} {config.get('_name_or_path', '')}".lower()
    for name in dialects():
        spec = _packaged(name).spec
        if spec.fine_tune and any(part in known_as for part in spec.served_as):
            return name
    architectures = config.get("architectures")
    for written in [config.get("model_type"), *(architectures if isinstance(architectures, list) else [])]:
        family = _family(str(written))
        if family:
            return family
    raise SettingError(
        f"no dialect is known for {folder} (model_type {config.get('model_type')!r}, architectures {architectures!r})",
        hint=f"Name one with --dialect: {', '.join(dialects())}; or give the path of a YAML file.",
    )


def _family(written: str) -> str:
    """The dialect for a ``model_type`` or an architecture's class name, e.g. Qwen2VLForConditionalGeneration."""
    plain = written.replace("_", "").lower().removesuffix("forconditionalgeneration").removesuffix("model")
    families = {kind.replace("_", ""): name for name in dialects() for kind in _packaged(name).spec.model_types}
    return families.get(plain, "")


def dialect_of_name(model: str) -> str:
    """The dialect that a model's name speaks of, e.g. ``Qwen/Qwen2.5-VL-7B-Instruct`` -> ``qwen2.5-vl``.

    Raises SettingError where the name speaks of none.
    """
    plain = model.lower().replace("_", "-").replace(" ", "-")
    parts = [(part, name) for name in dialects() for part in _packaged(name).spec.served_as]
    for part, name in sorted(parts, key=lambda item: (-len(item[0]), item[0])):
        if part in plain:
            return name
    raise SettingError(
        f"the name {model!r} does not say how the model is to be asked",
        hint=f"Name the dialect with --dialect: {', '.join(dialects())}; or give the path of a YAML file.",
    )


def _json(path: Path) -> dict[str, object]:
    try:
        content = load_json(path)
    except DocumentError as error:
        if error.missing:
            raise EngineError(f"{path} is missing.", hint="Point --model to a complete checkpoint folder.") from None
        raise EngineError(error.message, hint="Copy the checkpoint again.") from error
    if not isinstance(content, dict):
        raise EngineError(f"{path} holds no JSON object", hint="Copy the checkpoint again.")
    return content
