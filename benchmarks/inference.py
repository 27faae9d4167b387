"""`wsi-chat infer` against a plain batch-1 loop on the same rows: answers/s, and whether the answers agree.

    python benchmarks/inference.py [--fields 12] [--rounds 2]           # transformers' generate, on a CPU
    python benchmarks/inference.py --vllm [--fields 12] [--rounds 2]    # LLM.chat, where vllm is installed

Rows are built by `dataset build` from rendered fields that training never saw. Every round asks all rows in both
ways, in turn; medians and their ratio are printed. Starting an engine is not timed, reading and writing rows is.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tilers.picture import open_picture
from wsi_chat.datasets.build import build_dataset
from wsi_chat.datasets.collect import Sources, collect
from wsi_chat.datasets.info import DataSet, find_data
from wsi_chat.datasets.render import render_fields
from wsi_chat.datasets.rows import BadRow, Row, read_rows
from wsi_chat.datasets.wordings import Names
from wsi_chat.dialects import get_dialect
from wsi_chat.engines import embedded_checkpoint, load_engine
from wsi_chat.inference.run import infer
from wsi_chat.terminology import load_system

FIRST_SEED = 970_000_000


def build(folder: Path, fields: int, kinds: tuple[str, ...]) -> DataSet:
    """Rows about rendered fields, in the embedded checkpoint's dialect."""
    dialect = get_dialect("embedded")
    truth = render_fields(folder / "fields", FIRST_SEED, fields)
    pictures = collect(
        Sources(rendered=(truth,)),
        dialect=dialect, tile_px=dialect.tile_px, tile_mpp=0.5, seed=0,
    )  # fmt: skip
    names = Names(load_system("cervix"))
    build_dataset(pictures, folder / "data", dialect=dialect, names=names, fractions={"test": 1.0}, kinds=kinds)
    return find_data("cytology_test", folder / "data")


def first_turns(data: DataSet) -> list[Row]:
    return [row for row in read_rows(data) if not isinstance(row, BadRow)]


def generate_loop(rows: list[Row], limit: int) -> Callable[[], list[str]]:
    """What a script without this package does: one row, one generate() at a time."""
    import torch
    from transformers import AutoTokenizer, Qwen3VLForConditionalGeneration
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    folder = str(embedded_checkpoint())
    model: Any = Qwen3VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    processor: Any = Qwen2VLImageProcessorPil.from_pretrained(folder)

    def run() -> list[str]:
        said = []
        for row in rows:
            inputs = processor(images=[open_picture(row.picture(row.images[0]))], return_tensors="pt")
            pads = int(inputs["image_grid_thw"][0].prod()) // processor.merge_size**2
            image = "<|vision_start|>" + "<|image_pad|>" * pads + "<|vision_end|>"
            messages = [{"role": "system", "content": "You are a helpful assistant."}]
            messages.append({"role": "user", "content": row.turns[0].text.replace("<image>", image)})
            text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
            ids = tokenizer(text, return_tensors="pt", add_special_tokens=False)["input_ids"]
            with torch.inference_mode():
                out = model.generate(
                    input_ids=ids,
                    attention_mask=torch.ones_like(ids),
                    mm_token_type_ids=(ids == model.config.image_token_id).long(),
                    pixel_values=inputs["pixel_values"],
                    image_grid_thw=inputs["image_grid_thw"],
                    max_new_tokens=limit,
                    do_sample=False,
                )
            said.append(str(tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)))
        return said

    return run


def chat_loop(llm: Any, rows: list[Row], limit: int) -> Callable[[], list[str]]:
    """One row, one `LLM.chat` at a time."""
    from vllm import SamplingParams

    sampling = SamplingParams(temperature=0.0, max_tokens=limit)

    def run() -> list[str]:
        said = []
        for row in rows:
            image = open_picture(row.picture(row.images[0]))
            content = [
                {"type": "image_pil", "image_pil": image},
                {"type": "text", "text": row.turns[0].text.replace("<image>", "")},
            ]
            messages = [
                {"role": "system", "content": "You are a helpful assistant."},
                {"role": "user", "content": content},
            ]
            said.append(str(llm.chat([messages], sampling, use_tqdm=False)[0].outputs[0].text))
        return said

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fields", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--vllm", action="store_true", help="compare with LLM.chat; needs vllm")
    given = parser.parse_args()

    limit = given.max_new_tokens
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = build(folder, given.fields, ("ground", "mcq", "refer", "describe", "vqa"))
        rows = first_turns(data)
        engine = load_engine(None, engine="vllm" if given.vllm else "transformers", batch_size=given.batch_size)
        if given.vllm:
            import torch
            from vllm import LLM

            gpu = torch.cuda.is_available()
            # compiled or not, and in the number format of wsi-chat's own engine
            os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
            llm = LLM(
                str(embedded_checkpoint()), max_model_len=2048, limit_mm_per_prompt={"image": 1, "video": 0},
                generation_config="vllm", mm_processor_cache_gb=0, enforce_eager=not gpu,
                dtype="bfloat16" if gpu else "float32",
            )  # fmt: skip
            plain, other = chat_loop(llm, rows, limit), "LLM.chat, one row at a time"
        else:
            plain, other = generate_loop(rows, limit), "generate(), one row at a time"
        times: dict[str, list[float]] = {"infer": [], "plain": []}
        said: list[str] = []
        for number in range(given.rounds):
            started = time.perf_counter()
            out = folder / f"out{number}.jsonl"
            infer(data, out, engine=engine, dialect=get_dialect("embedded"), max_new_tokens=limit)
            times["infer"].append(time.perf_counter() - started)
            started = time.perf_counter()
            said = plain()
            times["plain"].append(time.perf_counter() - started)
        ours = [json.loads(line)["predict"] for line in out.read_text(encoding="utf-8").splitlines()]
        engine.close()
    rate = {name: len(rows) / statistics.median(spent) for name, spent in times.items()}
    # an answer is cut at its own limit: infer gives short questions less room
    same = sum(a.strip() == b.strip() or b.strip().startswith(a.strip()) for a, b in zip(ours, said, strict=True))
    print(f"{len(rows)} rows about {given.fields} fields, at most {limit} tokens, medians of {given.rounds} rounds")
    print(f"{'wsi-chat infer, ' + engine_name(given.vllm):34} {rate['infer']:7.2f} answers/s")
    print(f"{other:34} {rate['plain']:7.2f} answers/s")
    print(f"ratio {rate['infer'] / rate['plain']:.2f}; {same} of {len(rows)} answers the same")


def engine_name(vllm: bool) -> str:
    return "vllm" if vllm else "transformers"


if __name__ == "__main__":
    main()
