# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False
"""Channels and broadcasts over a queue's memory: `c/queue.h` and `c/broadcast.h`; here are waiting and errors.

A channel without a buffer is a queue of at most one record, which is an *offer*: it stands at the head until a
receiver takes it, or until its sender withdraws it. One word says which (`c/meet.h`), so one of them wins, and the
sender knows, also where the receiver was stopped amidst taking it.

    sender                                       receiver
    wait for room, put the offer                 wait for an offer
    wait until the head has passed it    <==     take it
    (else: withdrawn, if it is not taken)

If a process dies:
    a sender, before its offer is published   nothing was sent
    a sender, after that                      the offer stands until somebody receives it
    a receiver that has taken it              it is gone, and counts as received

`manycore.channels` makes of it what people use.
"""

cimport cython
from libc.stdint cimport int64_t, uint32_t, uint64_t

from manycore._native.queue cimport (
    CODED,
    MC_NEVER,
    MC_OFFER_WITHDRAWN,
    RecordQueue,
    deadline_of,
    mc_lock_release,
    mc_now_ns,
    mc_offer_decide,
    mc_offer_make,
    mc_offer_sweep,
    mc_queue,
    mc_queue_announce,
    mc_queue_arm,
    mc_queue_cursor,
    mc_queue_cursor_at,
    mc_queue_end,
    mc_queue_give_back,
    mc_queue_handle,
    mc_queue_has_room,
    mc_queue_is_awaited,
    mc_queue_left,
    mc_queue_load32,
    mc_queue_look,
    mc_queue_place,
    mc_queue_publish,
    mc_queue_wake,
    mc_self,
    mc_waiting,
    mc_waiting_begin,
    system_error,
)

cdef extern from "broadcast.h" nogil:
    ctypedef struct mc_receiver:
        uint64_t owner
        mc_queue_end place
        uint64_t missed
        uint32_t cut
    ctypedef struct mc_broadcast:
        uint32_t slow
        mc_receiver *receivers
    mc_broadcast *mc_broadcast_of(mc_queue *s)
    bint mc_broadcast_advance(mc_queue_handle *q)
    int mc_broadcast_join(mc_queue_handle *q, uint64_t self)
    bint mc_broadcast_leave(mc_queue_handle *q, int index)
    bint mc_broadcast_make_room(mc_queue_handle *q, uint64_t pieces_kind)
    uint32_t mc_broadcast_receivers(mc_queue *s)

cdef int EVERYBODY = 0x7fffffff

# How long an offer stands that was made because a receiver waits, by a sender that will not wait: it has to wake up.
# A receiver that is gone by then costs its sender this much, once.
cdef int64_t GRACE_NS = 10000000


@cython.auto_pickle(False)  # its subclass says how it is sent
@cython.no_gc_clear
cdef class RecordChannel(RecordQueue):
    """A queue whose sender may wait until its record is taken."""

    def _begin_channel(self):
        """Of the creator of a channel without a buffer."""
        self.handle.shared.meets = 1

    @property
    def _meets(self):
        """Whether senders wait for receivers."""
        return self.handle.shared.meets

    def _arm(self, int side, int slot):
        cdef mc_queue *s = self.handle.shared
        mc_queue_arm(&s.room if side else &s.items, slot)
        if s.meets and not side:
            mc_queue_announce(s)

    cdef bint withdraw(self, uint64_t number) except -1:
        """Takes the offer back; False when somebody has it."""
        cdef mc_queue *s = self.handle.shared
        if not mc_offer_decide(s, number, MC_OFFER_WITHDRAWN):
            return False
        mc_offer_sweep(&self.handle, mc_self())
        return True

    def _hand_over(self, list records, object timeout):
        """Offer the record and wait until it is taken; False when it was not, in time."""
        cdef mc_queue *s = self.handle.shared
        cdef int64_t deadline_ns = deadline_of(True, timeout)
        cdef mc_queue_place tail
        cdef mc_waiting waiting
        cdef uint64_t number
        cdef uint32_t seen
        if deadline_ns == 0:
            # Does anybody wait? Then it gets a moment to come.
            if not mc_queue_is_awaited(&s.items) and mc_queue_load32(&s.closed) == 0:
                return False
            deadline_ns = mc_now_ns() + GRACE_NS
            if not mc_queue_has_room(s) and mc_queue_load32(&s.closed) == 0:
                return False  # another's offer stands
        number = self.offer(records, deadline_ns)
        if number == 0:
            return False
        mc_waiting_begin(&waiting, deadline_ns)
        try:
            while True:
                seen = mc_queue_load32(&s.head.version)
                if mc_queue_look(&s.head).count >= number:
                    return True
                if mc_queue_load32(&s.closed):
                    if self.withdraw(number - 1):
                        raise self.shut_down_error
                    return True
                if not self.sleep(&s.head.version, &s.room, seen, &waiting):
                    return not self.withdraw(number - 1)
        except BaseException:
            self.withdraw(number - 1)
            raise
        finally:
            mc_queue_left(&s.room, &waiting)

    cdef uint64_t offer(self, list records, int64_t deadline_ns) except? 0xffffffffffffffff:
        """Puts the record when there is none; the count that the head has once it is taken, 0 when the time is up."""
        cdef mc_queue *s = self.handle.shared
        cdef mc_queue_place place
        cdef mc_queue_cursor cursor
        cdef mc_waiting waiting
        cdef uint32_t seen
        self.require()
        mc_waiting_begin(&waiting, deadline_ns)
        try:
            while True:
                seen = mc_queue_load32(&s.head.version)
                if mc_queue_load32(&s.closed):
                    raise self.shut_down_error
                if not mc_queue_has_room(s):
                    if not mc_offer_sweep(&self.handle, mc_self()):
                        if not self.sleep(&s.head.version, &s.room, seen, &waiting):
                            return 0
                    continue
                if not self.lock(&s.writers, deadline_ns):
                    return 0
                try:
                    if mc_queue_load32(&s.closed):
                        raise self.shut_down_error
                    if not mc_queue_has_room(s):
                        continue
                    place = mc_queue_look(&s.tail)
                    cursor = mc_queue_cursor_at(&self.handle, place)
                    self.write(&cursor, records[0])
                    mc_offer_make(s, place.count)
                    mc_queue_publish(&s.tail, cursor, place.count + 1)
                finally:
                    mc_lock_release(&s.writers)
                mc_queue_wake(&s.items, 1)
                return place.count + 1
        finally:
            mc_queue_left(&s.room, &waiting)


@cython.auto_pickle(False)  # its subclass says how it is sent
@cython.no_gc_clear
cdef class RecordBroadcast(RecordQueue):
    """A queue that each receiver reads in full."""

    def _begin_broadcast(self, int slow):
        """Of the creator; `slow` is an mc_slow."""
        mc_broadcast_of(self.handle.shared).slow = slow

    @property
    def _slow(self):
        """The policy's number."""
        return mc_broadcast_of(self.handle.shared).slow

    def _receivers(self):
        """How many living receivers there are."""
        return mc_broadcast_receivers(self.handle.shared)

    def _send(self, list records, object timeout):
        """Puts the record; False when the time is up."""
        cdef mc_queue *s = self.handle.shared
        cdef int64_t deadline_ns = deadline_of(True, timeout)
        cdef mc_queue_place place
        cdef mc_queue_cursor cursor
        cdef mc_waiting waiting
        cdef uint32_t seen
        cdef bint room
        self.require()
        mc_waiting_begin(&waiting, deadline_ns)
        try:
            while True:
                seen = mc_queue_load32(&s.head.version)
                if mc_queue_load32(&s.closed):
                    raise self.shut_down_error
                if not mc_queue_has_room(s):
                    if not self.lock(&s.readers, deadline_ns):
                        return False
                    room = mc_broadcast_make_room(&self.handle, CODED)
                    mc_lock_release(&s.readers)
                    if not room:
                        if deadline_ns == 0 or not self.sleep(&s.head.version, &s.room, seen, &waiting):
                            return False
                    continue
                if not self.lock(&s.writers, deadline_ns):
                    return False
                try:
                    if mc_queue_load32(&s.closed):
                        raise self.shut_down_error
                    if not mc_queue_has_room(s):
                        continue
                    place = mc_queue_look(&s.tail)
                    cursor = mc_queue_cursor_at(&self.handle, place)
                    self.write(&cursor, records[0])
                    mc_queue_publish(&s.tail, cursor, place.count + 1)
                finally:
                    mc_lock_release(&s.writers)
                mc_queue_wake(&s.items, EVERYBODY)
                return True
        finally:
            if waiting.slept:
                mc_queue_left(&s.room, &waiting)
                if mc_queue_has_room(s):
                    mc_queue_wake(&s.room, 1)

    def _join_receivers(self):
        """A place that begins at the tail; -1 when there is none."""
        cdef mc_queue *s = self.handle.shared
        cdef int index
        self.lock(&s.readers, MC_NEVER)
        index = mc_broadcast_join(&self.handle, mc_self())
        mc_lock_release(&s.readers)
        return index

    def _leave_receivers(self, int index):
        """Give the place back; nothing happens where it is not this process's."""
        cdef mc_queue *s = self.handle.shared
        cdef bint moved = False
        self.lock(&s.readers, MC_NEVER)
        if mc_broadcast_of(s).receivers[index].owner == mc_self():
            moved = mc_broadcast_leave(&self.handle, index)
        mc_lock_release(&s.readers)
        if moved:
            mc_queue_wake(&s.room, EVERYBODY)

    def _state(self, int index):
        """(it is this process's and goes on, how many records it missed, how many it has not read)."""
        cdef mc_queue *s = self.handle.shared
        cdef mc_receiver *receiver = &mc_broadcast_of(s).receivers[index]
        cdef uint64_t place = mc_queue_look(&receiver.place).count
        return receiver.owner == mc_self() and not receiver.cut, receiver.missed, mc_queue_look(&s.tail).count - place

    def _receive(self, int index, object timeout):
        """[the item], None when the time is up, False when the receiver was cut off."""
        cdef mc_queue *s = self.handle.shared
        cdef mc_receiver *receiver = &mc_broadcast_of(s).receivers[index]
        cdef int64_t deadline_ns = deadline_of(True, timeout)
        cdef mc_queue_place place
        cdef mc_queue_cursor cursor
        cdef mc_waiting waiting
        cdef uint32_t seen
        cdef bint moved
        cdef tuple record
        mc_waiting_begin(&waiting, deadline_ns)
        try:
            while True:
                seen = mc_queue_load32(&s.tail.version)
                if receiver.cut:
                    return False
                if mc_queue_look(&receiver.place).count == mc_queue_look(&s.tail).count:
                    if mc_queue_load32(&s.closed):
                        raise self.shut_down_error
                    if deadline_ns == 0 or not self.sleep(&s.tail.version, &s.items, seen, &waiting):
                        return None
                    continue
                if not self.lock(&s.readers, deadline_ns):
                    return None
                try:
                    place = mc_queue_look(&receiver.place)
                    if receiver.cut or place.count == mc_queue_look(&s.tail).count:
                        continue
                    cursor = mc_queue_cursor_at(&self.handle, place)
                    record = self.read(&cursor)
                    mc_queue_publish(&receiver.place, cursor, place.count + 1)
                    moved = mc_broadcast_advance(&self.handle)
                finally:
                    mc_lock_release(&s.readers)
                if moved:
                    mc_queue_wake(&s.room, 1)
                return [self.decode(record)]
        finally:
            mc_queue_left(&s.items, &waiting)
