"""Measures a checkpoint by its own generated answers: grounding F1, screening AUC, region classes, choice accuracy.

`python -m wsi_chat.training.embedded.evaluate --model DIR [--bccd DIR]` prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from wsi_chat.training.embedded import wording
from wsi_chat.training.embedded.architecture import MERGE, PATCH_PX
from wsi_chat.training.embedded.batched import block_order, here
from wsi_chat.training.embedded.fields import SIZE, Bccd, Sample, classes_of, held_out
from wsi_chat.training.embedded.packing import Packer
from wsi_chat.training.embedded.questions import Question, category, is_blood, members, refer, screen
from wsi_chat.training.embedded.scores import auc, f1, matches
from wsi_chat.training.embedded.tokenizer import token_id

BOX = re.compile(r"([a-z]+) \d+ is located at <region>(\d+) (\d+) (\d+) (\d+)</region>")


def parse_boxes(text: str) -> list[tuple[str, list[float]]]:
    """Complete boxes of a grounding answer."""
    return [(m[1], [float(v) for v in m.groups()[1:]]) for m in BOX.finditer(text)]


class Speaker:
    """Generates answers with the stock model, left-padded batches, greedy."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.packer = Packer(tokenizer)
        grid = SIZE // PATCH_PX
        self.order = block_order(grid, MERGE)

    def pixels(self, images: list[np.ndarray]) -> Tensor:
        """`pixel_values` as Qwen's processor lays them out, both temporal slices the same frame."""
        grid, patch = SIZE // PATCH_PX, PATCH_PX
        x = here(torch.from_numpy(np.stack(images))).float().div(127.5).sub(1)
        x = x.view(len(images), grid, patch, grid, patch, 3).permute(0, 1, 3, 5, 2, 4)
        x = x[:, self.order[0], self.order[1]]
        x = x.unsqueeze(3).expand(-1, -1, -1, 2, -1, -1)
        return x.reshape(len(images) * grid * grid, -1)

    def inputs(self, images: list[np.ndarray], prompts: list[str]) -> dict[str, Tensor]:
        """Model inputs of single-turn queries."""
        lines = [self.packer.prompt(text) for text in prompts]
        length = max(map(len, lines))
        ids = torch.full((len(lines), length), self.packer.pad)
        mask = torch.zeros((len(lines), length), dtype=torch.long)
        for i, line in enumerate(lines):
            ids[i, length - len(line) :] = torch.tensor(line)
            mask[i, length - len(line) :] = 1
        grid = SIZE // PATCH_PX
        image_token = self.model.config.image_token_id
        return {
            "input_ids": ids,
            "attention_mask": mask,
            "pixel_values": self.pixels(images),
            "image_grid_thw": torch.tensor([[1, grid, grid]] * len(images)),
            "mm_token_type_ids": (ids == image_token).long(),
        }

    @torch.no_grad()
    def answer(self, images: list[np.ndarray], prompts: list[str], *, limit: int = 256) -> list[str]:
        """Greedy answers, special tokens left out."""
        batch = 24 if self.model.device.type == "cpu" else 192
        texts: list[str] = []
        for start in range(0, len(prompts), batch):
            part = self.inputs(images[start : start + batch], prompts[start : start + batch])
            out = self.model.generate(**part, max_new_tokens=limit, do_sample=False)
            texts += self.tokenizer.batch_decode(out[:, part["input_ids"].shape[1] :], skip_special_tokens=True)
        return texts

    @torch.no_grad()
    def letters(self, images: list[np.ndarray], prompts: list[str], count: int) -> np.ndarray:
        """(n, count) probabilities of the first option letters as the first token of the answer."""
        ids = [token_id(self.tokenizer, letter) for letter in wording.LETTERS[:count]]
        rows = []
        batch = 32 if self.model.device.type == "cpu" else 192
        for start in range(0, len(prompts), batch):
            part = self.inputs(images[start : start + batch], prompts[start : start + batch])
            logits = self.model(**part, logits_to_keep=1).logits[:, -1, ids]
            rows.append(logits.float().softmax(-1).cpu().numpy())
        return np.concatenate(rows)


def ask_truths(samples: list[Sample], names: tuple[str, ...], *, absent: float = 0.0) -> list[tuple[Sample, str]]:
    """Which class to ask of which field: every present one, and a share of the absent ones."""
    rng = np.random.default_rng(0)
    return [
        (sample, name)
        for sample in samples
        for name in names
        if any(label in members(name) for label in sample.labels) or rng.random() < absent
    ]


def grounding(speaker: Speaker, asked: list[tuple[Sample, str]]) -> dict[str, Any]:
    """F1 at IoU 0.5 over all boxes, per class recall, and how the answers to absent classes fare."""
    answers = speaker.answer([s.image for s, _ in asked], [wording.GROUND.format(name=n) for _, n in asked])
    hit = loose = found = truth = denied = absent = 0
    classes: dict[str, list[int]] = {}
    for (sample, name), text in zip(asked, answers, strict=True):
        real = [(name, list(b)) for label, b in zip(sample.labels, sample.boxes, strict=True) if label in members(name)]
        said = parse_boxes(text)
        good = matches(said, real)
        hit, found, truth = hit + good, found + len(said), truth + len(real)
        loose += matches(said, real, 0.3)
        row = classes.setdefault(name, [0, 0, 0])
        row[0], row[1], row[2] = row[0] + good, row[1] + len(said), row[2] + len(real)
        if not real:
            absent += 1
            denied += not said
    return {
        "f1": f1(hit, found, truth),
        "precision": hit / max(found, 1),
        "recall": hit / max(truth, 1),
        "f1_iou30": f1(loose, found, truth),
        "boxes": truth,
        "absent_denied": denied / absent if absent else float("nan"),
        "classes": {name: round(f1(*row), 3) for name, row in classes.items()},
    }


def screening(speaker: Speaker, samples: list[Sample]) -> dict[str, float]:
    """AUC and balanced accuracy of the yes/no question; the mean over both option orders is the score."""
    scores = np.zeros(len(samples))
    blood = is_blood(samples[0])
    truth = [any(label in members("wbc") for label in s.labels) if blood else s.abnormal for s in samples]
    negative, positive = ("no", "yes") if blood else ("normal", "abnormal")
    topic = wording.BLOOD_TOPIC if blood else wording.SCREEN_TOPIC
    for order in ((negative, positive), (positive, negative)):
        listed = f"A.{order[0]}, B.{order[1]}"
        prompt = wording.MCQ.format(topic=topic, options=listed)
        p = speaker.letters([s.image for s in samples], [prompt] * len(samples), 2)
        scores += p[:, order.index(positive)] / 2
    flags = np.array(truth)
    right = [(scores[flags] >= 0.5).mean() if flags.any() else np.nan, (scores[~flags] < 0.5).mean()]
    return {"auc": auc(scores.tolist(), truth), "balanced": float(np.mean(right)), "positives": float(flags.mean())}


def exact(speaker: Speaker, asked: list[tuple[Sample, Question]]) -> float:
    """Share of answers that equal the truth."""
    answers = speaker.answer([s.image for s, _ in asked], [q.prompt for _, q in asked], limit=48)
    return float(np.mean([a.strip() == q.answer for a, (_, q) in zip(answers, asked, strict=True)]))


def examine(model: Any, tokenizer: Any, samples: list[Sample], *, quick: bool = False) -> dict[str, Any]:
    """All scores on fields of one domain; `quick` leaves out what is slow."""
    was_training = model.training
    model.eval()
    speaker = Speaker(model, tokenizer)
    rng = np.random.default_rng(1)
    blood = is_blood(samples[0])
    names = classes_of(samples[0].domain) if blood else (*wording.CERVIX, wording.ABNORMAL)
    asked = ask_truths(samples, names, absent=0.0 if quick else 0.15)
    report: dict[str, Any] = {"fields": len(samples), "ground": grounding(speaker, asked)}
    report["screen"] = screening(speaker, samples)
    pointed = [(s, refer(s, int(rng.integers(len(s.labels))), rng)) for s in samples if s.labels]
    report["refer_accuracy"] = exact(speaker, pointed)
    if not quick and not blood:
        report["category_accuracy"] = exact(speaker, [(s, category(s, rng)) for s in samples])
        report["screen_three_accuracy"] = exact(speaker, [(s, screen(s, rng, third=True)) for s in samples])
    model.train(was_training)
    return report


def load(folder: Path) -> tuple[Any, Any]:
    """Model (fp32, CPU) and tokenizer of a checkpoint folder."""
    from transformers import AutoTokenizer, Qwen3VLForConditionalGeneration

    with torch.device("cpu"):
        model = Qwen3VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    model.train(False)
    return model, AutoTokenizer.from_pretrained(folder)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--bccd", type=Path)
    parser.add_argument("--bccd-list", default="test")
    parser.add_argument("--fields", type=int, default=300)
    options = parser.parse_args()
    model, tokenizer = load(options.model)
    report = {"cervix": examine(model, tokenizer, held_out(options.fields))}
    if options.bccd is not None:
        report["blood"] = examine(model, tokenizer, Bccd(options.bccd, (options.bccd_list,)).tiles())
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
