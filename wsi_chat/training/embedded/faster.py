"""Stage 3 on a GPU: the same losses as `language.learn_jointly` on batches that worker processes prepare.

May begin from a finished checkpoint, whose tokens may be fewer than those of today's vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch

from wsi_chat.training.embedded.architecture import MERGE, PATCH_PX
from wsi_chat.training.embedded.batched import here, patchify
from wsi_chat.training.embedded.language import language_loss
from wsi_chat.training.embedded.optim import Clock, Optimisers
from wsi_chat.training.embedded.packing import Packer
from wsi_chat.training.embedded.stages import Run
from wsi_chat.training.embedded.warmup import dense_loss
from wsi_chat.training.embedded.workers import Recipe, load

LOG_STEPS = 100
"""How often a line goes to the log."""
HEADS_ALONE = 120
"""Steps in which only the dense heads learn: a checkpoint does not carry them."""


def begin_from(run: Run, folder: Path) -> int:
    """Take a checkpoint's weights; returns how many token rows of today's vocabulary it had.

    Tokens that it did not have keep the start that the recipe gives them.
    """
    from safetensors.torch import load_file
    from transformers import PreTrainedTokenizerFast

    held = {name: value.float() for name, value in load_file(str(folder / "model.safetensors")).items()}
    key = "model.language_model.embed_tokens.weight"
    then = PreTrainedTokenizerFast.from_pretrained(folder).get_vocab()
    table = run.model.state_dict()[key].detach().cpu().clone()
    kept = 0
    for token, row in run.tokenizer.get_vocab().items():
        if token in then:
            table[row] = held[key][then[token]]
            kept += 1
    held[key] = table
    held.pop("lm_head.weight", None)
    run.model.load_state_dict(held, strict=False)
    run.model.tie_weights()
    run.log(f"began from {folder.name}: {kept} of {len(run.tokenizer)} tokens")
    return kept


def learn_from_workers(
    run: Run,
    recipe: Recipe,
    minutes: float,
    *,
    workers: int,
    rate: float = 1.0,
    decay: float = 0.6,
    save_seconds: float = 60.0,
    saved: Callable[[], None] = lambda: None,
) -> int:
    """Joint training for `minutes`; returns the steps in all.

    Restartable: the state is kept every `save_seconds`, then `saved` is called.
    """
    state = run.load("joint")
    named = [*run.model.named_parameters(), *run.heads.named_parameters()]
    optimisers = Optimisers(named, matrix_lr=2e-3 * rate, other_lr=1e-3 * rate)
    step, spent = 0, 0.0
    if state is not None:
        optimisers.restore(state["optimisers"])
        step, spent = state["step"], state["spent"]
    first = step
    batches = load(recipe, workers=workers, seed=run.seed + step)
    prepared = next(batches)  # the workers' start is no training time
    clock = Clock(minutes, spent)
    visual_start = Packer(run.tokenizer).visual_start
    run.log(f"joint from step {step}, {workers} workers, {recipe.batch} fields of which {recipe.asked} asked")
    average: dict[str, float] = {}
    kept = logged = clock.spent
    while clock.progress < 1:
        alone = state is None and step < HEADS_ALONE
        with half_precision():
            tokens, deepstack = run.tower(patchify(here(prepared.images), PATCH_PX, MERGE))
            targets = prepared.targets.here()
            dense, parts = dense_loss(run.heads, tokens.detach() if alone else tokens, targets, 2.0)
            answers = language_loss(
                run.model,
                run.heads,
                prepared.questions.pack(),
                tokens[: recipe.asked],
                [features[: recipe.asked] for features in deepstack],
                visual_start,
                order=targets.order[: recipe.asked],
            )
            loss = 0.0 * answers.total + dense if alone else answers.total + dense
        loss.backward()  # type: ignore[no-untyped-call]
        warm = (step + 1) / 50 if alone else (step - max(first, HEADS_ALONE) + 1) / 120
        optimisers.step(min(1.0, warm) * max(0.01, min(1.0, (1 - clock.progress) / decay)))
        step += 1
        for name, value in {**answers.parts, **{f"d_{k}": v for k, v in parts.items()}}.items():
            average[name] = 0.98 * average.get(name, value) + 0.02 * value
        if step % LOG_STEPS == 0:
            pace = LOG_STEPS / max(clock.spent - logged, 1e-6)
            logged = clock.spent
            text = " ".join(f"{k} {v:.3f}" for k, v in average.items())
            run.log(
                f"joint {step} {clock.spent:.0f}s {pace:.1f} steps/s length {prepared.questions.ids.shape[1]} {text}"
            )
        if clock.spent - kept > save_seconds:
            run.save("joint", optimisers, clock, step)
            saved()
            kept = clock.spent
        prepared = next(batches)
    run.save("joint", optimisers, clock, step)
    run.log(f"joint done {step}")
    return step


def half_precision() -> AbstractContextManager[object]:
    """bfloat16 for the matrix products on a GPU; nothing on the CPU."""
    device = torch.get_default_device().type
    return torch.autocast(device, dtype=torch.bfloat16) if device == "cuda" else nullcontext()
