"""Hosts, models, pools and deployments, for the command line of operators."""

from __future__ import annotations

from penstock.cli.remote.resources import Field, Resource, Verb, change, create

NAME = Field("name", "name", is_place=True, is_required=True)

_WHY = Field("reason", "why, for the people who see it")
_REMOVED = Field("removed", "those that were removed, instead of the others", "switch")

HOSTS = Resource(
    "hosts",
    "machines with an agent",
    "/hosts",
    ("name", "hardware_type", "state", "state_reason", "is_drained", "last_report_at", "labels", "id"),
    verbs=(
        change(Field("labels", 'all labels, as {"zone": "a"}', "json")),
        Verb("cordon", "place nothing new on it; what runs goes on", "POST", "/cordon", (_WHY,)),
        Verb("drain", "empty it: replicas are replaced elsewhere, then stopped", "POST", "/drain", (_WHY,)),
        Verb("uncordon", "place replicas on it again; ends a drain", "POST", "/uncordon"),
        Verb(
            "remove",
            "take it out for good; its history stays",
            "DELETE",
            fields=(Field("force", "give up the replicas of a host whose agent is gone", "switch"),),
            is_undoable=False,
        ),
        Verb(
            "renew-secret",
            "a new secret for its agent; the old one is refused within two seconds",
            "POST",
            "/renew-secret",
            is_undoable=False,
            secret="secret",  # noqa: S106
        ),
    ),
    filters=(Field("state", "active, cordoned, draining or lost"), _REMOVED),
    nothing="no hosts yet",
)
HARDWARE_TYPES = Resource(
    "hardware-types",
    "kinds of accelerators and CPUs that prices are measured on",
    "/hardware-types",
    ("slug", "name", "is_cpu", "memory_bytes", "id"),
    names=("slug", "name"),
    nothing="no hardware yet: a host brings its own when it enrols",
)
ENROLMENT_TOKENS = Resource(
    "enrolment-tokens",
    "tokens with which hosts enrol themselves",
    "/enrolment-tokens",
    ("name", "public_id", "hardware_type", "uses_left", "expires_at", "is_usable", "id"),
    names=("name", "public_id"),
    verbs=(
        create(
            NAME,
            Field("hardware_type", "slug or id (what each host reports)"),
            Field("labels", 'of the hosts, as {"zone": "a"}', "json"),
            Field("uses", "how many hosts it is for", "number"),
            Field("expires_at", "ISO time at which it ends"),
            secret="secret",  # noqa: S106
        ),
        Verb("revoke", "let no host enrol with it any more", "POST", "/revoke", is_undoable=False),
    ),
    nothing="no enrolment tokens yet: penstock enrolment-tokens create NAME",
)
ACCELERATORS = Resource(
    "accelerators",
    "accelerators of all hosts, and which replica holds each",
    "/accelerators",
    ("host", "index", "name", "memory_bytes", "is_healthy", "used_by.deployment", "id"),
    names=("uuid",),
    has_rows=False,
    filters=(Field("host", "name of its host"), Field("in_use", "whether a replica holds it", "switch")),
    nothing="no accelerators: hosts run engines on their CPU",
)
MODELS = Resource(
    "models",
    "what can be served: where its weights are",
    "/models",
    ("slug", "name", "artifact_kind", "artifact_value", "parameters", "context_tokens", "id"),
    names=("slug", "name"),
    verbs=(
        create(
            NAME,
            Field("artifact_kind", "tiny, path, hub or none", is_required=True),
            Field("artifact_value", "the local folder, or the hub id; of tiny: embed or vision"),
            Field("artifact_revision", "revision on the hub"),
            Field("slug", "short name (made from the name)"),
            Field("parameters", "number of parameters", "number"),
            Field("context_tokens", "context length in tokens", "number"),
        ),
        change(
            Field("name", "name"),
            Field("artifact_value", "the local folder, or the hub id; of tiny: embed or vision"),
            Field("artifact_revision", "revision on the hub"),
            Field("parameters", "number of parameters", "optional-number"),
            Field("context_tokens", "context length in tokens", "optional-number"),
        ),
        Verb("remove", "take it away, if no pool sells it", "DELETE", is_undoable=False),
    ),
    filters=(_REMOVED,),
    nothing="no models yet: penstock models create NAME --artifact-kind hub --artifact-value ID",
)
_POOL_FIELDS = (
    Field("is_public", "every tenant may use it", "switch"),
    Field("ttft_objective_ms", "time to the first token, ms", "number"),
    Field("tpot_objective_ms", "time per output token, ms", "number"),
    Field("tolerable_wait_s", "wait that is still good, s", "number"),
    Field("slo_share", "share of requests that keep the objectives", "number"),
    Field("oversell_factor", "how much more than there is may be sold", "number"),
    Field("keep_spare", "sell only what one host less can keep", "switch"),
    Field("adopts_calibrations", "calibrations become the price by themselves", "switch"),
    Field("adoption_error_limit", "mean error up to which they do, 0 to 1", "number"),
    Field("best_effort", "lend what is not reserved, or not used", "switch"),
    Field("credit_tiers", "what breaches give back, as JSON: [[attainment below, share of the price], …]", "json"),
)
POOLS = Resource(
    "pools",
    "what is sold: a model with a price and objectives",
    "/pools",
    ("slug", "name", "model", "is_public", "tenants", "ttft_objective_ms", "tpot_objective_ms", "id"),
    names=("slug", "name"),
    verbs=(
        create(
            Field("model", "slug or id of the model", is_place=True, is_required=True),
            Field("hardware_type", "slug or id of the hardware that the price is for", is_required=True),
            Field("name", "name (the model's)"),
            Field("slug", "short name (made from the name)"),
            Field("tenants", "slugs of those who may use it, unless it is public", "words"),
            *_POOL_FIELDS,
        ),
        change(Field("name", "name"), *_POOL_FIELDS),
        Verb(
            "tenants",
            "say who may use it",
            "PUT",
            "/tenants",
            (Field("tenants", "slugs of tenants", "words"), Field("is_public", "every tenant may use it", "switch")),
        ),
        Verb(
            "prices",
            "the versions of its price, newest first",
            "GET",
            "/profiles",
            columns=(
                "version",
                "effective_from",
                "withdrawn_at",
                "calibrated",
                "hardware_type",
                "alpha",
                "beta",
                "replica_mu_per_min",
                "price_per_1000_mu",
            ),
        ),
        Verb(
            "withdraw-price",
            "take back a version of its price that is not in force yet",
            "POST",
            "/profiles/{version}/withdraw",
            (Field("version", "number of the version", "number", is_required=True),),
        ),
        Verb(
            "restore-price",
            "undo withdraw-price",
            "POST",
            "/profiles/{version}/restore",
            (Field("version", "number of the version", "number", is_required=True),),
        ),
        Verb("remove", "take it away, if nothing serves it and nothing of it is sold", "DELETE", is_undoable=False),
    ),
    filters=(_REMOVED,),
    nothing="no pools yet: penstock pools create MODEL --hardware-type SLUG",
)
BOUNDS = (
    Field("min_replicas", "at least so many", "number"),
    Field("max_replicas", "at most so many", "number"),
    Field("pinned_replicas", "exactly so many, no scaling; none: let it scale", "optional-number"),
)
REVISION_FIELDS = (
    Field("runtime", "vllm, mlflow, command or simulated (what fits the files of the model)"),
    Field("options", "of the runtime, as JSON", "json"),
    Field("target_concurrency", "requests at once per replica", "number"),
)
DEPLOYMENTS = Resource(
    "deployments",
    "pools being served under a name that clients send as model",
    "/deployments",
    ("name", "pool", "is_enabled", "ready_replicas", "starting_replicas", "failed_replicas", "desired_replicas", "id"),
    verbs=(
        create(
            NAME,
            Field("pool", "slug or id of the pool", is_required=True),
            *REVISION_FIELDS,
            *BOUNDS,
            help="serve a pool",
        ),
        change(*BOUNDS),
        Verb("enable", "serve again", "POST", "/enable"),
        Verb("disable", "stop serving: replicas drain and stop", "POST", "/disable"),
        Verb("retry", "let failed replicas start again", "POST", "/retry"),
        Verb(
            "revise",
            "a new revision, current from now on",
            "POST",
            "/revisions",
            REVISION_FIELDS,
        ),
        Verb(
            "remove",
            "take it away; its usage and history stay",
            "DELETE",
            fields=(Field("confirm", "its name: let the replicas that have not ended drain now"),),
            is_undoable=False,
        ),
    ),
    filters=(_REMOVED,),
    nothing="nothing is served yet: penstock deployments create NAME --pool POOL",
)
REPLICAS = Resource(
    "replicas",
    "engine processes of all deployments",
    "/replicas",
    ("deployment_name", "host_name", "state", "phase", "state_since", "reason", "id"),
    names=("id",),
    verbs=(
        Verb(
            "logs",
            "the last lines of the engine's log that were kept",
            "GET",
            "/logs",
            (Field("lines", "at most so many", "number"),),
        ),
    ),
    filters=(Field("state", "pending, starting, ready, draining, stopping, stopped or failed"),),
    nothing="no replicas yet",
)
CALIBRATIONS = Resource(
    "calibrations",
    "what requests were measured to cost: penstock calibrate makes one",
    "/calibrations",
    ("created_at", "deployment_name", "hardware_name", "state", "progress.share", "reason", "adopted_version", "id"),
    names=("id",),
    verbs=(
        Verb("cancel", "stop measuring; the replica goes back into rotation", "POST", "/cancel", is_undoable=False),
        Verb(
            "adopt",
            "make it the pool's next price, or what replicas on its hardware supply",
            "POST",
            "/adopt",
            (Field("effective_from", "ISO time from which it is in force (at once)"),),
            is_undoable=False,
        ),
        Verb("preview", "what adopting it would change, by last week's usage", "GET", "/preview"),
    ),
    filters=(
        Field("deployment_name", "name of the deployment"),
        Field("state", "queued, draining, measuring, fitted, adopted, failed or cancelled"),
    ),
    nothing="nothing was calibrated yet: penstock calibrate DEPLOYMENT",
)
INCIDENTS = Resource(
    "incidents",
    "what broke, what was seen, what was done",
    "/incidents",
    ("opened_at", "kind", "deployment_name", "summary", "is_open", "closed_at", "id"),
    names=("id",),
    filters=(Field("is_open", "not closed yet", "switch"), Field("since", "opened then or later, ISO time")),
    nothing="nothing has broken",
)
USERS = Resource(
    "users",
    "people of the installation",
    "/users",
    ("email", "name", "is_operator", "is_active", "last_login", "id"),
    names=("email",),
    verbs=(
        create(
            Field("email", "e-mail address", is_place=True, is_required=True),
            Field("name", "name"),
            Field("is_operator", "may run the platform", "switch"),
            help="make an account; its person signs in by one-time link",
        ),
        Verb("activate", "let them in", "POST", "/activate"),
        Verb(
            "deactivate",
            "keep them out: sessions, links and the invitations they sent end",
            "POST",
            "/deactivate",
        ),
        Verb(
            "sign-in-link",
            "a one-time link, printed once",
            "POST",
            "/sign-in-link",
            secret="sign_in_url",  # noqa: S106
        ),
    ),
    nothing="nobody yet",
)
