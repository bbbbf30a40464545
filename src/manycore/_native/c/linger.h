/* A writer of a large record waits a moment for memory that has been used, rather than make the file grow.
 *
 * Memory that was never used has to be cleared by the system and met by each process, at MC_LINGER_NS a byte; memory
 * that readers have given back lies in the caches. So where readers are at work, a writer that is ahead of them waits
 * for one to give back what its record needs: at most as long as fresh memory would cost, so it is never much slower
 * than not waiting. The file grows freely up to MC_LINGER_RECORDS records of this size, so that both sides have
 * something to do: with room for three, each slept once a record, and a queue of 1 MB bytes ran at half its speed.
 *
 * It looks at the memory itself: readers give blocks back after they have published, and a look at the version alone
 * would come between the two, and sleep.
 *
 * If a process dies: the wait is bounded by the clock. A death makes the count of free blocks wrong by a few. */
#ifndef MANYCORE_LINGER_H
#define MANYCORE_LINGER_H

#include "queue.h"

#define MC_LINGER_NS 0.5 /* a byte of fresh memory; measured, 0.4 to 1.5 */
#define MC_LINGER_RECORDS 8
#define MC_LINGER_LEAST 128u /* blocks: 4 MiB; below, the file just grows */
#define MC_LINGER_MOST 1024u /* blocks: 32 MiB; beyond, however large the records are, it does not */

static inline bool mc_queue_may_grow(mc_queue *s, uint64_t size) {
    uint64_t wanted = MC_LINGER_RECORDS * (size / MC_QUEUE_DATA + 1);
    if (wanted < MC_LINGER_LEAST) wanted = MC_LINGER_LEAST;
    if (wanted > MC_LINGER_MOST) wanted = MC_LINGER_MOST;
    return atomic_load_explicit(&s->allocated, memory_order_relaxed) < wanted;
}

typedef struct {
    mc_queue *shared;
    uint64_t size;
} mc_linger_context;

/* Whether a record can be written without asking for memory, about; or nobody reads, so that waiting is in vain. */
static inline bool mc_linger_is_over(void *context) {
    mc_linger_context *c = context;
    mc_queue *s = c->shared;
    int64_t blocks = (int32_t)atomic_load_explicit(&s->free_count, memory_order_relaxed);
    blocks += (int64_t)atomic_load_explicit(&s->allocated, memory_order_relaxed) -
              (int64_t)atomic_load_explicit(&s->fresh, memory_order_relaxed);
    return (blocks > 0 && (uint64_t)blocks * MC_QUEUE_DATA >= c->size) || !mc_queue_has_items(s);
}

/* False where the time was up. */
static inline bool mc_queue_linger(mc_queue_handle *q, uint64_t size) {
    mc_queue *s = q->shared;
    mc_linger_context context = {s, size};
    if (mc_linger_is_over(&context)) return true;
    mc_waiting waiting;
    mc_waiting_begin(&waiting, mc_now_ns() + (int64_t)((double)size * MC_LINGER_NS));
    mc_outcome outcome = MC_TAKEN;
    while (outcome == MC_TAKEN) {
        if (mc_spin(&q->spinner, mc_linger_is_over, &context)) break;
        uint32_t seen = atomic_load_explicit(&s->head.version, memory_order_acquire);
        if (mc_linger_is_over(&context)) break;
        waiting.spun = true; /* not once more, and for another thing */
        outcome = mc_queue_sleep(&s->head.version, &s->room, seen, &waiting, &q->spinner);
    }
    mc_queue_left(&s->room, &waiting);
    return outcome != MC_TIMED_OUT;
}

#endif
