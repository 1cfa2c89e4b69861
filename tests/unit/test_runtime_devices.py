"""Which devices are told to be untried."""

from __future__ import annotations

import logging

import pytest
import torch

from sfumato.runtime import resolve_device


@pytest.mark.parametrize(
    ("device", "rocm", "told"),
    [("cpu", None, ""), ("cuda", None, ""), ("cuda", "6.4", "device cuda (ROCm): "), ("mps", None, "device mps: ")],
)
def test_only_devices_that_never_ran_the_tests_are_warned_of(
    device: str, rocm: str | None, told: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(torch.version, "hip", rocm)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    with caplog.at_level(logging.WARNING, logger="sfumato"):
        assert resolve_device(device).type == device
    assert [record.getMessage() for record in caplog.records] == (
        [told + "sfumato's tests have not been run on one yet"] if told else []
    )
