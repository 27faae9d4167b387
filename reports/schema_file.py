"""Regenerate the published JSON Schema: ``python -m reports.schema_file``."""

from __future__ import annotations

import json
from pathlib import Path

from reports.documents import SCHEMA_RESOURCE, json_schema
from wsi_chat.atomic import write_bytes


def write_schema(path: Path | None = None) -> Path:
    """Write the current schema to ``path`` (default: into the package's source folder)."""
    target = path or Path(__file__).parent / SCHEMA_RESOURCE
    return write_bytes(target, (json.dumps(json_schema(), indent=2, ensure_ascii=False) + "\n").encode("utf-8"))


if __name__ == "__main__":
    write_schema()
