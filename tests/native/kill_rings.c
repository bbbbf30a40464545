/* Workers at the task ring and their result rings that are killed: at each named point, and at any instruction.
 *
 * A parent publishes tasks to two workers, as the engine does. One of them is the victim; its successor goes on with
 * the same rings. Each task is answered once, its code is begun once at most, and only one that was begun and not
 * answered may be lost, which is the one in the hands of the victim; nobody sleeps while there is something to do. */
#define _GNU_SOURCE
#define MANYCORE_FAULTS
#include "result_ring.h"
#include "task_ring.h"

#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/wait.h>

#define WORKERS 2
#define SLOTS 8
#define TASKS 48
#define CAPACITY 1024 /* bytes of a result ring: a few records */
#define LIMIT_NS 5000000000ll

typedef struct {
    union {
        mc_tasks tasks;
        uint8_t bytes[sizeof(mc_tasks) + SLOTS * MC_SLOT_BYTES];
    } ring;
    struct {
        mc_results ring;
        uint8_t data[CAPACITY];
    } results[WORKERS];
    _Atomic int begun[TASKS + 1];
} mc_scene;

static mc_scene *at;
static mc_tasks *tasks;
static char plan[64];
static pid_t pids[WORKERS];
static _Atomic int dead; /* the victim is, and that is known */
static long spins;       /* before a random kill; -1: it kills itself */

static void die(const char *what) {
    fprintf(stderr, "kill_rings: %s (plan %s)\n", what, plan[0] ? plan : "random");
    for (int w = 0; w < WORKERS; w++)
        if (pids[w] > 0) kill(pids[w], SIGKILL);
    exit(1);
}

static uint32_t bytes_of(uint64_t task) { return (uint32_t)(task * 37 % 400); }

static void work(unsigned worker) {
    mc_spinner spinner = {0};
    int64_t lease = 0;
    mc_page *page = &tasks->pages[worker];
    mc_results *ring = &at->results[worker].ring;
    uint8_t payload[MC_SLOT_PAYLOAD];
    for (;;) {
        mc_slot *slot = mc_claim(tasks, worker, &lease);
        if (slot == NULL) {
            if (atomic_load(&page->stop)) _exit(0);
            mc_worker_wait(tasks, worker, &spinner, &lease, mc_results_empty(ring), MC_NEVER);
            continue;
        }
        uint64_t task = slot->task;
        uint32_t length = slot->length;
        if (length > sizeof payload) _exit(3);
        memcpy(payload, slot->payload, length);
        atomic_store(&page->task, task);
        mc_free(slot);
        atomic_fetch_add(&at->begun[task], 1);
        uint32_t size = (uint32_t)sizeof(mc_record) + (length + 7) / 8 * 8;
        mc_record *record;
        if (mc_ready(tasks) == 0) mc_lease(tasks, &lease, mc_now_ns());
        while ((record = mc_reserve(ring, size)) == NULL) {
            mc_decline(tasks, &lease);
            mc_notify(tasks, true);
            mc_wait_room(ring, size);
        }
        record->size = size;
        record->task = task;
        record->length = length;
        memcpy(record + 1, payload, length);
        mc_commit(ring, size);
        if (!mc_results_empty(ring)) mc_notify(tasks, true);
        atomic_store(&page->task, 0);
    }
}

static pid_t start(unsigned worker, bool victim) {
    pid_t pid = fork();
    if (pid < 0) die("fork");
    if (pid == 0) {
        if (victim && plan[0]) setenv("MANYCORE_FAULT", plan, 1);
        work(worker);
    }
    return pid;
}

/* What the reaper of the library is: it learns of the death, and sounds the alarm. */
static void *reap(void *unused) {
    siginfo_t info;
    if (spins >= 0) {
        for (volatile long i = spins; i > 0; i--) {}
        kill(pids[0], SIGKILL);
    }
    waitid(P_PID, (id_t)pids[0], &info, WEXITED | WNOWAIT);
    atomic_store(&dead, 1);
    mc_alarm(tasks);
    return unused;
}

static bool any_result(void) {
    for (int w = 0; w < WORKERS; w++)
        if (!mc_results_empty(&at->results[w].ring)) return true;
    return false;
}

static int answers[TASKS + 1];

static int collect(int worker) {
    mc_results *ring = &at->results[worker].ring;
    bool broken = false;
    int count = 0;
    for (mc_record *record; (record = mc_peek(ring, &broken)) != NULL; count++) {
        if (record->task < 1 || record->task > TASKS || record->length != bytes_of(record->task)) die("a wrong record");
        for (uint32_t i = 0; i < record->length; i++)
            if (((uint8_t *)(record + 1))[i] != (uint8_t)record->task) die("another result's payload");
        answers[record->task]++;
        mc_take(ring, record->size);
    }
    if (broken) die("a broken record");
    return count;
}

/* One pool, one victim. Whether it was killed before it had nothing more to do. */
static bool one_run(void) {
    uint64_t queue[TASKS], lost = 0;
    int queued = 0, resolved = 0, status;
    bool killed = false, buried = false;
    uint8_t payload[MC_SLOT_PAYLOAD];
    pthread_t reaper;
    memset(at, 0, sizeof *at);
    memset(answers, 0, sizeof answers);
    mc_tasks_init(tasks, SLOTS);
    for (int w = 0; w < WORKERS; w++) mc_results_init(&at->results[w].ring, CAPACITY);
    for (uint64_t t = TASKS; t >= 1; t--) queue[queued++] = t;
    atomic_store(&dead, 0);
    atomic_store(&tasks->fg, 1);
    for (unsigned w = 0; w < WORKERS; w++) pids[w] = start(w, w == 0);
    if (pthread_create(&reaper, NULL, reap, NULL) != 0) die("no thread");
    while (resolved < TASKS || !buried) {
        uint64_t alarms = atomic_load(&tasks->alarms);
        bool is_dead = atomic_load(&dead) && !buried;
        for (int w = 0; w < WORKERS; w++) resolved += collect(w);
        if (is_dead) { /* its results were read to their end, after its death */
            uint64_t again[SLOTS], running = atomic_load(&tasks->pages[0].task);
            uint32_t found = mc_repair(tasks, 0, again, SLOTS);
            for (uint32_t i = 0; i < found; i++) {
                if (atomic_load(&at->begun[again[i]]) != 0) die("a task that had begun would be run again");
                queue[queued++] = again[i];
                if (running == again[i]) running = 0;
            }
            if (running != 0 && answers[running] == 0) {
                answers[running]++;
                lost = running;
                resolved++;
            }
            pthread_join(reaper, NULL);
            if (waitpid(pids[0], &status, 0) != pids[0]) die("waitpid");
            killed = WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL;
            if (!killed && (!WIFEXITED(status) || WEXITSTATUS(status) != 0)) die("the victim saw something wrong");
            memset(&at->results[0], 0, sizeof at->results[0]); /* as a successor's ring is: a new one */
            mc_results_init(&at->results[0].ring, CAPACITY);
            atomic_store(&tasks->pages[0].task, 0);
            atomic_store(&tasks->pages[0].stop, 0);
            pids[0] = start(0, false);
            buried = true;
            if (mc_ready(tasks)) mc_wake_one(tasks);
        }
        while (queued > 0) {
            uint64_t task = queue[queued - 1];
            memset(payload, (uint8_t)task, bytes_of(task));
            if (mc_publish(tasks, task, 0, 0, "", 0, payload, bytes_of(task)) < 0) break;
            queued--;
            mc_kick(tasks);
        }
        if (resolved == TASKS && !buried && !atomic_load(&dead)) { /* it outlived its work: it leaves in order, or is killed */
            atomic_store(&tasks->pages[0].stop, 1);
            mc_wake_worker(tasks, 0);
        }
        atomic_store(&tasks->fg, 2);
        if (!any_result() && atomic_load(&tasks->alarms) == alarms && (resolved < TASKS || !buried)) {
            if (mc_ready(tasks)) mc_wake_one(tasks);
            if (mc_wait(&tasks->fg, 2, mc_now_ns() + LIMIT_NS) == ETIMEDOUT) die("no answer: somebody sleeps for ever");
        }
        atomic_store(&tasks->fg, 1);
    }
    for (unsigned w = 0; w < WORKERS; w++) {
        atomic_store(&tasks->pages[w].stop, 1);
        mc_wake_worker(tasks, w);
    }
    for (int w = 0; w < WORKERS; w++)
        if (waitpid(pids[w], &status, 0) != pids[w] || status != 0) die("a worker did not leave in order");
    for (uint64_t t = 1; t <= TASKS; t++) {
        if (answers[t] != 1) die("a task was answered twice");
        if (atomic_load(&at->begun[t]) != 1 && t != lost) die("a task was begun twice, or answered and not begun");
        if (atomic_load(&at->begun[t]) > 1) die("a lost task was begun twice");
    }
    if (lost != 0 && !killed) die("a task was lost without a death");
    return killed;
}

int main(int argc, char **argv) {
    double seconds = argc > 1 ? atof(argv[1]) : 2;
    int runs = argc > 2 ? atoi(argv[2]) : 10000;
    unsigned seed = argc > 3 ? (unsigned)atoi(argv[3]) : 1;
    static const char *const points[] = {
        "tasks:claimed", "tasks:passed on", "tasks:copied", "tasks:freed", "tasks:spinning", "tasks:sleeping",
        "tasks:woken", "tasks:waking", "results:copied", "results:published", "results:lap ended", "results:waiting",
        "bell:changed",
    };
    at = mmap(NULL, sizeof *at, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (at == MAP_FAILED) die("mmap");
    tasks = &at->ring.tasks;
    int at_points = 0, missed = 0, random = 0, killed = 0;
    spins = -1;
    for (size_t p = 0; p < sizeof points / sizeof *points; p++)
        for (int pass = 1; pass <= 4; pass *= 2) {
            snprintf(plan, sizeof plan, "%s:%d", points[p], pass);
            bool hit = false; /* a victim may never be there: waits depend on who is faster */
            for (int attempt = 0; attempt < 5 && !hit; attempt++) hit = one_run();
            at_points += hit;
            missed += !hit;
        }
    plan[0] = 0;
    for (int64_t end = mc_now_ns() + (int64_t)(seconds * 1e9); random < runs && mc_now_ns() < end; random++) {
        spins = rand_r(&seed) % 2 ? rand_r(&seed) % 300000 : rand_r(&seed) % 1000000;
        killed += one_run();
    }
    if (at_points < 20) die("hardly a point was passed");
    printf("kill_rings: killed at %d points (%d not reached), at random %d of %d\n", at_points, missed, killed, random);
    return 0;
}
