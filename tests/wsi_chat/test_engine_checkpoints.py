"""Checkpoint folders that are incomplete, broken, of an unknown kind or changed, and settings that cannot be used."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from wsi_chat.engines import embedded_checkpoint, find_checkpoint, load_engine, read_checkpoint
from wsi_chat.engines.sums import write_sums
from wsi_chat.errors import EngineError, SettingError

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def copy(tiny_checkpoint: Any, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_checkpoint("qwen2_vl"), tmp_path / "copy"))


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json", "preprocessor_config.json"])
def test_a_missing_file_is_named(copy: Path, name: str) -> None:
    (copy / name).unlink()
    with pytest.raises(EngineError, match=rf"lacks {name}"):
        load_engine(copy)


def test_all_missing_files_are_named_at_once(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"config\.json, model\.safetensors, tokenizer\.json, preproc"):
        load_engine(tmp_path)


def test_a_missing_shard_is_named(copy: Path) -> None:
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    (copy / "model.safetensors.index.json").write_text(json.dumps(index))
    (copy / "model.safetensors").rename(copy / "model-1.safetensors")
    with pytest.raises(EngineError, match=r"lacks model-2\.safetensors"):
        load_engine(copy)


def test_pickled_weights_are_refused(copy: Path) -> None:
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    with pytest.raises(EngineError, match="convert the weights to safetensors"):
        load_engine(copy)


def test_cut_off_weights_are_recognised(copy: Path) -> None:
    whole = (copy / "model.safetensors").read_bytes()
    (copy / "model.safetensors").write_bytes(whole[:-100])
    with pytest.raises(EngineError, match=f"cut off: {len(whole) - 100} bytes of {len(whole)}"):
        load_engine(copy)


@pytest.mark.parametrize("content", [b"", b"text", b"\xff" * 64, b"\x02\0\0\0\0\0\0\0[]", b"\x04\0\0\0\0\0\0\0null"])
def test_weights_that_are_no_safetensors(copy: Path, content: bytes) -> None:
    (copy / "model.safetensors").write_bytes(content)
    with pytest.raises(EngineError, match="is not a safetensors file"):
        load_engine(copy)


def test_lost_tensors_are_not_invented(copy: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(copy / "model.safetensors")
    lost = next(name for name in tensors if "layers.1" in name)
    del tensors[lost]
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(EngineError, match="lacks 1 of the model's weights"):
        load_engine(copy)


@pytest.mark.parametrize(("file", "content"), [("config.json", "{"), ("config.json", "[]"), ("tokenizer.json", "{}")])
def test_broken_json_is_named(copy: Path, file: str, content: str) -> None:
    (copy / file).write_text(content)
    with pytest.raises(EngineError, match=r"config\.json|tokenizer"):
        load_engine(copy)


def _of_type(folder: Path, model_type: str) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": model_type}))


def test_an_unknown_architecture_is_refused_with_those_that_run(copy: Path) -> None:
    _of_type(copy, "llama")
    with pytest.raises(EngineError, match="of type 'llama'") as refused:
        load_engine(copy)
    assert refused.value.hint == (
        "The transformers engine runs qwen2_vl, qwen2_5_vl, qwen3_vl, gemma3, internvl, paligemma."
    )


def test_a_checkpoint_with_code_of_its_own_is_refused_with_the_way_out(copy: Path) -> None:
    _of_type(copy, "internvl_chat")
    with pytest.raises(EngineError, match="of type 'internvl_chat'") as refused:
        load_engine(copy)
    assert "-hf" in refused.value.hint
    assert "--base-url" in refused.value.hint


@pytest.mark.parametrize("family", ["qwen2_vl", "gemma3", "internvl"])
def test_a_missing_chat_template_is_refused(tiny_checkpoint: Any, tmp_path: Path, family: str) -> None:
    copied = Path(shutil.copytree(tiny_checkpoint(family), tmp_path / "copied"))
    (copied / "chat_template.jinja").unlink()
    with pytest.raises(EngineError, match="has no chat template"):
        load_engine(copied)


@pytest.mark.parametrize("family", ["gemma3", "internvl", "paligemma"])
def test_a_processor_that_cannot_be_loaded_is_named(tiny_checkpoint: Any, tmp_path: Path, family: str) -> None:
    copied = Path(shutil.copytree(tiny_checkpoint(family), tmp_path / "copied"))
    for name in ("preprocessor_config.json", "processor_config.json"):
        if (copied / name).is_file():
            (copied / name).write_text("{")
    with pytest.raises(EngineError, match=r"the processor of .*copied cannot be loaded"):
        load_engine(copied)


@pytest.mark.parametrize("token", [[2, [3]], {"2": 2}, "end", [float("inf")]])
def test_an_end_token_that_is_no_number_is_named(copy: Path, token: object) -> None:
    path = copy / "generation_config.json"
    told = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(told | {"eos_token_id": token}))
    with pytest.raises(EngineError) as caught:
        load_engine(copy)
    assert caught.value.hint


@pytest.mark.parametrize("std", [[0.5, 0.5, [0.5, 0.5]], [0.5] * 13, "half"])
def test_a_processor_that_loads_and_cannot_process_is_named(copy: Path, std: object) -> None:
    """Its first picture, when the engine is loaded, ended in a ValueError of numpy's."""
    told = json.loads((copy / "preprocessor_config.json").read_text())
    (copy / "preprocessor_config.json").write_text(json.dumps(told | {"image_std": std}))
    with pytest.raises(EngineError, match=r"image processor of .* cannot be (used|loaded)") as caught:
        load_engine(copy)
    assert "preprocessor" in caught.value.hint


def test_paths_and_names_that_lead_nowhere(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="does not exist"):
        load_engine(tmp_path / "nothing")
    (tmp_path / "file").write_text("")
    with pytest.raises(EngineError, match="is a file, not a folder"):
        load_engine(tmp_path / "file")
    with pytest.raises(EngineError, match="neither a folder nor in the local model cache"):
        load_engine("nobody/no-such-model")


@pytest.mark.parametrize(
    "settings", [{"engine": "magic"}, {"dtype": "int4"}, {"device": "abacus"}, {"device": "cuda:7"}, {"batch_size": 0}]
)
def test_bad_settings_are_refused(copy: Path, settings: dict[str, Any]) -> None:
    with pytest.raises(SettingError, match=str(next(iter(settings)))):
        load_engine(copy, **settings)


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("generation_config.json", "eos_token_id", {"a": 1}),
        ("generation_config.json", "eos_token_id", ["nope"]),
        ("config.json", "image_token_id", -5),
        ("config.json", "image_token_id", 10**30),
    ],
)
def test_a_token_that_is_none_is_an_engine_error(copy: Path, name: str, key: str, value: object) -> None:
    path = copy / name
    content = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(content | {key: value}))
    with pytest.raises(EngineError) as told:
        load_engine(copy, engine="transformers", device="cpu")
    assert told.value.hint


@pytest.mark.parametrize("name", ["tokenizer_config.json", "model.safetensors"])
def test_a_file_that_is_not_as_it_was_exported_is_named(copy: Path, name: str) -> None:
    sums = write_sums(copy)
    before = read_checkpoint(copy)
    with (copy / name).open("ab") as file:
        file.write(b" ")  # harmless, but for its sum
    with pytest.raises(EngineError, match=rf"{name} is not as it was exported") as told:
        read_checkpoint(copy)
    assert "delete SHA256SUMS" in told.value.hint
    sums.unlink()
    assert read_checkpoint(copy).revision != before.revision


def test_sums_of_files_that_are_not_there_or_elsewhere_say_nothing(copy: Path) -> None:
    (copy / "SHA256SUMS").write_text(f"{'0' * 64}  absent.json\n{'0' * 64}  ../config.json\nnonsense\n")
    assert read_checkpoint(copy).name == "copy"


def test_the_revision_follows_the_content(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from wsi_chat.engines import checkpoint

    def changed_at(place: int) -> str:
        data = bytearray(original)
        data[place] ^= 1
        (copy / "model.safetensors").write_bytes(data)
        return read_checkpoint(copy).revision

    original = (copy / "model.safetensors").read_bytes()
    before = read_checkpoint(copy).revision
    assert changed_at(len(original) - 1) != before
    (copy / "model.safetensors").write_bytes(original)
    assert read_checkpoint(copy).revision == before
    # a large file is sampled: first, last and blocks between
    monkeypatch.setattr(checkpoint, "FULL_HASH_BYTES", 1000)
    monkeypatch.setattr(checkpoint, "SAMPLES", 3)
    monkeypatch.setattr(checkpoint, "SAMPLE_BYTES", 100)
    large = read_checkpoint(copy).revision
    middle = (len(original) - 100) // 2
    assert len({large, changed_at(middle), changed_at(len(original) - 1)}) == 3


def test_the_embedded_checkpoint_goes_by_the_name_that_reports_give_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_checkpoint("embedded") == find_checkpoint(None) == embedded_checkpoint()
    (tmp_path / "embedded").mkdir()  # a folder of that name is the user's own
    assert find_checkpoint("embedded") == Path("embedded")
