/* A lock for many readers or one writer.
 *
 *   writer   hold `writer` (an owner lock), then wait until every reader's slot is free
 *   reader   claim a slot, CAS 0 -> self; look at `writer`; when somebody holds it, free the slot and wait
 *
 * A reader writes its slot and then reads `writer`, a writer writes `writer` and then reads the slots, all
 * seq_cst: at least one sees the other (Dekker), so a reader and a writer are never both in. New readers
 * wait from the moment that a writer holds `writer`: it waits for those inside and for nobody else, which
 * is the bound on its wait.
 *
 * If a process dies
 *   reading                 its slot names it; the waiting writer frees the slot
 *   writing, or waiting to  the next writer takes `writer` over; a waiting reader does so for a moment,
 *                           and is told (MC_TAKEN_OVER) as the writer would be
 *   leaving, before the wake-up    sleepers look every MC_CHECK_MOST_NS
 *
 * Source: the distributed reader indicators of Lev, Luchangco and Olszewski, with owner words for counters. */
#ifndef MANYCORE_RWLOCK_H
#define MANYCORE_RWLOCK_H

#include "gate.h"
#include "lock.h"

#define MC_RW_MAGIC 0x4b4c5752u /* "RWLK" */
#ifndef MC_RW_READERS /* the explorer of interleavings has fewer */
#define MC_RW_READERS 104 /* at once; more wait for one to leave. With the rest: one kilobyte and a line */
#endif

typedef struct {
    mc_lock writer;
    mc_header header;
    mc_gate gate;
    uint32_t reserved[13];
    mc_owner_word reader[MC_RW_READERS];
} mc_rwlock;

_Static_assert(offsetof(mc_rwlock, reader) % MC_CACHE_LINE == 0, "slots begin on a line");

static inline void mc_rw_init(mc_rwlock *l) {
    memset(l, 0, sizeof *l);
    mc_lock_init(&l->writer, 2);
    l->header.version = MC_LAYOUT_VERSION;
    l->header.magic = MC_RW_MAGIC;
}

static inline bool mc_rw_valid(const mc_rwlock *l) {
    return mc_lock_valid(&l->writer) && l->header.magic == MC_RW_MAGIC && l->header.version == MC_LAYOUT_VERSION;
}

static inline bool mc_rw_has_writer(mc_rwlock *l) { return mc_owner_pid(atomic_load(&l->writer.state)) != 0; }

static inline bool mc_rw_has_reader(mc_rwlock *l) {
    for (int i = 0; i < MC_RW_READERS; i++)
        if (atomic_load(&l->reader[i]) != 0) return true;
    return false;
}

static inline bool mc_rw_try_read(mc_rwlock *l, uint64_t self) {
    if (mc_rw_has_writer(l)) return false;
    uint32_t at = mc_thread(self) % MC_RW_READERS; /* readers begin at different places: fewer collisions */
    for (int i = 0; i < MC_RW_READERS; i++, at = at + 1 == MC_RW_READERS ? 0 : at + 1) {
        uint64_t seen = 0;
        if (atomic_load_explicit(&l->reader[at], memory_order_relaxed) != 0 ||
            !atomic_compare_exchange_strong(&l->reader[at], &seen, self))
            continue;
        MC_FAULT("rwlock:reader claimed");
        if (!mc_rw_has_writer(l)) return true;
        atomic_store(&l->reader[at], 0);
        mc_gate_open(&l->gate, INT32_MAX); /* the writer may have seen us and gone to sleep */
        return false;
    }
    return false;
}

/* False when this process reads nothing. */
static inline bool mc_rw_release_read(mc_rwlock *l, uint64_t self) {
    uint32_t at = mc_thread(self) % MC_RW_READERS;
    for (int i = 0; i < MC_RW_READERS; i++, at = at + 1 == MC_RW_READERS ? 0 : at + 1) {
        uint64_t seen = self;
        if (atomic_load_explicit(&l->reader[at], memory_order_relaxed) != self ||
            !atomic_compare_exchange_strong(&l->reader[at], &seen, 0))
            continue;
        MC_FAULT("rwlock:reader left");
        mc_gate_open(&l->gate, INT32_MAX);
        return true;
    }
    return false;
}

static inline void mc_rw_drop_dead_readers(mc_rwlock *l) {
    for (int i = 0; i < MC_RW_READERS; i++) {
        uint64_t seen = atomic_load(&l->reader[i]);
        if (seen != 0 && mc_owner_is_dead(seen)) atomic_compare_exchange_strong(&l->reader[i], &seen, 0);
    }
}

/* One sleep on the gate. True when it is time to come back with MC_AGAIN. */
static inline bool mc_rw_sleep(mc_rwlock *l, mc_waiting *w, uint32_t seen) {
    MC_FAULT("rwlock:sleeping");
    int error = mc_wait(&l->gate, seen, mc_waiting_until(w));
    MC_FAULT("rwlock:woken");
    w->slept = true;
    return error == EINTR;
}

/* Of a process that has seen `pid` die. */
static inline void mc_rw_bury(mc_rwlock *l, uint32_t pid) {
    bool found = mc_lock_bury(&l->writer, pid);
    for (int i = 0; i < MC_RW_READERS && !found; i++)
        found = mc_owner_pid(atomic_load_explicit(&l->reader[i], memory_order_relaxed)) == pid;
    if (!found) return;
    mc_rw_drop_dead_readers(l);
    mc_gate_open(&l->gate, INT32_MAX);
}

static inline bool mc_rw_may_read(void *context) {
    mc_rwlock *l = context;
    return !mc_rw_has_writer(l) || mc_lock_is_buried(&l->writer);
}

static inline mc_outcome mc_rw_wait_read(mc_rwlock *l, uint64_t self, mc_waiting *w, mc_spinner *spinner) {
    for (;;) {
        if (mc_rw_try_read(l, self)) return w->dead != 0 ? MC_TAKEN_OVER : MC_TAKEN;
        if (!w->spun) {
            w->spun = true;
            if (mc_spin(spinner, mc_rw_may_read, l)) continue;
        }
        int64_t now = mc_waiting_clock(w);
        bool due = mc_waiting_is_due(w, now);
        if ((due || mc_lock_is_buried(&l->writer)) && mc_lock_take_over(&l->writer, self, &w->dead)) {
            mc_lock_release(&l->writer);
            mc_gate_open(&l->gate, INT32_MAX);
            continue;
        }
        if (due) {
            if (!mc_rw_has_writer(l)) mc_rw_drop_dead_readers(l); /* all slots may be taken, by the dead too */
            if (now >= w->deadline_ns) return mc_rw_try_read(l, self) ? MC_TAKEN : MC_TIMED_OUT;
            if (w->shown < 0) w->shown = mc_waiters_enter(&l->writer.waiters, self);
            return MC_AGAIN;
        }
        uint32_t seen = mc_gate_close(&l->gate);
        if (mc_rw_try_read(l, self)) return w->dead != 0 ? MC_TAKEN_OVER : MC_TAKEN;
        if (mc_lock_is_buried(&l->writer)) continue;
        if (mc_rw_sleep(l, w, seen)) return MC_AGAIN;
    }
}

static inline bool mc_rw_may_write(void *context) { return !mc_rw_has_reader(context); }

/* The second half of a writer's acquire: it holds `writer`, and waits for those who read. */
static inline mc_outcome mc_rw_wait_drain(mc_rwlock *l, mc_waiting *w, mc_spinner *spinner) {
    for (;;) {
        if (!mc_rw_has_reader(l)) return MC_TAKEN;
        if (mc_spin(spinner, mc_rw_may_write, l)) continue;
        int64_t now = mc_waiting_clock(w);
        if (mc_waiting_is_due(w, now)) {
            mc_rw_drop_dead_readers(l);
            if (!mc_rw_has_reader(l)) return MC_TAKEN;
            return now >= w->deadline_ns ? MC_TIMED_OUT : MC_AGAIN;
        }
        uint32_t seen = mc_gate_close(&l->gate);
        if (!mc_rw_has_reader(l)) return MC_TAKEN;
        if (mc_rw_sleep(l, w, seen)) return MC_AGAIN;
    }
}

/* False when nobody writes. */
static inline bool mc_rw_release_write(mc_rwlock *l) {
    if (!mc_lock_release(&l->writer)) return false;
    mc_gate_open(&l->gate, INT32_MAX);
    return true;
}

static inline void mc_rw_read_left(mc_rwlock *l, mc_waiting *w) { mc_lock_left(&l->writer, w); }

static inline uint32_t mc_rw_readers(mc_rwlock *l) {
    uint32_t count = 0;
    for (int i = 0; i < MC_RW_READERS; i++) count += atomic_load(&l->reader[i]) != 0;
    return count;
}

#endif
