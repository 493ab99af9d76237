"""How amounts of money are written: with the digits that their currency has."""

from __future__ import annotations

from decimal import Decimal

_WITHOUT_PARTS = frozenset(
    ("BIF", "CLP", "DJF", "GNF", "ISK", "JPY", "KMF", "KRW", "PYG", "RWF", "UGX", "UYI", "VND", "VUV", "XAF", "XOF")
) | {"XPF"}
_THOUSANDTHS = frozenset(("BHD", "IQD", "JOD", "KWD", "LYD", "OMR", "TND"))
_TEN_THOUSANDTHS = frozenset(("CLF", "UYW"))


def minor_digits(currency: str) -> int:
    """Decimals of a currency's smallest part, by ISO 4217; two for one that is not known."""
    code = currency.upper()
    if code in _WITHOUT_PARTS:
        return 0
    return 3 if code in _THOUSANDTHS else 4 if code in _TEN_THOUSANDTHS else 2


def minor_unit(currency: str) -> Decimal:
    """A currency's smallest part: 0.01 of EUR, 1 of JPY, 0.001 of BHD."""
    return Decimal(1).scaleb(-minor_digits(currency))


def amount_text(amount: Decimal, currency: str) -> str:
    """``amount`` with at least the currency's decimals and all of its own that say something: 0.4 of EUR is 0.40."""
    shortest = amount.normalize()
    own = -int(shortest.as_tuple().exponent)
    return f"{shortest:,.{max(minor_digits(currency), own)}f}"
