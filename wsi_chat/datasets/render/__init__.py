"""A synthetic renderer of liquid-based cervical preparations in Papanicolaou stain, for training and testing.

Deterministic by seed. `render_field` draws one annotated field; the criteria it follows are cited in `looks`.
"""

from wsi_chat.datasets.render.field import (
    ABNORMAL,
    LABELS,
    NORMAL,
    ORGANISMS,
    RECIPES,
    Cell,
    Field,
    render_field,
)

__all__ = ["ABNORMAL", "LABELS", "NORMAL", "ORGANISMS", "RECIPES", "Cell", "Field", "render_field"]
