"""The control plane's URLs."""

from django.contrib import admin
from django.urls import include, path
from django.views.generic import RedirectView

from penstock.web import console, dashboard, health, invitations, password, signin, style_guide, tokens

urlpatterns = [
    path("", dashboard.home, name="home"),
    path("sign-in/", signin.sign_in, name="sign-in"),
    path("sign-in/link/<str:token>", signin.sign_in_link, name="sign-in-link"),
    path("invitations/<str:token>", invitations.invitation, name="invitation"),
    path("sign-out/", signin.sign_out, name="sign-out"),
    path("console/", console.console, name="console"),
    path("console/live", console.console_live, name="console-live"),
    path("console/series.json", console.console_series, name="console-series"),
    path("console/accelerators.json", console.console_accelerators, name="console-accelerators"),
    path("console/style-guide/", style_guide.style_guide, name="style-guide"),
    path("console/", include("penstock.web.operators.urls")),
    path("tenants/", dashboard.chooser, name="tenants"),
    path("tokens", tokens.tokens, name="tokens"),
    path("tokens/<uuid:token_id>/revoke", tokens.token_revoke, name="token-revoke"),
    path("t/<slug:slug>/", dashboard.tenant, name="tenant"),
    path("t/<slug:slug>/series.json", dashboard.tenant_series, name="tenant-series"),
    path("t/<slug:slug>/gauge", dashboard.tenant_gauge, name="tenant-gauge"),
    path("t/<slug:slug>/refusals.json", dashboard.tenant_refusals, name="tenant-refusals"),
    path("t/<slug:slug>/", include("penstock.web.tenant.urls")),
    path("healthz", health.healthz, name="healthz"),
    path("api/", include("penstock.api.urls")),
    # The admin's own form knows no pause after wrong passwords.
    path("admin/login/", RedirectView.as_view(pattern_name="sign-in", query_string=True)),
    path("admin/password_change/", admin.site.admin_view(password.own_password)),
    path("admin/", admin.site.urls),
]
handler400 = "penstock.web.errors.bad_request"
handler403 = "penstock.web.errors.forbidden"
handler404 = "penstock.web.errors.not_found"
handler500 = "penstock.web.errors.server_error"
