"""``POST /invocations``: MLflow's scoring protocol, and the own requests of other servers.

MLflow's clients name no model in the body, so it stands in the path: ``/invocations/<model>``, or
``/serving-endpoints/<model>/invocations`` as MLflow's deployment client for Databricks writes it. Without one in the
path the body's ``model`` says it.
"""

from __future__ import annotations

from typing import Any

import msgspec

from capacity.policy.cost import invocation_units
from serving.gateway import errors
from serving.gateway.dialects import base
from serving.gateway.dialects.base import Answer, Dialect, Parsed
from serving.gateway.records import DeploymentRecord, Usage
from serving.policy.admission import Ask

_FORMS = ("dataframe_split", "dataframe_records", "instances", "inputs")
_ALLOWED = frozenset({*_FORMS, "params"})


class Split(msgspec.Struct):
    data: list[msgspec.Raw]


class Fields(msgspec.Struct):
    """The four forms of MLflow's input. What has another shape is for another server, or for MLflow to refuse."""

    dataframe_split: Split | None = None
    dataframe_records: list[msgspec.Raw] | None = None
    instances: msgspec.Raw = msgspec.Raw()
    inputs: msgspec.Raw = msgspec.Raw()


_decode_fields = msgspec.json.Decoder(Fields).decode
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

    def __init__(self, model: str = "") -> None:
        self.model = model

    def parse(self, body: bytes) -> Parsed:
        members: dict[str, Any] = dict(base.read_members(body))
        model = self.model
        if not model:
            try:
                model = _decode_name(members.pop("model", b"null"))
            except msgspec.DecodeError:
                raise errors.bad_request(
                    "Name the model in the path, POST /invocations/<model>, or as 'model' in the body.",
                    param="model",
                    code="missing_required_parameter",
                ) from None
        rows = _count_rows(body)
        units = invocation_units(rows=rows, body_bytes=len(body))
        return Parsed(
            model=model,
            members=members,
            ask=Ask(prompts=0, choices=0, text_bytes=0, max_output=0, units=units),
        )

    def require(self, parsed: Parsed, deployment: DeploymentRecord) -> None:
        super().require(parsed, deployment)
        if "invocations" not in deployment.speaks:
            return
        given = [form for form in _FORMS if form in parsed.members]
        if len(given) != 1:
            raise errors.bad_request(
                "Send exactly one of 'dataframe_split', 'dataframe_records', 'instances' and 'inputs'; "
                f"there are {len(given)}.",
                param=given[1] if given else "inputs",
                code="invalid_value" if given else "missing_required_parameter",
            )
        parsed.members = {name: value for name, value in parsed.members.items() if name in _ALLOWED}

    def path_of(self, deployment: DeploymentRecord) -> bytes:
        return deployment.invocations_path.encode()

    def engine_body(self, parsed: Parsed, *, priority: int, cache_salt: str) -> bytes:
        return msgspec.json.encode(parsed.members)

    def read_answer(self, parsed: Parsed, body: bytes, request_id: str) -> Answer:
        return Answer(body, Usage(units=dict(parsed.ask.units or {})))


def _count_rows(body: bytes) -> int:
    """Rows to predict; 0 where the body is in none of MLflow's forms."""
    try:
        fields = _decode_fields(body)
    except msgspec.DecodeError:
        return 0
    if fields.dataframe_split is not None:
        return len(fields.dataframe_split.data)
    if fields.dataframe_records is not None:
        return len(fields.dataframe_records)
    tensor = bytes(fields.instances) or bytes(fields.inputs)
    if not tensor:
        return 0
    for decode in (_decode_list, _decode_columns):
        try:
            found = decode(tensor)
        except msgspec.DecodeError:
            continue
        return len(found) if isinstance(found, list) else max(map(len, found.values()), default=0)
    return 1
