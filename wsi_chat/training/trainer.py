"""transformers' Trainer with our sampler, our metrics and an orderly stop. Imported only when a run begins."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch
from transformers import Trainer, TrainerCallback

from wsi_chat.errors import EngineError
from wsi_chat.training import probes
from wsi_chat.training.arguments import ORDER
from wsi_chat.training.data import Conversation
from wsi_chat.training.encode import Encoder
from wsi_chat.training.sampling import LengthGrouped
from wsi_chat.training.state import MetricsLog

Tell = Callable[[dict[str, Any]], None]
"""Called with every row of the metrics log, and with ``{"step", "steps"}`` after every step."""


TIE = 1e-6
"""Weight of the loss where the chosen metric ties: a grounding F1 is 0 for long before it is anything else."""


class ChatTrainer(Trainer):
    """Trains on `encode.Conversations`; an evaluation also asks ``asked`` and scores the answers."""

    def __init__(
        self, *, encoder: Encoder, asked: Sequence[Conversation], best_by: str | None, grouped: bool, **rest: Any
    ) -> None:
        super().__init__(**rest)
        self.encoder, self.asked, self.best_by, self.grouped = encoder, asked, best_by, grouped

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        data: Any = self.train_dataset if train_dataset is None else train_dataset
        batch = self.args.train_batch_size * self.args.world_size
        return LengthGrouped(data.lengths, batch, seed=self.args.seed, grouped=self.grouped)

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Loss on the evaluation set, and our metrics on a sample of it."""
        metrics = super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
        if self.asked:
            said = {f"{metric_key_prefix}_{name}": value for name, value in self._scores().items()}
            self.log(dict(said))
            metrics |= said
        if self.best_by is not None:
            loss = metrics[f"{metric_key_prefix}_loss"]
            best = metrics[f"{metric_key_prefix}_{self.best_by}"]
            metrics[f"{metric_key_prefix}_{ORDER}"] = -loss if self.best_by == "loss" else best - TIE * loss
        return metrics

    def _scores(self) -> dict[str, float]:
        """Every process asks its share; the counts are added up."""
        from accelerate.utils import gather_object

        rank, world = self.args.process_index, self.args.world_size
        model = self.accelerator.unwrap_model(self.model)
        with self.accelerator.autocast():
            counted = probes.count(model, self.encoder, self.asked[rank::world])
        total: Counter[str] = Counter()
        for part in gather_object([dict(counted)]):
            total.update(part)
        return probes.scores(total)


class Stop:
    """Whether someone asked the run to stop. A second Ctrl-C stops at once."""

    def __init__(self) -> None:
        self.asked = False

    @contextmanager
    def listening(self) -> Iterator[Stop]:
        """Ctrl-C and SIGTERM are noted instead of breaking the step that runs."""
        if threading.current_thread() is not threading.main_thread():
            yield self
            return

        def note(signum: int, frame: Any) -> None:
            if self.asked:
                raise KeyboardInterrupt
            self.asked = True
            outer = before[signal.Signals(signum)]  # learns of the signal, so that the exit code names it
            if callable(outer):
                with suppress(KeyboardInterrupt):
                    outer(signum, frame)

        before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


class Conduct(TrainerCallback):
    """Writes the metrics, tells of progress, stops when asked, and refuses to go on with a loss that is no number."""

    def __init__(self, log: MetricsLog | None, stop: Stop, tell: Tell | None, batch: int) -> None:
        self.log, self.stop, self.tell, self.batch = log, stop, tell, batch
        self.began = self.seconds = 0.0
        self.steps = 0

    def on_step_begin(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
        self.began = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
        # from step to step, so that evaluations and the first reading do not count as training
        self.seconds += time.perf_counter() - self.began
        self.steps += 1
        if self.tell is not None:
            self.tell({"step": state.global_step, "steps": state.max_steps})
        if self._stops(args):
            control.should_save = True
            control.should_evaluate = False
            control.should_training_stop = True

    def _stops(self, args: Any) -> bool:
        if args.world_size == 1:
            return self.stop.asked
        # every process must stop behind the same step, or the others wait for it forever
        flag = torch.tensor(int(self.stop.asked), device=args.device)
        torch.distributed.all_reduce(flag, op=torch.distributed.ReduceOp.MAX)
        self.stop.asked = bool(flag.item())
        return self.stop.asked

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **rest: Any) -> None:
        values = {key: value for key, value in (logs or {}).items() if isinstance(value, (int, float))}
        if "train_runtime" in values:
            return
        loss = values.get("loss")
        if loss is not None and not math.isfinite(loss):
            raise EngineError(
                f"the loss is {loss} at step {state.global_step}",
                hint="Lower --lr, or train in --precision fp32; --resume goes on from the last saved state.",
            )
        row: dict[str, Any] = {"step": state.global_step, **{k: v for k, v in values.items() if math.isfinite(v)}}
        if loss is not None:
            row["samples_per_second"] = round(self.steps * self.batch / max(self.seconds, 1e-9), 3)
        if self.log is not None:
            self.log.add(row)
        if self.tell is not None:
            self.tell(row)
