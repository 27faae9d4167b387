"""How good a checkpoint is while it is trained: its own answers, read through its dialect, by the package's metrics.

Grounding F1 at IoU 0.5 (one-to-one, class and box), accuracy of choices (from the probabilities of the option
letters, as the engine takes them), accuracy of region classes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from wsi_chat.engines.loading import generation_settings
from wsi_chat.engines.prompts import Prompt
from wsi_chat.schema import Answer
from wsi_chat.tasks import DEFAULT_TOKENS, LETTERS
from wsi_chat.training.data import Conversation, pictures, scorable
from wsi_chat.training.embedded.scores import matches
from wsi_chat.training.encode import Encoder

IOU = 0.5
ROWS = 8
SLACK = 32


def choose(talks: Sequence[Conversation], most: int, *, seed: int) -> list[Conversation]:
    """At most ``most`` conversations that can be scored, the kinds in equal parts, the same for the same seed."""
    kinds: dict[str, list[Conversation]] = {}
    for talk, exchange in scorable(talks):
        kinds.setdefault(str(exchange.kind), []).append(talk)
    rng = np.random.default_rng(seed)
    queues = [[kinds[kind][i] for i in rng.permutation(len(kinds[kind]))] for kind in sorted(kinds)]
    chosen: list[Conversation] = []
    while len(chosen) < most and any(queues):
        for queue in queues:
            if queue and len(chosen) < most:
                chosen.append(queue.pop())
    return chosen


def sample(total: int, most: int, *, seed: int) -> list[int]:
    """At most ``most`` of ``total`` indices, in order, the same for the same seed."""
    return sorted(np.random.default_rng(seed).permutation(total)[:most].tolist())


def metrics_of(talks: Sequence[Conversation]) -> set[str]:
    """Which metrics these conversations allow."""
    names = {"ground": "ground_f1", "choice": "choice_accuracy", "refer": "refer_accuracy"}
    return {names[str(talk.exchanges[0].kind)] for talk in talks}


def count(model: Any, encoder: Encoder, talks: Sequence[Conversation]) -> Counter[str]:
    """Hits and totals over conversations of `choose`; counts of several processes may be added up.

    The model is put into evaluation mode and back; answers are greedy.
    """
    counted: Counter[str] = Counter()
    was_training = model.training
    model.eval()
    try:
        with _greedy(model, encoder) as generate:
            groups: dict[str, list[Conversation]] = {}
            for talk in talks:
                groups.setdefault(str(talk.exchanges[0].kind), []).append(talk)
            for kind, same in groups.items():
                for start in range(0, len(same), ROWS):
                    part = same[start : start + ROWS]
                    counted += _choices(model, encoder, part) if kind == "choice" else _texts(encoder, part, generate)
    finally:
        model.train(was_training)
    return counted


def scores(counted: Mapping[str, int]) -> dict[str, float]:
    """The metrics of `count`'s sums, 0..1; only those for which something was asked."""
    said: dict[str, float] = {}
    if counted.get("ground"):
        hit, found, truth = (counted.get(name, 0) for name in ("hit", "found", "truth"))
        said["ground_f1"] = 2 * hit / (found + truth) if hit else float(found + truth == 0)
        said["ground_precision"] = hit / found if found else 0.0
        said["ground_recall"] = hit / truth if truth else 0.0
        said["ground_unread"] = counted.get("unread", 0) / counted["ground"]
    for kind in ("choice", "refer"):
        if counted.get(kind):
            said[f"{kind}_accuracy"] = counted.get(f"{kind}_right", 0) / counted[kind]
    return said


def _prompt(encoder: Encoder, talk: Conversation, choices: tuple[str, ...] = ()) -> Prompt:
    return encoder.prompt(talk.turns[:-1], pictures(talk, encoder.dialect), choices)


def _choices(model: Any, encoder: Encoder, talks: Sequence[Conversation]) -> Counter[str]:
    import torch

    counted: Counter[str] = Counter()
    asks = [talk.exchanges[0].ask for talk in talks]
    prompts = [_prompt(encoder, talk, ask.letters if ask else ()) for talk, ask in zip(talks, asks, strict=True)]
    inputs = _moved(encoder.batch([p.ids for p in prompts], [i for p in prompts for i in p.images], left=True), model)
    with torch.inference_mode():
        logits = model(**inputs, logits_to_keep=1).logits[:, -1].float().cpu()
    for row, prompt, talk, ask in zip(logits, prompts, talks, asks, strict=True):
        masses = [float(torch.logsumexp(row[list(ids)], dim=0)) for ids in prompt.choice_ids]
        letter = LETTERS[int(np.argmax(masses))]
        chosen = ask.options[LETTERS.index(letter)] if ask else ""
        counted["choice"] += 1
        counted["choice_right"] += chosen == talk.exchanges[0].right
    return counted


def _texts(
    encoder: Encoder, talks: Sequence[Conversation], generate: Callable[[list[Prompt], int], list[Answer]]
) -> Counter[str]:
    counted: Counter[str] = Counter()
    prompts = [_prompt(encoder, talk) for talk in talks]
    # a model that never stops must not hold up the training: twice the longest true answer is room enough
    longest = max(len(encoder.tokenizer(talk.turns[-1].text)["input_ids"]) for talk in talks)
    room = min(DEFAULT_TOKENS["ground"], 2 * longest + SLACK)
    for answer, talk in zip(generate(prompts, room), talks, strict=True):
        exchange = talk.exchanges[0]
        if exchange.kind == "refer":
            counted["refer"] += 1
            counted["refer_right"] += encoder.dialect.read_label(answer) == exchange.right
            continue
        reading = encoder.dialect.read_boxes(answer, encoder.dialect.frame(talk.sizes[0]), exchange.label)
        counted["ground"] += 1
        counted["unread"] += not reading.understood
        # an answer that is none must not pass for 'none found': it counts as a box that is not there
        counted["found"] += len(reading.boxes) if reading.understood else 1
        counted["truth"] += len(exchange.truth)
        counted["hit"] += _hits(reading.boxes, exchange.truth)
    return counted


def _hits(found: Sequence[Any], truth: Sequence[Any]) -> int:
    plain = [[(b.label, (b.box.x0, b.box.y0, b.box.x1, b.box.y1)) for b in boxes] for boxes in (found, truth)]
    return matches(plain[0], plain[1], IOU)


def _moved(inputs: dict[str, Any], model: Any) -> dict[str, Any]:
    return {name: value.to(model.device) for name, value in inputs.items()}


@contextmanager
def _greedy(model: Any, encoder: Encoder) -> Iterator[Callable[[list[Prompt], int], list[Answer]]]:
    """A function (prompts, room in tokens) -> answers. The model's own generation settings are put back."""
    import torch

    own = model.generation_config
    settings = generation_settings(model, encoder.tokenizer)

    def generate(prompts: list[Prompt], room: int) -> list[Answer]:
        rows = [prompt.ids for prompt in prompts]
        inputs = _moved(encoder.batch(rows, [i for p in prompts for i in p.images], left=True), model)
        chosen = settings(room, None)
        ends = set(chosen.eos_token_id) | {encoder.end_id}
        with torch.inference_mode():
            output = model.generate(**inputs, generation_config=chosen)
        answers = []
        for ids in output[:, inputs["input_ids"].shape[1] :].tolist():
            stop = next((place for place, token in enumerate(ids) if token in ends), None)
            text = encoder.tokenizer.decode(ids[:stop], skip_special_tokens=False)
            cut = stop is None
            answers.append(
                Answer("", "vqa", text, status="truncated" if cut else "ok", finish_reason="length" if cut else "stop")
            )
        return answers

    try:
        yield generate
    finally:
        model.generation_config = own
