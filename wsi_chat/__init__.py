"""wsi-chat: whole-slide cytology analysis with multimodal language models. Research use only.

    import wsi_chat
    result = wsi_chat.analyze("slide.svs")

Importing this package imports neither torch nor transformers nor vllm.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from wsi_chat._version import __version__
from wsi_chat.lazy import on_first_use

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

__getattr__, __dir__ = on_first_use(
    __name__,
    __all__,
    {
        ".analysis.result": ("SlideResult", "load_result"),
        ".app.notebook": ("view",),
        ".asking.ask": ("ask",),
        ".asking.result": ("AskResult",),
        ".chat.conversation": ("Conversation",),
        ".cohort.result": ("CohortResult",),
        ".cohort.run": ("analyze", "analyze_cohort"),
    },
)
