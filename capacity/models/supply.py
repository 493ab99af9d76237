"""What replicas supply on hardware that a pool's price was not measured on."""

from django.core.exceptions import ValidationError
from django.db import models
from django.db.models import Q

from capacity.models.hardware import HardwareType
from capacity.models.pools import Pool
from tenants.models import Identified


class ReplicaSupply(Identified):
    """The knee of a replica on hardware other than the pool's reference, in requests: the price makes MU of it.

    ``mix`` lists shapes ``{input_tokens, cached_tokens, output_tokens}`` that were offered in equal parts. Kept in
    requests and not in MU, so that it stays true when the pool's next price counts in other units.
    """

    pool = models.ForeignKey(Pool, on_delete=models.PROTECT, related_name="supplies")
    hardware_type = models.ForeignKey(HardwareType, on_delete=models.PROTECT, related_name="supplies")
    requests_per_min = models.FloatField("requests/min at the knee")
    mix = models.JSONField(help_text="Shapes of the requests, in equal parts.")
    calibration_id = models.UUIDField(null=True, help_text="Where it was measured.")
    adopted_at = models.DateTimeField()

    class Meta:
        ordering = ("pool", "hardware_type")
        verbose_name_plural = "replica supplies"
        constraints = (
            models.UniqueConstraint(
                fields=("pool", "hardware_type"),
                name="capacity_replicasupply_one_per_hardware",
                violation_error_code="hardware_type",
                violation_error_message="The pool has a measured supply on this hardware already.",
            ),
            models.CheckConstraint(
                condition=Q(requests_per_min__gt=0.0),
                name="capacity_replicasupply_positive",
                violation_error_code="requests_per_min",
                violation_error_message="A replica must serve more than 0 requests/min at its knee.",
            ),
        )

    def __str__(self) -> str:
        return f"{self.pool} on {self.hardware_type}"

    def clean(self) -> None:
        """The mix holds at least one shape. Raises ValidationError at ``mix``."""
        if not isinstance(self.mix, list) or not self.mix or not all(isinstance(shape, dict) for shape in self.mix):
            raise ValidationError({"mix": "Give the shapes of the requests that were offered, at least one."})
