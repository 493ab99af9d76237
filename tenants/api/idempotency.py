"""A creation that names an ``Idempotency-Key`` happens once, however often it is sent."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from django.db import IntegrityError, transaction
from django.utils.crypto import salted_hmac
from rest_framework import exceptions
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.utils.encoders import JSONEncoder

from tenants.api.caller import Caller
from tenants.api.problems import KeyReused
from tenants.crypto import decrypt, encrypt
from tenants.models import IdempotentAnswer

HEADER = "Idempotency-Key"
REPLAYED = "Idempotency-Replayed"
_LONGEST = 255


def once(request: Request, caller: Caller, create: Callable[[], Response]) -> Response:
    """``create()`` in a transaction, or the answer that the same request got before, marked ``Idempotency-Replayed``.

    A failed creation is not remembered. Raises KeyReused when the key came with another request before.
    """
    key = request.headers.get(HEADER, "")
    if not key:
        with transaction.atomic():
            return create()
    if len(key) > _LONGEST:
        raise exceptions.ParseError(f"An {HEADER} has at most {_LONGEST} characters.")
    print_of = _fingerprint(request)
    with transaction.atomic():
        try:
            # Of two who send the same at once, the second waits here for the first.
            with transaction.atomic():
                record = IdempotentAnswer.objects.create(caller=caller.identity, key=key, fingerprint=print_of)
        except IntegrityError:
            return _replay(IdempotentAnswer.objects.get(caller=caller.identity, key=key), print_of)
        response = create()
        IdempotentAnswer.objects.filter(pk=record.pk).update(
            status=response.status_code, body=encrypt(json.dumps(response.data, cls=JSONEncoder).encode())
        )
        return response


def _replay(record: IdempotentAnswer, print_of: str) -> Response:
    if record.fingerprint != print_of:
        raise KeyReused
    return Response(json.loads(decrypt(record.body)), status=record.status, headers={REPLAYED: "true"})


def _fingerprint(request: Request) -> str:
    """Keyed: a body may hold a password, which must not be guessed from a plain digest."""
    data: Any = request.data
    body = json.dumps(data, sort_keys=True, cls=JSONEncoder)
    text = f"{request.method} {request.path}\n{body}"
    return salted_hmac("tenants.api.idempotency", text, algorithm="sha256").hexdigest()
