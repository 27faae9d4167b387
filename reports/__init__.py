"""A slide's verdict in, documents out: narrative, report.json, GeoJSON, tables, maps, pictures, PDF, HTML.

Nothing here decides anything: every writer states what the `wsi_chat.schema.Report` holds, and what is missing
stays visibly missing. Files are written whole or not at all, and two runs of the same report give the same bytes.
"""

from reports.documents import json_schema, published_schema, read_report_json, write_report_json
from reports.evidence import check_evidence
from reports.figures import draw_heatmap, draw_overview
from reports.gallery import GalleryItem, draw_gallery, gallery_items
from reports.geojson import write_geojson
from reports.html import verdict_html
from reports.maps import write_maps_zarr
from reports.narrative import narrate
from reports.pdf import write_pdf
from reports.tables import write_tiles_parquet

__all__ = [
    "GalleryItem",
    "check_evidence",
    "draw_gallery",
    "draw_heatmap",
    "draw_overview",
    "gallery_items",
    "json_schema",
    "narrate",
    "published_schema",
    "read_report_json",
    "verdict_html",
    "write_geojson",
    "write_maps_zarr",
    "write_pdf",
    "write_report_json",
    "write_tiles_parquet",
]
