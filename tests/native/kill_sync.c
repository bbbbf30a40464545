/* Processes that are killed while they use locks, semaphores, conditions, events, barriers: at each named point, and
 * at any instruction.
 *
 * The victim and the survivor (this process) do the same things; a witness waits on the condition with the victim.
 * After each death the survivor goes on: nothing may make it wait for longer than LIMIT_NS, the checker inside the
 * critical section must never find anybody else alive there, and no permit may be lost or made. */
#define _GNU_SOURCE
#define MANYCORE_FAULTS
#include "barrier.h"
#include "condition.h"
#include "event.h"
#include "lock.h"
#include "rwlock.h"
#include "semaphore.h"

#include <sys/wait.h>

#define LIMIT_NS 1000000000 /* nobody is blocked by a death for more than a second */
#define SLACK 3             /* times that, on a machine that is busy with other things */
#define PERMITS 2

typedef struct {
    mc_lock lock, cond_lock;
    _Alignas(64) mc_rwlock rw;
    _Alignas(64) mc_event event;
    _Alignas(64) mc_cond cond;
    _Alignas(64) struct {
        mc_sem sem;
        mc_owner_word tokens[PERMITS];
    } sem;
    _Alignas(64) struct {
        mc_barrier barrier;
        mc_party party[2];
    } barrier;
    _Alignas(64) mc_owner_word inside, writing;
    _Atomic int items, ready, over;
    _Atomic long told;
} mc_scene;

static mc_scene *at;
static mc_spinner spinner;
static bool i_am_victim;
static int64_t longest;
static char plan[64];

static void die(const char *what) {
    fprintf(stderr, "kill_sync: %s (plan %s)\n", what, plan[0] ? plan : "random");
    exit(1);
}

static void within_limit(int64_t began, const char *what) {
    int64_t took = mc_now_ns() - began;
    if (took > longest) longest = took;
    if (took > LIMIT_NS * (int64_t)SLACK) die(what);
}

/* Waits for ever if need be: the survivor measures how long it was. */
static bool take(mc_lock *l) {
    uint64_t self = mc_self();
    int64_t began = mc_now_ns();
    mc_outcome outcome = MC_TAKEN;
    if (!mc_lock_try(l, self)) {
        mc_waiting w;
        mc_waiting_begin(&w, MC_NEVER);
        while ((outcome = mc_lock_wait(l, self, &w, &spinner)) == MC_AGAIN)
            if (!i_am_victim) within_limit(began, "a lock was not got");
        mc_lock_left(l, &w);
    }
    if (!i_am_victim) within_limit(began, "a lock was not got");
    if (outcome == MC_TAKEN_OVER) atomic_fetch_add(&at->told, 1);
    return outcome == MC_TAKEN_OVER;
}

static void enter(mc_owner_word *inside, bool taken_over, const char *what) {
    uint64_t who = atomic_load(inside);
    if (who != 0 && !mc_owner_is_dead(who)) die(what);
    if (who != 0 && !taken_over) die("a death inside was not told");
    atomic_store(inside, mc_self());
}

static void leave(mc_owner_word *inside, const char *what) {
    if (atomic_load(inside) != mc_self()) die(what);
    atomic_store(inside, 0);
}

/* Inside: long enough that some die here, and where a point is to be reached, that the others sleep meanwhile. */
static void linger(void) {
    static unsigned times;
    if (plan[0] && times++ % 4 == 0) nanosleep(&(struct timespec){0, 500000}, NULL);
    for (int i = 0; i < 50; i++) mc_pause();
}

static void use_lock(void) {
    enter(&at->inside, take(&at->lock), "two inside a lock");
    linger();
    leave(&at->inside, "somebody came into a lock");
    if (!mc_lock_release(&at->lock)) die("the lock was released by another");
}

static void use_sem(void) {
    uint32_t hint = 0;
    int64_t began = mc_now_ns();
    mc_sem *s = &at->sem.sem;
    if (!mc_sem_try(s, mc_self(), &hint)) {
        mc_waiting w;
        mc_waiting_begin(&w, MC_NEVER);
        while (mc_sem_wait(s, mc_self(), &w, &spinner, &hint) == MC_AGAIN)
            if (!i_am_victim) within_limit(began, "a permit was not got");
        mc_sem_left(s, &w, false);
    }
    if (plan[0] && mc_sem_try(s, mc_self(), &hint)) { /* all of them */
        linger();
        if (mc_sem_release(s, mc_self(), &hint) != 0) die("a permit could not be given back");
    }
    linger();
    if (mc_sem_release(s, mc_self(), &hint) != 0) die("a permit could not be given back");
}

static void use_rw(bool write) {
    int64_t began = mc_now_ns();
    mc_waiting w;
    mc_waiting_begin(&w, MC_NEVER);
    if (write) {
        bool over = take(&at->rw.writer);
        while (mc_rw_wait_drain(&at->rw, &w, &spinner) == MC_AGAIN)
            if (!i_am_victim) within_limit(began, "a writer was not let in");
        uint64_t who = atomic_load(&at->writing);
        if (who != 0 && !mc_owner_is_dead(who)) die("two write");
        (void)over;
        atomic_store(&at->writing, mc_self());
        linger();
        leave(&at->writing, "somebody came to write");
        mc_rw_release_write(&at->rw);
    } else {
        while (mc_rw_wait_read(&at->rw, mc_self(), &w, &spinner) == MC_AGAIN)
            if (!i_am_victim) within_limit(began, "a reader was not let in");
        mc_rw_read_left(&at->rw, &w);
        uint64_t who = atomic_load(&at->writing);
        if (who != 0 && !mc_owner_is_dead(who)) die("one reads while another writes");
        linger();
        if (!mc_rw_release_read(&at->rw, mc_self())) die("a reader's place was lost");
    }
}

/* One item, if it comes within some milliseconds. */
static void consume(int64_t patience_ns) {
    mc_cond_waiter w;
    take(&at->cond_lock);
    mc_waiting_begin(&w.waiting, mc_now_ns() + patience_ns);
    if (atomic_load(&at->items) == 0) {
        mc_cond_enter(&at->cond, mc_self(), &w);
        mc_lock_release(&at->cond_lock);
        while (mc_cond_wait(&at->cond, mc_self(), &w, &spinner) == MC_AGAIN) {
        }
        take(&at->cond_lock);
    }
    if (atomic_load(&at->items) > 0) atomic_fetch_sub(&at->items, 1);
    mc_lock_release(&at->cond_lock);
}

/* Under the condition's lock. */
static void notify_and_release(void) {
    mc_cond_wakes later = {0};
    mc_cond_notify(&at->cond, 1, &later);
    mc_lock_release(&at->cond_lock);
    mc_cond_wake(&at->cond, &later);
}

/* An item that is notified once is consumed, unless the one that was woken for it died with it: then the next is. */
static void produce(void) {
    int64_t began = mc_now_ns();
    for (int attempt = 0; atomic_load(&at->items) > 0 || attempt == 0; attempt++) {
        if (attempt == 3) die("a notification was lost");
        take(&at->cond_lock);
        if (attempt == 0) atomic_store(&at->items, 1);
        notify_and_release();
        for (int64_t end = mc_now_ns() + LIMIT_NS; atomic_load(&at->items) > 0 && mc_now_ns() < end;) sched_yield();
    }
    (void)began;
}

static void use_event(void) {
    int64_t began = mc_now_ns();
    mc_event_set(&at->event);
    within_limit(began, "the setter of an event was blocked");
    mc_event_clear(&at->event);
}

static void await_event(int64_t patience_ns) {
    mc_waiting w;
    mc_waiting_begin(&w, mc_now_ns() + patience_ns);
    uint32_t count = mc_event_begin(&at->event);
    while (mc_event_wait(&at->event, count, mc_self(), &w, &spinner) == MC_AGAIN) {
    }
    mc_event_left(&at->event, &w);
}

static void meet(void) {
    mc_barrier *b = &at->barrier.barrier;
    int64_t began = mc_now_ns();
    mc_barrier_waiter w;
    mc_waiting_begin(&w.waiting, MC_NEVER);
    mc_barrier_arrival arrival = mc_barrier_arrive(b, mc_self(), true, &w);
    if (arrival == MC_BARRIER_ACT) mc_barrier_complete(b, mc_self(), &w);
    if (arrival == MC_BARRIER_WAIT || arrival == MC_BARRIER_FULL)
        while (mc_barrier_wait(b, &w, &spinner) == MC_AGAIN)
            if (!i_am_victim) within_limit(began, "a barrier did not end");
    if (!i_am_victim) within_limit(began, "a barrier did not end");
}

static void victim(bool holds_only) {
    i_am_victim = true;
    spinner = (mc_spinner){0};
    if (plan[0]) setenv("MANYCORE_FAULT", plan, 1);
    atomic_store(&at->ready, 1);
    int rarely = plan[0] ? 4 : 256; /* where it waits, or else most random deaths would be there */
    for (int i = 0; holds_only || i < 300; i++) {
        use_lock();
        use_sem();
        use_rw(i % 2);
        if (i % rarely == 0) consume(1000000);
        if (i % (2 * rarely) == 0) await_event(1000000);
        if (i % rarely == rarely / 2) {
            take(&at->cond_lock);
            notify_and_release();
        }
        use_event();
        if (i % (rarely / 4) == 0 && !(mc_barrier_is_broken(&at->barrier.barrier))) meet();
    }
    _exit(0);
}

static void witness(void) {
    while (!atomic_load(&at->over)) consume(3000000);
    _exit(0);
}

static uint64_t identity_of(pid_t pid) {
    char path[32];
    mc_process_stat stat;
    snprintf(path, sizeof path, "/proc/%d/stat", (int)pid);
    if (mc_read_stat(path, &stat) != 0) die("no /proc");
    return (uint64_t)stat.started << MC_OWNER_START_SHIFT | (mc_self() & MC_OWNER_SPACE) | (uint32_t)pid;
}

static void once(void) {
    use_lock();
    use_sem();
    use_rw(false);
    use_rw(true);
    produce();
    use_event();
}

/* One life of a victim. Returns whether it was killed. */
static bool life(unsigned *seed, bool after_a_death) {
    mc_barrier_init(&at->barrier.barrier, 2, true);
    atomic_store(&at->ready, 0);
    pid_t first = 0;
    if (after_a_death) { /* somebody has died holding everything, and the victim finds it */
        first = fork();
        if (first == 0) {
            uint32_t hint = 0;
            take(&at->lock);
            atomic_store(&at->inside, mc_self());
            mc_sem_try(&at->sem.sem, mc_self(), &hint);
            mc_sem_try(&at->sem.sem, mc_self(), &hint);
            _exit(0);
        }
        waitpid(first, NULL, 0);
    }
    pid_t pid = fork();
    if (pid == 0) victim(plan[0] == 0);
    mc_barrier_know_as(&at->barrier.barrier, identity_of(pid), (uint64_t)mc_barrier_before(0) << 2);
    mc_barrier_enroll(&at->barrier.barrier, mc_self());
    while (!atomic_load(&at->ready) && waitpid(pid, NULL, WNOHANG) == 0) sched_yield();
    int status = 0;
    if (plan[0] == 0) {
        for (int i = rand_r(seed) % 4; i > 0; i--) {
            once();
            meet();
        }
        struct timespec pause = {0, rand_r(seed) % 400000};
        if (rand_r(seed) % 2) nanosleep(&pause, NULL);
        kill(pid, SIGKILL);
        for (int i = 0; i < 3; i++) once(); /* while it dies, or is dead already */
        if (!mc_barrier_is_broken(&at->barrier.barrier)) meet();
        waitpid(pid, &status, 0);
    } else {
        int courtesy = after_a_death ? 100 : 0; /* ms in which the victim finds the dead first */
        for (int64_t end = mc_now_ns() + 20 * (int64_t)LIMIT_NS; waitpid(pid, &status, WNOHANG) == 0;) {
            if (courtesy-- > 0) {
                nanosleep(&(struct timespec){0, 1000000}, NULL);
                continue;
            }
            once();
            if (!mc_barrier_is_broken(&at->barrier.barrier)) meet();
            if (mc_now_ns() > end) die("the victim hangs");
        }
    }
    for (int i = 0; i < 2; i++) once();
    mc_sem_repair(&at->sem.sem);
    if (mc_sem_value(&at->sem.sem) != PERMITS) die("a permit was lost or made");
    return WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL;
}

int main(int argc, char **argv) {
    double seconds = argc > 1 ? atof(argv[1]) : 2;
    int runs = argc > 2 ? atoi(argv[2]) : 10000;
    unsigned seed = argc > 3 ? (unsigned)atoi(argv[3]) : 1;
    static const char *const points[] = {
        "lock:claimed", "lock:released", "lock:woke", "lock:sleeping", "lock:woken", "lock:claimed after a wait",
        "semaphore:claimed", "semaphore:released", "gate:opened", "event:set", "event:woke", "event:cleared",
        "event:sleeping", "event:woken", "condition:registered", "condition:sleeping", "condition:woken",
        "condition:got a signal", "condition:signalled", "condition:waking", "barrier:changed", "barrier:acting", "barrier:arrived", "barrier:sleeping",
        "barrier:woken", "rwlock:reader claimed", "rwlock:reader left", "rwlock:sleeping", "rwlock:woken",
    };
    static const char *const after_a_death[] = {"lock:taken over", "semaphore:repaired"};
    at = mmap(NULL, sizeof *at, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (at == MAP_FAILED) die("mmap");
    mc_lock_init(&at->lock, 0);
    mc_lock_init(&at->cond_lock, 0);
    mc_rw_init(&at->rw);
    mc_event_init(&at->event);
    mc_cond_init(&at->cond);
    mc_sem_init(&at->sem.sem, PERMITS, true);
    pid_t watcher = fork();
    if (watcher == 0) witness();
    int planned = 0, missed = 0, killed = 0, done = 0;
    for (size_t p = 0; p < sizeof points / sizeof *points + 2; p++)
        for (int pass = 1; pass <= 3; pass += 2) {
            bool special = p >= sizeof points / sizeof *points;
            if (special && pass > 1) continue;
            const char *name = special ? after_a_death[p - sizeof points / sizeof *points] : points[p];
            snprintf(plan, sizeof plan, "%s:%d", name, pass);
            bool hit = false; /* a victim may never be there: waits depend on who is faster */
            for (int attempt = 0; attempt < 5 && !hit; attempt++) hit = life(&seed, special);
            planned += hit;
            if (!hit) {
                missed++;
                printf("not reached: %s\n", plan);
            }
        }
    plan[0] = 0;
    for (int64_t end = mc_now_ns() + (int64_t)(seconds * 1e9); done < runs && mc_now_ns() < end; done++) killed += life(&seed, false);
    atomic_store(&at->over, 1);
    waitpid(watcher, NULL, 0);
    printf("killed at %d points (%d not reached), %d of %d at random; the longest wait %.1f ms; told %ld times\n", planned, missed,
           killed, done, (double)longest / 1e6, (long)atomic_load(&at->told));
    return 0;
}
