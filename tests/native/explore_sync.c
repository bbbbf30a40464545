/* Locks, semaphores, events, conditions, barriers and the lock of readers and writers in every order, with deaths.
 *
 * Time passes only when nobody can go on: then every sleep ends by its timeout. Without a death that must never be
 * needed, so a lost wake-up fails. A run that goes on for ever fails too. */
#include "explore.h"

#define MANYCORE_FAULT_H
#define MC_FAULT(point) ((void)0) /* each is beside an atomic operation, which is a stop already */
#define MC_OWNER_SIMULATED
#define MC_RW_READERS 3

static inline uint64_t mc_self(void) { return (uint64_t)(ex.current < 0 ? 900 : ex.current + 1); }
static inline uint32_t mc_thread(uint64_t self) { return (uint32_t)self; }
static inline bool mc_owner_is_dead(uint64_t owner) {
    uint64_t pid = owner & 0x3fffff;
    if (owner >> 29 & 1) return true; /* its parent has said so */
    return pid >= 1 && pid <= EXPLORE_PARTIES && ex_is_dead((int)pid - 1);
}

#include "barrier.h"
#include "condition.h"
#include "event.h"
#include "lock.h"
#include "rwlock.h"
#include "semaphore.h"

#define ROUNDS_MOST 1000 /* times that everybody slept: far more than any run needs */

static int timeouts; /* how often time had to pass */
static bool any_death(void) {
    for (int i = 0; i < ex.scenario->parties; i++)
        if (ex_is_dead(i)) return true;
    return false;
}
static bool stuck(void) {
    if (!any_death()) return false; /* whoever sleeps now has lost a wake-up, or end() knows better */
    if (++timeouts > ROUNDS_MOST) ex_fail("somebody waits for ever");
    return ex_time_passes();
}
static void all_are_done(void) {
    for (int i = 0; i < ex.scenario->parties; i++)
        if (ex.now.status[i] != EX_DONE && ex.now.status[i] != EX_DEAD) ex_fail("somebody sleeps for ever");
}

/* ---- the lock ---- */

static mc_lock lock;
static int inside = -1; /* who is in the critical section */
static int told, rounds;
static int me(void) { return ex.current; }

static void lock_begin(void) {
    mc_lock_init(&lock, 0);
    inside = -1;
    told = timeouts = 0;
}
static void take(mc_lock *l) {
    mc_spinner spinner = {.cores = 1};
    mc_waiting w;
    uint64_t self = mc_self();
    if (mc_lock_try(l, self)) return;
    mc_waiting_begin(&w, MC_NEVER);
    mc_outcome outcome;
    while ((outcome = mc_lock_wait(l, self, &w, &spinner)) == MC_AGAIN) {
    }
    mc_lock_left(l, &w);
    if (outcome == MC_TAKEN_OVER) {
        EX_CHECK(mc_owner_is_dead(w.dead));
        told++;
    } else {
        EX_CHECK(outcome == MC_TAKEN);
    }
}
static void lock_use(void) {
    for (int i = 0; i < rounds; i++) {
        take(&lock);
        EX_CHECK(inside == -1 || ex_is_dead(inside));
        inside = me();
        ex_stop("inside");
        EX_CHECK(inside == me());
        inside = -1;
        ex_stop("leaving");
        EX_CHECK(mc_lock_release(&lock));
    }
}
static void lock_begin_1(void) { lock_begin(); rounds = 1; }
static void lock_begin_2(void) { lock_begin(); rounds = 2; }
/* Where the parent of all has the lock too, it hears of each death at once. */
static void lock_heard(int party) { mc_lock_bury(&lock, (uint32_t)party + 1); }
static void lock_end(void) {
    all_are_done();
    uint64_t state = lock.state, dead;
    if (mc_owner_pid(state) != 0) EX_CHECK(mc_lock_take_over(&lock, 900, &dead) && mc_lock_release(&lock));
    EX_CHECK(mc_lock_barge(&lock, 900));
    EX_CHECK(told <= 2);
}
/* One that tries only, while others wait. */
static void lock_try_once(void) {
    if (!mc_lock_barge(&lock, mc_self())) return;
    EX_CHECK(inside == -1 || ex_is_dead(inside));
    inside = me();
    ex_stop("inside");
    EX_CHECK(inside == me());
    inside = -1;
    EX_CHECK(mc_lock_release(&lock));
}

/* ---- the semaphore ---- */

static struct {
    mc_sem sem;
    mc_owner_word tokens[4];
} sems[2];
#define the_sem (&sems[0].sem)
static int holding;
static void sem_start(uint32_t value) {
    mc_sem_init(the_sem, value, false);
    holding = timeouts = 0;
}
static void sem_begin_1(void) { sem_start(1); rounds = 2; }
static void sem_begin_2(void) { sem_start(2); rounds = 1; }
static void sem_begin_0(void) { sem_start(0); }
static void permit(mc_sem *s) {
    mc_spinner spinner = {.cores = 1};
    mc_waiting w;
    uint32_t hint = 0;
    mc_waiting_begin(&w, MC_NEVER);
    while (mc_sem_wait(s, mc_self(), &w, &spinner, &hint) == MC_AGAIN) {
    }
    mc_sem_left(s, &w, false);
}
static void sem_use(void) {
    uint32_t hint = 0;
    for (int i = 0; i < rounds; i++) {
        permit(the_sem);
        int now = 0; /* the living that hold: never more than there are permits */
        for (uint32_t t = 0; t < the_sem->tokens; t++) now += the_sem->token[t] != 0 && !mc_owner_is_dead(the_sem->token[t]);
        EX_CHECK(now >= 1 && now <= (int)the_sem->initial);
        ex_stop("inside");
        EX_CHECK(mc_sem_release(the_sem, mc_self(), &hint) == 0);
    }
}
static void sem_heard(int party) { mc_sem_bury(the_sem, (uint32_t)party + 1); }
static void sem_end(void) {
    all_are_done();
    mc_sem_repair(the_sem);
    EX_CHECK(mc_sem_value(the_sem) == the_sem->initial); /* none lost, none made */
}
static void sem_give_two(void) {
    uint32_t hint = 0;
    for (int i = 0; i < 2; i++) EX_CHECK(mc_sem_release(the_sem, mc_self(), &hint) == 0);
}
static void sem_take_one(void) { permit(the_sem); }
static void sem_signals_end(void) {
    all_are_done();
    EX_CHECK(mc_sem_value(the_sem) <= 1 && (any_death() || mc_sem_value(the_sem) == 0));
}

/* ---- the event ---- */

static mc_event event;
static void event_begin(void) {
    mc_event_init(&event);
    timeouts = 0;
}
static void event_wait(void) {
    mc_spinner spinner = {.cores = 1};
    mc_waiting w;
    mc_waiting_begin(&w, MC_NEVER);
    uint32_t count = mc_event_begin(&event);
    if (mc_event_is_set(&event)) return;
    while (mc_event_wait(&event, count, mc_self(), &w, &spinner) == MC_AGAIN) {
    }
    mc_event_left(&event, &w);
}
static void event_set(void) { mc_event_set(&event); }
static void event_end(void) {
    all_are_done();
    EX_CHECK(mc_event_is_set(&event));
}

/* ---- the condition: items, each of which is notified once ---- */

static mc_cond cond;
static int items, notified, woken;
static int64_t cond_patience_ns;
static void cond_begin(void) {
    lock_begin();
    mc_cond_init(&cond);
    items = notified = woken = 0;
    cond_patience_ns = MC_NEVER;
}
static void cond_begin_patient(void) {
    cond_begin();
    cond_patience_ns = 200 * 1000000000ll;
}
static bool cond_wait(void) {
    mc_spinner spinner = {.cores = 1};
    mc_cond_waiter w;
    mc_waiting_begin(&w.waiting, cond_patience_ns == MC_NEVER ? MC_NEVER : mc_now_ns() + cond_patience_ns);
    mc_cond_enter(&cond, mc_self(), &w);
    EX_CHECK(mc_lock_release(&lock));
    mc_outcome outcome;
    while ((outcome = mc_cond_wait(&cond, mc_self(), &w, &spinner)) == MC_AGAIN) {
    }
    take(&lock);
    return outcome == MC_TAKEN;
}
static void cond_consume(void) {
    take(&lock);
    while (items == 0) woken += cond_wait();
    items--;
    ex_stop("consumed");
    EX_CHECK(mc_lock_release(&lock));
}
static void cond_notify(uint32_t count) {
    mc_cond_wakes later = {0};
    notified += (int)mc_cond_notify(&cond, count, &later);
    EX_CHECK(mc_lock_release(&lock));
    mc_cond_wake(&cond, &later);
}
static void cond_produce_two(void) {
    for (int i = 0; i < 2; i++) {
        take(&lock);
        items++;
        cond_notify(1);
    }
}
/* One that is killed, perhaps between its notification and its release: who was signalled wakes all the same. */
static void cond_notify_all(void) {
    take(&lock);
    items = 1;
    cond_notify(2);
}
static void cond_wait_for_a_while(void) {
    take(&lock);
    if (items == 0) woken += cond_wait();
    EX_CHECK(mc_lock_release(&lock));
}
static void cond_notifier_dies_end(void) {
    all_are_done();
    EX_CHECK(mc_cond_sleepers(&cond) == 0 && woken >= notified); /* whoever was not signalled gave up */
}
static void cond_consume_two(void) {
    cond_consume();
    cond_consume();
}
static void cond_heard(int party) {
    mc_lock_bury(&lock, (uint32_t)party + 1);
    mc_cond_bury(&cond, 900, (uint32_t)party + 1);
}
static void cond_end(void) {
    all_are_done();
    EX_CHECK(any_death() || (items == 0 && woken == notified && mc_cond_sleepers(&cond) == 0));
}

/* ---- the barrier ---- */

static struct {
    mc_barrier barrier;
    mc_party party[3];
} barriers;
#define the_barrier (&barriers.barrier)
static int passed, broken, indices;
static void barrier_start(uint32_t parties, int count, bool known) {
    mc_barrier_init(the_barrier, parties, true);
    rounds = count;
    passed = broken = indices = timeouts = 0;
    for (uint64_t i = 1; known && i <= parties; i++) mc_barrier_enroll(the_barrier, i);
}
static void barrier_begin_2(void) { barrier_start(2, 2, true); }
static void barrier_begin_3(void) { barrier_start(3, 1, true); }
static void barrier_meet(bool action) {
    mc_spinner spinner = {.cores = 1};
    mc_barrier_waiter w;
    mc_waiting_begin(&w.waiting, MC_NEVER);
    for (;;) {
        mc_barrier_arrival arrival = mc_barrier_arrive(the_barrier, mc_self(), action, &w);
        mc_outcome outcome = MC_TAKEN;
        if (arrival == MC_BARRIER_IS_BROKEN) {
            broken++;
            return;
        }
        if (arrival == MC_BARRIER_ACT) {
            ex_stop("acting");
            outcome = mc_barrier_complete(the_barrier, mc_self(), &w) ? MC_TAKEN : MC_BROKEN;
        } else if (arrival != MC_BARRIER_COMPLETE) {
            while ((outcome = mc_barrier_wait(the_barrier, &w, &spinner)) == MC_AGAIN) {
            }
        }
        if (outcome == MC_BROKEN) {
            broken++;
            return;
        }
        if (arrival == MC_BARRIER_FULL) continue;
        passed++;
        indices += (int)w.index;
        return;
    }
}
static void barrier_use(void) {
    for (int i = 0; i < rounds; i++) barrier_meet(false);
}
static void barrier_act(void) {
    for (int i = 0; i < rounds; i++) barrier_meet(true);
}
static void barrier_heard(int party) { mc_barrier_bury(the_barrier, (uint32_t)party + 1); }
static void barrier_end(void) {
    all_are_done();
    int parties = (int)barriers.barrier.parties;
    if (any_death()) return;
    EX_CHECK(broken == 0 && passed == parties * rounds && indices == rounds * parties * (parties - 1) / 2);
}

/* ---- readers and writers ---- */

static mc_rwlock rw;
static int reading[EXPLORE_PARTIES], writing = -1;
static void rw_begin(void) {
    mc_rw_init(&rw);
    memset(reading, 0, sizeof reading);
    writing = -1;
    timeouts = 0;
}
static void rw_heard(int party) { mc_rw_bury(&rw, (uint32_t)party + 1); }
static void rw_read(void) {
    mc_spinner spinner = {.cores = 1};
    mc_waiting w;
    mc_waiting_begin(&w, MC_NEVER);
    while (mc_rw_wait_read(&rw, mc_self(), &w, &spinner) == MC_AGAIN) {
    }
    mc_rw_read_left(&rw, &w);
    EX_CHECK(writing == -1 || ex_is_dead(writing));
    reading[me()] = 1;
    ex_stop("reading");
    EX_CHECK(writing == -1 || ex_is_dead(writing));
    reading[me()] = 0;
    EX_CHECK(mc_rw_release_read(&rw, mc_self()));
}
static void rw_write(void) {
    mc_spinner spinner = {.cores = 1};
    mc_waiting w;
    take(&rw.writer);
    mc_waiting_begin(&w, MC_NEVER);
    while (mc_rw_wait_drain(&rw, &w, &spinner) == MC_AGAIN) {
    }
    for (int i = 0; i < ex.scenario->parties; i++) EX_CHECK(!reading[i] || ex_is_dead(i));
    EX_CHECK(writing == -1 || ex_is_dead(writing));
    writing = me();
    ex_stop("writing");
    EX_CHECK(writing == me());
    for (int i = 0; i < ex.scenario->parties; i++) EX_CHECK(!reading[i] || ex_is_dead(i));
    writing = -1;
    EX_CHECK(mc_rw_release_write(&rw));
}

int main(int argc, char **argv) {
    double seconds = argc > 1 ? atof(argv[1]) : 0;
    ex_stuck = stuck;
    const ex_scenario scenarios[] = {
        {"lock, two parties, two rounds", 2, {lock_use, lock_use}, {true, true}, lock_begin_2, NULL, lock_end, EX_EVERY, 2},
        {"lock, three parties", 3, {lock_use, lock_use, lock_use}, {true, true, true}, lock_begin_1, NULL, lock_end, EX_EVERY, 2},
        {"lock, two parties and one that only tries", 3, {lock_use, lock_use, lock_try_once}, {true, true, true},
         lock_begin_1, NULL, lock_end, EX_EVERY, 1},
        {"lock, three parties, deaths are heard of", 3, {lock_use, lock_use, lock_use}, {true, true, true}, lock_begin_1,
         lock_heard, lock_end, EX_EVERY, 2},
        {"semaphore of one, two parties, two rounds", 2, {sem_use, sem_use}, {true, true}, sem_begin_1, NULL, sem_end, EX_EVERY, 2},
        {"semaphore of two, three parties", 3, {sem_use, sem_use, sem_use}, {true, true, true}, sem_begin_2, NULL,
         sem_end, EX_EVERY, 1},
        {"semaphore of two, three parties, deaths are heard of", 3, {sem_use, sem_use, sem_use}, {true, true, true},
         sem_begin_2, sem_heard, sem_end, EX_EVERY, 1},
        {"semaphore of none, one gives two, two take", 3, {sem_give_two, sem_take_one, sem_take_one},
         {false, true, true}, sem_begin_0, NULL, sem_signals_end, EX_EVERY, 1},
        {"event, one sets, two wait", 3, {event_set, event_wait, event_wait}, {false, true, true}, event_begin, NULL,
         event_end, EX_EVERY, 1},
        {"event, two set, one waits", 3, {event_set, event_set, event_wait}, {true, false, false}, event_begin, NULL,
         event_end, EX_EVERY, 1},
        {"condition, two items, one consumer", 2, {cond_produce_two, cond_consume_two}, {false, true}, cond_begin, NULL,
         cond_end, EX_EVERY, 1},
        {"condition, the notifier of one dies", 2, {cond_notify_all, cond_wait_for_a_while}, {true, false},
         cond_begin_patient, NULL, cond_notifier_dies_end, EX_EVERY, 1},
        {"condition, two items, two consumers", 3, {cond_produce_two, cond_consume, cond_consume}, {false, true, true},
         cond_begin, NULL, cond_end, 4, 0},
        {"condition, a consumer dies", 3, {cond_produce_two, cond_consume, cond_consume}, {false, true, true},
         cond_begin, NULL, cond_end, 2, 1},
        {"condition, a consumer dies and it is heard of", 3, {cond_produce_two, cond_consume, cond_consume},
         {false, true, true}, cond_begin, cond_heard, cond_end, 2, 1},
        {"condition, the notifier dies", 3, {cond_notify_all, cond_wait_for_a_while, cond_wait_for_a_while},
         {true, false, false}, cond_begin_patient, NULL, cond_notifier_dies_end, EX_EVERY, 1},
        {"barrier of two, two rounds", 2, {barrier_use, barrier_use}, {true, true}, barrier_begin_2, NULL, barrier_end, EX_EVERY, 2},
        {"barrier of three", 3, {barrier_use, barrier_use, barrier_use}, {true, true, true}, barrier_begin_3, NULL,
         barrier_end, EX_EVERY, 1},
        {"barrier of three, deaths are heard of", 3, {barrier_use, barrier_use, barrier_use}, {true, true, true},
         barrier_begin_3, barrier_heard, barrier_end, EX_EVERY, 1},
        {"barrier of two with an action, deaths are heard of", 2, {barrier_act, barrier_act}, {true, true},
         barrier_begin_2, barrier_heard, barrier_end, EX_EVERY, 1},
        {"barrier of two with an action", 2, {barrier_act, barrier_act}, {true, true}, barrier_begin_2, NULL,
         barrier_end, EX_EVERY, 2},
    };
    for (size_t i = 0; i < sizeof scenarios / sizeof *scenarios; i++) explore(&scenarios[i], seconds);
    const ex_scenario readers_and_writers[] = {
        {"one writes, one reads", 2, {rw_write, rw_read}, {true, true}, rw_begin, NULL, all_are_done, EX_EVERY, 1},
        {"one writes, one reads, deaths are heard of", 2, {rw_write, rw_read}, {true, true}, rw_begin, rw_heard, all_are_done,
         EX_EVERY, 1},
        {"two read, one writes", 3, {rw_write, rw_read, rw_read}, {true, true, true}, rw_begin, NULL, all_are_done, 3, 1},
        {"two write, one reads", 3, {rw_write, rw_write, rw_read}, {true, true, true}, rw_begin, NULL, all_are_done, 3, 1},
    };
    for (size_t i = 0; i < sizeof readers_and_writers / sizeof *readers_and_writers; i++)
        explore(&readers_and_writers[i], seconds);
    return 0;
}
