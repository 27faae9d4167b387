"""Tiles/s of the embedded model: screening and screening plus grounding, against transformers' generate one by one.

    python benchmarks/screening.py [--tiles 64] [--rounds 3]

Tiles are rendered fields (seeds that training never sees). All three ways answer the same questions about the same
tiles in one process; each round times them in turn, and medians and the ratio to the plain loop are printed.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from PIL import Image

from wsi_chat import tasks
from wsi_chat.datasets.render import render_field
from wsi_chat.dialects import get_dialect
from wsi_chat.engines import embedded_checkpoint, load_engine
from wsi_chat.schema import Query
from wsi_chat.terminology import load_system

FIRST_SEED = 970_000_000


def queries(images: list[Image.Image], asks: list[tasks.Ask], model_id: str) -> list[Query]:
    """One query per image and question, a tile's questions together."""
    dialect = get_dialect("embedded")
    return [dialect.build(ask, image, model_id=model_id, decoding={})[0] for image in images for ask in asks]


def plain_loop(model: Any, tokenizer: Any, processor: Any, asked: list[Query]) -> None:
    """What a script without this package does: one image, one question, one generate() at a time."""
    for query in asked:
        inputs = processor(images=[query.images[0]], return_tensors="pt")
        pads = int(inputs["image_grid_thw"][0].prod()) // processor.merge_size**2
        image = "<|vision_start|>" + "<|image_pad|>" * pads + "<|vision_end|>"
        messages = [{"role": turn.role, "content": turn.text.replace("<image>", image)} for turn in query.turns]
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        ids = tokenizer(text, return_tensors="pt", add_special_tokens=False)["input_ids"]
        with torch.inference_mode():
            model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                mm_token_type_ids=(ids == model.config.image_token_id).long(),
                pixel_values=inputs["pixel_values"],
                image_grid_thw=inputs["image_grid_thw"],
                max_new_tokens=query.max_tokens,
                do_sample=False,
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiles", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()

    from transformers import AutoTokenizer, Qwen3VLForConditionalGeneration
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    folder = str(embedded_checkpoint())
    engine = load_engine(None)
    model = Qwen3VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    processor = Qwen2VLImageProcessorPil.from_pretrained(folder)
    images = [Image.fromarray(render_field(FIRST_SEED + n).image) for n in range(given.tiles)]
    system = load_system("cervix")
    screening = queries(images, [tasks.screen(system)], engine.model_id)
    both = queries(images[: given.tiles // 8], [tasks.screen(system), tasks.ground("hsil")], engine.model_id)
    ways: dict[str, tuple[int, Callable[[], object]]] = {
        "screen, engine": (len(screening), lambda: list(engine.answer(screening))),
        "screen, plain loop": (len(screening), lambda: plain_loop(model, tokenizer, processor, screening)),
        "screen + ground, engine": (len(both) // 2, lambda: list(engine.answer(both))),
        "screen + ground, plain loop": (len(both) // 2, lambda: plain_loop(model, tokenizer, processor, both)),
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(given.rounds):
        for name, (_, run) in ways.items():
            # a slide shows every tile for the first time: what the last round left of the images is forgotten
            engine._running._features.clear()  # type: ignore[attr-defined]
            started = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - started)
    rate = {name: ways[name][0] / statistics.median(spent) for name, spent in times.items()}
    print(f"{given.tiles} tiles of 256 px, {torch.get_num_threads()} threads, medians of {given.rounds} rounds")
    for name, value in rate.items():
        print(f"{name:28} {value:8.1f} tiles/s")
    for task in ("screen", "screen + ground"):
        print(f"{task}: engine over plain loop {rate[f'{task}, engine'] / rate[f'{task}, plain loop']:.2f}x")


if __name__ == "__main__":
    main()
