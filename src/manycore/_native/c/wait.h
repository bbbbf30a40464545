/* Wait words: a 32-bit word in shared memory on which processes sleep and are woken.
 *
 *   waiter                                   waker
 *   v = load(word)                           change what the waiter waits for
 *   check the condition, leave if it holds   change the word (seq_cst)
 *   mc_wait(word, v, deadline)               mc_wake(word, n)
 *
 * The kernel compares the word with v under its own lock, so a change between the waiter's check and
 * its sleep is never missed. Nobody acknowledges anything: a waiter that dies costs at most a spare
 * wake-up. Deadlines are absolute and on CLOCK_MONOTONIC, so a jump of the wall clock changes nothing.
 *
 * Spinning. A hand-over between two awake cores costs about 0.1 us, between two sleeping ones 20 to
 * 60 us, so a waiter first spins for a bounded time. `mc_spin` adapts: a spin that paid off earns
 * the next a full budget, one that did not halves it, and a budget of nothing is tried again once in
 * MC_SPIN_PROBE waits; a sleep that was shorter than a budget restores it. A gap between two looks at the clock means that the kernel took the core away:
 * then no core is free, and the spin ends at once.
 *
 * Source: futex(2); the adaptation follows Karlin et al., "Empirical studies of competitive spinning". */
#ifndef MANYCORE_WAIT_H
#define MANYCORE_WAIT_H

#include "layout.h"

#include <errno.h>
#include <linux/futex.h>
#include <sched.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define MC_NEVER INT64_MAX          /* a deadline that never comes */
#define MC_SPIN_BUDGET_NS 50000     /* ns; about one sleep-and-wake: spinning longer cannot win */
#define MC_SPIN_GAP_NS 15000        /* ns between two looks: longer means that the core was taken away */
#define MC_SPIN_PROBE 32            /* waits after which an abandoned spin is tried again */

typedef _Atomic uint32_t mc_word;

static inline int64_t mc_now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static inline void mc_pause(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ __volatile__("yield");
#endif
}

/* Sleep while *word == expected, until woken or until `deadline_ns`. Returns 0, EAGAIN (the word had
 * changed), ETIMEDOUT or EINTR. */
static inline int mc_wait(mc_word *word, uint32_t expected, int64_t deadline_ns) {
    struct timespec t, *limit = NULL;
    if (deadline_ns != MC_NEVER) {
        if (deadline_ns < 0) deadline_ns = 0;
        t.tv_sec = deadline_ns / 1000000000;
        t.tv_nsec = deadline_ns % 1000000000;
        limit = &t;
    }
    long r = syscall(SYS_futex, (uint32_t *)word, FUTEX_WAIT_BITSET, expected, limit, NULL, FUTEX_BITSET_MATCH_ANY);
    return r == 0 ? 0 : errno;
}

static inline int mc_wake(mc_word *word, int count) {
    long r = syscall(SYS_futex, (uint32_t *)word, FUTEX_WAKE, count, NULL, NULL, 0);
    return r < 0 ? 0 : (int)r;
}

/* One waiter's memory of whether spinning pays. Private to its process. */
typedef struct {
    int64_t budget_ns; /* how long the next spin may last */
    uint32_t skipped;  /* waits since the budget fell to nothing */
    uint32_t cores;    /* cores this process may run on, 0 = not asked yet */
} mc_spinner;

/* How many cores there are to spin on. */
static inline uint32_t mc_spin_cores(mc_spinner *s) {
    if (s->cores == 0) {
        cpu_set_t set;
        s->cores = sched_getaffinity(0, sizeof set, &set) == 0 ? (uint32_t)CPU_COUNT(&set) : 1;
        s->budget_ns = MC_SPIN_BUDGET_NS;
    }
    return s->cores;
}

static inline int64_t mc_spin_begin(mc_spinner *s) {
    if (mc_spin_cores(s) < 2) return 0;
    if (s->budget_ns < 1000) {
        if (++s->skipped < MC_SPIN_PROBE) return 0;
        s->skipped = 0;
        return MC_SPIN_BUDGET_NS / 2;
    }
    return s->budget_ns;
}

static inline void mc_spin_end(mc_spinner *s, bool paid) {
    if (paid) s->budget_ns = MC_SPIN_BUDGET_NS;
    else s->budget_ns /= 2;
}

/* A sleep has ended that began at `since_ns`: where it was short, a spin would have paid. */
static inline void mc_slept(mc_spinner *s, int64_t since_ns) {
    if (mc_now_ns() - since_ns < MC_SPIN_BUDGET_NS) s->budget_ns = MC_SPIN_BUDGET_NS;
}

#define MC_SPIN_PAUSES 16 /* between two looks at the clock */

/* As mc_spin, with `pauses` (1 to MC_SPIN_PAUSES) between two looks: who looks less disturbs less. */
static inline bool mc_spin_every(mc_spinner *s, int pauses, bool (*ready)(void *), void *context) {
    int64_t budget = mc_spin_begin(s);
    if (budget == 0) return false;
    int64_t start = mc_now_ns(), last = start;
    for (;;) {
        for (int i = 0; i < MC_SPIN_PAUSES; i += pauses) {
            if (ready(context)) {
                mc_spin_end(s, true);
                return true;
            }
            for (int k = 0; k < pauses; k++) mc_pause();
        }
        int64_t now = mc_now_ns();
        if (now - start >= budget || now - last > MC_SPIN_GAP_NS) {
            mc_spin_end(s, false);
            return false;
        }
        last = now;
    }
}

/* Spin until `ready(context)` or until the budget is spent; true when it became ready. */
static inline bool mc_spin(mc_spinner *s, bool (*ready)(void *), void *context) {
    return mc_spin_every(s, 1, ready, context);
}

#endif
