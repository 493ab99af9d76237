"""Turns the engine's event stream into the client's: whole events only, usage read and, unless asked for, hidden.

The gateway always asks the engine for usage on every event, so that a stream that is cut anywhere has exact counts.
Everything else goes through byte for byte. No I/O here: bytes in, bytes out.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Protocol

import msgspec

from serving.gateway.records import Usage
from serving.gateway.usage import UNREADABLE, EngineUsage, decode_answer, decode_usage

MAX_EVENT = 8 * 1024 * 1024
"""Bytes of one event beyond which the engine is considered broken."""

_USAGE = b',"usage":'
_FINISH = b'"finish_reason":"'
_decode_object = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


class RelayError(Exception):
    """The engine's stream cannot be understood."""


class Relay(Protocol):
    """One stream, from bytes of the engine to bytes for the client."""

    events: int
    """How many came."""
    error: str | None
    """The engine's own error message."""
    broken: str | None
    """Why an event could not be read."""
    finish_reason: str

    @property
    def is_exact(self) -> bool:
        """Whether ``usage`` is the engine's own count, or only what could be counted of its events."""
        ...

    @property
    def is_over(self) -> bool:
        """Nothing that follows matters: the end, an error event or one that cannot be understood was seen."""
        ...

    def feed(self, data: bytes) -> bytes:
        """Take what one read brought; return what the client gets, up to the last complete event.

        Raises RelayError for an event that never ends, or that cannot be read and is the first of ``data``.
        """
        ...

    def usage(self) -> Usage | None:
        """Counts so far. None when the engine never told any."""
        ...


class EventRelay(ABC):
    """Cuts a stream into its events. What becomes of each is for subclasses to say."""

    __slots__ = ("_buffer", "_separator", "broken", "error", "events", "finish_reason", "is_done")

    def __init__(self) -> None:
        self._buffer = b""
        self._separator = b""
        self.broken: str | None = None
        self.events = 0
        self.error: str | None = None
        self.finish_reason = ""
        self.is_done = False

    @property
    def is_exact(self) -> bool:
        return True

    @property
    def is_over(self) -> bool:
        return self.is_done or self.error is not None or self.broken is not None

    def feed(self, data: bytes) -> bytes:
        if self.is_over:
            return b""
        buffer = self._buffer + data if self._buffer else data
        separator = self._separator or self._find_separator(buffer)
        end = buffer.rfind(separator) if separator else -1
        if end < 0:
            if len(buffer) > MAX_EVENT:
                raise RelayError(f"an event of the engine exceeds {MAX_EVENT} bytes")
            self._buffer = buffer
            return b""
        end += len(separator)
        self._buffer = buffer[end:]
        if end == len(buffer) and buffer.count(separator) == 1:
            return self._event(buffer[: -len(separator)], separator)
        out: list[bytes] = []
        for event in buffer[: end - len(separator)].split(separator):
            try:
                out.append(self._event(event, separator))
            except RelayError as error:
                if not out:
                    raise
                # What came before it is the client's, and is charged: it goes out first.
                self.broken = str(error)
                break
            if self.is_over:
                break
        return b"".join(out)

    def _find_separator(self, buffer: bytes) -> bytes:
        """The stream's own line ends, from its first one: ``\\n`` or ``\\r\\n``."""
        first = buffer.find(b"\n")
        if first >= 0:
            self._separator = b"\r\n\r\n" if first and buffer[first - 1] == 13 else b"\n\n"
        return self._separator

    @abstractmethod
    def _event(self, event: bytes, separator: bytes) -> bytes:
        """What the client gets of one event, which comes without its ``separator``. Raises RelayError."""


class StreamRelay(EventRelay):
    """One stream. ``choices`` sequences over ``prompts`` prompts; ``show_*``: what the client asked to see.

    Afterwards: ``usage`` the counts so far (None: never seen), ``is_final`` the engine's closing count was seen,
    ``is_done`` ``[DONE]`` came, ``error`` the engine's own error message, ``broken`` why an event could not be read,
    ``finish_reason`` the last one seen.
    """

    __slots__ = (
        "_index_usage",
        "_is_single",
        "_per_prompt",
        "_show_continuous",
        "_show_usage",
        "_usage",
        "is_final",
    )

    def __init__(self, *, show_usage: bool, show_continuous: bool, choices: int = 1, prompts: int = 1) -> None:
        super().__init__()
        self._show_usage = show_usage
        self._show_continuous = show_usage and show_continuous
        self._is_single = choices == 1
        self._per_prompt = max(1, choices // max(1, prompts))
        self._usage: EngineUsage | None = None
        self._index_usage: dict[int, EngineUsage] = {}
        self.is_final = False

    def usage(self) -> Usage | None:
        """Counts so far, over all sequences. None when the engine never told any."""
        if self._usage is not None:
            return self._usage.record()
        if not self._index_usage:
            return None
        # Events of several sequences count each sequence by itself; a prompt counts once.
        total = Usage()
        prompts: dict[int, Usage] = {}
        for index, engine in self._index_usage.items():
            record = engine.record()
            total.output_tokens += record.output_tokens
            prompts[index // self._per_prompt] = record
        for record in prompts.values():
            total.input_tokens += record.input_tokens
            total.cached_tokens += record.cached_tokens
            for name, count in record.units.items():
                total.units[name] = total.units.get(name, 0.0) + count
        return total

    def _event(self, event: bytes, separator: bytes) -> bytes:
        self.events += 1
        at = event.rfind(_USAGE)
        if at > 0 and self._is_single and event.startswith(b'data: {"id"') and event.endswith(b"}"):
            try:
                usage = decode_usage(event[at + len(_USAGE) : -1])
            except UNREADABLE:
                return self._slowly(event, separator)
            return self._counted(event, at, usage, separator)
        if at < 0 and self._is_single and event.startswith(b'data: {"id"') and b'"choices":[{' in event:
            if b'"usage"' in event:
                return self._slowly(event, separator)
            self._note_finish(event)
            return event + separator
        return self._slowly(event, separator)

    def _counted(self, event: bytes, at: int, usage: EngineUsage | None, separator: bytes) -> bytes:
        """An event of a single sequence whose usage stands last, at ``at``: the common case, without a full parse."""
        if b'"choices":[{' not in event:
            return self._slowly(event, separator)
        if usage is not None:
            self._usage = usage
        self._note_finish(event)
        if self._show_continuous:
            return event + separator
        return event[:at] + b"}" + separator

    def _note_finish(self, event: bytes) -> None:
        # A quote inside a JSON string is escaped, so that these bytes are always a member of the event.
        at = event.rfind(_FINISH)
        if at > 0:
            start = at + len(_FINISH)
            end = event.find(b'"', start)
            if end < 0:
                raise RelayError("an event of the engine breaks off in the middle")
            self.finish_reason = event[start:end].decode("utf-8", "replace")

    def _slowly(self, event: bytes, separator: bytes) -> bytes:
        """Everything that is not a plain content event of a single sequence."""
        payload = payload_of(event)
        if payload is None:
            return event + separator
        if payload == b"[DONE]":
            self.is_done = True
            return event + separator
        try:
            members = _decode_object(payload)
            answer = decode_answer(payload)
        except UNREADABLE as error:
            raise RelayError("an event of the engine is not what OpenAI's API sends") from error
        if "choices" not in members and ("error" in members or bytes(members.get("object", b"")) == b'"error"'):
            self.error = error_message(members)
            return b""
        for choice in answer.choices:
            if choice.finish_reason:
                self.finish_reason = choice.finish_reason
        is_last = "choices" in members and not answer.choices and answer.usage is not None
        if answer.usage is not None:
            self._note(answer.usage, [choice.index for choice in answer.choices], is_last)
        if "usage" not in members or (self._show_usage if is_last else self._show_continuous):
            return event + separator
        if is_last:
            return b""
        del members["usage"]
        return b"data: " + msgspec.json.encode(members) + separator

    def _note(self, usage: EngineUsage, indexes: list[int], is_last: bool) -> None:
        if is_last:
            self.is_final = True
        if is_last or self._is_single:
            self._usage = usage
        else:
            for index in indexes:
                self._index_usage[index] = usage


def payload_of(event: bytes) -> bytes | None:
    """The data of an event, or None for a comment or an event without data."""
    lines = [line[5:].strip() for line in event.splitlines() if line.startswith(b"data:")]
    return b"\n".join(lines) if lines else None


def error_message(members: dict[str, msgspec.Raw]) -> str:
    """The message of an engine's error object, in either of the shapes that engines use."""
    try:
        inner = msgspec.json.decode(members["error"]) if "error" in members else None
        if isinstance(inner, dict):
            return str(inner.get("message", ""))[:500]
        if isinstance(inner, str):
            return inner[:500]
        return str(msgspec.json.decode(members["message"]))[:500] if "message" in members else ""
    except UNREADABLE:
        return ""
