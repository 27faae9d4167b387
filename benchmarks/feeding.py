"""What it costs the front process to put a tile before a model, by part, and how many tiles a second that feeds.

    .venv-serving/bin/python -m benchmarks.feeding [SLIDE] [--checkpoints embedded qwen2.5-vl qwen3-vl] [--tiles 64]

CPU milliseconds for each 512 px tile (256 px for the embedded model), of all threads of the process, "before" being
the plain way through transformers' processor and vLLM's renderer. vLLM is its own up to the engine core, which is a
stand-in that answers at once (`stand_in_core`); the ways take turns and medians of the rounds are compared. With a
SLIDE: tiles a second from the slide through one and two front processes. Needs no GPU.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.stand_in_core import SHAPES, shaped_checkpoint, stand_in_core
from tilers import Patch, Slide, TilePlan, TileStream, find_foreground, open_slide, plan_tiles
from wsi_chat import tasks
from wsi_chat.analysis.cascade import picture_of
from wsi_chat.dialects import Dialect, get_dialect
from wsi_chat.engines import Engine, embedded_checkpoint
from wsi_chat.engines.checkpoint import read_checkpoint
from wsi_chat.engines.engine_pool import EnginePool
from wsi_chat.engines.patches import PatchTable
from wsi_chat.engines.vllm import VLLMEngine
from wsi_chat.engines.vllm_prompts import VLLMPrompts
from wsi_chat.schema import Query
from wsi_chat.terminology import load_system

Parts = dict[str, float]


class Clock:
    """Adds up the CPU seconds that functions take on their thread, each less those that it called."""

    def __init__(self) -> None:
        self.spent: Counter[str] = Counter()
        self._open: list[float] = []

    @contextmanager
    def on(self, owner: Any, names: dict[str, str]) -> Iterator[None]:
        """While open: ``names`` of the owner's functions -> the part that their time belongs to."""
        real = {name: getattr(owner, name) for name in names}
        for name, part in names.items():
            setattr(owner, name, self._timed(real[name], part))
        try:
            yield
        finally:
            for name, function in real.items():
                setattr(owner, name, function)

    def _timed(self, function: Callable[..., Any], part: str) -> Callable[..., Any]:
        def run(*given: Any, **named: Any) -> Any:
            started = time.thread_time()
            try:
                return function(*given, **named)
            finally:
                self.spent[part] += time.thread_time() - started

        return run


def zmq_seconds() -> float:
    """CPU seconds of the threads on which ZMQ moves messages."""
    spent = 0.0
    for task in Path("/proc/self/task").iterdir():
        if (task / "comm").read_text().startswith("ZMQ"):
            spent += int((task / "schedstat").read_text().split()[0]) / 1e9
    return spent


def as_before(engine: VLLMEngine) -> None:
    """Put every question through vLLM's renderer, and its words through vLLM's detokenizer."""
    sampling = engine._sampling

    def plain(*given: Any, **named: Any) -> Any:
        settings = sampling(*given, **named)
        settings.detokenize, settings.skip_clone = True, False
        return settings

    engine._prompts._table = None
    engine._sampling = plain  # type: ignore[method-assign]


def of_vllm(engine: VLLMEngine, queries: list[Query], *, before: bool) -> Parts:
    """CPU milliseconds a question in the front process, by part."""
    prompts, vllm = engine._prompts, engine._vllm
    table = prompts._table
    assert table is not None, "vLLM's renderer is all there is for this checkpoint"
    clock = Clock()
    processor = vllm.renderer.get_mm_processor()
    if before:
        as_before(engine)
    prompts._pictures.clear()
    try:
        with (
            clock.on(vllm.renderer, {"_tokenize_prompt": "words"}),
            clock.on(processor, {"_apply_hf_processor_main": "pixels", "_maybe_apply_prompt_updates": "words"}),
            clock.on(PatchTable, {"patches": "pixels"}),
            clock.on(VLLMPrompts, {"_seen": "key"}),
            clock.on(vllm.input_processor, {"process_inputs": "checks"}),
            clock.on(vllm.output_processor, {"process_outputs": "answer"}),
            clock.on(vllm.engine_core, {"serialise": "serialising"}),
            clock.on(_hashes(), {"get_mm_hashes": "key"}),
        ):
            sending, started = zmq_seconds(), time.process_time()
            bad = [answer.error for answer in engine.answer(queries) if answer.status == "failed"]
            spent, sending = time.process_time() - started, zmq_seconds() - sending
    finally:
        prompts._table = table
        engine.__dict__.pop("_sampling", None)
    if bad:
        raise SystemExit(f"{len(bad)} questions failed, first: {bad[0]}")
    parts = dict(clock.spent) | {"serialising": clock.spent["serialising"] + sending}
    if not before:
        parts["key"] -= parts["pixels"]
    parts["rest"] = spent - sum(parts.values())
    return {part: 1e3 * seconds / len(queries) for part, seconds in (parts | {"all": spent}).items()}


def _hashes() -> Any:
    from vllm.multimodal.processing.inputs import ProcessorInputs

    return ProcessorInputs


class Plain:
    """A question as transformers' own processor and tokenizer make it, one by one: the way before."""

    def __init__(self, folder: Path) -> None:
        import transformers
        from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

        self.tokenizer: Any = transformers.AutoTokenizer.from_pretrained(folder)
        self.processor = Qwen2VLImageProcessorPil.from_pretrained(folder)

    def pixels(self, image: Image.Image) -> Any:
        return self.processor(images=[image], do_resize=False, return_tensors="pt")

    def words(self, query: Query, grid: Any) -> Any:
        content = [{"type": "image"}, {"type": "text", "text": query.turns[-1].text.removeprefix("<image>")}]
        turns = [{"role": "system", "content": turn.text} for turn in query.turns if turn.role == "system"]
        messages = [*turns, {"role": "user", "content": content}]
        text = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        whole = text.replace("<|image_pad|>", "<|image_pad|>" * (int(grid.prod()) // 4))
        return self.tokenizer(whole, add_special_tokens=False)["input_ids"]

    @staticmethod
    def key(image: Image.Image) -> str:
        import hashlib

        return hashlib.blake2b(image.tobytes(), digest_size=16).hexdigest()


def of_transformers(plain: Plain, prompts: Any, queries: list[Query], *, before: bool) -> Parts:
    """CPU milliseconds a question until the model may be run, by part."""
    import wsi_chat.engines.qwen as qwen

    clock = Clock()
    prompts._pictures.clear()
    started = time.thread_time()
    if before:
        with clock.on(plain, {"pixels": "pixels", "words": "words", "key": "key"}):
            for query in queries:
                plain.key(query.images[0])
                plain.words(query, plain.pixels(query.images[0])["image_grid_thw"])
    else:
        with (
            clock.on(PatchTable, {"patches": "pixels"}),
            clock.on(qwen, {"image_key": "key"}),
            clock.on(type(prompts), {"_wording": "words"}),
        ):
            for query in queries:
                prompts.prompt(query)
    spent = time.thread_time() - started
    parts = dict(clock.spent)
    parts["rest"] = spent - sum(parts.values())
    return {part: 1e3 * seconds / len(queries) for part, seconds in (parts | {"all": spent}).items()}


def in_turns(ways: dict[str, Callable[[], Parts]], rounds: int) -> dict[str, Parts]:
    """Medians of each part over the rounds, the ways taking turns; the first round warms up."""
    found: dict[str, list[Parts]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name, run in ways.items():
            parts = run()
            if number:
                found[name].append(parts)
    return {
        name: {part: statistics.median(each.get(part, 0.0) for each in rows) for part in rows[0]}
        for name, rows in found.items()
    }


def show(title: str, found: dict[str, Parts]) -> None:
    before, after = found["before"], found["after"]
    names = ("words", "pixels", "key", "checks", "serialising", "answer", "rest")
    for name, parts in found.items():
        row = "  ".join(f"{part} {parts.get(part, 0.0):.2f}" for part in names)
        print(f"{title:34} {name:7} {parts['all']:6.2f} ms  ({row})")
    print(f"{title:34} after / before: {after['all'] / before['all']:.2f}", flush=True)


def questions(dialect: Dialect, count: int) -> dict[str, list[Query]]:
    """Questions about tiles of noise, each to screen; and to detail: the classes' places and a description."""
    random = np.random.default_rng(0)
    side = dialect.tile_px
    images = [Image.fromarray(random.integers(0, 256, (side, side, 3), np.uint8)) for _ in range(count)]

    def asked(ask: tasks.Ask, image: Image.Image) -> Query:
        return dialect.build(ask, image, model_id="any", decoding={})[0]

    details = [tasks.ground("hsil"), tasks.ground("lsil"), tasks.describe()]
    screening = tasks.screen(load_system("cervix"))
    return {
        "screen": [asked(screening, image) for image in images],
        "detail": [asked(ask, image) for image in images[: count // 3 + 1] for ask in details],
    }


def loaded(folder: Path, dtype: str, *, before: bool = False) -> VLLMEngine:
    """A vLLM engine over a stand-in core."""
    with stand_in_core():
        engine = VLLMEngine(folder, dtype=dtype)
    if before:
        as_before(engine)
    return engine


@contextmanager
def planned(path: Path, dialect: Dialect, limit: int) -> Iterator[tuple[Slide, TilePlan]]:
    """A slide and the tiles that are read of it; planning is done once a slide, and timed nowhere here."""
    with open_slide(path) as slide:
        everything = find_foreground(slide, mask=False)
        mpp = dialect.mpp_for(load_system("cervix"))
        yield slide, plan_tiles(slide, everything, tile_px=dialect.tile_px, mpp=mpp, overlap=0.25, limit=limit)


def built(patches: Iterable[Patch], dialect: Dialect) -> Iterator[Query]:
    """The screening question about each patch, as a run builds it."""
    ask = tasks.screen(load_system("cervix"))
    for patch in patches:
        yield dialect.build(ask, picture_of(patch), model_id="any", decoding={})[0]


def from_slide(engine: Engine, slide: Slide, plan: TilePlan, dialect: Dialect) -> tuple[float, int]:
    """Seconds in which tiles are read, asked about and answered, and how many."""
    started = time.perf_counter()
    with TileStream(slide, plan) as patches:
        count = sum(answer.status != "failed" for answer in engine.answer(built(patches, dialect)))
    return time.perf_counter() - started, count


def reading(slide: Slide, plan: TilePlan, dialect: Dialect, rounds: int) -> tuple[float, float]:
    """CPU milliseconds a tile to read it, and to read it and build the question about it; medians."""
    spent: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds):
        for number, milliseconds in enumerate(spent):
            started = time.process_time()
            with TileStream(slide, plan) as patches:
                for _each in built(patches, dialect) if number else patches:
                    pass
            milliseconds.append(1e3 * (time.process_time() - started) / len(plan.tiles))
    return statistics.median(spent[0]), statistics.median(spent[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("slide", type=Path, nargs="?")
    parser.add_argument("--checkpoints", nargs="+", default=["embedded", *SHAPES])
    parser.add_argument("--tiles", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--fronts", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--engines", nargs="+", choices=["transformers", "vllm"], default=["transformers", "vllm"])
    parser.add_argument("--parts", action=argparse.BooleanOptionalAction, default=True)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as root:
        for name in given.checkpoints:
            folder = embedded_checkpoint() if name == "embedded" else shaped_checkpoint(name, Path(root) / name)
            dialect = get_dialect(name)
            if given.parts:
                by_part(name, folder, dialect, given)
            if given.slide:
                feed(name, folder, dialect, given)


def by_part(name: str, folder: Path, dialect: Dialect, given: Any) -> None:
    asked = questions(dialect, given.tiles)
    if "transformers" in given.engines:
        import transformers

        from wsi_chat.engines.qwen import QwenPrompts

        config = transformers.AutoConfig.from_pretrained(folder)
        plain, prompts = Plain(folder), QwenPrompts(read_checkpoint(folder), config)
        compare(name, "transformers", asked, partial(of_transformers, plain, prompts), given.rounds)
    if "vllm" in given.engines:
        engine = loaded(folder, given.dtype)
        try:
            compare(name, "vllm", asked, partial(of_vllm, engine), given.rounds)
        finally:
            engine.close()


def compare(name: str, engine: str, asked: dict[str, list[Query]], run: Callable[..., Parts], rounds: int) -> None:
    for task, queries in asked.items():
        ways: dict[str, Callable[[], Parts]] = {
            "before": partial(run, queries, before=True),
            "after": partial(run, queries, before=False),
        }
        show(f"{name} {engine} {task}", in_turns(ways, rounds))


def feed(name: str, folder: Path, dialect: Dialect, given: Any) -> None:
    """Tiles a second through front processes, and what the CPU of each kind of process would allow."""
    with planned(given.slide, dialect, given.tiles * 8) as (slide, plan):
        read, asked = reading(slide, plan, dialect, given.rounds)
        print(f"{name} CPU a tile: {read:.2f} ms to read, {asked:.2f} ms to read and build the question", flush=True)
        for fronts, before in [(1, True), *((fronts, False) for fronts in given.fronts)]:
            start = partial(loaded, folder, given.dtype)
            through(fronts, slide, plan, dialect, start, before=before, rounds=given.rounds)


def through(
    fronts: int,
    slide: Slide,
    plan: TilePlan,
    dialect: Dialect,
    start: Callable[..., Engine],
    *,
    before: bool,
    rounds: int,
) -> None:
    """Read, ask and answer the plan's tiles through so many front processes."""
    import psutil

    pool = EnginePool([partial(start, before=before)] * fronts)
    try:
        from_slide(pool, slide, plan, dialect)
        processes = [psutil.Process(worker.process.pid) for worker in pool._workers]
        cores = [child for process in processes for child in process.children(recursive=True)]
        began = [time.process_time(), _cpu(processes), _cpu(cores), time.thread_time()]
        runs = [from_slide(pool, slide, plan, dialect) for _ in range(rounds)]
        tiles = sum(count for _, count in runs)
        ended = [time.process_time(), _cpu(processes), _cpu(cores), time.thread_time()]
        each = [1e3 * (end - begin) / tiles for begin, end in zip(began, ended, strict=True)]
        rate, way = statistics.median(count / spent for spent, count in runs), "before" if before else "after"
        print(
            f"{dialect.name} {way}, front processes: {fronts}; {rate:.1f} tiles/s from the slide; CPU a tile: "
            f"{each[0]:.2f} ms to read, build and send ({each[3]:.2f} of it on the main thread), "
            f"{each[1]:.2f} ms in front, {each[2]:.2f} ms in the stand-in",
            flush=True,
        )
    finally:
        pool.close()


def _cpu(processes: list[Any]) -> float:
    """CPU seconds of these processes so far, without their children."""
    return sum(sum(process.cpu_times()[:2]) for process in processes)


if __name__ == "__main__":
    main()
