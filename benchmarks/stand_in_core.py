"""An engine core for vLLM that answers at once, and checkpoints without a model: feeding a GPU, without a GPU.

Everything in front of the core is vLLM's own: renderer, input processor, serialisation, output processor. The core is a
process of its own that decodes each request as vLLM's does and answers it with fixed tokens. Used by
``benchmarks/feeding.py``.
"""

from __future__ import annotations

import json
import multiprocessing
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from wsi_chat.engines import embedded_checkpoint

TEXT_TOKENS = 24
"""Tokens of an answer in words."""

SHAPES: dict[str, dict[str, Any]] = {
    # the sizes that decide what the front process does: patch, merged patches, window; the rest is small
    "qwen2.5-vl": {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"], "model_type": "qwen2_5_vl",
        "vision_config": {
            "model_type": "qwen2_5_vl", "depth": 2, "hidden_size": 64, "intermediate_size": 64, "num_heads": 2,
            "out_hidden_size": 64, "patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2,
            "window_size": 112, "fullatt_block_indexes": [1],
        },
    },
    "qwen3-vl": {
        "architectures": ["Qwen3VLForConditionalGeneration"], "model_type": "qwen3_vl",
        "vision_config": {
            "model_type": "qwen3_vl", "depth": 2, "hidden_size": 64, "intermediate_size": 64, "num_heads": 2,
            "out_hidden_size": 64, "patch_size": 16, "spatial_merge_size": 2, "temporal_patch_size": 2,
            "num_position_embeddings": 256, "deepstack_visual_indexes": [0],
        },
    },
}  # fmt: skip
TEMPLATE = (
    "{%- if messages[0].role != 'system' -%}<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{%- endif -%}"
    "{%- for message in messages -%}{{ '<|im_start|>' + message.role + '\\n' }}"
    "{%- if message.content is string -%}{{ message.content }}{%- else -%}{%- for part in message.content -%}"
    "{%- if part.type == 'image' or 'image' in part or 'image_url' in part -%}"
    "<|vision_start|><|image_pad|><|vision_end|>"
    "{%- elif 'text' in part -%}{{ part.text }}{%- endif -%}{%- endfor -%}{%- endif -%}"
    "{{ '<|im_end|>\\n' }}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}"
)
SPECIAL = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>",
    "<|image_pad|>", "<|video_pad|>",
)  # fmt: skip


def shaped_checkpoint(shape: str, folder: Path) -> Path:
    """A checkpoint as its front process sees it: config, tokenizer (trained on our own words), image processor.

    Its weights are one number: the stand-in core loads none.
    """
    import torch
    from safetensors.torch import save_file
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    # the words are split as Qwen's tokenizer splits them
    words = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+"
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(words), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=8000, special_tokens=list(SPECIAL), initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )  # fmt: skip
    texts = Path(__file__).resolve().parents[1].glob("docs/*.md")
    core.train_from_iterator((text.read_text(encoding="utf-8") for text in texts), trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token="<|im_end|>", pad_token="<|endoftext|>", chat_template=TEMPLATE,
        clean_up_tokenization_spaces=False, tokenizer_class="Qwen2TokenizerFast", model_max_length=32768,
    )  # fmt: skip
    folder.mkdir(parents=True)
    tokenizer.save_pretrained(folder)
    ids = tokenizer.convert_tokens_to_ids
    config = SHAPES[shape] | {
        "text_config": {
            "model_type": SHAPES[shape]["model_type"] + "_text", "hidden_size": 64, "intermediate_size": 64,
            "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 32,
            "vocab_size": len(tokenizer), "max_position_embeddings": 32768,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 6, 6]},
        },
        "image_token_id": ids("<|image_pad|>"), "video_token_id": ids("<|video_pad|>"),
        "vision_start_token_id": ids("<|vision_start|>"), "vision_end_token_id": ids("<|vision_end|>"),
        "tie_word_embeddings": True,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    generation = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    (folder / "generation_config.json").write_text(json.dumps(generation), encoding="utf-8")
    vision = SHAPES[shape]["vision_config"]
    images = json.loads((embedded_checkpoint() / "preprocessor_config.json").read_text(encoding="utf-8"))
    # the means and deviations of CLIP, which Qwen2.5-VL's processor takes
    clip = {"image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711]}
    images |= {"patch_size": vision["patch_size"], "size": {"shortest_edge": 3136, "longest_edge": 12845056}}
    images |= clip if shape == "qwen2.5-vl" else {}
    (folder / "preprocessor_config.json").write_text(json.dumps(images), encoding="utf-8")
    save_file({"weight": torch.zeros(1)}, folder / "model.safetensors", {"format": "pt"})
    return folder


# ---------------------------------------------------------------------------------------------- the core


def _core(requests: str, answers: str) -> None:
    """A process that decodes requests and answers each at once, until an empty message."""
    import numpy as np
    import zmq
    from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs, EngineCoreRequest, FinishReason
    from vllm.v1.outputs import LogprobsLists
    from vllm.v1.serial_utils import MsgpackDecoder, MsgpackEncoder

    context = zmq.Context()
    inbox, outbox = context.socket(zmq.PULL), context.socket(zmq.PUSH)
    inbox.connect(requests)
    outbox.connect(answers)
    decoder, encoder = MsgpackDecoder(EngineCoreRequest), MsgpackEncoder()
    outbox.send(b"ready")
    while True:
        frames = inbox.recv_multipart(copy=False)
        if len(frames) == 1 and not frames[0].bytes:
            return
        request = decoder.decode([frame.buffer for frame in frames])
        asked = request.sampling_params
        wanted = list(asked.logprob_token_ids or [])
        tokens = [wanted[0]] if wanted else [10 + n % 50 for n in range(min(TEXT_TOKENS, asked.max_tokens))]
        ids = np.array([[token, *wanted] for token in tokens], np.int64)
        logs = np.full(ids.shape, -1.0, np.float32)
        output = EngineCoreOutput(
            request.request_id, tokens, LogprobsLists(ids, logs, np.ones(len(tokens), np.int64)),
            finish_reason=FinishReason.LENGTH if wanted else FinishReason.STOP,
        )  # fmt: skip
        outbox.send_multipart(encoder.encode(EngineCoreOutputs(outputs=[output])), copy=False)


class StandInClient:
    """In place of vLLM's own client of an engine core: the same messages, to a process that answers at once."""

    engine_ranks_managed = (0,)

    def __init__(self) -> None:
        import zmq
        import zmq.asyncio
        from vllm.v1.engine import EngineCoreOutputs
        from vllm.v1.serial_utils import MsgpackDecoder, MsgpackEncoder

        self.resources = type("Resources", (), {"engine_dead": False})()
        self.encoder, self.decoder = MsgpackEncoder(), MsgpackDecoder(EngineCoreOutputs)
        self.bytes_sent = 0
        self._folder = tempfile.TemporaryDirectory()
        addresses = [f"ipc://{self._folder.name}/{name}" for name in ("requests", "answers")]
        self._context = zmq.asyncio.Context()
        self.outbox, self.inbox = self._context.socket(zmq.PUSH), self._context.socket(zmq.PULL)
        for socket, address in zip((self.outbox, self.inbox), addresses, strict=True):
            socket.bind(address)
        spawn = multiprocessing.get_context("spawn")
        self._process = spawn.Process(target=_core, args=addresses, daemon=True)
        self._process.start()
        self._ready = False

    def serialise(self, request: Any) -> list[Any]:
        """The request as the frames of one message; large tensors are frames of their own, uncopied."""
        return list(self.encoder.encode(request))

    async def add_request_async(self, request: Any) -> None:
        frames = self.serialise(request)
        self.bytes_sent += sum(memoryview(frame).nbytes for frame in frames)
        await self.outbox.send_multipart(frames, copy=False)

    async def get_output_async(self) -> Any:
        while not self._ready:
            self._ready = await self.inbox.recv() == b"ready"
        return self.decoder.decode(await self.inbox.recv_multipart())

    async def get_supported_tasks_async(self) -> tuple[str, ...]:
        return ("generate",)

    async def abort_requests_async(self, ids: list[str]) -> None:
        """Nothing: the answers are on their way."""

    async def reset_prefix_cache_async(self, *given: Any) -> bool:
        return True

    async def reset_encoder_cache_async(self) -> None:
        """Nothing: there is none."""

    def shutdown(self, timeout: float | None = None) -> None:
        """End the core's process."""
        self._process.kill()
        self._process.join()


@contextmanager
def stand_in_core() -> Iterator[None]:
    """Engines of vLLM that are loaded in here have a stand-in for their core."""
    from vllm.v1.engine.core_client import EngineCoreClient

    real = EngineCoreClient.make_async_mp_client
    EngineCoreClient.make_async_mp_client = staticmethod(lambda **_: StandInClient())  # type: ignore[method-assign]
    try:
        yield
    finally:
        EngineCoreClient.make_async_mp_client = real  # type: ignore[method-assign]
