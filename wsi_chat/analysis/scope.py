"""What a model was trained for, as its maker or its user says, and whether a slide is of that kind.

Stated in, the first that is there: the YAML file that the setting ``scope`` names, ``scope.yaml`` in the checkpoint's
folder, ``scope`` in its ``manifest.json``::

    statement: "trained on rendered cervical fields and real blood smears; not for real cervical slides"
    specimens: {cervix: rendered, blood-smear: real}

A specimen that is not listed is outside the scope. ``rendered`` holds for slides that say in their file that they are
rendered, ``real`` for all others, ``any`` for both.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from pydantic import ValidationError

from wsi_chat.engines import embedded_checkpoint, find_checkpoint
from wsi_chat.errors import EngineError, SettingError
from wsi_chat.names import from_home
from wsi_chat.schema import ORIGIN, Remark, Scope

if TYPE_CHECKING:
    from wsi_chat.engines.model import Model
    from wsi_chat.settings import Settings
    from wsi_chat.terminology import System

FILE, MANIFEST = "scope.yaml", "manifest.json"
_HINT = "Write statement: TEXT and specimens: {cervix: real}, with real, rendered or any for each specimen."


def checkpoint_folder(settings: Settings, model: Model) -> Path | None:
    """The folder whose checkpoint answers: the adapter's where there is one; None where it is not known here.

    A server that is asked in the embedded checkpoint's own dialect serves that one.
    """
    if model.given is not None or model.start is not None:
        return None
    if settings.base_url is not None:
        return embedded_checkpoint() if model.dialect.name == "embedded" else None
    if settings.adapter is not None:
        return from_home(settings.adapter)
    try:
        return find_checkpoint(settings.model)
    except EngineError:  # named when the engine is loaded
        return None


def answering_folder(settings: Settings, model: Model) -> Path | None:
    """As `checkpoint_folder`, of the engine that was loaded: None where that runs something else."""
    folder = checkpoint_folder(settings, model)
    ran_here = settings.base_url is None and settings.adapter is None
    if folder is not None and ran_here and model.engine.model_name != folder.name:
        return None
    return folder


def read_scope(settings: Settings, folder: Path | None) -> Scope | None:
    """What the model was trained for; None where nobody says.

    Raises:
        SettingError: a statement cannot be read or does not have its form.
    """
    if settings.scope is not None:
        path = from_home(settings.scope)
        return _read(_yaml(path), f"scope {path}")
    if folder is None:
        return None
    if (folder / FILE).is_file():
        return _read(_yaml(folder / FILE), str(folder / FILE))
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):  # no manifest, or one that the dialect has named already
        return None
    stated = manifest.get("scope") if isinstance(manifest, dict) else None
    return None if stated is None else _read(stated, f"scope in {folder / MANIFEST}")


def on_slide(scope: Scope | None, system: System, properties: Mapping[str, str], *, given: bool) -> Scope | None:
    """The scope with what speaks against this slide's being within it.

    Args:
        given: whether the user named the specimen type.
    """
    if scope is None:
        return None
    kinds = {name.casefold(): kind for name, kind in scope.specimens.items()}
    names = [name for name in (*system.specimens, system.code) if name.casefold() in kinds]
    rendered = properties.get(ORIGIN) == "rendered"
    outside = None
    specimen = Remark("name.system", code=system.code, name=system.specimens[0].replace("-", " "))
    if not given:
        outside = Remark("scope.no_specimen")
    elif not names:
        outside = Remark("scope.other_specimen", specimen=specimen)
    elif kinds[names[0].casefold()] == "rendered" and not rendered:
        outside = Remark("scope.not_rendered", specimen=specimen)
    elif kinds[names[0].casefold()] == "real" and rendered:
        outside = Remark("scope.rendered", specimen=specimen)
    return scope if outside is None else scope.model_copy(update={"outside": outside})


def _yaml(path: Path) -> Any:
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise SettingError(f"scope {path} cannot be read: {error}.", hint=_HINT) from error


def _read(stated: Any, where: str) -> Scope:
    try:
        return Scope.model_validate(stated)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(step) for step in first["loc"]) or "it"
        raise SettingError(f"{where}: {place}: {first['msg']}.", hint=_HINT) from error
