/* Where a sender meets a receiver: one word says what became of the offer, whoever is stopped or dead.
 *
 *   sender, under W                      receiver, under R                  sender, whose time is up
 *   word = (number, stands)              copy the record out
 *   publish the tail              ==>    stands -> taken, else pass it by   stands -> withdrawn, else it is sent
 *                                        publish the head                   remove it, if R is free this moment
 *
 * Neither waits for the other: a receiver that was stopped with R in its hands does not keep a sender beyond its time.
 * A withdrawn record that nobody has removed counts as an item, so a receiver comes for it, finds out, and removes it.
 *
 * Invariants
 *   an offer is taken or withdrawn, never both; the next one is made only when the last is gone from the queue
 *   `number` is the head's count at which the record is the next one; it never comes again
 * If a process dies
 *   the sender      its offer stands: it was published whole
 *   the receiver, between the word and the head   the next receiver finds it taken and still there, and takes it */
#ifndef MANYCORE_MEET_H
#define MANYCORE_MEET_H

#include "queue.h"

enum { MC_OFFER_STANDS = 1, MC_OFFER_TAKEN, MC_OFFER_WITHDRAWN };

/* Under W, before the tail is published. */
static inline void mc_offer_make(mc_queue *s, uint64_t number) { atomic_store(&s->offer, number << 2 | MC_OFFER_STANDS); }

/* Whether it is so decided, now or before. */
static inline bool mc_offer_decide(mc_queue *s, uint64_t number, uint64_t what) {
    uint64_t found = number << 2 | MC_OFFER_STANDS, wanted = number << 2 | what;
    return atomic_compare_exchange_strong(&s->offer, &found, wanted) || found == wanted;
}

/* Removes a withdrawn record; false where there is none, or somebody else has R. */
static inline bool mc_offer_sweep(mc_queue_handle *q, uint64_t self) {
    mc_queue *s = q->shared;
    mc_queue_place head = mc_queue_look(&s->head), tail;
    if (atomic_load(&s->offer) != (head.count << 2 | MC_OFFER_WITHDRAWN) || !mc_lock_try(&s->readers, self)) return false;
    head = mc_queue_look(&s->head);
    tail = mc_queue_look(&s->tail);
    bool there = head.count < tail.count && atomic_load(&s->offer) == (head.count << 2 | MC_OFFER_WITHDRAWN);
    if (there) {
        mc_queue_cursor cursor = mc_queue_cursor_at(q, tail);
        mc_queue_publish(&s->head, cursor, tail.count);
        mc_queue_give_back(q, head.block, cursor.block);
    }
    mc_lock_release(&s->readers);
    if (there) mc_queue_wake(&s->room, INT32_MAX);
    return there;
}

#endif
