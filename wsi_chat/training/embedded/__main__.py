"""Runs the recipe: `python -m wsi_chat.training.embedded --out DIR --minutes N --bccd DIR --pbc DIR [--export DIR]`.

Every stage keeps its state in DIR and goes on from it when the command is given again. Fields are rendered by other
processes into DIR/pool while training runs. With `--start` a finished checkpoint is trained further; on a GPU, or with
`--workers`, the last stage gets its batches from worker processes.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import torch

from wsi_chat.training.embedded.evaluate import examine
from wsi_chat.training.embedded.export import export
from wsi_chat.training.embedded.faster import begin_from, learn_from_workers
from wsi_chat.training.embedded.fields import SHARD, Bccd, Pool, Sample, held_out, render_shards
from wsi_chat.training.embedded.language import learn_jointly, learn_language
from wsi_chat.training.embedded.optim import peers
from wsi_chat.training.embedded.pbc import Pbc
from wsi_chat.training.embedded.stages import Run, Source, score_dense, warm_up
from wsi_chat.training.embedded.workers import Recipe

SHARES = (0.36, 0.16, 0.48)
"""Parts of the time for warm-up, language and joint training."""


def flat(report: dict[str, Any], prefix: str) -> dict[str, float]:
    """The numbers of `examine` that belong on one log line."""
    ground = report["ground"]
    return {
        f"{prefix}_f1": ground["f1"],
        f"{prefix}_p": ground["precision"],
        f"{prefix}_r": ground["recall"],
        f"{prefix}_f1_30": ground["f1_iou30"],
        f"{prefix}_auc": report["screen"]["auc"],
        f"{prefix}_refer": report["refer_accuracy"],
    }


def mean_f1(checks: dict[str, float]) -> float:
    """Mean grounding F1 over the domains of a check; 0 for an empty one."""
    scores = [checks[name] for name in ("cx_f1", "bl_f1") if name in checks]
    return sum(scores) / len(scores) if scores else 0.0


def checks(run: Run, cervix: list[Sample], blood: list[Sample]) -> Callable[[], dict[str, float]]:
    """A function that scores generated answers on small held-out sets and exports what it scored.

    The newest goes to `current`, the best by grounding F1 (mean of the domains) to `best`.
    """
    record = run.folder / "best" / "manifest.json"

    def check() -> dict[str, float]:
        result: dict[str, float] = {}
        for prefix, samples in (("cx", cervix), ("bl", blood)):
            if samples:
                result |= {f"{prefix}_d{k}": v for k, v in score_dense(run, samples).items()}
                result |= flat(examine(run.model, run.tokenizer, samples, quick=True), prefix)
        export(run.model, run.tokenizer, run.folder / "current", {"state": "in training", "checks": result})
        before = json.loads(record.read_text())["training"]["checks"] if record.exists() else {}
        if mean_f1(result) > mean_f1(before):
            export(run.model, run.tokenizer, record.parent, {"state": "in training", "checks": result})
        return result

    return check


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m wsi_chat.training.embedded", description=__doc__)
    add = parser.add_argument
    add("--out", type=Path, required=True, help="folder of the run's state and log")
    add("--minutes", type=float, default=120.0, help="training time of all stages together")
    add("--stages", type=float, nargs=3, help="minutes of each stage, instead of a split of --minutes")
    add("--bccd", type=Path, help="folder of the BCCD data set: blood smears, white cells without their types")
    add("--pbc", type=Path, help="folder of the PBC fields and cut-outs: white cells with their types")
    add("--start", type=Path, help="checkpoint to train further; stages 1 and 2 are left out")
    add("--pool", type=Path, help="folder of rendered fields (default OUT/pool)")
    add("--shards", type=int, default=48, help=f"how many shards of {SHARD} fields to render")
    add("--export", type=Path, help="where the finished checkpoint goes")
    add("--seed", type=int, default=7)
    stages = ("warmup", "language", "joint")
    add("--only", choices=stages, help="run one stage; warm-up and language may run side by side")
    add("--threads", type=int, default=2)
    add("--workers", type=int, help="processes that prepare batches (default: 0, on a GPU by its machine's cores)")
    add("--renderers", type=int, help="processes that render (default: 1, on a GPU by its machine's cores)")
    add("--batch", type=int, default=80, help="fields of a batch that workers prepare")
    add("--asked", type=int, default=48, help="fields of it that are put to the language model")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    fast = options.device.startswith("cuda")
    spare = max(1, (os.cpu_count() or 2) - 1)
    if options.workers is None:
        options.workers = spare * 2 // 3 if fast else 0
    if options.renderers is None:
        options.renderers = max(1, spare - options.workers) if fast else 1
    return options


def render_beside(folder: Path, shards: int, processes: int) -> None:
    """Start rendering into the pool; the processes end with this one."""
    for number in range(processes):
        share = range(number, shards, processes)
        multiprocessing.get_context("spawn").Process(target=render_shards, args=(folder, share), daemon=True).start()


def main() -> None:
    """Command line."""
    options = parse()
    torch.set_default_device(options.device)
    torch.set_num_threads(options.threads)
    torch.set_float32_matmul_precision("high")
    cv2.setNumThreads(1)
    folder = options.pool or options.out / "pool"
    if options.only in (None, "warmup") or options.start:
        render_beside(folder, options.shards, options.renderers)
    while len(list(folder.glob("shard_*.npy"))) < min(2, options.shards):
        time.sleep(2)
    stages = options.stages or [share * options.minutes for share in SHARES]
    run = Run(options.out, seed=options.seed)
    for name, what in (("bccd", "untyped blood smears"), ("pbc", "types of white blood cells")):
        if getattr(options, name) is None:
            run.log(f"no --{name}: {what} are left out")
    if options.workers and (options.start or options.only == "joint" or run.path("joint").exists()):
        learn_fast(run, options, folder, options.minutes)
        return
    bccd = Bccd(options.bccd, ("train",)) if options.bccd else None
    pbc = Pbc(options.pbc) if options.pbc else None
    source = Source(Pool(folder), bccd, pbc, seed=options.seed + os.getpid())
    blood = Bccd(options.bccd, ("val",)).tiles()[::4] if options.bccd else []
    cervix = held_out(48)

    def dense() -> dict[str, float]:
        result = {f"cx_{k}": v for k, v in score_dense(run, cervix).items()}
        return result | ({f"bl_{k}": v for k, v in score_dense(run, blood).items()} if blood else {})

    check = checks(run, cervix[:32], blood[:12])
    if options.start:
        if not run.path("joint").exists():
            begin_from(run, options.start)
        stages = [0.0, 0.0, options.minutes]
    elif options.only == "warmup" or (options.only is None and not run.path("language").exists()):
        warm_up(run, source, stages[0], check=dense)
    if not options.start and (options.only == "language" or (options.only is None and not run.path("joint").exists())):
        learn_language(run, source, stages[1], check=check)
        run.log(f"language done {json.dumps(check())}")
    if options.only not in (None, "joint"):
        return
    if options.workers:
        learn_fast(run, options, folder, stages[2])
        return
    if "WORLD_SIZE" in os.environ:  # started by torchrun: several processes share stage 3
        torch.distributed.init_process_group("gloo")
    learn_jointly(run, source, stages[2], check=check)
    if peers()[0] > 0:
        return
    scores = check()
    run.log(f"joint done {json.dumps(scores)}")
    if options.export:
        summary = {"state": "trained", "seed": options.seed, "minutes": sum(stages), "checks": scores}
        export(run.model, run.tokenizer, options.export, summary)


def learn_fast(run: Run, options: argparse.Namespace, folder: Path, minutes: float) -> None:
    """Stage 3 with batches from worker processes, from the checkpoint that is given or from stage 2's state."""
    if not run.path("joint").exists():
        if options.start:
            begin_from(run, options.start)
        else:
            run.load("language")
            run.refresh_tower()
    summary = {
        "state": "trained",
        "seed": options.seed,
        "minutes": minutes,
        "began_from": options.start.name if options.start else None,
        "batch": options.batch,
        "asked": options.asked,
    }
    newest = options.out / "current"
    steps = learn_from_workers(
        run,
        Recipe(folder, options.bccd, options.pbc, batch=options.batch, asked=options.asked),
        minutes,
        workers=options.workers,
        saved=lambda: export(run.model, run.tokenizer, newest, summary | {"state": "in training"}),
    )
    export(run.model, run.tokenizer, options.export or options.out / "final", summary | {"steps": steps})


if __name__ == "__main__":
    main()
