"""Runs a checkpoint through vLLM in this process: fed without pause, its prefix cache shared by a tile's questions.

vLLM's engine core is a process of its own, so reading tiles never holds it up. A choice may be answered with its
options' tokens alone, and its probabilities are those tokens' own, as the transformers engine computes them.
"""

from __future__ import annotations

import asyncio
import importlib.util
import itertools
import json
import logging
import os
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from wsi_chat.dialects import detect_dialect, get_dialect
from wsi_chat.engines.adapter import read_adapter
from wsi_chat.engines.chat_template import check_template
from wsi_chat.engines.checkpoint import read_checkpoint, read_config
from wsi_chat.engines.feeding import LoopThread, feed, listen
from wsi_chat.engines.loading import describe_error
from wsi_chat.engines.prompts import choice_token_ids, control_tokens, count_marks, message_parts
from wsi_chat.engines.protocol import EngineCrashed, failed
from wsi_chat.engines.serving import CPU_BLOCK, ServingPlan, plan_serving
from wsi_chat.engines.vllm_prompts import VLLMPrompts
from wsi_chat.errors import EngineError, SettingError
from wsi_chat.schema import Answer, Query

log = logging.getLogger(__name__)

ENVIRONMENT = {
    # nothing about a run leaves the machine, and stdout carries data only
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_LOGGING_STREAM": "ext://sys.stderr",
    # a fork of a process that holds threads and a loaded torch may hang
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    # its processes speak of what their libraries will change one day
    "PYTHONWARNINGS": "ignore",
}
TEMPLATE = {"add_generation_prompt": True, "continue_final_message": False, "tokenize": False}
SLOTS = 128
"""Questions under way in the engine core at once; vLLM batches as many as its cache holds."""
INSTALL = "Install it: pip install 'wsi-chat[vllm]'; or use --engine transformers."
STOP_SECONDS = 10.0


class VLLMEngine:
    """An engine over one checkpoint folder. See `wsi_chat.engines.load_engine`.

    Args:
        path: the checkpoint's folder.
        name: the model as a person names it.
        adapter: folder of a LoRA adapter for it.
        dtype: ``auto`` is bfloat16 on a GPU and float32 on a CPU.
        slots: questions under way at once.
        plan: what the engine is told of images and lengths; None works it out for the checkpoint's own dialect.
        memory: share of the GPU's memory that vLLM may take.

    Raises:
        EngineError: vLLM is not installed, or cannot run the checkpoint.
    """

    name = "vllm"

    def __init__(
        self,
        path: str | Path,
        *,
        name: str = "",
        adapter: str | Path | None = None,
        dtype: str = "auto",
        slots: int = SLOTS,
        seed: int = 0,
        plan: ServingPlan | None = None,
        memory: float = 0.9,
    ) -> None:
        if slots < 1:
            raise SettingError(f"concurrency is {slots}", hint="Give 1 or more.")
        for variable, value in ENVIRONMENT.items():
            os.environ.setdefault(variable, value)
        checkpoint = read_checkpoint(path)
        lora = None if adapter is None else read_adapter(adapter, checkpoint)
        self._plan = plan or _own_plan(checkpoint.path)
        self._seed = seed
        self._number = itertools.count()
        self.lookahead = 2 * slots
        self._loop = LoopThread("wsi-chat-vllm")
        try:
            self._vllm, dtype = self._loop.run(self._start(checkpoint.path, lora, dtype, slots, memory))
        except EngineError:
            self._loop.close()
            raise
        except BaseException as error:
            self._loop.close()
            if not isinstance(error, Exception):
                raise
            raise EngineError(
                f"vLLM cannot run checkpoint {checkpoint.path}: {describe_error(error)}",
                hint="Set VLLM_LOGGING_LEVEL=INFO to see more, or use --engine transformers.",
            ) from error
        self._choice_ids: dict[tuple[str, ...], tuple[tuple[int, ...], ...]] = {}
        check_template(getattr(self._vllm.renderer.get_tokenizer(), "chat_template", None), path)
        self._control = control_tokens(self._vllm.renderer.get_tokenizer())
        self._prompts = VLLMPrompts(self._vllm, self._rendered, self._plan.pixel_bounds)
        self._loop.run(self._prompts.prove())
        self.model_name = name or checkpoint.name
        revision = checkpoint.revision
        if lora is not None:
            self.model_name += f"+{lora.name}"
            revision += f"+{lora.revision}"
        # another engine's answers differ in the last digits, so they are not mixed in one journal
        self.model_id = f"{self.model_name}@{revision}:{dtype}:vllm"
        self.prompt_tokens = 0
        self.cached_tokens = 0
        """Prompt tokens so far, and those of them that the prefix cache had already."""

    async def _start(self, folder: Path, lora: Any, dtype: str, slots: int, memory: float) -> tuple[Any, str]:
        try:
            from vllm.engine.arg_utils import AsyncEngineArgs
            from vllm.v1.engine.async_llm import AsyncLLM
        except ImportError as error:
            raise EngineError(
                f"the vllm engine needs the package vllm: {describe_error(error)}",
                hint=INSTALL,
            ) from error
        import torch

        gpu = torch.cuda.is_available()
        if dtype == "auto":
            dtype = "bfloat16" if gpu else "float32"
        more: dict[str, Any] = {"gpu_memory_utilization": memory} if gpu else {"block_size": CPU_BLOCK}
        self._lora = None
        if lora is not None:
            from vllm.lora.request import LoRARequest

            self._lora = LoRARequest(lora.name, 1, str(lora.path.resolve()))
            more |= {"enable_lora": True, "max_lora_rank": _rank(lora.path)}
        args = AsyncEngineArgs(
            model=str(folder),
            dtype=dtype,
            seed=self._seed,
            max_model_len=self._plan.max_model_len,
            max_num_seqs=slots,
            limit_mm_per_prompt=self._plan.limits,
            mm_processor_kwargs=self._plan.processor_kwargs or None,
            mm_processor_cache_gb=0,
            enable_prefix_caching=True,
            generation_config="vllm",
            trust_remote_code=False,
            # compiling pays on a GPU only
            enforce_eager=not gpu,
            disable_log_stats=True,
            use_tqdm_on_load=False,
            enable_log_requests=False,
            **more,
        )
        return AsyncLLM.from_engine_args(args), dtype

    def close(self) -> None:
        """End the engine core's process. What is under way is given up. Safe to call twice."""
        vllm, self._vllm = self._vllm, None
        if vllm is None:
            return

        async def shut_down() -> None:
            vllm.shutdown()

        try:
            self._loop.submit(shut_down()).result(timeout=STOP_SECONDS)
        except Exception as error:
            log.debug("vLLM did not shut down cleanly: %s", describe_error(error))
        self._prompts.close()
        self._loop.close()

    def forget(self) -> None:
        """Empty the caches of prefixes and of images, so that a measurement starts as the first one did."""

        async def empty() -> None:
            await self._vllm.reset_encoder_cache()
            await self._vllm.reset_prefix_cache()

        self._loop.run(empty())

    # ------------------------------------------------------------------------------------------ asking

    def answer(self, queries: Iterable[Query]) -> Iterator[Answer]:
        """One answer per query, in the order they come. Raises EngineCrashed where the engine core died."""
        if self._vllm is None:
            raise EngineError("the engine is closed", hint="Load it again.")
        yield from feed(self._loop, self._ask, queries, under_way=self.lookahead)

    def stream(self, query: Query) -> Generator[str, None, Answer]:
        """The answer piece by piece, as `StreamingEngine` says; leaving the generator ends the generation."""

        async def speak(say: Callable[[str], None]) -> Answer:
            return await self._ask(query, say)

        if self._vllm is None:
            raise EngineError("the engine is closed", hint="Load it again.")
        return listen(self._loop, speak)

    async def _ask(self, query: Query, say: Callable[[str], None] | None = None) -> Answer:
        started = time.perf_counter()
        try:
            count_marks(query)
            ids = self._ids_of(query.choices)
            output = await self._generated(query, ids, None if ids else say)
            answer = self._read(query, output, ids, time.perf_counter() - started)
            if ids and say is not None:
                say(answer.text)
            return answer
        except asyncio.CancelledError:
            raise
        except Exception as error:
            if self._vllm is None or self._vllm.errored:
                raise EngineCrashed(f"vLLM's engine process died: {describe_error(error)}") from error
            cause = error.__cause__ or error
            return failed(query, describe_error(cause), seconds=time.perf_counter() - started)

    def _ids_of(self, choices: tuple[str, ...]) -> tuple[tuple[int, ...], ...]:
        if choices not in self._choice_ids:
            self._choice_ids[choices] = choice_token_ids(self._vllm.renderer.get_tokenizer(), choices)
        return self._choice_ids[choices]

    def room(self, query: Query) -> int:
        """Tokens left for the answer, as the engine counts the question; below 1 where that alone is too long.

        Raises AnswerError where the question cannot be asked as it is.
        """
        if self._vllm is None:
            raise EngineError("the engine is closed", hint="Load it again.")
        count_marks(query)
        prompt = self._loop.run(self._rendered(query, any_length=True))
        return int(self._vllm.model_config.max_model_len) - len(prompt["prompt_token_ids"])

    async def _rendered(self, query: Query, *, any_length: bool = False) -> Any:
        """The question in the model's chat template as vLLM takes it: token ids, those of its images among them."""
        from vllm.renderers.params import ChatParams

        images = iter(query.images)
        messages = [
            {
                "role": turn.role,
                "content": [
                    {"type": "image_pil", "image_pil": next(images)} if part["type"] == "image" else part
                    for part in message_parts(turn.text, self._control)
                ],
            }
            for turn in query.turns
        ]
        renderer = self._vllm.renderer
        limits = replace(renderer.default_chat_tok_params, max_total_tokens=None) if any_length else None
        _, (prompt,) = await renderer.render_chat_async(
            [messages],
            # left out, the answer's own header is missing from the prompt: vLLM's default here is False
            ChatParams(chat_template_content_format="openai", chat_template_kwargs=TEMPLATE),
            limits,
        )
        return prompt

    async def _generated(
        self, query: Query, ids: tuple[tuple[int, ...], ...], say: Callable[[str], None] | None
    ) -> Any:
        prompt = await self._prompts.prompt(query)
        stream = self._vllm.generate(
            prompt,
            self._sampling(query, ids, whole=say is None),
            request_id=f"{next(self._number)}",
            lora_request=self._lora,
        )
        output, spoken = None, 0
        async for output in stream:
            text = output.outputs[0].text
            if say is not None and len(text) > spoken:
                say(text[spoken:])
                spoken = len(text)
        return output

    def _sampling(self, query: Query, ids: tuple[tuple[int, ...], ...], *, whole: bool) -> Any:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        choice: dict[str, Any] = {"logprobs": 0}
        if ids:
            # one token out of these, and the log-probability of each before the others were ruled out
            each = sorted({token for spelled in ids for token in spelled})
            choice = {"allowed_token_ids": each, "logprob_token_ids": each, "logprobs": len(each)}
        drawn: dict[str, Any] = {"temperature": 0.0}
        if query.sampling is not None and not ids:
            drawn = {"temperature": query.sampling.temperature, "top_p": query.sampling.top_p}
            drawn["top_k"] = query.sampling.top_k or -1
        return SamplingParams(
            **drawn,
            seed=self._seed,
            max_tokens=1 if ids else query.max_tokens,
            # boxes of some dialects are written with special tokens
            skip_special_tokens=False,
            # whole answers are decoded once, at their end; and nothing else holds these settings
            detokenize=not whole,
            skip_clone=True,
            output_kind=RequestOutputKind.FINAL_ONLY if whole else RequestOutputKind.CUMULATIVE,
            **choice,
        )

    def _read(self, query: Query, output: Any, ids: tuple[tuple[int, ...], ...], seconds: float) -> Answer:
        said_, prompt = output.outputs[0], len(output.prompt_token_ids)
        self.prompt_tokens += prompt
        self.cached_tokens += output.num_cached_tokens or 0
        if ids:
            return _choice(query, said_.logprobs[0], ids, prompt, seconds)
        cut = said_.finish_reason == "length"
        spoken = list(said_.token_ids)
        # the token that ended the answer is not part of its text; there are no other ways to stop
        words = spoken if cut else spoken[:-1]
        return Answer(
            key=query.key,
            task=query.task,
            text=said_.text or str(self._vllm.renderer.get_tokenizer().decode(words, skip_special_tokens=False)),
            status="truncated" if cut else "ok",
            finish_reason="length" if cut else "stop",
            logprob=said_.cumulative_logprob,
            seconds=seconds,
            prompt_tokens=prompt,
            new_tokens=len(spoken),
        )


def _choice(query: Query, logs: Any, ids: tuple[tuple[int, ...], ...], prompt: int, seconds: float) -> Answer:
    """The choice with the most probability over all tokens that spell it."""
    import numpy as np

    each = np.array([np.logaddexp.reduce([logs[token].logprob for token in spelled]) for spelled in ids])
    if not np.isfinite(each).any():
        return failed(query, "the model's output is not a number", seconds=seconds)
    chances = np.exp(each - np.logaddexp.reduce(each))
    chances /= chances.sum()
    best = int(chances.argmax())
    return Answer(
        key=query.key,
        task=query.task,
        text=query.choices[best],
        probabilities=dict(zip(query.choices, chances.tolist(), strict=True)),
        logprob=float(each[best]),
        seconds=seconds,
        prompt_tokens=prompt,
        new_tokens=1,
    )


def _own_plan(folder: Path) -> ServingPlan:
    return plan_serving(read_config(folder), get_dialect(detect_dialect(folder)).image_px)


def _rank(folder: Path) -> int:
    """The smallest rank that vLLM knows and the adapter fits in."""

    rank = int(json.loads((folder / "adapter_config.json").read_text(encoding="utf-8")).get("r", 16))
    return next((known for known in (1, 8, 16, 32, 64, 128, 256, 320, 512) if known >= rank), rank)


def check_installed() -> None:
    """Raises EngineError where the package is not there; it is not imported, which takes long."""
    if importlib.util.find_spec("vllm") is None:
        raise EngineError("the vllm engine needs the package vllm, which is not installed", hint=INSTALL)


def why_not(architectures: Iterable[str]) -> str:
    """Why vLLM cannot run a model with these architectures here; empty where it can."""
    if importlib.util.find_spec("vllm") is None:
        return "vLLM is not installed"
    for variable, value in ENVIRONMENT.items():
        os.environ.setdefault(variable, value)
    try:
        from vllm import ModelRegistry

        known = set(ModelRegistry.get_supported_archs())
    except Exception as error:  # an installation that does not fit the GPU's driver fails in many ways
        return f"vLLM does not start: {describe_error(error)}"
    names = list(architectures)
    return "" if known.intersection(names) else f"vLLM does not know {', '.join(names) or 'an unnamed architecture'}"
