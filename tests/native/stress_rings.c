/* Threads of one process on the task ring, result rings and the bell, for ThreadSanitizer and AddressSanitizer. */
#define _GNU_SOURCE
#include "result_ring.h"
#include "task_ring.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

#define WORKERS 3
#define SLOTS 8
#define CAPACITY 4096

static mc_tasks *tasks;
static mc_results *results[WORKERS];

static void die(const char *what) {
    fprintf(stderr, "stress_rings: %s\n", what);
    abort();
}

static void *work(void *argument) {
    unsigned worker = (unsigned)(uintptr_t)argument;
    mc_spinner spinner = {0};
    int64_t lease = 0;
    mc_page *page = &tasks->pages[worker];
    uint8_t payload[MC_SLOT_PAYLOAD];
    for (;;) {
        mc_slot *slot = mc_claim(tasks, worker, &lease);
        if (slot == NULL) {
            if (atomic_load(&page->stop)) return NULL;
            mc_worker_wait(tasks, worker, &spinner, &lease, mc_results_empty(results[worker]), MC_NEVER);
            continue;
        }
        uint64_t task = slot->task;
        uint32_t length = slot->length;
        memcpy(payload, slot->payload, length);
        atomic_store(&page->task, task);
        mc_free(slot);
        for (uint32_t i = 0; i < length; i++)
            if (payload[i] != (uint8_t)task) die("another task's payload");
        uint32_t size = (uint32_t)sizeof(mc_record) + (length + 7) / 8 * 8;
        mc_record *record;
        if (mc_ready(tasks) == 0) mc_lease(tasks, &lease, mc_now_ns());
        while ((record = mc_reserve(results[worker], size)) == NULL) {
            mc_decline(tasks, &lease);
            mc_notify(tasks, true);
            mc_wait_room(results[worker], size);
        }
        record->size = size;
        record->task = task;
        record->length = length;
        memcpy(record + 1, payload, length);
        mc_commit(results[worker], size);
        if (!mc_results_empty(results[worker])) mc_notify(tasks, true);
        atomic_store(&page->task, 0);
    }
}

static bool ready(void *unused) {
    (void)unused;
    for (int w = 0; w < WORKERS; w++)
        if (!mc_results_empty(results[w])) return true;
    return false;
}

int main(int argc, char **argv) {
    int64_t end = mc_now_ns() + (int64_t)((argc > 1 ? atof(argv[1]) : 2) * 1e9);
    unsigned seed = argc > 2 ? (unsigned)atoi(argv[2]) : 1;
    if (posix_memalign((void **)&tasks, 4096, mc_tasks_bytes(SLOTS)) != 0) die("memory");
    memset(tasks, 0, mc_tasks_bytes(SLOTS));
    mc_tasks_init(tasks, SLOTS);
    for (int w = 0; w < WORKERS; w++) {
        if (posix_memalign((void **)&results[w], 4096, sizeof(mc_results) + CAPACITY) != 0) die("memory");
        memset(results[w], 0, sizeof(mc_results) + CAPACITY);
        mc_results_init(results[w], CAPACITY);
    }
    pthread_t thread[WORKERS];
    for (uintptr_t w = 0; w < WORKERS; w++) pthread_create(&thread[w], NULL, work, (void *)w);
    uint64_t sent = 0, received = 0, sum = 0, withdrawn = 0;
    uint8_t payload[MC_SLOT_PAYLOAD];
    mc_spinner spinner = {0};
    atomic_store(&tasks->fg, 1);
    while (received < sent || mc_now_ns() < end) {
        while (sent - received < 64 && mc_now_ns() < end) {
            uint32_t length = (uint32_t)rand_r(&seed) % MC_SLOT_PAYLOAD;
            memset(payload, (uint8_t)(sent + 1), length);
            int64_t ticket = mc_publish(tasks, sent + 1, 0, 0, "", 0, payload, length);
            if (ticket < 0) break;
            sent++;
            sum += sent;
            if (rand_r(&seed) % 16 == 0 && mc_withdraw(tasks, (uint64_t)ticket)) {
                sum -= sent;
                received++;
                withdrawn++;
                continue;
            }
            mc_kick(tasks);
        }
        bool any = false, broken = false;
        for (int w = 0; w < WORKERS; w++) {
            mc_record *record;
            while ((record = mc_peek(results[w], &broken)) != NULL) {
                for (uint32_t i = 0; i < record->length; i++)
                    if (((uint8_t *)(record + 1))[i] != (uint8_t)record->task) die("another result's payload");
                sum -= record->task;
                received++;
                any = true;
                mc_take(results[w], record->size);
            }
        }
        if (broken) die("a broken record");
        if (any || received == sent) continue;
        if (!mc_spin(&spinner, ready, NULL)) {
            atomic_store(&tasks->fg, 2);
            if (!ready(NULL)) {
                if (mc_ready(tasks)) mc_wake_one(tasks);
                int64_t limit = mc_now_ns() + 5000000000;
                if (mc_wait(&tasks->fg, 2, limit) == ETIMEDOUT) die("no answer in five seconds: a wake-up was lost");
            }
            atomic_store(&tasks->fg, 1);
        }
    }
    for (unsigned w = 0; w < WORKERS; w++) {
        atomic_store(&tasks->pages[w].stop, 1);
        mc_wake_worker(tasks, w);
    }
    for (int w = 0; w < WORKERS; w++) pthread_join(thread[w], NULL);
    if (sum != 0) die("some task was answered twice, another never");
    printf("tasks %lu, withdrawn %lu\n", (unsigned long)sent, (unsigned long)withdrawn);
    return 0;
}
