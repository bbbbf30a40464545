/* The task ring, the result rings and the bell in every order, with deaths: a small engine over the real headers. */
#include "explore.h"

#define MANYCORE_FAULT_H
#define MC_FAULT(point) ((void)0) /* each is beside an atomic operation, which is a stop already */
#define MC_WORKERS_MAX 2
#include "result_ring.h"
#include "task_ring.h"

#define WORKERS 2
#define SLOTS 2
#define SLOTS_MOST 3
#define TASKS_MOST 3
#define CAPACITY 128 /* bytes of a result ring: three records do not fit */

static union {
    mc_tasks tasks;
    uint8_t bytes[sizeof(mc_tasks) + SLOTS_MOST * MC_SLOT_BYTES];
} memory;
static struct {
    mc_results ring;
    uint8_t data[CAPACITY];
} results[WORKERS];
static mc_tasks *const tasks = &memory.tasks;

static int wanted;                          /* tasks of this scenario */
static int executed[TASKS_MOST + 1];        /* how often the task's code began */
static int answers[TASKS_MOST + 1];         /* how often its future was resolved */
static bool lost[TASKS_MOST + 1];           /* with WorkerDied */
static bool handled[WORKERS];               /* deaths the parent has dealt with */

static void begin_with(int count, uint32_t slots) {
    memset(&memory, 0, sizeof memory);
    mc_tasks_init(tasks, slots);
    for (int i = 0; i < WORKERS; i++) {
        memset(&results[i], 0, sizeof results[i]);
        mc_results_init(&results[i].ring, CAPACITY);
        handled[i] = false;
    }
    memset(executed, 0, sizeof executed);
    memset(answers, 0, sizeof answers);
    memset(lost, 0, sizeof lost);
    wanted = count;
}
static void begin(int count) { begin_with(count, SLOTS); }
static void begin_1(void) { begin(1); }
static void begin_2(void) { begin(2); }
static void begin_3(void) { begin(3); }

static void put_result(int worker, uint64_t task, int64_t *lease) {
    mc_results *ring = &results[worker].ring;
    mc_record *record;
    while ((record = mc_reserve(ring, sizeof *record)) == NULL) {
        mc_decline(tasks, lease);
        mc_notify(tasks, true);
        mc_wait_room(ring, sizeof *record);
    }
    memset(record, 0, sizeof *record);
    record->size = sizeof *record;
    record->task = task;
    mc_commit(ring, sizeof *record);
}

static void work(int worker) {
    mc_spinner spinner = {.cores = 1};
    int64_t lease = 0;
    mc_page *page = &tasks->pages[worker];
    for (;;) {
        mc_slot *slot = mc_claim(tasks, (unsigned)worker, &lease);
        if (slot != NULL) {
            uint64_t task = slot->task;
            EX_CHECK(slot->length == 8 && memcmp(slot->payload, &task, 8) == 0);
            atomic_store(&page->task, task);
            mc_free(slot);
            ex_stop("begins");
            executed[task]++;
            if (mc_ready(tasks) == 0) mc_lease(tasks, &lease, mc_now_ns());
            put_result(worker, task, &lease);
            if (!mc_results_empty(&results[worker].ring)) mc_notify(tasks, false);
            atomic_store(&page->task, 0);
        } else if (atomic_load(&page->stop)) {
            mc_decline(tasks, &lease);
            return;
        } else {
            mc_worker_wait(tasks, (unsigned)worker, &spinner, &lease, mc_results_empty(&results[worker].ring), MC_NEVER);
        }
    }
}
static void worker_1(void) { work(0); } /* party 1 */
static void worker_2(void) { work(1); } /* party 2 */

static bool any_result(void) {
    for (int w = 0; w < WORKERS; w++)
        if (!mc_results_empty(&results[w].ring)) return true;
    return false;
}

static int collect(int worker) {
    bool broken = false;
    mc_record *record;
    int count = 0;
    while ((record = mc_peek(&results[worker].ring, &broken)) != NULL) {
        answers[record->task]++;
        count++;
        mc_take(&results[worker].ring, record->size);
    }
    EX_CHECK(!broken);
    return count;
}

static void publish(uint64_t *queue, int *count) {
    while (*count > 0 && mc_publish(tasks, queue[*count - 1], 0, 0, "", 0, &queue[*count - 1], 8) >= 0) {
        --*count;
        mc_kick(tasks);
    }
}

static void parent(void) {
    uint64_t queue[TASKS_MOST];
    int queued = 0, resolved = 0;
    for (int t = wanted; t >= 1; t--) queue[queued++] = (uint64_t)t;
    atomic_store(&tasks->fg, 1);
    publish(queue, &queued);
    while (resolved < wanted) {
        for (int w = 0; w < WORKERS; w++) {
            bool dead = ex_is_dead(w + 1) && !handled[w];
            resolved += collect(w);
            if (!dead) continue;
            uint64_t again[SLOTS], running = atomic_load(&tasks->pages[w].task);
            uint32_t found = mc_repair(tasks, (unsigned)w, again, SLOTS);
            for (uint32_t i = 0; i < found; i++) {
                EX_CHECK(executed[again[i]] == 0); /* safe to publish again */
                queue[queued++] = again[i];
                if (running == again[i]) running = 0;
            }
            if (running != 0 && answers[running] == 0) {
                answers[running]++;
                lost[running] = true;
                resolved++;
            }
            handled[w] = true;
            if (mc_ready(tasks)) mc_wake_one(tasks);
        }
        publish(queue, &queued);
        if (resolved == wanted) break;
        bool death = false;
        for (int w = 0; w < WORKERS; w++) death |= ex_is_dead(w + 1) && !handled[w];
        if (death || any_result()) continue;
        atomic_store(&tasks->fg, 2);
        for (int w = 0; w < WORKERS; w++) death |= ex_is_dead(w + 1) && !handled[w];
        if (!death && !any_result()) {
            if (mc_ready(tasks)) mc_wake_one(tasks);
            mc_wait(&tasks->fg, 2, MC_NEVER);
        }
        atomic_store(&tasks->fg, 1);
    }
    for (unsigned w = 0; w < WORKERS; w++) {
        atomic_store(&tasks->pages[w].stop, 1);
        mc_wake_worker(tasks, w);
    }
}

static void died(int party) {
    (void)party;
    mc_alarm(tasks);
}

static void end(void) {
    for (int i = 0; i < ex.scenario->parties; i++) {
        if (ex.now.status[i] == EX_ASLEEP) ex_fail("somebody sleeps for ever");
        EX_CHECK(ex.now.status[i] == EX_DONE || ex.now.status[i] == EX_DEAD);
    }
    for (int t = 1; t <= wanted; t++) {
        EX_CHECK(answers[t] == 1);
        EX_CHECK(executed[t] <= 1);
        EX_CHECK(executed[t] == 1 || lost[t]);
    }
}

/* As the threads of a process collect: under their lock, which is not what is explored here. */
static int collect_locked(int worker) {
    int me = ex.current;
    ex.current = -1;
    int count = collect(worker);
    ex.current = me;
    return count;
}

/* A collector thread in the background and a thread that waits in the foreground, which leaves early. */
static bool collected;
static void bell_begin(void) {
    begin(1);
    collected = false;
}
static void bell_foreground(void) {
    atomic_store(&tasks->fg, 1);
    collected |= collect_locked(1) > 0;
    atomic_store(&tasks->fg, 0); /* it leaves, whether it got its result or not */
    if (any_result()) mc_ring_word(&tasks->bg, 1, 0);
}
static void bell_background(void) {
    while (!collected) {
        atomic_store(&tasks->bg, 1);
        if (atomic_load(&tasks->fg) != 0 || !any_result()) mc_wait(&tasks->bg, 1, MC_NEVER);
        atomic_store(&tasks->bg, 0);
        if (atomic_load(&tasks->fg) == 0) collected |= collect_locked(1) > 0;
    }
}
static void bell_worker(void) {
    int64_t lease = 0;
    put_result(1, 1, &lease);
    mc_notify(tasks, true);
}
static void bell_end(void) {
    EX_CHECK(collected); /* by the one or by the other; the background may sleep on only if the other did */
    EX_CHECK(answers[1] == 1);
}

/* A result ring that is too small for what is put. */
static void full_worker(void) {
    int64_t lease = 0;
    for (uint64_t t = 1; t <= 5; t++) put_result(1, t % 3 + 1, &lease);
}
static int full_taken;
static void full_begin(void) {
    begin(3);
    full_taken = 0;
}
static void full_parent(void) {
    while (full_taken < 5) {
        int count = collect(1);
        full_taken += count;
        if (count > 0) continue;
        atomic_store(&tasks->fg, 2);
        if (ex_is_dead(0) && !any_result()) return;
        if (!any_result()) mc_wait(&tasks->fg, 2, MC_NEVER);
        atomic_store(&tasks->fg, 1);
    }
}
static void full_notifying_worker(void) {
    full_worker();
    mc_notify(tasks, true);
}
static void full_end(void) {
    for (int i = 0; i < 2; i++)
        if (ex.now.status[i] == EX_ASLEEP) ex_fail("somebody sleeps for ever");
    EX_CHECK(full_taken == 5 || ex_is_dead(0));
}

/* ---- few steps, and every order of them: no bound on the forced switches ---- */

static int64_t ticket[TASKS_MOST + 1];
static bool withdrawn[TASKS_MOST + 1];

/* Two tasks are in the ring, two workers claim, and the parent takes the first back. */
static void claim_begin(void) {
    begin(2);
    memset(withdrawn, 0, sizeof withdrawn);
    for (uint64_t t = 1; t <= 2; t++) ticket[t] = mc_publish(tasks, t, 0, 0, "", 0, &t, 8);
}
static void claim_with(unsigned worker, int64_t *lease) {
    mc_slot *slot = mc_claim(tasks, worker, lease);
    if (slot == NULL) return;
    uint64_t task = slot->task;
    EX_CHECK(slot->length == 8 && memcmp(slot->payload, &task, 8) == 0);
    atomic_store(&tasks->pages[worker].task, task);
    mc_free(slot);
    executed[task]++;
}
static void claim(unsigned worker) {
    int64_t lease = 0;
    claim_with(worker, &lease);
}
static void claim_1(void) { claim(0); }
static void claim_2(void) { claim(1); }
static void claim_withdraw(void) { withdrawn[1] = mc_withdraw(tasks, (uint64_t)ticket[1]); }
static void claim_end(void) {
    uint64_t again[SLOTS];
    int found = 0, died_with = 0, left = 0, deaths = 0;
    for (unsigned w = 0; w < WORKERS; w++) {
        if (!ex_is_dead((int)w + 1)) continue;
        uint64_t running = atomic_load(&tasks->pages[w].task);
        uint32_t count = mc_repair(tasks, w, again, SLOTS);
        EX_CHECK(count <= 1);
        for (uint32_t i = 0; i < count; i++) {
            EX_CHECK(executed[again[i]] == 0 && !withdrawn[again[i]]);
            if (running == again[i]) running = 0;
        }
        found += (int)count;
        died_with += running != 0 && executed[running] == 0;
        deaths++;
    }
    for (int i = 0; i < SLOTS; i++) {
        unsigned state = MC_SLOT_STATE(atomic_load(&tasks->slot[i].word));
        EX_CHECK(state != MC_CLAIMED);
        left += state == MC_READY;
    }
    /* each task is in one place, and the living have taken whatever they could */
    EX_CHECK(executed[1] + executed[2] + withdrawn[1] + found + died_with + left == 2);
    EX_CHECK(executed[1] + withdrawn[1] <= 1 && executed[2] <= 1);
    EX_CHECK(left == 0 || deaths > 0);
}

/* The parent publishes while the workers go to sleep; a full ring, and a slot whose claimer is slow. */
static bool gave_up;
static void sleep_begin(void) {
    begin(3);
    gave_up = false;
    for (uint64_t t = 1; t <= 1; t++) ticket[t] = mc_publish(tasks, t, 0, 0, "", 0, &t, 8);
}
static void sleep_publish(void) {
    for (uint64_t t = 2; t <= 3; t++)
        if (mc_publish(tasks, t, 0, 0, "", 0, &t, 8) >= 0) mc_kick(tasks);
        else gave_up = true; /* the engine publishes it when a result has come */
}
static void sleep_work(unsigned worker) {
    mc_spinner spinner = {.cores = 1};
    int64_t lease = 0;
    for (int turns = 0; turns < 2; turns++) {
        claim_with(worker, &lease);
        if (mc_ready(tasks) == 0 && !gave_up) mc_worker_wait(tasks, worker, &spinner, &lease, false, MC_NEVER);
    }
    claim_with(worker, &lease);
    claim_with(worker, &lease);
}
static void sleep_1(void) { sleep_work(0); }
static void sleep_end(void) {
    /* whoever sleeps has nothing to do */
    if (ex.now.status[1] == EX_ASLEEP) EX_CHECK(mc_ready(tasks) == 0);
    EX_CHECK(ex.now.status[0] == EX_DONE);
    for (int t = 1; t <= 3; t++) EX_CHECK(executed[t] <= 1);
}

/* A short task, then two that wait for each other: both workers must come, though the parent, which has published
 * and gone, wakes nobody any more, and no lease expires. */
static mc_word together;
static void meet_begin(void) {
    begin_with(3, SLOTS_MOST);
    atomic_store(&together, 0);
}
static void meet_publish(void) {
    for (uint64_t t = 1; t <= 3; t++) {
        EX_CHECK(mc_publish(tasks, t, 0, 0, "", 0, &t, 8) >= 0);
        mc_kick(tasks);
    }
}
static void meet_work(unsigned worker) {
    mc_spinner spinner = {.cores = 1};
    int64_t lease = 0;
    for (;;) {
        mc_slot *slot = mc_claim(tasks, worker, &lease);
        if (slot == NULL) {
            mc_worker_wait(tasks, worker, &spinner, &lease, false, MC_NEVER);
            continue;
        }
        uint64_t task = slot->task;
        mc_free(slot);
        executed[task]++;
        if (task == 1) {
            if (mc_ready(tasks) == 0) mc_lease(tasks, &lease, mc_now_ns()); /* as before it puts its result */
            continue;
        }
        atomic_fetch_add(&together, 1);
        mc_wake(&together, 2);
        for (uint32_t seen; (seen = atomic_load(&together)) < 2;) mc_wait(&together, seen, MC_NEVER);
        return;
    }
}
static void meet_1(void) { meet_work(0); }
static void meet_2(void) { meet_work(1); }
static void meet_end(void) {
    for (int i = 0; i < 3; i++) EX_CHECK(ex.now.status[i] == EX_DONE);
    for (int t = 1; t <= 3; t++) EX_CHECK(executed[t] == 1);
}

/* Who takes the lease before its result leaves the other asleep when the next task comes, unless it declines. */
static bool sleeps(unsigned worker) { return atomic_load(&tasks->sleeping[0]) >> worker & 1; }
static void lease_steps(void) {
    int64_t lease = 0, other = 0, now = mc_now_ns();
    uint64_t task = 1;
    atomic_fetch_or(&tasks->sleeping[0], 2); /* the second worker */
    mc_lease(tasks, &lease, now);
    mc_lease(tasks, &other, now);
    EX_CHECK(lease != 0 && other == 0); /* one has it */
    mc_publish(tasks, task, 0, 0, "", 0, &task, 8);
    mc_kick(tasks);
    EX_CHECK(sleeps(1)); /* the first will have it */
    claim_with(0, &lease);
    EX_CHECK(executed[1] == 1 && sleeps(1) && lease == 0 && atomic_load(&tasks->spin_until) == 0);
    mc_lease(tasks, &lease, now);
    mc_lease(tasks, &lease, now + 1);
    EX_CHECK(lease == now + 1 + MC_SPIN_BUDGET_NS); /* prolonged */
    task = 2;
    mc_publish(tasks, task, 0, 0, "", 0, &task, 8);
    mc_kick(tasks);
    EX_CHECK(sleeps(1));
    mc_decline(tasks, &lease); /* its result takes long */
    EX_CHECK(!sleeps(1) && lease == 0);
    claim_with(1, &other);
    mc_lease(tasks, &lease, now);
    mc_lease(tasks, &other, now + 2 * MC_SPIN_BUDGET_NS); /* the first was stopped */
    EX_CHECK(other != 0);
    mc_return(tasks, &lease);
    EX_CHECK(atomic_load(&tasks->spin_until) == other); /* it ends nobody else's */
}
static void lease_end(void) { EX_CHECK(executed[1] == 1 && executed[2] == 1); }

int main(int argc, char **argv) {
    double seconds = argc > 1 ? atof(argv[1]) : 0;
    const ex_scenario scenarios[] = {
        {"one task, two workers", 3, {parent, worker_1, worker_2}, {false, true, true}, begin_1, died, end, 2, 1},
        {"two tasks, two workers", 3, {parent, worker_1, worker_2}, {false, true, true}, begin_2, died, end, 1, 1},
        {"three tasks, two slots, two workers", 3, {parent, worker_1, worker_2}, {false, true, true}, begin_3, died, end,
         1, 1},
        {"three tasks, nobody dies", 3, {parent, worker_1, worker_2}, {false}, begin_3, NULL, end, 2, 0},
        {"the bell", 3, {bell_foreground, bell_background, bell_worker}, {false}, bell_begin, NULL, bell_end, EX_EVERY, 0},
        {"a full result ring", 2, {full_notifying_worker, full_parent}, {true, false}, full_begin, died, full_end, EX_EVERY, 1},
        {"two claims against a withdrawal", 3, {claim_withdraw, claim_1, claim_2}, {false, true, true}, claim_begin, NULL,
         claim_end, EX_EVERY, 2},
        {"publications against sleep", 2, {sleep_publish, sleep_1}, {false, true}, sleep_begin, NULL, sleep_end, EX_EVERY, 1},
        {"tasks that wait for each other", 3, {meet_publish, meet_1, meet_2}, {false}, meet_begin, NULL, meet_end, 3, 0},
        {"the lease", 1, {lease_steps}, {false}, begin_2, NULL, lease_end, EX_EVERY, 0},
        {"one task, one worker", 2, {parent, worker_1}, {false, false}, begin_1, NULL, end, EX_EVERY, 0},
    };
    for (size_t i = 0; i < sizeof scenarios / sizeof *scenarios; i++) explore(&scenarios[i], seconds);
    return 0;
}
