/* A condition: one slot a waiter, each with a wait word of its own. The condition's lock is the caller's.
 *
 *   slot word    0                   free
 *                owner | WAITING     its waiter looks at it
 *                owner | ASLEEP      its waiter sleeps on it: WAITING and one bit more
 *                owner | SIGNALLED   its waiter is to go
 *
 *   wait     (locked) take a free slot and a ticket; release the lock; look for a while, then swap
 *            WAITING -> ASLEEP and sleep, until SIGNALLED; free the slot; take the lock again
 *   notify   (locked) the n oldest waiting slots become SIGNALLED, with `until` = the next ticket
 *   wake     (the lock released) a system call for each of those that were ASLEEP
 *   timeout  CAS WAITING or ASLEEP -> 0; where that fails the signal has come, and the wait was a success
 *
 * Whoever is woken wants the lock, so the notifier wakes nobody while it holds it. Between the two it keeps
 * the wake-ups that it owes in memory of its own; a slot that was freed and taken again meanwhile gets a
 * wake-up that was not for it, and sleeps on.
 *
 * So exactly n are woken, the oldest first, and nobody who comes later can take a signal that was meant
 * for those before. When all slots are taken, the rest wait in a crowd that every notify wakes as a whole:
 * there, and only there, may a wait return without having been meant.
 *
 * If a process dies
 *   waiting     its slot stays WAITING or SIGNALLED. A signal in a dead slot is passed on: each sleeper
 *               looks every MC_CHECK_MOST_NS, claims the dead slot, signals the oldest waiter whose
 *               ticket is before `until`, and frees the slot. A death between the last two steps can
 *               wake one more; it never loses the signal.
 *   notifying   it holds the lock: the lock's next owner is told. Some of the n have been signalled, and
 *               find that when they next look, every MC_CHECK_MOST_NS.
 *   released, before it woke those whom it signalled     likewise
 *   registering before the slot: nothing. After it: as waiting.
 *
 * Slots are taken and signalled under the lock, except for passing on; they are freed without it.
 *
 * Source: per-waiter wait words after the MCS lock; the epoch bound as in glibc's condition variables. */
#ifndef MANYCORE_CONDITION_H
#define MANYCORE_CONDITION_H

#include "gate.h"
#include "owner.h"

#define MC_COND_MAGIC 0x444e4f43u /* "COND" */
#define MC_COND_WAITING MC_OWNER_FLAG_A
#define MC_COND_ASLEEP (MC_OWNER_FLAG_A | MC_OWNER_FLAG_B)
#define MC_COND_SIGNALLED MC_OWNER_FLAG_B
#define MC_COND_SLOTS 120 /* 16 bytes each: the structure is two kilobytes */
#define MC_COND_CROWD MC_COND_SLOTS

typedef struct {
    mc_owner_word word;
    _Atomic uint32_t ticket; /* its waiter, before WAITING */
    _Atomic uint32_t until;  /* the notifier, before SIGNALLED */
} mc_cond_slot;

typedef struct {
    mc_header header;
    _Atomic uint32_t next_ticket; /* under the lock */
    _Atomic uint32_t used;        /* slots from here on are free; under the lock */
    mc_gate crowd;
    uint32_t reserved[11];
    mc_cond_slot slot[MC_COND_SLOTS];
} mc_cond;

_Static_assert(offsetof(mc_cond, slot) == MC_CACHE_LINE, "slots begin on a line");

static inline void mc_cond_init(mc_cond *c) {
    memset(c, 0, sizeof *c);
    c->header.version = MC_LAYOUT_VERSION;
    c->header.magic = MC_COND_MAGIC;
}

static inline bool mc_cond_valid(const mc_cond *c) {
    return c->header.magic == MC_COND_MAGIC && c->header.version == MC_LAYOUT_VERSION;
}

/* The wake-ups that a notifier owes. Private to it. */
typedef struct {
    uint64_t slot[2]; /* a bit each */
} mc_cond_wakes;

_Static_assert(MC_COND_SLOTS <= 128, "a bit each");

static inline bool mc_cond_is_waiting(uint64_t word) { return (word & MC_COND_WAITING) != 0; }
static inline bool mc_cond_is_signalled(uint64_t word) { return (word & MC_COND_ASLEEP) == MC_COND_SIGNALLED; }

typedef struct {
    mc_waiting waiting;
    uint32_t index; /* of the slot, or MC_COND_CROWD */
    uint32_t ticket;
    uint32_t crowd; /* what the crowd's gate said */
} mc_cond_waiter;

/* Under the lock. */
static inline void mc_cond_enter(mc_cond *c, uint64_t self, mc_cond_waiter *w) {
    w->ticket = atomic_fetch_add(&c->next_ticket, 1);
    w->crowd = 0;
    for (int pass = 0; pass < 2; pass++) {
        for (uint32_t i = 0; i < MC_COND_SLOTS; i++) {
            mc_cond_slot *slot = &c->slot[i];
            uint64_t seen = atomic_load(&slot->word);
            if (seen != 0) {
                /* full: clear out waiters that died before anybody notified them */
                if (pass == 0 || !mc_cond_is_waiting(seen) || !mc_owner_is_dead(seen)) continue;
                if (!atomic_compare_exchange_strong(&slot->word, &seen, 0)) continue;
            }
            atomic_store(&slot->ticket, w->ticket);
            atomic_store(&slot->until, w->ticket);
            if (atomic_load(&c->used) <= i) atomic_store(&c->used, i + 1);
            atomic_store(&slot->word, self | MC_COND_WAITING);
            w->index = i;
            MC_FAULT("condition:registered");
            return;
        }
    }
    w->index = MC_COND_CROWD;
    w->crowd = mc_gate_close(&c->crowd);
}

/* The oldest that waits, with a ticket before `until`; or -1. */
static inline int mc_cond_oldest(mc_cond *c, uint32_t until) {
    int found = -1;
    uint32_t best = 0, used = atomic_load(&c->used);
    for (uint32_t i = 0; i < used; i++) {
        if (!mc_cond_is_waiting(atomic_load(&c->slot[i].word))) continue;
        uint32_t ticket = atomic_load(&c->slot[i].ticket);
        if ((int32_t)(until - ticket) <= 0) continue;
        if (found < 0 || (int32_t)(best - ticket) > 0) found = (int)i, best = ticket;
    }
    return found;
}

/* Signals one of those before `until`; false when there is none. It is woken by mc_cond_wake, or at once
 * where there is no `later`. */
static inline bool mc_cond_signal(mc_cond *c, uint32_t until, mc_cond_wakes *later) {
    for (;;) {
        int i = mc_cond_oldest(c, until);
        if (i < 0) return false;
        mc_cond_slot *slot = &c->slot[i];
        uint64_t seen = atomic_load(&slot->word);
        if (!mc_cond_is_waiting(seen)) continue;
        uint32_t bound = atomic_load(&slot->until); /* two may signal at once: the later bound stands */
        while ((int32_t)(until - bound) > 0 && !atomic_compare_exchange_weak(&slot->until, &bound, until)) {
        }
        if (!atomic_compare_exchange_strong(&slot->word, &seen, (seen & ~MC_OWNER_FLAGS) | MC_COND_SIGNALLED))
            continue;
        MC_FAULT("condition:signalled");
        if ((seen & MC_COND_ASLEEP) == MC_COND_ASLEEP) {
            if (later == NULL) mc_wake(mc_owner_futex(&slot->word), 1);
            else later->slot[i / 64] |= 1ull << (i % 64);
        }
        return true;
    }
}

/* Gives the wake-ups that notifications left to be given. */
static inline void mc_cond_wake(mc_cond *c, mc_cond_wakes *later) {
    for (int half = 0; half < 2; half++)
        while (later->slot[half] != 0) {
            int i = half * 64 + __builtin_ctzll(later->slot[half]);
            later->slot[half] &= later->slot[half] - 1;
            MC_FAULT("condition:waking");
            mc_wake(mc_owner_futex(&c->slot[i].word), 1);
        }
}

/* Under the lock. Returns how many were signalled (the crowd not counted). Call mc_cond_wake without the lock. */
static inline uint32_t mc_cond_notify(mc_cond *c, uint32_t count, mc_cond_wakes *later) {
    uint32_t until = atomic_load(&c->next_ticket), done = 0;
    while (done < count && mc_cond_signal(c, until, later)) done++;
    uint32_t used = atomic_load(&c->used);
    while (used > 0 && atomic_load(&c->slot[used - 1].word) == 0) used--;
    atomic_store(&c->used, used);
    if (done < count) mc_gate_open(&c->crowd, INT32_MAX);
    return done;
}

/* Passes on the signals of the dead, and of one who left with a signal that it did not use. */
static inline void mc_cond_pass_on(mc_cond *c, uint64_t self) {
    uint32_t used = atomic_load(&c->used);
    for (uint32_t i = 0; i < used; i++) {
        mc_cond_slot *slot = &c->slot[i];
        uint64_t seen = atomic_load(&slot->word);
        if (!mc_cond_is_signalled(seen) || !mc_owner_is_dead(seen)) continue;
        if (!atomic_compare_exchange_strong(&slot->word, &seen, self | MC_COND_SIGNALLED)) continue;
        MC_FAULT("condition:claimed a dead signal");
        mc_cond_signal(c, atomic_load(&slot->until), NULL);
        MC_FAULT("condition:passed on");
        atomic_store(&slot->word, 0);
    }
}

/* Of a process that has seen `pid` die. */
static inline void mc_cond_bury(mc_cond *c, uint64_t self, uint32_t pid) {
    for (uint32_t i = 0; i < atomic_load_explicit(&c->used, memory_order_relaxed); i++)
        if (mc_owner_pid(atomic_load_explicit(&c->slot[i].word, memory_order_relaxed)) == pid) {
            mc_cond_pass_on(c, self);
            return;
        }
}

static inline bool mc_cond_has_signal(void *context) {
    mc_cond_slot *slot = context; /* acquire: pairs with the swap in mc_cond_signal */
    return !mc_cond_is_waiting(atomic_load_explicit(&slot->word, memory_order_acquire));
}

/* Takes the waiter out of its slot; false when the signal has come. */
static inline bool mc_cond_leave(mc_cond_slot *slot) {
    uint64_t seen = atomic_load(&slot->word);
    return mc_cond_is_waiting(seen) && atomic_compare_exchange_strong(&slot->word, &seen, 0);
}

/* Without the lock; call again on MC_AGAIN. MC_TAKEN: signalled, and the slot is free again. */
static inline mc_outcome mc_cond_wait(mc_cond *c, uint64_t self, mc_cond_waiter *waiter, mc_spinner *spinner) {
    mc_waiting *w = &waiter->waiting;
    bool crowd = waiter->index == MC_COND_CROWD;
    mc_cond_slot *slot = crowd ? NULL : &c->slot[waiter->index];
    for (;;) {
        if (crowd) {
            if (((atomic_load(&c->crowd) ^ waiter->crowd) & ~1u) != 0) return MC_TAKEN;
        } else {
            bool signalled = mc_cond_has_signal(slot);
            if (!signalled && !w->spun) {
                w->spun = true;
                signalled = mc_spin(spinner, mc_cond_has_signal, slot);
            }
            if (signalled) {
                MC_FAULT("condition:got a signal");
                atomic_store(&slot->word, 0);
                return MC_TAKEN;
            }
        }
        int64_t now = mc_waiting_clock(w);
        if (mc_waiting_is_due(w, now)) {
            mc_cond_pass_on(c, self);
            if (now < w->deadline_ns) return MC_AGAIN;
            if (crowd || mc_cond_leave(slot)) return MC_TIMED_OUT;
            continue; /* signalled just now */
        }
        uint64_t asleep = self | MC_COND_ASLEEP, awake = self | MC_COND_WAITING;
        if (!crowd && !atomic_compare_exchange_strong(&slot->word, &awake, asleep) && awake != asleep) continue;
        MC_FAULT("condition:sleeping");
        int error = crowd ? mc_wait(&c->crowd, waiter->crowd, mc_waiting_until(w))
                          : mc_wait(mc_owner_futex(&slot->word), (uint32_t)asleep, mc_waiting_until(w));
        MC_FAULT("condition:woken");
        w->slept = true;
        if (error == EINTR) return MC_AGAIN;
    }
}

/* Leaves a wait that an exception ends. A signal that came meanwhile goes to the next. */
static inline void mc_cond_abandon(mc_cond *c, mc_cond_waiter *waiter) {
    if (waiter->index == MC_COND_CROWD) return;
    mc_cond_slot *slot = &c->slot[waiter->index];
    if (mc_cond_leave(slot)) return;
    mc_cond_signal(c, atomic_load(&slot->until), NULL);
    atomic_store(&slot->word, 0);
}

static inline uint32_t mc_cond_sleepers(mc_cond *c) {
    uint32_t count = 0;
    for (uint32_t i = 0; i < MC_COND_SLOTS; i++) count += atomic_load(&c->slot[i].word) != 0;
    return count;
}

#endif
