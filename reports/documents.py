"""report.json: written in one fixed order, read back into the same `Report`, described by a JSON Schema.

Two runs that differ in nothing but their timings differ in nothing but the ``timings`` block of the file.
"""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from reports.files import write_bytes
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
    try:
        return Report.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(step) for step in first["loc"]) or "the file"
        raise OutputError(
            f"{source} is no report of schema {SCHEMA_VERSION}: {place}: {first['msg']}.",
            hint="Rerun the analysis with --overwrite to write it anew.",
        ) from error


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
