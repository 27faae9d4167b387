"""Runs the recipe: `python -m wsi_chat.training.embedded --out DIR --minutes N --bccd DIR [--export DIR]`.

Every stage keeps its state in DIR and goes on from it when the command is given again. Fields are rendered by a second
process into DIR/pool while training runs.
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
from wsi_chat.training.embedded.fields import Bccd, Pool, Sample, held_out, render_shards
from wsi_chat.training.embedded.language import learn_jointly, learn_language
from wsi_chat.training.embedded.optim import peers
from wsi_chat.training.embedded.stages import Run, Source, score_dense, warm_up

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


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m wsi_chat.training.embedded", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder of the run's state and log")
    parser.add_argument("--minutes", type=float, default=120.0, help="training time of all stages together")
    parser.add_argument("--stages", type=float, nargs=3, help="minutes of each stage, instead of a split of --minutes")
    parser.add_argument("--bccd", type=Path, help="folder of the BCCD data set; without it only cervix is learned")
    parser.add_argument("--pool", type=Path, help="folder of rendered fields (default OUT/pool)")
    parser.add_argument("--shards", type=int, default=24, help="how many shards of 500 fields to render")
    parser.add_argument("--export", type=Path, help="where the finished checkpoint goes")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument(
        "--only",
        choices=("warmup", "language", "joint"),
        help="run one stage; warm-up and language may run side by side",
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    torch.set_default_device(options.device)
    torch.set_num_threads(options.threads)
    cv2.setNumThreads(1)
    folder = options.pool or options.out / "pool"
    process = multiprocessing.get_context("spawn").Process(
        target=render_shards,
        args=(folder, options.shards),
        daemon=True,
    )
    if options.only in (None, "warmup"):
        process.start()
    while len(list(folder.glob("shard_*.npy"))) < min(2, options.shards):
        time.sleep(2)
    stages = options.stages or [share * options.minutes for share in SHARES]
    run = Run(options.out, seed=options.seed)
    bccd = Bccd(options.bccd, ("train",)) if options.bccd else None
    source = Source(Pool(folder), bccd, seed=options.seed + os.getpid())
    blood = Bccd(options.bccd, ("val",)).tiles()[::4] if options.bccd else []
    cervix = held_out(48)

    def dense() -> dict[str, float]:
        result = {f"cx_{k}": v for k, v in score_dense(run, cervix).items()}
        return result | ({f"bl_{k}": v for k, v in score_dense(run, blood).items()} if blood else {})

    check = checks(run, cervix[:32], blood[:12])
    if options.only == "warmup" or (options.only is None and not run.path("language").exists()):
        warm_up(run, source, stages[0], check=dense)
    if options.only == "language" or (options.only is None and not run.path("joint").exists()):
        learn_language(run, source, stages[1], check=check)
        run.log(f"language done {json.dumps(check())}")
    if options.only not in (None, "joint"):
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


if __name__ == "__main__":
    main()
