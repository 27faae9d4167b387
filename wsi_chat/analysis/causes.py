"""Why tiles failed, in few lines: each cause once, with the number of tiles, the most frequent first."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

from wsi_chat.schema import TileVerdict

MOST_CAUSES = 5
FAILED = {
    "unreadable": "could not be read",
    "screen_failed": "gave no answer",
    "detail_failed": "was read only in part",
}
LONGEST = 500  # a server's complaint of 300 characters, its address and the way out


def causes_of_failure(tile_verdicts: Iterable[TileVerdict]) -> tuple[str, ...]:
    """``12 tiles: HTTP 503 from ...``, one line a cause; at most `MOST_CAUSES`, and then how many tiles had others.

    Numbers that differ from tile to tile (a place, a duration) do not make two causes of one.
    """
    first: dict[str, str] = {}
    counted: Counter[str] = Counter()
    for verdict in tile_verdicts:
        if verdict.status not in FAILED:
            continue
        cause = " ".join(verdict.error.split())[:LONGEST] or FAILED[verdict.status]
        key = f"{verdict.status} {re.sub(r'[0-9]+', '0', cause)}"
        first.setdefault(key, cause)
        counted[key] += 1
    lines = [f"{n} tile{'' if n == 1 else 's'}: {first[key]}" for key, n in counted.most_common(MOST_CAUSES)]
    rest = sum(counted.values()) - sum(n for _, n in counted.most_common(MOST_CAUSES))
    return (*lines, f"{rest} tile{'' if rest == 1 else 's'}: other causes, in tiles.parquet") if rest else tuple(lines)
