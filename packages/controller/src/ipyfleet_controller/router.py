"""The driver: one loop. It receives, feeds the pure cores, performs.

What lives here: `Router`. What must not: decisions about tasks or peers; those are the
scheduler's and the hub's. Payload frames are never looked into and never copied on their way.

One turn of the loop: wait; take in what has arrived; let the scheduler place once; send what had
to wait; write records when nothing has come for a while. Nothing runs by the clock unless somebody
asked to be woken, so an idle controller uses no CPU.

Fast paths, in Python calls of the round trip of one task, of which there are 98, sockets included
(each call less is about 0.3 us less where caches are cold; `benchmarks/controller_round_trip.py`):
who has sent a message is remembered (`_identify`, -22), a lone task is placed and sent when it is
let in (`scheduler.placing`, -40), nothing is placed where nothing waits (-8), a turn looks at the
clock once (-6). What only people or the records want to know is noted after a message was sent on,
and written after a pause: -25 us.
"""

from __future__ import annotations

import heapq
import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any, ClassVar, cast

import msgspec

from ipyfleet_protocol import messages as m
from ipyfleet_protocol.blobs import sweep_blobs, unlink_blob
from ipyfleet_protocol.codec import SliceFrames, decode, encode, split, split_output
from ipyfleet_protocol.columns import Frame
from ipyfleet_protocol.errors import ProtocolError
from ipyfleet_protocol.ids import Channel, PeerId, routing_id, split_routing_id
from ipyfleet_protocol.reliable import SESSION_MESSAGES
from ipyfleet_protocol.table import SENDERS

from .database.detached import DetachedGroup, PayloadGone, take_in_blobs
from .database.payloads import blobs_in
from .desk import MAX_OPEN, Desk
from .doors import Doors
from .hub import events as hev
from .hub import instructions as hins
from .hub.core import HubCore
from .hub.journal import PeerJoined, PeerLeft, Recollection
from .journal import JournalFile
from .lines import ForwardedBlobs, Line
from .outbox import Outbox
from .processes import ProcessWatch
from .scheduler import events as sev
from .scheduler import instructions as sins
from .scheduler.core import SchedulerCore
from .scheduler.endings import own_error
from .scheduler.group import IllegalTransition
from .sessions import Sessions
from .watching import WATCHES_MAX, ResultWatches

log = logging.getLogger("ipyfleet.controller")

MESSAGES_PER_TURN = 512
"""Messages taken in before the scheduler places and timers are looked at."""

FLUSH_AFTER_S = 0.005
"""Records are written when nothing has come for so long, or when there are many of them."""

LAST_WORDS_S = 0.5
"""How long the loop goes on at its end for what peers have had no room for."""

_PLACE = sev.PlaceEvent()


class _Sender(msgspec.Struct):
    """Who has sent a message, as `Router._identify` finds.

    Attributes:
        peer, channel: who, and over what.
        role: None if it has not joined.
        line: None likewise.
    """

    peer: PeerId
    channel: Channel
    role: m.Role | None
    line: Line | None


class Router:
    """Runs the controller.

    Attributes:
        n_received: messages so far.
        n_malformed: those that made no sense and were dropped.
        n_refused: those that their sender may not send, or not yet.
        n_bugs: those that we could not deal with and should have.
    """

    def __init__(
        self,
        doors: Doors,
        hub: HubCore,
        scheduler: SchedulerCore,
        desk: Desk,
        *,
        stop_limit_s: float = 0.0,
    ) -> None:
        """Take the parts; nothing happens before `run`.

        Args:
            doors: where messages come from.
            hub, scheduler, desk: who deals with them.
            stop_limit_s: for how long the process of an engine or agent of this host may be
                stopped before its connections are ended; 0 for as long as it likes.
        """
        self._doors = doors
        self._hub = hub
        self._scheduler = scheduler
        self._desk = desk
        self._watches = ResultWatches(scheduler.state.is_live)
        self._outbox = Outbox(doors)
        self._sessions = Sessions(self._outbox, self._wake_at)
        self._processes = ProcessWatch(stop_limit_s)
        self._line: Line | None = None
        self._senders: dict[bytes, _Sender] = {}
        self._wakes: list[float] = []
        self._received: tuple[Frame, Sequence[Frame]] = (b"", ())
        self._parts: list[SliceFrames] = []
        self._blobs = ForwardedBlobs()
        self._must_place = False
        self._is_over = False
        self.blob_dir: Path | None = None
        self.journal: JournalFile | None = None
        self.n_received = 0
        self.n_malformed = 0
        self.n_refused = 0
        self.n_bugs = 0
        self._started = time.monotonic()
        desk.measure = self.statistics

    # -- the loop -----------------------------------------------------------------------------

    @property
    def outbox_max_bytes(self) -> int:
        """Bytes that may wait for a client before the controller parts with it."""
        return self._outbox.max_bytes

    @outbox_max_bytes.setter
    def outbox_max_bytes(self, n_bytes: int) -> None:
        self._outbox.max_bytes = n_bytes

    def statistics(self) -> dict[str, dict[str, float]]:
        """Return the router's part of the metrics."""
        return {
            "messages": {
                "received": self.n_received,
                "sent": self._outbox.n_sent,
                "malformed": self.n_malformed,
                "refused": self.n_refused + self._doors.n_refused,
                "bugs": self.n_bugs,
            },
            "bytes": {
                "unsent": self._outbox.waiting_bytes,
                "output_dropped": self._outbox.dropped_bytes,
            },
            "process": {
                "up_s": time.monotonic() - self._started,
                "cpu_s": time.process_time(),
                "pid": os.getpid(),
            },
        }

    def restart(self, past: Recollection) -> None:
        """Take the place of a controller that left this; before `run`."""
        for entry in past.peers.values():
            self._processes.add(PeerId(entry.peer), entry.host, entry.pid, entry.pid_start)
            self._watch_process(entry)
        log.warning("taking the place of a controller that died; %d peers", len(past.peers))
        self._feed_hub(hev.RestartEvent(past))
        self._desk.find_detached(self._take_detached)

    def _take_detached(self, found: list[DetachedGroup] | Exception) -> None:
        """Hand on work that goes on without its client."""
        if isinstance(found, Exception):
            log.error("work that clients detached from cannot be read: %s", found)
            found = []
        for client, parts in groupby(found, key=lambda each: each.client):
            groups = list(parts)
            log.info("%d groups of client %s are detached", len(groups), client.hex()[:8])
            event = sev.DetachedEvent(
                PeerId(client), [each.group for each in groups], [each.frames for each in groups]
            )
            self._feed_scheduler(event)
        self._feed_hub(hev.RecordsReadEvent())

    def close_soon(self, reason: str) -> None:
        """Tell all peers that the controller goes, and end the loop."""
        self._feed_hub(hev.CloseEvent(reason))

    def run(self) -> None:
        """Work until told to end. The doors are left open, for the caller to close."""
        try:
            while not self._is_over:
                self.turn(self._patience_s())
            self._say_last_words(time.monotonic() + LAST_WORDS_S)
        finally:
            self._desk.flush()

    def turn(self, timeout_s: float | None) -> None:
        """Run one turn of the loop; wait at most `timeout_s` for something to do."""
        has_come = self._doors.wait(timeout_s)
        now = time.monotonic()
        self._receive(now)
        if self._wakes and self._wakes[0] <= now:
            self._wake(now)
        if self._must_place:
            self._must_place = False
            if self._scheduler.wants_place:
                self._feed_scheduler(_PLACE)
        if self._watches.due:
            self._tell_watchers()
        outbox = self._outbox
        if outbox.unreachable:
            self._note_unreachable()
        if outbox.overflowing:
            self._part_with_overflowing()
        if not has_come or self._desk.is_full:
            self._desk.flush()
            self._scheduler.tidy()
            if self._sessions.has_unrecorded or self._blobs.left:
                taken = self._sessions.take_unrecorded()
                blobs, self._blobs.left = self._blobs.left, []
                self._desk.when_recorded(partial(self._note_recorded, taken, blobs))

    def _patience_s(self) -> float | None:
        """Return how long the loop may sleep; None for "until something comes"."""
        wait_s = FLUSH_AFTER_S if self._desk.noted or self._blobs.left else None
        if self._wakes:
            due_s = self._wakes[0] - time.monotonic()
            if wait_s is None or due_s < wait_s:
                return due_s if due_s > 0 else 0.0
        return wait_s

    def _say_last_words(self, deadline: float) -> None:
        """Send what waits for peers, as far as they take it until then."""
        while self._outbox.is_waiting and time.monotonic() < deadline:
            self._doors.inbox.clear()
            self._doors.wait(max(0.0, deadline - time.monotonic()))

    def _receive(self, now: float) -> None:
        """Take in messages that are there."""
        inbox = self._doors.inbox
        n_left = MESSAGES_PER_TURN
        while inbox and n_left:
            n_left -= 1
            parts = inbox.popleft()
            if len(parts) == 1:
                self._outbox.note_ended(cast("bytes", parts[0]))
                self._note_unreachable()
                continue
            self.n_received += 1
            try:
                self._dispatch(parts, now)
            except ProtocolError as error:
                self.n_malformed += 1
                log.debug("dropped a malformed message: %s", error)
            except IllegalTransition:
                self.n_bugs += 1
                log.exception("a bug in the scheduler; the event that led to it is dropped")
            except Exception:
                # One message must not end everybody's work, whatever is wrong with us.
                self.n_bugs += 1
                log.exception("a bug; the message that led to it is dropped")

    def _wake(self, now: float) -> None:
        while self._wakes and self._wakes[0] <= now:
            heapq.heappop(self._wakes)
        self._sessions.sweep(now)
        self._feed_hub(hev.TickEvent())
        self._feed_scheduler(sev.TickEvent())
        self._must_place = True
        look_at = self._processes.next_look_at
        if look_at is not None and look_at <= now:
            self._end_stopped(now)

    # -- who is still there -------------------------------------------------------------------

    def _watch_process(self, entry: PeerJoined) -> None:
        """Have it noticed if the process of an engine or agent is stopped; clients may be."""
        if entry.role == "client":
            return
        before = self._processes.next_look_at
        self._processes.watch(PeerId(entry.peer), time.monotonic())
        if before is None and self._processes.next_look_at is not None:
            self._wake_at(self._processes.next_look_at)

    def _end_stopped(self, now: float) -> None:
        for peer in self._processes.find_stopped(now):
            log.warning("the process of %s has been stopped for too long", peer.hex()[:8])
            for channel in Channel:
                address = self._outbox.address(routing_id(peer, channel))
                if address is not None:
                    self._doors.disconnect(address)
        if self._processes.next_look_at is not None:
            self._wake_at(self._processes.next_look_at)

    def _note_unreachable(self) -> None:
        while self._outbox.unreachable:
            name = split_routing_id(self._outbox.unreachable.pop())
            if name is not None:
                self._feed_hub(hev.UnreachableEvent(*name))

    def _part_with_overflowing(self) -> None:
        """Forget clients that do not read what they asked for; the database keeps it."""
        while self._outbox.overflowing:
            name = split_routing_id(self._outbox.overflowing.pop())
            assert name is not None, "only peers of ours are sent something"
            peer, channel = name
            reason = f"over {self._outbox.max_bytes >> 20} MiB waited for the peer to read them"
            log.warning("parted with %s: %s", peer.hex()[:8], reason)
            self._feed_hub(hev.OverflowEvent(peer, reason))
            # It reads this after what its pipe took before; it must not wait for the rest.
            self._outbox.post(peer, channel, encode(m.Closing(reason)))

    # -- in -----------------------------------------------------------------------------------

    def _dispatch(self, parts: list[Frame], now: float) -> None:
        address: Any = parts[0]
        sender = self._senders.get(address)
        if sender is None:
            sender = self._identify(parts)
            if sender is None:
                return
        line = self._line = sender.line
        try:
            message = decode(parts[1])
        except ProtocolError:
            # Whoever sent it has counted it.
            if line is not None:
                self._sessions.note(line, parts, now)
            raise
        kind = type(message)
        if line is not None and kind not in SESSION_MESSAGES:
            self._sessions.note(line, parts, now)
        role = sender.role
        if role is None:
            if kind not in (m.Hello, m.Attach):
                reason = f"say Hello first; {kind.__name__} came from a peer that has not joined"
                self.n_refused += 1
                self._perform_hub(self._hub.refuse(sender.peer, sender.channel, reason))
                return
        elif role not in SENDERS[kind]:
            refused = m.Refused(f"{kind.__name__} is not a message for an {role} to send")
            self.n_refused += 1
            self._outbox.post(sender.peer, sender.channel, encode(refused), if_room=True)
            return
        payload = parts[2:]
        self._received = (parts[1], payload)
        take = self._TAKERS.get(kind)
        if take is not None:
            take(self, sender.peer, message, payload)
        else:
            self._feed_hub(hev.MessageEvent(sender.peer, sender.channel, message))

    def _identify(self, parts: list[Frame]) -> _Sender | None:
        """Find out who has sent a message; None if that was turned away.

        Fast path: what was found is used again for further messages from the same socket, until
        anything happens in the hub: 22 of the 178 Python calls of a lone task's round trip.
        """
        address = cast("bytes", parts[0])
        name = split_routing_id(address)
        if name is None:
            raise ProtocolError("no peer of ours")
        peer, channel = name
        identity = routing_id(peer, channel)
        role = self._hub.role_of(peer, channel)
        # Before anything is counted: it may have taken the name of a peer that is here.
        known = self._outbox.address(identity)
        if known != address:
            if known is not None and role is not None and self._outbox.line(identity) is not None:
                self.n_refused += 1
                refused = m.Refused("a peer with this id is here, and it is not you")
                self._outbox.turn_away(address, encode(refused))
                return None
            self._outbox.note_address(identity, address)
        # Until it has said Hello, nobody counts what a peer sends.
        line = self._outbox.line(identity) if role else None
        sender = _Sender(peer, channel, role, line)
        if role is not None:
            self._senders[address] = sender
        return sender

    def _take_submit(self, peer: PeerId, message: m.Submit, frames: Sequence[Frame]) -> None:
        self._feed_scheduler(sev.SubmitEvent(peer, message.groups, split(message, frames)))
        self._must_place = True

    def _take_cancel(self, peer: PeerId, message: m.Cancel, frames: Sequence[Frame]) -> None:
        self._feed_scheduler(
            sev.CancelEvent(peer, message.ranges, message.interrupt, message.force, message.grace_s)
        )

    def _take_results(self, peer: PeerId, message: m.Results, frames: Sequence[Frame]) -> None:
        self._parts = split(message, frames)  # a client must be able to rely on what is forwarded
        engine_id = self._hub.registry.peers[peer].engine_id
        if message.engine != engine_id:
            raise ProtocolError(f"engine {engine_id} calls itself {message.engine}")
        self._feed_scheduler(sev.ResultsEvent(engine_id, message, frames))
        self._must_place = True
        if message.number:
            self._sessions.note_forwarded(PeerId(message.client), peer, message.number)

    def _take_recalled(self, peer: PeerId, message: m.Recalled, frames: Sequence[Frame]) -> None:
        engine_id = self._hub.registry.peers[peer].engine_id
        self._feed_scheduler(sev.RecalledEvent(engine_id, message.first, message.last))
        self._must_place = True

    def note_ack(self, peer: PeerId, message: m.Ack, frames: Sequence[Frame]) -> None:
        """Let go of what a peer has, and tell engines whose results it has."""
        if self._line is not None:
            self._sessions.acknowledge(self._line, message.received)
        if peer in self._hub.resubmitting:
            self._feed_hub(hev.ResubmittedEvent(peer))
            self._must_place = True

    def forward_output(self, peer: PeerId, message: m.Output, frames: Sequence[Frame]) -> None:
        """Send an engine's output to the client whose task wrote it, as received."""
        split_output(message, frames)
        self._desk.note_output(message, frames, time.time())
        client = PeerId(message.client)
        if client in self._hub.registry.peers:
            self._outbox.send_output(client, message, self._received[0], frames)

    _TAKERS: ClassVar[
        dict[type[m.Message], Callable[[Any, PeerId, Any, Sequence[Frame]], None]]
    ] = {
        m.Submit: _take_submit,
        m.Cancel: _take_cancel,
        m.Results: _take_results,
        m.Recalled: _take_recalled,
        m.Ack: note_ack,
        m.Output: forward_output,
    }

    # -- out ----------------------------------------------------------------------------------

    def _feed_hub(self, event: hev.HubEvent) -> None:
        self._senders.clear()
        self._perform_hub(self._hub.handle(event, time.monotonic()))

    def _perform_hub(self, instructions: list[hins.HubInstruction]) -> None:
        for instruction in instructions:
            self._PERFORM[type(instruction)](self, instruction)

    def _feed_scheduler(self, event: sev.SchedulerEvent) -> None:
        for instruction in self._scheduler.handle(event, time.monotonic()):
            self._PERFORM[type(instruction)](self, instruction)

    def _do_send(self, what: hins.Send) -> None:
        if isinstance(what.message, m.Refused):
            log.info("refused %s: %s", what.peer.hex()[:8], what.message.reason)
        elif isinstance(what.message, m.Welcome):
            self._log_welcome(what.peer, what.message)
        header = encode(what.message)
        if type(what.message) in SESSION_MESSAGES:
            # A stranger that asks for refusals and does not read them must not fill the memory.
            is_refusal = isinstance(what.message, m.Refused)
            self._outbox.post(what.peer, what.channel, header, if_room=is_refusal)
        else:
            self._outbox.send(what.peer, what.channel, header)

    def _do_open(self, what: hins.OpenLines) -> None:
        self._outbox.open(what.peer, what.channels, broken=what.broken)

    def _do_resume(self, what: hins.ResumeLine) -> None:
        line = self._outbox.line(routing_id(what.peer, what.channel))
        assert line is not None, "only a peer that has joined can go on"
        what.answer.received = line.received.count
        try:
            if not what.is_known and line.received.count:
                raise ProtocolError("it has been here already, and does not know of it")
            self._outbox.resume(line, what.received, encode(what.answer))
            line.received.told()
        except ProtocolError as error:
            refused = m.Refused(f"a peer with this id has joined already: {error}")
            self._outbox.post(what.peer, what.channel, encode(refused))

    def _do_check_process(self, what: hins.CheckProcess) -> None:
        if self._processes.is_gone(what.peer):
            self._feed_hub(hev.ProcessGoneEvent(what.peer))

    def _do_remember(self, what: hins.Remember) -> None:
        entry = what.entry
        if isinstance(entry, PeerJoined):
            entry.pid_start = self._processes.add(PeerId(entry.peer), entry.host, entry.pid)
            self._watch_process(entry)
        elif isinstance(entry, PeerLeft):
            self._processes.forget(PeerId(entry.peer))
        if self.journal is not None:
            try:
                self.journal.append(entry)
            except OSError as error:
                log.error("the journal cannot be written, a restart will not know all: %s", error)
                self.journal = None

    def _log_welcome(self, peer: PeerId, welcome: m.Welcome) -> None:
        entry = self._hub.registry.peers[peer]
        name = f"engine {welcome.engine_id}" if entry.role == "engine" else f"a {entry.role}"
        log.info("%s joined: %s, pid %d on %s", name, peer.hex()[:8], entry.pid, entry.hostname)
        for warning in welcome.warnings:
            log.warning("%s (%s)", warning, peer.hex()[:8])

    def _do_forward(self, what: hins.ForwardToClient) -> None:
        self._outbox.send(what.client, Channel.CLIENT, *self._received)

    def _do_forward_to_engine(self, what: hins.ForwardToEngine) -> None:
        header = encode(what.message)
        self._outbox.send(what.engine, Channel.CONTROL, header, self._received[1])

    def _do_tell_scheduler(self, what: hins.TellScheduler) -> None:
        event = what.event
        if isinstance(event, sev.EngineLostEvent):
            # An engine that was told to stop is no news for the log of every cluster.
            level = logging.INFO if event.reason == "exit code 0" else logging.WARNING
            log.log(level, "engine %d is lost: %s", event.engine_id, event.reason)
        self._feed_scheduler(event)
        self._must_place = True

    def _do_answer(self, what: hins.AnswerQuestion) -> None:
        client = what.client
        send = partial(self._send_reply, client)
        if isinstance(what.question, m.AwaitResults):
            if not self._watches.add(client, what.request, what.question.msg_ids):
                reason = f"one client can wait for {WATCHES_MAX} tasks at a time; ask for fewer"
                send(m.Reply(what.request, error=own_error("KernelError", reason)), ())
                return
            what.question = m.FetchResults(what.question.msg_ids)
        if self._desk.has_room_for(client):
            self._desk.answer(what.request, what.question, send, client)
        else:
            error = own_error("KernelError", f"over {MAX_OPEN} questions are unanswered; wait")
            send(m.Reply(what.request, error=error), ())

    def _send_reply(self, client: PeerId, reply: m.Reply, frames: Sequence[Frame]) -> None:
        if client in self._hub.registry.peers:
            self._outbox.send(client, Channel.CLIENT, encode(reply), frames)

    def _tell_watchers(self) -> None:
        due, self._watches.due = self._watches.due, {}
        for (client, request), msg_ids in due.items():
            if client in self._hub.registry.peers:
                send = partial(self._send_reply, client)
                self._desk.answer(request, m.FetchResults(msg_ids), send)

    def _do_forget(self, what: hins.ForgetPeer) -> None:
        self._blobs.note_gone(what.peer, self._outbox.line(routing_id(what.peer, Channel.CLIENT)))
        self._outbox.forget(what.peer)
        self._sessions.note_client_gone(what.peer)
        self._watches.forget(what.peer)

    def _note_recorded(
        self, numbers: Mapping[tuple[PeerId, PeerId], int], blobs: list[m.BlobHandle]
    ) -> None:
        """Let go of what only the records were to have, and do."""
        self._sessions.note_recorded(numbers)
        for blob in blobs:
            if self.blob_dir is not None:
                with suppress(ProtocolError):
                    unlink_blob(self.blob_dir, blob)

    def _do_sweep(self, what: hins.SweepBlobs) -> None:
        if self.blob_dir is not None:
            try:
                # Its tasks go on without it.
                take_in_blobs(self._scheduler.state, what.peer, self.blob_dir)
            except PayloadGone as error:
                log.warning("of a client that is gone: %s", error)
            sweep_blobs(self.blob_dir, what.peer)

    def _do_exit(self, what: hins.Exit) -> None:
        log.info("closing: %s", what.reason)
        self._is_over = True

    def _do_wake(self, what: hins.WakeAt | sins.WakeAt) -> None:
        self._wake_at(what.at)

    def _wake_at(self, at: float) -> None:
        if not self._wakes or at != self._wakes[0]:
            heapq.heappush(self._wakes, at)

    def _do_send_tasks(self, what: sins.SendTasks) -> None:
        self._outbox.send(what.peer, Channel.TASK, encode(m.RunTasks(what.slices)), what.frames)

    def _do_send_recall(self, what: sins.SendRecall) -> None:
        self._outbox.send(what.peer, Channel.CONTROL, encode(m.Recall(what.first, what.last)))

    def _do_send_drop(self, what: sins.SendDrop) -> None:
        message = m.DropTasks(what.client, what.ranges, what.interrupt)
        self._outbox.send(what.peer, Channel.CONTROL, encode(message))

    def _do_kill_running(self, what: sins.KillRunning) -> None:
        self._perform_hub(self._hub.kill_running(what.engine_id, what.ranges))

    def _do_deliver(self, what: sins.DeliverResults) -> None:
        message = what.message
        client = PeerId(message.client)
        parts = self._parts if what.untouched else split(message, what.frames)
        now, has_blobs = time.time(), False
        for piece in message.slices:
            has_blobs = has_blobs or bool(piece.columns.blobs)
        if has_blobs:  # before the client hears of them: it removes the blobs
            self._desk.note_results(message, parts, now)
        if client in self._hub.registry.peers:
            header = self._received[0] if what.untouched else encode(message)
            self._outbox.send(client, Channel.CLIENT, header, what.frames)
        if has_blobs:
            line = self._outbox.line(routing_id(client, Channel.CLIENT))
            for piece, part in zip(message.slices, parts, strict=True):
                self._blobs.note(client, line, blobs_in(piece.columns, part.payload))
        else:
            self._desk.note_results(message, parts, now)
        if self._watches.watched:
            self._watches.note(client, message.slices)

    def _do_record_group(self, what: sins.RecordGroup) -> None:
        self._desk.note_group(what.group, time.time())

    def _do_find_ended(self, what: sins.FindEnded) -> None:
        def take(found: list[sins.EndedTask]) -> None:
            self._feed_scheduler(sev.EndedFoundEvent(what.number, found))
            self._must_place = True

        self._desk.find_ended(what.tasks, take)

    def _do_refuse(self, what: sins.Refuse) -> None:
        self._outbox.post(what.client, Channel.CLIENT, encode(m.Refused(what.reason)))

    _PERFORM: ClassVar[dict[type, Callable[[Any, Any], None]]] = {
        hins.Send: _do_send,
        hins.OpenLines: _do_open,
        hins.ResumeLine: _do_resume,
        hins.CheckProcess: _do_check_process,
        hins.Remember: _do_remember,
        hins.ForwardToClient: _do_forward,
        hins.ForwardToEngine: _do_forward_to_engine,
        hins.TellScheduler: _do_tell_scheduler,
        hins.AnswerQuestion: _do_answer,
        hins.ForgetPeer: _do_forget,
        hins.SweepBlobs: _do_sweep,
        hins.Exit: _do_exit,
        hins.WakeAt: _do_wake,
        sins.SendTasks: _do_send_tasks,
        sins.SendRecall: _do_send_recall,
        sins.SendDrop: _do_send_drop,
        sins.KillRunning: _do_kill_running,
        sins.DeliverResults: _do_deliver,
        sins.RecordGroup: _do_record_group,
        sins.FindEnded: _do_find_ended,
        sins.Refuse: _do_refuse,
        sins.WakeAt: _do_wake,
    }
