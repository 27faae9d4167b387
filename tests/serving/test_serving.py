"""vLLM in this process and as a server, with the embedded checkpoint: the same decisions, boxes, and a real death."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from wsi_chat.schema import Answer, Box, Query

TOLERANCE = 0.01
"""How far a screening probability may lie from the transformers engine's; sums in float32 differ in their order."""

Answers = dict[str, Answer]


def _ask(engine: Any, queries: Iterable[Query]) -> Answers:
    return {answer.key: answer for answer in engine.answer(queries)}


def _of(questions: Any, task: str, target: str = "") -> list[Query]:
    return [query for query in questions.queries if query.task == task and query.target == target]


def _boxes(answers: Answers, questions: Any, dialect: Any) -> list[tuple[str, Box]]:
    """Every box of every grounding answer as (question's key, level-0 pixels)."""
    found = []
    for key, (tile, ask, frame) in questions.places.items():
        if ask.task == "ground":
            reading = dialect.read_boxes(answers[key], frame, ask.target)
            found += [(key, tile.to_level0(box.box)) for box in reading.boxes]
    return found


def _assert_same(answers: Answers, reference: Answers, questions: Any, dialect: Any, name: str, note: Any) -> None:
    assert {key: answer.error for key, answer in answers.items() if answer.status == "failed"} == {}
    assert {key: answer.prompt_tokens for key, answer in answers.items()} == {
        key: answer.prompt_tokens for key, answer in reference.items()
    }, "the prompts are not the same tokens"

    apart = []
    for query in _of(questions, "screen"):
        theirs, ours = answers[query.key].probabilities, reference[query.key].probabilities
        assert theirs is not None
        assert ours is not None
        apart.append(abs(theirs["B"] - ours["B"]))
        undecided = abs(ours["B"] - 0.5) < 1e-3
        assert answers[query.key].text == reference[query.key].text or undecided
    assert max(apart) < TOLERANCE

    ours_boxes, boxes = (_boxes(each, questions, dialect) for each in (reference, answers))
    same = sum(any(key == other and box.iou(twin) > 0.9 for other, twin in ours_boxes) for key, box in boxes)
    tiles = [tile.box for tile, _, _ in questions.places.values()]
    assert all(any(box.intersection(tile) == pytest.approx(box.area) for tile in tiles) for _, box in boxes)
    assert len(boxes) == pytest.approx(len(ours_boxes), abs=2)
    assert same >= 0.95 * max(len(boxes), len(ours_boxes))
    words = sum(answers[query.key].text == reference[query.key].text for query in questions.queries)
    assert words >= 0.9 * len(questions.queries)
    note(
        f"{name} against transformers, {len(apart)} tiles: screening probability differs by at most {max(apart):.1e}; "
        f"{same} of {len(boxes)} boxes at the same level-0 pixels; {words} of {len(questions.queries)} answers equal"
    )


@pytest.fixture(scope="module")
def engine() -> Iterator[Any]:
    """vLLM in this process, restarted once if it dies."""
    from wsi_chat.engines import load_engine

    loaded = load_engine(None, engine="vllm", dtype="float32", concurrency=32)
    yield loaded
    loaded.close()


def test_in_process_gives_the_same_answers(
    engine: Any, reference: Answers, questions: Any, dialect: Any, note: Any
) -> None:
    assert (engine.name, engine.model_name) == ("vllm", "embedded")
    _assert_same(_ask(engine, questions.queries), reference, questions, dialect, "vllm in process", note)


def test_questions_about_one_tile_share_its_prefix(engine: Any, questions: Any, note: Any) -> None:
    core = engine._running
    shares = []
    for task, target in (("ground", "lsil"), ("describe", "")):
        # words that the cache has not seen after an image that it has
        queries = _of(questions, task, "hsil" if target else "")
        asked = [replace(query, key=f"{task}{n}", turns=_reworded(query)) for n, query in enumerate(queries)]
        before = core.cached_tokens, core.prompt_tokens
        _ask(engine, asked)
        shares.append((core.cached_tokens - before[0]) / (core.prompt_tokens - before[1]))
    assert min(shares) > 0.5
    note(f"vllm in process: {min(shares):.0%} of a further question's tokens are in the prefix cache")


def _reworded(query: Query) -> tuple[Any, ...]:
    return (*query.turns[:-1], replace(query.turns[-1], text=query.turns[-1].text + " Once more."))


def test_a_bad_question_fails_alone(engine: Any, questions: Any) -> None:
    good = questions.queries[0]
    long = replace(good, key="long", turns=(*good.turns[:-1], replace(good.turns[-1], text="<image>" + "cell " * 9000)))
    odd = replace(good, key="odd", choices=("yes and no", "B"))
    lost = replace(good, key="lost", images=())
    answers = _ask(engine, [long, odd, lost, good])
    assert {key for key, answer in answers.items() if answer.status == "failed"} == {"long", "odd", "lost"}
    assert all(answers[key].error for key in ("long", "odd", "lost"))
    core = engine._running
    assert core.room(long) < 0 < core.room(good) == 2048 - answers[good.key].prompt_tokens


def test_analyze_runs_on_it(engine: Any, small_slide: Path, tmp_path: Path) -> None:
    from wsi_chat import analyze

    result = analyze(small_slide, out=tmp_path, engine=engine, specimen="cervix", top_k=1, limit=6, pdf=False)
    funnel = result.report.funnel
    assert (funnel.screened, funnel.screen_failed, funnel.detail_failed) == (6, 0, 0)
    assert result.report.provenance.model.engine == "vllm"


def test_a_killed_engine_process_is_restarted_and_nothing_is_lost(engine: Any, questions: Any) -> None:
    import psutil

    answered: list[Answer] = []
    queries = [replace(query, key=f"again{n}") for n, query in enumerate(_of(questions, "ground", "hsil"))]
    for answer in engine.answer(queries * 4):
        answered.append(answer)
        if len(answered) == 5:
            children = psutil.Process().children(recursive=True)
            core = max(children, key=lambda child: child.memory_info().rss)
            core.send_signal(signal.SIGKILL)
    assert len(answered) == 4 * len(queries)
    assert all(answer.status != "failed" for answer in answered)
    engine.close()  # the server needs the memory


# ------------------------------------------------------------------------------------------------ an adapter


@pytest.fixture(scope="module")
def adapted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A LoRA adapter of the embedded checkpoint, as peft writes it, and the checkpoint with it merged in."""
    import torch
    from safetensors.torch import load_file, save_file

    from wsi_chat.engines import embedded_checkpoint

    root = tmp_path_factory.mktemp("adapted")
    adapter, merged = root / "mine", root / "merged"
    shutil.copytree(embedded_checkpoint(), merged, ignore=shutil.ignore_patterns("aggregator", "*.md", "SHA256SUMS"))
    weights = {name: tensor.float() for name, tensor in load_file(merged / "model.safetensors").items()}
    rank, alpha, random = 4, 8, torch.Generator().manual_seed(11)
    added = {}
    for name in [
        name for name in weights if "language_model" in name and name.endswith(("q_proj.weight", "v_proj.weight"))
    ]:
        out, into = weights[name].shape
        a, b = torch.randn(rank, into, generator=random) / into**0.5, torch.randn(out, rank, generator=random) * 0.4
        stem = f"base_model.model.{name.removesuffix('.weight')}"
        added |= {f"{stem}.lora_A.weight": a, f"{stem}.lora_B.weight": b}
        weights[name] += alpha / rank * b @ a
    assert added
    save_file(weights, merged / "model.safetensors", {"format": "pt"})
    adapter.mkdir()
    save_file(added, adapter / "adapter_model.safetensors", {"format": "pt"})
    config = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": rank, "lora_alpha": alpha, "lora_dropout": 0.0,
        "bias": "none", "target_modules": ["q_proj", "v_proj"], "base_model_name_or_path": "embedded",
        "inference_mode": True,
    }  # fmt: skip
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    return adapter, merged


def test_an_adapter_answers_as_its_merged_weights_do(
    adapted: tuple[Path, Path], reference: Answers, questions: Any, note: Any
) -> None:
    from wsi_chat.engines import load_engine

    screens = _of(questions, "screen")
    adapter, merged = adapted
    plain = load_engine(merged, engine="transformers", dtype="float32")
    wanted = _ask(plain, screens)
    plain.close()
    engine = load_engine(None, engine="vllm", adapter=adapter, dtype="float32", concurrency=16)
    try:
        assert engine.model_name == "embedded+mine"
        found = _ask(engine, screens)
    finally:
        engine.close()
    apart = [abs(found[query.key].probabilities["B"] - wanted[query.key].probabilities["B"]) for query in screens]
    moved = [abs(found[query.key].probabilities["B"] - reference[query.key].probabilities["B"]) for query in screens]
    assert max(apart) < TOLERANCE
    assert max(moved) > 0.3, "an adapter that moves nothing shows nothing"
    note(
        f"vllm with a LoRA adapter against its merged weights: at most {max(apart):.1e}"
        f" (it moves them by up to {max(moved):.2f})"
    )


# ------------------------------------------------------------------------------------------------ the server


def test_a_server_gives_the_same_answers_and_shares_prefixes(
    server: Any, reference: Answers, questions: Any, dialect: Any, note: Any
) -> None:
    from wsi_chat.engines import load_engine, served_dialect

    assert served_dialect(server.url, None) == "embedded"
    engine = load_engine(None, base_url=server.url, images=dialect.image_px, timeout=300)
    try:
        _assert_same(_ask(engine, questions.queries), reference, questions, dialect, "vllm serve", note)
        cached = engine._running.cached_tokens
        spent = sum(answer.prompt_tokens for answer in reference.values())
        assert cached > 0.25 * spent
        note(f"vllm serve: {cached / spent:.0%} of all prompt tokens came from the prefix cache")
    finally:
        engine.close()


def _analyze(slide: Path, out: Path, *flags: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "wsi_chat.cli", "analyze", str(slide), "-o", str(out), "--specimen", "cervix"]
    return subprocess.Popen(
        [*command, "--no-pdf", *flags], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "WSI_CHAT_API_KEY": "not-for-the-record"},
    )  # fmt: skip


def test_analyze_runs_on_a_server(server: Any, shared_data: Path, tmp_path: Path) -> None:
    slide = shared_data / "slides" / "CMU-1-Small-Region.svs"
    process = _analyze(slide, tmp_path, "--engine", "openai", "--base-url", server.url, "--limit", "12", "--top-k", "2")
    stdout, stderr = process.communicate(timeout=1200)
    assert process.returncode == 3, stderr  # a sample of a slide outside the model's scope has no verdict
    assert "12 screened" in stdout
    assert "INDETERMINATE" in stdout
    (path,) = tmp_path.glob("*/report.json")
    model = json.loads(path.read_text())["provenance"]["model"]
    assert (model["engine"], model["engine_reason"]) == ("openai", "asked for with --engine")
    assert model["name"] == "embedded"
    for file in tmp_path.rglob("*"):
        assert not file.is_file() or b"not-for-the-record" not in file.read_bytes(), file


def test_a_server_killed_in_the_middle_ends_the_run_with_its_state_saved(
    server: Any, small_slide: Path, tmp_path: Path
) -> None:
    process = _analyze(
        small_slide, tmp_path, "--base-url", server.url, "--exhaustive", "--concurrency", "1", "--timeout", "8"
    )
    deadline = time.monotonic() + 600
    while _answered(tmp_path) < 5 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    assert process.poll() is None, process.communicate()
    server.kill()
    _, stderr = process.communicate(timeout=300)
    assert process.returncode == 3, stderr
    assert "died" in stderr
    assert "Run the same command again" in stderr
    assert _answered(tmp_path) >= 5


def _answered(out: Path) -> int:
    from wsi_chat.errors import WsiChatError
    from wsi_chat.journal import Journal

    for path in out.glob("*/journal.sqlite"):
        try:
            with Journal(path, read_only=True) as journal:
                return len(journal)
        except WsiChatError:
            return 0
    return 0
