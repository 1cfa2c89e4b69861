"""A model's compute settings: one list of them, whoever asks."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any

import pytest

import sfumato
from sfumato.errors import InvalidRequest
from sfumato.modelfiles.load_options import LoadOptions


def test_load_pipeline_takes_each_of_them_with_its_default() -> None:
    parameters = inspect.signature(sfumato.load_pipeline).parameters
    own = {"model", "safety", "watermark", "on_progress"}
    taken = {name: parameter.default for name, parameter in parameters.items() if name not in own}
    assert taken == {field.name: field.default for field in dataclasses.fields(LoadOptions)}


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"engine": "winogard"}, "engine 'winogard' is unknown: did you mean 'winograd'"),
        ({"memory": "les"}, "memory 'les' is unknown"),
        ({"vae_tiling": "tiles"}, "vae_tiling 'tiles' is unknown"),
        ({"batch_size": True}, "batch_size True must be a whole number"),
        ({"device": 3}, "device 3 must be text"),
        ({"ema": "no"}, "ema 'no' must be true or false"),
    ],
)
def test_a_wrong_value_is_refused_before_any_model_is_looked_for(values: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidRequest, match=said) as caught:
        sfumato.load_pipeline("nobody/nothing", **values)
    assert caught.value.field in values


def test_a_token_is_never_shown() -> None:
    assert "hf_secret" not in repr(LoadOptions(token="hf_secret"))
