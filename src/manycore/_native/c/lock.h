/* A lock whose owner may die.
 *
 *   state    0                      free
 *            TURN [| WAITERS]       free, but only for those who have slept
 *            owner [| flags]        held
 *
 *   acquire  CAS 0 -> self                                     one instruction, no system call
 *            else spin, else set WAITERS and sleep on the low half of the state
 *   release  CAS -> 0 (or TURN), then wake one if WAITERS was set
 *
 * Whoever acquires after having slept leaves WAITERS set, since others may sleep still (mutex 2 of
 * Drepper's paper). A release does not hand the lock over: whoever comes first has it, which spares a
 * switch a hand-over and so makes no convoy. Whoever has waited for MC_LOCK_PATIENCE_NS sets TURN: the
 * next release then leaves the lock to those who sleep, so nobody starves.
 *
 * If a process dies
 *   holding            a waiter finds the owner dead and swaps the word to itself: MC_TAKEN_OVER. Where the
 *                      parent of the dead has the lock too, it marks the word and wakes one: mc_lock_bury
 *   releasing, between the swap and the wake-up       the sleepers look at the word by themselves,
 *   woken, before it took the lock                    every MC_CHECK_MOST_NS at the latest
 *   woken, with TURN set                              likewise: any who has slept may take it
 *   waiting            its record in `waiters` goes stale; nothing else is left
 *
 * The word is all that the algorithm rests on. `tid` and `since_ns` are written by the owner after it
 * has the lock and only tell people who it is; a recursive lock also asks `tid` and `depth`, which only
 * the thread that owns the word may write, and which are cleared before the word is.
 *
 * Source: Drepper, "Futexes are tricky", mutex 2; starvation mode after Go's sync.Mutex. */
#ifndef MANYCORE_LOCK_H
#define MANYCORE_LOCK_H

#include "fault.h"
#include "owner.h"

#define MC_LOCK_MAGIC 0x4b434f4cu /* "LOCK" */
#define MC_LOCK_TURN MC_OWNER_FLAG_A
#define MC_LOCK_WAITERS MC_OWNER_FLAG_B
#define MC_LOCK_NAME 24 /* bytes; what is left of the hot line */
#define MC_LOCK_PATIENCE_NS 1000000 /* ns; less makes more switches, more makes longer starvation */
#define MC_LOCK_FIRST_PAUSE_NS 400  /* ns between the first two looks at a lock that is held */
#define MC_LOCK_MOST_PAUSE_NS 2000  /* ns between later ones: meanwhile the owner's core keeps the line */
#define MC_LOCK_SHORT_SPIN_NS 4000  /* ns of looking with the interpreter held, before it is given up for the wait */

typedef struct {
    mc_header header;
    mc_owner_word state;
    _Atomic uint32_t tid;     /* owner's thread; written by the owner */
    uint32_t depth;           /* of a recursive lock; owner's thread alone */
    _Atomic int64_t since_ns; /* coarse monotonic clock; written by the owner */
    uint32_t kind;            /* 0 lock, 1 recursive, 2 a writer's; written by the creator */
    uint32_t reserved;
    char name[MC_LOCK_NAME];  /* for people; written by the creator, all zero where it has none */
    _Alignas(MC_CACHE_LINE) mc_waiters waiters;
} mc_lock;

_Static_assert(offsetof(mc_lock, state) == 8, "what other processes see");
_Static_assert(sizeof(mc_lock) == 3 * MC_CACHE_LINE, "a hot line, and two for people");

static inline void mc_lock_init(mc_lock *l, uint32_t kind) {
    memset(l, 0, sizeof *l);
    l->kind = kind;
    l->header.version = MC_LAYOUT_VERSION;
    l->header.magic = MC_LOCK_MAGIC;
}

static inline bool mc_lock_valid(const mc_lock *l) {
    return l->header.magic == MC_LOCK_MAGIC && l->header.version == MC_LAYOUT_VERSION;
}

static inline void mc_lock_note(mc_lock *l, uint64_t self) {
#ifdef MC_OWNER_SIMULATED /* the explorer has no people to tell, and so no steps at which to do it */
    (void)l, (void)self;
    return;
#endif
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC_COARSE, &t);
    atomic_store_explicit(&l->since_ns, (int64_t)t.tv_sec * 1000000000 + t.tv_nsec, memory_order_relaxed);
    atomic_store_explicit(&l->tid, mc_thread(self), memory_order_relaxed);
}

/* The whole of an uncontended acquire. */
static inline bool mc_lock_try(mc_lock *l, uint64_t self) {
    uint64_t seen = 0;
    /* acquire: pairs with the release in mc_lock_release */
    if (!atomic_compare_exchange_strong_explicit(&l->state, &seen, self, memory_order_acquire, memory_order_relaxed))
        return false;
    MC_FAULT("lock:claimed");
    mc_lock_note(l, self);
    return true;
}

/* Takes a free lock whoever's turn it is: for those who will not wait. */
static inline bool mc_lock_barge(mc_lock *l, uint64_t self) {
    uint64_t seen = atomic_load_explicit(&l->state, memory_order_relaxed);
    while (mc_owner_pid(seen) == 0) {
        if (atomic_compare_exchange_weak_explicit(&l->state, &seen, self | (seen & MC_LOCK_WAITERS),
                                                  memory_order_acquire, memory_order_relaxed)) {
            MC_FAULT("lock:claimed");
            mc_lock_note(l, self);
            return true;
        }
    }
    return false;
}

/* False when nobody holds it. */
static inline bool mc_lock_release(mc_lock *l) {
    uint64_t seen = atomic_load_explicit(&l->state, memory_order_relaxed);
    do {
        if (mc_owner_pid(seen) == 0) return false;
        /* release: pairs with the acquire of whoever takes it next */
    } while (!atomic_compare_exchange_weak_explicit(&l->state, &seen, seen & MC_LOCK_TURN, memory_order_release,
                                                    memory_order_relaxed));
    MC_FAULT("lock:released");
    if (seen & MC_LOCK_WAITERS) mc_wake(mc_owner_futex(&l->state), 1);
    MC_FAULT("lock:woke");
    return true;
}

/* If the owner is dead, takes its place. */
static inline bool mc_lock_take_over(mc_lock *l, uint64_t self, uint64_t *dead) {
    uint64_t seen = atomic_load_explicit(&l->state, memory_order_relaxed);
    if (mc_owner_pid(seen) == 0 || !mc_owner_is_dead(seen)) return false;
    uint64_t owner = seen & ~MC_OWNER_FLAGS;
    do {
        if ((seen & ~MC_OWNER_FLAGS) != owner) return false; /* somebody released it, or was faster */
    } while (!atomic_compare_exchange_weak_explicit(&l->state, &seen, self | MC_LOCK_WAITERS, memory_order_acquire,
                                                    memory_order_relaxed));
    MC_FAULT("lock:taken over");
    mc_lock_note(l, self);
    l->depth = 0;
    *dead = owner;
    return true;
}

static inline bool mc_lock_is_buried(mc_lock *l) {
    return (atomic_load_explicit(&l->state, memory_order_relaxed) & MC_OWNER_DEAD) != 0;
}

/* Of a process that has seen `pid` die: if that holds the lock, says so in the word, which is what sleepers
 * sleep on, and wakes the one that is to take it over. */
static inline bool mc_lock_bury(mc_lock *l, uint32_t pid) {
    uint64_t seen = atomic_load_explicit(&l->state, memory_order_relaxed);
    if (mc_owner_pid(seen) != pid || (seen & MC_OWNER_DEAD) || !mc_owner_is_dead(seen)) return false;
    uint64_t owner = seen & ~MC_OWNER_FLAGS;
    do {
        if ((seen & ~MC_OWNER_FLAGS) != owner) return false; /* a waiter was faster */
    } while (!atomic_compare_exchange_weak_explicit(&l->state, &seen, seen | MC_OWNER_DEAD, memory_order_relaxed,
                                                    memory_order_relaxed));
    MC_FAULT("lock:buried");
    if (seen & MC_LOCK_WAITERS) mc_wake(mc_owner_futex(&l->state), 1);
    return true;
}

typedef struct {
    mc_lock *lock;
    bool slept;
} mc_lock_ready_context;

static inline bool mc_lock_looks_free(void *context) {
    mc_lock_ready_context *c = context;
    uint64_t seen = atomic_load_explicit(&c->lock->state, memory_order_relaxed);
    return (seen & MC_OWNER_DEAD) || (mc_owner_pid(seen) == 0 && (c->slept || !(seen & MC_LOCK_TURN)));
}

/* A few looks, before it is worth giving up the interpreter, further and further apart. */
static inline bool mc_lock_short_spin(mc_lock *l, uint64_t self) {
    int64_t now = mc_now_ns(), end = now + MC_LOCK_SHORT_SPIN_NS;
    for (int64_t pause = MC_LOCK_FIRST_PAUSE_NS; now < end; pause += pause < MC_LOCK_MOST_PAUSE_NS ? pause : 0) {
        for (int64_t until = now + pause; now < until; now = mc_now_ns()) mc_pause();
        if (atomic_load_explicit(&l->state, memory_order_relaxed) == 0 && mc_lock_try(l, self)) return true;
    }
    return false;
}

/* Waits; call again on MC_AGAIN. The caller calls mc_lock_left when it stops calling. */
static inline mc_outcome mc_lock_wait(mc_lock *l, uint64_t self, mc_waiting *w, mc_spinner *spinner) {
    for (;;) {
        uint64_t seen = atomic_load_explicit(&l->state, memory_order_relaxed);
        if (mc_owner_pid(seen) == 0 && (w->slept || !(seen & MC_LOCK_TURN))) {
            uint64_t mine = self | (seen & MC_LOCK_WAITERS) | (w->slept ? MC_LOCK_WAITERS : 0);
            if (!atomic_compare_exchange_weak_explicit(&l->state, &seen, mine, memory_order_acquire,
                                                       memory_order_relaxed))
                continue;
            MC_FAULT("lock:claimed after a wait");
            mc_lock_note(l, self);
            return MC_TAKEN;
        }
        if ((seen & MC_OWNER_DEAD) && mc_lock_take_over(l, self, &w->dead)) return MC_TAKEN_OVER;
        if (!w->spun) {
            w->spun = true;
            mc_lock_ready_context context = {l, w->slept};
            if (mc_spin_every(spinner, MC_SPIN_PAUSES, mc_lock_looks_free, &context)) continue;
        }
        int64_t now = mc_waiting_clock(w);
        if (mc_waiting_is_due(w, now)) {
            if (mc_lock_take_over(l, self, &w->dead)) return MC_TAKEN_OVER;
            if (now >= w->deadline_ns) return mc_lock_barge(l, self) ? MC_TAKEN : MC_TIMED_OUT;
            if (w->shown < 0) w->shown = mc_waiters_enter(&l->waiters, self);
            w->slept = true; /* whether it slept or the kernel refused: it has waited */
            return MC_AGAIN;
        }
        uint64_t asleep = seen | MC_LOCK_WAITERS;
        if (mc_owner_pid(seen) != 0 && now - w->began_ns > MC_LOCK_PATIENCE_NS) asleep |= MC_LOCK_TURN;
        if (asleep != seen && !atomic_compare_exchange_weak_explicit(&l->state, &seen, asleep, memory_order_relaxed,
                                                                     memory_order_relaxed))
            continue;
        MC_FAULT("lock:sleeping");
        int64_t until = mc_waiting_until(w);
        if (mc_owner_pid(seen) == 0 && until > now + MC_LOCK_PATIENCE_NS) until = now + MC_LOCK_PATIENCE_NS;
        int error = mc_wait(mc_owner_futex(&l->state), (uint32_t)asleep, until);
        MC_FAULT("lock:woken");
        if (error != EAGAIN) {
            w->slept = true;
            w->spun = false;
        }
        if (error == EINTR) return MC_AGAIN;
    }
}

static inline void mc_lock_left(mc_lock *l, mc_waiting *w) {
    mc_waiters_leave(&l->waiters, w->shown);
    w->shown = -1;
}

/* ---- recursive ---- */

static inline bool mc_lock_is_mine(mc_lock *l, uint64_t self) {
    return ((atomic_load_explicit(&l->state, memory_order_relaxed) ^ self) & ~MC_OWNER_FLAGS) == 0 &&
           atomic_load_explicit(&l->tid, memory_order_relaxed) == mc_thread(self);
}

/* Returns false when the caller is not the owner. */
static inline bool mc_rlock_release(mc_lock *l, uint64_t self) {
    if (!mc_lock_is_mine(l, self)) return false;
    if (l->depth > 1) {
        l->depth--;
        return true;
    }
    l->depth = 0;
    atomic_store_explicit(&l->tid, 0, memory_order_relaxed); /* or a thread of this process could still see itself */
    return mc_lock_release(l);
}

#endif
