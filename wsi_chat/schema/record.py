"""The base of everything that is written down."""

from __future__ import annotations

import html
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from wsi_chat.remarks import VERBATIM, Remark
from wsi_chat.schema.geometry import Box


class Record(BaseModel):
    """Base of everything that is written down: immutable, no unknown keys, NaN refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    def _repr_html_(self) -> str:
        """Its fields as a table, for notebooks; long values are cut, and every text is escaped."""
        rows = "".join(
            f"<tr><td style='text-align:left;vertical-align:top;color:#5c6a70;padding:0 12px 0 0'>{name}</td>"
            f"<td style='text-align:left'>{html.escape(_in_short(value))}</td></tr>"
            for name, value in self
        )
        return (
            f"<div style='font:13px/1.45 system-ui,sans-serif'><b>{type(self).__name__}</b>"
            f"<table style='border-collapse:collapse'>{rows}</table></div>"
        )


CUT_AT = 160


def _in_short(value: Any) -> str:
    """A field's value on one line."""
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Box):
        return f"{value.x0:.0f} {value.y0:.0f} {value.x1:.0f} {value.y1:.0f} (level-0 px)"
    if isinstance(value, tuple) and value and isinstance(value[0], Record):
        return f"{len(value)} × {type(value[0]).__name__}"
    text = " ".join(", ".join(map(str, value)).split()) if isinstance(value, tuple) else " ".join(str(value).split())
    return text if len(text) <= CUT_AT else f"{text[:CUT_AT]}…"


NOTHING = Remark(VERBATIM, text="")
Probability = Annotated[float, Field(ge=0.0, le=1.0)]
