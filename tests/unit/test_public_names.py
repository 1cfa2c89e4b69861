"""The names other people's programs may rely on: exactly these. A new one is a decision, a lost one breaks somebody."""

from __future__ import annotations

import inspect
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import sfumato
from sfumato import errors

NAMES = ["Cancellation", "Generation", "Pipeline", "Progress", "Provenance", "Request", "load_pipeline"]
# Each error with what it may also be caught as.
ERRORS = {
    "Cancelled": [],
    "CheckpointError": [],
    "DataError": [],
    "HubError": [],
    "InvalidConfig": [ValueError],
    "InvalidRequest": [ValueError],
    "MissingExtra": [ImportError],
    "ModelNotFound": [FileNotFoundError],
    "NumericalError": [ArithmeticError],
    "OutOfMemory": [MemoryError],
    "OutputError": [OSError],
    "PeerFailed": [],
    "PeerGone": [errors.PeerFailed],
    "SfumatoError": [],
    "UnsafeCheckpoint": [errors.CheckpointError],
    "UnsafeContent": [],
}


def test_the_package_has_these_names_and_no_others() -> None:
    assert sfumato.__all__ == NAMES
    assert dir(sfumato) == sorted([*NAMES, "__version__"])


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_what_it_says(name: str) -> None:
    assert getattr(sfumato, name).__name__ == name


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'StableDiffusion'"):
        sfumato.StableDiffusion  # noqa: B018


def test_errors_are_these_and_can_be_caught_as_python_s_own() -> None:
    found = {name for name, value in vars(errors).items() if inspect.isclass(value) and issubclass(value, Exception)}
    assert found == set(ERRORS)
    for name, bases in ERRORS.items():
        assert issubclass(getattr(errors, name), (errors.SfumatoError, *bases)), name
        for base in bases:
            assert issubclass(getattr(errors, name), base), name


def test_the_names_are_known_without_torch() -> None:
    """Nothing heavy is imported with the package: a program that only catches errors shouldn't wait for torch."""
    code = "import sys, sfumato, sfumato.errors; dir(sfumato); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_the_version_has_one_home() -> None:
    root = Path(__file__).parents[2]
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    assert "version" in project["project"]["dynamic"]
    assert f"\nversion: {sfumato.__version__}\n" in (root / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\n## {sfumato.__version__}" in (root / "CHANGELOG.md").read_text(encoding="utf-8")
