"""Writes of this app: keyword-only, atomic, each with its audit entry and its line in the change log."""

from capacity.services.enrolment import (
    enrolment_token_create,
    enrolment_token_find,
    enrolment_token_redeem,
    enrolment_token_revoke,
)
from capacity.services.hosts import (
    hardware_type_get_or_create,
    host_cordon,
    host_drain,
    host_enrol,
    host_labels_set,
    host_remove,
    host_secret_renew,
    host_uncordon,
)
from capacity.services.pools import (
    model_create,
    model_remove,
    model_update,
    pool_create,
    pool_remove,
    pool_tenants_set,
    pool_update,
    profile_add,
)
from capacity.services.reservations import (
    reservation_approve,
    reservation_cancel,
    reservation_change,
    reservation_convert,
    reservation_refuse,
    reservation_renew,
    reservation_request,
    reservation_restore,
    reservation_sell,
    reservations_end,
    reservations_start,
)
from capacity.services.sales import CannotSell
from capacity.services.supplies import replica_supply_set

__all__ = [
    "CannotSell",
    "enrolment_token_create",
    "enrolment_token_find",
    "enrolment_token_redeem",
    "enrolment_token_revoke",
    "hardware_type_get_or_create",
    "host_cordon",
    "host_drain",
    "host_enrol",
    "host_labels_set",
    "host_remove",
    "host_secret_renew",
    "host_uncordon",
    "model_create",
    "model_remove",
    "model_update",
    "pool_create",
    "pool_remove",
    "pool_tenants_set",
    "pool_update",
    "profile_add",
    "replica_supply_set",
    "reservation_approve",
    "reservation_cancel",
    "reservation_change",
    "reservation_convert",
    "reservation_refuse",
    "reservation_renew",
    "reservation_request",
    "reservation_restore",
    "reservation_sell",
    "reservations_end",
    "reservations_start",
]
