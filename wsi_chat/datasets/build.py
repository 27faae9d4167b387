"""Builds instruction data: ShareGPT JSONL per split, ``dataset_info.json``, and the pictures as the model is sent them.

The same pictures, dialect and seed give the same bytes. No patient, slide or picture lies in two splits.

    OUT/dataset_info.json              what LLaMA-Factory and `wsi-chat train` read
    OUT/<name>_<split>.jsonl           {"messages": [...], "images": ["images/..."]}
    OUT/<name>_<split>.index.csv       line, kind, image, patient or slide, source of each line
    OUT/images/                        at the size that the dialect sends, so nothing is resized later
    OUT/build.json                     dialect, seed, counts
"""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from wsi_chat._version import __version__
from wsi_chat.atomic import write_text
from wsi_chat.datasets.annotated import Annotated
from wsi_chat.datasets.questions import IMAGE_MARK, KINDS, Exchange, Interviewer
from wsi_chat.datasets.rewrite import Rewriter
from wsi_chat.datasets.splits import DEFAULT, Member, assign, leaks
from wsi_chat.datasets.wordings import Names
from wsi_chat.dialects import Dialect
from wsi_chat.dialects.frame import fit
from wsi_chat.errors import OutputError, SettingError
from wsi_chat.picture import image_sha256

QUALITY = 95
WRITABLE = re.compile(r"[^.;:<>|\\\n\"{}\[\]]{1,80}")
"""Class names that every grammar of `wsi_chat.dialects.grammars` carries there and back."""
INDEX = ("line", "kind", "image", "group", "source")


@dataclass(frozen=True, slots=True)
class Built:
    """What was written: lines and pictures per split, lines per kind, and pictures about which nothing was asked."""

    out: Path
    lines: dict[str, int]
    pictures: dict[str, int]
    kinds: dict[str, int]
    silent: int
    rewritten: Mapping[str, Any] | None = None


def build_dataset(
    pictures: Sequence[Annotated],
    out: Path,
    *,
    dialect: Dialect,
    names: Names,
    name: str = "cytology",
    fractions: Mapping[str, float] | None = None,
    seed: int = 0,
    kinds: Sequence[str] = KINDS,
    per_kind: int = 2,
    most_boxes: int = 24,
    lossless: bool = False,
    overwrite: bool = False,
    rewriter: Rewriter | None = None,
) -> Built:
    """Write a data set of conversations about annotated pictures.

    Args:
        out: a new folder, or with ``overwrite`` one that this function wrote before.
        fractions: split -> share of the pictures (by whole groups). Default: `splits.DEFAULT`.
        kinds: which kinds of questions, of `questions.KINDS`.
        per_kind: at most so many questions of one kind per picture.
        most_boxes: classes with more objects in a picture are not asked to be located there.
        lossless: PNG in place of JPEG (quality 95, full chroma).
        rewriter: has a model say the wordings differently; what it changes in substance is not taken.

    Raises:
        SettingError: a name, kind or number is out of range, or the sources' own splits leak.
        SlideError: a picture cannot be read.
        OutputError: the folder is in use or cannot be written.
    """
    _check(name, kinds, per_kind, most_boxes, pictures)
    _make_room(out, overwrite)
    members, files, sizes = [], [], []
    taken: Counter[str] = Counter()
    for picture in pictures:
        image = picture.load()
        if image.size != picture.size:
            raise SettingError(f"{picture.name} is {image.size} px, its annotation says {picture.size}.")
        shown = fit(image, dialect.frame(image.size).sent)
        stem = re.sub(r"[^A-Za-z0-9._-]+", "_", picture.name)[:100] or "image"
        taken[stem.casefold()] += 1
        number = taken[stem.casefold()]
        file = f"images/{stem if number == 1 else f'{stem}__{number}'}.{'png' if lossless else 'jpg'}"
        _save(shown, out / file, lossless)
        members.append(Member(picture.name, picture.group, image_sha256(shown), picture.split))
        files.append(file)
        sizes.append(shown.size)
    shares = dict(fractions or DEFAULT)
    splits = assign(members, fractions=shares, seed=seed)
    _refuse_leaks(members, splits)
    order = list(dict.fromkeys([*shares, *sorted(set(splits))]))
    lines: dict[str, int] = {}
    counted: Counter[str] = Counter()
    with_questions: set[int] = set()
    for split in order:
        chosen = [i for i in range(len(members)) if splits[i] == split]
        rows = []
        texts = []
        conversations: dict[int, list[tuple[Exchange, ...]]] = {}
        for i in chosen:
            # drawn from the picture's own content, so that adding a picture changes no other's questions
            rng = np.random.default_rng([seed, int(members[i].sha256[:12], 16)])
            conversations[i] = Interviewer(pictures[i], dialect, names, rng, most=most_boxes).some(per_kind=per_kind)
        if rewriter is not None:
            reworded = rewriter.rewrite_all([(members[i].sha256, conversations[i]) for i in chosen])
            # two questions may have come out the same
            conversations = {i: list(dict.fromkeys(talks)) for i, talks in zip(chosen, reworded, strict=True)}
        for i in chosen:
            for kind, text in _lines(conversations[i], files[i], frozenset(kinds)):
                texts.append(text)
                rows.append((len(texts), kind, files[i], members[i].group, pictures[i].source))
                counted[kind] += 1
                with_questions.add(i)
        if texts:
            lines[split] = len(texts)
            write_text(out / f"{name}_{split}.jsonl", "".join(texts))
            write_text(out / f"{name}_{split}.index.csv", _table(rows))
    if not lines:
        raise SettingError("Nothing can be asked about these pictures.", hint="Give annotations, or more --kind.")
    write_text(out / "dataset_info.json", _dump({f"{name}_{split}": _info(f"{name}_{split}.jsonl") for split in lines}))
    picture_counts = {split: splits.count(split) for split in lines}
    built = Built(out, lines, picture_counts, dict(sorted(counted.items())), len(members) - len(with_questions),
                  rewriter.done.payload() if rewriter else None)  # fmt: skip
    write_text(out / "build.json", _dump(_about(built, dialect, names, seed, shares)))
    return built


def _check(name: str, kinds: Sequence[str], per_kind: int, most: int, pictures: Sequence[Annotated]) -> None:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name):
        raise SettingError(f"--name {name!r} is not a valid name for a data set.", hint="Use letters, digits, - and _.")
    strange = [kind for kind in kinds if kind not in KINDS]
    if strange:
        raise SettingError(f"there is no kind {strange[0]!r}.", hint=f"Choose one of: {', '.join(KINDS)}.")
    if per_kind < 1 or most < 1:
        raise SettingError(f"per_kind is {per_kind} and most_boxes {most}.", hint="Give at least 1 for each.")
    for label in sorted({found.label for picture in pictures for found in picture.boxes}):
        if not WRITABLE.fullmatch(label):
            raise SettingError(
                f"class {label!r} cannot be written in an answer.", hint="Give it another name with --rename OLD=NEW."
            )
    if not pictures:
        raise SettingError(
            "There are no pictures to ask about.", hint="Give --voc, --coco, --geojson or another source."
        )


def _make_room(out: Path, overwrite: bool) -> None:
    """An empty folder; what an earlier build left is removed, anything else is left alone and refused."""
    try:
        if out.is_dir() and any(out.iterdir()):
            if not overwrite or not (out / "build.json").is_file():
                raise OutputError(
                    f"{out} is not empty.",
                    hint="Choose a new folder, or --overwrite one that an earlier build made.",
                )
            for pattern in ("*.jsonl", "*.index.csv", "dataset_info.json"):
                for file in out.glob(pattern):
                    file.unlink()
            shutil.rmtree(out / "images", ignore_errors=True)
        (out / "images").mkdir(parents=True, exist_ok=True)
        # the mark of a build comes first, so that one that was stopped can be replaced too
        (out / "build.json").write_text('{"finished": false}\n', encoding="utf-8")
    except OSError as error:
        raise OutputError(f"{out} cannot be written: {error}.", hint="Choose another folder.") from error


def _save(image: Any, path: Path, lossless: bool) -> None:
    try:
        if lossless:
            image.save(path)
        else:
            image.save(path, quality=QUALITY, subsampling=0)
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error}.", hint="Free some space.") from error


def _refuse_leaks(members: Sequence[Member], splits: Sequence[str]) -> None:
    rows = [(split, "group", member.group) for member, split in zip(members, splits, strict=True)]
    rows += [(split, "picture", member.sha256) for member, split in zip(members, splits, strict=True)]
    found = leaks(rows)
    if found:
        raise SettingError(f"The splits leak: {found[0]}.", hint="Report this: the splitter failed.")


def _lines(talks: Sequence[tuple[Exchange, ...]], image: str, kinds: frozenset[str]) -> Iterator[tuple[str, str]]:
    """(kind, JSON line) of each conversation; those of several exchanges are of the kind ``multi-turn``."""
    for talk in talks:
        kind = "multi-turn" if len(talk) > 1 else talk[0].kind
        if kind in kinds:
            messages = []
            for number, exchange in enumerate(talk):
                mark = IMAGE_MARK if number == 0 else ""
                messages.append({"role": "user", "content": mark + exchange.question})
                messages.append({"role": "assistant", "content": exchange.answer})
            yield kind, json.dumps({"messages": messages, "images": [image]}, ensure_ascii=False) + "\n"


def _info(file: str) -> dict[str, Any]:
    return {
        "file_name": file,
        "formatting": "sharegpt",
        "columns": {"messages": "messages", "images": "images"},
        "tags": {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"},
    }


def _about(built: Built, dialect: Dialect, names: Names, seed: int, shares: Mapping[str, float]) -> dict[str, Any]:
    return {
        "wsi_chat": __version__,
        "dialect": json.loads(dialect.spec.model_dump_json()),
        "system": f"{names.system.code}/{names.system.version}",
        "seed": seed,
        "fractions": dict(shares),
        "lines": built.lines,
        "pictures": built.pictures,
        "kinds": built.kinds,
        "silent": built.silent,
        **({"rewritten": dict(built.rewritten)} if built.rewritten else {}),
        "finished": True,
    }


def _table(rows: Sequence[tuple[object, ...]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(INDEX)
    writer.writerows(rows)
    return text.getvalue()


def _dump(content: Any) -> str:
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"
