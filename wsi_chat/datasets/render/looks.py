"""The measurements of each kind of cell, drawn at random within published limits.

Sources: Nayar R, Wilbur DC (eds.), The Bethesda System for Reporting Cervical Cytology, 3rd ed. 2015
(Bethesda 2014): reference sizes (intermediate nucleus about 35 um2, superficial pyknotic nucleus 5 um,
parabasal nucleus about 50 um2), the criteria of ASC-US (nucleus 2.5-3x), LSIL (more than 3x, koilocytosis),
ASC-H (1.5-2.5x, small cells), HSIL, SCC and AGC, and of the benign mimics (repair, atrophy, inflammatory
halo). Ranges overlap on purpose: one measurement alone decides nothing, as in practice; contour and
chromatin have to be read with size and cytoplasm.
"""

from __future__ import annotations

from collections.abc import Callable

from wsi_chat.datasets.render.abnormal_looks import asch, ascus, glandular, hsil, lsil, scc
from wsi_chat.datasets.render.cells import Look
from wsi_chat.datasets.render.chance import Rng
from wsi_chat.datasets.render.normal_looks import (
    atrophic,
    endocervical,
    intermediate,
    metaplastic,
    naked,
    parabasal,
    reactive,
    superficial,
)

LOOKS: dict[str, Callable[[Rng], Look]] = {
    "superficial": superficial,
    "intermediate": intermediate,
    "reactive": reactive,
    "parabasal": parabasal,
    "atrophic": atrophic,
    "metaplastic": metaplastic,
    "endocervical": endocervical,
    "ascus": ascus,
    "lsil": lsil,
    "asch": asch,
    "hsil": hsil,
    "scc": scc,
    "glandular": glandular,
    "naked": naked,
}
