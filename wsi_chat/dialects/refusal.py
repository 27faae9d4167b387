"""Whether an answer declines to answer: "I cannot answer a medical question.", "As an AI ...", "无法判断".

A refusal is no answer, like one that cannot be read, but it says something else of the model: it understood the
question. Only answers that could not be read otherwise are asked here; the patterns are those that chat models in
English and Chinese are trained to refuse with.
"""

from __future__ import annotations

import re

from wsi_chat.dialects.reasoning import final_answer

LONGEST = 1000
"""Characters from the start of an answer that are looked at: refusals say so at once."""

_CANNOT = (
    r"(?:can(?:\s?not|['’]t)|could(?: not|n['’]t)|will\s+not|won['’]t|(?:must\s+|have\s+to\s+)?decline(?:\s+to)?"
    r"|refuse\s+to|(?:am|are|['’][mr]e?|is|was)\s+(?:unable|not\s+(?:able|qualified|allowed|permitted))\s+to)"
)
_DO = (
    r"(?:answer|assist|help|provide|give|make|offer|say|tell|determine|diagnose|interpret|analy[sz]e|assess|evaluate"
    r"|classify|identify|decide|select|choose|comment|see|view|process|comply|fulfil|respond|reach|draw|do)"
)
_REFUSAL = re.compile(
    rf"\b(?:i|we)\b(?:\s+\w+ly)?\s*{_CANNOT}\s+(?:\w+ly\s+)?(?:be\s+able\s+to\s+)?{_DO}\b"
    r"|\b(?:answer|diagnosis|determination|interpretation|assessment|conclusion|classification|opinion)\b"
    r"[^.!?\n]{0,40}?\b(?:can\s?not|can['’]t|could\s+not)\s+be\s+\w+"
    r"|\b(?:it|this|that)\s+(?:is|['’]s)?\s*(?:not\s+possible|impossible)\s+to\s+" + _DO + r"\b"
    r"|\b(?:can\s?not|can['’]t)\s+be\s+(?:answered|determined|diagnosed|assessed|evaluated|classified|identified)\b"
    r"|\bas\s+an?\s+(?:\w+\s+)?(?:ai|artificial\s+intelligence|language\s+model|assistant)\b"
    r"|\A\W*(?:i(?:\s+am|['’]m)\s+)?(?:very\s+|so\s+)?sorry\b|\A\W*(?:i\s+apologi[sz]e|unfortunately,?\s+i)\b"
    r"|(?:无法|不能|不便|难以)(?:\S{0,6})?(?:回答|判断|提供|确定|给出|诊断|识别|分析|作出|做出|选择)|抱歉|对不起|拒绝回答",
    re.IGNORECASE,
)  # fmt: skip


def declines(text: str) -> bool:
    """Whether an answer that names nothing says that it gives none."""
    return _REFUSAL.search(final_answer(text).strip()[:LONGEST]) is not None
