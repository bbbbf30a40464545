/* An event: one wait word.
 *
 *   bit 0       set
 *   bit 1       somebody sleeps, or has armed a bell (bell.h)
 *   bits 2-31   how many times it was set, modulo 2^30
 *
 *   set     CAS -> (count + 1, set, nobody sleeps), then wake all if bit 1 was there
 *   clear   CAS -> set bit off
 *   wait    return when bit 0 is on or the count has moved: a set that was cleared at once still counts
 *
 * If a process dies
 *   waiting                                nothing is left but bit 1: one spare wake-up
 *   setting, between the swap and the wake  the event is set; sleepers look every MC_EVENT_LOOK_NS
 *
 * Source: sequence counter on a futex. */
#ifndef MANYCORE_EVENT_H
#define MANYCORE_EVENT_H

#include "bell.h"
#include "fault.h"
#include "owner.h"

#define MC_EVENT_MAGIC 0x544e5645u /* "EVNT" */
#define MC_EVENT_SET 1u
#define MC_EVENT_WAITERS 2u
#define MC_EVENT_LOOK_NS 250000000 /* ns; only a setter killed between two instructions makes anybody wait so long */

typedef struct {
    mc_header header;
    mc_word word;
    uint32_t reserved;
    _Alignas(MC_CACHE_LINE) mc_waiters waiters;
    mc_bells bells;
} mc_event;

static inline void mc_event_init(mc_event *e) {
    memset(e, 0, sizeof *e);
    e->header.version = MC_LAYOUT_VERSION;
    e->header.magic = MC_EVENT_MAGIC;
}

static inline bool mc_event_valid(const mc_event *e) {
    return e->header.magic == MC_EVENT_MAGIC && e->header.version == MC_LAYOUT_VERSION;
}

/* acquire: pairs with the release in mc_event_set */
static inline bool mc_event_is_set(mc_event *e) {
    return atomic_load_explicit(&e->word, memory_order_acquire) & MC_EVENT_SET;
}

static inline void mc_event_set(mc_event *e) {
    uint32_t seen = atomic_load_explicit(&e->word, memory_order_relaxed), next;
    do {
        if (seen & MC_EVENT_SET) return;
        next = ((seen & ~3u) + 4) | MC_EVENT_SET;
    } while (!atomic_compare_exchange_weak_explicit(&e->word, &seen, next, memory_order_acq_rel, memory_order_relaxed));
    MC_FAULT("event:set");
    if (seen & MC_EVENT_WAITERS) {
        mc_wake(&e->word, INT32_MAX);
        mc_bells_ring(&e->bells);
    }
    MC_FAULT("event:woke");
}

static inline void mc_event_clear(mc_event *e) {
    atomic_fetch_and_explicit(&e->word, ~MC_EVENT_SET, memory_order_acq_rel);
    MC_FAULT("event:cleared");
}

/* The count at which a wait begins; give it to every mc_event_wait of that wait. */
static inline uint32_t mc_event_begin(mc_event *e) {
    return atomic_load_explicit(&e->word, memory_order_acquire) >> 2;
}

typedef struct {
    mc_event *event;
    uint32_t count;
} mc_event_context;

static inline bool mc_event_has_passed(void *context) {
    mc_event_context *c = context;
    uint32_t seen = atomic_load_explicit(&c->event->word, memory_order_acquire);
    return (seen & MC_EVENT_SET) || seen >> 2 != c->count;
}

static inline mc_outcome mc_event_wait(mc_event *e, uint32_t count, uint64_t self, mc_waiting *w,
                                       mc_spinner *spinner) {
    mc_event_context context = {e, count};
    for (;;) {
        if (mc_event_has_passed(&context)) return MC_TAKEN;
        if (!w->spun) {
            w->spun = true;
            if (mc_spin(spinner, mc_event_has_passed, &context)) return MC_TAKEN;
        }
        int64_t now = mc_waiting_clock(w);
        if (now >= w->deadline_ns) return mc_event_has_passed(&context) ? MC_TAKEN : MC_TIMED_OUT;
        uint32_t seen = atomic_load(&e->word);
        if ((seen & MC_EVENT_SET) || seen >> 2 != count) return MC_TAKEN;
        if (!(seen & MC_EVENT_WAITERS) && !atomic_compare_exchange_weak(&e->word, &seen, seen | MC_EVENT_WAITERS))
            continue;
        MC_FAULT("event:sleeping");
        int64_t until = now + (w->slept ? MC_EVENT_LOOK_NS : MC_CHECK_FIRST_NS);
        int error = mc_wait(&e->word, seen | MC_EVENT_WAITERS, until < w->deadline_ns ? until : w->deadline_ns);
        MC_FAULT("event:woken");
        if (error == ETIMEDOUT && w->shown < 0) w->shown = mc_waiters_enter(&e->waiters, self);
        w->slept = true;
        if (error == EINTR || error == ETIMEDOUT) return MC_AGAIN;
    }
}

/* Of a watcher that has a slot: it is rung at the next set. It looks at the event afterwards. */
static inline void mc_event_arm(mc_event *e, int slot) {
    mc_bells_arm(&e->bells, slot);
    atomic_fetch_or(&e->word, MC_EVENT_WAITERS);
}

static inline void mc_event_left(mc_event *e, mc_waiting *w) {
    mc_waiters_leave(&e->waiters, w->shown);
    w->shown = -1;
}

#endif
