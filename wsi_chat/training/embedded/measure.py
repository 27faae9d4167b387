"""Measures a checkpoint for its model card: `python -m wsi_chat.training.embedded.measure --model DIR --out FOLDER`.

Writes FOLDER/measured.json, the same as tables for the card (tables.md, printed too) and a contact sheet of the worst
misses. Rendered fields are of seeds that no training run sees; BCCD's test list is given with `--bccd`, the test split
of the PBC pictures with `--pbc`, a histology slide with `--histology`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from sklearn.metrics import balanced_accuracy_score

from aggregators.calibration import calibration_error
from tilers import open_slide
from wsi_chat.evaluation.grounding import GroundingCase, score_grounding
from wsi_chat.schema import Box, LabelledBox
from wsi_chat.training.embedded import wording
from wsi_chat.training.embedded.evaluate import Speaker, ask_truths, exact, load, parse_boxes
from wsi_chat.training.embedded.fields import HELD_OUT_SEED, SIZE, U8, Bccd, Sample, classes_of, held_out
from wsi_chat.training.embedded.outside import outside
from wsi_chat.training.embedded.pbc import Pbc
from wsi_chat.training.embedded.questions import category, is_blood, members, refer, screen
from wsi_chat.training.embedded.scores import auc, matches
from wsi_chat.training.embedded.specificity import SPECIFICITIES, hard_tiles, wide_fields
from wsi_chat.training.embedded.typed import FIVE, in_fields, singles

ABSENT = 0.15
"""Share of the absent classes that are asked for as well."""
SHEET_TILES = 18


@dataclass(frozen=True, slots=True)
class Miss:
    """A grounding question and its boxes; `wrong` counts cells missed and boxes on nothing."""

    image: U8
    name: str
    truth: list[tuple[str, list[float]]]
    found: list[tuple[str, list[float]]]
    wrong: int


def chances(speaker: Speaker, samples: Sequence[Sample]) -> NDArray[np.float64]:
    """p(positive) of the screening question, the mean over both orders of its options; (n,)."""
    blood = is_blood(samples[0])
    topic = wording.BLOOD_TOPIC if blood else wording.SCREEN_TOPIC
    negative, positive = ("no", "yes") if blood else ("normal", "abnormal")
    images = [sample.image for sample in samples]
    total = np.zeros(len(samples))
    for options in ((negative, positive), (positive, negative)):
        prompt = wording.MCQ.format(topic=topic, options=f"A.{options[0]}, B.{options[1]}")
        total += speaker.letters(images, [prompt] * len(images), 2)[:, options.index(positive)]
    return np.asarray(total / 2)


def grounding(speaker: Speaker, samples: Sequence[Sample]) -> tuple[dict[str, Any], list[Miss]]:
    """Scores of all grounding questions about the samples, and every answer that is not right."""
    blood = is_blood(samples[0])
    names = classes_of(samples[0].domain) if blood else (*wording.CERVIX, wording.ABNORMAL)
    asked = ask_truths(list(samples), names, absent=ABSENT)
    answers = speaker.answer([s.image for s, _ in asked], [wording.GROUND.format(name=name) for _, name in asked])
    cases, misses = [], []
    for (sample, name), text in zip(asked, answers, strict=True):
        found = [(name, box) for _, box in parse_boxes(text)]
        here = [list(map(float, box)) for label, box in zip(sample.labels, sample.boxes, strict=True)
                if label in members(name)]  # fmt: skip
        truth = [(name, box) for box in here]
        cases.append(GroundingCase(str(id(sample)), name, labelled(found), labelled(truth)))
        wrong = len(found) + len(truth) - 2 * matches(found, truth)
        if wrong:
            misses.append(Miss(sample.image, name, truth, found, wrong))
    scores = score_grounding(cases, resamples=500)
    classes = [name for name in names if name != wording.ABNORMAL]
    named = score_grounding([case for case in cases if case.target in classes], resamples=500)
    main = next(one for one in named.at_iou if one.iou == 0.5)
    return {
        "f1": main.f1.model_dump(),
        "precision": main.precision.value,
        "recall": main.recall.value,
        "f1_iou30": next(one.f1.value for one in named.at_iou if one.iou == 0.3),
        "boxes": main.truth,
        "by_size": {name: [one.recall.value, one.truth] for name, one in named.by_size.items()},
        "by_class": {name: [one.f1.value, one.truth] for name, one in scores.by_class.items()},
        "absent_denied": 1 - (scores.negatives.false_alarm_rate.value or 0.0),
        "absent_asked": scores.negatives.questions,
    }, misses


def labelled(boxes: Sequence[tuple[str, Sequence[float]]]) -> tuple[LabelledBox, ...]:
    """Boxes of this recipe as the program's own; those without area are left out."""
    return tuple(LabelledBox(name, Box(*map(float, box))) for name, box in boxes if box[2] > box[0] and box[3] > box[1])


def regions(speaker: Speaker, samples: Sequence[Sample], per_class: int = 60) -> dict[str, Any]:
    """Share of the regions of each epithelial class that are named rightly, and the mean of these shares."""
    rng = np.random.default_rng(3)
    asked: dict[str, list[tuple[Sample, int]]] = {name: [] for name in wording.EPITHELIAL}
    for sample in samples:
        for i, label in enumerate(sample.labels):
            if label in asked and len(asked[label]) < per_class:
                asked[label].append((sample, i))
    shares = {
        name: exact(speaker, [(sample, refer(sample, i, rng)) for sample, i in cells])
        for name, cells in asked.items()
        if cells
    }
    counts = {name: len(cells) for name, cells in asked.items()}
    return {"balanced_accuracy": float(np.mean(list(shares.values()))), "by_class": shares, "cells": counts}


def strangers(speaker: Speaker, images: Sequence[U8]) -> dict[str, float]:
    """How often fields without cells ring: abnormal at 0.5, a box for `abnormal`; and how often the model says so."""
    samples = [Sample(image, (), np.zeros((0, 4), dtype=np.float32), False, "cervix") for image in images]
    rng = np.random.default_rng(5)
    third = exact(speaker, [(sample, screen(sample, rng, third=True)) for sample in samples])
    found = speaker.answer(list(images), [wording.GROUND.format(name=wording.ABNORMAL)] * len(images))
    told = speaker.answer(list(images), [wording.DESCRIBE] * len(images), limit=96)
    return {
        "fields": len(images),
        "called_abnormal": float((chances(speaker, samples) >= 0.5).mean()),
        "given_a_box": float(np.mean([bool(parse_boxes(text)) for text in found])),
        "says_no_cells_when_offered": third,
        "describes_no_cells": float(np.mean(["no cells" in text.lower() for text in told])),
    }


def histology_tiles(path: Path) -> list[U8]:
    """Every 256 px tile of a slide at 0.5 um/px that is not bare glass."""

    with open_slide(path) as slide:
        width, height = slide.size
        side = round(SIZE * 0.5 / slide.require_mpp())
        tiles = []
        for y in range(0, height - side + 1, side):
            for x in range(0, width - side + 1, side):
                pixels = Image.fromarray(np.asarray(slide.read_region(x, y, 0, side, side)))
                tile = np.asarray(pixels.convert("RGB").resize((SIZE, SIZE), Image.Resampling.BOX), dtype=np.uint8)
                if tile.std() > 12:
                    tiles.append(tile)
    return tiles


def sheet(misses: Sequence[Miss], path: Path) -> None:
    """The worst misses, six to a row: true boxes green, the model's red, the class asked for above."""
    worst = sorted(misses, key=lambda miss: -miss.wrong)[:SHEET_TILES]
    tiles = []
    for miss in worst:
        tile = np.ascontiguousarray(miss.image[..., ::-1])
        for boxes, colour in ((miss.truth, (40, 160, 0)), (miss.found, (30, 30, 230))):
            for _, (x0, y0, x1, y1) in boxes:
                cv2.rectangle(tile, (round(x0), round(y0)), (round(x1), round(y1)), colour, 2)
        bar = np.full((22, SIZE, 3), 255, dtype=np.uint8)
        cv2.putText(bar, miss.name, (4, 16), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (0, 0, 0), 1, cv2.LINE_AA)
        tiles.append(np.pad(np.concatenate([bar, tile]), ((2, 2), (2, 2), (0, 0)), constant_values=255))
    rows = [np.concatenate(tiles[i : i + 6], axis=1) for i in range(0, len(tiles) - len(tiles) % 6, 6)]
    if rows:
        cv2.imwrite(str(path), np.concatenate(rows), [cv2.IMWRITE_JPEG_QUALITY, 82])


def measure(
    folder: Path, *, fields: int, bccd: Path | None, pbc: Path | None, histology: Path | None, tiles: int = 0
) -> tuple[dict[str, Any], dict[str, list[Miss]]]:
    """All figures of the model card, and the misses by domain. `tiles` is how many hard normal tiles are looked at."""
    model, tokenizer = load(folder)
    model.to(torch.get_default_device())
    speaker = Speaker(model, tokenizer)
    rng = np.random.default_rng(1)
    cervix = held_out(fields)
    truth = [sample.abnormal for sample in cervix]
    p = chances(speaker, cervix)
    misses: dict[str, list[Miss]] = {}
    boxes, misses["cervix"] = grounding(speaker, cervix)
    report: dict[str, Any] = {
        "cervix": {
            "fields": fields,
            "abnormal_share": float(np.mean(truth)),
            "auc": auc(p.tolist(), truth),
            "balanced_accuracy": float(balanced_accuracy_score(truth, p >= 0.5)),
            "calibration_error": calibration_error(p, truth),
            "ground": boxes,
            "regions": regions(speaker, held_out(3 * fields, first_seed=HELD_OUT_SEED + 10_000)),
            "category_accuracy": exact(speaker, [(s, category(s, rng)) for s in cervix]),
            "wide": wide_fields(partial(chances, speaker), 4 * fields),
        }
    }
    if tiles:
        report["tiles"] = hard_tiles(partial(chances, speaker), negatives=tiles, positives=max(100, tiles // 5))
    if bccd is not None:
        blood = Bccd(bccd, ("test",)).tiles()
        said = chances(speaker, blood)
        white = ["wbc" in sample.labels for sample in blood]
        scores, misses["blood"] = grounding(speaker, blood)
        report["blood"] = {"views": len(blood), "auc": auc(said.tolist(), white), "ground": scores}
    if pbc is not None:
        held = Pbc(pbc, "test")
        views = held.tiles()
        known = [view for view in views if view.domain == "blood-typed"]
        scores, misses["typed"] = grounding(speaker, known)
        report["typed"] = {
            "fields": len(views),
            "ground": scores,
            "regions": in_fields(speaker, known),
            "singles": singles(speaker, held),
        }
    rng = np.random.default_rng(HELD_OUT_SEED)
    report["strangers"] = {
        "drawn": strangers(speaker, [outside(rng).image for _ in range(60)]),
        "empty": strangers(speaker, [s.image for s in empty_fields(60)]),
    }
    if histology is not None:
        report["strangers"]["histology"] = strangers(speaker, histology_tiles(histology))
    return report, misses


def empty_fields(count: int) -> list[Sample]:
    """Rendered fields of the recipe that holds no cell, of seeds never trained on."""
    from wsi_chat.datasets.render import render_field

    fields = [render_field(HELD_OUT_SEED + 50_000 + i, recipe="empty") for i in range(count)]
    none = np.zeros((0, 4), dtype=np.float32)
    return [Sample(field.image, (), none, False, "cervix") for field in fields if not field.cells]


def tables(report: dict[str, Any]) -> str:
    """The figures as Markdown, with the aims beside them."""
    cervix, blood = report["cervix"], report.get("blood")
    ground, score = cervix["ground"], cervix["ground"]["f1"]
    interval = score["interval"]
    spread = f" ({interval['low']:.3f}-{interval['high']:.3f})" if interval else ""
    lines = [
        f"| rendered cervix, {cervix['fields']} held-out fields | measured | aim |",
        "|---|---|---|",
        f"| normal / abnormal field, AUC | {cervix['auc']:.3f} | .995 |",
        f"| balanced accuracy at 0.5 | {cervix['balanced_accuracy']:.3f} | |",
        f"| expected calibration error of p(abnormal) | {cervix['calibration_error']:.3f} | .05 |",
        f"| grounding F1 at IoU 0.5 over the classes | {_share(score['value'])}{spread} | .90 |",
        f"| precision / recall | {_share(ground['precision'])} / {_share(ground['recall'])} | |",
        f"| F1 at IoU 0.3 | {_share(ground['f1_iou30'])} | |",
        *(f"| recall, cells {name} ({n} boxes) | {_share(v)} | |" for name, (v, n) in ground["by_size"].items()),
        f"| absent class denied ({ground['absent_asked']} questions) | {ground['absent_denied']:.3f} | |",
        f"| 6-way class of a region, balanced accuracy | {cervix['regions']['balanced_accuracy']:.3f} | .94 |",
        f"| category, three to six options | {cervix['category_accuracy']:.3f} | |",
        "",
        "F1 by class: " + _classes(ground["by_class"]) + ".",
        "Region named rightly: "
        + ", ".join(f"{name} {share:.2f}" for name, share in cervix["regions"]["by_class"].items())
        + ".",
    ]
    if blood:
        aims = {"wbc": ".99", "rbc": ".75", "platelet": ".88"}
        lines += ["", f"| BCCD test list, {blood['views']} views | F1 at IoU 0.5 | aim |", "|---|---|---|"]
        lines += [f"| {name} ({n} boxes) | {_share(v)} | {aims[name]} |"
                  for name, (v, n) in blood["ground"]["by_class"].items()]  # fmt: skip
        lines += [f"| white cell present, AUC | {blood['auc']:.3f} | |"]
    lines += [*_tile_rows(report), *_typed_rows(report)]
    lines += ["", "| fields without cells | called abnormal | given a box | says so when offered | describes none |",
              "|---|---|---|---|---|"]  # fmt: skip
    lines += [
        f"| {name} ({row['fields']:.0f}) | {row['called_abnormal']:.2f} | {row['given_a_box']:.2f} | "
        f"{row['says_no_cells_when_offered']:.2f} | {row['describes_no_cells']:.2f} |"
        for name, row in report["strangers"].items()
    ]
    return "\n".join(lines) + "\n"


def _tile_rows(report: dict[str, Any]) -> list[str]:
    """The table of slide tiles, if they were looked at."""
    tiles = report.get("tiles")
    if tiles is None:
        return []
    rows = [
        "",
        f"| tiles of rendered slides: {tiles['hard_normal_tiles']} hard normal, {tiles['abnormal_tiles']} abnormal "
        "| measured | aim |",
        "|---|---|---|",
        f"| AUC | {tiles['auc']:.4f} | |",
        f"| called abnormal at 0.5: hard normal / abnormal | {tiles['called_abnormal_at_half']:.4f} / "
        f"{tiles['found_at_half']:.3f} | |",
    ]
    for specificity, aim in zip(SPECIFICITIES, (".90", ""), strict=True):
        found = tiles[f"at_{specificity:g}"]
        rows.append(
            f"| sensitivity at {specificity:.1%} specificity | {found['sensitivity']:.3f} "
            f"({found['low']:.3f}-{found['high']:.3f}) | {aim} |"
        )
    wide = report["cervix"]["wide"]
    return [
        *rows,
        f"| {wide['fields']} fields of other looks (smears, stains, magnifications), AUC | {wide['auc']:.3f} | |",
    ]


def _typed_rows(report: dict[str, Any]) -> list[str]:
    """The tables of typed blood smears, if they were looked at."""
    typed = report.get("typed")
    if typed is None:
        return []
    ground, single = typed["ground"]["by_class"], typed["singles"]
    lines = [
        "",
        f"| PBC test split, {typed['fields']} fields | F1 at IoU 0.5 | region named rightly |",
        "|---|---|---|",
    ]
    named = typed["regions"]["by_type"]
    lines += [
        f"| {name} ({n} boxes) | {_share(v)} | {_share(named.get(name))} |" for name, (v, n) in ground.items() if n
    ]
    mean = np.mean([ground[name][0] or 0.0 for name in FIVE if name in ground])
    lines += [f"| mean of the five types | {mean:.3f} | {typed['regions']['balanced_accuracy']:.3f} |"]
    lines += ["", "| PBC test split, single cut-outs | named rightly |", "|---|---|"]
    lines += [f"| {name} | {share:.3f} |" for name, share in single["by_type"].items()]
    return [*lines, f"| balanced accuracy of the seven | {single['balanced_accuracy']:.3f} |"]


def _share(value: float | None) -> str:
    return "none" if value is None else f"{value:.3f}"


def _classes(scores: dict[str, list[float | None]]) -> str:
    return ", ".join(f"{name} {_share(value)[:4]}" for name, (value, _) in scores.items())


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m wsi_chat.training.embedded.measure", description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--bccd", type=Path)
    parser.add_argument("--pbc", type=Path)
    parser.add_argument("--histology", type=Path)
    parser.add_argument("--fields", type=int, default=300)
    parser.add_argument(
        "--tiles", type=int, default=3000, help="hard normal tiles, for sensitivity at 99.9 %%; 0: none"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    torch.set_default_device(options.device)
    torch.manual_seed(0)
    report, misses = measure(
        options.model,
        fields=options.fields,
        bccd=options.bccd,
        pbc=options.pbc,
        histology=options.histology,
        tiles=options.tiles,
    )
    options.out.mkdir(parents=True, exist_ok=True)
    text = json.dumps(report, indent=1)
    (options.out / "measured.json").write_text(text + "\n")
    for domain, missed in misses.items():
        sheet(missed, options.out / f"misses_{domain}.jpg")
    (options.out / "tables.md").write_text(tables(report))
    print(tables(report))


if __name__ == "__main__":
    main()
