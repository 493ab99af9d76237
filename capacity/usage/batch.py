"""Reading a usage batch, pair by pair: one that cannot be read does not keep the others out of the books."""

from dataclasses import dataclass

import msgspec

from capacity.usage.lines import AdmitLine, EndLine, UsageBatch

Pair = tuple[AdmitLine, EndLine]


class _LooseBatch(msgspec.Struct, kw_only=True):
    gateway: str
    segment: str
    sequence: int
    watermark: float
    closed: bool = False
    pairs: tuple[msgspec.Raw, ...] = ()


@dataclass(frozen=True, slots=True)
class Poison:
    """A pair that the books cannot take: its JSON, its id where one can be made out, and why."""

    payload: str
    record_id: str
    reason: str


@dataclass(frozen=True, slots=True)
class ReadBatch:
    """A batch as far as it could be read. ``watermark`` is UNIX seconds."""

    gateway: str
    segment: str
    sequence: int
    watermark: float
    closed: bool
    pairs: tuple[Pair, ...]
    poison: tuple[Poison, ...] = ()


class BatchError(ValueError):
    """The batch as a whole is not one: it says neither which segment it is of nor what its pairs are."""


def read_batch(data: bytes | UsageBatch) -> ReadBatch:
    """The batch in ``data``. Raises BatchError when not even its frame can be read."""
    if isinstance(data, UsageBatch):
        return ReadBatch(data.gateway, data.segment, data.sequence, data.watermark, data.closed, data.pairs)
    try:
        frame = msgspec.json.decode(data, type=_LooseBatch)
    except msgspec.DecodeError as error:
        raise BatchError(f"not a usage batch: {error}") from error
    pairs: list[Pair] = []
    poison: list[Poison] = []
    for raw in frame.pairs:
        read = read_pair(bytes(raw))
        if isinstance(read, Poison):
            poison.append(read)
        else:
            pairs.append(read)
    return ReadBatch(
        frame.gateway, frame.segment, frame.sequence, frame.watermark, frame.closed, tuple(pairs), tuple(poison)
    )


def read_pair(data: bytes) -> Pair | Poison:
    """The pair in ``data``, or what is wrong with it."""
    try:
        admit, end = msgspec.json.decode(data, type=Pair)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        return Poison(data.decode(errors="replace"), _guess_id(data), f"cannot be read: {error}")
    if admit.id != end.id:
        return Poison(data.decode(), admit.id[:64], f"the end line is of another request, {end.id[:64]}")
    return admit, end


def poison_of(pair: Pair, reason: str) -> Poison:
    """``pair`` as a poison."""
    return Poison(msgspec.json.encode(pair).decode(), pair[0].id[:64], reason)


def _guess_id(data: bytes) -> str:
    try:
        lines = msgspec.json.decode(data)
        return str(lines[0]["id"])[:64]
    except (msgspec.DecodeError, UnicodeDecodeError, LookupError, TypeError):
        return ""
