"""Reporting systems as data: what to ask of a specimen, what the answers are called, what may be said.

Each system is one versioned YAML file whose labels, categories, rules and wording name the source they were
taken from; ``house`` marks a choice of this project that no publication backs. `load_system` gives one by its
specimen code or from a user's own file, `specimens` lists those that ship with the package.
"""

from wsi_chat.terminology.loading import load_system, specimens
from wsi_chat.terminology.system import (
    AdequacyRule,
    Category,
    Label,
    Minimum,
    Risk,
    ScreenQuestion,
    System,
    Wording,
)

__all__ = [
    "AdequacyRule",
    "Category",
    "Label",
    "Minimum",
    "Risk",
    "ScreenQuestion",
    "System",
    "Wording",
    "load_system",
    "specimens",
]
