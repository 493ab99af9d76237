"""What runs: deployments of pools, their revisions and replicas, and what was decided about them."""

from serving.models.calibrations import Calibration
from serving.models.deployments import Deployment, Replica, Revision
from serving.models.history import Incident, ScalingDecision
from serving.models.providers import ProviderCredential

__all__ = ["Calibration", "Deployment", "Incident", "ProviderCredential", "Replica", "Revision", "ScalingDecision"]
