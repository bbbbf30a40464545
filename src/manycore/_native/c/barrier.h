/* A barrier: one word that says everything.
 *
 *   bit 0        broken
 *   bit 1        somebody sleeps
 *   bits 8-31    generation, modulo 2^24; waiters sleep on bits 0-31
 *   bits 32-47   how many have arrived in this generation
 *   bits 48-63   how each of the last 16 generations ended: 0 complete, 1 reset; bit 48 is the last
 *
 *   arrive, not the last   CAS arrived + 1; sleep until the generation has moved or the barrier is broken
 *   arrive, the last       claim `actor`, run the action, CAS (generation + 1, nobody arrived); wake all
 *   time out, abort        CAS broken; wake all
 *   reset                  CAS (generation + 1, nobody arrived, not broken, ended by reset); wake all
 *
 * Nobody has to leave before the next generation fills: who waits for generation g reads how g ended
 * in the word itself, up to 16 generations later.
 *
 * If a process dies
 *   having arrived            it counts; the others complete the generation without noticing
 *   arriving                  it may have arrived or not: the barrier breaks, when the parties are known
 *   running the action        those who wait find the actor dead, and the barrier breaks
 *   not having arrived        the parties are known when all who have arrived were of the last generation
 *                             (or enrolled); a dead one among the others of it means that this generation
 *                             can never be complete, and the barrier breaks. One that exited in order was
 *                             taken out by mc_barrier_withdraw, and breaks nothing.
 *   completing, before the wake    sleepers look every MC_CHECK_MOST_NS
 *
 * Source: sense-reversing barrier with a generation in the place of the sense. */
#ifndef MANYCORE_BARRIER_H
#define MANYCORE_BARRIER_H

#include "fault.h"
#include "owner.h"

#define MC_BARRIER_MAGIC 0x52524142u /* "BARR" */
#define MC_BARRIER_BROKEN 1ull
#define MC_BARRIER_WAITERS 2ull
#define MC_BARRIER_MOST 65534u  /* parties: 16 bits */
#define MC_BARRIER_KNOWN 120u   /* parties that can be known; with more, none are */

typedef struct {
    mc_owner_word who;
    /* bit 0: it is arriving; bit 1: it took a dead one's place in that generation; above: the generation in which
     * it came last, plus 1. Written by itself. */
    _Atomic uint64_t came;
} mc_party;

typedef struct {
    mc_header header;
    _Atomic uint64_t word;
    mc_owner_word actor;            /* the last to arrive, while it runs the action */
    _Atomic uint32_t actor_started; /* generation + 1 whose action the actor began */
    uint32_t parties;               /* creator; constant */
    uint32_t watch;                 /* creator; constant: do deaths of parties break it? */
    uint32_t reserved[7];
    mc_party party[];
} mc_barrier;

_Static_assert(offsetof(mc_barrier, party) == MC_CACHE_LINE, "parties begin on a line");

static inline size_t mc_barrier_size(uint32_t parties) {
    return sizeof(mc_barrier) + (parties <= MC_BARRIER_KNOWN ? parties : 0) * sizeof(mc_party);
}

static inline void mc_barrier_init(mc_barrier *b, uint32_t parties, bool watch) {
    memset(b, 0, mc_barrier_size(parties));
    b->parties = parties;
    b->watch = watch && parties <= MC_BARRIER_KNOWN;
    b->header.version = MC_LAYOUT_VERSION;
    b->header.magic = MC_BARRIER_MAGIC;
}

static inline bool mc_barrier_valid(const mc_barrier *b, size_t size) {
    return b->header.magic == MC_BARRIER_MAGIC && b->header.version == MC_LAYOUT_VERSION && b->parties >= 1 &&
           b->parties <= MC_BARRIER_MOST && mc_barrier_size(b->parties) <= size;
}

#define MC_BARRIER_GEN_MASK 0xffffffu
static inline uint32_t mc_barrier_generation(uint64_t word) { return (uint32_t)(word >> 8) & MC_BARRIER_GEN_MASK; }
static inline uint32_t mc_barrier_arrived(uint64_t word) { return (uint32_t)(word >> 32) & 0xffff; }

static inline uint64_t mc_barrier_next(uint64_t word, bool reset) {
    uint64_t generation = (mc_barrier_generation(word) + 1) & MC_BARRIER_GEN_MASK;
    uint64_t ended = ((word >> 48) << 1 | reset) & 0xffff;
    return ended << 48 | generation << 8;
}

static inline mc_word *mc_barrier_futex(mc_barrier *b) { return (mc_word *)&b->word; }

static inline void mc_barrier_wake(mc_barrier *b, uint64_t before) {
    MC_FAULT("barrier:changed");
    if (before & MC_BARRIER_WAITERS) mc_wake(mc_barrier_futex(b), INT32_MAX);
}

/* Breaks generation `generation`; false when it has ended already. */
static inline bool mc_barrier_break(mc_barrier *b, uint32_t generation) {
    uint64_t seen = atomic_load(&b->word);
    do {
        if (mc_barrier_generation(seen) != generation) return false;
        if (seen & MC_BARRIER_BROKEN) return true;
    } while (!atomic_compare_exchange_weak(&b->word, &seen, (seen | MC_BARRIER_BROKEN) & ~MC_BARRIER_WAITERS));
    mc_barrier_wake(b, seen);
    return true;
}

static inline void mc_barrier_abort(mc_barrier *b) {
    while (!mc_barrier_break(b, mc_barrier_generation(atomic_load(&b->word)))) {
    }
}

static inline void mc_barrier_reset(mc_barrier *b) {
    uint64_t seen = atomic_load(&b->word);
    while (!atomic_compare_exchange_weak(&b->word, &seen, mc_barrier_next(seen, true))) {
    }
    mc_barrier_wake(b, seen);
}

/* ---- who the parties are ---- */

/* Says before its arrival that it is arriving, and after it that it has: a party that dies in between may have
 * arrived or not, and so breaks the barrier. */
static inline void mc_barrier_know_as(mc_barrier *b, uint64_t self, uint64_t came) {
    if (!b->watch) return;
    for (int pass = 0; pass < 3; pass++) {
        for (uint32_t i = 0; i < b->parties; i++) {
            mc_party *party = &b->party[i];
            uint64_t seen = atomic_load(&party->who);
            bool take = pass == 0 ? seen == self : pass == 1 ? seen == 0 : mc_owner_is_dead(seen);
            if (!take || (seen != self && !atomic_compare_exchange_strong(&party->who, &seen, self))) continue;
            uint64_t before = atomic_load(&party->came);
            bool newcomer = pass == 2 || (pass == 0 && before >> 2 == came >> 2 && (before & 2));
            atomic_store(&party->came, came | (newcomer ? 2 : 0));
            return;
        }
    }
}

static inline void mc_barrier_know(mc_barrier *b, uint64_t self, uint32_t generation, bool arriving) {
    mc_barrier_know_as(b, self, ((uint64_t)generation + 1) << 2 | arriving); /* 0 is never */
}

/* What "plus 1" of the generation before is. */
static inline uint32_t mc_barrier_before(uint32_t generation) {
    return generation == 0 ? MC_BARRIER_GEN_MASK + 1 : generation;
}

/* As if it had been here last time. */
static inline void mc_barrier_enroll(mc_barrier *b, uint64_t self) {
    mc_barrier_know_as(b, self, (uint64_t)mc_barrier_before(mc_barrier_generation(atomic_load(&b->word))) << 2);
}

static inline void mc_barrier_withdraw(mc_barrier *b, uint64_t self) {
    if (!b->watch) return;
    for (uint32_t i = 0; i < b->parties; i++) {
        uint64_t seen = self;
        atomic_compare_exchange_strong(&b->party[i].who, &seen, 0);
    }
}

/* Can generation `generation` never be complete? */
static inline bool mc_barrier_is_hopeless(mc_barrier *b, uint32_t generation) {
    if (!b->watch) return false;
    uint64_t word = atomic_load(&b->word); /* before the parties: whoever is counted in it may have no place yet */
    uint32_t now = generation + 1, last = mc_barrier_before(generation), arrived = 0;
    bool missing = false;
    for (uint32_t i = 0; i < b->parties; i++) {
        uint64_t who = atomic_load(&b->party[i].who);
        uint64_t came = atomic_load(&b->party[i].came);
        if (who == 0) return false; /* a place for one that nobody knows yet */
        if (came >> 2 == now && (came & 2)) return false; /* it was not here last time: the set changes */
        if (came >> 2 == now && !(came & 1)) {
            arrived++;
            continue;
        }
        if (came >> 2 != now && came >> 2 != last) return false; /* nor was this one */
        missing = missing || mc_owner_is_dead(who);
    }
    /* Somebody came whom nobody knows, for whom there was no place: the set changes. */
    if (mc_barrier_generation(word) != generation || arrived < mc_barrier_arrived(word)) return false;
    return missing;
}

/* ---- waiting ---- */

typedef struct {
    mc_waiting waiting;
    uint32_t generation;
    uint32_t index; /* how many came before */
    bool arrived;
} mc_barrier_waiter;

typedef enum {
    MC_BARRIER_WAIT,     /* arrived: call mc_barrier_wait */
    MC_BARRIER_ACT,      /* the last, and the actor: run the action, then call mc_barrier_complete */
    MC_BARRIER_COMPLETE, /* the last, and done */
    MC_BARRIER_IS_BROKEN,
    MC_BARRIER_FULL,     /* the actor is at work: call mc_barrier_wait, then arrive again */
} mc_barrier_arrival;

/* A claim of `actor`: takes a dead actor's place unless its action had begun, which breaks the barrier. */
static inline bool mc_barrier_claim(mc_barrier *b, uint64_t self, uint32_t generation) {
    uint64_t seen = 0;
    if (atomic_compare_exchange_strong(&b->actor, &seen, self)) return true;
    if (!mc_owner_is_dead(seen)) return false;
    if (atomic_load(&b->actor_started) == generation + 1) {
        mc_barrier_break(b, generation);
        atomic_compare_exchange_strong(&b->actor, &seen, 0);
        return false;
    }
    return atomic_compare_exchange_strong(&b->actor, &seen, self);
}

static inline mc_barrier_arrival mc_barrier_arrive(mc_barrier *b, uint64_t self, bool has_action,
                                                   mc_barrier_waiter *w) {
    uint64_t seen = atomic_load(&b->word);
    for (;;) {
        if (seen & MC_BARRIER_BROKEN) return MC_BARRIER_IS_BROKEN;
        w->generation = mc_barrier_generation(seen);
        w->index = mc_barrier_arrived(seen);
        w->arrived = false;
        bool last = w->index + 1 >= b->parties;
        if (last && has_action) {
            if (!mc_barrier_claim(b, self, w->generation)) return MC_BARRIER_FULL;
            uint64_t again = atomic_load(&b->word);
            if (((again ^ seen) & ~MC_BARRIER_WAITERS) != 0) {
                atomic_store(&b->actor, 0);
                seen = again;
                continue;
            }
            mc_barrier_know(b, self, w->generation, true);
            atomic_store(&b->actor_started, w->generation + 1);
            MC_FAULT("barrier:acting");
            return MC_BARRIER_ACT;
        }
        mc_barrier_know(b, self, w->generation, true);
        if (last) {
            if (!atomic_compare_exchange_weak(&b->word, &seen, mc_barrier_next(seen, false))) continue;
            mc_barrier_wake(b, seen);
            mc_barrier_know(b, self, w->generation, false);
            return MC_BARRIER_COMPLETE;
        }
        if (!atomic_compare_exchange_weak(&b->word, &seen, seen + (1ull << 32))) continue;
        MC_FAULT("barrier:arrived");
        mc_barrier_know(b, self, w->generation, false);
        w->arrived = true;
        return MC_BARRIER_WAIT;
    }
}

/* The actor's end, after the action: false when the barrier was broken or reset meanwhile. */
static inline bool mc_barrier_complete(mc_barrier *b, uint64_t self, mc_barrier_waiter *w) {
    uint64_t seen = atomic_load(&b->word);
    bool good;
    do {
        good = mc_barrier_generation(seen) == w->generation && !(seen & MC_BARRIER_BROKEN);
    } while (good && !atomic_compare_exchange_weak(&b->word, &seen, mc_barrier_next(seen, false)));
    atomic_store(&b->actor, 0);
    if (good) mc_barrier_wake(b, seen);
    mc_barrier_know(b, self, w->generation, false);
    return good;
}

/* The actor's end, when the action raised. */
static inline void mc_barrier_fail(mc_barrier *b, mc_barrier_waiter *w) {
    mc_barrier_break(b, w->generation);
    atomic_store(&b->actor, 0);
}

/* Has the actor of this generation died while it ran the action? Then its place is free. */
static inline bool mc_barrier_actor_died(mc_barrier *b, uint32_t generation) {
    uint64_t actor = atomic_load(&b->actor);
    if (actor == 0 || atomic_load(&b->actor_started) != generation + 1 || !mc_owner_is_dead(actor)) return false;
    mc_barrier_break(b, generation);
    atomic_compare_exchange_strong(&b->actor, &actor, 0);
    return true;
}

typedef struct {
    mc_barrier *barrier;
    uint32_t generation;
} mc_barrier_context;

static inline bool mc_barrier_has_moved(void *context) {
    mc_barrier_context *c = context;
    uint64_t seen = atomic_load_explicit(&c->barrier->word, memory_order_acquire);
    return (seen & MC_BARRIER_BROKEN) || mc_barrier_generation(seen) != c->generation;
}

static inline mc_outcome mc_barrier_wait(mc_barrier *b, mc_barrier_waiter *waiter, mc_spinner *spinner) {
    mc_waiting *w = &waiter->waiting;
    mc_barrier_context context = {b, waiter->generation};
    for (;;) {
        uint64_t seen = atomic_load(&b->word);
        uint32_t ago = (mc_barrier_generation(seen) - waiter->generation) & MC_BARRIER_GEN_MASK;
        if (ago != 0) return ago <= 16 && (seen >> (47 + ago) & 1) ? MC_BROKEN : MC_TAKEN;
        if (seen & MC_BARRIER_BROKEN) return MC_BROKEN;
        if (!w->spun) {
            w->spun = true;
            if (mc_spin(spinner, mc_barrier_has_moved, &context)) continue;
        }
        int64_t now = mc_waiting_clock(w);
        if (mc_waiting_is_due(w, now)) {
            if (mc_barrier_actor_died(b, waiter->generation) || now >= w->deadline_ns ||
                mc_barrier_is_hopeless(b, waiter->generation)) {
                mc_barrier_break(b, waiter->generation);
                continue;
            }
            return MC_AGAIN;
        }
        if (!(seen & MC_BARRIER_WAITERS)) {
            if (!atomic_compare_exchange_weak(&b->word, &seen, seen | MC_BARRIER_WAITERS)) continue;
            seen |= MC_BARRIER_WAITERS;
        }
        MC_FAULT("barrier:sleeping");
        int error = mc_wait(mc_barrier_futex(b), (uint32_t)seen, mc_waiting_until(w));
        MC_FAULT("barrier:woken");
        if (error == EINTR) return MC_AGAIN;
    }
}

/* Of a process that has seen `pid` die: what those who wait would find out by looking. */
static inline void mc_barrier_bury(mc_barrier *b, uint32_t pid) {
    uint64_t word = atomic_load(&b->word), actor = atomic_load(&b->actor);
    uint32_t generation = mc_barrier_generation(word);
    if ((word & MC_BARRIER_BROKEN) || (mc_barrier_arrived(word) == 0 && actor == 0)) return;
    bool found = mc_owner_pid(actor) == pid;
    for (uint32_t i = 0; b->watch && i < b->parties && !found; i++)
        found = mc_owner_pid(atomic_load(&b->party[i].who)) == pid;
    if (found && (mc_barrier_actor_died(b, generation) || mc_barrier_is_hopeless(b, generation)))
        mc_barrier_break(b, generation);
}

/* Leaves a wait that an exception ends: this one has not arrived after all, if that still matters. */
static inline void mc_barrier_abandon(mc_barrier *b, mc_barrier_waiter *w) {
    uint64_t seen = atomic_load(&b->word);
    if (!w->arrived) return;
    do {
        if (mc_barrier_generation(seen) != w->generation || (seen & MC_BARRIER_BROKEN) || mc_barrier_arrived(seen) == 0)
            return;
    } while (!atomic_compare_exchange_weak(&b->word, &seen, seen - (1ull << 32)));
}

static inline bool mc_barrier_is_broken(mc_barrier *b) { return atomic_load(&b->word) & MC_BARRIER_BROKEN; }

static inline uint32_t mc_barrier_waiting(mc_barrier *b) {
    uint64_t seen = atomic_load(&b->word);
    return seen & MC_BARRIER_BROKEN ? 0 : mc_barrier_arrived(seen);
}

#endif
