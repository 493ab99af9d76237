"""The tenant's pages, below ``/t/<slug>/``."""

from django.urls import path

from penstock.web.tenant import (
    audit,
    guarantees,
    invoices,
    keys,
    limits,
    members,
    playground,
    quickstart,
    reservations,
    usage,
)

urlpatterns = [
    path("quick-start", quickstart.quickstart, name="tenant-quickstart"),
    path("playground/", playground.playground, name="tenant-playground"),
    path("keys/", keys.keys, name="tenant-keys"),
    path("keys/new", keys.key_new, name="tenant-key-new"),
    path("keys/<uuid:key_id>/", keys.key, name="tenant-key"),
    path("keys/<uuid:key_id>/edit", keys.key_edit, name="tenant-key-edit"),
    path("keys/<uuid:key_id>/rotate", keys.key_rotate, name="tenant-key-rotation"),
    path("keys/<uuid:key_id>/revoke", keys.key_revoke, name="tenant-key-revocation"),
    path("keys/<uuid:key_id>/limits", keys.key_limit_set, name="tenant-key-limit-set"),
    path("keys/<uuid:key_id>/limits/<uuid:limit_id>/remove", keys.key_limit_remove, name="tenant-key-limit-remove"),
    path("usage/", usage.usage, name="tenant-usage"),
    path("usage/series.json", usage.usage_series, name="tenant-usage-series"),
    path("usage/export", usage.usage_export, name="tenant-usage-export"),
    path("usage/<uuid:request_id>", usage.usage_request, name="tenant-usage-request"),
    path("members/", members.members, name="tenant-members"),
    path("members/<uuid:member_id>/role", members.member_role, name="tenant-member-role"),
    path("members/<uuid:member_id>/remove", members.member_remove, name="tenant-member-remove"),
    path("members/invitations/<uuid:invitation_id>/revoke", members.invitation_end, name="tenant-invitation-end"),
    path("reservations/", reservations.reservations, name="tenant-reservations"),
    path("reservations/new", reservations.reservation_new, name="tenant-reservation-new"),
    path("reservations/<uuid:reservation_id>/withdraw", reservations.reservation_end, name="tenant-reservation-end"),
    path("limits/", limits.limits, name="tenant-limits"),
    path("limits/<uuid:limit_id>/remove", limits.limit_end, name="tenant-limit-end"),
    path("guarantees/", guarantees.guarantees, name="tenant-guarantees"),
    path("guarantees/<uuid:reservation_id>/", guarantees.guarantee, name="tenant-guarantee"),
    path("invoices/", invoices.invoices, name="tenant-invoices"),
    path("invoices/preview", invoices.preview, name="tenant-month-preview"),
    path("invoices/<uuid:invoice_id>/", invoices.invoice, name="tenant-invoice"),
    path("audit/", audit.audit, name="tenant-audit"),
]
