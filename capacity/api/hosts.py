"""``/hardware-types``, ``/hosts`` and ``/accelerators``: what there is, for operators."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import django_filters
from django.db.models import QuerySet
from django.utils.functional import cached_property
from drf_spectacular.utils import extend_schema, extend_schema_field
from rest_framework import serializers
from rest_framework.decorators import action
from rest_framework.request import Request
from rest_framework.response import Response

from capacity.api.base import NamedViewSet, NamesField, RemovableViewSet
from capacity.api.reads import Use, accelerators_in_use, use_of, uses_by_host
from capacity.models import Accelerator, HardwareType, Host
from capacity.services import (
    host_cordon,
    host_drain,
    host_labels_set,
    host_remove,
    host_secret_renew,
    host_uncordon,
)
from tenants.api.base import ApiViewSet
from tenants.api.filters import RemovedFilterSet
from tenants.api.problems import Conflict
from tenants.policy.roles import Action

_LOOK: dict[str, Action] = {"list": Action.PLATFORM_VIEW, "retrieve": Action.PLATFORM_VIEW}


class HostAway(Conflict):
    hint = "Wait until its agent reports again, or remove it."


class HardwareTypeSerializer(serializers.ModelSerializer[HardwareType]):
    class Meta:
        model = HardwareType
        fields = ("id", "slug", "name", "is_cpu", "memory_bytes", "created_at", "updated_at")
        read_only_fields = fields


class UseSerializer(serializers.Serializer[Use]):
    """A replica that holds a part of a host."""

    id = serializers.UUIDField(help_text="Id of the replica.")
    deployment = serializers.CharField(help_text="Name of its deployment.")
    state = serializers.CharField()
    reason = serializers.CharField(help_text="Why it is in this state; on a host that is drained, what it waits for.")
    accelerators = serializers.ListField(child=serializers.IntegerField(), help_text="Indices; none on a CPU.")


class AcceleratorSerializer(serializers.ModelSerializer[Accelerator]):
    host = serializers.CharField(source="host.name", read_only=True)
    used_by = serializers.SerializerMethodField(help_text="The replica that holds it; null: it is free.")

    class Meta:
        model = Accelerator
        fields = ("id", "host", "index", "name", "uuid", "memory_bytes", "is_healthy", "used_by", "updated_at")
        read_only_fields = fields

    @extend_schema_field(UseSerializer(allow_null=True))
    def get_used_by(self, row: Accelerator) -> Any:
        use = use_of(row, self.context["view"].uses.get(row.host_id, ()))
        return UseSerializer(use).data if use else None


class HostSerializer(serializers.ModelSerializer[Host]):
    hardware_type = serializers.SlugRelatedField[HardwareType](slug_field="slug", read_only=True)
    labels = serializers.DictField(child=serializers.CharField(), read_only=True)
    report = serializers.DictField(read_only=True, help_text="Newest facts that its agent told: cores, memory, load.")
    accelerators = AcceleratorSerializer(many=True, read_only=True)
    replicas = serializers.SerializerMethodField(help_text="The replicas that hold a part of it.")
    is_drained = serializers.SerializerMethodField(help_text="It is being drained, and no replica is left on it.")

    class Meta:
        model = Host
        fields = (
            "id",
            "name",
            "hardware_type",
            "state",
            "state_since",
            "state_reason",
            "is_drained",
            "labels",
            "generation",
            "acknowledged_generation",
            "last_report_at",
            "report",
            "accelerators",
            "replicas",
            "created_at",
            "updated_at",
            "removed_at",
        )
        read_only_fields = fields

    @extend_schema_field(UseSerializer(many=True))
    def get_replicas(self, host: Host) -> Any:
        return UseSerializer(self.context["view"].uses.get(host.pk, []), many=True).data

    def get_is_drained(self, host: Host) -> bool:
        return host.state == Host.State.DRAINING and not self.context["view"].uses.get(host.pk)


class HostLabels(serializers.Serializer[Host]):
    """What can be changed of a host."""

    labels = NamesField(
        child=serializers.CharField(max_length=200, allow_blank=True), help_text="All its labels: others are removed."
    )


class HostOutage(serializers.Serializer[Host]):
    """Why a host is taken out of service."""

    reason = serializers.CharField(
        max_length=200, required=False, allow_blank=True, help_text="Shown to people beside its state."
    )


class HostRemoval(serializers.Serializer[Host]):
    """How a host is removed."""

    force = serializers.BooleanField(
        default=False, help_text="Give up the replicas of a host whose agent is gone: they count as failed."
    )


class HostSecret(serializers.Serializer[Any]):
    """What goes into the host's agent.json. ``secret`` is shown this once."""

    host_id = serializers.UUIDField()
    name = serializers.CharField()
    secret = serializers.CharField(help_text="As hexadecimal digits.")


class HostFilter(RemovedFilterSet):
    hardware_type = django_filters.CharFilter(field_name="hardware_type__slug", label="Slug of its hardware type.")
    search = django_filters.CharFilter(field_name="name", lookup_expr="icontains", label="Part of the name.")

    class Meta:
        model = Host
        fields = ("state",)


class AcceleratorFilter(django_filters.FilterSet):
    host = django_filters.CharFilter(field_name="host__name", label="Name of its host.")
    hardware = django_filters.CharFilter(field_name="name", lookup_expr="icontains", label="Part of its own name.")
    in_use = django_filters.BooleanFilter(method="by_use", label="Whether a replica holds it.")

    class Meta:
        model = Accelerator
        fields = ("is_healthy",)

    def by_use(self, rows: QuerySet[Accelerator], name: str, value: bool) -> QuerySet[Accelerator]:
        held = accelerators_in_use()
        return rows.filter(pk__in=held) if value else rows.exclude(pk__in=held)


class HardwareTypesViewSet(NamedViewSet[HardwareType]):
    required: ClassVar = _LOOK
    queryset = HardwareType.objects.all()
    serializer_class = HardwareTypeSerializer
    filterset_fields = ("is_cpu",)
    ordering_fields = ("name", "slug", "created_at")
    lookup_url_kwarg = "hardware_type"

    def list(self, request: Request) -> Response:
        """The kinds of accelerators and CPUs that hosts have and prices are measured on."""
        return self.listed(self.get_queryset())

    def retrieve(self, request: Request, hardware_type: str) -> Response:
        """One hardware type, by id or slug."""
        return self.shown(self.get_object())


class HostsViewSet(RemovableViewSet[Host]):
    required: ClassVar = {
        **_LOOK,
        "partial_update": Action.PLATFORM_OPERATE,
        "cordon": Action.PLATFORM_OPERATE,
        "drain": Action.PLATFORM_OPERATE,
        "uncordon": Action.PLATFORM_OPERATE,
        "renew_secret": Action.PLATFORM_OPERATE,
        "destroy": Action.PLATFORM_OPERATE,
    }
    queryset = Host.everything.select_related("hardware_type").prefetch_related("accelerators__host")
    serializer_class = HostSerializer
    filterset_class = HostFilter
    ordering_fields = ("name", "state", "last_report_at", "created_at")
    lookup_url_kwarg = "host"
    name_field = "name"

    @cached_property
    def uses(self) -> Any:
        return uses_by_host()

    def list(self, request: Request) -> Response:
        """The machines with an agent, their accelerators, and which replicas hold them."""
        return self.listed(self.get_queryset())

    def retrieve(self, request: Request, host: str) -> Response:
        """One host, by id or name, with its accelerators and the replicas that hold them."""
        return self.shown(self.get_object())

    @extend_schema(request=HostLabels)
    def partial_update(self, request: Request, host: str) -> Response:
        """Replace the host's labels. Placement asks for them; replicas that run on it stay."""
        row = self.get_object()
        given = self.read(HostLabels)
        return self.changed(row, lambda: self.shown(host_labels_set(host=row, actor=self.caller.actor, **given)))

    @extend_schema(request=HostOutage, responses=HostSerializer)
    @action(detail=True, methods=["post"])
    def cordon(self, request: Request, host: str) -> Response:
        """Place nothing new on the host; what runs on it goes on, also what a drain has left. One cordoned stays so."""
        return self._swapped(host_cordon, Host.State.CORDONED, **self.read(HostOutage))

    @extend_schema(request=HostOutage, responses=HostSerializer)
    @action(detail=True, methods=["post"])
    def drain(self, request: Request, host: str) -> Response:
        """Empty the host: each of its replicas is replaced elsewhere, then ends what it has in hand and stops.

        It goes on for as long as that takes: ``replicas`` says what is left and what it waits for, ``is_drained`` that
        nothing is. A replica for which no other host has room stops without a replacement. Uncordon takes it back.
        """
        return self._swapped(host_drain, Host.State.DRAINING, **self.read(HostOutage))

    @extend_schema(request=None, responses=HostSerializer)
    @action(detail=True, methods=["post"])
    def uncordon(self, request: Request, host: str) -> Response:
        """Place replicas on the host again, and leave on it what a drain has not stopped. An active host stays so."""
        return self._swapped(host_uncordon, Host.State.ACTIVE)

    @extend_schema(request=None, responses=HostSecret)
    @action(detail=True, methods=["post"], url_path="renew-secret")
    def renew_secret(self, request: Request, host: str) -> Response:
        """A new secret for the host's agent.json, shown this once.

        Within two seconds its agent is refused until it has the new secret; engines go on serving.
        """
        row = self.get_object()

        def renew() -> Response:
            secret = host_secret_renew(host=row, actor=self.caller.actor).hex()
            return Response(HostSecret({"host_id": row.pk, "name": row.name, "secret": secret}).data)

        return self.created(renew)

    @extend_schema(parameters=[HostRemoval], responses={204: None})
    def destroy(self, request: Request, host: str) -> Response:
        """Take the host out for good. Its agent is refused at once, its name is free, its history stays.

        409 with what stands in the way while replicas hold a part of it: drain it first. One that was removed before
        stays so.
        """
        row, query = self.get_object(), HostRemoval(data=request.query_params)
        query.is_valid(raise_exception=True)
        return self.removed(row, lambda: host_remove(host=row, actor=self.caller.actor, **query.validated_data))

    def _swapped(self, swap: Callable[..., bool], wanted: Host.State, **given: str) -> Response:
        row = self.get_object()

        def change() -> Response:
            if not swap(host=row, actor=self.caller.actor, **given):
                row.refresh_from_db(fields=("state",))
                if row.state != wanted:
                    raise HostAway(f"The host is {row.state}: its agent does not report.")
            return self.shown(self.get_object())

        return self.changed(row, change)


class AcceleratorsViewSet(ApiViewSet[Accelerator]):
    required: ClassVar = {"list": Action.PLATFORM_VIEW}
    queryset = Accelerator.objects.filter(host__removed_at=None).select_related("host").order_by("host__name", "index")
    serializer_class = AcceleratorSerializer
    filterset_class = AcceleratorFilter
    ordering_fields = ("name", "memory_bytes")

    @cached_property
    def uses(self) -> Any:
        return uses_by_host()

    def list(self, request: Request) -> Response:
        """The accelerators of all hosts, and the replica that holds each."""
        return self.listed(self.get_queryset())
