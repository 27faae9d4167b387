"""``wsi-chat view``: what it refuses, and where it listens."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from wsi_chat import cli
from wsi_chat.app.server import Place, bind
from wsi_chat.errors import SettingError


@pytest.mark.parametrize(
    ("arguments", "said"),
    [(["nowhere"], "There is no nowhere"), (["."], "holds no analyzed slide"), (["x", "--port", "70000"], "--port")],
)
def test_what_cannot_be_shown_is_refused(
    arguments: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        cli.main(["view", *arguments, "--no-browser"])
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


def test_a_language_that_the_page_does_not_speak_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["view", str(folder), "--language", "xx"])
    assert ended.value.code == 2
    assert "Choose one of: en, zh" in capsys.readouterr().err


def test_it_listens_on_loopback_without_a_token_and_elsewhere_with_one() -> None:
    near, place = bind("127.0.0.1", 0)
    with near:
        assert near.getsockname()[0] == "127.0.0.1"
        assert place.token is None
        assert place.url == f"http://127.0.0.1:{place.port}/"
    everywhere, place = bind("0.0.0.0", 0)
    with everywhere:
        assert place.token is not None
        assert len(place.token) >= 32
        assert place.url.endswith(f"/?token={place.token}")


def test_two_pages_have_two_tokens() -> None:
    tokens = set()
    for _ in range(2):
        listening, place = bind("0.0.0.0", 0)
        listening.close()
        tokens.add(place.token)
    assert len(tokens) == 2


def test_a_port_in_use_is_refused_with_a_way_out() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        with pytest.raises(SettingError, match=r"cannot be listened at") as refused:
            bind("127.0.0.1", other.getsockname()[1])
    assert "--port" in refused.value.hint


def test_an_address_of_ipv6_is_written_in_brackets() -> None:
    assert Place("::1", 8470, None).url == "http://[::1]:8470/"
