"""Has a model say the templates' wordings differently, and keeps only what provably says the same.

A rewritten text must hold the same numbers, class names, places, negations and hedges as its template, sentence by
sentence; else the template stays, and is counted. Boxes, choices, class answers and the dialect's own prompts are
never given to the model. Every answer of the model is journalled, so that a rerun asks nothing twice.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from wsi_chat.datasets.questions import Exchange
from wsi_chat.datasets.translate import pattern
from wsi_chat.datasets.wordings import PHRASE, Names
from wsi_chat.dialects import Dialect
from wsi_chat.dialects.dialect import query_key
from wsi_chat.engines import Engine, load_engine
from wsi_chat.journal import Journal
from wsi_chat.schema import Answer, Query, Turn

SYSTEM = "You rewrite sentences. You answer with the rewritten text alone."
STYLES = (
    "Say the following in other words.",
    "Rephrase the following as a colleague in the laboratory would put it.",
    "Say the following more formally.",
)
RULES = (
    "Keep every number, every class name, every place and every negation exactly as it is. Keep the number of "
    "sentences. Add nothing, leave nothing out."
)
VERSION = 1
"""Part of every key: raised when the checks or the instruction change."""

REWRITTEN_ANSWERS = frozenset({"describe", "vqa", "region", "narrative"})
KEPT_QUESTIONS = frozenset({"screen", "mcq"})
MAX_TOKENS = 160
LONGEST, SLACK = 2.5, 40
"""A rewriting may be this many times as long as its template, and so many characters more."""

_WORDS = {
    "one": "1", "two": "2", "three": "3", "four": "4", "five": "5", "six": "6", "seven": "7", "eight": "8",
    "nine": "9", "ten": "10", "eleven": "11", "twelve": "12", "single": "1", "both": "2", "pair": "2", "dozen": "12",
    "center": "centre", "central": "centre", "top": "upper", "bottom": "lower", "µm": "um", "μm": "um",
    "micrometre": "um", "micrometres": "um", "micrometers": "um",
}  # fmt: skip
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
_NEGATION = re.compile(
    r"\b(?:no|not|none|nor|neither|never|nothing|nobody|nowhere|without|absent|absence|lacks?|lacking|free of|cannot|"
    r"zero|fails?|hardly|barely|excluded?|ruled out|devoid|missing|negative)\b|n[’']t\b",
    re.IGNORECASE,
)
_MEANT = re.compile(
    # places, severity, certainty and comparison: a word of these that comes, goes or moves changes what is said
    r"\b(?:upper|middle|lower|left|right|centre|yes|abnormal|normal|malignan\w*|benign|atypi\w*|suspicious|positive|"
    r"carcinoma|cancer\w*|tumou?r\w*|dysplas\w*|lesions?|high-grade|low-grade|invasive|infect\w*|inflam\w*|reactive|"
    r"may|might|could|possibl[ey]|probabl[ey]|likely|suggest\w*|consistent|perhaps|appears?|seems?|"
    r"most|least|only|largest|smallest|every|all|some|few|many|several|"
    r"hpv|p16|ki-?67|immuno\w*|molecular|gene\w*|biopsy|histolog\w*|um)\b",
    re.IGNORECASE,
)
_SENTENCE = re.compile(r"(?<=[.!?;])\s+")
_FORBIDDEN = re.compile(r"<[^>]*>|<\||\[\s*\d|[{}]|```|\N{REPLACEMENT CHARACTER}|[\x00-\x1f]")
_TOKEN = re.compile(r"[^\W_]+(?:[-’'][^\W_]+)*", re.UNICODE)
_POLAR = re.compile(r"(?:is|are|was|were|do|does|did|can|could|may|has|have|had|will|would|should)", re.IGNORECASE)
_COUNTS = re.compile(r"\b(?:how many|number of|count|how often)\b", re.IGNORECASE)
_ASKS_BOXES = re.compile(r"\b(?:box\w*|mark|locate|where|find|detect|position\w*|outline\w*)\b", re.IGNORECASE)


@dataclass(slots=True)
class Rewriting:
    """What became of the texts: how many distinct ones were ``tried`` and ``kept``, and why the others were not.

    ``used`` counts the places where a rewritten text stands.
    """

    tried: int = 0
    kept: int = 0
    used: int = 0
    refused: Counter[str] = field(default_factory=Counter)

    def payload(self) -> dict[str, object]:
        """Plain values for build.json."""
        return {
            "tried": self.tried, "kept": self.kept, "used": self.used,
            "template_stays": dict(sorted(self.refused.items())),
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Piece:
    """The part of a question or an answer that is free text: what stands before it and behind it stays."""

    before: str
    text: str
    after: str


class Rewriter:
    """Rewrites exchanges by one engine. The same engine, texts and seed give the same wordings.

    Args:
        share: of the texts, how many are offered to the model; the others keep their template.
    """

    def __init__(
        self, engine: Engine, dialect: Dialect, names: Names, labels: Iterable[str], *, journal: Journal | None = None,
        share: float = 0.5, seed: int = 0,
    ) -> None:  # fmt: skip
        self.engine, self.dialect, self.journal, self.share, self.seed = engine, dialect, journal, share, seed
        self.terms = terms_of(names, labels)
        self.done = Rewriting()
        self._texts: dict[str, str | None] = {}

    def rewrite(self, talks: Sequence[tuple[Exchange, ...]], *, of: str) -> list[tuple[Exchange, ...]]:
        """Conversations with rewritten wordings. ``of`` names the picture, so that pictures differ in wording."""
        return self.rewrite_all([(of, talks)])[0]

    def rewrite_all(
        self, pictures: Sequence[tuple[str, Sequence[tuple[Exchange, ...]]]]
    ) -> list[list[tuple[Exchange, ...]]]:
        """The conversations of many pictures; every distinct text is asked once, all together."""
        wanted: dict[str, Query] = {}
        for of, talks in pictures:
            for talk in talks:
                for exchange in talk:
                    for piece in self._pieces(exchange):
                        if piece and (query := self._query(piece.text, of)):
                            wanted.setdefault(query.key, query)
        new = {key: query for key, query in wanted.items() if key not in self._texts}
        for key, answer in self._ask(new).items():
            self._texts[key] = self._checked(_template_of(new[key]), answer)
        return [[tuple(self._applied(exchange, of) for exchange in talk) for talk in talks] for of, talks in pictures]

    def _pieces(self, exchange: Exchange) -> tuple[_Piece | None, _Piece | None]:
        return self._free_question(exchange), self._free_answer(exchange)

    def _free_question(self, exchange: Exchange) -> _Piece | None:
        """The free words of a question: not a prompt of the dialect's own, not its box, not the demand for a phrase."""
        prompts, text = self.dialect.spec.prompts, exchange.question
        if exchange.kind in KEPT_QUESTIONS or text == prompts.describe:
            return None
        own = (prompts.ground, prompts.refer, prompts.choice)
        if any(pattern(template).fullmatch(text) for template in own):
            return None
        for template in (prompts.vqa_region, prompts.vqa):
            found = pattern(template).fullmatch(text)
            if found:
                start, end = found.span("question")
                words = found["question"].removesuffix(PHRASE).rstrip()
                return _Piece(text[:start], words, found["question"][len(words) :] + text[end:]) if words else None
        return None

    @staticmethod
    def _free_answer(exchange: Exchange) -> _Piece | None:
        free = exchange.kind in REWRITTEN_ANSWERS and exchange.answer.strip()
        return _Piece("", exchange.answer, "") if free else None

    def _applied(self, exchange: Exchange, of: str) -> Exchange:
        question, answer = self._pieces(exchange)
        changed = exchange
        for name, piece in (("question", question), ("answer", answer)):
            query = self._query(piece.text, of) if piece else None
            text = self._texts.get(query.key) if query else None
            if piece and text:
                self.done.used += 1
                changed = replace(changed, **{name: f"{piece.before}{text}{piece.after}"})
        return changed

    # ------------------------------------------------------------------------------------------ asking

    def _query(self, text: str, of: str) -> Query | None:
        """How the model is asked about a text of a picture; None where chance leaves the template."""
        drawn = hashlib.sha256(f"{self.seed}\0{of}\0{text}".encode()).digest()
        if int.from_bytes(drawn[:4], "big") >= self.share * 2**32 or _FORBIDDEN.search(text):
            return None
        style = STYLES[drawn[4] % len(STYLES)]
        turns = (Turn("system", SYSTEM), Turn("user", f"{style} {RULES}\n\n{text}"))
        key = query_key(
            task="vqa", turns=turns, images=(), choices=(), max_tokens=MAX_TOKENS,
            decoding={"greedy": True, "rewriting": VERSION}, model_id=self.engine.model_id, dialect="rewriting",
        )  # fmt: skip
        return Query(key, "vqa", turns, max_tokens=MAX_TOKENS)

    def _ask(self, wanted: dict[str, Query]) -> dict[str, Answer]:
        answers = self.journal.get_many(wanted) if self.journal is not None else {}
        missing = [query for key, query in wanted.items() if key not in answers]
        for answer in self.engine.answer(iter(missing)):
            answers[answer.key] = answer
            if self.journal is not None:
                self.journal.put(answer)
        # in the order asked, so that the counts do not depend on the engine's batches
        return {key: answers[key] for key in wanted if key in answers}

    def _checked(self, template: str, answer: Answer) -> str | None:
        self.done.tried += 1
        text, why = judge(template, answer, self.terms)
        if why:
            self.done.refused[why] += 1
            return None
        self.done.kept += 1
        return text


@contextmanager
def rewriting(
    model: str | None, dialect: Dialect, names: Names, labels: Iterable[str], *, engine: str = "auto",
    share: float = 0.5, cache: Path, seed: int = 0,
) -> Iterator[Rewriter | None]:  # fmt: skip
    """A rewriter over a checkpoint and the journal of its answers; None without a model.

    Raises:
        EngineError: the checkpoint cannot be loaded. OutputError: the journal cannot be written.
    """
    if model is None:
        yield None
        return
    asked = load_engine(model, engine=engine)
    try:
        with Journal(cache) as journal:
            yield Rewriter(asked, dialect, names, labels, journal=journal, share=share, seed=seed)
    finally:
        asked.close()


def _template_of(query: Query) -> str:
    return query.turns[-1].text.split("\n\n", 1)[1]


# ---------------------------------------------------------------------------------------------- judging


def terms_of(names: Names, labels: Iterable[str]) -> re.Pattern[str]:
    """Every way to name a class, the longest first: what a rewriting may neither change, lose nor add."""
    codes = {*labels, *(label.code for label in names.system.labels), *names.benign}
    spelled: set[str] = set()
    for code in codes:
        spelled |= {code, names.short(code), names.long(code), names.plural(code)}
    spelled |= {category.name for category in names.system.categories}
    spelled |= {category.long_name for category in names.system.categories}
    every = sorted({text.strip() for text in spelled if text.strip()}, key=lambda text: (-len(text), text))
    return re.compile(rf"(?<!\w)(?:{'|'.join(re.escape(text) for text in every)})(?!\w)", re.IGNORECASE)


def judge(template: str, answer: Answer, terms: re.Pattern[str]) -> tuple[str, str]:
    """(rewritten text, '') where it says the same as the template, ('', why not) else.

    Reasons: ``failed``, ``truncated``, ``empty``, ``form`` (several lines, tags, control tokens), ``length``,
    ``same``, ``numbers``, ``classes``, ``negation``, ``meaning`` (places, severity, certainty), ``question``
    (another kind of question), ``sentences``.
    """
    if answer.status == "failed":
        return "", "failed"
    if answer.status == "truncated" or answer.finish_reason != "stop":
        return "", "truncated"
    text = answer.text.strip()
    if len(text) > 1 and text[0] == text[-1] == '"':
        text = text[1:-1].strip()
    if not _TOKEN.search(text):
        return "", "empty"
    if _FORBIDDEN.search(text):
        return "", "form"
    if len(text) > LONGEST * len(template) + SLACK:
        return "", "length"
    if " ".join(text.casefold().split()) == " ".join(template.casefold().split()):
        return "", "same"
    return next(((("", why)) for why in _differences(template, text, terms)), (text, ""))


def _differences(template: str, text: str, terms: re.Pattern[str]) -> Iterator[str]:
    for name, facts in (("numbers", _numbers), ("classes", _classes), ("negation", _negations), ("meaning", _meant)):
        if facts(template, terms) != facts(text, terms):
            yield name
    if _asked(template) != _asked(text):
        yield "question"
    # a fact may move within its sentence, never into another: "No a. b." is not "a. No b."
    one, other = (_SENTENCE.split(whole.strip()) for whole in (template, text))
    if len(one) != len(other) or any(_facts(a, terms) != _facts(b, terms) for a, b in zip(one, other, strict=False)):
        yield "sentences"


def _facts(text: str, terms: re.Pattern[str]) -> tuple[object, ...]:
    counts = tuple(facts(text, terms) for facts in (_numbers, _classes, _negations, _meant))
    numbers, classes = counts[0].total(), counts[1].total()
    # "2 a and 3 b" must not become "3 a and 2 b", nor "a but no b" "b but no a"
    return (*counts, _sequence(text, terms) if max(numbers, classes) > 1 else ())


def _sequence(text: str, terms: re.Pattern[str]) -> tuple[str, ...]:
    """Numbers, classes, negations and words that carry meaning, in the order in which they are said."""
    found: list[tuple[int, str]] = [(match.start(), _class(match[0])) for match in terms.finditer(text)]
    rest = text
    for gone in (terms, _COUNTS):
        rest = gone.sub(lambda match: " " * len(match[0]), rest)
    for match in _TOKEN.finditer(rest):
        plain = _WORDS.get(match[0].casefold(), match[0].casefold())
        if _NUMBER.fullmatch(plain) or _MEANT.fullmatch(plain):
            found.append((match.start(), plain))
    found += [(match.start(), "not") for match in _NEGATION.finditer(rest)]
    return tuple(word for _, word in sorted(found))


def _plain(text: str) -> str:
    return _TOKEN.sub(lambda found: _WORDS.get(found[0].casefold(), found[0]), text)


def _numbers(text: str, terms: re.Pattern[str]) -> Counter[str]:
    return Counter(_NUMBER.findall(_plain(terms.sub(" ", text))))


def _classes(text: str, terms: re.Pattern[str]) -> Counter[str]:
    return Counter(_class(found) for found in terms.findall(text))


def _class(found: str) -> str:
    """A class name without the ending that goes with its number: ``hsil`` of ``HSIL cells``."""
    return re.sub(r"(?:\s+cells?|(?<=[a-z])s)$", "", " ".join(found.casefold().split()))


def _negations(text: str, terms: re.Pattern[str]) -> Counter[str]:
    return Counter(["negation"] * len(_NEGATION.findall(terms.sub(" ", text))))


def _meant(text: str, terms: re.Pattern[str]) -> Counter[str]:
    return Counter(found.casefold() for found in _MEANT.findall(_plain(_COUNTS.sub(" ", terms.sub(" ", text)))))


def _asked(text: str) -> tuple[bool, bool, bool, bool]:
    """What kind of question: one at all, one for yes or no, one for a number, one for places."""
    first = _TOKEN.search(text)
    polar = first is not None and _POLAR.fullmatch(first[0]) is not None
    question = text.rstrip().endswith("?")
    return question, polar and question, bool(_COUNTS.search(text)), bool(_ASKS_BOXES.search(text))
