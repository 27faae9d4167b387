"""Serving for real: run by ``make test-serving`` in an environment that has vLLM, and by nothing else.

The three ways to an answer (transformers, vLLM in this process, ``vllm serve`` on loopback) get the same questions
about the same tiles. What they differ by is printed at the end of the run.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

collect_ignore_glob = [] if os.environ.get("WSI_CHAT_TEST_SERVING") else ["*"]

TILES = 16
FIRST_SEED = 970_000_000
START_SECONDS = 1200
REPORT: list[str] = []

Answers = dict[str, Any]


@dataclass
class Questions:
    """The same questions for every engine; ``places``: key -> (tile, question, frame)."""

    queries: list[Any] = field(default_factory=list)
    places: dict[str, Any] = field(default_factory=dict)


@pytest.fixture(scope="session")
def note() -> Any:
    """Adds a line to the summary of the run."""
    return REPORT.append


def pytest_terminal_summary(terminalreporter: Any) -> None:
    for line in REPORT:
        terminalreporter.write_line(line)


@pytest.fixture(scope="session")
def dialect() -> Any:
    from wsi_chat.dialects import get_dialect

    return get_dialect("embedded")


@pytest.fixture(scope="session")
def questions(dialect: Any) -> Questions:
    """Screen, locate and describe sixteen rendered fields, shown as 512 px tiles of a slide at half that scale."""
    from PIL import Image

    from wsi_chat import tasks
    from wsi_chat.datasets.render import render_field
    from wsi_chat.schema import Tile
    from wsi_chat.terminology import load_system

    asked = Questions()
    asks = [tasks.screen(load_system("cervix")), tasks.ground("hsil"), tasks.ground("neutrophil"), tasks.describe()]
    for number in range(TILES):
        # twice as large as the model's tile and four times as large at level 0: three scales for a box to cross
        image = Image.fromarray(render_field(FIRST_SEED + number).image).resize((512, 512), Image.Resampling.BICUBIC)
        tile = Tile(number, 1000 * number, 77, 1024, 1024, 0, (1024, 1024), 512, 0.5)
        for ask in asks:
            query, frame = dialect.build(ask, image, tile_id=tile.id, model_id="any", decoding={})
            asked.queries.append(query)
            asked.places[query.key] = (tile, ask, frame)
    return asked


@pytest.fixture(scope="session")
def reference(questions: Questions) -> Answers:
    """What the transformers engine answers, in float32."""
    from wsi_chat.engines import load_engine

    engine = load_engine(None, engine="transformers", dtype="float32", device="cpu")
    answers = {answer.key: answer for answer in engine.answer(questions.queries)}
    engine.close()
    assert all(answer.status != "failed" for answer in answers.values())
    return answers


@dataclass
class Server:
    """A ``vllm serve`` on loopback with the embedded checkpoint."""

    url: str
    process: subprocess.Popen[bytes]

    def kill(self) -> None:
        """SIGKILL to the server and to its engine process."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(30)


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The line that ``wsi-chat serve-command`` prints, run as it is; only a CPU's needs are added."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    printed = subprocess.run(
        [sys.executable, "-m", "wsi_chat.cli", "serve-command", "--port", str(port), "--json"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    said = json.loads(printed.stdout)
    words = ["env", *shlex.split(said["command"]), *said["cpu_flags"], "--max-num-seqs", "32"]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environ = {**os.environ, "PATH": path, "VLLM_CPU_KVCACHE_SPACE": "1", "DO_NOT_TRACK": "1"}
    folder = tmp_path_factory.mktemp("server")
    environ["PYTHONPATH"] = str(_named_vllm(folder))
    log = folder / "server.log"
    with log.open("wb") as file:
        process = subprocess.Popen(words, stdout=file, stderr=subprocess.STDOUT, env=environ, start_new_session=True)
    server = Server(said["base_url"], process)
    try:
        _await(server, log)
        yield server
    finally:
        server.kill()


def _named_vllm(folder: Path) -> Path:
    """A folder for the path in which the package vllm-cpu also goes by the name that its own command looks up."""
    import importlib.metadata

    version = importlib.metadata.version("vllm-cpu")
    info = folder / "names" / f"vllm-{version}+cpu.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}+cpu\n", encoding="utf-8")
    return info.parent


def _await(server: Server, log: Path) -> None:
    from wsi_chat.engines.openai import look_up
    from wsi_chat.errors import EngineError

    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            look_up(server.url, None)
            return
        except EngineError:
            if server.process.poll() is not None or time.monotonic() > deadline:
                pytest.fail("vllm serve did not start:\n" + log.read_text(errors="replace")[-4000:])
            time.sleep(1)
