"""wsi-chat: whole-slide cytology analysis with multimodal language models. Research use only.

    import wsi_chat
    result = wsi_chat.analyze("slide.svs")

Importing this package imports neither torch nor transformers nor vllm.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from wsi_chat._version import __version__

if TYPE_CHECKING:
    from wsi_chat.analysis.result import SlideResult, load_result
    from wsi_chat.app.notebook import view
    from wsi_chat.asking.ask import ask
    from wsi_chat.asking.result import AskResult
    from wsi_chat.chat.conversation import Conversation
    from wsi_chat.cohort.result import CohortResult
    from wsi_chat.cohort.run import analyze, analyze_cohort

__all__ = [
    "AskResult",
    "CohortResult",
    "Conversation",
    "SlideResult",
    "__version__",
    "analyze",
    "analyze_cohort",
    "ask",
    "load_result",
    "view",
]

_HOMES = {
    "AskResult": "wsi_chat.asking.result",
    "CohortResult": "wsi_chat.cohort.result",
    "Conversation": "wsi_chat.chat.conversation",
    "SlideResult": "wsi_chat.analysis.result",
    "analyze": "wsi_chat.cohort.run",
    "analyze_cohort": "wsi_chat.cohort.run",
    "ask": "wsi_chat.asking.ask",
    "load_result": "wsi_chat.analysis.result",
    "view": "wsi_chat.app.notebook",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'wsi_chat' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
