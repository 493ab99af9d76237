"""Addresses of the operators' pages, below ``/console/``. Each answers operators alone."""

from django.urls import path

from penstock.web.operators import (
    audit,
    deployment,
    deployment_acts,
    deployment_new,
    deployments,
    enrolment,
    host_acts,
    hosts,
    tenant_parts,
    tenants,
)

app_name = "operators"
"""The REST API's routes have names of their own, such as ``host-cordon``."""
urlpatterns = [
    path("hosts/", hosts.hosts, name="hosts"),
    path("hosts/new", enrolment.add, name="host-add"),
    path("hosts/tokens/<uuid:token_id>/arrivals", enrolment.arrivals, name="enrolment-arrivals"),
    path("hosts/tokens/<uuid:token_id>/revoke", enrolment.revoke, name="enrolment-revoke"),
    path("hosts/<slug:name>/", hosts.host, name="host"),
    path("hosts/<slug:name>/cordon", hosts.cordon, name="host-cordon"),
    path("hosts/<slug:name>/uncordon", hosts.uncordon, name="host-uncordon"),
    path("hosts/<slug:name>/drain", host_acts.drain, name="host-drain"),
    path("hosts/<slug:name>/remove", host_acts.remove, name="host-remove"),
    path("hosts/<slug:name>/labels", hosts.labels, name="host-labels"),
    path("hosts/<slug:name>/secret", hosts.renew_secret, name="host-secret"),
    path("deployments/", deployments.deployments, name="deployments"),
    path("deployments/new", deployment_new.new, name="deployment-new"),
    path("deployments/<uuid:deployment_id>/", deployment.deployment, name="deployment"),
    path("deployments/<uuid:deployment_id>/retry", deployment_acts.retry, name="deployment-retry"),
    path("deployments/<uuid:deployment_id>/start", deployment_acts.start, name="deployment-start"),
    path("deployments/<uuid:deployment_id>/stop", deployment_acts.stop, name="deployment-stop"),
    path("deployments/<uuid:deployment_id>/remove", deployment_acts.remove, name="deployment-remove"),
    path("deployments/<uuid:deployment_id>/scale", deployment_acts.scale, name="deployment-scale"),
    path("deployments/<uuid:deployment_id>/revisions", deployment_acts.revise, name="deployment-revise"),
    path(
        "deployments/<uuid:deployment_id>/revisions/<uuid:revision_id>/restore",
        deployment_acts.restore,
        name="revision-restore",
    ),
    path("replicas/<uuid:replica_id>/", deployment.replica, name="replica"),
    path("tenants/", tenants.tenants, name="tenants"),
    path("tenants/new", tenants.new, name="tenant-new"),
    path("tenants/<slug:slug>/", tenants.tenant, name="tenant"),
    path("tenants/<slug:slug>/edit", tenants.edit, name="tenant-edit"),
    path("tenants/<slug:slug>/suspend", tenants.suspend, name="tenant-suspend"),
    path("tenants/<slug:slug>/resume", tenants.resume, name="tenant-resume"),
    path("tenants/<slug:slug>/members/restore", tenant_parts.restore, name="member-restore"),
    path("tenants/<slug:slug>/members/<uuid:membership_id>/role", tenant_parts.role, name="member-role"),
    path("tenants/<slug:slug>/members/<uuid:membership_id>/remove", tenant_parts.remove, name="member-remove"),
    path("tenants/<slug:slug>/invitations", tenant_parts.invite, name="invite"),
    path("tenants/<slug:slug>/invitations/<uuid:invitation_id>/revoke", tenant_parts.uninvite, name="uninvite"),
    path("tenants/<slug:slug>/limits", tenant_parts.set_limit, name="limit-set"),
    path("tenants/<slug:slug>/limits/<uuid:limit_id>/remove", tenant_parts.remove_limit, name="limit-remove"),
    path("audit/", audit.audit_log, name="audit-log"),
]
