"""Which pictures go to which split: whole patients, whole slides, and never the same pixels twice.

Pictures that share a group or their pixels are bound together; `leaks` says afterwards what lies in two splits.
"""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from wsi_chat.errors import SettingError

DEFAULT = {"train": 0.8, "val": 0.1, "test": 0.1}


@dataclass(frozen=True, slots=True)
class Member:
    """One picture: its group (patient or slide), the hash of its pixels, and the split its source wants, or ''."""

    name: str
    group: str
    sha256: str
    wanted: str = ""


def parse_fractions(text: str) -> dict[str, float]:
    """``train=0.8,val=0.1,test=0.1`` -> name: share, shares summing to 1.

    Raises:
        SettingError: not of that form, a share below 0, or a sum of 0.
    """
    shares: dict[str, float] = {}
    for part in text.split(","):
        found = re.fullmatch(r"\s*([A-Za-z][A-Za-z0-9_-]*)\s*=\s*([0-9]*\.?[0-9]+)\s*", part)
        if not found or found[1] in shares:
            raise SettingError(f"--split {text!r} is not a list of shares.", hint="Write train=0.8,val=0.1,test=0.1.")
        shares[found[1]] = float(found[2])
    total = sum(shares.values())
    if total <= 0:
        raise SettingError(f"--split {text!r} gives every split nothing.", hint="Write train=0.8,val=0.1,test=0.1.")
    return {name: share / total for name, share in shares.items()}


def bind(members: Sequence[Member]) -> list[list[int]]:
    """Indices of the members that must stay together, as sets in order of first appearance."""
    parent = list(range(len(members)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    for key in ("group", "sha256"):
        first: dict[str, int] = {}
        for i, member in enumerate(members):
            other = first.setdefault(getattr(member, key), i)
            a, b = root(i), root(other)
            parent[max(a, b)] = min(a, b)
    sets: dict[int, list[int]] = defaultdict(list)
    for i in range(len(members)):
        sets[root(i)].append(i)
    return list(sets.values())


def assign(members: Sequence[Member], *, fractions: Mapping[str, float], seed: int = 0) -> list[str]:
    """The split of each member. The same members, in any order, and seed give the same splits.

    Bound sets are taken in an order drawn by ``seed``, each into the split that lacks most of its share of
    pictures; a set with a split of its own keeps it.

    Raises:
        SettingError: a source wants two splits for pictures that are bound together.
    """
    chosen = [""] * len(members)
    sizes = dict.fromkeys(fractions, 0)
    drawn = []
    for indices in bind(members):
        wanted = {members[i].wanted: members[i] for i in indices if members[i].wanted}
        if len(wanted) > 1:
            (one, a), (two, b) = list(wanted.items())[:2]
            raise SettingError(
                f"{a.name} is in {one} and {b.name} in {two}, but they share a patient, a slide or their pixels.",
                hint="Move them into one split, or leave the splits to --split.",
            )
        if wanted:
            for i in indices:
                chosen[i] = next(iter(wanted))
            continue
        key = min(f"{members[i].group}\0{members[i].sha256}" for i in indices)
        drawn.append((hashlib.sha256(f"{seed}\0{key}".encode()).hexdigest(), indices))
    total = sum(len(indices) for _, indices in drawn)
    for _, indices in sorted(drawn):
        split = max(sizes, key=lambda name: fractions[name] * total - sizes[name])
        sizes[split] += len(indices)
        for i in indices:
            chosen[i] = split
    return chosen


def leaks(rows: Iterable[tuple[str, str, str]]) -> list[str]:
    """What lies in more than one split, as sentences; rows are (split, kind, value), e.g. ('val', 'patient', 'p7')."""
    where: dict[tuple[str, str], set[str]] = defaultdict(set)
    for split, kind, value in rows:
        where[kind, value].add(split)
    return [
        f"{kind} {value} is in {' and '.join(sorted(splits))}"
        for (kind, value), splits in sorted(where.items())
        if len(splits) > 1
    ]
