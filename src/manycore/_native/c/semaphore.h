/* A semaphore whose permits come back from the dead.
 *
 * The first permits (as many as the initial value, MC_SEM_TOKENS at most) are owner words: 0 is free,
 * anything else names the process that holds it. So a permit is taken and signed in one compare-and-swap,
 * and one that a dead process holds is swapped to whoever waits. Permits beyond those (a release that
 * nobody's acquire came before: the semaphore is used as a signal) are a plain count, `extra`: they are
 * consumed, not held, and do not come back.
 *
 *   acquire   a free token, CAS 0 -> self; else extra - 1; else sleep on the gate
 *   release   a token of this process, CAS -> 0; else anybody's, since a release without an acquire of
 *             one's own gives back what somebody else took; else extra + 1 (bounded: an error)
 *
 * Invariant: free tokens + extra = initial + releases - acquires, where a death counts as the release of
 *   what the dead held; each token word changes only by CAS, so no permit is held twice.
 * If a process dies
 *   having acquired a token      whoever waits finds it and takes it over
 *   having acquired an extra     it was consumed
 *   between a release and the opening of the gate     the sleepers look every MC_CHECK_MOST_NS
 *   woken, before acquiring                           likewise
 * A process that exits in order keeps nothing: mc_sem_forget leaves its tokens taken for good, as the
 * standard semaphore does, where taking a permit and leaving is a way of consuming it.
 *
 * Source: the owner lock of lock.h, one word a permit. */
#ifndef MANYCORE_SEMAPHORE_H
#define MANYCORE_SEMAPHORE_H

#include "gate.h"
#include "owner.h"

#define MC_SEM_MAGIC 0x41414d53u /* "SMAA" */
#define MC_SEM_TOKENS 1000       /* owner words at most: 8 kB, and 1 us to look through */
#define MC_SEM_MOST 2147483647u  /* as SEM_VALUE_MAX */
#define MC_SEM_CONSUMED MC_OWNER_FLAG_A /* a token taken by one that exited in order: no process, never dead */

typedef struct {
    mc_header header;
    mc_gate gate;
    uint32_t tokens;          /* creator; constant */
    uint32_t initial;         /* creator; constant */
    uint32_t bounded;         /* creator; constant */
    _Atomic uint32_t extra;
    uint32_t reserved;
    _Alignas(MC_CACHE_LINE) mc_waiters waiters;
    _Alignas(MC_CACHE_LINE) mc_owner_word token[];
} mc_sem;

static inline uint32_t mc_sem_tokens_for(uint32_t value) { return value < MC_SEM_TOKENS ? value : MC_SEM_TOKENS; }

static inline size_t mc_sem_size(uint32_t value) {
    return sizeof(mc_sem) + mc_sem_tokens_for(value) * sizeof(mc_owner_word);
}

static inline void mc_sem_init(mc_sem *s, uint32_t value, bool bounded) {
    memset(s, 0, mc_sem_size(value));
    s->tokens = mc_sem_tokens_for(value);
    s->initial = value;
    s->bounded = bounded;
    s->extra = value - s->tokens;
    s->header.version = MC_LAYOUT_VERSION;
    s->header.magic = MC_SEM_MAGIC;
}

static inline bool mc_sem_valid(const mc_sem *s, size_t size) {
    return s->header.magic == MC_SEM_MAGIC && s->header.version == MC_LAYOUT_VERSION && s->tokens <= MC_SEM_TOKENS &&
           sizeof(mc_sem) + s->tokens * sizeof(mc_owner_word) <= size;
}

/* `*hint` is where this process last succeeded; private to it. */
static inline bool mc_sem_try(mc_sem *s, uint64_t self, uint32_t *hint) {
    uint32_t n = s->tokens, at = *hint < n ? *hint : 0;
    for (uint32_t i = 0; i < n; i++) {
        if (atomic_load_explicit(&s->token[at], memory_order_relaxed) == 0) {
            uint64_t seen = 0;
            /* seq_cst on both sides: pairs with the gate, and with the release of the permit */
            if (atomic_compare_exchange_strong(&s->token[at], &seen, self)) {
                MC_FAULT("semaphore:claimed");
                *hint = at;
                return true;
            }
        }
        if (++at == n) at = 0;
    }
    uint32_t extra = atomic_load(&s->extra);
    while (extra != 0)
        if (atomic_compare_exchange_weak(&s->extra, &extra, extra - 1)) {
            MC_FAULT("semaphore:consumed");
            return true;
        }
    return false;
}

static inline bool mc_sem_has_permit(mc_sem *s) {
    if (atomic_load(&s->extra) != 0) return true;
    for (uint32_t i = 0; i < s->tokens; i++)
        if (atomic_load(&s->token[i]) == 0) return true;
    return false;
}

static inline uint32_t mc_sem_value(mc_sem *s) {
    uint32_t value = atomic_load(&s->extra);
    for (uint32_t i = 0; i < s->tokens; i++) value += atomic_load(&s->token[i]) == 0;
    return value;
}

/* 0, ERANGE (bounded, and nothing is out) or EOVERFLOW. */
static inline int mc_sem_release(mc_sem *s, uint64_t self, uint32_t *hint) {
    uint32_t n = s->tokens, at = *hint < n ? *hint : 0;
    for (uint32_t i = 0; i < n; i++) {
        uint64_t seen = self;
        if (atomic_load_explicit(&s->token[at], memory_order_relaxed) == self &&
            atomic_compare_exchange_strong(&s->token[at], &seen, 0)) {
            MC_FAULT("semaphore:released");
            *hint = at;
            mc_gate_open(&s->gate, 1);
            return 0;
        }
        if (++at == n) at = 0;
    }
    for (uint32_t i = 0; i < n; i++) {
        uint64_t seen = atomic_load(&s->token[i]);
        while (seen != 0)
            if (atomic_compare_exchange_weak(&s->token[i], &seen, 0)) {
                MC_FAULT("semaphore:released");
                mc_gate_open(&s->gate, 1);
                return 0;
            }
    }
    uint32_t extra = atomic_load(&s->extra);
    do {
        if (s->bounded ? extra >= s->initial - n : extra >= MC_SEM_MOST - n)
            return s->bounded ? ERANGE : EOVERFLOW;
    } while (!atomic_compare_exchange_weak(&s->extra, &extra, extra + 1));
    MC_FAULT("semaphore:released");
    mc_gate_open(&s->gate, 1);
    return 0;
}

/* Frees what dead processes hold, and returns how many permits came back. */
static inline uint32_t mc_sem_repair(mc_sem *s) {
    uint32_t freed = 0;
    uint64_t alive = 0, gone = 0; /* the last verdicts: one process often holds several */
    for (uint32_t i = 0; i < s->tokens; i++) {
        uint64_t seen = atomic_load(&s->token[i]);
        if (seen == 0 || seen == MC_SEM_CONSUMED || seen == alive) continue;
        if (seen != gone && !mc_owner_is_dead(seen)) {
            alive = seen;
            continue;
        }
        gone = seen;
        if (atomic_compare_exchange_strong(&s->token[i], &seen, 0)) freed++;
    }
    MC_FAULT("semaphore:repaired");
    if (freed) mc_gate_open(&s->gate, (int)freed);
    return freed;
}

/* Of a process that has seen `pid` die. */
static inline void mc_sem_bury(mc_sem *s, uint32_t pid) {
    for (uint32_t i = 0; i < s->tokens; i++)
        if (mc_owner_pid(atomic_load_explicit(&s->token[i], memory_order_relaxed)) == pid) {
            mc_sem_repair(s);
            return;
        }
}

/* Of a process that exits in order: what it took stays taken, as with the standard semaphore. */
static inline void mc_sem_forget(mc_sem *s, uint64_t self) {
    for (uint32_t i = 0; i < s->tokens; i++) {
        uint64_t seen = self;
        atomic_compare_exchange_strong(&s->token[i], &seen, MC_SEM_CONSUMED);
    }
}

static inline void mc_sem_speak_for_others(mc_sem *s) {
    mc_gate_leave(&s->gate);
    if (mc_sem_has_permit(s)) mc_gate_open(&s->gate, 1);
}

static inline bool mc_sem_ready(void *context) { return mc_sem_has_permit(context); }

static inline mc_outcome mc_sem_wait(mc_sem *s, uint64_t self, mc_waiting *w, mc_spinner *spinner, uint32_t *hint) {
    for (;;) {
        if (mc_sem_try(s, self, hint)) {
            if (w->slept) mc_sem_speak_for_others(s);
            return MC_TAKEN;
        }
        if (!w->spun) {
            w->spun = true;
            if (mc_spin(spinner, mc_sem_ready, s)) continue;
        }
        int64_t now = mc_waiting_clock(w);
        if (mc_waiting_is_due(w, now)) {
            mc_sem_repair(s);
            if (now >= w->deadline_ns) {
                bool got = mc_sem_try(s, self, hint);
                if (w->slept) mc_sem_speak_for_others(s); /* a wake-up may have been for us */
                return got ? MC_TAKEN : MC_TIMED_OUT;
            }
            if (w->shown < 0) w->shown = mc_waiters_enter(&s->waiters, self);
            return MC_AGAIN;
        }
        uint32_t seen = mc_gate_close(&s->gate);
        if (mc_sem_has_permit(s)) continue; /* bit 0 stays: one spare opening at most */
        MC_FAULT("semaphore:sleeping");
        int error = mc_wait(&s->gate, seen, mc_waiting_until(w));
        MC_FAULT("semaphore:woken");
        w->slept = true;
        if (error == 0) w->spun = false;
        if (error == EINTR) return MC_AGAIN;
    }
}

/* When the caller stops calling mc_sem_wait. */
static inline void mc_sem_left(mc_sem *s, mc_waiting *w, bool gave_up) {
    mc_waiters_leave(&s->waiters, w->shown);
    w->shown = -1;
    if (gave_up && w->slept) mc_sem_speak_for_others(s);
}

#endif
