"""The command line of the harness; see the package's docstring."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import tempfile
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from benchmarks import fuzz
from benchmarks.fuzz import pool

OUTCOMES = ("ok", "typed", "partial", "undetectable", "resized", "wrong", "untyped", "abort", "hang", "memory")
BAD = OUTCOMES[5:]
KINDS = ("slides", "files")


def main() -> None:
    parser = argparse.ArgumentParser(description=fuzz.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["seeds", *KINDS, "table", "case"])
    parser.add_argument("cases", nargs="*", help="of `case`: slides/TARGET/NUMBER")
    parser.add_argument("--out", type=Path, default=Path(tempfile.gettempdir()) / "wsi-fuzz")
    parser.add_argument("--data", type=Path, help="real slides, for `seeds`")
    parser.add_argument("--n", type=int, default=1000, help="cases in all, shared out among the targets")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--only", default="", help="targets, separated by commas; each then gets an equal share")
    parser.add_argument("--keep", type=Path, help="of `case`: copy what was read there")
    given = parser.parse_intermixed_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if given.what == "seeds":
        from benchmarks.fuzz.file_seeds import make_files
        from benchmarks.fuzz.slide_seeds import make_slides

        make_slides(given.out / "seeds/slides", given.data)
        make_files(given.out / "seeds/files")
    elif given.what == "table":
        print_table(given.out, given.seed)
    elif given.what == "case":
        for case in given.cases:
            repeat(given.out, given.seed, case, given.keep)
    else:
        start(given)


def _module(kind: str):  # type: ignore[no-untyped-def]
    from benchmarks.fuzz import files, slides

    return {"slides": slides, "files": files}[kind]


# ------------------------------------------------------------------------------------------ running


def start(given: argparse.Namespace) -> None:
    """Run the cases that are not done yet, in ``jobs`` processes."""
    module = _module(given.what)
    if not (given.out / "seeds").is_dir():
        raise SystemExit(
            f"{given.out} holds nothing to damage: run `python -m benchmarks.fuzz seeds --out {given.out}` first."
        )
    shares = module.targets(given.out / "seeds")
    names = given.only.split(",") if given.only else list(shares)
    weights = {name: 1.0 if given.only else shares[name] for name in names}
    total = sum(weights.values())
    counts = {name: round(given.n * weight / total) for name, weight in weights.items()}
    folder = given.out / "results"
    folder.mkdir(parents=True, exist_ok=True)
    done = {(row["target"], row["number"]) for row in read_rows(folder.glob(f"{given.what}-{given.seed}-*.jsonl"))}
    children = []
    for job in range(given.jobs):
        pid = os.fork()
        if pid == 0:
            try:
                _run_job(given, module, counts, done, job)
            finally:
                os._exit(0)
        children.append(pid)
    for pid in children:
        os.waitpid(pid, 0)
    print_table(given.out, given.seed, [given.what])


def _run_job(given: argparse.Namespace, module, counts: dict[str, int], done: set[tuple[str, int]], job: int) -> None:  # type: ignore[no-untyped-def]
    """Every ``jobs``-th case of every target, in slices, so that a run that is cut has done some of each."""
    seeds = given.out / "seeds"
    most = max(counts.values())
    slice_of = max(200, most // 10)
    with (given.out / "results" / f"{given.what}-{given.seed}-{job}.jsonl").open("a", buffering=1) as file:
        if file.tell():
            file.write("\n")  # ends a row that was cut where the last run was ended
        for begin in range(0, most, slice_of):
            for name, count in counts.items():
                numbers = range(begin + job, min(begin + slice_of, count), given.jobs)
                left = [number for number in numbers if (name, number) not in done]
                if not left:
                    continue
                begun, used, bad = time.monotonic(), _processor_seconds(), 0
                for row in pool.run(_lazy(module, name, seeds), left, f"{given.seed}/{name}"):
                    file.write(json.dumps({"target": name, **row}) + "\n")
                    bad += row["outcome"] in BAD
                rate, own = (
                    len(left) / max(seconds, 1e-3)
                    for seconds in (time.monotonic() - begun, _processor_seconds() - used)
                )
                print(
                    f"{name:24} to {left[-1]:7,}: {rate:6.1f} a second, {own:6.1f} a processor second, {bad} bad",
                    flush=True,
                )


def _processor_seconds() -> float:
    """Of this process and of its children that have ended."""
    return sum(os.times()[:4])


def _lazy(module, name: str, seeds: Path) -> pool.Case:  # type: ignore[no-untyped-def]
    """The target's case, prepared in the process that runs it."""
    made: list[pool.Case] = []

    def case(rng: random.Random, number: int, scratch: Path) -> pool.Row:
        if not made:
            made.append(module.prepare(name, seeds))
        return made[0](rng, number, scratch)

    return case


def repeat(out: Path, seed: int, case: str, keep: Path | None) -> None:
    """One case in this process; its error, where it raises one, comes with its traceback."""
    kind, name, number = case.split("/")
    do = _module(kind).prepare(name, out / "seeds")
    with tempfile.TemporaryDirectory() as folder:
        scratch = keep or Path(folder)
        scratch.mkdir(parents=True, exist_ok=True)
        print(case, do(random.Random(f"{seed}/{name}/{number}"), int(number), scratch))


# ------------------------------------------------------------------------------------------ the table


def read_rows(files: Iterable[Path]) -> Iterable[pool.Row]:
    """Every row, but for one that was cut where a run was ended."""
    for path in files:
        with path.open() as file:
            for line in file:
                with contextlib.suppress(json.JSONDecodeError):
                    yield json.loads(line)


def print_table(out: Path, seed: int, kinds: Iterable[str] = KINDS) -> None:
    """Counts of outcomes by target and by damage, as Markdown, and every kind of bad outcome with an example."""
    for kind in kinds:
        rows = list(read_rows(sorted((out / "results").glob(f"{kind}-{seed}-*.jsonl"))))
        if not rows:
            continue
        for by in ("target", "damage"):
            groups: dict[str, Counter[str]] = {}
            for row in rows:
                groups.setdefault(str(row.get(by, "(not known)")), Counter())[row["outcome"]] += 1
            groups["all"] = sum(groups.values(), Counter())
            print(f"\n| {kind} by {by} | cases | {' | '.join(OUTCOMES)} |\n|{'---|' * (2 + len(OUTCOMES))}")
            for name, counts in groups.items():
                cells = " | ".join(f"{counts[outcome]:,}" for outcome in OUTCOMES)
                print(f"| {name} | {sum(counts.values()):,} | {cells} |")
        seen: dict[tuple[str, ...], list[pool.Row]] = {}
        for row in rows:
            if row["outcome"] in BAD:
                key = (row["outcome"], row["target"], str(row.get("kind", "")), str(row.get("where", "")))
                seen.setdefault(key, []).append(row)
        print()
        for key, found in sorted(seen.items(), key=lambda item: (item[0][0], -len(item[1]))):
            first = found[0]
            print(
                f"{len(found):5} x {' '.join(key)}  {kind}/{first['target']}/{first['number']} {first.get('why', '')}"
            )


if __name__ == "__main__":
    main()
