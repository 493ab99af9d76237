"""Django's settings, all from the environment. ``penstock up`` writes what is missing under the data folder.

Importing this module never writes: secrets come from the environment or from ``<data>/secrets.json``.
"""

from pathlib import Path
from typing import Any

from django.templatetags.static import static

from penstock import env, paths
from penstock.databases import database_settings
from penstock.secrets import load_secrets
from penstock.web.log import LineFormatter, NewsFilter

DATA = Path(env.text("PENSTOCK_DATA") or paths.default_data()).resolve()
DEBUG = env.flag("PENSTOCK_DEBUG")

_secrets = load_secrets(DATA)
SECRET_KEY = _secrets.django
PENSTOCK_KEY_PEPPERS = _secrets.key_peppers
PENSTOCK_FIELD_KEYS = _secrets.field_keys

ALLOWED_HOSTS = env.words("PENSTOCK_ALLOWED_HOSTS", "localhost,127.0.0.1,[::1]")
CSRF_TRUSTED_ORIGINS = env.words("PENSTOCK_CSRF_TRUSTED_ORIGINS")
_IS_TLS = env.flag("PENSTOCK_TLS")
SESSION_COOKIE_SECURE = CSRF_COOKIE_SECURE = _IS_TLS
SESSION_COOKIE_HTTPONLY = True
SESSION_COOKIE_SAMESITE = "Lax"
SECURE_CONTENT_TYPE_NOSNIFF = True
SECURE_REFERRER_POLICY = "same-origin"
X_FRAME_OPTIONS = "DENY"
if _IS_TLS:
    SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https")
    SECURE_HSTS_SECONDS = env.integer("PENSTOCK_HSTS_S", 3600)
# Whoever asks without TLS is sent on by the proxy (W008), and what holds for other names of the domain is not ours to
# say (W005, W021).
SILENCED_SYSTEM_CHECKS = ["security.W005", "security.W008", "security.W021"]
PENSTOCK_TRUSTED_PROXIES = env.networks("PENSTOCK_TRUSTED_PROXIES")
"""Whose ``X-Forwarded-For`` is believed. A proxy on this machine needs no entry: uvicorn believes it."""

INSTALLED_APPS = [
    "unfold",
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "rest_framework",
    "django_filters",
    "drf_spectacular",
    "drf_spectacular_sidecar",
    "tenants",
    "capacity",
    "serving",
    "penstock",
]
AUTH_USER_MODEL = "tenants.User"
AUTHENTICATION_BACKENDS = ["django.contrib.auth.backends.ModelBackend"]
AUTH_PASSWORD_VALIDATORS = [
    {"NAME": "django.contrib.auth.password_validation.UserAttributeSimilarityValidator"},
    {"NAME": "django.contrib.auth.password_validation.MinimumLengthValidator", "OPTIONS": {"min_length": 10}},
    {"NAME": "django.contrib.auth.password_validation.CommonPasswordValidator"},
]
LOGIN_URL = "sign-in"
LOGIN_REDIRECT_URL = "home"
CSRF_FAILURE_VIEW = "penstock.web.errors.csrf_failure"

MIDDLEWARE = [
    "penstock.web.request_id.request_id",
    "penstock.web.health.health_by_any_name",
    "django.middleware.security.SecurityMiddleware",
    "servestatic.middleware.ServeStaticMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
    "penstock.web.csp.content_security_policy",
]
ROOT_URLCONF = "penstock.urls"
ASGI_APPLICATION = "penstock.asgi.application"
TEMPLATES: list[dict[str, Any]] = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "DIRS": [paths.TEMPLATES],
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ],
            "builtins": ["penstock.web.look"],
        },
    }
]

DATABASES = {"default": database_settings(env.text("DATABASE_URL"), DATA)}
REDIS_URL = env.text("REDIS_URL") or f"unix://{DATA / 'state' / 'valkey.sock'}"
"""The shared state: loads, snapshot, grants, ring buffers, broker. The bundled Valkey when REDIS_URL is not set."""
PENSTOCK_AGENT_REDIS_URL = env.text("PENSTOCK_AGENT_REDIS_URL")
"""The same server as agents of other hosts reach it, with a user that sees ``agent:*`` alone. Never REDIS_URL itself:
a host that was told it could order every other one about."""

CACHES = {
    "default": {
        "BACKEND": "django.core.cache.backends.redis.RedisCache",
        "LOCATION": REDIS_URL,
        "KEY_PREFIX": "penstock:cache",
    }
}

PENSTOCK_CURRENCY = env.text("PENSTOCK_CURRENCY", "USD")
"""What prices per 1,000 MU and budgets in money are counted in; a name only, nothing is converted."""

PENSTOCK_API_RATE = env.text("PENSTOCK_API_RATE", "1200/min")
"""Requests that one caller of the REST API may make."""
REST_FRAMEWORK: dict[str, Any] = {
    "DEFAULT_AUTHENTICATION_CLASSES": (
        "tenants.api.authentication.TokenAuthentication",
        "rest_framework.authentication.SessionAuthentication",
    ),
    "DEFAULT_PERMISSION_CLASSES": ("tenants.api.permissions.MayAct",),
    "DEFAULT_RENDERER_CLASSES": ("rest_framework.renderers.JSONRenderer",),
    "DEFAULT_PARSER_CLASSES": ("tenants.api.parsers.BoundedJSONParser",),
    "DEFAULT_PAGINATION_CLASS": "tenants.api.pagination.Pages",
    "DEFAULT_FILTER_BACKENDS": (
        "django_filters.rest_framework.DjangoFilterBackend",
        "rest_framework.filters.OrderingFilter",
    ),
    "DEFAULT_THROTTLE_CLASSES": ("tenants.api.throttles.CallerThrottle",),
    "DEFAULT_SCHEMA_CLASS": "penstock.api.schema.Schema",
    "EXCEPTION_HANDLER": "tenants.api.problems.problem",
    "UNAUTHENTICATED_USER": "django.contrib.auth.models.AnonymousUser",
}
SPECTACULAR_SETTINGS: dict[str, Any] = {
    "TITLE": "Penstock",
    "DESCRIPTION": "Provision tenants, keys, hosts, pools and deployments, and read usage.",
    "VERSION": "1",
    "OAS_VERSION": "3.1.1",
    "SCHEMA_PATH_PREFIX": "/api/v1",
    "SERVE_INCLUDE_SCHEMA": False,
    "SERVE_PERMISSIONS": ("rest_framework.permissions.AllowAny",),
    "COMPONENT_SPLIT_REQUEST": True,
    "ENUM_NAME_OVERRIDES": {
        "CalibrationState": "serving.models.Calibration.State",
        "EventKind": "serving.api.events.KINDS",
        "IncidentKind": "serving.models.Incident.Kind",
        "InvoiceKind": "capacity.models.Invoice.Kind",
        "InvoiceLineKind": "capacity.api.invoices.LINE_KINDS",
        "InvitationState": "tenants.models.Invitation.State",
        "LedgerVerdict": "capacity.api.ledger.VERDICTS",
        "ReplicaState": "serving.models.Replica.State",
        "ReservationState": "capacity.models.Reservation.State",
    },
    "SWAGGER_UI_DIST": "SIDECAR",
    "SWAGGER_UI_FAVICON_HREF": "SIDECAR",
}

PENSTOCK_WEB_HOST = env.text("PENSTOCK_HOST", "127.0.0.1")
PENSTOCK_WEB_PORT = env.integer("PENSTOCK_PORT", 8000)
PENSTOCK_API_PORT = env.integer("PENSTOCK_API_PORT", 8080)
PENSTOCK_CONSOLE_URL = env.text("PENSTOCK_CONSOLE_URL") or f"http://{PENSTOCK_WEB_HOST}:{PENSTOCK_WEB_PORT}"
PENSTOCK_API_URL = env.text("PENSTOCK_API_URL") or f"http://{PENSTOCK_WEB_HOST}:{PENSTOCK_API_PORT}/v1"
PENSTOCK_GATEWAY_URL = env.text("PENSTOCK_GATEWAY_URL") or PENSTOCK_API_URL
"""Where the web role itself reaches a gateway, for the playground."""

PENSTOCK_HOST_LOST_S = float(env.integer("PENSTOCK_HOST_LOST_S", 15))
"""A host whose agent has not reported for so long is lost, and its replicas fail over."""
PENSTOCK_DRAIN_LIMIT_S = float(env.integer("PENSTOCK_DRAIN_LIMIT_S", 30))
"""A draining replica is stopped after this time, whatever is still in flight."""
PENSTOCK_HISTORY_DAYS = env.integer("PENSTOCK_HISTORY_DAYS", 30)
"""Ended replicas and scaling decisions are kept for so long; incidents and audit entries stay."""
PENSTOCK_USAGE_DAYS = env.integer("PENSTOCK_USAGE_DAYS", 400)
"""Usage records of final minutes are kept for so long; the roll-ups stay."""
PENSTOCK_INVOICE_DAYS = env.integer("PENSTOCK_INVOICE_DAYS", 3)
"""Invoices are issued so long after their month, and corrected when usage comes late; below 0, by operators alone."""

LOGGING: dict[str, Any] = {
    "version": 1,
    "disable_existing_loggers": False,
    "filters": {"news": {"()": NewsFilter}},
    "formatters": {"line": {"()": LineFormatter}},
    "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "line"}},
    "root": {"handlers": ["stderr"], "level": "WARNING"},
    "loggers": {
        # Without handlers of its own: by default it would send e-mail, of which there is none.
        "django": {"handlers": [], "level": "WARNING"},
        # A page that is not there or not theirs is for the visitor to read, and anybody can ask for a thousand.
        "django.request": {"level": "ERROR", "filters": ["news"]},
    },
}
"""The loops replace it by ``penstock.loops.log``."""

UNFOLD: dict[str, Any] = {
    "SITE_TITLE": "Penstock admin",
    "SITE_HEADER": "Penstock",
    "SITE_SUBHEADER": "Everything, as it is stored",
    "SITE_ICON": lambda request: static("img/favicon.svg"),
    "SITE_FAVICONS": [{"rel": "icon", "type": "image/svg+xml", "href": lambda request: static("img/favicon.svg")}],
    "SITE_URL": "/",
    "SHOW_HISTORY": False,
    "SHOW_VIEW_ON_SITE": False,
    "BORDER_RADIUS": "6px",
    # Blue as in the console's links and focus; the theme's own violet says nothing there.
    "COLORS": {
        "primary": {
            "50": "oklch(97% .014 254.6)",
            "100": "oklch(93.2% .032 255.6)",
            "200": "oklch(88.2% .059 254.1)",
            "300": "oklch(80.9% .105 251.8)",
            "400": "oklch(70.7% .165 254.6)",
            "500": "oklch(62.3% .214 259.8)",
            "600": "oklch(54.6% .245 262.9)",
            "700": "oklch(48.8% .243 264.4)",
            "800": "oklch(42.4% .199 265.6)",
            "900": "oklch(37.9% .146 265.5)",
            "950": "oklch(28.2% .091 267.9)",
        }
    },
    "SIDEBAR": {"show_search": True, "command_search": False, "show_all_applications": False},
}

LANGUAGE_CODE = "en-gb"
FORMAT_MODULE_PATH = ["penstock.formats"]
TIME_ZONE = "UTC"
USE_TZ = True
STATIC_URL = "static/"
STATICFILES_DIRS = [paths.STATIC]
STATIC_ROOT = DATA / "static"
# Served from where they lie: nothing has to be collected before a page has its style. A minute of cache, then an ETag.
SERVESTATIC_USE_FINDERS = True
SERVESTATIC_USE_STATIC_ROOT = False
SERVESTATIC_ALLOW_ALL_ORIGINS = False
SERVESTATIC_MAX_AGE = 60
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
TEST_RUNNER = "django.test.runner.DiscoverRunner"
