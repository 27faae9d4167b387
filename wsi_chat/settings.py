"""Settings of one run and where each came from: flag > environment ``WSI_CHAT_*`` > file > default.

``Settings`` is the one typed model: it is the validation, the documentation of the defaults, and what is saved
with the run as its effective configuration.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from wsi_chat.bounded import load_yaml
from wsi_chat.errors import DocumentError, SettingError
from wsi_chat.schema import Language

ENV_PREFIX = "WSI_CHAT_"

# tiles detailed by default: the published slide-level recipes re-read the top 10 to 30 (Cheng et al. 2021,
# Nat Commun 12:5639), and 24 fills whole batches
TOP_K = 24


class Settings(BaseModel):
    """Everything that a user may set for ``analyze``. Units: um/px for mpp, pixels for tile_px."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, protected_namespaces=())

    model: Annotated[str | None, Field(description="checkpoint folder; none: the embedded checkpoint")] = None
    adapter: Annotated[str | None, Field(description="LoRA adapter folder, trained on the model")] = None
    engine: Annotated[Literal["auto", "transformers", "vllm", "openai"], Field(description="who answers")] = "auto"
    base_url: Annotated[str | None, Field(description="address of an OpenAI-compatible server")] = None
    gpus: Annotated[str | None, Field(description="so many (2) or these (0,3): one engine process each")] = None
    concurrency: Annotated[
        int | None, Field(ge=1, le=4096, description="questions under way at once (openai: 32, vllm: 128)")
    ] = None
    timeout: Annotated[float, Field(gt=0, description="seconds that one request to a server may take")] = 120.0
    dialect: Annotated[str, Field(description="how the model is asked; auto reads the checkpoint")] = "auto"
    device: Annotated[str, Field(description="auto, cpu, cuda, cuda:1, mps")] = "auto"
    dtype: Annotated[Literal["auto", "float32", "bfloat16", "float16"], Field(description="weights' type")] = "auto"
    batch_size: Annotated[int, Field(ge=1, le=4096, description="queries per forward pass")] = 16
    seed: Annotated[int, Field(ge=0, description="seed of everything that draws")] = 0

    specimen: Annotated[str | None, Field(description="specimen type or a reporting system's YAML")] = None
    preparation: Annotated[
        str | None, Field(description="liquid-based or conventional, for the adequacy rule; some specimens imply it")
    ] = None
    reduced_minimum: Annotated[
        bool, Field(description="accept the adequacy rule's lower bound (after therapy, with atrophy)")
    ] = False
    age: Annotated[int | None, Field(ge=0, le=120, description="of the patient in years, where known")] = None
    adequacy_tiles: Annotated[
        int | None, Field(ge=0, le=10_000, description="random tiles in which normal cells are counted; 0: none")
    ] = None
    mpp: Annotated[float | None, Field(gt=0, description="um/px of level 0, over what the slide says")] = None
    reader: Annotated[str | None, Field(description="force one reader, e.g. openslide")] = None
    tile_px: Annotated[int | None, Field(ge=32, le=4096, description="tile side that the model sees")] = None
    tile_mpp: Annotated[float | None, Field(gt=0, description="um/px that the model sees")] = None
    overlap: Annotated[float, Field(ge=0, le=0.75, description="share of a tile that its neighbour repeats")] = 0.25
    mask: Annotated[bool, Field(description="tile only where cells are")] = True
    workers: Annotated[int, Field(ge=1, le=64, description="reading threads")] = 2

    top_k: Annotated[int, Field(ge=0, description="tiles to ground and describe")] = TOP_K
    exhaustive: Annotated[bool, Field(description="ground and describe every tile")] = False
    limit: Annotated[int | None, Field(ge=1, description="screen at most so many tiles, spread evenly")] = None

    views: Annotated[
        Literal["none", "quadrants", "context"], Field(description="also show the quarters or the surroundings")
    ] = "none"
    contrast: Annotated[
        Literal["none", "blank", "blur"], Field(description="score against an empty or a blurred tile")
    ] = "none"
    zoom: Annotated[float, Field(ge=1, le=8, description="second look at hot spots, so many times closer")] = 1.0
    features: Annotated[bool, Field(description="keep image features of every tile, for wsi-chat fit")] = False

    pool: Annotated[str, Field(description="slide score from tile probabilities")] = "topk_logit"
    pool_k: Annotated[int, Field(ge=1, description="k of the top-k mean")] = 10
    threshold: Annotated[float, Field(gt=0, lt=1, description="score at and above which a slide is abnormal")] = 0.5
    box_precision: Annotated[
        str | None,
        Field(description="share of boxes that are right, measured: number, class=number, or evaluate's JSON"),
    ] = None
    coverage_floor: Annotated[
        float, Field(ge=0, le=1, description="share of tiles that must be answered for a verdict")
    ] = 0.9

    aggregator: Annotated[
        str,
        Field(
            description="auto (the checkpoint's own, if it has one for such a run), none, or a folder of wsi-chat fit"
        ),
    ] = "auto"
    miss_rate: Annotated[
        float | None, Field(gt=0, lt=1, description="of abnormal slides called normal, at most, in expectation")
    ] = None
    false_alarm_rate: Annotated[
        float | None, Field(gt=0, lt=1, description="the same of normal slides; those between are indeterminate")
    ] = None
    force: Annotated[bool, Field(description="apply an aggregator that was fitted under other conditions")] = False

    overwrite: Annotated[bool, Field(description="forget earlier answers instead of resuming")] = False
    pdf: Annotated[bool, Field(description="write report.pdf")] = True
    gallery: Annotated[int, Field(ge=0, le=1000, description="cells in the gallery")] = 48
    font_path: Annotated[str | None, Field(description="folder with more fonts for the PDF, or a font file")] = None
    html: Annotated[bool, Field(description="write report.html")] = True
    dicom: Annotated[bool, Field(description="write DICOM objects where the slide is DICOM")] = True
    language: Annotated[Language, Field(description="of the report: en or zh")] = "en"
    narrative: Annotated[Literal["template", "model"], Field(description="who writes the narrative")] = "template"
    ancillary: Annotated[
        tuple[str, ...], Field(description="other tests' results, one each, or the path of a YAML file of them")
    ] = ()

    @field_validator("ancillary", mode="before")
    @classmethod
    def _one_or_more(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else value


def from_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """Settings named in the environment, e.g. ``WSI_CHAT_TOP_K=50``; unknown names are left alone."""
    wanted = {f"{ENV_PREFIX}{name.upper()}": name for name in Settings.model_fields}
    return {wanted[key]: value for key, value in environ.items() if key in wanted and value != ""}


def from_file(path: Path) -> dict[str, Any]:
    """Settings from a YAML file, one ``key: value`` a line; dashes in keys are read as underscores.

    Raises:
        SettingError: the file is missing, is no YAML mapping, or names an unknown setting.
    """
    try:
        data = load_yaml(path)
    except DocumentError as error:
        raise SettingError(
            f"--config {error.message}", hint="Name a YAML file with one 'key: value' a line."
        ) from error
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise SettingError(f"--config {path}: holds a {type(data).__name__}.", hint="Write one 'key: value' a line.")
    named = {str(key).replace("-", "_"): value for key, value in data.items()}
    unknown = sorted(set(named) - set(Settings.model_fields))
    if unknown:
        known = ", ".join(sorted(Settings.model_fields))
        raise SettingError(f"--config {path}: unknown setting {unknown[0]!r}.", hint=f"Known settings: {known}.")
    return named


def resolve(
    flags: Mapping[str, Any], *, config: Path | None = None, environ: Mapping[str, str] | None = None
) -> tuple[Settings, dict[str, str]]:
    """The effective settings and, for each one that is not a default, where it came from.

    Args:
        flags: settings given on the command line or as keyword arguments; None means not given.
        config: YAML file, or None.
        environ: the environment to look in; None looks in none.

    Raises:
        SettingError: a value cannot be used; names where it came from, the value, and what is allowed.
    """
    values: dict[str, Any] = {}
    origin: dict[str, str] = {}
    layers: list[tuple[str, Mapping[str, Any]]] = []
    if config is not None:
        layers.append((f"file {config}", from_file(config)))
    if environ is not None:
        layers.append(("environment", from_environment(environ)))
    layers.append(("flag", {key: value for key, value in flags.items() if value is not None}))
    for name, layer in layers:
        for key, value in layer.items():
            values[key], origin[key] = value, name
    try:
        return Settings(**values), origin
    except ValidationError as error:
        first = error.errors()[0]
        key = str(first["loc"][0]) if first["loc"] else "settings"
        place = {"flag": f"--{key.replace('_', '-')}", "environment": f"{ENV_PREFIX}{key.upper()}"}.get(
            origin.get(key, "flag"), f"{key} in {origin.get(key, 'the settings')}"
        )
        seen = first.get("input")
        raise SettingError(f"{place}: {seen!r} cannot be used.", hint=f"{first['msg']}.") from error
