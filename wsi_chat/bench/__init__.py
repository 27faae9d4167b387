"""How fast this machine analyzes a slide with a model, stage by stage, beside what each stage could do at most."""

from __future__ import annotations

from wsi_chat.bench.measure import measure
from wsi_chat.bench.result import Bench, Stage

__all__ = ["Bench", "Stage", "measure"]
