"""A slide's verdict in, documents out: narrative, report.json, GeoJSON, tables, maps, pictures, PDF, HTML.

Nothing here decides anything: every writer states what the `wsi_chat.schema.Report` holds, and what is missing
stays visibly missing. Files are written whole or not at all, and two runs of the same report give the same bytes.

Names are imported on first use, so that one document's writer loads no other's libraries.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from reports.documents import json_schema, published_schema, read_report_json, write_report_json
    from reports.evidence import check_evidence
    from reports.figures import draw_heatmap, draw_overview
    from reports.fonts import FontMissing, chinese_font
    from reports.gallery import GalleryItem, draw_gallery, gallery_items
    from reports.geojson import write_geojson, write_geojson_by_field, write_tiles_geojson
    from reports.html import verdict_html
    from reports.language import Words
    from reports.maps import read_outline, write_maps_zarr
    from reports.mask import MASK, read_mask, write_mask
    from reports.narrative import narrate
    from reports.pdf import write_pdf
    from reports.scan import read_scan, write_scan
    from reports.tables import (
        read_tiles_parquet,
        read_tiles_table,
        write_differential_csv,
        write_fields_csv,
        write_findings_csv,
        write_tiles_parquet,
    )
    from reports.webpage import write_html

__all__ = [
    "MASK",
    "FontMissing",
    "GalleryItem",
    "Words",
    "check_evidence",
    "chinese_font",
    "draw_gallery",
    "draw_heatmap",
    "draw_overview",
    "gallery_items",
    "json_schema",
    "narrate",
    "published_schema",
    "read_mask",
    "read_outline",
    "read_report_json",
    "read_scan",
    "read_tiles_parquet",
    "read_tiles_table",
    "verdict_html",
    "write_differential_csv",
    "write_fields_csv",
    "write_findings_csv",
    "write_geojson",
    "write_geojson_by_field",
    "write_html",
    "write_maps_zarr",
    "write_mask",
    "write_pdf",
    "write_report_json",
    "write_scan",
    "write_tiles_geojson",
    "write_tiles_parquet",
]

_HOMES = {
    "FontMissing": "fonts",
    "GalleryItem": "gallery",
    "MASK": "mask",
    "Words": "language",
    "check_evidence": "evidence",
    "chinese_font": "fonts",
    "draw_gallery": "gallery",
    "draw_heatmap": "figures",
    "draw_overview": "figures",
    "gallery_items": "gallery",
    "json_schema": "documents",
    "narrate": "narrative",
    "published_schema": "documents",
    "read_mask": "mask",
    "read_outline": "maps",
    "read_report_json": "documents",
    "read_scan": "scan",
    "read_tiles_parquet": "tables",
    "read_tiles_table": "tables",
    "verdict_html": "html",
    "write_differential_csv": "tables",
    "write_fields_csv": "tables",
    "write_findings_csv": "tables",
    "write_geojson": "geojson",
    "write_geojson_by_field": "geojson",
    "write_html": "webpage",
    "write_maps_zarr": "maps",
    "write_mask": "mask",
    "write_pdf": "pdf",
    "write_report_json": "documents",
    "write_scan": "scan",
    "write_tiles_geojson": "geojson",
    "write_tiles_parquet": "tables",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'reports' has no attribute {name!r}")
    return getattr(import_module(f"reports.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
