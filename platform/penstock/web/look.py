"""Template tags and filters of the look: figures, times, icons and meters. Nothing here needs an inline style."""

from datetime import datetime
from decimal import Decimal

from django import template
from django.utils import timezone
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString, mark_safe

from capacity.policy.money import amount_text
from penstock.web import figures

register = template.Library()


def _known(value: object) -> float | None:
    """A figure, or None: Django hands filters an empty string for what is not there."""
    return value if isinstance(value, int | float) else None


@register.filter
def num(value: object, decimals: int | None = None) -> str:
    return figures.number(_known(value), decimals)


@register.filter
def sig(value: object) -> str:
    return figures.significant(_known(value))


@register.filter
def percent(value: object) -> str:
    return figures.percent(_known(value))


@register.filter
def duration(value: object) -> str:
    return figures.duration(_known(value))


@register.filter
def ms(value: object) -> str:
    return figures.milliseconds(_known(value))


@register.filter
def gib(value: object) -> str:
    return figures.gibibytes(_known(value))


@register.filter
def money(value: object, currency: str) -> str:
    """An amount with its currency: 0.4 of EUR is "0.40 EUR"."""
    known = value if isinstance(value, Decimal) else None if _known(value) is None else Decimal(repr(value))
    return figures.NONE if known is None else f"{amount_text(known, currency)} {currency}".strip()


ICONS = {
    "capacity": '<path d="M2 13h12M4 13V8M8 13V3M12 13V6"/>',
    "settings": '<path d="M2 4.5h6M11.5 4.5H14M2 11.5h2.500M8 11.500h6"/><circle cx="9.7" cy="4.5" r="1.7"/>'
    '<circle cx="6.2" cy="11.5" r="1.7"/>',
    "code": '<path d="m5 4.5-3.5 3.5L5 11.5M11 4.5l3.5 3.5-3.5 3.5"/>',
    "people": '<circle cx="8" cy="5" r="2.7"/><path d="M2.5 14c.5-3 2.7-4.4 5.5-4.4s5 1.4 5.5 4.4"/>',
    "warn": '<path d="M8 2 14.5 13.500h-13z"/><path d="M8 6.500v3.200M8 11.700h.01"/>',
    "host": '<rect x="2" y="3" width="12" height="4" rx="1"/><rect x="2" y="9" width="12" height="4" rx="1"/>'
    '<path d="M4.5 5h.01M4.5 11h.01"/>',
    "invoice": '<path d="M4 2h8v12l-2-1.300-2 1.300-2-1.300L4 14z"/><path d="M6.200 5.500h3.600M6.200 8.500h3.600"/>',
    "grid": '<rect x="2.5" y="2.5" width="4.5" height="4.5"/><rect x="9" y="2.5" width="4.5" height="4.5"/>'
    '<rect x="2.5" y="9" width="4.5" height="4.5"/><rect x="9" y="9" width="4.5" height="4.5"/>',
    "audit": '<path d="M3.500 2h6l3 3v9h-9zM9.500 2v3h3M5.800 8h4.400M5.800 10.800h4.400"/>',
    "key": '<circle cx="5" cy="11" r="2.7"/><path d="m7 9 6-6M10.5 5.5l2 2"/>',
    "chat": '<path d="M3 3h10v7.500H7.500L4.500 13v-2.500H3z"/>',
    "usage": '<path d="M2 12.500 6 7.500l3 2.500 5-6.500"/>',
    "gauge": '<path d="M2 11a6 6 0 0 1 12 0"/><path d="m8 11 3-3.500"/>',
    "pool": '<ellipse cx="8" cy="4.500" rx="5.500" ry="2"/>'
    '<path d="M2.500 4.500v7c0 1.100 2.500 2 5.500 2s5.500-.9 5.500-2v-7"/>'
    '<path d="M2.500 8c0 1.100 2.500 2 5.500 2s5.500-.9 5.500-2"/>',
    "sold": '<path d="M2 13h12M3 13V6h4v7M7 13V9h6v4"/>',
    "image": '<rect x="2" y="3" width="12" height="10" rx="1"/><path d="m2.5 12 3.500-4 2.500 2.500 2-2 3 3.500"/>',
    "menu": '<path d="M2.5 4.500h11M2.5 8h11M2.5 11.500h11"/>',
    "theme": '<path d="M8 2a6 6 0 1 0 0 12z" fill="currentColor"/><circle cx="8" cy="8" r="6"/>',
    "updown": '<path d="m5 6.5 3-3 3 3M5 9.500l3 3 3-3"/>',
    "out": '<path d="M9.5 2.500h-6v11h6M7 8h7M11.5 5.5 14 8l-2.5 2.5"/>',
    "ok": '<circle cx="8" cy="8" r="6"/><path d="m5.3 8 1.9 1.9 3.5-3.8"/>',
    "link": '<path d="M6.5 9.500l3-3M7 4.500l1.3-1.300a3 3 0 0 1 4.3 4.300L11.3 8.800M9 11.500l-1.3 1.300a3 3 0 0 '
    '1-4.3-4.300L4.7 7.2"/>',
}


@register.simple_tag
def icon(name: str) -> SafeString:
    """A 16 px line icon; decoration only, the words beside it carry the meaning."""
    return format_html(
        '<svg class="ic" viewBox="0 0 16 16" aria-hidden="true">{}</svg>',
        mark_safe(ICONS[name]),  # noqa: S308 - constant markup of this module
    )


@register.filter
def svg(value: float) -> str:
    """A length inside an SVG picture."""
    return f"{value:.2f}"


@register.filter
def cut_underscores(value: object) -> str:
    """A code as words: ``engine_lost`` as "engine lost"."""
    return str(value).replace("_", " ")


@register.filter
def hyphens(value: object) -> str:
    """A code as one word: ``best_effort`` as "best-effort"."""
    return str(value).replace("_", "-")


@register.filter
def slice_end(value: object) -> str:
    """The last six characters of an identifier: enough to tell rows apart (a UUIDv7 begins with the time)."""
    return str(value)[-6:]


@register.filter
def compact(value: float | None) -> SafeString:
    """A large count with its prefix set as a unit."""
    text, prefix = figures.compact(value)
    return format_html('{}<span class="u">{}</span>', text, prefix) if prefix else format_html("{}", text)


@register.simple_tag
def moment(at: datetime | None, form: str = "time") -> SafeString:
    """A time in UTC that the browser rewrites in the viewer's own zone. ``form``: time, seconds, day, date or stamp.

    A day of another year than this one has its year.
    """
    if at is None:
        return format_html("{}", figures.NONE)
    shown = at.astimezone(timezone.get_default_timezone())
    patterns = {"time": "%H:%M", "seconds": "%H:%M:%S", "day": "%d %b %H:%M", "date": "%d %b %Y"}
    pattern = (patterns | {"stamp": "%d %b %Y %H:%M:%S"})[form]
    if form == "day" and shown.year != timezone.now().year:
        pattern = "%d %b %Y %H:%M"
    return format_html(
        '<time datetime="{}" data-local="{}">{}</time>',
        at.isoformat(timespec="milliseconds"),
        form,
        shown.strftime(pattern),
    )


@register.simple_tag
def meter(label: str, share: float | None, kind: str = "used", mark: float | None = None) -> SafeString:
    """A bar of ``share`` (0..1, clipped) with an optional mark, e.g. what is sold. Drawn as SVG: no inline style."""
    width = min(max(share or 0.0, 0.0), 1.0) * 100
    line = ""
    if mark is not None:
        at = min(max(mark, 0.0), 1.0) * 98 + 1
        line = format_html('<line class="mark" x1="{0}" x2="{0}" y1="0" y2="6"/>', f"{at:.1f}")
    return format_html(
        '<svg class="meter" viewBox="0 0 100 6" preserveAspectRatio="none" role="img" aria-label="{}">'
        '<rect class="track" width="100" height="6"/><rect class="fill {}" width="{}" height="6"/>{}</svg>',
        label,
        kind,
        f"{width:.1f}",
        line,
    )


@register.simple_tag
def marks(states: list[tuple[str, str]], label: str) -> SafeString:
    """One mark per replica: ``states`` pairs a mark's class with its title."""
    inner = format_html_join("", '<i class="{}" title="{}"></i>', states)
    return format_html('<span class="dots" role="img" aria-label="{}">{}</span>', label, inner)
