"""Writes of this app: keyword-only, atomic, each with its audit entry and its line in the change log."""

from serving.services.calibrations import (
    calibration_adopt,
    calibration_cancel,
    calibration_fail,
    calibration_fitted,
    calibration_measure,
    calibration_start,
    calibration_take,
    calibrations_delete_old,
    replica_give_back,
)
from serving.services.decisions import decisions_delete_old, scaling_decision_record
from serving.services.deployments import (
    deployment_create,
    deployment_disable,
    deployment_enable,
    deployment_remove,
    deployment_retry,
    deployment_update,
    revision_create,
    revision_restore,
)
from serving.services.incidents import incident_close, incident_evidence_add, incident_open
from serving.services.providers import provider_credential_remove, provider_credential_set
from serving.services.replicas import TransitionError, replica_create, replica_transition, replicas_delete_old
from serving.services.supplies import supplies_refresh

__all__ = [
    "TransitionError",
    "calibration_adopt",
    "calibration_cancel",
    "calibration_fail",
    "calibration_fitted",
    "calibration_measure",
    "calibration_start",
    "calibration_take",
    "calibrations_delete_old",
    "decisions_delete_old",
    "deployment_create",
    "deployment_disable",
    "deployment_enable",
    "deployment_remove",
    "deployment_retry",
    "deployment_update",
    "incident_close",
    "incident_evidence_add",
    "incident_open",
    "provider_credential_remove",
    "provider_credential_set",
    "replica_create",
    "replica_give_back",
    "replica_transition",
    "replicas_delete_old",
    "revision_create",
    "revision_restore",
    "scaling_decision_record",
    "supplies_refresh",
]
