"""Ships closed requests from journal segments to the ``penstock:usage`` stream, and adopts dead gateways' segments.

The file is the buffer: a bounded number of batches is in flight, and a segment is deleted when the books hold all of
it. A batch is sent again only when its entry has left the stream without an acknowledgement.
"""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import suppress
from pathlib import Path

from redis.exceptions import ResponseError

from serving.gateway.journal import Journal
from serving.gateway.segment import SUFFIX, Segment, SegmentDamaged
from serving.gateway.shipment import WINDOW, Flying, Price, Shipment, close_open_requests
from serving.gateway.state import State, StateUnavailable

__all__ = ["Price", "Shipper"]

logger = logging.getLogger(__name__)

STREAM = "penstock:usage"
_PERIOD_S = 0.5
_HEARTBEAT_S = 5.0
_AGAIN_S = 15.0
_ADOPT_EVERY_S = 2.0
_STOP_WITHIN_S = 2.0
_DAMAGED = ".damaged"


def ack_key(segment: str) -> str:
    return f"penstock:usage:ack:{segment}"


class Shipper:
    def __init__(self, state: State, journal: Journal, *, price: Price) -> None:
        self._state = state
        self._journal = journal
        self._price = price
        self._shipments: dict[str, Shipment] = {}
        self._adopted: dict[str, Shipment] = {}
        self._probes: dict[str, tuple[bytes, str]] = {}
        self._tasks: list[asyncio.Task[None]] = []
        journal.is_shipped = True

    async def start(self) -> None:
        """Begin to ship (every 0.5 s) and to look for segments that nobody holds (every 2 s)."""
        loop = asyncio.get_running_loop()
        self._tasks = [loop.create_task(self._ship_on()), loop.create_task(self._adopt_on())]

    async def stop(self) -> None:
        """Ship what is closed, with a final ``closed`` batch, within 2 s; what remains waits in the file."""
        for task in self._tasks:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
        self._tasks = []
        deadline = time.monotonic() + _STOP_WITHIN_S
        while time.monotonic() < deadline:
            await self._ship_all()
            if not any(s.is_behind or s.flying for s in self._shipments.values()):
                break
            await asyncio.sleep(0.02)
        for shipment in (*self._shipments.values(), *self._adopted.values()):
            shipment.segment.release()
        for segment in self._journal.segments:
            segment.release()

    async def _ship_on(self) -> None:
        while True:
            try:
                await self._ship_all()
            except Exception:
                # Whatever it is, the other segments and the next look must not wait for a restart.
                logger.exception("journal: shipping failed; it is tried again")
            await asyncio.sleep(_PERIOD_S)

    async def _ship_all(self) -> None:
        for segment in list(self._journal.segments):
            if segment.name not in self._shipments:
                self._shipments[segment.name] = Shipment(segment, self._journal.gateway_id)
        for shipments in (self._shipments, self._adopted):
            for name, shipment in list(shipments.items()):
                try:
                    await self._ship(shipment)
                except StateUnavailable:
                    return
                except SegmentDamaged as error:
                    self._set_aside(shipments, shipment, error)
                except (OSError, ResponseError) as error:
                    logger.error("journal segment %s cannot be shipped now: %s", name, error)
                if shipment.is_done:
                    await self._finish(shipments, shipment)

    async def _ship(self, shipment: Shipment) -> None:
        """Take acknowledgements, make batches while there is room, send what is not in the stream."""
        if not await self._is_placed(shipment):
            return
        acknowledged = await self._state.call("GET", ack_key(shipment.segment.name))
        if acknowledged is not None:
            shipment.acknowledge(int(acknowledged))
        is_own = shipment.segment.name in self._shipments
        while len(shipment.flying) < WINDOW and not shipment.is_closing:
            # Before reading: whatever ended by then is in the file and comes into this batch or is behind.
            watermark = self._journal.watermark(shipment.segment) if is_own else 0.0
            is_finished = shipment.segment.is_finished
            shipment.read()
            is_due = time.monotonic() - shipment.made_at >= _HEARTBEAT_S
            if shipment.is_behind and not shipment.has_pairs:
                await asyncio.sleep(0)
                continue
            if not (shipment.is_behind or is_finished or is_due):
                break
            if is_own:
                shipment.segment.touch()
            closed = is_finished and not shipment.is_behind
            shipment.make(now=time.monotonic(), watermark=watermark, closed=closed)
        for flying in list(shipment.flying):
            await self._send(flying, shipment.segment.name)

    async def _is_placed(self, shipment: Shipment) -> bool:
        """Whether it is known which batch numbers an adopted segment has left.

        The dead gateway's batches may still be in the stream, and the acknowledgement may be older than the books. So
        an empty batch goes after them; when the writer has taken it out of the stream, the acknowledgement is right.
        """
        name = shipment.segment.name
        probe = self._probes.get(name)
        if probe is None:
            return True
        entry, epoch = probe
        if entry and epoch == self._state.epoch:
            if await self._state.call("XRANGE", STREAM, entry, entry):
                return False
            acknowledged = await self._state.call("GET", ack_key(name))
            if acknowledged is not None:
                shipment.start_after(int(acknowledged))
                del self._probes[name]
                return True
        self._probes[name] = (await self._state.call("XADD", STREAM, "*", "b", shipment.probe()), self._state.epoch)
        return False

    async def _send(self, flying: Flying, segment: str) -> None:
        """Add it to the stream, unless it is there: then the writer has not come to it yet.

        The writer acknowledges before it takes an entry out, so what is gone from the stream and still not
        acknowledged was lost.
        """
        now = time.monotonic()
        if flying.entry:
            is_due = now - flying.sent_at >= _AGAIN_S or flying.epoch != self._state.epoch
            if not is_due:
                return
            flying.sent_at, flying.epoch = now, self._state.epoch
            if await self._state.call("XRANGE", STREAM, flying.entry, flying.entry):
                return
            if int(await self._state.call("GET", ack_key(segment)) or 0) >= flying.sequence:
                return
        flying.entry = await self._state.call("XADD", STREAM, "*", "b", flying.payload)
        flying.sent_at, flying.epoch = now, self._state.epoch

    async def _finish(self, shipments: dict[str, Shipment], shipment: Shipment) -> None:
        segment = shipment.segment
        del shipments[segment.name]
        self._journal.retire(segment)
        with suppress(OSError):
            segment.delete()
        with suppress(StateUnavailable, ResponseError):
            await self._state.call("DEL", ack_key(segment.name))

    def _set_aside(self, shipments: dict[str, Shipment], shipment: Shipment, error: SegmentDamaged) -> None:
        """Keep a segment that cannot be read for a person, out of everybody's way."""
        segment = shipment.segment
        del shipments[segment.name]
        self._journal.retire(segment)
        self._rename_damaged(segment, error)
        if shipments is self._adopted:
            segment.release()

    def _rename_damaged(self, segment: Segment, error: SegmentDamaged) -> None:
        with suppress(OSError):
            segment.path.rename(segment.path.with_name(segment.path.name + _DAMAGED))
        logger.error("journal segment set aside as %s%s: %s", segment.path.name, _DAMAGED, error)

    async def _adopt_on(self) -> None:
        while True:
            try:
                await self._adopt_all()
            except Exception:
                logger.exception("journal: looking for segments of dead gateways failed; it is tried again")
            await asyncio.sleep(_ADOPT_EVERY_S)

    async def _adopt_all(self) -> None:
        held = {segment.path for segment in self._journal.segments}
        held.update(shipment.segment.path for shipment in self._adopted.values())
        for path in sorted(self._journal.directory.glob(f"*{SUFFIX}")):
            if path not in held:
                await self._adopt(path)

    async def _adopt(self, path: Path) -> None:
        """Take a segment that nobody holds, close its open requests and ship it."""
        try:
            segment = Segment.take(path)
            if segment is None:
                return
            try:
                lost = await asyncio.to_thread(close_open_requests, segment, price=self._price)
                segment.sync()
            except SegmentDamaged as error:
                self._rename_damaged(segment, error)
                segment.release()
                return
            except BaseException:
                segment.release()
                raise
        except (OSError, ValueError, LookupError) as error:
            logger.error("journal segment %s cannot be adopted now: %s", path.name, error)
            return
        segment.is_finished = True
        self._adopted[segment.name] = Shipment(segment, segment.name.rpartition(".")[0])
        self._probes[segment.name] = (b"", "")
        logger.warning("journal segment %s adopted: %d open requests closed as gateway_lost", path.name, lost)
