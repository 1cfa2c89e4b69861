"""A body of `POST /api/jobs` → what is asked for. Pure: the same body and settings give the same, but for a seed drawn.

Every field is either used or refused by name; nothing is dropped in silence, and no model is touched.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Collection, Mapping
from typing import Any

from sfumato.choices import check_choice
from sfumato.errors import InvalidRequest
from sfumato.pipeline.field_text import FIELDS
from sfumato.pipeline.presets import PRESET, with_preset
from sfumato.pipeline.request import Request, counted, upscaled
from sfumato.serve.jobs.job_desk import Submission
from sfumato.serve.server_settings import MAX_COUNT, MAX_PROMPT, MAX_STEPS, UNSAID_SIDE, ServerSettings, model_choice

_FIELDS = ("request", "count", "priority")
_PRIORITIES = (-100, 100)
_NOT_YET = ("init_image", "mask", "vae")  # they name files, and a caller names none on this machine


def read_submission(body: Mapping[str, Any], settings: ServerSettings) -> Submission:
    """Check a body: `{request, count, priority}`, or the request alone, as a picture's record has it.

    Without a seed one is drawn. Raises `InvalidRequest` with the field at fault.
    """
    envelope = body if "prompt" not in body else {"request": body}
    _check_names(envelope, _FIELDS)
    fields = envelope.get("request")
    if not isinstance(fields, Mapping):
        raise InvalidRequest("request must be an object with a prompt", field="request")
    count = _integer("count", envelope.get("count", 1), 1, MAX_COUNT)
    request = _request(fields, settings)
    counted([request], count)  # refuses seeds that would run over
    return Submission(
        request=request,
        count=count,
        priority=_integer("priority", envelope.get("priority", 0), *_PRIORITIES),
        body_sha256=hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest(),
    )


def _request(fields: Mapping[str, Any], settings: ServerSettings) -> Request:
    _check_names(fields, (*FIELDS, PRESET))
    if "prompt" not in fields:
        raise InvalidRequest("prompt is missing: say what the picture is to show", field="prompt")
    for name in _NOT_YET:
        if fields.get(name) is not None:
            raise InvalidRequest(f"{name} is not taken by this server: leave it out", field=name)
    said = {name: value for name, value in fields.items() if not (name in ("seed", PRESET) and value is None)}
    said.setdefault("seed", secrets.randbelow(2**32))
    said["model"] = model_choice(said.get("model") or "", settings.models)
    request = Request.from_dict(with_preset(said))
    for name in ("prompt", "negative_prompt"):
        if len(getattr(request, name)) > MAX_PROMPT:
            raise InvalidRequest(f"{name} is longer than {MAX_PROMPT} characters: shorten it", field=name)
    if request.steps > MAX_STEPS:
        raise InvalidRequest(f"steps {request.steps}: at most {MAX_STEPS} are made here", field="steps")
    if request.noise == "generator":
        raise InvalidRequest("noise 'generator' can't be sent: use cpu or cuda", field="noise")
    width, height = (upscaled(side or UNSAID_SIDE, request.upscale) for side in (request.width, request.height))
    if width * height > settings.max_pixels:
        field = "upscale" if request.upscale > 1 else "width" if width >= height else "height"
        raise InvalidRequest(
            f"{field}: {width}×{height} is {width * height} pixels; at most {settings.max_pixels} are made here",
            field=field,
        )
    return request


def _check_names(values: Mapping[str, Any], known: Collection[str]) -> None:
    for name in values:
        try:
            check_choice("the field", name, known)
        except InvalidRequest as error:
            raise InvalidRequest(str(error), field=name) from None


def _integer(name: str, value: object, low: int, high: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise InvalidRequest(f"{name} must be a whole number from {low} to {high}", field=name)
    return value
