"""Values that several records and writers share."""

from __future__ import annotations

SCHEMA_VERSION = "1.3"
ASSUMED_SCALE = "assumed"
"""Source of an mpp that nobody stated: a photograph was read pixel for pixel at the scale that suits the model."""
DISCLAIMER = "Research use only. Not a diagnosis; not for clinical decisions."
"""Stands on every answer, report and conversation."""

ORIGIN = "wsi-chat.origin"
"""The slide property that says where its pixels come from: ``rendered``, or absent."""
RENDERED_NOTE = "wsi-chat: rendered, not a specimen"
"""What the renderer writes into a file's description (TIFF ImageDescription, OME-Zarr attribute, PNG Description)."""
