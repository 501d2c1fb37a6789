"""Write numbers for the report.

>>> share(0.6251), loss(2.03149), signed_points(-0.031), data_size(1_440_000), duration(161)
('62.5%', '2.031', '−3.1', '1.44 MB', '161 s')
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from shepherd.io.phrases import data_size, delta_text, epsilon_text

Form = Callable[[float], str]
_MINUS = "−"


def _minus(text: str) -> str:
    return text.replace("-", _MINUS)


def loss(value: float) -> str:
    """Three digits after the point."""
    return _minus(f"{value:.3f}")


def share(value: float) -> str:
    """A share of 1 in percent, with one digit."""
    return _minus(f"{100 * value:.1f}%")


def whole_share(value: float) -> str:
    """A share of 1 in whole percent."""
    return _minus(f"{100 * value:.0f}%")


def count(value: float) -> str:
    """A number with narrow no-break spaces between groups of three digits.

    >>> count(1234567), count(0.5)
    ('1\\u202f234\\u202f567', '0.5')
    """
    return _minus(f"{value:,.0f}" if value == round(value) else f"{value:,.4g}").replace(",", "\u202f")


def total(value: float) -> str:
    """A sum of scores, with one digit."""
    return _minus(f"{value:,.1f}").replace(",", "\u202f")


def signed_loss(value: float) -> str:
    """A difference of losses, with its sign."""
    return _minus(f"{value:+.3f}")


def signed_points(value: float) -> str:
    """A difference of shares in percentage points, with its sign."""
    return _minus(f"{100 * value:+.1f}")


def ratio(value: float) -> str:
    """A ratio, with three digits."""
    return _minus(f"{value:.3f}")


def probability(value: float) -> str:
    """A p-value, with three digits.

    >>> probability(0.0004), probability(0.0312), probability(1.0)
    ('< 0.001', '0.031', '1.000')
    """
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def rate(value: float) -> str:
    """Three significant digits, however small the number.

    >>> rate(0.00015), rate(0.0421), rate(2.5e-06)
    ('0.00015', '0.0421', '2.5e−6')
    """
    if value == 0 or abs(value) >= 1e-4:
        return _minus(f"{float(f'{value:.3g}'):.7g}")
    mantissa, _, exponent = f"{value:.2e}".partition("e")
    return _minus(f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}")


def epsilon(value: float) -> str:
    """An epsilon as it is written everywhere: rounded up."""
    return _minus(epsilon_text(value))


def delta(value: float) -> str:
    """A delta as it is written everywhere: rounded up."""
    return _minus(delta_text(value))


def duration(seconds: float) -> str:
    """Seconds in the unit that fits.

    >>> [duration(s) for s in (0.0123, 7.25, 161, 3900, 200000)]
    ['0.012 s', '7.2 s', '161 s', '65 min', '55.6 h']
    """
    if seconds < 1:
        return f"{seconds:.2g} s"
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 300:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


FORMS: Mapping[str, Form] = {
    "loss": loss,
    "share": share,
    "whole_share": whole_share,
    "count": count,
    "signed_loss": signed_loss,
    "signed_points": signed_points,
    "ratio": ratio,
    "sum": total,
    "p": probability,
    "rate": rate,
    "epsilon": epsilon,
    "delta": delta,
    "bytes": data_size,
    "duration": duration,
}
