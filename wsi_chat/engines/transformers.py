"""Runs a checkpoint in this process through transformers: greedy, batched, SDPA, bf16 on a GPU and fp32 on a CPU.

Pure choices cost one forward pass, always in the same tensor shape, so that a probability does not depend on
which queries shared the batch: a resumed run repeats an uninterrupted one to the last bit. The vision tower
runs once per image, however many questions are asked about it.
"""

from __future__ import annotations

import inspect
import logging
import time
from collections import OrderedDict
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wsi_chat.engines.adapter import apply_adapter, read_adapter
from wsi_chat.engines.checkpoint import read_checkpoint
from wsi_chat.engines.families import check_family, prompts_for
from wsi_chat.engines.loading import describe_error, generation_settings, load_model, pick_device, pick_dtype
from wsi_chat.engines.prompts import EarlierTurns, Patches, Prompt, Prompts
from wsi_chat.engines.protocol import EngineCrashed, failed
from wsi_chat.engines.streaming import Tap, pieces_of
from wsi_chat.engines.token_logs import TokenLogs, seed_of
from wsi_chat.errors import AnswerError, EngineError, SettingError
from wsi_chat.schema import Answer, Query, Sampling, Turn

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray
    from PIL.Image import Image

log = logging.getLogger(__name__)

CPU_ROWS = 4
"""Rows of a choice batch on a CPU: as fast there as larger ones, and a lone question wastes little."""
LENGTH_STEP = 32
UNBOUNDED = 2**31
FATAL = ("CUDA error", "device-side assert", "CUBLAS_STATUS", "HIP error", "cuDNN error")
NO_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")


class TransformersEngine:
    """An engine over one checkpoint folder of a family in `wsi_chat.engines.families`. See `load_engine`."""

    name = "transformers"

    def __init__(
        self,
        path: str | Path,
        *,
        name: str = "",
        adapter: str | Path | None = None,
        dtype: str = "auto",
        device: str = "auto",
        batch_size: int = 16,
        seed: int = 0,
    ) -> None:
        if batch_size < 1:
            raise SettingError(f"batch_size is {batch_size}", hint="Give 1 or more.")
        import torch

        self._device = pick_device(device)
        self._dtype = pick_dtype(dtype, self._device)
        checkpoint = read_checkpoint(path)
        check_family(checkpoint)
        lora = None if adapter is None else read_adapter(adapter, checkpoint)
        torch.manual_seed(seed)
        self._seed = seed
        self._model = load_model(checkpoint.path, self._dtype, self._device)
        if lora is not None:
            self._model = apply_adapter(self._model, lora)
        self._prompts: Prompts = prompts_for(checkpoint, self._model.config)
        self._generation = generation_settings(self._model, self._prompts.tokenizer)
        self._shares_vision = "mm_encoder_outputs" in inspect.signature(self._model.forward).parameters
        self._features: OrderedDict[tuple[int, int, str], Any] = OrderedDict()
        self._batch = batch_size
        self._rows = min(batch_size, CPU_ROWS) if self._device.type == "cpu" else batch_size
        self.lookahead = 2 * batch_size
        self.model_name = name or checkpoint.name
        revision = checkpoint.revision
        if lora is not None:
            self.model_name += f"+{lora.name}"
            revision += f"+{lora.revision}"
        self.model_id = f"{self.model_name}@{revision}:{str(self._dtype).removeprefix('torch.')}"

    def close(self) -> None:
        """Drop the model and its cached image features."""
        import torch

        self._features.clear()
        self._model = None
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def room(self, query: Query) -> int:
        """Tokens left for the answer after the question; below 1 where the question alone is too long.

        0 where the model takes a question by itself and this one has earlier turns: with fewer of them there is room.
        """
        room = getattr(self._model.config.get_text_config(), "max_position_embeddings", None)
        try:
            return (int(room) if room else UNBOUNDED) - len(self._prompts.prompt(query).ids)
        except EarlierTurns:
            return 0

    # ------------------------------------------------------------------------------------------ batching

    def answer(self, queries: Iterable[Query]) -> Iterator[Answer]:
        """One answer per query, batched by kind and shape. Raises EngineCrashed on a device error."""
        source = iter(queries)
        window: list[Prompt] = []
        while True:
            for query in islice(source, self.lookahead - len(window)):
                try:
                    window.append(self._checked(self._prompts.prompt(query)))
                except Exception as error:
                    yield failed(query, describe_error(error))
            if not window:
                return
            batch = self._next_batch(window)
            chosen = {id(prompt) for prompt in batch}
            window = [prompt for prompt in window if id(prompt) not in chosen]
            yield from self._run(batch)

    def _checked(self, prompt: Prompt) -> Prompt:
        room = getattr(self._model.config.get_text_config(), "max_position_embeddings", None)
        if room is not None and len(prompt.ids) >= room:
            raise AnswerError(f"the question is {len(prompt.ids)} tokens long, the model takes {room}")
        return prompt

    def _next_batch(self, window: Sequence[Prompt]) -> list[Prompt]:
        """The largest group that can run together, oldest first."""
        groups: dict[tuple[bool, int, Sampling | None], list[Prompt]] = {}
        for prompt in window:
            choice = bool(prompt.choice_ids)
            shape = _padded(prompt) if choice else prompt.query.max_tokens
            groups.setdefault((choice, shape, prompt.query.sampling), []).append(prompt)
        return max(groups.values(), key=len)[: self._batch]

    def _run(self, batch: list[Prompt], tap: Tap | None = None) -> list[Answer]:
        """Answers of a batch. What fails together is asked again in halves, down to the one that is to blame."""
        started = time.perf_counter()
        generate = self._generate if tap is None else partial(self._generate, tap=tap)
        try:
            answers = self._choose(batch) if batch[0].choice_ids else generate(batch)
        except Exception as error:
            message = describe_error(error)
            if any(sign in message for sign in FATAL):
                raise EngineCrashed(message) from error
            if len(batch) == 1 and (tap is not None or not self._relieved(error, 1)):
                return [failed(batch[0].query, message, seconds=time.perf_counter() - started)]
            log.warning("a batch of %d failed (%s); asking it in halves", len(batch), message)
            self._relieved(error, len(batch))
            half = max(1, len(batch) // 2)
            return [answer for part in (batch[:half], batch[half:]) if part for answer in self._run(part)]
        seconds = (time.perf_counter() - started) / len(batch)
        return [replace(answer, seconds=seconds) for answer in answers]

    def _relieved(self, error: Exception, size: int) -> bool:
        """After running out of memory: free what can be freed and go on with less. True if that may help."""
        if not _no_memory(error):
            return False
        import torch

        self._features.clear()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
        smaller = max(1, size // 2)
        helps = smaller < size or self._rows > 1
        self._batch = min(self._batch, smaller)
        self._rows = min(self._rows, smaller)
        return helps

    # ------------------------------------------------------------------------------------------ choices

    def _choose(self, batch: Sequence[Prompt]) -> list[Answer]:
        answers: list[Answer] = []
        for start in range(0, len(batch), self._rows):
            part = list(batch[start : start + self._rows])
            # always the same number of rows: kernels pick their order of summation by shape
            filled = part + [part[-1]] * (self._rows - len(part))
            logits = self._last_logits(filled)
            answers += [self._choice(prompt, row) for prompt, row in zip(part, logits, strict=False)]
        return answers

    def _last_logits(self, rows: Sequence[Prompt]) -> torch.Tensor:
        """Logits of the next token, (rows, vocabulary), float32 on the CPU."""
        import torch

        with torch.inference_mode():
            inputs = self._inputs(rows, length=_padded(rows[0]))
            logits: torch.Tensor = self._model(**inputs, logits_to_keep=1, use_cache=False).logits[:, -1]
            return logits.float().cpu()

    @staticmethod
    def _choice(prompt: Prompt, logits: torch.Tensor) -> Answer:
        import torch

        query = prompt.query
        logs = torch.log_softmax(logits.double(), dim=-1)
        if not bool(torch.isfinite(logs).any()):
            return failed(query, "the model's output is not a number")
        each = torch.stack([torch.logsumexp(logs[list(ids)], dim=0) for ids in prompt.choice_ids])
        chances = torch.softmax(each, dim=0).tolist()
        best = max(range(len(chances)), key=chances.__getitem__)
        return Answer(
            key=query.key,
            task=query.task,
            text=query.choices[best],
            probabilities=dict(zip(query.choices, chances, strict=True)),
            logprob=float(each[best]),
            prompt_tokens=len(prompt.ids),
            new_tokens=1,
        )

    # ------------------------------------------------------------------------------------------ text

    def stream(self, query: Query) -> Generator[str, None, Answer]:
        """The answer piece by piece, as `StreamingEngine` says; abandoning the generator stops the model."""
        try:
            prompt = self._checked(self._prompts.prompt(query))
        except Exception as error:
            return failed(query, describe_error(error))
        if prompt.choice_ids:
            answer = self._run([prompt])[0]
            if answer.text:
                yield answer.text
            return answer
        ends = set(self._generation(query.max_tokens, query.sampling).eos_token_id)
        tokenizer = self._prompts.tokenizer
        spoken = ""
        for piece in pieces_of(lambda tap: self._run([prompt], tap), ends, tokenizer):
            if isinstance(piece, Answer):
                # what is left: a last character whose bytes were incomplete
                rest = piece.text[len(spoken) :] if piece.text.startswith(spoken) else ""
                if rest:
                    yield rest
                return piece
            spoken += piece
            yield piece
        return failed(query, "the model stopped without an answer")

    def _generate(self, batch: Sequence[Prompt], tap: Tap | None = None) -> list[Answer]:
        import torch

        sampling = batch[0].query.sampling
        record = TokenLogs(drawn=sampling is not None)
        length = max(len(prompt.ids) for prompt in batch)
        settings = self._generation(batch[0].query.max_tokens, sampling)
        if sampling is not None:
            torch.manual_seed(seed_of([prompt.query.key for prompt in batch], self._seed))
        with torch.inference_mode():
            inputs = self._inputs(batch, length=length)
            listening = {} if tap is None else {"streamer": tap, "stopping_criteria": [tap.wants_stop]}
            output = self._model.generate(**inputs, generation_config=settings, logits_processor=[record], **listening)
        logs = record.of(output)
        ends = set(settings.eos_token_id)
        answers = []
        for prompt, ids, row in zip(batch, output[:, length:].tolist(), logs, strict=True):
            stop = next((place for place, token in enumerate(ids) if token in ends), None)
            words = ids if stop is None else ids[:stop]
            spent = len(ids) if stop is None else stop + 1
            answers.append(
                Answer(
                    key=prompt.query.key,
                    task=prompt.query.task,
                    # special tokens stay: boxes of some dialects are written with them
                    text=self._prompts.tokenizer.decode(words, skip_special_tokens=False),
                    status="truncated" if stop is None else "ok",
                    finish_reason="length" if stop is None else "stop",
                    logprob=float(row[:spent].double().sum()),
                    prompt_tokens=len(prompt.ids),
                    new_tokens=spent,
                )
            )
        return answers

    # ------------------------------------------------------------------------------------------ tensors

    def _inputs(self, rows: Sequence[Prompt], *, length: int) -> dict[str, Any]:
        """Model inputs, left-padded to ``length``: ids and mask (rows, length), images in row order."""
        import torch

        pad = int(self._prompts.tokenizer.pad_token_id or 0)
        ids = torch.full((len(rows), length), pad, dtype=torch.long)
        mask = torch.zeros((len(rows), length), dtype=torch.long)
        for number, prompt in enumerate(rows):
            ids[number, length - len(prompt.ids) :] = torch.tensor(prompt.ids)
            mask[number, length - len(prompt.ids) :] = 1
        columns = {"input_ids": ids, "attention_mask": mask} | self._prompts.per_token(rows, ids, mask)
        inputs: dict[str, Any] = {name: column.to(self._device) for name, column in columns.items()}
        images = [image for prompt in rows for image in prompt.images]
        if images:
            inputs |= {name: each.to(self._device) for name, each in self._prompts.per_image(images).items()}
            if self._shares_vision:
                inputs["mm_encoder_outputs"] = {"image": self._vision(images)}
            else:
                values = torch.cat([image.values for image in images])
                inputs["pixel_values"] = values.to(self._device, self._dtype)
        return inputs

    def _vision(self, images: Sequence[Patches]) -> Any:
        """The vision tower's output for these images, computed only for those not seen lately."""
        import torch

        distinct = {image.key: image for image in images}
        by_grid: dict[tuple[int, int, int], list[Patches]] = {}
        for key, image in distinct.items():
            if key in self._features:
                self._features.move_to_end(key)
            else:
                by_grid.setdefault(image.grid, []).append(image)
        for same in by_grid.values():
            for start in range(0, len(same), self._rows):
                self._see(same[start : start + self._rows])
        kept = [self._features[image.key] for image in images]
        while len(self._features) > max(2 * self.lookahead, len(distinct)):
            self._features.popitem(last=False)
        features = tuple(seen[1] for seen in kept)
        output = kept[0][0](pooler_output=torch.cat(features) if self._prompts.joined else features)
        if kept[0][2] is not None:
            output.deepstack_features = [list(level) for level in zip(*(seen[2] for seen in kept), strict=True)]
        return output

    def _see(self, images: list[Patches]) -> None:
        """Run the vision tower on images of one size, in a batch of fixed shape, and remember the features."""
        import torch

        filled = images + [images[-1]] * (self._rows - len(images))
        grids = [each.to(self._device) for each in self._prompts.per_image(filled).values()]
        values = torch.cat([image.values for image in filled]).to(self._device, self._dtype)
        output = self._model.get_image_features(values, *grids, return_dict=True)
        # one tensor for each image, whatever the family makes of them
        seen = output.pooler_output
        features = seen.reshape(len(filled), -1, seen.shape[-1]) if self._prompts.joined else seen
        levels = getattr(output, "deepstack_features", None)
        for number, image in enumerate(images):
            # copies, so that a kept image does not keep its whole batch
            deep = None if levels is None else [level[number].clone() for level in levels]
            self._features[image.key] = (type(output), features[number].clone(), deep)

    def image_features(self, images: Sequence[Image]) -> NDArray[np.float32]:
        """As `FeatureEngine` says: the mean over each picture's merged patches, (len(images), width) float32."""
        import numpy as np
        import torch

        turns = (Turn("user", "<image>"),)
        try:
            means = []
            for start in range(0, len(images), self._rows):
                queries = [Query("", "describe", turns, (image,)) for image in images[start : start + self._rows]]
                part = [patches for query in queries for patches in self._prompts.prompt(query).images]
                with torch.inference_mode():
                    self._vision(part)
                    means += [self._features[patches.key][1].float().mean(dim=0).cpu().numpy() for patches in part]
        except Exception as error:
            if any(sign in describe_error(error) for sign in FATAL):
                raise EngineCrashed(describe_error(error)) from error
            if self._relieved(error, self._rows):
                return self.image_features(images)
            raise EngineError(f"the vision tower gave no features: {describe_error(error)}") from error
        return np.stack(means)


def _padded(prompt: Prompt) -> int:
    return -(-len(prompt.ids) // LENGTH_STEP) * LENGTH_STEP


def _no_memory(error: Exception) -> bool:
    import torch

    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error).lower() for sign in NO_MEMORY)
