"""`sfumato emissions` and `sfumato card` as a user meets them."""

from __future__ import annotations

import json
import sys

import pytest
from command_line import Cli


def test_the_cards_emissions_with_the_constants_that_give_them(cli: Cli) -> None:
    shown = cli("emissions", "--reproduce-card")
    assert shown.code == 0
    for figure in ("11,250", "13,793", "18,000", "0.25 kW", "0.3678", "37,500"):
        assert figure in shown.out
    documents = json.loads(cli("emissions", "--reproduce-card", "--json").out)
    assert [round(document["kg_co2eq"], 1) for document in documents] == [11_250.0, 13_792.5, 18_000.0]
    assert all(constant["source"] for document in documents for constant in document["constants"])


def test_an_estimate_names_every_source(cli: Cli) -> None:
    arguments = ("emissions", "--hardware", "A100 PCIe 40GB", "--hours", "150000", "--region", "aws/us-east-1")
    shown = cli(*arguments)
    assert "13,793 kg CO2eq" in shown.out and "A100 Tensor Core GPU datasheet" in shown.out and "2019" in shown.out
    assert "km by an average passenger car" in shown.out
    document = json.loads(cli(*arguments, "--json").out)
    assert document["kwh"] == 37_500 and document["kg_co2eq"] == pytest.approx(13_792.5)


def test_a_command_is_measured(cli: Cli) -> None:
    shown = cli("emissions", "--region", "fra", "--json", "--measure", "--", sys.executable, "-c", "print('work')")
    assert shown.code == 0 and "work" in shown.err
    document = json.loads(shown.out)
    assert document["kwh"] > 0 and "codecarbon" in document["method"]
    assert cli("emissions", "--measure", "--", sys.executable, "-c", "raise SystemExit(3)").code == 1


def test_tables_are_listed(cli: Cli) -> None:
    assert "A100 SXM4 80GB" in cli("emissions", "--tables").out
    document = json.loads(cli("emissions", "--tables", "--json").out)
    assert len(document["grids"]) > 300 and len(document["hardware"]) > 30


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "--hours"),
        (("--hours", "1", "--tables"), "--hours and --tables"),
        (("--hours", "-1", "--hardware", "T4"), "hours = -1"),
        (("--hours", "1", "--hardware", "A100 PCI"), "A100 PCIe 40GB"),
        (("--hours", "1", "--hardware", "T4", "--region", "us-east-"), "aws/us-east-2"),
        (("--hours", "1", "true"), "--measure"),
        (("--measure",), "--measure --"),
        (("--measure", "--", "no-such-program"), "no-such-program"),
        (("--run", "nowhere"), "--hours"),
    ],
)
def test_what_cannot_be_is_one_line(cli: Cli, arguments: tuple[str, ...], message: str) -> None:
    shown = cli("emissions", *arguments)
    assert shown.code == 2 and shown.out == "" and len(shown.errors) == len(shown.err.splitlines()) == 1
    assert message in shown.err
