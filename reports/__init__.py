"""A slide's verdict in, documents out: narrative, report.json, GeoJSON, tables, maps, pictures, PDF, HTML.

Nothing here decides anything: every writer states what the `wsi_chat.schema.Report` holds, and what is missing
stays visibly missing. Files are written whole or not at all, and two runs of the same report give the same bytes.

Names are imported on first use, so that one document's writer loads no other's libraries.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from wsi_chat.lazy import on_first_use

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

__getattr__, __dir__ = on_first_use(
    __name__,
    __all__,
    {
        ".documents": ("json_schema", "published_schema", "read_report_json", "write_report_json"),
        ".evidence": ("check_evidence",),
        ".figures": ("draw_heatmap", "draw_overview"),
        ".fonts": ("FontMissing", "chinese_font"),
        ".gallery": ("GalleryItem", "draw_gallery", "gallery_items"),
        ".geojson": ("write_geojson", "write_geojson_by_field", "write_tiles_geojson"),
        ".html": ("verdict_html",),
        ".language": ("Words",),
        ".maps": ("read_outline", "write_maps_zarr"),
        ".mask": ("MASK", "read_mask", "write_mask"),
        ".narrative": ("narrate",),
        ".pdf": ("write_pdf",),
        ".scan": ("read_scan", "write_scan"),
        ".tables": (
            "read_tiles_parquet",
            "read_tiles_table",
            "write_differential_csv",
            "write_fields_csv",
            "write_findings_csv",
            "write_tiles_parquet",
        ),
        ".webpage": ("write_html",),
    },
)
