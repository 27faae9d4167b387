"""Queries as requests to a chat-completions server, and its replies as answers.

Servers differ in what they take, so each question has several forms, the richest first; a refused form gives way
to the next. A choice without log-probabilities is read from the words: its probabilities stay unknown (None).
"""

from __future__ import annotations

import base64
import io
import math
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from wsi_chat.engines.prompts import ANY_CONTROL, count_marks, message_parts
from wsi_chat.engines.protocol import failed
from wsi_chat.engines.serving import size_kwargs
from wsi_chat.errors import AnswerError, whole_text
from wsi_chat.schema import Answer, Query

if TYPE_CHECKING:
    from PIL import Image

WORDS_FOR_A_CHOICE = 16
"""Tokens in which a server without log-probabilities may name its choice: ``B``, ``B. abnormal``."""

FIX_FOREIGN = "Check that --base-url names an OpenAI-compatible server, with its path (often /v1)."
TURN_TOKENS = 8
"""Tokens of a chat template around one turn, at most."""

HIDDEN = -9998.0
"""JSON knows no infinity: vLLM writes the log-probability of a token that may not be said as -9999."""


@dataclass(frozen=True, slots=True)
class Form:
    """What a request asks beside the plain protocol.

    ``extras``: vLLM's own fields. ``constraint``: the field that ties a choice to its options. ``top``: how many
    of the likeliest first tokens to report (0: the written tokens' own log-probability, None: none).
    """

    extras: bool
    constraint: Literal["structured_outputs", "guided_choice", ""]
    top: int | None


CHOICE_FORMS = (
    Form(True, "structured_outputs", 20),
    Form(True, "guided_choice", 20),
    Form(True, "", 20),
    Form(False, "", 20),
    Form(False, "", 5),
    Form(False, "", None),
)
TEXT_FORMS = (Form(True, "", 0), Form(False, "", 0), Form(False, "", None))


class ImageUrls:
    """Images as PNG data URLs; those of the last few images are kept, since a tile is asked several questions."""

    def __init__(self, keep: int) -> None:
        self._keep = keep
        self._urls: OrderedDict[int, tuple[Image.Image, str]] = OrderedDict()

    def of(self, image: Image.Image) -> str:
        """The URL of an image; its pixels exactly, whatever file it came from."""
        known = self._urls.get(id(image))  # the entry holds the image, so its id is not given to another
        if known is not None:
            return known[1]
        file = io.BytesIO()
        image.convert("RGB").save(file, format="PNG", compress_level=1)
        url = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode("ascii")
        self._urls[id(image)] = (image, url)
        while len(self._urls) > self._keep:
            self._urls.popitem(last=False)
        return url


def messages_of(query: Query, urls: ImageUrls) -> list[dict[str, Any]]:
    """The query's turns as messages. Raises AnswerError where its marks and images do not agree."""
    count_marks(query)
    images = iter(query.images)
    messages: list[dict[str, Any]] = []
    for turn in query.turns:
        parts: list[dict[str, Any]] = [
            {"type": "image_url", "image_url": {"url": urls.of(next(images))}} if part["type"] == "image" else part
            for part in message_parts(turn.text, ANY_CONTROL)
        ]
        # a turn of words alone goes as a string: some templates take nothing else
        worded = all(part["type"] == "text" for part in parts)
        messages.append({"role": turn.role, "content": turn.text if worded else parts})
    return messages


def estimated_tokens(query: Query) -> int:
    """More tokens than a question in words takes, for servers that do not count them. Ours, and no strict bound.

    Two letters or spaces to a token (English has four), each digit, sign and further ASCII character one of its own,
    two for every other character (Chinese has about one), `TURN_TOKENS` for the template around a turn, and for an
    image one for every 28 x 28 pixels, at least 256 (what a Gemma 3 or an InternVL tile takes).
    """
    text = "".join(turn.text for turn in query.turns)
    words = sum(char.isascii() and (char.isalpha() or char.isspace()) for char in text)
    other = sum(char.isascii() for char in text) - words
    wide = len(text) - words - other
    seen = sum(max(256, -(-image.width // 28) * -(-image.height // 28)) + 2 for image in query.images)
    return -(-words // 2) + other + 2 * wide + TURN_TOKENS * (len(query.turns) + 1) + seen


def token_count(reply: Any) -> int | None:
    """The count in the reply of vLLM's /tokenize; None where it is another server's."""
    count = reply.get("count") if isinstance(reply, dict) else None
    return count if isinstance(count, int) and count > 0 else None


def request_body(
    query: Query,
    messages: Sequence[Mapping[str, Any]],
    form: Form,
    *,
    model: str,
    seed: int,
    pixel_bounds: tuple[int, int] | None,
    length_field: str = "max_tokens",
) -> dict[str, Any]:
    """The JSON of one request: greedy unless the query is to be sampled, seeded, in the given form.

    ``pixel_bounds``: fewest and most pixels of an image, so that the model's processor resizes nothing; None for
    a family whose processor has no such bounds.
    """
    sampling = query.sampling
    room = query.max_tokens
    if query.choices and form.top is None:
        room = max(room, WORDS_FOR_A_CHOICE)
    body: dict[str, Any] = {
        "model": model,
        "messages": list(messages),
        "temperature": sampling.temperature if sampling else 0.0,
        "seed": seed,
        length_field: room,
        "stream": False,
    }
    if form.top is not None:
        body["logprobs"] = True
        if form.top:
            body["top_logprobs"] = form.top
    if form.extras:
        # a checkpoint's own sampling defaults (a repetition penalty, say) leak in where these are left out
        body |= {"top_p": 1.0, "top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0, "skip_special_tokens": False}
        if sampling:
            body["top_k"] = sampling.top_k or -1
    if sampling:
        body["top_p"] = sampling.top_p
    if form.extras and pixel_bounds is not None and query.images:
        body["mm_processor_kwargs"] = size_kwargs(pixel_bounds)
    if form.constraint == "structured_outputs":
        body["structured_outputs"] = {"choice": list(query.choices)}
    elif form.constraint == "guided_choice":
        body["guided_choice"] = list(query.choices)
    return body


def read_reply(reply: Any, query: Query) -> Answer:
    """The answer in a server's reply; a failed one where its log-probabilities of a choice are not numbers.

    Raises AnswerError where the reply is not a chat completion.
    """
    try:
        if not reply["choices"]:
            raise AnswerError("its reply is not a chat completion: its list of choices is empty", hint=FIX_FOREIGN)
        first = reply["choices"][0]
        text = first["message"]["content"]
        finish = str(first.get("finish_reason") or "stop")
        usage = reply.get("usage") or {}
        logs = [entry for entry in ((first.get("logprobs") or {}).get("content") or []) if isinstance(entry, dict)]
        if text is None:
            text = str(first["message"].get("refusal") or "")
        if not isinstance(text, str):
            raise TypeError(f"its content is a {type(text).__name__}")
        tokens = int(usage.get("prompt_tokens") or 0), int(usage.get("completion_tokens") or 0)
        logprob = math.fsum(float(entry["logprob"]) for entry in logs) if logs else None
        logprob = logprob if logprob is not None and math.isfinite(logprob) else None
        chances = choice_probabilities(query.choices, logs[0]) if query.choices and logs else None
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise AnswerError(
            f"its reply is not a chat completion ({type(error).__name__}: {error})", hint=FIX_FOREIGN
        ) from error
    if query.choices and logs and _not_numbers(logs[0]):
        return failed(query, "the server's log-probabilities are not numbers")
    if chances is not None:
        best = max(chances, key=chances.__getitem__)
        return Answer(
            query.key, query.task, best, probabilities=chances, logprob=logprob,
            prompt_tokens=tokens[0], new_tokens=tokens[1],
        )  # fmt: skip
    cut = finish == "length" and not query.choices
    return Answer(
        key=query.key,
        task=query.task,
        text=text,
        status="truncated" if cut else "ok",
        finish_reason="length" if finish == "length" else "stop",
        logprob=logprob,
        prompt_tokens=tokens[0],
        new_tokens=tokens[1],
    )


class Pieces:
    """A streamed reply, put together event by event into the reply that an unstreamed request would have had."""

    def __init__(self) -> None:
        self.text = ""
        self._half = ""  # the first of a pair of surrogates, whose second comes with the next event
        self._finish = "stop"
        self._model: Any = None
        self._usage: Any = None
        self._logs: list[Any] = []

    def take(self, event: Any) -> str:
        """The words of one event. Raises AnswerError where it is none of a chat completion."""
        try:
            self._usage = event.get("usage") or self._usage
            self._model = event.get("model") or self._model
            for first in event["choices"][:1]:
                words = self._half + str((first.get("delta") or {}).get("content") or "")
                self._finish = first.get("finish_reason") or self._finish
                self._logs += (first.get("logprobs") or {}).get("content") or []
                self._half = words[-1:] if "\ud800" <= words[-1:] <= "\udbff" else ""
                words = whole_text(words.removesuffix(self._half))
                self.text += words
                return words
        except (KeyError, TypeError, AttributeError) as error:
            raise AnswerError(f"the server's stream is not a chat completion: {error}") from error
        return ""

    def reply(self) -> dict[str, Any]:
        """The whole, as `read_reply` takes it."""
        message = {"message": {"content": self.text}, "finish_reason": self._finish}
        return {
            "choices": [{**message, "logprobs": {"content": self._logs}}],
            "usage": self._usage,
            "model": self._model,
        }


def _not_numbers(entry: Mapping[str, Any]) -> bool:
    """Whether a log-probability of a first token is NaN or above all numbers; minus infinity rules a token out."""
    tops = [top for top in entry.get("top_logprobs") or [] if isinstance(top, dict)]
    logs = [one.get("logprob") for one in (entry, *tops)]
    return any(isinstance(log, float) and (math.isnan(log) or log == math.inf) for log in logs)


def choice_probabilities(choices: Sequence[str], entry: Mapping[str, Any]) -> dict[str, float] | None:
    """Probability of each option from the first token's likeliest alternatives, summing to 1.

    Tokens that spell an option with space around it count for it. An option that is not among the alternatives is
    less likely than the last of them and gets that one's probability, its upper bound; an option that the server
    ruled out gets 0. None where the server gave no alternatives or they name no option.
    """
    alternatives = {str(top["token"]): float(top["logprob"]) for top in entry.get("top_logprobs") or []}
    if len(alternatives) < 2:
        return None
    said = str(entry.get("token", ""))
    if "logprob" in entry:
        alternatives.setdefault(said, float(entry["logprob"]))
    weights = dict.fromkeys(choices, 0.0)
    named: set[str] = set()
    for token, log in alternatives.items():
        choice = token.strip()
        if choice in weights:
            named.add(choice)
            weights[choice] += math.exp(log) if log > HIDDEN else 0.0
    total = math.fsum(weights.values())
    if not named or not 0.0 < total < math.inf:
        return None
    least = min(alternatives.values())
    bound = math.exp(least) if least > HIDDEN else 0.0
    for choice in choices:
        if choice not in named:
            weights[choice] = bound
    total = math.fsum(weights.values())
    return {choice: weight / total for choice, weight in weights.items()}
