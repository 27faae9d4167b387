"""Settings of one run and where each came from: flag > environment ``WSI_CHAT_*`` > file > default.

``Settings`` is the one typed model, and every setting is declared in it once (see `wsi_chat.declaration`). The options
of the commands, the keys of the YAML file, the names in the environment, docs/settings.md, what a stored verdict
depends on and the conditions of a fitted aggregator are all made from that.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import ConfigDict, TypeAdapter, ValidationError, field_validator

from wsi_chat.address import OWN_KEY, check_address
from wsi_chat.bounded import load_yaml
from wsi_chat.declaration import ENV_PREFIX, Affects, Declared, Strict, declared_in, setting
from wsi_chat.errors import DocumentError, SettingError
from wsi_chat.faults import way_out
from wsi_chat.schema import Language

log = logging.getLogger(__name__)

Format = Literal["pdf", "html", "json", "dicom"]
FORMATS: tuple[Format, ...] = get_args(Format)

MODEL, SPECIMEN, TILES = "Model", "Specimen", "Slide and tiles"
READING, VERDICT, DOCUMENTS, RUN = "Screening and detail", "Verdict", "Documents", "Run"

# tiles detailed by default: the published slide-level recipes re-read the top 10 to 30 (Cheng et al. 2021,
# Nat Commun 12:5639), and 24 fills whole batches
TOP_K = 24


_SWITCHED = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


class Settings(Strict):
    """Everything that a user may set for a run. Units: µm/px for mpp, pixels for tile_px."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, protected_namespaces=())

    model: str | None = setting(
        None, "Checkpoint folder, or the name by which a server offers it.",
        panel=MODEL, affects="answers", condition=False, unset="the embedded checkpoint",
    )  # fmt: skip
    adapter: str | None = setting(
        None, "LoRA adapter folder, trained on the model.", panel=MODEL, affects="answers", unset="none"
    )
    engine: Literal["auto", "transformers", "vllm", "openai"] = setting(
        "auto", "Inference engine: auto, transformers, vllm or openai.", panel=MODEL, affects="answers", condition=False
    )
    base_url: str | None = setting(
        None, "Address of an OpenAI-compatible server, e.g. http://127.0.0.1:8000/v1. The key in WSI_CHAT_API_KEY is"
        " sent to it; that in OPENAI_API_KEY only to https://api.openai.com.",
        panel=MODEL, affects="answers", condition=False, unset="none",
    )  # fmt: skip
    gpus: str | None = setting(
        None, "How many GPUs to use (2), or which (0,3); each runs an engine of its own.",
        panel=MODEL, affects="speed", unset="one",
    )  # fmt: skip
    concurrency: int | None = setting(
        None, "Questions in progress at once (openai and vllm engines).",
        panel=MODEL, affects="speed", unset="32 for openai, 128 for vllm", ge=1, le=4096,
    )  # fmt: skip
    timeout: float = setting(
        120.0, "Seconds that one request to a server may take.", panel=MODEL, affects="speed", unit="s", rare=True, gt=0
    )
    dialect: str = setting(
        "auto", "Prompt and box format of the model: a name or a YAML file; auto reads the checkpoint.",
        panel=MODEL, affects="answers", condition=False,
    )  # fmt: skip
    device: str = setting(
        "auto", "Device of the transformers engine: auto, cpu, cuda, cuda:1 or mps.",
        panel=MODEL, affects="answers", condition=False,
    )  # fmt: skip
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = setting(
        "auto", "Number format of the weights.", panel=MODEL, affects="answers", condition=False, rare=True
    )
    batch_size: int = setting(16, "Questions per forward pass.", panel=MODEL, affects="speed", ge=1, le=4096)
    seed: int = setting(
        0, "Random seed of everything that is drawn by lot; decoding is greedy.",
        panel=MODEL, affects="answers", condition=False, rare=True, ge=0,
    )  # fmt: skip

    specimen: str | None = setting(
        None, "Specimen type, e.g. cervix or blood-smear (wsi-chat specimens lists them), or a YAML file of your own.",
        panel=SPECIMEN, affects="answers", condition=False, unset="none, and no category is assigned",
    )  # fmt: skip
    preparation: str | None = setting(
        None, "Preparation, for the adequacy rule: liquid-based or conventional.",
        panel=SPECIMEN, affects="documents", unset="what the specimen type implies",
    )  # fmt: skip
    reduced_minimum: bool = setting(
        False, "Accept the lower bound of the adequacy rule (after therapy, with atrophy).",
        panel=SPECIMEN, affects="documents",
    )  # fmt: skip
    age: int | None = setting(
        None, "Patient's age in years, if known.",
        panel=SPECIMEN, affects="documents", unit="years", unset="unknown", ge=0, le=120,
    )  # fmt: skip
    adequacy_tiles: int | None = setting(
        None, "Number of random tiles in which normal cells are counted to estimate adequacy; 0 turns this off.",
        panel=SPECIMEN, affects="answers", condition=False, unset="16 where the rule and the model allow an estimate",
        ge=0, le=10_000,
    )  # fmt: skip

    mpp: float | None = setting(
        None, "Level-0 resolution in µm/px; overrides the slide's metadata.",
        panel=TILES, affects="answers", condition=False, unit="µm/px", unset="the slide's own", gt=0,
    )  # fmt: skip
    reader: str | None = setting(
        None, "Use only this slide reader, e.g. openslide.",
        panel=TILES, affects="answers", condition=False, unset="the first that opens the file",
    )  # fmt: skip
    tile_px: int | None = setting(
        None, "Tile side in pixels, as the model sees it.",
        panel=TILES, affects="answers", condition=False, unit="px", unset="the dialect's", ge=32, le=4096,
    )  # fmt: skip
    tile_mpp: float | None = setting(
        None, "Resolution in µm/px at which the model sees a tile.",
        panel=TILES, affects="answers", condition=False, unit="µm/px", unset="the dialect's for the specimen", gt=0,
    )  # fmt: skip
    overlap: float = setting(
        0.25, "Fraction of a tile's side that overlaps with its neighbour.",
        panel=TILES, affects="answers", condition=False, rare=True, ge=0, le=0.75,
    )  # fmt: skip
    mask: Literal["auto", "on", "off"] = setting(
        "auto", "Leave out tiles of empty glass; auto does so on slides, but not on pictures of single fields nor on"
        " blood smears.",
        panel=TILES, affects="answers", flags="--mask/--no-mask",
    )  # fmt: skip
    z: str = setting(
        "best", "Focal plane of a stack: best (the sharpest of each tile), fused (each place from the plane in which "
        "it is sharp), mid, or its number from 0.",
        panel=TILES, affects="answers",
    )  # fmt: skip
    trial: bool = setting(
        True, "Let a process of its own open each slide first, and refuse one that makes a library abort, hang or"
        " allocate without bound.",
        panel=TILES, affects="speed", flags="--trial/--no-trial", rare=True,
    )  # fmt: skip
    workers: int = setting(2, "Threads that read tiles.", panel=TILES, affects="speed", rare=True, ge=1, le=64)

    top_k: int = setting(
        TOP_K, "Number of highest-scoring tiles in which cells are located and described. Where cells are counted "
        "(blood), every tile in which screening found cells is read as well; 0 reads none.",
        panel=READING, affects="answers", ge=0,
    )  # fmt: skip
    exhaustive: bool = setting(False, "Locate and describe cells in every tile.", panel=READING, affects="answers")
    limit: int | None = setting(
        None, "Screen at most this many tiles, spread evenly over the slide.",
        panel=READING, affects="answers", unit="tiles", unset="all", ge=1,
    )  # fmt: skip
    views: Literal["none", "quadrants", "context"] = setting(
        "none", "Further views shown with each tile: its quadrants, or its surroundings.",
        panel=READING, affects="answers", rare=True,
    )  # fmt: skip
    contrast: Literal["none", "blank", "blur"] = setting(
        "none", "Calibrate each tile's score against a blank or a blurred tile.",
        panel=READING, affects="answers", rare=True,
    )  # fmt: skip
    zoom: float = setting(
        1.0, "Look again at located cells, magnified by this factor; 1 turns this off.",
        panel=READING, affects="answers", rare=True, ge=1, le=8,
    )  # fmt: skip
    features: bool = setting(
        False, "Store image features of every tile, for wsi-chat fit.",
        panel=READING, affects="documents", flags="--features/--no-features",
    )  # fmt: skip

    pool: str = setting(
        "topk_logit",
        "How the slide score follows from tile scores: topk_logit, mean, max, noisy_or, fraction_above or findings.",
        panel=VERDICT, affects="documents", rare=True,
    )  # fmt: skip
    pool_k: int = setting(10, "Number of tiles in the top-k mean.", panel=VERDICT, affects="documents", rare=True, ge=1)
    threshold: float = setting(
        0.5, "Slide score at and above which a slide is abnormal.", panel=VERDICT, affects="documents", gt=0, lt=1
    )
    box_precision: str | None = setting(
        None,
        "Measured precision of the model's boxes: a number, class=number for several classes, or the JSON file of"
        " wsi-chat evaluate.",
        panel=VERDICT, affects="documents", unset="not known",
    )  # fmt: skip
    coverage_floor: float = setting(
        0.9, "Fraction of the tiles that must be answered for a verdict.",
        panel=VERDICT, affects="documents", rare=True, ge=0, le=1,
    )  # fmt: skip
    aggregator: str = setting(
        "auto", "Fitted aggregator: a folder that wsi-chat fit wrote, none, or auto: the checkpoint's own, if it has"
        " one for such a run.",
        panel=VERDICT, affects="documents",
    )  # fmt: skip
    controls: bool = setting(
        True, "Ask up to 12 control questions per slide, whose answers are known; a model that fails gets no verdict.",
        panel=VERDICT, affects="answers", condition=False, flags="--controls/--no-controls",
    )  # fmt: skip
    positive_controls: str | None = setting(
        None, "Folder of pictures of a tile's size that the model must call positive.",
        panel=VERDICT, affects="answers", condition=False, rare=True, unset="those of the checkpoint, if it has any",
    )  # fmt: skip
    scope: str | None = setting(
        None, "YAML file that states what the model was trained for: statement, and specimens with real, rendered or"
        " any.",
        panel=VERDICT, affects="answers", condition=False, rare=True, unset="what the checkpoint states, if anything",
    )  # fmt: skip
    miss_rate: float | None = setting(
        None, "With an aggregator: expected fraction of abnormal slides called normal, at most, e.g. 0.05.",
        panel=VERDICT, affects="documents", unset="as fitted", gt=0, lt=1,
    )  # fmt: skip
    false_alarm_rate: float | None = setting(
        None, "With an aggregator: expected fraction of normal slides called abnormal, at most; slides between the"
        " two thresholds are indeterminate.",
        panel=VERDICT, affects="documents", unset="as fitted", gt=0, lt=1,
    )  # fmt: skip
    force: bool = setting(
        False, "Apply an aggregator that was fitted under other conditions.", panel=VERDICT, affects="documents"
    )

    format: tuple[Format, ...] = setting(
        FORMATS, "Documents to write, separated by commas. report.json is always written, and DICOM objects only for a"
        " DICOM slide.",
        panel=DOCUMENTS, affects="documents",
    )  # fmt: skip
    gallery: int = setting(
        48, "Number of cells in the gallery, at most.", panel=DOCUMENTS, affects="documents", rare=True, ge=0, le=1000
    )
    font_path: str | None = setting(
        None, "Font file for the PDF, or a folder of fonts.",
        panel=DOCUMENTS, affects="documents", rare=True, unset="installed fonts",
    )  # fmt: skip
    language: Language = setting("en", "Language of the report.", panel=DOCUMENTS, affects="documents")
    narrative: Literal["template", "model"] = setting(
        "template", "Who writes the narrative; what a model writes is checked against the verdict.",
        panel=DOCUMENTS, affects="documents",
    )  # fmt: skip
    ancillary: tuple[str, ...] = setting(
        (), "Result of another test, e.g. 'HPV 16 positive', or a YAML file of results; may be repeated.",
        panel=DOCUMENTS, affects="documents",
    )  # fmt: skip
    pseudonymize: bool = setting(
        False, "Show slides, files and patients under pseudonyms in every document; pseudonyms.json in the run folder,"
        " for you alone, says which is whose.",
        panel=DOCUMENTS, affects="documents",
    )  # fmt: skip
    pseudonyms: str | None = setting(
        None, "File with the key of the pseudonyms and whose they are, e.g. one for several runs; made if missing.",
        panel=DOCUMENTS, affects="speed", rare=True, unset="pseudonyms.json in the run folder",
    )  # fmt: skip
    overwrite: bool = setting(
        False, "Discard earlier answers, or reuse them.", panel=RUN, affects="speed", flags="--overwrite/--resume"
    )

    @field_validator("mask", mode="before")
    @classmethod
    def _yes_or_no(cls, value: object) -> object:
        """``--mask``, ``--no-mask`` and the yes or no of earlier versions."""
        if isinstance(value, str) and value.lower() in _SWITCHED:
            value = _SWITCHED[value.lower()]
        return ("on" if value else "off") if isinstance(value, bool) else value

    @field_validator("ancillary", mode="before")
    @classmethod
    def _one_or_more(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else value

    @field_validator("z", mode="before")
    @classmethod
    def _plane(cls, value: object) -> object:
        text = str(value).strip().lower()
        if text not in ("best", "fused", "mid") and not text.isdecimal():
            raise ValueError("choose best, fused, mid, or a plane's number from 0")
        return text

    @field_validator("format", mode="before")
    @classmethod
    def _with_commas(cls, value: object) -> object:
        names = value.split(",") if isinstance(value, str) else value
        if not isinstance(names, list | tuple):
            return value
        chosen = [str(name).strip().lower() for name in names if str(name).strip()]
        strange = [name for name in chosen if name not in FORMATS]
        if strange or not chosen:
            raise ValueError(
                f"{strange[0] if strange else 'nothing'!r} is not a valid format. Choose from {', '.join(FORMATS)}, "
                "separated by commas"
            )
        return tuple(name for name in FORMATS if name in chosen)


def declared() -> Mapping[str, Declared]:
    """Every setting by its name, in the order of its declaration."""
    return declared_in(Settings)


def affecting(*kinds: Affects) -> frozenset[str]:
    """The names of the settings that affect these, e.g. ``affecting("speed")``."""
    return frozenset(each.name for each in declared().values() if each.affects in kinds)


def plane_of(z: str) -> str | int:
    """The setting ``z`` as `tilers.open_slide` takes it."""
    return int(z) if z.isdecimal() else z


# named in every aggregator that version 0.1 fitted, also where they have their defaults
_ALWAYS_NAMED = frozenset({"limit", "mask", "top_k", "exhaustive", "adapter", "views", "contrast", "zoom"})


def fit_conditions(config: Mapping[str, Any]) -> dict[str, Any]:
    """Of a run's settings, those under which alone an aggregator that was fitted on such runs holds.

    A setting that an older run does not name had its default; one declared after aggregators were fitted is named
    only where it differs from its default, so that those aggregators hold as before.
    """
    values = {each.name: config.get(each.name, each.default) for each in declared().values() if each.condition}
    values["mask"] = values["mask"] not in ("off", False)  # a yes or no where aggregators were fitted before
    return {
        name: value
        for name, value in values.items()
        if name in _ALWAYS_NAMED or value != declared()[name].default
    }  # fmt: skip


def check_names(given: Mapping[str, Any], where: str) -> None:
    """Raise SettingError where a name is no setting; ``where`` says who was given it, e.g. ``analyze()``."""
    for name in given:
        if name not in Settings.model_fields and name not in _SWITCHES:
            near = get_close_matches(name, Settings.model_fields, n=1)
            meant = f"Did you mean {near[0]}? " if near else ""
            raise SettingError(
                f"{where}: unknown setting {name!r}.",
                hint=f"{meant}Known settings: {', '.join(Settings.model_fields)}.",
            )


# the key for a server, and what the tests and benchmarks are told
_NO_SETTINGS = {OWN_KEY, *(f"{ENV_PREFIX}{name}" for name in ("CHROMIUM", "PBC", "SHARED"))}
_OF_TESTS = f"{ENV_PREFIX}TEST_"


def from_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """Settings named in the environment, e.g. ``WSI_CHAT_TOP_K=50``; of an unknown name a warning says so, once."""
    wanted = {f"{ENV_PREFIX}{name.upper()}": name for name in (*Settings.model_fields, *_SWITCHES)}
    for key in sorted(environ):
        if key.startswith(ENV_PREFIX) and key not in {*wanted, *_NO_SETTINGS} and not key.startswith(_OF_TESTS):
            _tell_unknown(key, tuple(wanted))
    return {wanted[key]: value for key, value in environ.items() if key in wanted and value != ""}


@cache
def _tell_unknown(variable: str, known: tuple[str, ...]) -> None:
    names = [name.removeprefix(ENV_PREFIX) for name in (*known, OWN_KEY)]
    near = get_close_matches(variable.removeprefix(ENV_PREFIX), names, n=1)
    meant = f"Did you mean {ENV_PREFIX}{near[0]}? " if near else ""
    log.warning("%s in the environment is no setting and is ignored. %swsi-chat settings lists them.", variable, meant)


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
    check_names(named, f"--config {path}")
    return named


# format in version 0.1: one switch a document, in files and scripts that are still about
_SWITCHES: tuple[Format, ...] = ("pdf", "html", "dicom")


def _without_switches(layer: Mapping[str, Any], formats: Any) -> dict[str, Any]:
    """The layer with ``pdf: false`` and its like as ``format``. Raises SettingError where a switch is no yes or no."""
    switched = {name: value for name, value in layer.items() if name in _SWITCHES}
    rest = {name: value for name, value in layer.items() if name not in switched}
    if not switched:
        return rest
    chosen = set(Settings(format=rest.get("format", formats)).format)
    for name, value in switched.items():
        try:
            chosen = chosen | {name} if TypeAdapter(bool).validate_python(value) else chosen - {name}
        except ValidationError as error:
            raise SettingError(f"{name}: {value!r} is neither yes nor no.", hint="Set format instead.") from error
    return {**rest, "format": tuple(name for name in FORMATS if name in chosen | {"json"})}


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
    check_names(flags, "The settings")
    try:
        for name, layer in _layers(flags, config, environ):
            for key, value in _without_switches(layer, values.get("format", FORMATS)).items():
                values[key], origin[key] = value, name
        settings = Settings(**values)
        if settings.base_url is not None:
            # before it is written anywhere: it may hold a key; in its full form, by which its path is known as one
            settings = settings.model_copy(update={"base_url": check_address(settings.base_url)})
        return settings, origin
    except ValidationError as error:
        first = error.errors()[0]
        key = str(first["loc"][0]) if first["loc"] else "settings"
        seen = first.get("input")
        raise SettingError(
            f"{_place(key, origin.get(key, 'flag'))}: {seen!r} is not a valid value.",
            hint=way_out(first, Settings.model_fields.get(key)),
        ) from error


def _layers(
    flags: Mapping[str, Any], config: Path | None, environ: Mapping[str, str] | None
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Where settings come from, the weakest first."""
    if config is not None:
        yield f"file {config}", from_file(config)
    if environ is not None:
        yield "environment", from_environment(environ)
    yield "flag", {key: value for key, value in flags.items() if value is not None}


def _place(name: str, origin: str) -> str:
    """Where a user finds the value of a setting, to mend it there."""
    one = declared().get(name)
    if one is None:
        return f"{name} in {origin}"
    if origin == "environment":
        return one.variable
    return (name if one.rare else one.option) if origin == "flag" else f"{name} in {origin}"
