"""``/tenants/{tenant}/limits``, ``…/keys/{key}/limits`` and ``…/members/{member}/limits``: plain limits, named by kind,
model and whose they are.
"""

from __future__ import annotations

import uuid
from typing import Any, ClassVar

from django.db.models import QuerySet
from django.http import Http404
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiParameter, extend_schema, extend_schema_field
from rest_framework import exceptions, serializers, status
from rest_framework.request import Request
from rest_framework.response import Response

from tenants.api.base import TenantViewSet
from tenants.budgets import BudgetState, budgets_of
from tenants.models import ApiKey, Limit, Membership
from tenants.policy.limits import ASK_OPERATOR, limit_refusal, set_by_whom
from tenants.policy.roles import Action
from tenants.selectors import limits_held
from tenants.services import limit_remove, limit_set

_MOST = 2**63 - 1
_MODEL = OpenApiParameter("model", str, description="Served model name; empty: the limit for all models together.")
_KIND = OpenApiParameter("kind", str, OpenApiParameter.PATH, enum=Limit.Kind.values)
_SET_BY = OpenApiParameter(
    "set_by",
    str,
    enum=Limit.SetBy.values,
    description="Whose limit. Left out: for operators the operator's, for everybody else the tenant's own.",
)
_KEY = OpenApiParameter("key", OpenApiTypes.UUID, OpenApiParameter.PATH, description="Id of the API key.")

_NONE = "No such limit is set. A limit for one model is named by ?model=<served name>."


class SetByOther(exceptions.NotFound):
    """It is not the caller's own limit that is set, but the other one, which is not removed by accident."""

    def __init__(self, set_by: str) -> None:
        super().__init__(f"Only the {set_by}'s limit is set.")
        self.hint = f"Name it to remove it: ?set_by={set_by} in the address, --set-by {set_by} on the command line."


class LimitFields(serializers.Serializer[Any]):
    value = serializers.IntegerField(
        min_value=1,
        max_value=_MOST,
        help_text="Per minute, day or month (of the calendar, UTC), or at once for concurrency. Of money in whole "
        "units of the installation's currency.",
    )
    model = serializers.CharField(
        max_length=200, allow_blank=True, default="", help_text="Served model name; empty means all models together."
    )
    set_by = serializers.ChoiceField(
        choices=Limit.SetBy.choices,
        required=False,
        help_text="Whose limit. Left out: an operator sets the operator's, everybody else the tenant's own.",
    )


class BudgetPartSerializer(serializers.Serializer[Any]):
    """What is used of a budget, of one pool where each has it by itself."""

    pool = serializers.CharField(allow_blank=True, help_text="Slug; empty: the budget is one for all pools.")
    used = serializers.FloatField(help_text="In MU, or in money.")
    remaining = serializers.FloatField()


class BudgetSerializer(serializers.Serializer[Any]):
    """How a budget stands in the present day or month (UTC)."""

    resets_at = serializers.DateTimeField(help_text="When it begins anew.")
    until = serializers.DateTimeField(
        allow_null=True, help_text="What ended before is counted: the books come a minute or two behind. Null: nothing."
    )
    parts = BudgetPartSerializer(many=True, help_text="Of a budget that each pool has by itself: those that were used.")


class LimitSerializer(serializers.ModelSerializer[Limit]):
    is_in_force = serializers.BooleanField(
        read_only=True, help_text="False: the other one of this kind and model holds."
    )
    value_in_force = serializers.IntegerField(
        read_only=True,
        source="holding.in_force.value",
        help_text="What holds: the smaller of the operator's limit and the tenant's own.",
    )
    budget = serializers.SerializerMethodField(
        help_text="Of a budget: what is used and remains of what holds, and when it begins anew. Null for other kinds."
    )

    class Meta:
        model = Limit
        fields = (
            "id",
            "kind",
            "model",
            "value",
            "set_by",
            "is_in_force",
            "value_in_force",
            "budget",
            "created_at",
            "updated_at",
        )
        read_only_fields = fields

    @extend_schema_field(BudgetSerializer(allow_null=True))
    def get_budget(self, limit: Limit) -> Any:
        found = limit.budget if isinstance(limit.budget, BudgetState) else budgets_of([limit]).get(limit.pk)
        return None if found is None else BudgetSerializer(found).data


class SetByOperator(exceptions.PermissionDenied):
    """The operator's limit, and it is no operator who would change it."""

    default_code = "set_by_operator"
    hint = ASK_OPERATOR


class LimitsViewSet(TenantViewSet[Limit]):
    required: ClassVar = {
        "list": Action.TENANT_VIEW,
        "retrieve": Action.TENANT_VIEW,
        "update": Action.LIMIT_MANAGE,
        "destroy": Action.LIMIT_MANAGE,
    }
    queryset = Limit.objects.none()
    serializer_class = LimitSerializer
    filterset_fields = ("kind", "model", "set_by")
    ordering_fields = ("kind", "model", "value", "set_by")
    lookup_field = "kind"

    @property
    def api_key(self) -> ApiKey | None:
        """Whose limits these are; None: no key's."""
        return None

    @property
    def member(self) -> Membership | None:
        """Whose limits these are; None: no member's."""
        return None

    def get_queryset(self) -> QuerySet[Limit]:
        rows = Limit.objects.filter(tenant=self.tenant, api_key=self.api_key, member=self.member)
        return rows.select_related("tenant").order_by("kind", "model", "set_by")

    def paginate_queryset(self, queryset: Any) -> Any:
        rows = limits_held(super().paginate_queryset(queryset) or ())
        states = budgets_of(rows)
        for row in rows:
            row.budget = states.get(row.pk)
        return rows

    def list(self, request: Request, **_: str) -> Response:
        """The limits that are set, by operator and tenant: of two of one kind and model the smaller holds."""
        return self.listed(self.get_queryset())

    @extend_schema(parameters=[_KIND, _MODEL, _SET_BY])
    def retrieve(self, request: Request, **_: str) -> Response:
        """The limit of this kind, for one model or for all together.

        Without ``set_by``: the caller's own, or, where there is none, the other one.
        """
        named = self._named()
        row = self._stored(set_by=named or self._own)
        if row is None and not named:
            row = self._stored()
        if row is None:
            raise Http404(_NONE)
        return self.shown(row)

    @extend_schema(parameters=[_KIND], request=LimitFields, responses={200: LimitSerializer, 201: LimitSerializer})
    def update(self, request: Request, **_: str) -> Response:
        """Set the limit of this kind, whether or not there is one. Gateways hold to it within two seconds.

        A tenant sets its own; the operator's stays beside it, and the smaller holds (``value_in_force``). An operator
        sets the operator's, or the tenant's own for it with ``set_by``.
        """
        given = {"set_by": self._own, **self.read(LimitFields)}
        self._allow(given["set_by"])
        row = self._found(given["model"], given["set_by"])

        def put(code: int) -> Response:
            made = limit_set(
                tenant=self.tenant,
                api_key=self.api_key,
                member=self.member,
                kind=self._kind,
                actor=self.caller.actor,
                **given,
            )
            return self.shown(made, code=code)

        missing = "There is no such limit: leave out If-Match to set one."
        return self.put_or_create(row, put, missing=missing, turn_of=self.tenant)

    @extend_schema(parameters=[_KIND, _MODEL, _SET_BY], responses={204: None})
    def destroy(self, request: Request, **_: str) -> Response:
        """Remove the limit of this kind: what it held back is free, as far as the other one does not hold.

        A tenant removes its own; the operator's is removed by operators.
        """
        named = self._named()
        self._allow(named or self._own)
        row = self._stored(set_by=named or self._own)
        if row is None:
            other = self._stored()
            if other is not None and not named:
                self._allow(other.set_by)
                raise SetByOther(other.set_by)
            raise Http404(_NONE)

        def end() -> Response:
            limit_remove(limit=row, actor=self.caller.actor)
            return Response(status=status.HTTP_204_NO_CONTENT)

        return self.changed(row, end, turn_of=self.tenant)

    @property
    def _kind(self) -> str:
        kind: str = self.kwargs["kind"]
        if kind not in Limit.Kind.values:
            raise Http404(f"There is no such kind of limit: use {', '.join(Limit.Kind.values)}.")
        return kind

    @property
    def _own(self) -> str:
        """Whose limits the caller sets without saying so."""
        return set_by_whom(is_operator=self.caller.is_operator)

    def _named(self) -> str:
        """What the address says of whose limit is meant; empty: nothing. Raises ValidationError."""
        named: str = self.request.query_params.get("set_by", "")
        if named and named not in Limit.SetBy.values:
            raise exceptions.ValidationError({"set_by": f"Use one of {', '.join(Limit.SetBy.values)}."})
        return named

    def _allow(self, set_by: str) -> None:
        """Raises SetByOperator where the caller may not change limits of ``set_by``."""
        if refusal := limit_refusal(set_by, is_operator=self.caller.is_operator):
            raise SetByOperator(refusal)

    def _found(self, model: str, set_by: str = "") -> Limit | None:
        rows = self.get_queryset().filter(kind=self._kind, model=model)
        return (rows.filter(set_by=set_by) if set_by else rows).first()

    def _stored(self, set_by: str = "") -> Limit | None:
        """The limit that the address names."""
        model = self.request.query_params.get("model", "")
        return None if "\0" in model else self._found(model, set_by)


class KeyLimitsViewSet(LimitsViewSet):
    required: ClassVar = {**LimitsViewSet.required, "list": Action.KEY_VIEW, "retrieve": Action.KEY_VIEW}

    _api_key: ApiKey | None = None

    @property
    def api_key(self) -> ApiKey:
        if self._api_key is None:
            self._api_key = self._find_key()
        return self._api_key

    def _find_key(self) -> ApiKey:
        try:
            found = ApiKey.objects.filter(tenant=self.tenant, pk=uuid.UUID(self.kwargs["key"])).first()
        except ValueError:
            found = None
        if found is None:
            raise Http404("The tenant has no such API key.")
        return found


class MemberLimitsViewSet(LimitsViewSet):
    """What holds for one member: for their playground and for the keys that they made."""

    required: ClassVar = {**LimitsViewSet.required, "list": Action.MEMBER_VIEW, "retrieve": Action.MEMBER_VIEW}

    _member: Membership | None = None

    @property
    def member(self) -> Membership:
        if self._member is None:
            self._member = self._find_member()
        return self._member

    def _find_member(self) -> Membership:
        try:
            found = Membership.objects.filter(tenant=self.tenant, pk=uuid.UUID(self.kwargs["member"])).first()
        except ValueError:
            found = None
        if found is None:
            raise Http404("The tenant has no such member.")
        return found
