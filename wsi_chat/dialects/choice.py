"""Which option of a multiple-choice question an answer in words chooses: one reader, for analysis and for evaluation.

A letter counts where it stands alone, is marked as a choice (``B.``, ``B) ...``, ``(B)``, ``**B**``), follows words
such as "the answer is", or closes a statement ("..., so B."). The article of "A cluster of cells" is none of these.
An answer that chooses several options, or rejects the only one it names, chooses none.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from wsi_chat.dialects.reasoning import final_answer
from wsi_chat.tasks import LETTERS

CONTROL = re.compile(r"<\|[a-z_]+\|>|<end_of_turn>|<eos>|</s>")
"""Control tokens of the Qwen, InternVL, Gemma and LLaMA tokenizers."""
LONGEST = 2000
"""Characters at either end of an answer that are read for its choice: the time it takes stays bounded."""

_ROLE = re.compile(r"\A\s*(?:assistant|model|gpt)\s*[:\n]\s*", re.IGNORECASE)
_BOXED = re.compile(r"\\(?:boxed|text|mathrm|mathbf)\s*\{([^{}]*)\}")
_DRESSING = " \t\r\n*_`\"'“”‘’«»「」『』()[]{}$#>."
_SEGMENT = re.compile(
    r"\n+|(?<=[.!?;。；！？])(?<!\A[A-Za-z]\.)(?<!\n[A-Za-z]\.)(?<![.!?;] [A-Za-z]\.)\s+|(?<=[。；！？])"
)
"""Between sentences; the mark of an option that begins one ends none."""
_LEAD = re.compile(
    r"(?:the|this|that|it|image|picture|photo|photograph|field|tile|slide|patch|region|cell|cells|view|smear|specimen"
    r"|sample|class|category|type|diagnosis|finding|is|are|was|shows?|depicts?|displays?|contains?|looks?|appears?|to|be"
    r"|like|most|likely|consistent|with|a|an|i|think|believe|answer|would|say|correct|right|best|option|choice|:|,)\s+",
    re.IGNORECASE,
)

# what introduces a choice; the letter itself must be a capital, or "the answer is a low-grade lesion" would choose A
_DECLARED = re.compile(
    r"(?:\b(?i:(?:(?:final|correct|right|best|my|the|most likely|most appropriate)\s+){0,3}(?:answer|response)"
    r"(?:\s+(?:letter|option|choice))?"
    r"|(?:correct|right|best|final|chosen|most likely|most appropriate|appropriate)\s+(?:option|choice|letter|one)"
    r"|(?:i\s+(?:would\s+)?|we\s+)(?:choose|select|pick|go with))"
    r"|答案|正确选项|正确的选项|最佳选项|应选择?|我选择?|选择|故选|所以选|因此选)"
    r"[\s*_`\"':=,-]{0,6}(?:(?i:is|are|was|would be|should be|must be|be|remains)\b|应该是|应该为|应为|是|为)?"
    r"[\s*_`\"':=-]{0,6}(?:(?i:option|choice|letter|answer)\s*|选项\s*)?"
    r"[\s*_`\"'(\[{]{0,6}([A-Z])(?![A-Za-z0-9'’])(?!-[A-Za-z])"
)
_GOES_ON = re.compile(
    r"\s*(?:\Z|[.,;:!?)\]}*_`\"'、。，；：）」』\n]|[-–—]\s|(?i:because|since|as|for|due|given|which|but|based|although|though"
    r"|while|rather|instead|not|is|here)\b|[一-鿿])"
)
"""What may follow a bare letter that is a choice. A noun may not: "Answer: A cluster of cells" chooses nothing."""

_OPENING = re.compile(r"\A[*_`\"'“”«(\[{#>\s-]*(?:(?i:option|choice|answer)\s+|选项\s*)?([A-Za-z])[*_`\"'”»]*"
                      r"(?P<mark>[.):\]}、：。]|\Z|\s+[-–—])[*_`\"'”»)\]}.]*\s*(?P<rest>.*)\Z", re.DOTALL)  # fmt: skip
_EMPHASISED = re.compile(r"\*\*\s*\(?([A-Z])\)?\s*[.:)]?\s*\*\*|__\(?([A-Z])\)?[.:)]?__|\(([A-Z])\)|\[([A-Z])\](?!\()")
_LAST = re.compile(
    r"(?:(?P<stop>[,;:.!?)\n，；：。—–]|\s-)\s*(?i:so|therefore|thus|hence|then)?"
    r"|\b(?i:so|therefore|thus|hence|then|suggests?|suggesting|indicates?|indicating|means?|choose|select|pick|option"
    r"|choice|favou?rs?|supports?|matches|(?:it|this|that) (?:is|must be))"
    r"|(?:选|是|为))\s*[*_`\"'(\[]*([A-Z])[*_`\"')\]]*\s*[.!。！]?\s*\Z"
)
_AND_ANOTHER = re.compile(r"(?:\A|[^A-Za-z0-9])[A-Z]\s*(?:,|/|&|(?i:and|or|nor)\b|或|和)\s*\Z")
_BOTH = re.compile(r"\A[\s*_`\"')\]]*(?:/|&|,|(?i:and|or)\b|或|和)\s*[*_`\"'(\[]*[A-Z](?![A-Za-z0-9'’])")
_INTERJECTION = re.compile(r"\A\s*(?:no|wait|hmm|not quite)\b\s*[,.:;!-]+", re.IGNORECASE)
_REJECTED = re.compile(
    r"\b(?:not|no|n[o']t|isn't|wrong|incorrect|unlikely|excluded|rejected|false|except|neither|nor|cannot|can't"
    r"|ruled out|rule out|less likely|rather than|instead of)\b|不|错|排除",
    re.IGNORECASE,
)


def chosen_option(text: str, options: Sequence[str]) -> int | None:
    """The place of the option that an answer chooses, None where it chooses none or more than one.

    Args:
        text: the model's answer, with its reasoning and control tokens if it has any.
        options: texts of the options, the first of which is A.
    """
    said = _plain(text)
    if not said:
        return None
    names = [_bare(option) for option in options]
    letters = LETTERS[: len(options)]
    if (exact := _named(said, names)) is not None:
        return exact
    listed = _listed(said, names, letters)
    if len(listed) > 1:  # the options repeated are no choice; what is said beside them may be one
        said = "\n".join(line for line in said.split("\n") if _canonical(line, names, letters) is None)
    declared = _declared(said, letters)
    if declared:
        return letters.index(declared.pop()) if len(declared) == 1 else None
    marked = _marked(said, names, letters)
    if marked:
        return marked.pop() if len(marked) == 1 else None
    return _shown(said, names)


def _plain(text: str) -> str:
    """The answer as it was meant: compatible characters folded, reasoning, control tokens and role names dropped."""
    said = CONTROL.sub("", final_answer(text))
    if len(said) > 2 * LONGEST:
        said = f"{said[:LONGEST]}\n{said[-LONGEST:]}"
    said = unicodedata.normalize("NFKC", said)
    return _BOXED.sub(r"**\1**", _ROLE.sub("", said)).strip()


def _bare(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).split()).strip(_DRESSING + ",;:!。").casefold()


def _named(text: str, names: Sequence[str]) -> int | None:
    """The option whose text the whole answer is."""
    bare = _bare(text)
    return names.index(bare) if bare in names else None


def _shown(text: str, names: Sequence[str]) -> int | None:
    """The option of an answer that says nothing but which it is: ``The image shows LSIL.``"""
    rest, place = _bare(text), None
    while place is None and (lead := _LEAD.match(rest)):
        rest = rest[lead.end() :]
        place = names.index(rest) if rest in names else None
    return place


def _canonical(segment: str, names: Sequence[str], letters: str) -> int | None:
    """The option of a segment that is one option as it was listed, letter and text: ``B. LSIL``."""
    found = _OPENING.match(segment.strip())
    if not found or found[1].upper() not in letters or not found["rest"].strip():
        return None
    place = letters.index(found[1].upper())
    return place if _bare(found["rest"]) == names[place] else None


def _listed(text: str, names: Sequence[str], letters: str) -> set[int]:
    places = (_canonical(line, names, letters) for line in text.split("\n"))
    return {place for place in places if place is not None}


def _declared(text: str, letters: str) -> set[str]:
    """Letters that the answer says are its choice."""
    chosen = set()
    for found in _DECLARED.finditer(text):
        letter, rest = found[1], text[found.end() :]
        sentence = _INTERJECTION.sub("", _SEGMENT.split(text[: found.start()])[-1])
        if letter not in letters or _REJECTED.search(sentence) or not _GOES_ON.match(rest):
            continue
        chosen.add(letter)
        if both := _BOTH.match(rest):
            chosen.add(both.group().strip(" *_`\"'([")[-1])
    return chosen


def _marked(text: str, names: Sequence[str], letters: str) -> set[int]:
    """Places of the options whose letters are marked as choices and not rejected in the same breath."""
    if any(_contradicts(line, names, letters) for line in text.split("\n")):
        return set()
    segments = [segment.strip() for segment in _SEGMENT.split(text) if segment and segment.strip()]
    chosen: set[int] = set()
    for number, segment in enumerate(segments):
        if (opening := _opening(segment, names, letters)) is not None:
            place, rest = opening
            if not _REJECTED.search(rest):
                chosen.add(place)
            continue
        if _REJECTED.search(segment):
            continue
        chosen |= {
            letters.index(found)
            for groups in _EMPHASISED.findall(segment)
            for found in groups
            if found and found in letters
        }
        before = segments[number - 1] if number else ""
        if (last := _closing(segment, before, letters)) is not None and number == len(segments) - 1:
            chosen.add(letters.index(last))
    return chosen


def _contradicts(line: str, names: Sequence[str], letters: str) -> bool:
    """Whether a line gives one option's letter with the text of another."""
    found = _OPENING.match(line)
    if not found or found[1].upper() not in letters:
        return False
    bare = _bare(found["rest"])
    return bare in names and names.index(bare) != letters.index(found[1].upper())


def _opening(segment: str, names: Sequence[str], letters: str) -> tuple[int, str] | None:
    """The option whose letter a segment begins with, marked or alone; and what follows its letter and text."""
    found = _OPENING.match(segment)
    if not found or found[1].upper() not in letters:
        return None
    place, rest = letters.index(found[1].upper()), _bare(found["rest"])
    own = rest.startswith(names[place])
    if found["mark"].strip(" ") in ("-", "–", "—") and not own:  # a dash marks nothing by itself
        return None
    return place, rest.removeprefix(names[place])


def _closing(segment: str, before: str, letters: str) -> str | None:
    """The bare letter that the last sentence ends in: ``A low-grade lesion: B``."""
    found = _LAST.search(segment)
    letter = found[2] if found else None
    if found is None or letter is None or letter not in letters or _AND_ANOTHER.search(segment[: found.start(2)]):
        return None
    return letter
