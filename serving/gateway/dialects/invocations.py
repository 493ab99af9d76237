"""``POST /invocations``: MLflow's scoring protocol, and the own requests of other servers.

MLflow's clients name no model in the body, so it stands in the path: ``/invocations/<model>``, or
``/serving-endpoints/<model>/invocations`` as MLflow's deployment client for Databricks writes it. Without one in the
path the body's ``model`` says it.
"""

from __future__ import annotations

from contextlib import suppress

import msgspec

from capacity.policy.cost import invocation_units
from serving.gateway import errors
from serving.gateway.dialects import base
from serving.gateway.dialects.base import Answer, Dialect, Parsed
from serving.gateway.records import DeploymentRecord, Usage
from serving.gateway.usage import UNREADABLE
from serving.policy.admission import Ask

_FORMS = ("dataframe_split", "dataframe_records", "instances", "inputs")
_ALLOWED = (*_FORMS, "params")


MAX_ROWS = 100_000
"""Rows of one request."""


class Split(msgspec.Struct):
    data: list[msgspec.Raw]


class Fields(msgspec.Struct):
    """MLflow's fields and the model's name. Others are not looked at: they may be many."""

    model: msgspec.Raw = msgspec.Raw()
    dataframe_split: msgspec.Raw = msgspec.Raw()
    dataframe_records: msgspec.Raw = msgspec.Raw()
    instances: msgspec.Raw = msgspec.Raw()
    inputs: msgspec.Raw = msgspec.Raw()
    params: msgspec.Raw = msgspec.Raw()


_decoder = msgspec.json.Decoder(Fields)
_decode_split = msgspec.json.Decoder(Split).decode
_decode_name = msgspec.json.Decoder(str).decode
_decode_list = msgspec.json.Decoder(list[msgspec.Raw]).decode
_decode_columns = msgspec.json.Decoder(dict[str, list[msgspec.Raw]]).decode


class Invocations(Dialect):
    """``model``: the one that the path names."""

    name = "invocations"
    engine_path = b"/invocations"
    speaks = ("invocations", "http")
    input_field = "inputs"
    keeps_type = True
    max_values = base.MAX_LISTED

    def __init__(self, model: str = "") -> None:
        self.model = model

    def parse(self, body: bytes) -> Parsed:
        fields = base.read_fields(_decoder, body)
        model = self.model
        if not model:
            with suppress(*UNREADABLE):
                model = _decode_name(fields.model)
        if not model:
            raise errors.bad_request(
                "Name the model in the path, POST /invocations/<model>, or as 'model' in the body.",
                param="model",
                code="missing_required_parameter",
            )
        rows = _count_rows(fields)
        if rows > MAX_ROWS:
            raise errors.bad_request(
                f"The request holds {rows:,} rows; at most {MAX_ROWS:,} are allowed. Send several requests.",
                param=next(form for form in _FORMS if getattr(fields, form)),
                code="invalid_value",
            )
        units = invocation_units(rows=rows, body_bytes=len(body))
        return Parsed(
            model=model,
            members={name: value for name in _ALLOWED if (value := getattr(fields, name))},
            raw=body,
            ask=Ask(prompts=0, choices=0, text_bytes=0, max_output=0, units=units),
        )

    def require(self, parsed: Parsed, deployment: DeploymentRecord) -> None:
        super().require(parsed, deployment)
        if self.is_own(deployment):
            return
        given = [form for form in _FORMS if form in parsed.members]
        if len(given) != 1:
            raise errors.bad_request(
                "Send exactly one of 'dataframe_split', 'dataframe_records', 'instances' and 'inputs'; "
                f"there are {len(given)}.",
                param=given[1] if given else "inputs",
                code="invalid_value" if given else "missing_required_parameter",
            )
        parsed.raw = msgspec.json.encode(parsed.members)

    def path_of(self, deployment: DeploymentRecord) -> bytes:
        return deployment.invocations_path.encode()

    def is_own(self, deployment: DeploymentRecord) -> bool:
        return "invocations" not in deployment.speaks

    def engine_body(self, parsed: Parsed, *, priority: int, cache_salt: str) -> bytes:
        return parsed.raw

    def read_answer(self, parsed: Parsed, body: bytes, request_id: str) -> Answer:
        return Answer(body, Usage(units=dict(parsed.ask.units or {})))


def _count_rows(fields: Fields) -> int:
    """Rows to predict; 0 where they are in none of MLflow's forms: for another server, or for MLflow to refuse."""
    try:
        if fields.dataframe_split:
            return len(_decode_split(fields.dataframe_split).data)
        if fields.dataframe_records:
            return len(_decode_list(fields.dataframe_records))
    except UNREADABLE:
        return 0
    tensor = fields.instances or fields.inputs
    if not tensor:
        return 0
    for decode in (_decode_list, _decode_columns):
        try:
            found = decode(tensor)
        except UNREADABLE:
            continue
        return len(found) if isinstance(found, list) else max(map(len, found.values()), default=0)
    return 1
