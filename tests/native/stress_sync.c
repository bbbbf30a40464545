/* Threads on locks, semaphores, events, conditions, barriers, readers and writers, and atomics, under a sanitizer.
 *
 * What each guards is plain memory: a missing order is a data race, and the sanitizer says so. */
#define _GNU_SOURCE
#include "atomic.h"
#include "barrier.h"
#include "condition.h"
#include "event.h"
#include "lock.h"
#include "rwlock.h"
#include "semaphore.h"

#include <pthread.h>

#define THREADS 4

static mc_lock lock, cond_lock;
static struct {
    mc_sem sem;
    mc_owner_word tokens[2];
} sem;
static mc_event event;
static mc_cond cond;
static struct {
    mc_barrier barrier;
    mc_party party[THREADS];
} barrier;
static mc_rwlock rw;
static mc_atomic number;
static mc_event stop;

static long guarded, pair[2], cells[THREADS], produced, consumed, message;
static _Atomic long in_sem, lock_rounds, sem_rounds, rw_rounds, cond_rounds, barrier_rounds;
static double seconds;

static void die(const char *what) {
    fprintf(stderr, "stress_sync: %s\n", what);
    exit(1);
}

static int64_t end_of(double part) { return mc_now_ns() + (int64_t)(seconds * part * 1e9); }

static void take(mc_lock *l, mc_spinner *spinner) {
    uint64_t self = mc_self();
    if (mc_lock_try(l, self)) return;
    mc_waiting w;
    mc_waiting_begin(&w, MC_NEVER);
    mc_outcome outcome;
    while ((outcome = mc_lock_wait(l, self, &w, spinner)) == MC_AGAIN) {
    }
    mc_lock_left(l, &w);
    if (outcome != MC_TAKEN) die("the lock was taken over from the living");
}

static void *use_lock(void *unused) {
    (void)unused;
    mc_spinner spinner = {0};
    for (int64_t end = end_of(0.2); mc_now_ns() < end;) {
        take(&lock, &spinner);
        guarded++;
        mc_lock_release(&lock);
        lock_rounds++;
    }
    return NULL;
}

static void *use_sem(void *unused) {
    (void)unused;
    mc_spinner spinner = {0};
    uint32_t hint = 0;
    for (int64_t end = end_of(0.2); mc_now_ns() < end;) {
        mc_waiting w;
        mc_waiting_begin(&w, MC_NEVER);
        while (mc_sem_wait(&sem.sem, mc_self(), &w, &spinner, &hint) == MC_AGAIN) {
        }
        mc_sem_left(&sem.sem, &w, false);
        if (atomic_fetch_add(&in_sem, 1) >= 2) die("three in a semaphore of two");
        atomic_fetch_sub(&in_sem, 1);
        if (mc_sem_release(&sem.sem, mc_self(), &hint) != 0) die("release");
        sem_rounds++;
    }
    return NULL;
}

static void *use_rw(void *argument) {
    mc_spinner spinner = {0};
    bool writer = (long)argument == 0;
    for (int64_t end = end_of(0.2); mc_now_ns() < end;) {
        mc_waiting w;
        if (writer) {
            take(&rw.writer, &spinner);
            mc_waiting_begin(&w, MC_NEVER);
            while (mc_rw_wait_drain(&rw, &w, &spinner) == MC_AGAIN) {
            }
            pair[0]++;
            pair[1]++;
            mc_rw_release_write(&rw);
        } else {
            mc_waiting_begin(&w, MC_NEVER);
            while (mc_rw_wait_read(&rw, mc_self(), &w, &spinner) == MC_AGAIN) {
            }
            mc_rw_read_left(&rw, &w);
            if (pair[0] != pair[1]) die("a reader saw half a change");
            mc_rw_release_read(&rw, mc_self());
        }
        rw_rounds++;
    }
    return NULL;
}

static void *use_cond(void *argument) {
    mc_spinner spinner = {0};
    mc_cond_wakes later = {0};
    bool producer = (long)argument < 2;
    for (int64_t end = end_of(0.2);;) {
        take(&cond_lock, &spinner);
        if (producer) {
            produced++;
            mc_cond_notify(&cond, 1, &later);
        } else {
            while (produced == consumed && mc_now_ns() < end) {
                mc_cond_waiter w;
                mc_waiting_begin(&w.waiting, end);
                mc_cond_enter(&cond, mc_self(), &w);
                mc_lock_release(&cond_lock);
                while (mc_cond_wait(&cond, mc_self(), &w, &spinner) == MC_AGAIN) {
                }
                take(&cond_lock, &spinner);
            }
            if (produced > consumed) consumed++;
        }
        cond_rounds++;
        bool over = mc_now_ns() >= end;
        mc_lock_release(&cond_lock);
        mc_cond_wake(&cond, &later);
        if (over) return NULL;
    }
}

static void *use_barrier(void *argument) {
    mc_spinner spinner = {0};
    long mine = (long)argument;
    for (int round = 1; round <= 400; round++) {
        cells[mine] = round;
        mc_barrier_waiter w;
        mc_waiting_begin(&w.waiting, MC_NEVER);
        mc_barrier_arrival arrival = mc_barrier_arrive(&barrier.barrier, mc_self(), false, &w);
        mc_outcome outcome = MC_TAKEN;
        if (arrival == MC_BARRIER_WAIT)
            while ((outcome = mc_barrier_wait(&barrier.barrier, &w, &spinner)) == MC_AGAIN) {
            }
        if (outcome != MC_TAKEN || arrival == MC_BARRIER_IS_BROKEN) die("the barrier broke");
        for (int i = 0; i < THREADS; i++)
            if (cells[i] != round) die("somebody was let through too early");
        mc_waiting_begin(&w.waiting, MC_NEVER); /* nobody writes before all have read */
        if (mc_barrier_arrive(&barrier.barrier, mc_self(), false, &w) == MC_BARRIER_WAIT)
            while (mc_barrier_wait(&barrier.barrier, &w, &spinner) == MC_AGAIN) {
            }
        barrier_rounds++;
    }
    return NULL;
}

static void *use_event(void *argument) {
    mc_spinner spinner = {0};
    if ((long)argument == 0) {
        message = 42;
        mc_event_set(&event);
        mc_atomic_exchange(&number, 7);
        return NULL;
    }
    mc_waiting w;
    mc_waiting_begin(&w, MC_NEVER);
    uint32_t count = mc_event_begin(&event);
    if (!mc_event_is_set(&event))
        while (mc_event_wait(&event, count, mc_self(), &w, &spinner) == MC_AGAIN) {
        }
    mc_event_left(&event, &w);
    if (message != 42) die("the event came before what it announced");
    mc_waiting_begin(&w, MC_NEVER);
    while (mc_atomic_wait(&number, 0, &w, &spinner) == MC_AGAIN) {
    }
    return NULL;
}

static void together(void *(*work)(void *)) {
    pthread_t threads[THREADS];
    for (long i = 0; i < THREADS; i++)
        if (pthread_create(&threads[i], NULL, work, (void *)i) != 0) die("pthread_create");
    for (int i = 0; i < THREADS; i++) pthread_join(threads[i], NULL);
}

int main(int argc, char **argv) {
    seconds = argc > 1 ? atof(argv[1]) : 1;
    mc_lock_init(&lock, 0);
    mc_lock_init(&cond_lock, 0);
    mc_sem_init(&sem.sem, 2, true);
    mc_event_init(&event);
    mc_event_init(&stop);
    mc_cond_init(&cond);
    mc_barrier_init(&barrier.barrier, THREADS, true);
    mc_rw_init(&rw);
    mc_atomic_init(&number, 0);
    together(use_lock);
    if (guarded != lock_rounds) die("an update was lost");
    together(use_sem);
    if (mc_sem_value(&sem.sem) != 2) die("a permit was lost or made");
    together(use_rw);
    together(use_cond);
    together(use_barrier);
    together(use_event);
    if (mc_cond_sleepers(&cond) != 0) die("a slot of the condition was left");
    printf("lock %ld, semaphore %ld, readers and writers %ld, condition %ld, barrier %ld\n", (long)lock_rounds,
           (long)sem_rounds, (long)rw_rounds, (long)cond_rounds, (long)barrier_rounds);
    return 0;
}
