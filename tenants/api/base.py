"""What all views of the REST API stand on: who may do what, tenants' walls, versions, creations that happen once."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, TypeVar

from django.db import models, transaction
from django.db.models import QuerySet
from django.http import Http404
from rest_framework import exceptions, status
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.serializers import BaseSerializer
from rest_framework.views import APIView
from rest_framework.viewsets import GenericViewSet

from tenants.api import idempotency
from tenants.api.caller import Caller, caller_of
from tenants.api.parsers import TORN, is_torn
from tenants.api.problems import PreconditionFailed
from tenants.api.versions import etag_of, require_version, stated_version
from tenants.models import Identified, Tenant
from tenants.policy.roles import Action

_Row = TypeVar("_Row", bound=models.Model)


class CountedView(APIView):
    """Counts every request, refused ones too: DRF alone would count none with a wrong token or without the right."""

    def perform_authentication(self, request: Request) -> None:
        try:
            super().perform_authentication(request)
        finally:
            super().check_throttles(request)

    def check_throttles(self, request: Request) -> None:
        """Done by ``perform_authentication``, before permissions."""


class ApiViewSet(CountedView, GenericViewSet[_Row]):
    """``required``: what each action needs. Changes go through services; nothing here writes a row by itself."""

    required: ClassVar[Mapping[str, Action]]
    http_method_names = ("get", "head", "post", "put", "patch", "delete")
    lookup_value_regex = "[^/]+"

    def initial(self, request: Request, *args: Any, **kwargs: Any) -> None:
        # PostgreSQL refuses to be asked for a NUL; nothing is called so.
        if any("\0" in str(part) for part in kwargs.values()):
            raise Http404
        # A charset of the caller's choice can decode into what UTF-8 cannot write.
        if any(is_torn(text) for name, given in request.query_params.lists() for text in (name, *given)):
            raise exceptions.ParseError(TORN)
        super().initial(request, *args, **kwargs)

    @property
    def caller(self) -> Caller:
        found = caller_of(self.request)
        if found is None:
            raise exceptions.NotAuthenticated
        return found

    def may(self, caller: Caller, action: Action) -> bool:
        return caller.can(action)

    def get_object(self) -> _Row:
        try:
            uuid.UUID(self.kwargs[self.lookup_url_kwarg or self.lookup_field])
        except ValueError:
            raise Http404("There is no such object: ids are UUIDs.") from None
        return super().get_object()

    # ------------------------------------------------------------------ answers
    def listed(self, queryset: QuerySet[_Row]) -> Response:
        """A page of ``queryset`` after filters and ordering."""
        page = self.paginate_queryset(self.filter_queryset(queryset))
        return self.get_paginated_response(self.get_serializer(page, many=True).data)

    def shown(
        self, row: _Row, *, code: int = status.HTTP_200_OK, serializer: type[BaseSerializer[Any]] | None = None
    ) -> Response:
        """The row, with its ETag where it has versions."""
        made = serializer(row, context=self.get_serializer_context()) if serializer else self.get_serializer(row)
        headers = {"ETag": etag_of(row)} if isinstance(row, Identified) else {}
        return Response(made.data, status=code, headers=headers)

    def read(self, serializer: type[BaseSerializer[Any]], *, partial: bool = False) -> dict[str, Any]:
        """The request's body as ``serializer`` understands it. Raises ValidationError by field."""
        made = serializer(data=self.request.data, partial=partial, context=self.get_serializer_context())
        made.is_valid(raise_exception=True)
        return dict(made.validated_data)

    # ------------------------------------------------------------------ changes
    def created(self, create: Callable[[], Response]) -> Response:
        """``create()``, once for each ``Idempotency-Key``."""
        return idempotency.once(self.request, self.caller, create)

    def changed(
        self, row: Identified, change: Callable[[], Response], *, turn_of: Identified | None = None
    ) -> Response:
        """``change()`` in a transaction, if ``row`` is still what ``If-Match`` names. Raises PreconditionFailed.

        Name in ``turn_of`` what ``change`` takes the turn of before it touches ``row``: with ``If-Match`` and without
        it the rows are then locked in one order, and no two wait for each other.
        """
        with transaction.atomic():
            if turn_of is not None:
                turn_of.take_turn()
            require_version(self.request, row)
            return change()

    def put_or_create(
        self,
        row: Identified | None,
        put: Callable[[int], Response],
        *,
        missing: str,
        turn_of: Identified | None = None,
    ) -> Response:
        """``put`` with the status that it answers: 200 for what is there (``row``), as ``changed``, and else 201.

        Where there is no row, no version of it is either: with ``If-Match`` raises PreconditionFailed, in the words of
        ``missing``.
        """
        if row is not None:
            return self.changed(row, lambda: put(status.HTTP_200_OK), turn_of=turn_of)
        if stated_version(self.request):
            raise PreconditionFailed(missing)
        return put(status.HTTP_201_CREATED)


class TenantViewSet(ApiViewSet[_Row]):
    """What belongs to the tenant named in the address, by slug or id. A tenant that is not yours does not exist."""

    _tenant: Tenant | None = None

    @property
    def tenant(self) -> Tenant:
        if self._tenant is None:
            self._tenant = find_tenant(self.kwargs["tenant"])
        return self._tenant

    def may(self, caller: Caller, action: Action) -> bool:
        if not caller.can(Action.TENANT_VIEW, self.tenant):
            raise Http404(NO_TENANT)
        return caller.can(action, self.tenant)


NO_TENANT = "There is no such tenant, or you have no part in it."


def find_tenant(name: str) -> Tenant:
    """By id or slug. Raises Http404."""
    try:
        found = Tenant.objects.filter(pk=uuid.UUID(name)).first()
    except ValueError:
        found = Tenant.objects.filter(slug=name).first()
    if found is None:
        raise Http404(NO_TENANT)
    return found
