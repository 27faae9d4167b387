"""A server of models that answers as a script says, and questions to ask it."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from PIL import Image

from wsi_chat.engines.openai import OpenAIEngine
from wsi_chat.schema import Query, Turn

Said = dict[str, Any] | list[Any] | tuple[int, Any] | tuple[int, Any, dict[str, str]] | str
Script = Callable[[dict[str, Any], int], Said]
RED = Image.new("RGB", (64, 32), (200, 10, 30))


def reply(text: str, *, finish: str = "stop", top: dict[str, float] | None = None, cached: int = 0) -> dict[str, Any]:
    """A chat completion as servers write it; ``top``: token -> log-probability of the first token's alternatives."""
    logs = None
    if top is not None:
        best = max(top, key=top.__getitem__)
        alternatives = [{"token": token, "logprob": log} for token, log in top.items()]
        logs = {"content": [{"token": best, "logprob": top[best], "top_logprobs": alternatives}]}
    return {
        "choices": [{"message": {"role": "assistant", "content": text}, "finish_reason": finish, "logprobs": logs}],
        "usage": {"prompt_tokens": 90, "completion_tokens": 7, "prompt_tokens_details": {"cached_tokens": cached}},
    }


class FakeServer:
    """Answers POSTs as ``script(body, number)`` says: JSON, a status with a body, or a fault by name."""

    def __init__(self, script: Script, *, models: Any = None, port: int = 0) -> None:
        self.script = script
        self.over = threading.Event()
        self._connections: set[socket.socket] = set()
        self.models = {"data": [{"id": "tiny", "root": ""}]} if models is None else models
        self.bodies: list[dict[str, Any]] = []
        self.paths: list[str] = []
        self.headers: list[dict[str, str]] = []
        self.most = 0
        self._now = 0
        self._lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self) -> None:
                super().setup()
                outer._connections.add(self.connection)

            def finish(self) -> None:
                outer._connections.discard(self.connection)
                with contextlib.suppress(OSError):
                    super().finish()

            def do_GET(self) -> None:
                outer.headers.append(dict(self.headers))
                status, body = outer.models if isinstance(outer.models, tuple) else (200, outer.models)
                self._send(status, body)

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with outer._lock:
                    number = len(outer.bodies)
                    outer.bodies.append(body)
                    outer.paths.append(self.path)
                    outer.headers.append(dict(self.headers))
                    outer._now += 1
                    outer.most = max(outer.most, outer._now)
                try:
                    self._act(outer.script(body, number))
                finally:
                    with outer._lock:
                        outer._now -= 1

            def _act(self, said: Said) -> None:
                if said == "close":
                    self.close_connection = True
                elif said == "drip":
                    self.close_connection = True
                    self.send_response(200)
                    self.send_header("Content-Length", "5000")
                    self.end_headers()
                    with contextlib.suppress(OSError):
                        while not outer.over.wait(0.1):
                            self.wfile.write(b" ")
                            self.wfile.flush()
                elif said == "truncate":
                    self.send_response(200)
                    self.send_header("Content-Length", "5000")
                    self.end_headers()
                    self.wfile.write(b'{"choices": [')
                    self.close_connection = True
                elif isinstance(said, list):
                    self._stream(said)
                elif isinstance(said, tuple):
                    self._send(*said)
                else:
                    self._send(200, said)

            def _stream(self, events: list[Any]) -> None:
                self.close_connection = True
                self.send_response(200)
                self.send_header("Content-Type", "text/event-stream")
                self.send_header("Connection", "close")
                self.end_headers()
                for event in events:
                    data = event if isinstance(event, str) else json.dumps(event)
                    self.wfile.write(f"data: {data}\n\n".encode())

            def _send(self, status: int, body: Any, headers: dict[str, str] | None = None) -> None:
                content = body if isinstance(body, bytes) else json.dumps(body).encode()
                self.send_response(status)
                for name, value in (headers or {}).items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *args: Any) -> None:
                """Quiet."""

        class Quiet(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, request: Any, client_address: Any) -> None:
                """A client that hangs up is part of the test."""

        self._server = Quiet(("127.0.0.1", port), Handler)
        self.port = int(self._server.server_address[1])
        self.url = f"http://127.0.0.1:{self.port}/v1"
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def stop(self) -> None:
        """Die: the port is closed, and every open connection is cut."""
        self._server.shutdown()
        self._server.server_close()
        for connection in list(self._connections):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., tuple[FakeServer, OpenAIEngine]]]:
    """Starts a fake server and an engine on it; both end with the test."""
    for name in ("WSI_CHAT_API_KEY", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    opened: list[Any] = []

    def start(script: Script, *, models: Any = None, **settings: Any) -> tuple[FakeServer, OpenAIEngine]:
        server = FakeServer(script, models=models)
        opened.append(server.stop)
        engine = OpenAIEngine(server.url, **{"pause": 0.005, **settings})
        opened.append(engine.close)
        return server, engine

    yield start
    for close in reversed(opened):
        close()


def question(number: int = 0, *, choices: tuple[str, ...] = (), images: tuple[Image.Image, ...] = (RED,)) -> Query:
    text = "<image>" * len(images) + f"question {number}"
    turns = (Turn("system", "You are a helpful assistant."), Turn("user", text))
    return Query(f"q{number}", "screen" if choices else "describe", turns, images, choices, max_tokens=9)


def screening(number: int = 0) -> Query:
    return question(number, choices=("A", "B"))


def words_of(body: dict[str, Any]) -> str:
    content = body["messages"][-1]["content"]
    return content if isinstance(content, str) else str(content[-1]["text"])


def echo(body: dict[str, Any], number: int) -> Said:
    return reply(words_of(body))


def cytologist(body: dict[str, Any], number: int) -> Said:
    """A server that knows the embedded dialect's questions and gives no log-probabilities."""
    words = words_of(body)
    if "multiple-choice" in words:
        return reply("B")
    return reply("There is no such cell in the image." if words.startswith("Locate") else "Normal cells.")
