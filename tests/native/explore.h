/* Systematic exploration of interleavings: the real headers, run in every order.
 *
 * Include this before any header of manycore. It puts a stop before each atomic operation and each named
 * fault point; parties are coroutines of one thread, and at each stop the explorer chooses who goes on, or
 * kills the one that stands there for good, as SIGKILL would. Every choice is tried, depth first, by
 * running the whole scenario again with another sequence; forced switches and deaths are bounded.
 *
 * Waits on futexes are real waits here: a party that sleeps goes on only when woken. Memory is sequentially
 * consistent; what weaker memory may do is ThreadSanitizer's business (see the stress programs).
 *
 * A file that defines EXPLORE_STATES before the include, and keeps all that its parties share in static variables, is
 * explored by states: a run ends where it comes to a state that was seen with as many switches and deaths left. A
 * state is every static variable, every stack and every saved register, so nothing can be forgotten; what differs
 * without meaning only costs runs. It is known by 64 bits of hash.
 *
 * Source: Musuvathi and Qadeer, "Iterative context bounding for systematic testing of multithreaded programs"
 * (CHESS); Godefroid, "Model checking for programming languages using VeriSoft". */
#ifndef EXPLORE_H
#define EXPLORE_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <linux/futex.h>
#include <sched.h>
#include <setjmp.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <ucontext.h>
#include <unistd.h>
#undef _FORTIFY_SOURCE

#define EXPLORE_PARTIES 4
#define EXPLORE_DEPTH 4096
#define EXPLORE_STACK (64 << 10)
#define EX_EVERY 1000000 /* forced switches: as many as there can be */

typedef enum { EX_READY, EX_ASLEEP, EX_DONE, EX_DEAD } ex_status;

typedef struct {
    const char *name;
    int parties;
    void (*party[EXPLORE_PARTIES])(void);
    bool mortal[EXPLORE_PARTIES];
    void (*begin)(void);        /* set the scene; not interleaved */
    void (*died)(int party);    /* what the reaper does at once; not interleaved; may be NULL */
    void (*end)(void);          /* nobody can go on: check, after repairing what the dead left */
    int preemptions;            /* forced switches a run */
    int deaths;                 /* a run */
} ex_scenario;

static struct {
    ucontext_t entry; /* only to begin on another stack; every later switch is a jump, which costs no system call */
    jmp_buf main, context[EXPLORE_PARTIES];
    bool begun[EXPLORE_PARTIES];
    char *stack[EXPLORE_PARTIES];
    ex_status status[EXPLORE_PARTIES];
    void *word[EXPLORE_PARTIES];
    int current; /* -1: not in a party */
    int chosen[EXPLORE_DEPTH], options[EXPLORE_DEPTH], depth, replay;
    const char *at[EXPLORE_PARTIES];
    char *low[EXPLORE_PARTIES], *lowest[EXPLORE_PARTIES]; /* of its stack: now, and in any run */
    uint64_t *seen;
    size_t seen_slots, seen_count;
    char trail[1 << 16];
    size_t trail_length;
    const ex_scenario *scenario;
} ex = {.current = -1};

/* For structures whose sleeps are bounded: called when nobody can go on; true when that changed. And their clock. */
static bool (*ex_stuck)(void);
#define EX_FIRST_S 1000
static int64_t ex_now_s = EX_FIRST_S;

static void ex_note(const char *text, int party) {
    int n = snprintf(ex.trail + ex.trail_length, sizeof ex.trail - ex.trail_length, " %s%d", text, party);
    if (n > 0 && ex.trail_length + (size_t)n < sizeof ex.trail) ex.trail_length += (size_t)n;
}

static void ex_fail(const char *what) {
    fprintf(stderr, "%s: %s\n  trail (g = goes on, K = killed):%s\n", ex.scenario->name, what, ex.trail);
    for (int i = 0; i < ex.scenario->parties; i++)
        fprintf(stderr, "  party %d: status %d, last stop %s\n", i, ex.status[i], ex.at[i] ? ex.at[i] : "-");
    exit(1);
}
#define EX_CHECK(condition) ((condition) ? (void)0 : ex_fail("not true: " #condition))

static __attribute__((noinline)) void ex_stop(const char *where) {
    if (ex.current < 0) return;
    int me = ex.current;
    ex.at[me] = where;
    ex.low[me] = __builtin_frame_address(0); /* all of its callers' frames are above */
    ex.current = -1;
    if (_setjmp(ex.context[me]) == 0) _longjmp(ex.main, 1);
    ex.current = me;
}

static inline bool ex_is_dead(int party) { return ex.status[party] == EX_DEAD; }

static void ex_wake_all(void *word, int count) {
    for (int i = 0; i < ex.scenario->parties && count > 0; i++)
        if (ex.status[i] == EX_ASLEEP && ex.word[i] == word) {
            ex.status[i] = EX_READY;
            count--;
        }
}

static inline long ex_futex(void *word, int op, uint32_t value) {
    int me = ex.current;
    ex_stop("futex");
    if ((op & 127) == FUTEX_WAKE) {
        ex_wake_all(word, (int)value);
        return 0;
    }
    if (me < 0) ex_fail("a wait outside of a party");
    if (*(uint32_t *)word != value) {
        errno = EAGAIN;
        return -1;
    }
    ex.word[me] = word;
    ex.status[me] = EX_ASLEEP;
    ex_stop("asleep");
    if (ex.word[me] == NULL) { /* see ex_time_passes */
        errno = ETIMEDOUT;
        return -1;
    }
    return 0;
}

/* All sleeps end by their timeouts; false when nobody sleeps. */
static inline bool ex_time_passes(void) {
    bool any = false;
    ex_now_s += 10;
    for (int i = 0; i < ex.scenario->parties; i++)
        if (ex.status[i] == EX_ASLEEP) {
            ex.status[i] = EX_READY;
            ex.word[i] = NULL;
            any = true;
        }
    return any;
}

static inline int ex_clock(clockid_t clock, struct timespec *t) {
    (void)clock;
    *t = (struct timespec){ex_now_s, 0}; /* time stands still, unless ex_stuck lets it pass */
    return 0;
}

/* The stops. An _Atomic object read or assigned as a plain expression is a sequentially consistent access. */
#define EX_STR2(x) #x
#define EX_STR(x) EX_STR2(x)
#define EX_HERE __FILE__ ":" EX_STR(__LINE__)
#undef atomic_load
#undef atomic_load_explicit
#undef atomic_store
#undef atomic_store_explicit
#undef atomic_exchange
#undef atomic_exchange_explicit
#undef atomic_compare_exchange_strong
#undef atomic_compare_exchange_strong_explicit
#undef atomic_compare_exchange_weak
#undef atomic_compare_exchange_weak_explicit
#undef atomic_fetch_add
#undef atomic_fetch_sub
#undef atomic_fetch_and
#undef atomic_fetch_or
#undef atomic_fetch_add_explicit
#undef atomic_fetch_sub_explicit
#undef atomic_fetch_and_explicit
#undef atomic_fetch_or_explicit
#undef atomic_thread_fence
#define atomic_load(p) (ex_stop(EX_HERE), *(p))
#define atomic_load_explicit(p, order) atomic_load(p)
#define atomic_store(p, v) (ex_stop(EX_HERE), (void)(*(p) = (v)))
#define atomic_store_explicit(p, v, order) atomic_store(p, v)
#define EX_RMW(op, p, v) (ex_stop(EX_HERE), __atomic_fetch_##op((p), (v), __ATOMIC_SEQ_CST))
#define atomic_fetch_add(p, v) EX_RMW(add, p, v)
#define atomic_fetch_sub(p, v) EX_RMW(sub, p, v)
#define atomic_fetch_and(p, v) EX_RMW(and, p, v)
#define atomic_fetch_or(p, v) EX_RMW(or, p, v)
#define atomic_fetch_add_explicit(p, v, order) EX_RMW(add, p, v)
#define atomic_fetch_sub_explicit(p, v, order) EX_RMW(sub, p, v)
#define atomic_fetch_and_explicit(p, v, order) EX_RMW(and, p, v)
#define atomic_fetch_or_explicit(p, v, order) EX_RMW(or, p, v)
#define atomic_exchange(p, v)                                                                                          \
    __extension__({                                                                                                    \
        ex_stop(EX_HERE);                                                                                              \
        __auto_type ex_p = (p);                                                                                        \
        __typeof__((void)0, *ex_p) ex_new = (v), ex_old;                                                               \
        __atomic_exchange(ex_p, &ex_new, &ex_old, __ATOMIC_SEQ_CST);                                                   \
        ex_old;                                                                                                        \
    })
#define atomic_exchange_explicit(p, v, order) atomic_exchange(p, v)
#define atomic_compare_exchange_strong(p, expected, desired)                                                           \
    __extension__({                                                                                                    \
        ex_stop(EX_HERE);                                                                                              \
        __auto_type ex_p = (p);                                                                                        \
        __typeof__((void)0, *ex_p) ex_new = (desired);                                                                 \
        __atomic_compare_exchange(ex_p, (expected), &ex_new, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);                   \
    })
#define atomic_compare_exchange_strong_explicit(p, e, d, success, failure) atomic_compare_exchange_strong(p, e, d)
#define atomic_compare_exchange_weak(p, e, d) atomic_compare_exchange_strong(p, e, d)
#define atomic_compare_exchange_weak_explicit(p, e, d, success, failure) atomic_compare_exchange_strong(p, e, d)
#define atomic_thread_fence(order) ((void)0)
#define syscall(number, word, op, value, ...) ex_futex((word), (op), (uint32_t)(value))
#define clock_gettime(clock, t) ex_clock((clock), (t))

static void ex_enter(void) {
    int party = ex.current;
    ex.scenario->party[party]();
    ex.current = -1;
    ex.status[party] = EX_DONE;
    _longjmp(ex.main, 1);
}

/* Let a party run to its next stop. */
static __attribute__((noinline)) void ex_resume(int party) {
    ex.current = party;
    if (_setjmp(ex.main) != 0) return;
    if (ex.begun[party]) _longjmp(ex.context[party], 1);
    ex.begun[party] = true;
    getcontext(&ex.entry);
    ex.entry.uc_stack.ss_sp = ex.stack[party];
    ex.entry.uc_stack.ss_size = EXPLORE_STACK;
    ex.entry.uc_link = NULL;
    makecontext(&ex.entry, ex_enter, 0);
    setcontext(&ex.entry);
}

static int ex_choose(int options) {
    if (ex.depth == EXPLORE_DEPTH) ex_fail("the run has no end");
    if (ex.depth >= ex.replay) {
        ex.chosen[ex.depth] = 0;
        ex.options[ex.depth] = options;
        ex.replay = ex.depth + 1;
    } else if (ex.options[ex.depth] != options) {
        ex_fail("the scenario does not repeat itself");
    }
    return ex.chosen[ex.depth++];
}

#ifdef EXPLORE_STATES
extern char __data_start, _end;

static uint64_t ex_hash(uint64_t hash, const void *from, size_t size) {
    const char *bytes = from;
    for (; size >= 8; bytes += 8, size -= 8) {
        uint64_t word;
        memcpy(&word, bytes, 8);
        hash = (hash ^ word) * 0x9e3779b97f4a7c15u;
        hash ^= hash >> 32;
    }
    for (; size > 0; bytes++, size--) hash = (hash ^ (unsigned char)*bytes) * 0x9e3779b97f4a7c15u;
    return hash;
}

/* Whether this state, with these left, was met before; it is now. */
static bool ex_was_here(int last, int preemptions, int deaths) {
    int left[3] = {last, preemptions, deaths};
    uint64_t hash = ex_hash(0x2545f4914f6cdd1du, left, sizeof left);
    const char *first = &__data_start, *skip = (const char *)&ex, *behind = (const char *)(&ex + 1);
    hash = ex_hash(hash, first, (size_t)(skip - first));
    hash = ex_hash(hash, behind, (size_t)(&_end - behind));
    hash = ex_hash(hash, ex.status, sizeof ex.status);
    for (int i = 0; i < ex.scenario->parties; i++) {
        if (ex.status[i] == EX_ASLEEP || ex.status[i] == EX_READY) hash = ex_hash(hash, &ex.word[i], sizeof ex.word[i]);
        if (!ex.begun[i] || ex.status[i] == EX_DONE || ex.status[i] == EX_DEAD) continue;
        hash = ex_hash(hash, &ex.context[i], sizeof ex.context[i]);
        hash = ex_hash(hash, ex.low[i], (size_t)(ex.stack[i] + EXPLORE_STACK - ex.low[i]));
    }
    hash += hash == 0;
    if (2 * ex.seen_count >= ex.seen_slots) {
        uint64_t *old = ex.seen;
        size_t slots = ex.seen_slots;
        ex.seen_slots = slots ? 2 * slots : 1 << 16;
        ex.seen = calloc(ex.seen_slots, sizeof *ex.seen);
        if (ex.seen == NULL) ex_fail("no memory for the states");
        for (size_t i = 0; i < slots; i++) {
            size_t at = old[i] & (ex.seen_slots - 1);
            while (old[i] != 0 && ex.seen[at] != 0) at = (at + 1) & (ex.seen_slots - 1);
            if (old[i] != 0) ex.seen[at] = old[i];
        }
        free(old);
    }
    size_t at = hash & (ex.seen_slots - 1);
    for (; ex.seen[at] != 0; at = (at + 1) & (ex.seen_slots - 1))
        if (ex.seen[at] == hash) return true;
    ex.seen[at] = hash;
    ex.seen_count++;
    return false;
}
#else
static bool ex_was_here(int last, int preemptions, int deaths) { return (void)last, (void)preemptions, (void)deaths, false; }
#endif

static void ex_run(void) {
    const ex_scenario *s = ex.scenario;
    int last = -1, preemptions = s->preemptions, deaths = s->deaths;
    ex.depth = 0;
    ex.trail_length = 0;
    ex.trail[0] = '\0';
    ex.current = -1;
    ex_now_s = EX_FIRST_S; /* or no state would be met again in the next run */
    s->begin();
    for (int i = 0; i < s->parties; i++) {
        if (ex.stack[i] == NULL) ex.stack[i] = malloc(EXPLORE_STACK);
        if (ex.lowest[i] != NULL) memset(ex.lowest[i], 0, (size_t)(ex.stack[i] + EXPLORE_STACK - ex.lowest[i]));
        ex.begun[i] = false;
        ex.word[i] = NULL;
        ex.status[i] = EX_READY;
        ex.at[i] = NULL;
    }
    for (;;) {
        int who[2 * EXPLORE_PARTIES], options = 0;
        bool last_ready = last >= 0 && ex.status[last] == EX_READY;
        if (last_ready) who[options++] = last;
        for (int i = 0; i < s->parties; i++)
            if (i != last && ex.status[i] == EX_READY && (!last_ready || preemptions > 0)) who[options++] = i;
        int killable = options;
        if (deaths > 0 && last >= 0 && s->mortal[last] && (last_ready || ex.status[last] == EX_ASLEEP))
            who[options++] = last;
        if (killable == 0 && ex_stuck != NULL && ex_stuck()) continue;
        if (killable == 0 && options == 0) break;
        if (options > 1 && ex.depth >= ex.replay && ex_was_here(last, preemptions, deaths)) return;
        int choice = ex_choose(options);
        int party = who[choice];
        if (choice >= killable) {
            ex_note("K", party);
            ex.status[party] = EX_DEAD;
            deaths--;
            if (s->died != NULL) s->died(party);
            continue;
        }
        if (killable == 0) break; /* all asleep, and the choice was not to kill */
        if (last_ready && party != last && s->preemptions < EX_EVERY) preemptions--;
        if (party != last) ex_note("g", party);
        last = party;
        ex_resume(party);
        ex.current = -1;
        if (ex.lowest[party] == NULL || ex.low[party] < ex.lowest[party]) ex.lowest[party] = ex.low[party];
    }
    s->end();
}

/* Every run with no forced switch, then with one, and so on, until the bound or until the seconds are over. */
static unsigned long explore(const ex_scenario *scenario, double seconds) {
    unsigned long runs = 0;
    clock_t start = clock();
    ex_scenario bounded = *scenario;
    int complete = -1;
    ex.scenario = &bounded;
    bounded.preemptions = scenario->preemptions < EX_EVERY ? 0 : EX_EVERY;
    for (; bounded.preemptions <= scenario->preemptions; bounded.preemptions++) {
        ex.replay = 0;
        if (ex.seen != NULL) memset(ex.seen, 0, ex.seen_slots * sizeof *ex.seen);
        ex.seen_count = 0;
        do {
            ex_run();
            runs++;
            while (ex.replay > 0 && ex.chosen[ex.replay - 1] + 1 >= ex.options[ex.replay - 1]) ex.replay--;
            if (ex.replay > 0) ex.chosen[ex.replay - 1]++;
        } while (ex.replay > 0 && (double)(clock() - start) / CLOCKS_PER_SEC <= seconds);
        if (ex.replay > 0) break;
        complete = bounded.preemptions;
    }
    printf("%s: %lu runs", scenario->name, runs);
    if (ex.seen_count > 0) printf(", %zu states", ex.seen_count);
    if (complete == EX_EVERY) printf("; every order, with up to %d deaths\n", scenario->deaths);
    else printf("; all with up to %d of %d forced switches and %d deaths\n", complete, scenario->preemptions, scenario->deaths);
    return runs;
}

#endif
