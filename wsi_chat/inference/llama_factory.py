"""What the options of LLaMA-Factory's inference script mean here: chat templates, sampling, size of pictures."""

from __future__ import annotations

import logging

from wsi_chat.dialects import Dialect, ImagePolicy
from wsi_chat.errors import SettingError
from wsi_chat.schema import Sampling

log = logging.getLogger(__name__)

TEMPLATES = {
    "qwen2_vl": "qwen2-vl",
    "qwen2_5_vl": "qwen2.5-vl",
    "qwen3_vl": "qwen3-vl",
    "qwen3_vl_nothink": "qwen3-vl",
    "intern_vl": "internvl",
    "gemma3": "medgemma",
    "medgemma": "medgemma",
    "paligemma": "paligemma",
    "paligemma_chat": "paligemma",
}
"""A chat template's name -> the dialect of the family that it belongs to."""


def dialect_of_template(template: str) -> str:
    """The dialect for ``--template``. Raises SettingError for a template of no family that is known here."""
    if template not in TEMPLATES:
        raise SettingError(
            f"--template {template!r} is not known.", hint=f"Choose one of {', '.join(TEMPLATES)}; or give --dialect."
        )
    return TEMPLATES[template]


def sampling_of(temperature: float | None, top_p: float | None, top_k: int | None) -> Sampling | None:
    """How answers are drawn; None, which is greedy, without a temperature above 0.

    Raises:
        SettingError: a value out of range.
    """
    if temperature is not None and not 0 <= temperature <= 100:
        raise SettingError(f"--temperature is {temperature}.", hint="Give 0 (the most probable words) to 2.")
    if top_p is not None and not 0 < top_p <= 1:
        raise SettingError(f"--top-p is {top_p}.", hint="Give a share above 0 and at most 1.")
    if top_k is not None and top_k < -1:
        raise SettingError(f"--top-k is {top_k}.", hint="Give how many words are drawn from; 0 or -1: all.")
    if not temperature:
        if top_p is not None or top_k is not None:
            log.warning("--top-p and --top-k do nothing without --temperature: answers are the most probable words.")
        return None
    return Sampling(temperature, 1.0 if top_p is None else top_p, max(0, top_k or 0))


def with_max_pixels(dialect: Dialect, max_pixels: int) -> Dialect:
    """The dialect, sending pictures of at most this area.

    Raises:
        SettingError: no picture of that size suits the model.
    """
    image = dialect.spec.image
    update: dict[str, int] = {"max_pixels": max_pixels, "min_pixels": min(image.min_pixels, max_pixels)}
    if max_pixels < image.multiple**2:
        raise SettingError(
            f"--image-max-pixels is {max_pixels}.", hint=f"{dialect.name} needs at least {image.multiple**2}."
        )
    if image.side is not None and image.side**2 > max_pixels:
        update["side"] = int(max_pixels**0.5) // image.multiple * image.multiple
        if update["side"] < 16:
            raise SettingError(f"--image-max-pixels is {max_pixels}.", hint="Give at least 256.")
    policy = ImagePolicy.model_validate(image.model_dump() | update)
    return Dialect(dialect.spec.model_copy(update={"image": policy}))
