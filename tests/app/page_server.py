"""Serves the page with a scripted engine: ``python -m tests.app.page_server SOURCE [--host H] [--pause S]``."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from tests.app.speaking import SpeakingEngine
from wsi_chat.analysis.result import SlideResult
from wsi_chat.app.server import Place, serve
from wsi_chat.app.source import find_slides
from wsi_chat.chat.conversation import Conversation
from wsi_chat.schema import Query

LONG = "No abnormal cells were found " + "and this sentence goes on " * 120
ATTACK = "<img src=x onerror='window.attacked=1'><script>window.attacked=1</script> [x](javascript:alert(1))"


def says(query: Query) -> str | dict[str, float]:
    if query.choices:
        return {choice: 0.1 + 0.8 * (n == 1) for n, choice in enumerate(query.choices)}
    if query.task == "ground":
        return f"{query.target} 1 is located at <region>64 64 128 128</region>."
    return {"describe": ATTACK, "refer": "hsil"}.get(query.task, LONG)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("source", type=Path)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--out", type=Path, default=Path("out"))
    parser.add_argument("--pause", type=float, default=0.02)
    given = parser.parse_args()
    engine = SpeakingEngine(says, pause=given.pause)

    def converse(about: SlideResult | Path) -> Conversation:
        return Conversation(about, engine=engine, dialect="embedded", specimen="cervix")

    def started(place: Place) -> None:
        print(json.dumps({"url": place.url, "port": place.port, "token": place.token}), flush=True)

    serve(find_slides(given.source, out=given.out), converse, host=given.host, port=0, started=started)


if __name__ == "__main__":
    main()
