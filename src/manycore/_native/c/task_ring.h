/* The task ring: one process publishes tasks, many workers claim them.
 *
 *     parent (publishes, withdraws, repairs)          worker w (claims)
 *     slot FREE  -> fill -> READY(t) -> head = t+1    READY(t) -> CLAIMED(t, w)      by CAS
 *     READY(t) -> FREE(t)   by CAS: withdrawn         copy out, page[w].task = id
 *     CLAIMED(t, w) -> FREE(t): w is dead             CLAIMED(t, w) -> FREE(t)
 *
 * A ticket t counts publications; slot t % slots holds it. `tail` is a hint: no ticket below it is
 * READY. Every worker that meets a ticket which is not READY pushes the hint on, so a worker that dies
 * between its claim and the push stops nobody. The parent skips a ticket whose slot is still CLAIMED.
 *
 * What a death of worker w leaves, at each step:
 *     before the CAS                 nothing
 *     after it, before FREE          CLAIMED(t, w): the task's code has not begun; safe to publish again
 *     after FREE                     page[w].task names the task: its code may have begun
 *     after the result was put       the result is in the worker's ring, whatever page[w] says
 * So who reads first the result ring, then the slots, then the page, knows the truth.
 *
 * Sleeping. One worker at a time may spin: it has the lease, `spin_until`, which expires by itself, so that a
 * spinner that was killed or stopped misleads nobody for longer than a spin; the others sleep on their own page's
 * word, with a bit in `sleeping`. Whoever clears a bit owes that worker a wake-up. No wake-up is lost:
 *     publisher: head = t+1;      fence; read spin_until, sleeping
 *     worker:    spin_until = 0 or sleeping |= bit; fence; read head
 * One of the two sees the other's store. A worker that claims and sees more READY tickets wakes the
 * next sleeper, so a burst published under one spinner still reaches all.
 *
 * A caller that waits for each result publishes the next task 2 us after one was put. So a worker that finds nothing
 * else to do takes the lease before it puts its result: were it only about to, the caller would wake another for a
 * task that it will have itself, and three would fight for two cores. It gives the lease back when it has claimed a
 * task, and looks for more then, as above; or when it is not free so soon.
 *
 * Nobody spins for somebody who could run here: a spinner keeps the core that the other needs. So each side says on
 * which core it last did something (`publisher_cpu`, `claimer_cpu`), and who waits for it there sleeps at once. The
 * words are hints; both sides are woken as ever.
 *
 * A wake-up takes a while, in which many short tasks are published, and done by those who are awake. So while a worker
 * is on its way (`waking_until`, which expires by itself as well), neither publishers nor claimers wake another: who
 * comes clears it, claims, and wakes the next if there is more. Were a sleeper woken for each publication, a pool of
 * many workers would mostly wake and sleep. No wake-up is lost:
 *     publisher: head = t+1;                          fence; read waking_until
 *     worker:    woken; sleeping &= ~bit; waking_until = 0;  fence; read head
 * It is set before the bit is taken, and cleared after it is: a clear thus follows the setting that it answers.
 *
 * The bell tells the parent of results. `fg` is a thread that waits for a result (0 none, 1 awake,
 * 2 asleep), `bg` the collector thread (0 awake, 1 asleep). A worker rings fg at once when it sleeps; bg, when no fg
 * is there, once a millisecond, and before it sleeps itself. A leaving fg looks at the rings once more and rings
 * bg itself: same argument as above.
 *
 * Source: the slot protocol is Vyukov's bounded queue with the claim made visible; the helping of `tail`
 * is Michael and Scott's. */
#ifndef MANYCORE_TASK_RING_H
#define MANYCORE_TASK_RING_H

#include "fault.h"
#include "wait.h"

#define MC_TASKS_MAGIC 0x6d637473u
#ifndef MC_WORKERS_MAX /* the explorer of interleavings has fewer */
#define MC_WORKERS_MAX 256
#endif
#define MC_WAKING_NS 200000 /* a few times what it takes from a wake-up to the first claim */
#define MC_SLEEPING_WORDS ((MC_WORKERS_MAX + 63) / 64)
#define MC_SLOT_BYTES 512
#define MC_SLOT_PAYLOAD (MC_SLOT_BYTES - 32)

enum { MC_FREE = 0, MC_READY = 1, MC_CLAIMED = 2 };

/* word: bits 63..16 ticket, 15..4 worker (CLAIMED only), 3..0 state */
#define MC_SLOT_WORD(ticket, worker, state) (((uint64_t)(ticket) << 16) | ((uint64_t)(worker) << 4) | (state))
#define MC_SLOT_STATE(word) ((unsigned)((word) & 15))
#define MC_SLOT_WORKER(word) ((unsigned)(((word) >> 4) & 0xfff))
#define MC_SLOT_TICKET(word) ((word) >> 16)

typedef struct {
    _Atomic uint64_t word;
    uint64_t task;     /* the four below and the payload: written by the parent between FREE and READY */
    uint32_t function;
    uint32_t flags;
    uint32_t length;   /* bytes of payload */
    uint32_t unused;
    uint8_t payload[MC_SLOT_PAYLOAD];
} mc_slot;
_Static_assert(sizeof(mc_slot) == MC_SLOT_BYTES, "a slot is eight cache lines");

/* A worker's page. Written by the worker alone, but for `asleep` (cleared by whoever wakes it), `stop` and
 * `heard`. */
typedef struct {
    mc_word asleep;              /* 1 while it sleeps or is about to */
    mc_word stop;                /* parent: 1 leave when idle, 2 leave after the task that it has */
    _Atomic uint64_t task;       /* the task whose code may have begun, 0 = none */
    _Atomic uint64_t item;       /* of that task, the item whose code may have begun */
    _Atomic int64_t started_ns;  /* when that item began, CLOCK_MONOTONIC */
    _Atomic uint64_t items_done;
    _Atomic int64_t busy_ns;     /* time spent in items */
    _Atomic uint64_t heard;      /* written by the parent: log records of this worker that it has handled */
    uint8_t pad[MC_CACHE_LINE * 2 - 56];
} mc_page;
_Static_assert(sizeof(mc_page) == 2 * MC_CACHE_LINE, "pages do not share cache lines");

typedef struct {
    mc_header header;
    uint32_t slots;
    uint32_t unused;
    _Alignas(MC_CACHE_LINE) _Atomic uint64_t head;      /* next ticket; written by the parent */
    _Atomic uint32_t publisher_cpu;                     /* hint: where the parent published last; see mc_cpu */
    _Alignas(MC_CACHE_LINE) _Atomic uint64_t tail;      /* hint; pushed on by any worker */
    _Atomic uint32_t claimer_cpu;                       /* hint: where a task was claimed last */
    _Alignas(MC_CACHE_LINE) _Atomic int64_t spin_until; /* ns; the spinning worker's lease */
    _Alignas(MC_CACHE_LINE) _Atomic int64_t waking_until; /* ns; a worker has been woken and is not here yet */
    _Alignas(MC_CACHE_LINE) _Atomic uint64_t sleeping[MC_SLEEPING_WORDS];
    _Alignas(MC_CACHE_LINE) mc_word fg;
    mc_word bg;
    _Atomic uint64_t alarms; /* written by the parent: things that happened besides results */
    _Alignas(MC_CACHE_LINE) mc_page pages[MC_WORKERS_MAX];
    mc_slot slot[];
} mc_tasks;

/* The core that runs this, from 1 on; 0 where the kernel does not tell, and in a new ring. */
static inline uint32_t mc_cpu(void) { return (uint32_t)(sched_getcpu() + 1); }

/* Whether the hint says that the other side would run on this core. */
static inline bool mc_is_here(_Atomic uint32_t *cpu) {
    uint32_t there = atomic_load_explicit(cpu, memory_order_relaxed); /* a hint */
    return there != 0 && there == mc_cpu();
}

static inline size_t mc_tasks_bytes(uint32_t slots) { return sizeof(mc_tasks) + (size_t)slots * MC_SLOT_BYTES; }

static inline void mc_tasks_init(mc_tasks *t, uint32_t slots) {
    t->slots = slots;
    atomic_store(&t->head, slots); /* tickets start at `slots`, so that slot i's first FREE word has ticket i */
    atomic_store(&t->tail, slots);
    for (uint32_t i = 0; i < slots; i++) atomic_store(&t->slot[i].word, MC_SLOT_WORD(i, 0, MC_FREE));
    t->header.version = MC_LAYOUT_VERSION;
    atomic_thread_fence(memory_order_release);
    t->header.magic = MC_TASKS_MAGIC;
}

static inline bool mc_tasks_valid(const mc_tasks *t, size_t bytes) {
    return bytes >= sizeof(mc_tasks) && t->header.magic == MC_TASKS_MAGIC && t->header.version == MC_LAYOUT_VERSION &&
           t->slots > 0 && mc_tasks_bytes(t->slots) <= bytes;
}

static inline mc_slot *mc_slot_of(mc_tasks *t, uint64_t ticket) { return &t->slot[ticket % t->slots]; }

/* Tickets published and, as far as the hint knows, not claimed. */
static inline uint64_t mc_ready(mc_tasks *t) {
    uint64_t tail = atomic_load(&t->tail), head = atomic_load(&t->head);
    return head > tail ? head - tail : 0;
}

/* Whatever the words say: who was killed between its change of a word and its wake-up left a sleeper on a word
 * that says awake. */
static inline void mc_wake_worker(mc_tasks *t, unsigned worker) {
    atomic_fetch_and(&t->sleeping[worker / 64], ~(1ull << (worker % 64)));
    atomic_store(&t->pages[worker].asleep, 0);
    mc_wake(&t->pages[worker].asleep, 1);
}

/* Wake one sleeping worker; false when none sleeps. */
static inline bool mc_wake_one(mc_tasks *t) {
    for (unsigned i = 0; i < MC_SLEEPING_WORDS; i++) {
        uint64_t mask = atomic_load(&t->sleeping[i]);
        while (mask) {
            unsigned bit = (unsigned)__builtin_ctzll(mask);
            atomic_store(&t->waking_until, mc_now_ns() + MC_WAKING_NS);
            if (atomic_fetch_and(&t->sleeping[i], ~(1ull << bit)) & (1ull << bit)) {
                unsigned worker = i * 64 + bit;
                MC_FAULT("tasks:waking");
                atomic_store(&t->pages[worker].asleep, 0);
                mc_wake(&t->pages[worker].asleep, 1);
                return true;
            }
            atomic_store(&t->waking_until, 0); /* another woke it; that one's own lease is not missed */
            mask = atomic_load(&t->sleeping[i]);
        }
    }
    return false;
}

/* Wake a sleeper for what is ready, unless another one is on its way. */
static inline void mc_wake_next(mc_tasks *t) {
    int64_t until = atomic_load(&t->waking_until);
    if (until == 0 || until <= mc_now_ns()) mc_wake_one(t);
}

/* How many workers sleep. */
static inline unsigned mc_asleep(mc_tasks *t) {
    unsigned found = 0;
    for (unsigned i = 0; i < MC_SLEEPING_WORDS; i++) found += (unsigned)__builtin_popcountll(atomic_load(&t->sleeping[i]));
    return found;
}

/* ---- the parent's side; its callers hold one lock ---- */

/* Publish a task; its ticket, or -1 when the ring is full. */
static inline int64_t mc_publish(mc_tasks *t, uint64_t task, uint32_t function, uint32_t flags, const void *head,
                                 uint32_t head_length, const void *payload, uint32_t length) {
    uint64_t ticket = atomic_load_explicit(&t->head, memory_order_relaxed); /* we alone write it */
    mc_slot *slot;
    for (uint32_t tries = 0;; tries++, ticket++) {
        slot = mc_slot_of(t, ticket);
        unsigned state = MC_SLOT_STATE(atomic_load_explicit(&slot->word, memory_order_acquire)); /* pairs with mc_free */
        if (state == MC_FREE) break;
        if (state == MC_READY || tries == t->slots - 1) return -1;
        /* CLAIMED: its worker still copies, or is stopped or dead. Skip the ticket. */
    }
    slot->task = task;
    slot->function = function;
    slot->flags = flags;
    slot->length = head_length + length;
    memcpy(slot->payload, head, head_length);
    memcpy(slot->payload + head_length, payload, length);
    atomic_store_explicit(&slot->word, MC_SLOT_WORD(ticket, 0, MC_READY), memory_order_release); /* pairs with mc_claim */
    atomic_store(&t->head, ticket + 1); /* seq_cst: before the reads of spin_until and sleeping in mc_kick */
    return (int64_t)ticket;
}

/* Somebody must take what was published: wake a sleeper unless the spinning worker will have it. */
static inline void mc_kick(mc_tasks *t) {
    atomic_store_explicit(&t->publisher_cpu, mc_cpu(), memory_order_relaxed); /* a hint */
    if (mc_ready(t) <= 1 && atomic_load(&t->spin_until) > mc_now_ns()) return;
    mc_wake_next(t);
}

/* Whether the ticket's slot still holds it, claimed or not. */
static inline bool mc_holds(mc_tasks *t, uint64_t ticket) {
    uint64_t word = atomic_load(&mc_slot_of(t, ticket)->word);
    return MC_SLOT_TICKET(word) == ticket && MC_SLOT_STATE(word) != MC_FREE;
}

/* Whether the ticket's task is published and not claimed. */
static inline bool mc_is_ready(mc_tasks *t, uint64_t ticket) {
    return atomic_load(&mc_slot_of(t, ticket)->word) == MC_SLOT_WORD(ticket, 0, MC_READY);
}

/* Take a task back; false when a worker has claimed it. */
static inline bool mc_withdraw(mc_tasks *t, uint64_t ticket) {
    uint64_t expected = MC_SLOT_WORD(ticket, 0, MC_READY);
    return atomic_compare_exchange_strong(&mc_slot_of(t, ticket)->word, &expected, MC_SLOT_WORD(ticket, 0, MC_FREE));
}

/* Free what the dead worker had claimed and not begun, and wake every sleeper; the tasks' ids go into `tasks`. */
static inline uint32_t mc_repair(mc_tasks *t, unsigned worker, uint64_t *tasks, uint32_t capacity) {
    uint32_t found = 0;
    for (uint32_t i = 0; i < t->slots; i++) {
        uint64_t word = atomic_load(&t->slot[i].word);
        if (MC_SLOT_STATE(word) != MC_CLAIMED || MC_SLOT_WORKER(word) != worker) continue;
        if (found < capacity) tasks[found] = t->slot[i].task;
        found++;
        atomic_store(&t->slot[i].word, MC_SLOT_WORD(MC_SLOT_TICKET(word), 0, MC_FREE));
    }
    for (unsigned i = 0; i < MC_WORKERS_MAX; i++) mc_wake_worker(t, i); /* the dead may have owed anyone a wake-up */
    return found;
}

/* ---- the bell ---- */

static inline void mc_ring_word(mc_word *word, uint32_t asleep, uint32_t awake) {
    uint32_t expected = asleep;
    if (atomic_compare_exchange_strong(word, &expected, awake)) {
        MC_FAULT("bell:changed");
        mc_wake(word, 1);
    }
}

/* Results were put: tell whoever collects. Unless `urgent`, only a thread that waits for one: the collector thread
 * hears of it when the worker runs out of tasks, so that a caller who is about to wait is not disturbed by it. */
static inline void mc_notify(mc_tasks *t, bool urgent) {
    atomic_thread_fence(memory_order_seq_cst); /* the put before, the looks after */
    uint32_t fg = atomic_load(&t->fg);
    if (fg == 2) mc_ring_word(&t->fg, 2, 1);
    else if (fg == 0 && urgent) mc_ring_word(&t->bg, 1, 0);
}

/* Something else happened (a death, a deadline moved): both look, whatever the words say, as in mc_wake_worker. Who
 * was about to sleep sees the count. */
static inline void mc_alarm(mc_tasks *t) {
    atomic_fetch_add(&t->alarms, 1);
    mc_ring_word(&t->fg, 2, 1);
    mc_wake(&t->fg, 1);
    mc_ring_word(&t->bg, 1, 0);
    mc_wake(&t->bg, 1);
}

/* ---- the worker's side ---- */

/* Take the lease, or prolong one's own; `*lease` becomes its end, 0 if it is another's. */
static inline void mc_lease(mc_tasks *t, int64_t *lease, int64_t now_ns) {
    int64_t until = atomic_load(&t->spin_until), mine = now_ns + MC_SPIN_BUDGET_NS;
    bool free = until <= now_ns || until == *lease;
    *lease = free && atomic_compare_exchange_strong(&t->spin_until, &until, mine) ? mine : 0;
}

/* Give the lease back, if one has it. Whoever does so looks for tasks once more: they woke nobody. */
static inline void mc_return(mc_tasks *t, int64_t *lease) {
    int64_t mine = *lease;
    *lease = 0;
    if (mine) atomic_compare_exchange_strong(&t->spin_until, &mine, 0);
}

/* The same by one who has no time for a task now, so that another takes what there is. */
static inline void mc_decline(mc_tasks *t, int64_t *lease) {
    if (*lease == 0) return;
    mc_return(t, lease);
    if (mc_ready(t) > 0) mc_wake_next(t);
}

/* Claim the next task, and give the lease back; NULL, and the lease is kept, when there is none. */
static inline mc_slot *mc_claim(mc_tasks *t, unsigned worker, int64_t *lease) {
    for (;;) {
        uint64_t tail = atomic_load(&t->tail);
        if (tail >= atomic_load(&t->head)) return NULL;
        mc_slot *slot = mc_slot_of(t, tail);
        uint64_t expected = MC_SLOT_WORD(tail, 0, MC_READY);
        bool mine = atomic_compare_exchange_strong(&slot->word, &expected, MC_SLOT_WORD(tail, worker, MC_CLAIMED));
        uint64_t old = tail;
        if (mine) MC_FAULT("tasks:claimed");
        atomic_compare_exchange_strong(&t->tail, &old, tail + 1); /* help; whoever is first */
        if (mine) {
            MC_FAULT("tasks:passed on");
            atomic_store_explicit(&t->claimer_cpu, mc_cpu(), memory_order_relaxed); /* a hint */
            mc_return(t, lease);
            if (mc_ready(t) > 0) mc_wake_next(t);
            return slot;
        }
    }
}

/* The slot's content has been copied and page.task says so. */
static inline void mc_free(mc_slot *slot) {
    uint64_t word = atomic_load_explicit(&slot->word, memory_order_relaxed); /* CLAIMED: ours alone */
    MC_FAULT("tasks:copied");
    atomic_store_explicit(&slot->word, MC_SLOT_WORD(MC_SLOT_TICKET(word), 0, MC_FREE), memory_order_release);
    MC_FAULT("tasks:freed");
}

typedef struct {
    mc_tasks *tasks;
    mc_page *page;
} mc_idle;

static inline bool mc_worker_ready(void *context) {
    mc_idle *idle = context;
    return atomic_load(&idle->tasks->tail) < atomic_load(&idle->tasks->head) || atomic_load(&idle->page->stop);
}

/* Wait until a task may be there, `stop` is set or the deadline has passed: 0, ETIMEDOUT or EINTR. Unless all its
 * results have been `collected`, the collector is told of them before the worker sleeps. */
static inline int mc_worker_wait(mc_tasks *t, unsigned worker, mc_spinner *spinner, int64_t *lease, bool collected,
                                 int64_t deadline_ns) {
    mc_idle idle = {t, &t->pages[worker]};
    mc_lease(t, lease, mc_now_ns());
    if (*lease) {
        MC_FAULT("tasks:spinning");
        if (!mc_is_here(&t->publisher_cpu) && mc_spin(spinner, mc_worker_ready, &idle)) return 0; /* mc_claim returns it */
        mc_return(t, lease);
    }
    if (!collected) mc_notify(t, true);
    uint64_t bit = 1ull << (worker % 64);
    atomic_store(&idle.page->asleep, 1);
    atomic_fetch_or(&t->sleeping[worker / 64], bit);
    MC_FAULT("tasks:sleeping");
    int r = 0;
    if (!mc_worker_ready(&idle)) {
        int64_t since_ns = mc_now_ns();
        r = mc_wait(&idle.page->asleep, 1, deadline_ns);
        mc_slept(spinner, since_ns);
        MC_FAULT("tasks:woken");
    }
    atomic_store(&idle.page->asleep, 0);
    atomic_fetch_and(&t->sleeping[worker / 64], ~bit);
    if (mc_ready(t) > 2) mc_wake_one(t); /* and one more when it claims: a burst has all awake in a few steps */
    if (atomic_load(&t->waking_until)) atomic_store(&t->waking_until, 0); /* here it is */
    return r == EAGAIN ? 0 : r;
}

#endif
