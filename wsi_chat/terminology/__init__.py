"""Reporting systems as data: what to ask of a specimen, what the answers are called, what may be said.

Each system is one versioned YAML file whose labels, categories, rules and wording name the source they were
taken from; ``house`` marks a choice of this project that no publication backs. `load_system` gives one by its
specimen code or from a user's own file, `specimens` lists those that ship with the package.
"""

from wsi_chat.terminology.adequacy import AdequacyRule, Component, Minimum, Obscuring
from wsi_chat.terminology.loading import check_file, load_system, specimens
from wsi_chat.terminology.problems import Problem
from wsi_chat.terminology.prohibition import Prohibition
from wsi_chat.terminology.records import Category, FreeQuestion, Hedge, Label, Note, Risk, ScreenQuestion, Wording
from wsi_chat.terminology.system import System

__all__ = [
    "AdequacyRule",
    "Category",
    "Component",
    "FreeQuestion",
    "Hedge",
    "Label",
    "Minimum",
    "Note",
    "Obscuring",
    "Problem",
    "Prohibition",
    "Risk",
    "ScreenQuestion",
    "System",
    "Wording",
    "check_file",
    "load_system",
    "specimens",
]
