/* One queue that many read in full: a place of its own for each receiver.
 *
 *      senders (one at a time)                    receivers (one at a time)
 *      lock W                                     lock R
 *      copy the record behind the tail            copy the record at one's own place
 *      publish the tail, unlock, wake all  ==>    publish one's own place
 *                                                 head := the hindmost place; give back the blocks behind it
 *                                                 unlock, wake a sender
 *
 * The chain of blocks, the lock at each end and what publishes are the queue's (queue.h); the table of receivers is
 * the second page of its header. A receiver begins at the tail: it sees what is sent from then on.
 *
 * The queue is full when the tail is `most` records ahead of the head. Then a sender frees the places of the dead,
 * and, as the policy says, waits, moves the hindmost receivers on by a record, or cuts them off.
 *
 * Invariants
 *   head <= the place of each receiver that is neither dead nor cut off <= tail
 *   places, owners and the head are written under R
 * If a process dies
 *   a receiver   its place is freed by a sender that finds the queue full, or by the next receiver that needs it
 *   holding R    its place was published, or was not; the head is moved by the next who holds R
 *   a sender     as in queue.h: its record is there, or is not
 *
 * Source: Disruptor's sequences (Thompson et al., 2011), over blocks, under locks that survive their owners. */
#ifndef MANYCORE_BROADCAST_H
#define MANYCORE_BROADCAST_H

#include "queue.h"

#define MC_RECEIVERS 48 /* at a time */

typedef enum { MC_SLOW_BLOCK, MC_SLOW_DROP, MC_SLOW_CUT } mc_slow;

typedef struct {
    mc_owner_word owner; /* 0: free */
    mc_queue_end place;
    _Atomic uint64_t missed; /* records that it was moved past */
    _Atomic uint32_t cut;    /* 1: it was too slow */
    uint32_t reserved;
} mc_receiver;

typedef struct {
    uint32_t slow; /* mc_slow; written by the creator */
    uint32_t reserved;
    mc_receiver receivers[MC_RECEIVERS];
} mc_broadcast;

_Static_assert(sizeof(mc_broadcast) <= MC_QUEUE_SECOND, "the second page of the header");

static inline mc_broadcast *mc_broadcast_of(mc_queue *s) {
    return (mc_broadcast *)((unsigned char *)s + (MC_QUEUE_HEADER - MC_QUEUE_SECOND));
}

static inline bool mc_receiver_counts(mc_receiver *r) { return atomic_load(&r->owner) != 0 && !atomic_load(&r->cut); }

static inline void mc_receiver_move(mc_receiver *r, mc_queue_place to) {
    mc_queue_cursor cursor = {to.block, to.offset, NULL};
    mc_queue_publish(&r->place, cursor, to.count);
}

/* Under R. The head follows the hindmost; true when it moved. */
static inline bool mc_broadcast_advance(mc_queue_handle *q) {
    mc_queue *s = q->shared;
    mc_broadcast *b = mc_broadcast_of(s);
    mc_queue_place head = mc_queue_look(&s->head), hindmost = mc_queue_look(&s->tail);
    for (int i = 0; i < MC_RECEIVERS; i++) {
        if (!mc_receiver_counts(&b->receivers[i])) continue;
        mc_queue_place place = mc_queue_look(&b->receivers[i].place);
        if (place.count < hindmost.count) hindmost = place;
    }
    if (hindmost.count == head.count) return false;
    mc_queue_cursor cursor = {hindmost.block, hindmost.offset, NULL};
    mc_queue_publish(&s->head, cursor, hindmost.count);
    MC_FAULT("broadcast:head moved");
    mc_queue_give_back(q, head.block, hindmost.block);
    return true;
}

/* Under R. The number of a place that begins at the tail; -1 when there is none. */
static inline int mc_broadcast_join(mc_queue_handle *q, uint64_t self) {
    mc_queue *s = q->shared;
    mc_broadcast *b = mc_broadcast_of(s);
    for (int i = 0; i < MC_RECEIVERS; i++) {
        mc_receiver *r = &b->receivers[i];
        uint64_t owner = atomic_load(&r->owner);
        if (owner != 0 && !mc_owner_is_dead(owner)) continue;
        atomic_store(&r->owner, 0);
        mc_receiver_move(r, mc_queue_look(&s->tail));
        atomic_store(&r->missed, 0);
        atomic_store(&r->cut, 0);
        MC_FAULT("broadcast:place found");
        atomic_store(&r->owner, self);
        return i;
    }
    return -1;
}

/* Under R. */
static inline bool mc_broadcast_leave(mc_queue_handle *q, int index) {
    atomic_store(&mc_broadcast_of(q->shared)->receivers[index].owner, 0);
    return mc_broadcast_advance(q);
}

/* Under R. 0 or errno. */
static inline int mc_broadcast_skip(mc_queue_handle *q, mc_receiver *r, uint64_t pieces_kind) {
    mc_queue_place place = mc_queue_look(&r->place);
    mc_queue_cursor cursor = mc_queue_cursor_at(q, place);
    uint64_t kind, size;
    int error = mc_queue_next_record(q, &cursor, &kind, &size);
    if (!error && kind == pieces_kind) {
        uint64_t pieces = size, piece;
        for (size = 0; pieces > 0 && !error; pieces--, size += piece) error = mc_queue_read(q, &cursor, &piece, sizeof piece);
    }
    if (!error) error = mc_queue_pass(q, &cursor, size);
    if (error) return error;
    mc_queue_publish(&r->place, cursor, place.count + 1);
    atomic_fetch_add(&r->missed, 1);
    return 0;
}

/* Under R, of a sender that has no room: the dead leave, and the slow as the policy says. True when there is room now.
 * `pieces_kind`: the kind of records that are a list of pieces. */
static inline bool mc_broadcast_make_room(mc_queue_handle *q, uint64_t pieces_kind) {
    mc_queue *s = q->shared;
    mc_broadcast *b = mc_broadcast_of(s);
    for (int i = 0; i < MC_RECEIVERS; i++) {
        uint64_t owner = atomic_load(&b->receivers[i].owner);
        if (owner != 0 && mc_owner_is_dead(owner)) atomic_store(&b->receivers[i].owner, 0);
    }
    if (mc_broadcast_advance(q) || mc_queue_has_room(s)) return true;
    if (b->slow == MC_SLOW_BLOCK) return false;
    uint64_t hindmost = mc_queue_look(&s->head).count;
    for (int i = 0; i < MC_RECEIVERS; i++) {
        mc_receiver *r = &b->receivers[i];
        if (!mc_receiver_counts(r) || mc_queue_look(&r->place).count != hindmost) continue;
        if (b->slow == MC_SLOW_CUT || mc_broadcast_skip(q, r, pieces_kind) != 0) atomic_store(&r->cut, 1);
    }
    return mc_broadcast_advance(q);
}

static inline uint32_t mc_broadcast_receivers(mc_queue *s) {
    uint32_t count = 0;
    for (int i = 0; i < MC_RECEIVERS; i++) {
        mc_receiver *r = &mc_broadcast_of(s)->receivers[i];
        if (mc_receiver_counts(r) && !mc_owner_is_dead(atomic_load(&r->owner))) count++;
    }
    return count;
}

#endif
