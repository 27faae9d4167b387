"""Which server and which model are asked: addresses, keys and where they must not show, and what reports say."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from wsi_chat.address import check_address, is_this_machine, notice
from wsi_chat.engines.openai import OpenAIEngine, api_key
from wsi_chat.errors import EngineError, SettingError
from wsi_chat.settings import resolve

from .model_server import FakeServer, cytologist, echo, question

# ------------------------------------------------------------------------------------------------ address and model


def test_nobody_there_is_said_at_once() -> None:
    server = FakeServer(echo)
    server.stop()
    with pytest.raises(EngineError, match=r"no server answers at http://127\.0\.0\.1") as caught:
        OpenAIEngine(server.url, retries=1, pause=0.01)
    assert "serve-command" in caught.value.hint


def test_the_model_is_the_only_one_or_the_one_named(serve: Any) -> None:
    two = {"data": [{"id": "a"}, {"id": "b"}]}
    _, engine = serve(echo, models=two, model="b")
    assert engine.model_name == "b"
    with pytest.raises(SettingError, match=r"no model was named; .* has: a, b"):
        serve(echo, models=two)
    with pytest.raises(SettingError, match=r"there is no model 'c'; .* has: a, b"):
        serve(echo, models=two, model="c")
    _, engine = serve(echo, models=(404, {}), model="unlisted")
    assert engine.model_name == "unlisted"
    with pytest.raises(SettingError, match="lists no models"):
        serve(echo, models=(404, {}))


def test_a_checkpoint_of_this_machine_is_known_by_its_hash(serve: Any) -> None:
    from wsi_chat.engines import embedded_checkpoint, read_checkpoint, served_dialect

    folder = embedded_checkpoint()
    models = {"data": [{"id": "embedded", "root": str(folder)}]}
    server, engine = serve(echo, models=models)
    assert engine.model_id == f"embedded@{read_checkpoint(folder).revision}:served"
    assert served_dialect(server.url, None) == "embedded"


@pytest.mark.parametrize(
    ("given", "address"),
    [
        ("http://127.0.0.1:8000/v1/", "http://127.0.0.1:8000/v1"),
        ("http://127.0.0.1:8000", "http://127.0.0.1:8000/v1"),
        ("localhost:8000", "http://localhost:8000/v1"),
        ("https://models.example/api/openai", "https://models.example/api/openai"),
    ],
)
def test_addresses_are_completed(given: str, address: str) -> None:
    assert check_address(given) == address


@pytest.mark.parametrize("given", ["ftp://x/v1", "http://", "http://h:99999/v1", "http://h/v1?key=1", "http://h/v1#x"])
def test_unusable_addresses_are_refused(given: str) -> None:
    with pytest.raises(SettingError, match="--base-url"):
        check_address(given)


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("ftp://x/v1", "'ftp://x/v1'"),
        ("ftp://x/hunter2", "'ftp://x/...'"),
        ("http://h:99999/hunter2/v1", "'http://h:99999/...'"),
        ("http:///hunter2", "'http:///...'"),
        ("h:port/hunter2", "'h:port/...'"),
    ],
)
def test_what_is_no_address_is_named_without_its_path_which_may_be_a_key(given: str, shown: str) -> None:
    with pytest.raises(SettingError) as caught:
        check_address(given)
    assert shown in caught.value.message
    assert "hunter2" not in str(caught.value)


def test_a_password_in_the_address_is_refused_and_not_repeated() -> None:
    with pytest.raises(SettingError, match="a password in it") as caught:
        check_address("http://me:hunter2@host:8000/v1")
    assert "hunter2" not in str(caught.value)


def test_images_that_leave_this_machine_are_announced() -> None:
    for here in ("http://127.0.0.1:1/v1", "http://localhost/v1", "http://[::1]:8000/v1", "http://127.3.2.1/v1"):
        assert is_this_machine(here)
        assert notice(here) == ""
    for away in ("http://10.0.0.7:8000/v1", "https://api.example/v1", "http://localhost.example/v1"):
        assert not is_this_machine(away)
    assert "are sent to api.example, which is not this machine" in notice("https://api.example/v1")
    assert "unencrypted to 10.0.0.7:8000" in notice("http://10.0.0.7:8000/v1")


# ------------------------------------------------------------------------------------------------ keys


def test_the_key_comes_from_the_environment_and_shows_nowhere(
    serve: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("OPENAI_API_KEY", "second-choice")
    monkeypatch.setenv("WSI_CHAT_API_KEY", "secret-of-the-user")
    server, engine = serve(lambda body, number: (500, {"error": {"message": "no"}}), retries=0)
    (answer,) = engine.answer([question()])
    assert {headers["Authorization"] for headers in server.headers} == {"Bearer secret-of-the-user"}
    everything = f"{answer} {engine.model_id} {engine.model_name} {caplog.text}"
    assert "secret" not in everything
    monkeypatch.setenv("WSI_CHAT_API_KEY", "")
    server, engine = serve(echo)
    assert server.headers
    assert not any("Authorization" in headers for headers in server.headers)  # it is no server of OpenAI


@pytest.mark.parametrize(
    ("address", "key"),
    [
        ("https://api.openai.com/v1", "openai"),
        ("https://API.OpenAI.com:443", "openai"),
        ("http://api.openai.com/v1", ""),
        ("api.openai.com/v1", ""),
        ("https://api.openai.com:8443/v1", ""),
        ("https://api.openai.com.example/v1", ""),
        ("https://eu.api.openai.com/v1", ""),
        ("https://example.org/api.openai.com/v1", ""),
        ("http://127.0.0.1:8000/v1", ""),
    ],
)
def test_the_key_for_openai_goes_to_openai_alone(address: str, key: str) -> None:
    assert api_key({"OPENAI_API_KEY": " openai "}, address) == key
    assert api_key({"OPENAI_API_KEY": "openai", "WSI_CHAT_API_KEY": "own"}, address) == "own"


def test_a_server_that_wants_a_key_says_why_that_of_openai_was_not_sent(
    serve: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "for-openai-alone")
    with pytest.raises(EngineError, match="refuses the key") as caught:
        serve(echo, models=(401, {"error": "no key"}))
    assert caught.value.hint == (
        "Set WSI_CHAT_API_KEY to this server's key: OPENAI_API_KEY is sent to https://api.openai.com alone."
    )


def test_a_key_with_a_line_break_is_refused_and_not_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WSI_CHAT_API_KEY", "sk-secret\nX-Other: 1")
    with pytest.raises(SettingError, match="WSI_CHAT_API_KEY holds a line break") as caught:
        OpenAIEngine("http://127.0.0.1:9/v1")
    assert "sk-secret" not in str(caught.value)


@pytest.mark.parametrize(
    "address", ["http://me:hunter2@h/v1", "http://h/v1?key=hunter2", "http://h/v1#hunter2", "http://x:hunter2@h:99999"]
)
def test_an_address_with_a_key_in_it_is_refused_before_anything_is_written(address: str) -> None:
    with pytest.raises(SettingError, match="--base-url") as caught:
        resolve({"base_url": address})
    assert "hunter2" not in f"{caught.value}{caught.value.hint}"


@pytest.mark.parametrize(("status", "match"), [(401, "refuses the key"), (403, "refuses the key")])
def test_a_refused_key_ends_the_run_at_once(serve: Any, status: int, match: str) -> None:
    _, engine = serve(lambda body, number: (status, {"error": {"message": "bad key"}}))
    with pytest.raises(EngineError, match=match) as caught:
        list(engine.answer([question(n) for n in range(5)]))
    assert "WSI_CHAT_API_KEY" in caught.value.hint
    with pytest.raises(EngineError, match=match):
        serve(echo, models=(status, {"error": "bad key"}))


# ------------------------------------------------------------------------------------------------ a whole run


def test_a_run_on_a_server_says_who_answered_and_that_its_scores_are_words(
    small_slide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from wsi_chat import analyze

    monkeypatch.setenv("WSI_CHAT_API_KEY", "secret-of-the-user")
    server = FakeServer(cytologist, models={"data": [{"id": "embedded-v2"}]})
    settings: dict[str, Any] = {"specimen": "cervix", "limit": 4, "top_k": 1, "pdf": False, "base_url": server.url}
    result = analyze(small_slide, out=tmp_path, **settings)
    server.stop()
    report = result.report
    assert (report.funnel.screened, report.funnel.screen_failed, report.funnel.detailed) == (4, 0, 1)
    model = report.provenance.model
    assert (model.engine, model.name, model.dialect) == ("openai", "embedded-v2", "embedded")
    assert model.engine_reason == "a server is named with --base-url"
    assert model.revision == f"embedded-v2@{server.url}"
    assert any(note.startswith("4 answers came without probabilities") for note in report.notes)
    assert {body["mm_processor_kwargs"]["size"]["longest_edge"] for body in server.bodies if "top_k" in body} == {65536}
    for file in tmp_path.rglob("*"):
        assert not file.is_file() or b"secret-of-the-user" not in file.read_bytes(), file
