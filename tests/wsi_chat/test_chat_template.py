"""A chat template that loops or grows without end is refused before it runs in the engine's process."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import pytest

from wsi_chat.engines import embedded_checkpoint, load_engine
from wsi_chat.engines.chat_template import check_template
from wsi_chat.errors import EngineError

SOUND = """{% for m in messages %}<|im_start|>{{ m.role }}
{% if m.content is string %}{{ m.content }}{% else %}{% for part in m.content %}{{ part.text }}{% endfor %}{% endif %}
{% endfor %}{% generation %}{% endgeneration %}"""
RANGE = "{% for x in range(99999) %}"


@pytest.mark.parametrize(
    "text", [SOUND, "", "{{ raise_exception('no system turn') }}", "{% include '/etc/passwd' %}", "{% broken"]
)
def test_templates_that_end_are_left_to_the_engine(text: str) -> None:
    check_template(text, "m")
    check_template({"default": text}, "m")


@pytest.mark.parametrize(
    "text",
    [
        RANGE * 3 + "{% endfor %}" * 3,
        "{{ 'A' * 10000000000 }}",
        "{{ 9 ** 9999999999 }}",
        "{{ '%1000000000d' | format(1) }}",
        "{{ 'A' * 9000000 }}",
        "{% set ns = namespace(x='AAAA') %}" + RANGE + "{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
        "{% generation %}" + RANGE * 3 + "{% endfor %}" * 3 + "{% endgeneration %}",
    ],
)
def test_templates_that_do_not_end_are_refused(text: str) -> None:
    began = time.monotonic()
    with pytest.raises(EngineError, match=r"the chat template of m (does not end|takes more|turns a short)"):
        check_template(text + SOUND, "m")
    assert time.monotonic() - began < 60


def test_a_checkpoint_with_a_looping_template_does_not_load(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(embedded_checkpoint(), folder, ignore=shutil.ignore_patterns("SHA256SUMS"))
    template = folder / "chat_template.jinja"
    template.write_text("{{ 'A' * 9000000 }}" + template.read_text())
    with pytest.raises(EngineError, match="chat template of"):
        load_engine(folder, engine="transformers", device="cpu")


def test_the_template_of_the_package_costs_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("subprocess.run", lambda *a, **b: pytest.fail("a process was started"))
    check_template((embedded_checkpoint() / "chat_template.jinja").read_text(encoding="utf-8"), "m")
