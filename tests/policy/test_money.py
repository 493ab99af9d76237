"""Amounts of money are written with the digits that their currency has."""

from __future__ import annotations

from decimal import Decimal

import pytest

from capacity.policy.money import amount_text, minor_unit


@pytest.mark.parametrize(
    ("amount", "currency", "text"),
    [
        ("0.4", "EUR", "0.40"),
        ("0.420000", "EUR", "0.42"),
        ("0.0042", "EUR", "0.0042"),
        ("12", "USD", "12.00"),
        ("1200", "EUR", "1,200.00"),
        ("100", "JPY", "100"),
        ("0.5", "JPY", "0.5"),
        ("1.5", "KWD", "1.500"),
        ("0", "eur", "0.00"),
        ("3", "", "3.00"),
    ],
)
def test_an_amount_has_the_digits_of_its_currency_and_all_of_its_own(amount: str, currency: str, text: str) -> None:
    assert amount_text(Decimal(amount), currency) == text


@pytest.mark.parametrize(
    ("currency", "part"),
    [("JPY", "1"), ("jpy", "1"), ("EUR", "0.01"), ("", "0.01"), ("BHD", "0.001"), ("CLF", "0.0001")],
)
def test_a_currency_has_a_smallest_part(currency: str, part: str) -> None:
    assert str(minor_unit(currency)) == part
