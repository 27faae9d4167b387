"""How the photographs of a specimen are named: a text file of this suffix, one path a line."""

from __future__ import annotations

LISTING = ".fields"
