"""report.json: written in one fixed order, read back into the same `Report`, described by a JSON Schema.

Two runs that differ in nothing but their timings differ in nothing but the ``timings`` block of the file.
"""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from wsi_chat.atomic import write_bytes
from wsi_chat.errors import OutputError
from wsi_chat.schema import SCHEMA_VERSION, Report

SCHEMA_RESOURCE = "schema/report.schema.json"


def write_report_json(report: Report, path: Path | str) -> Path:
    """Write report.json (UTF-8, two spaces, fields in schema order, one newline at the end).

    Raises:
        OutputError: if the file cannot be written.
    """
    return write_bytes(path, (report.model_dump_json(indent=2) + "\n").encode("utf-8"))


def read_report_json(path: Path | str) -> Report:
    """Read a report.json back.

    Raises:
        OutputError: if the file is missing, is not UTF-8 JSON, or does not follow the schema; the message names
            the file, the field and the value's problem.
    """
    source = Path(path)
    try:
        text = source.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise OutputError(f"Cannot read {source}: {reason}.", hint="Name a report.json of a run.") from error
    _readable(text, source)
    try:
        return Report.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(step) for step in first["loc"]) or "the file"
        raise OutputError(
            f"{source} is no report of schema {SCHEMA_VERSION}: {place}: {first['msg']}.",
            hint="Rerun the analysis with --overwrite to write it anew.",
        ) from error


def _readable(text: str, source: Path) -> None:
    """That the text is whole JSON of a schema no newer than this one; anything else is left to the validation.

    Raises:
        OutputError: the file ends in the middle, or a newer wsi-chat wrote it.
    """
    again = "Run wsi-chat analyze again: it resumes from the journal and asks nothing twice."
    try:
        data = json.loads(text)
    except RecursionError as error:
        raise OutputError(f"{source} is no report: it is nested too deep.", hint=again) from error
    except ValueError as error:
        at_end = isinstance(error, json.JSONDecodeError) and not text[error.pos :].strip()
        what = "it ends in the middle (truncated?)" if at_end or not text.strip() else str(error)
        raise OutputError(f"{source} is no report: Invalid JSON: {what}.", hint=again) from error
    version = data.get("schema_version") if isinstance(data, dict) else None
    if isinstance(version, str) and _number(version) > _number(SCHEMA_VERSION):
        raise OutputError(
            f"{source} has schema {version[:20]}; this wsi-chat reads up to {SCHEMA_VERSION}.",
            hint="Upgrade wsi-chat (pip install --upgrade wsi-chat), or rerun the analysis with this one.",
        )


def _number(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isascii() and part.isdigit())


def json_schema() -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of report.json, as the code has it now."""
    schema = Report.model_json_schema(mode="serialization")
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": f"urn:wsi-chat:report:{SCHEMA_VERSION}",
        **schema,
    }


def published_schema() -> dict[str, Any]:
    """The JSON Schema of report.json as the package ships it (``reports/schema/report.schema.json``)."""
    text = resources.files("reports").joinpath(SCHEMA_RESOURCE).read_text(encoding="utf-8")
    schema: dict[str, Any] = json.loads(text)
    return schema
