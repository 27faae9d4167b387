"""The slides of a cohort as calls of Ray actors, on this machine or on a cluster; scheduling and retries are Ray's.

Each actor has an engine of its own and does one slide at a time. The slide of an actor that dies, alone or with its
machine, goes to the next that is free and on from the journal on the shared disk, so what was answered is not asked
again; a slide whose actor dies `TRIES` times is failed. Ray restarts actors where and when there is room for them.

The driver marks the slides that it has given out (see `wsi_chat.cohort.deaths`): those that were at work when it died
come last in the next run. An actor is a process of its own, so that they need not come one by one yet; a slide with
which one death more would be the last does, so that none is refused for what another one did.

A cluster of several machines, which must see slides and run folder under the same paths and have wsi-chat
installed::

    ray start --head --node-ip-address=HEAD --disable-usage-stats        # on the first machine
    ray start --address=HEAD:6379                                        # on each other one
    wsi-chat cohort manifest.csv -o OUT --executor ray --ray-address HEAD:6379

Without an address a cluster is started on this machine, listening on loopback alone, and ended with the run. More
actors than GPUs share them, so that one slide is read while another is asked about. Ray sends settings and states
between its own processes as pickles; nothing that comes from a slide, a manifest or a checkpoint is unpickled.
"""

from __future__ import annotations

import logging
import math
import os
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wsi_chat.address import notice
from wsi_chat.analysis.run_folder import RunFolder
from wsi_chat.cohort.attempt import Outcome, attempt, failed, failed_outside
from wsi_chat.cohort.deaths import TRIES, Deaths
from wsi_chat.cohort.state import Job, SlideState, write_state
from wsi_chat.engines.model import Model
from wsi_chat.errors import EngineDied, SettingError, WsiChatError
from wsi_chat.progress import Progress

if TYPE_CHECKING:
    from wsi_chat.engines import Engine
    from wsi_chat.settings import Settings

log = logging.getLogger(__name__)

PATIENCE_SECONDS = 60.0  # between two warnings that no worker is alive
OBJECT_STORE_BYTES = 100 * 2**20  # settings and states are all that travels
LOOPBACK = "127.0.0.1"
CORES_PER_ACTOR = 4


class SlideActor:
    """Lives in a worker process of Ray's: loads an engine once and does the slides that it is given."""

    def __init__(self, out: str, settings: Settings, start: Callable[[], Engine] | None, threads: int) -> None:
        # Ray gives a process one thread per core that it is granted; without GPUs the engine is what needs more
        os.environ["OMP_NUM_THREADS"] = str(threads)
        self._run = RunFolder(Path(out))
        self._model = Model(settings, start=start)

    def ready(self) -> None:
        """Answers once the process is there, also after it was restarted."""

    def attempt(self, job: Job) -> SlideState | WsiChatError:
        """The slide's state, or the error that no other slide would escape."""
        try:
            return attempt(job, self._run, self._model).state
        except WsiChatError as error:
            # returned, not raised: an exception with keyword arguments does not survive being sent
            return type(error)(error.message, hint=error.hint)


def run_on_ray(
    jobs: Sequence[Job],
    run: RunFolder,
    model: Model,
    *,
    actors: int | None,
    address: str | None,
    forgive: bool = False,
    begun: Callable[[Job], Progress],
) -> Iterator[Outcome]:
    """Yield how each slide ended, in the order in which they end.

    Args:
        forgive: take no notice of processes that died.

    Raises:
        SettingError: ray is not installed, the cluster cannot be reached, or ``actors`` is not positive.
        EngineError: an actor's engine cannot be loaded, or died; the run ends, its slides are queued.
    """
    if actors is not None and actors < 1:
        raise SettingError(f"--actors is {actors}.", hint="Give at least 1.")
    if not jobs:
        return
    if model.settings.base_url and (leaving := notice(model.settings.base_url)):
        log.warning(leaving)  # the engine says it too, but in a worker's log
    with Deaths(run) as deaths:
        calm, marked, refused = deaths.tell_apart(jobs, forgive=forgive)
        for job in refused:
            begun(job)
            error = deaths.refusal(job)
            yield Outcome(write_state(run, failed(job, run, error)), error=error)
        left = [*calm, *marked]
        if not left:
            return
        with _cluster(address, most=min(actors or len(left), len(left))) as ray:
            yield from _work(ray, left, run, model, deaths, actors=actors, begun=begun)


def _work(
    ray: Any,
    jobs: Sequence[Job],
    run: RunFolder,
    model: Model,
    deaths: Deaths,
    *,
    actors: int | None,
    begun: Callable[[Job], Progress],
) -> Iterator[Outcome]:
    """Each slide on whichever actor is free. One whose actor died goes to another that lives: a machine that is gone
    may not come back, and an actor that Ray restarts waits for a place that nobody gives up."""
    workers = _workers(ray, run, model, wanted=actors, most=len(jobs))
    starting = {_when_ready(worker): worker for worker in workers}
    free: list[Any] = []
    busy: dict[Any, tuple[Any, Job]] = {}
    queue = deque(job for job in jobs if deaths.of(job) + 1 < TRIES)
    alone = deque(job for job in jobs if deaths.of(job) + 1 >= TRIES)
    here: Counter[str] = Counter()  # deaths in this run
    try:
        while queue or alone or busy:
            while free and (queue or (alone and not busy)):
                worker, job = free.pop(), (queue or alone).popleft()
                begun(job)
                deaths.begin(job)
                busy[worker.attempt.remote(job)] = (worker, job)
            ended, _ = ray.wait([*busy, *starting], num_returns=1, timeout=PATIENCE_SECONDS)
            if not ended and not busy:
                log.warning("ray: no worker is alive; %d slides wait for the cluster", len(queue) + len(alone))
            for reference in ended:
                if reference in starting:
                    worker = starting.pop(reference)
                    _started(ray, reference)
                    free.append(worker)
                    continue
                worker, job = busy.pop(reference)
                try:
                    state = _state(ray, reference)
                    deaths.end(job)
                    yield Outcome(state)
                    free.append(worker)
                except ray.exceptions.RayActorError as error:
                    starting[_when_ready(worker)] = worker
                    here[job.slide_id] += 1
                    log.warning("ray: the worker of %s died: %s", job.sample.file_name, str(error).splitlines()[0])
                    died = max(here[job.slide_id], deaths.again(job))
                    if died < TRIES:
                        queue.appendleft(job)
                        continue
                    deaths.end(job)
                    times = f"{died} times{'' if here[job.slide_id] == died else ', counting earlier runs'}"
                    reason = f"Its worker process died {times}: {str(error).splitlines()[0]}"
                    yield Outcome(failed_outside(job, run, reason, error="WorkerDied"))
    finally:
        for worker in workers:
            ray.kill(worker)


def _when_ready(worker: Any) -> Any:
    """A reference that is there as soon as the worker's process is, however often Ray must start it."""
    return worker.ready.options(max_task_retries=-1).remote()


def _state(ray: Any, reference: Any) -> SlideState:
    """How a slide ended. Raises what no other slide would escape, and RayActorError where its actor died."""
    try:
        ended: SlideState | WsiChatError = ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        raise EngineDied(
            f"A Ray worker failed: {str(error).splitlines()[-1]}",
            hint="Every answer so far is kept; see that wsi-chat is installed the same on every machine.",
        ) from error
    if isinstance(ended, WsiChatError):
        raise ended
    return ended


def _started(ray: Any, reference: Any) -> None:
    try:
        ray.get(reference)
    except ray.exceptions.RayError as error:
        raise EngineDied(
            f"A Ray worker cannot start: {str(error).splitlines()[-1]}",
            hint="Every answer so far is kept; see that wsi-chat is installed the same on every machine.",
        ) from error


def _workers(ray: Any, run: RunFolder, model: Model, *, wanted: int | None, most: int) -> list[Any]:
    """The actors, with shares of the cluster that add up whatever its machines are."""
    resources = ray.cluster_resources()
    gpus, cpus = int(resources.get("GPU", 0)), max(1, int(resources.get("CPU", 1)))
    count = min(most, wanted or gpus or max(1, cpus // CORES_PER_ACTOR))
    kind = ray.remote(SlideActor).options(
        num_cpus=1 / math.ceil(count / cpus),
        num_gpus=1 / math.ceil(count / gpus) if gpus else 0,
        max_restarts=-1,
        max_task_retries=0,  # see _work
    )
    log.info("ray: %d actors on %d GPUs and %d cores", count, gpus, cpus)
    return [
        kind.remote(str(run.path.resolve()), model.settings, model.start, max(1, cpus // count)) for _ in range(count)
    ]


@contextmanager
def _cluster(address: str | None, *, most: int) -> Iterator[Any]:
    """Ray, connected to the cluster at ``address``, to the one this process uses already, or to a new local one."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # on a busy machine the first processes may take longer than Ray waits by default
    os.environ.setdefault("RAY_raylet_start_wait_time_s", "180")
    try:
        import ray
    except ImportError as error:
        raise SettingError(
            "--executor ray needs ray, which is not installed.", hint="pip install 'wsi-chat[ray]'"
        ) from error
    if ray.is_initialized():
        yield ray
        return
    common: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR, "configure_logging": False}
    try:
        if address:
            ray.init(address=address, **common)
        else:
            ray.init(
                address="local",
                num_cpus=max(most, os.cpu_count() or 1),
                object_store_memory=OBJECT_STORE_BYTES,
                include_dashboard=False,
                _node_ip_address=LOOPBACK,
                **common,
            )
    except Exception as error:
        where = f"The Ray cluster at {address} cannot be reached" if address else "Ray cannot be started here"
        raise SettingError(
            f"{where}: {str(error).splitlines()[0] if str(error) else type(error).__name__}",
            hint="Start one with `ray start --head` and give --ray-address HOST:6379, or use --executor local.",
        ) from error
    try:
        yield ray
    finally:
        ray.shutdown()
