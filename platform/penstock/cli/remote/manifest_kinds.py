"""What a manifest may speak of: the kinds of objects, how each is called, and its fields. Data alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from penstock.cli.remote.manifest_shapes import Shape

INVITED = "is_invited"
"""Marks the member who has not come yet, in what there is."""
DRAINING = "is_draining"
"""Marks the host that is being drained, in what there is: no manifest puts it to use again."""
Key = tuple[str, ...]
"""Kind, tenant (empty where it belongs to none), and the object's own names."""


@dataclass(frozen=True)
class Kind:
    """``names`` call an object. ``fixed`` fields are given when it is made and stay; ``first`` are not told later."""

    one: str
    names: tuple[str, ...]
    fields: Mapping[str, Shape]
    fixed: tuple[str, ...] = ()
    first: tuple[str, ...] = ()
    required: tuple[str, ...] = ()
    """Of one that is made."""
    optional_names: tuple[str, ...] = ()
    empty: tuple[str, ...] = ()
    """Fields that may be null."""
    sets: tuple[str, ...] = ()
    """Lists whose order says nothing."""


TENANTS = Kind(
    "tenant", ("slug",), {"name": "text", "is_active": "switch", "best_effort": "switch"}, required=("name",)
)
LIMITS = Kind(
    "limit",
    ("kind", "model", "set_by", "key", "member"),
    {"value": "whole"},
    required=("value",),
    optional_names=("model", "set_by", "key", "member"),
)
SET_BY = ("operator", "tenant")
"""Whose a limit is."""
KEYS = Kind(
    "key",
    ("name",),
    {"scopes": "texts", "models_allowed": "texts", "allowed_ips": "texts", "expires_at": "text"},
    first=("expires_at",),
    empty=("expires_at",),
    sets=("scopes", "models_allowed", "allowed_ips"),
)
MEMBERS = Kind("member", ("email",), {"role": "text"}, required=("role",))
HOSTS = Kind("host", ("name",), {"labels": "names", "is_cordoned": "switch"})
MODELS = Kind(
    "model",
    ("slug",),
    {
        "name": "text",
        "artifact_kind": "text",
        "artifact_value": "text",
        "artifact_revision": "text",
        "parameters": "whole",
        "context_tokens": "whole",
    },
    fixed=("artifact_kind",),
    required=("name", "artifact_kind"),
    empty=("parameters", "context_tokens"),
)
POOLS = Kind(
    "pool",
    ("slug",),
    {
        "name": "text",
        "model": "text",
        "hardware_type": "text",
        "is_public": "switch",
        "tenants": "texts",
        "ttft_objective_ms": "whole",
        "tpot_objective_ms": "whole",
        "tolerable_wait_s": "number",
        "slo_share": "number",
        "oversell_factor": "number",
        "keep_spare": "switch",
        "best_effort": "switch",
        "adopts_calibrations": "switch",
        "adoption_error_limit": "number",
        "credit_tiers": "tiers",
        "price": "prices",
    },
    fixed=("model",),
    required=("model", "hardware_type"),
    sets=("tenants",),
)
DEPLOYMENTS = Kind(
    "deployment",
    ("name",),
    {
        "pool": "text",
        "is_enabled": "switch",
        "min_replicas": "whole",
        "max_replicas": "whole",
        "pinned_replicas": "whole",
        "runtime": "text",
        "options": "names",
        "target_concurrency": "whole",
    },
    fixed=("pool",),
    required=("pool",),
    empty=("pinned_replicas",),
)
RESERVATIONS = Kind(
    "reservation",
    ("tenant", "pool", "note"),
    {
        "mu_per_min": "number",
        "starts_at": "moment",
        "ends_at": "moment",
        "burst_mu": "number",
        "price": "number",
        "currency": "text",
        "state": "text",
        "override_reason": "text",
    },
    first=("override_reason",),
    required=("mu_per_min",),
    optional_names=("note",),
    empty=("ends_at", "burst_mu", "price"),
)
STATES = ("sold", "requested")
"""What a manifest says of a reservation."""
HAS_BEGUN, IS_ONE_OF = "has_begun", "is_one_of"
"""Mark, in what there is, a reservation that runs, and how many are called alike and do not follow each other."""
AGREED = ("burst_mu", "price", "currency", "override_reason")
"""What an operator says when it is sold."""
SECTIONS: Mapping[str, Kind] = {
    "tenants": TENANTS,
    "hosts": HOSTS,
    "models": MODELS,
    "pools": POOLS,
    "deployments": DEPLOYMENTS,
    "reservations": RESERVATIONS,
}
"""In the order in which they are made."""
PARTS: Mapping[str, Kind] = {"members": MEMBERS, "keys": KEYS, "limits": LIMITS}
"""What stands within a tenant."""
MERGED = ("price", "options")
"""Of these, only what is named counts and is changed; of options, null takes one away."""
