"""One segment on its way to the books: pairs read from the file, batches in flight, what is acknowledged."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import msgspec

from serving.gateway.records import AdmitLine, EndLine, Outcome, ProgressLine, Usage
from serving.gateway.segment import LineHead, Reader, Segment

PAIRS_PER_BATCH = 500
WINDOW = 32
"""Batches in flight per segment; what does not fit waits in the file."""

Price = Callable[[AdmitLine, Usage], float]
"""Actual MU of a request by the profile version of its admit line."""

_LOST: Outcome = "gateway_lost"


class _Batch(msgspec.Struct, kw_only=True, omit_defaults=True):
    """``UsageBatch`` with the lines as they stand in the file."""

    gateway: str
    segment: str
    sequence: int
    watermark: float
    closed: bool = False
    pairs: list[tuple[msgspec.Raw, msgspec.Raw]] = msgspec.field(default_factory=list)


class Flying(msgspec.Struct):
    """A batch made and not acknowledged. ``entry``: its id in the stream; ``sent_at``: monotonic, 0 when unsent."""

    sequence: int
    payload: bytes
    entry: bytes = b""
    sent_at: float = 0.0
    epoch: str = ""
    closed: bool = False


class Shipment:
    """Batches of one segment, in order. Holds at most ``WINDOW`` of them and the admit lines of open requests."""

    def __init__(self, segment: Segment, gateway: str) -> None:
        self.segment = segment
        self.gateway = gateway
        self.flying: deque[Flying] = deque()
        self.acknowledged = 0
        self.sequence = 0
        self.made_at = float("-inf")
        self.is_closing = False
        self._reader = Reader(segment)
        self._admits: dict[str, bytes] = {}
        self._pairs: list[tuple[msgspec.Raw, msgspec.Raw]] = []
        self._last_end_at = 0.0
        self._watermark = 0.0

    @property
    def is_behind(self) -> bool:
        """There is more in the file, or read, that is in no batch."""
        return bool(self._pairs) or not self._reader.is_caught_up

    @property
    def has_pairs(self) -> bool:
        return bool(self._pairs)

    @property
    def is_done(self) -> bool:
        return self.is_closing and not self.flying

    def start_after(self, sequence: int) -> None:
        """Begin anew from the file's start, with the batch numbers after ``sequence``."""
        self.acknowledged = self.sequence = sequence
        self.is_closing = False
        self.flying.clear()
        self._reader = Reader(self.segment)
        self._admits.clear()
        self._pairs.clear()

    def acknowledge(self, sequence: int) -> None:
        """The books hold every batch up to ``sequence``; less than before when they were set back to a backup."""
        if sequence < self.acknowledged:
            self.start_after(sequence)
            return
        self.acknowledged = sequence
        while self.flying and self.flying[0].sequence <= sequence:
            self.flying.popleft()

    def read(self) -> None:
        """Read on until a batch is full. Raises SegmentDamaged, OSError."""
        if len(self._pairs) >= PAIRS_PER_BATCH:
            return
        for head, line in self._reader.lines():
            if head.t == "a":
                self._admits[head.id] = line
            elif head.t == "e":
                admit = self._admits.pop(head.id, None)
                if admit is not None:
                    self._pairs.append((msgspec.Raw(admit), msgspec.Raw(line)))
                    self._last_end_at = max(self._last_end_at, head.at)
                    if len(self._pairs) >= PAIRS_PER_BATCH:
                        return

    def make(self, *, now: float, watermark: float, closed: bool = False) -> None:
        """Make the next batch of what was read; ``watermark`` holds once everything in the file is in a batch."""
        pairs, self._pairs = self._pairs[:PAIRS_PER_BATCH], self._pairs[PAIRS_PER_BATCH:]
        if self.is_behind:
            # End lines are in the order of their writing, which is that of their times but for moments.
            watermark = min(watermark, self._last_end_at - 1.0)
        self._watermark = max(self._watermark, watermark)
        self.sequence += 1
        batch = _Batch(
            gateway=self.gateway,
            segment=self.segment.name,
            sequence=self.sequence,
            watermark=self._watermark,
            closed=closed,
            pairs=pairs,
        )
        self.flying.append(Flying(self.sequence, msgspec.json.encode(batch), closed=closed))
        self.made_at = now
        self.is_closing = closed

    def probe(self) -> bytes:
        """An empty batch that changes nothing: the writer's answer to it is what the books hold of this segment."""
        return msgspec.json.encode(
            _Batch(gateway=self.gateway, segment=self.segment.name, sequence=1, watermark=self._watermark)
        )


def close_open_requests(segment: Segment, *, price: Price) -> int:
    """Write end lines for the requests of a dead gateway that have none; their number.

    Tokens are those of the last progress line, a lower bound. They end when the gateway was last known to live: the
    file's time, which its writer moves with each watermark, so no watermark has passed it. Raises SegmentDamaged,
    OSError.
    """
    died_at = segment.touched_at()
    admits: dict[str, bytes] = {}
    last: dict[str, bytes] = {}
    reader = Reader(segment)
    while not reader.is_caught_up:
        for head, line in reader.lines():
            died_at = max(died_at, head.at)
            _follow(admits, last, head, line)
    for request_id, admit_line in admits.items():
        admit = msgspec.json.decode(admit_line, type=AdmitLine)
        progress = (
            msgspec.json.decode(last[request_id], type=ProgressLine)
            if request_id in last
            else ProgressLine(id=request_id, at=admit.at, replica="", usage=Usage())
        )
        end = EndLine(
            id=request_id,
            at=max(died_at, admit.at),
            outcome=_LOST,
            status=502,
            usage=progress.usage,
            actual_mu=price(admit, progress.usage) if request_id in last else 0.0,
            lower_bound=True,
            replica=progress.replica,
            error="the gateway was lost",
        )
        segment.append(msgspec.json.encode(end) + b"\n")
    return len(admits)


def _follow(admits: dict[str, bytes], last: dict[str, bytes], head: LineHead, line: bytes) -> None:
    if head.t == "a":
        admits[head.id] = line
    elif head.t == "p":
        last[head.id] = line
    else:
        admits.pop(head.id, None)
        last.pop(head.id, None)
