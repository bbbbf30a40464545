/* Systematic exploration of interleavings: the real headers, run in every order.
 *
 * Include this before any header of manycore. It puts a stop before each atomic operation and each named
 * fault point; parties are coroutines of one thread, and at each stop the explorer chooses who goes on, or
 * kills one for good, as SIGKILL would. Every choice is tried, depth first: the state is kept at each choice and
 * put back for the next. Forced switches and deaths are bounded.
 *
 * Waits on futexes are real waits here: a party that sleeps goes on only when woken. Memory is sequentially
 * consistent; what weaker memory may do is ThreadSanitizer's business (see the stress programs).
 *
 * A state is every static variable, every stack and every saved register, so nothing can be forgotten; what a file
 * keeps elsewhere it names with `ex_keeps`. Where a state is met again, with no more switches left than before, what
 * follows is known and left out; what differs without meaning only costs time. It is known by 56 bits of hash.
 *
 * Source: Musuvathi and Qadeer, "Iterative context bounding for systematic testing of multithreaded programs"
 * (CHESS); Holzmann, "The model checker SPIN" (states that are hashed and compacted). */
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
#define EXPLORE_KEPT 12
#define EXPLORE_SWEPT 2048 /* bytes below a party's frames that a call without a stop may have used */
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
    int preemptions;            /* forced switches: so many, or EX_EVERY */
    int deaths;
} ex_scenario;

/* One choice, and what everything was like when it came. */
typedef struct {
    int who[2 * EXPLORE_PARTIES + 1]; /* goes on; or EX_END; or is killed */
    int options, killable, next;      /* those from `killable` on are deaths */
    int last, preemptions, deaths;
    size_t trail, room;
    char *copy;
} ex_choice;
#define EX_END (-1) /* nobody can go on, and nobody is killed */

static struct {
    ucontext_t fresh, entry; /* only to begin on another stack; every later switch is a jump, without a system call */
    jmp_buf main;
    int current; /* -1: not in a party */
    struct {     /* a part of the state */
        jmp_buf context[EXPLORE_PARTIES];
        bool begun[EXPLORE_PARTIES];
        ex_status status[EXPLORE_PARTIES];
        void *word[EXPLORE_PARTIES];
        const char *at[EXPLORE_PARTIES];
        char *low[EXPLORE_PARTIES]; /* of its stack */
    } now;
    char *stack[EXPLORE_PARTIES], *lowest[EXPLORE_PARTIES];
    ex_choice choice[EXPLORE_DEPTH];
    int depth;
    struct {
        char *from;
        size_t size;
    } kept[EXPLORE_KEPT]; /* where the state is, beside the stacks */
    int kept_count;
    uint64_t *seen; /* 56 bits of hash, 8 bits of switches left and one */
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
        fprintf(stderr, "  party %d: status %d, last stop %s\n", i, ex.now.status[i], ex.now.at[i] ? ex.now.at[i] : "-");
    exit(1);
}
#define EX_CHECK(condition) ((condition) ? (void)0 : ex_fail("not true: " #condition))

static __attribute__((noinline)) void ex_stop(const char *where) {
    if (ex.current < 0) return;
    ex.now.at[ex.current] = where;
    /* This frame, with what it saved of its caller's registers, is above; nothing in it is left to chance. */
    ex.now.low[ex.current] = memset(__builtin_alloca(16), 0, 16);
    if (_setjmp(ex.now.context[ex.current]) == 0) {
        ex.current = -1;
        _longjmp(ex.main, 1);
    }
}

static inline bool ex_is_dead(int party) { return ex.now.status[party] == EX_DEAD; }

static void ex_wake_all(void *word, int count) {
    for (int i = 0; i < ex.scenario->parties && count > 0; i++)
        if (ex.now.status[i] == EX_ASLEEP && ex.now.word[i] == word) {
            ex.now.status[i] = EX_READY;
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
    ex.now.word[me] = word;
    ex.now.status[me] = EX_ASLEEP;
    ex_stop("asleep");
    if (ex.now.word[me] == NULL) { /* see ex_time_passes */
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
        if (ex.now.status[i] == EX_ASLEEP) {
            ex.now.status[i] = EX_READY;
            ex.now.word[i] = NULL;
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
    ex.now.status[party] = EX_DONE;
    _longjmp(ex.main, 1);
}

/* Let a party run to its next stop. */
static __attribute__((noinline)) void ex_resume(int party) {
    ex.current = party;
    if (_setjmp(ex.main) != 0) return;
    if (ex.now.begun[party]) _longjmp(ex.now.context[party], 1);
    ex.now.begun[party] = true;
    ex.entry = ex.fresh; /* the explorer's own registers of this moment are no part of the state */
    ex.entry.uc_stack.ss_sp = ex.stack[party];
    ex.entry.uc_stack.ss_size = EXPLORE_STACK;
    ex.entry.uc_link = NULL;
    makecontext(&ex.entry, ex_enter, 0);
    setcontext(&ex.entry);
}

/* Names memory that is not static and that parties change. */
static inline void ex_keeps(void *from, size_t size) {
    if (ex.kept_count == EXPLORE_KEPT) ex_fail("too many places of the state");
    ex.kept[ex.kept_count].from = from;
    ex.kept[ex.kept_count++].size = size;
}

static void ex_keep_statics(void) {
    extern char __data_start, _end;
    char *skip = (char *)&ex, *behind = (char *)(&ex + 1);
    ex.kept_count = 0;
    ex_keeps(&__data_start, (size_t)(skip - &__data_start));
    ex_keeps(behind, (size_t)(&_end - behind));
}

static bool ex_has_stack(int party) {
    return ex.now.begun[party] && ex.now.status[party] != EX_DONE && ex.now.status[party] != EX_DEAD;
}

static uint64_t ex_hash(uint64_t hash, const void *from, size_t size) {
    const char *bytes = from;
    uint64_t lane[4] = {hash, hash + 1, hash + 2, hash + 3}, word[4];
    for (; size >= 32; bytes += 32, size -= 32) { /* four at a time, since each waits for its multiplication */
        memcpy(word, bytes, 32);
        for (int i = 0; i < 4; i++) {
            lane[i] = (lane[i] ^ word[i]) * 0x9e3779b97f4a7c15u;
            lane[i] ^= lane[i] >> 32;
        }
    }
    hash = lane[0];
    for (int i = 1; i < 4; i++) {
        hash = (hash ^ lane[i]) * 0x9e3779b97f4a7c15u;
        hash ^= hash >> 29;
    }
    for (; size > 0; bytes++, size--) hash = (hash ^ (unsigned char)*bytes) * 0x9e3779b97f4a7c15u;
    return hash ^ hash >> 32;
}

/* Whether this state was met before, with at least as many switches left; it is now. */
static bool ex_was_here(int last, int preemptions, int deaths) {
    int also[2] = {last, deaths};
    uint64_t hash = ex_hash(0x2545f4914f6cdd1du, also, sizeof also);
    for (int i = 0; i < ex.kept_count; i++) hash = ex_hash(hash, ex.kept[i].from, ex.kept[i].size);
    hash = ex_hash(hash, ex.now.status, sizeof ex.now.status);
    hash = ex_hash(hash, ex.now.begun, sizeof ex.now.begun);
    for (int i = 0; i < ex.scenario->parties; i++) {
        if (!ex_has_stack(i)) continue;
        hash = ex_hash(hash, &ex.now.word[i], sizeof ex.now.word[i]);
        hash = ex_hash(hash, &ex.now.context[i], sizeof ex.now.context[i]);
        hash = ex_hash(hash, ex.now.low[i], (size_t)(ex.stack[i] + EXPLORE_STACK - ex.now.low[i]));
    }
    if (2 * ex.seen_count >= ex.seen_slots) {
        uint64_t *old = ex.seen;
        size_t slots = ex.seen_slots;
        ex.seen_slots = slots ? 2 * slots : 1 << 16;
        ex.seen = calloc(ex.seen_slots, sizeof *ex.seen);
        if (ex.seen == NULL) ex_fail("no memory for the states");
        for (size_t i = 0; i < slots; i++) {
            size_t at = old[i] >> 8 & (ex.seen_slots - 1);
            while (old[i] != 0 && ex.seen[at] != 0) at = (at + 1) & (ex.seen_slots - 1);
            if (old[i] != 0) ex.seen[at] = old[i];
        }
        free(old);
    }
    uint64_t left = (uint64_t)(preemptions < 254 ? preemptions : 254) + 1;
    size_t at = hash >> 8 & (ex.seen_slots - 1);
    for (; ex.seen[at] != 0; at = (at + 1) & (ex.seen_slots - 1)) {
        if (ex.seen[at] >> 8 != hash >> 8) continue;
        if ((ex.seen[at] & 255) >= left) return true;
        ex.seen[at] = (hash & ~255ull) | left;
        return false;
    }
    ex.seen[at] = (hash & ~255ull) | left;
    ex.seen_count++;
    return false;
}

/* Everything into the choice's copy, or back out of it. */
static void ex_copy(ex_choice *choice, bool back) {
    size_t size = 0;
    char *copy = choice->copy;
#define EX_COPY(from, bytes)                                                                                           \
    do {                                                                                                               \
        if (back) memcpy((from), copy + size, (bytes));                                                                \
        else memcpy(copy + size, (from), (bytes));                                                                     \
        size += (bytes);                                                                                               \
    } while (0)
    EX_COPY(&ex.now, sizeof ex.now); /* first, since it says which stacks there are */
    for (int i = 0; i < ex.kept_count; i++) EX_COPY(ex.kept[i].from, ex.kept[i].size);
    for (int i = 0; i < ex.scenario->parties; i++)
        if (ex_has_stack(i)) EX_COPY(ex.now.low[i], (size_t)(ex.stack[i] + EXPLORE_STACK - ex.now.low[i]));
}

static void ex_save(ex_choice *choice) {
    size_t size = sizeof ex.now;
    for (int i = 0; i < ex.kept_count; i++) size += ex.kept[i].size;
    for (int i = 0; i < ex.scenario->parties; i++)
        if (ex_has_stack(i)) size += (size_t)(ex.stack[i] + EXPLORE_STACK - ex.now.low[i]);
    if (size > choice->room) {
        choice->room = size + 1024;
        choice->copy = realloc(choice->copy, choice->room);
        if (choice->copy == NULL) ex_fail("no memory for a state");
    }
    choice->trail = ex.trail_length;
    ex_copy(choice, false);
}

/* What a party's calls left below its frames would make states differ without meaning. */
static void ex_sweep(int party) {
    char *top = ex.stack[party] + EXPLORE_STACK, *live = ex_has_stack(party) ? ex.now.low[party] : top;
    char *from = ex.lowest[party] - ex.stack[party] > EXPLORE_SWEPT ? ex.lowest[party] - EXPLORE_SWEPT : ex.stack[party];
    memset(from, 0, (size_t)(live - from));
}

/* One party to its next stop. */
static void ex_step(int party) {
    ex_resume(party);
    ex.current = -1;
    if (!ex_has_stack(party)) return;
    if (ex.now.low[party] < ex.lowest[party]) ex.lowest[party] = ex.now.low[party];
    ex_sweep(party);
}

static void ex_die(int party) {
    ex_note("K", party);
    ex.now.status[party] = EX_DEAD;
    if (ex.scenario->died != NULL) ex.scenario->died(party);
}

static void ex_go_back(const ex_choice *to) {
    ex_copy((ex_choice *)to, true);
    for (int i = 0; i < ex.scenario->parties; i++) ex_sweep(i);
    ex.trail_length = to->trail;
    ex.trail[ex.trail_length] = '\0';
}

/* All that can happen in the state of affairs: what can be chosen. */
static void ex_ask(ex_choice *choice) {
    const ex_scenario *s = ex.scenario;
    bool last_ready = choice->last >= 0 && ex.now.status[choice->last] == EX_READY;
    choice->options = choice->next = 0;
    if (last_ready) choice->who[choice->options++] = choice->last;
    for (int i = 0; i < s->parties; i++) {
        if (i == choice->last || ex.now.status[i] != EX_READY) continue;
        if (!last_ready || choice->preemptions > 0) choice->who[choice->options++] = i;
    }
    if (choice->options == 0) choice->who[choice->options++] = EX_END;
    choice->killable = choice->options;
    for (int i = 0; choice->deaths > 0 && i < s->parties; i++)
        if (s->mortal[i] && ex_has_stack(i)) choice->who[choice->options++] = i;
}

/* Does what is next at a choice; what follows it begins as `after`. False when that was the end. */
static bool ex_take(ex_choice *choice, ex_choice *after) {
    int number = choice->next++, party = choice->who[number];
    after->last = choice->last, after->preemptions = choice->preemptions, after->deaths = choice->deaths;
    if (number >= choice->killable) {
        after->deaths--;
        ex_die(party);
        return true;
    }
    if (party == EX_END) {
        if (ex_stuck != NULL && ex_stuck()) return true;
        ex.scenario->end();
        return false;
    }
    if (party != choice->last) {
        ex_note("g", party);
        bool forced = choice->last >= 0 && ex.now.status[choice->last] == EX_READY;
        after->preemptions -= forced && ex.scenario->preemptions < EX_EVERY;
    }
    after->last = party;
    ex_step(party);
    return true;
}

/* Everything that can happen; false when the seconds were over before. */
static bool ex_search(double seconds) {
    const ex_scenario *s = ex.scenario;
    clock_t start = clock();
    ex_choice begin = {.last = -1, .preemptions = s->preemptions, .deaths = s->deaths}, *at;
    ex.depth = 0;
    for (;;) {
        ex_choice here = begin;
        ex_ask(&here);
        bool last_ready = here.last >= 0 && ex.now.status[here.last] == EX_READY;
        /* whose turn it was is a part of the state where switches are counted */
        int turn = last_ready && s->preemptions < EX_EVERY ? here.last : -1;
        if (here.options == 1 || !ex_was_here(turn, here.preemptions, here.deaths)) {
            if (ex.depth == EXPLORE_DEPTH) ex_fail("a run has no end");
            at = &ex.choice[ex.depth++];
            here.copy = at->copy, here.room = at->room;
            *at = here;
            if (at->options > 1) ex_save(at);
        }
        do { /* the next thing to do: here, or at the last choice that has something left */
            while (ex.depth > 0 && ex.choice[ex.depth - 1].next == ex.choice[ex.depth - 1].options) ex.depth--;
            if (ex.depth == 0) return true;
            at = &ex.choice[ex.depth - 1];
            if (at->next > 0) ex_go_back(at);
        } while (!ex_take(at, &begin));
        if (seconds > 0 && ex.seen_count % 256 == 0 && (double)(clock() - start) / CLOCKS_PER_SEC > seconds) return false;
    }
}

/* All runs with up to so many forced switches; false when the seconds (0: there is no limit) were over before. */
static bool ex_explore(ex_scenario *scenario, int preemptions, double seconds) {
    ex.scenario = scenario;
    scenario->preemptions = preemptions;
    if (ex.seen != NULL) memset(ex.seen, 0, ex.seen_slots * sizeof *ex.seen);
    ex.seen_count = 0;
    ex.trail_length = 0;
    ex.trail[0] = '\0';
    ex.current = -1;
    ex_now_s = EX_FIRST_S;
    memset(&ex.now, 0, sizeof ex.now);
    ex_keep_statics();
    scenario->begin();
    for (int i = 0; i < scenario->parties; i++) {
        if (ex.stack[i] == NULL && (ex.stack[i] = malloc(EXPLORE_STACK)) == NULL) ex_fail("no memory for a stack");
        ex.lowest[i] = ex.stack[i];
        ex_sweep(i);
        ex.lowest[i] = ex.stack[i] + EXPLORE_STACK;
    }
    return ex_search(seconds);
}

/* To the scenario's bound, however long that takes; then every order, or else as far as the seconds go. */
static void explore(const ex_scenario *scenario, double seconds) {
    ex_scenario bounded = *scenario;
    clock_t start = clock();
    int complete = scenario->preemptions;
    getcontext(&ex.fresh);
    ex_explore(&bounded, complete, 0);
    size_t states = ex.seen_count;
    if (complete < EX_EVERY && seconds > 0) {
        start = clock();
        if (ex_explore(&bounded, EX_EVERY, seconds / 2)) {
            complete = EX_EVERY;
            states = ex.seen_count;
        } else {
            for (double left = seconds / 2; left > 0 && ex_explore(&bounded, complete + 1, left); complete++) {
                states = ex.seen_count;
                left = seconds - (double)(clock() - start) / CLOCKS_PER_SEC;
            }
        }
    }
    printf("%s: %zu states in %.1f s; ", scenario->name, states, (double)(clock() - start) / CLOCKS_PER_SEC);
    if (complete == EX_EVERY) printf("every order, with up to %d deaths\n", scenario->deaths);
    else printf("all with up to %d forced switches and %d deaths\n", complete, scenario->deaths);
    fflush(stdout);
}

#endif
