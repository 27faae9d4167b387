"""Kinds of damage that know nothing of a format but that it is bytes, or a tree of JSON or YAML values."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Iterator
from typing import Any

WORDS = [0, 1, 2, 3, 7, 8, 255, 256, 65535, 65536, 2**31 - 1, 2**31, 2**32 - 1]
BYTE_KINDS = ("flip", "flip", "flip", "set", "cut off", "cut off", "cut out", "repeat", "swap", "insert", "ff",
              "append", "word", "word")  # fmt: skip
SECTORS = (512, 4096, 65536)


def damaged_bytes(data: bytes, rng: random.Random) -> tuple[bytes, str]:
    """One of a dozen kinds of damage; returns the bytes and what was done."""
    n = len(data)
    buf = bytearray(data)
    kind = rng.choice(BYTE_KINDS)
    if n < 8 and kind not in ("insert", "append", "cut off"):
        kind = "insert"
    at = rng.randrange(max(1, n))
    size = min(n - at, rng.choice([1, 2, 4, 16, 64, 512, 4096]))
    if kind == "flip":
        for _ in range(rng.choice([1, 1, 2, 4, 16, 64])):
            buf[rng.randrange(n)] ^= 1 << rng.randrange(8)
    elif kind == "set":
        for _ in range(rng.choice([1, 2, 8])):
            buf[rng.randrange(n)] = rng.choice([0, 0x7F, 0x80, 0xFF, 0x0A, 0x22, 0x5C])
    elif kind == "cut off":
        del buf[at:]
    elif kind == "cut out":
        del buf[at : at + size]
    elif kind == "repeat":
        buf[at:at] = buf[at : at + size] * rng.choice([1, 2, 50])
    elif kind == "swap":
        other = rng.randrange(n)
        one, two = bytes(buf[at : at + size]), bytes(buf[other : other + size])
        buf[at : at + len(two)] = two
        buf[other : other + len(one)] = one
    elif kind == "insert":
        buf[at:at] = rng.randbytes(size)
    elif kind == "ff":
        buf[at : at + size] = b"\xff" * size
    elif kind == "append":
        buf += rng.randbytes(rng.choice([1, 100, 10_000]))
    elif kind == "word":
        width = rng.choice([2, 4])
        at = rng.randrange(max(1, n - width))
        value = rng.choice(WORDS) % 2 ** (8 * width)
        buf[at : at + width] = value.to_bytes(width, rng.choice(["little", "big"]))
    return bytes(buf), f"{kind} at {at}"


def lost_sectors(data: bytes, rng: random.Random) -> tuple[bytes, str]:
    """A run of zeros where a disk lost a sector, a page or a block."""
    size = rng.choice(SECTORS)
    at = rng.randrange(max(1, len(data) - size)) // 512 * 512
    return data[:at] + bytes(min(size, len(data) - at)) + data[at + size :], f"{size} zeros at {at}"


# -------------------------------------------------------------------------------------------- trees

ODD: list[Any] = [
    None, True, False, 0, -1, 1, 0.5, 1e308, -1e308, float("nan"), float("inf"), 10**30, "", " ", "0", "-1", "nan",
    "x" * 5000, "\x00", "\x1b[31mred\x1b[0m", "\ud800", "../../x", "/etc/passwd", "=cmd|' /C calc'!A0",
    "<script>alert(1)</script>", "#set page(fill: red)", [], {}, [[]], [None], {"": None}, "😀" * 50, "\u202eabc",
    "1" * 400, 2**63, -(2**63), "{label}", "{0.__class__}", "%s%n", ["a"] * 1000,
]  # fmt: skip
Place = tuple[Any, ...]


def places(tree: Any, at: Place = ()) -> Iterator[Place]:
    """Every place in a tree of dicts and lists."""
    yield at
    if isinstance(tree, dict):
        for key in tree:
            yield from places(tree[key], (*at, key))
    elif isinstance(tree, list):
        for i in range(len(tree)):
            yield from places(tree[i], (*at, i))


def damaged_tree(tree: Any, rng: random.Random) -> tuple[Any, str]:
    """The tree with one or two places changed, removed, added, doubled or nested; and what was done."""
    tree = copy.deepcopy(tree)
    said = []
    for _ in range(rng.choice([1, 1, 1, 2])):
        place = rng.choice(list(places(tree)))
        kind = rng.choice(["value", "value", "value", "remove", "add", "rename", "type", "deep", "number"])
        said.append(f"{kind} {'.'.join(map(str, place))[:80] or '(root)'}")
        if not place:
            if kind in ("value", "type"):
                return copy.deepcopy(rng.choice(ODD)), "; ".join(said)
            if isinstance(tree, dict):
                tree[rng.choice(["x", "", "__class__", "extends", "path"])] = copy.deepcopy(rng.choice(ODD))
            elif isinstance(tree, list):
                tree.append(copy.deepcopy(rng.choice(ODD)))
            continue
        holder = tree
        for step in place[:-1]:
            holder = holder[step]
        _damage_child(holder, place[-1], kind, rng)
        if kind == "deep":
            break  # it may now be deeper than Python walks
    return tree, "; ".join(said)


def _damage_child(holder: Any, key: Any, kind: str, rng: random.Random) -> None:
    old = holder[key]
    odd = copy.deepcopy(rng.choice(ODD))
    if kind == "remove":
        del holder[key]
    elif kind == "add" and isinstance(old, dict):
        old[rng.choice(["x", "", "y z"])] = odd
    elif kind == "add" and isinstance(old, list):
        old.append(copy.deepcopy(old[0]) if old and rng.random() < 0.5 else odd)
    elif kind == "add":
        holder[key] = [old, old]
    elif kind == "rename" and isinstance(holder, dict):
        holder[rng.choice(["x", "", str(key).upper(), f"{key} "])] = holder.pop(key)
    elif kind == "type":
        holder[key] = list(old.values()) if isinstance(old, dict) else {str(old)[:50]: old}
    elif kind == "deep":
        nest = old
        for _ in range(rng.choice([3, 60, 3000])):
            nest = [nest]
        holder[key] = nest
    elif kind == "number" and isinstance(old, int | float) and not isinstance(old, bool):
        holder[key] = rng.choice([-old, old * 1000, old + 1, old - 1, old / 3, 0, 2**40, 1e-12])
    else:
        holder[key] = odd


def as_json(tree: Any) -> bytes:
    """JSON, NaN and lone surrogates included; what nests deeper than Python walks is written by hand."""
    try:
        return json.dumps(tree).encode()
    except RecursionError:
        return b'{"x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    except (TypeError, ValueError):
        return json.dumps(tree, default=str, skipkeys=True).encode()
