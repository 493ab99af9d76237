"""The style guide: the design system shown with itself."""

from django.http import HttpResponse
from django.views.decorators.http import require_GET

from penstock.web import figures
from penstock.web.access import UserRequest, operators_only
from penstock.web.shell import page
from tenants.policy.roles import Action

WORDS = [
    {"token": "have", "word": "have", "means": "MU/min of ready replicas; a line"},
    {"token": "could", "word": "could have", "means": "at the most replicas; dashed"},
    {"token": "sold", "word": "sold", "means": "reserved by tenants; a line"},
    {"token": "used", "word": "used", "means": "settled; an area"},
    {"token": "best", "word": "best-effort", "means": "used without a reservation; an area"},
    {"token": "lent", "word": "lent", "means": "reserved, idle, used by others; hatched"},
    {"token": "breached", "word": "breached", "means": "a promise not kept; a tick"},
    {"token": "ok", "word": "ok", "means": "round"},
    {"token": "warn", "word": "warn", "means": "a diamond"},
    {"token": "bad", "word": "bad", "means": "a triangle"},
]
MARKS = [
    {"word": word, "states": [(state, word)]}
    for state, word in (
        ("ready", "ready"),
        ("starting", "starting"),
        ("draining", "draining"),
        ("failed", "failed"),
        ("slot", "could have one more"),
    )
]
FIGURES = [
    ("Rate", figures.number(1234.6), "MU/min", "a comma at thousands"),
    ("Small", figures.number(0.4217), "MU", "three digits that count"),
    ("Loss", figures.number(-36), "MU/min", "a real minus sign"),
    ("Share", figures.percent(0.599), "%", "a space before the sign"),
    ("Time", figures.duration(125), "", "two largest units"),
    ("Nothing known", figures.NONE, "ms", "never 0 for unknown"),
]
RULES = [
    "Chrome is monochrome; colour belongs to data. Blue outside data is only the focus ring.",
    "One word, one colour, everywhere. Judgement is ok, warn or bad.",
    "Form repeats colour: have and sold are lines, could have is dashed, used is an area, a breach is a tick.",
    "State marks have shapes: round ok, ring in transition, diamond warn, triangle bad.",
    "Show exceptions, not health: in tables only a row with a problem gets a pill.",
    "Every page opens with a sentence that answers its question, with numbers.",
    "Every number has a unit, quieter than the number. Table units sit in the head.",
    "Body 13/20, labels 12/16, axes 11, tile values 22, titles 20. Weights 400, 500, 600. System fonts.",
    "Tabular figures; numbers right-aligned; a real minus sign; a space before % and units.",
    "4 px grid: 16 inside cards and between them, 24 at page edges; radius 8 card, 5 control, 3 badge.",
    "Hairlines separate; shadows only on what floats. No decorative gradients.",
    "Tiles form one ruled strip.",
    "Charts have title, unit, legend, direct end labels, a read-out with time zone, few grid lines.",
    "A callout says what happened, what it means and what comes next. A destructive act names its effect.",
    "Below 1180 px navigation becomes icons; below 720 px a menu, tables fold into label and value.",
]


@require_GET
@operators_only(Action.PLATFORM_VIEW)
def style_guide(request: UserRequest) -> HttpResponse:
    context = {"words": WORDS, "marks_shown": MARKS, "figures_shown": FIGURES, "rules": RULES}
    return page(request, "console/style_guide.html", context, current="style-guide")
