"""The safety policy: which checker judges, and what happens to a picture it flags."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Literal

from PIL import Image, ImageFilter

from sfumato.errors import MissingExtra, UnsafeContent
from sfumato.safety.nsfw import OpenNsfwChecker
from sfumato.safety.verdict import UNCHECKED, Checker, Verdict

logger = logging.getLogger("sfumato")

Policy = Literal["off", "flag", "blur", "block"]

NO_CHECKER = (
    "this model has no safety checker and open-nsfw is not installed: pip install 'sfumato[safety]', "
    "use a model with a safety_checker folder, or choose another policy than block"
)


def choose_checker(policy: Policy, own: Callable[[], Checker] | None, *, required: bool = True) -> Checker | None:
    """The model's own checker (`own` loads it), else open-nsfw where installed, else none; never one for `off`.

    Call it before any work on the picture: raises `UnsafeContent` when the policy is `block` and nothing can check.
    `required` is what the model's makers say: where they need no checker, only `blur` warns that there is none.
    """
    if policy == "off":
        return None
    if own is not None:
        return own()
    try:
        return OpenNsfwChecker()
    except MissingExtra as error:
        if policy == "block":
            raise UnsafeContent(NO_CHECKER) from error
    if required or policy == "blur":
        logger.warning("no safety checker is available: pictures stay unchecked (pip install 'sfumato[safety]')")
    return None


def screen(
    images: Sequence[Image.Image], checker: Checker | None, policy: Policy
) -> tuple[list[Image.Image], list[Verdict]]:
    """The pictures to hand out and the verdict on each, in order. Pictures not flagged come back as they are.

    A flagged picture is returned untouched (`flag`), too blurred to recognise (`blur`), or black (`block`, as the
    model card's own checker does). Without a checker every verdict is "unchecked". Raises `UnsafeContent` when the
    policy is `block` and there is no checker.
    """
    if policy == "off":
        return list(images), [UNCHECKED] * len(images)
    if checker is None:
        if policy == "block":
            raise UnsafeContent(NO_CHECKER)
        return list(images), [UNCHECKED] * len(images)
    verdicts = checker(images)
    treat = _TREATMENTS[policy]
    shown = [
        treat(image) if verdict.status == "flagged" else image for image, verdict in zip(images, verdicts, strict=True)
    ]
    return shown, verdicts


def blurred(image: Image.Image) -> Image.Image:
    """Colours and where they are, no shapes: a Gaussian of σ = a tenth of the longer side."""
    return image.filter(ImageFilter.GaussianBlur(max(image.size) / 10))


def blackened(image: Image.Image) -> Image.Image:
    return Image.new(image.mode, image.size)


def _untouched(image: Image.Image) -> Image.Image:
    return image


_TREATMENTS: dict[Policy, Callable[[Image.Image], Image.Image]] = {
    "flag": _untouched,
    "blur": blurred,
    "block": blackened,
}
