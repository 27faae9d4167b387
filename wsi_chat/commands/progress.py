"""Progress bars on stderr, for commands that take long: on a terminal only, silent elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from wsi_chat.commands.terminal import Console

STAGES = {
    "mask": "finding the cells",
    "screen": "screening",
    "detail": "looking closer",
    "adequacy": "counting cells",
    "documents": "writing the report",
}

TILES = ("screen", "zoom", "detail", "adequacy")  # stages that count tiles


@contextmanager
def bar() -> Iterator[Callable[[str, int, int], None]]:
    """Progress on a terminal, silence elsewhere."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda stage, done, total: None
        return
    with Progress(console=console, transient=True) as bars:
        tasks: dict[str, TaskID] = {}

        def update(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=total)
            bars.update(tasks[stage], completed=done, total=total)

        yield update


class SlideBar:
    """A slide's progress, stage by stage, with tiles/s and time left; silent without bars."""

    def __init__(self, bars: Progress | None) -> None:
        self._bars = bars
        self._tasks: dict[str, TaskID] = {}

    def __call__(self, stage: str, done: int, total: int) -> None:
        bars = self._bars
        if bars is None:
            return
        if stage not in self._tasks:
            self._tasks[stage] = bars.add_task(STAGES.get(stage, stage), total=total, rate="")
        elapsed = next(task.elapsed for task in bars.tasks if task.id == self._tasks[stage])
        rate = f"{done / elapsed:.1f} tiles/s" if done and elapsed and stage in TILES else ""
        bars.update(self._tasks[stage], completed=done, total=total, rate=rate)

    @property
    def shown(self) -> bool:
        """Whether it is on the terminal now."""
        return self._bars is not None and self._bars.live.is_started

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Within the block the terminal is free for what is said of another slide."""
        if self._bars is None or not self.shown:
            yield
            return
        self._bars.stop()
        try:
            yield
        finally:
            self._bars.start()


@contextmanager
def slide_bar(console: Console, slide: Path, *, quiet: bool) -> Iterator[SlideBar]:
    """A progress bar on a terminal; silence elsewhere."""
    if quiet:
        yield SlideBar(None)
        return
    columns = (
        TextColumn("{task.description:<20}", markup=False),
        BarColumn(bar_width=32),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}", markup=False),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bars:
        console.print(slide.name, style="bold", markup=False)
        yield SlideBar(bars)


@contextmanager
def answers_bar(console: Console, *, quiet: bool) -> Iterator[Callable[[int, int], None]]:
    if quiet:
        yield lambda done, total: None
        return
    columns = (
        TextColumn("answers"),
        BarColumn(bar_width=32),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}", markup=False),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bars:
        task = bars.add_task("answers", total=None, rate="")

        def update(done: int, total: int) -> None:
            elapsed = bars.tasks[0].elapsed
            bars.update(task, completed=done, total=total, rate=f"{done / elapsed:.1f} answers/s" if elapsed else "")

        yield update
