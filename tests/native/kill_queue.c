/* Writers and readers of a queue that are killed: at each named point, and at any instruction.
 *
 * After each death a live writer and a live reader go on at once: every record that comes out is whole and was
 * put, in order, none twice; and at most the one in the hands of a dead reader is missing. */
#define _GNU_SOURCE
#define MANYCORE_FAULTS
#include "queue.h"

#include <signal.h>
#include <stdio.h>
#include <sys/wait.h>

#define ITEMS 40u
#define LONGEST 100000u

static int fd;
static unsigned char content[LONGEST];

static void die(const char *what) {
    fprintf(stderr, "kill_queue: %s\n", what);
    exit(1);
}

static void take(mc_queue_handle *q, mc_lock *lock) {
    mc_waiting w;
    mc_waiting_begin(&w, mc_now_ns() + 20000000000ll);
    mc_outcome outcome;
    while ((outcome = mc_lock_wait(lock, mc_self(), &w, &q->spinner)) == MC_AGAIN) {}
    mc_lock_left(lock, &w);
    if (outcome == MC_TIMED_OUT) die("the lock of a dead process was not taken over");
}

static void put(mc_queue_handle *q, uint32_t number) {
    mc_queue *s = q->shared;
    uint64_t size = number % 7 == 0 ? LONGEST : number * 37 % 3000;
    take(q, &s->writers);
    mc_queue_place place = mc_queue_look(&s->tail);
    mc_queue_cursor cursor = mc_queue_cursor_at(q, place);
    if (mc_queue_begin_record(q, &cursor, 0, sizeof number + size) != 0) die("begin");
    if (mc_queue_write(q, &cursor, &number, sizeof number) != 0) die("number");
    if (mc_queue_write(q, &cursor, content, size) != 0) die("content");
    MC_FAULT("queue:record copied");
    mc_queue_publish(&s->tail, cursor, place.count + 1);
    MC_FAULT("queue:record published");
    mc_lock_release(&s->writers);
    mc_queue_wake(&s->items, 1);
}

/* The number of the record, or -1 when there is none. */
static int64_t get(mc_queue_handle *q) {
    static unsigned char got[LONGEST];
    mc_queue *s = q->shared;
    uint64_t kind, size;
    uint32_t number;
    take(q, &s->readers);
    mc_queue_place head = mc_queue_look(&s->head);
    if (head.count == mc_queue_look(&s->tail).count) {
        mc_lock_release(&s->readers);
        return -1;
    }
    mc_queue_cursor cursor = mc_queue_cursor_at(q, head);
    if (mc_queue_next_record(q, &cursor, &kind, &size) != 0 || kind != 0 || size < sizeof number) die("a broken record");
    if (mc_queue_read(q, &cursor, &number, sizeof number) != 0) die("number");
    size -= sizeof number;
    if (size > LONGEST || mc_queue_read(q, &cursor, got, size) != 0 || memcmp(got, content, size) != 0)
        die("broken content");
    if (size != (number % 7 == 0 ? LONGEST : number * 37 % 3000)) die("a record of another size");
    MC_FAULT("queue:record read");
    mc_queue_publish(&s->head, cursor, head.count + 1);
    MC_FAULT("queue:record taken");
    mc_queue_give_back(q, head.block, cursor.block);
    mc_lock_release(&s->readers);
    mc_queue_wake(&s->room, 1);
    return number;
}

static uint32_t blocks_lost(mc_queue_handle *q) {
    mc_queue *s = q->shared;
    uint32_t chain = 1, given_back = 0;
    for (uint32_t b = atomic_load(&mc_queue_block_at(q, mc_queue_look(&s->head).block)->next); b != 0; chain++)
        b = atomic_load(&mc_queue_block_at(q, b - 1)->next);
    for (uint32_t b = atomic_load(&s->free); b != 0; given_back++)
        b = atomic_load(&mc_queue_block_at(q, b - 1)->next_free);
    return atomic_load(&s->fresh) - chain - given_back;
}

/* One queue, one victim. `writes`: it writes, else it reads. Returns whether it was killed. */
static bool one_run(const char *plan, bool writes, long delay_ns) {
    mc_queue_handle q;
    static int made;
    fd = memfd_create("kill", MFD_CLOEXEC);
    if (fd < 0 || mc_queue_open(&q, fd, 0) != 0) die("open");
    made++;
    uint32_t before = writes ? 0 : ITEMS;
    for (uint32_t i = 0; i < before; i++) put(&q, i);
    pid_t pid = fork();
    if (pid == 0) {
        if (plan != NULL) setenv("MANYCORE_FAULT", plan, 1);
        for (uint32_t i = 0; i < ITEMS; i++) {
            if (writes) put(&q, i);
            else if (get(&q) != i) _exit(3);
        }
        _exit(0);
    }
    if (plan == NULL) {
        struct timespec delay = {0, delay_ns};
        nanosleep(&delay, NULL);
        kill(pid, SIGKILL);
    }
    int status;
    waitpid(pid, &status, 0);
    bool killed = WIFSIGNALED(status);
    if (!killed && WEXITSTATUS(status) != 0) die("the victim saw something wrong");
    put(&q, 1000);
    int64_t number, expected = -1;
    bool last = false;
    while ((number = get(&q)) >= 0) {
        if (last) die("something behind the last");
        if (number == 1000) last = true;
        else if (expected >= 0 && number != expected) die("a record is missing in the middle, or twice");
        expected = number + 1;
    }
    if (!last) die("what was put after the death is lost");
    uint32_t lost = blocks_lost(&q);
    if (lost > (killed ? 4 : 0)) die("blocks are lost");
    mc_queue_close(&q);
    close(fd);
    return killed;
}

int main(int argc, char **argv) {
    double seconds = argc > 1 ? atof(argv[1]) : 2;
    int runs = argc > 2 ? atoi(argv[2]) : 10000;
    srand(argc > 3 ? (unsigned)atoi(argv[3]) : 1);
    static const char *const points[] = {
        "queue:block taken", "queue:block linked", "queue:part copied", "queue:record copied", "queue:record published",
        "queue:record read", "queue:record taken", "queue:block left", "lock:claimed", "lock:released", "lock:woke",
    };
    for (uint32_t i = 0; i < LONGEST; i++) content[i] = (unsigned char)(i * 7 + i / 251);
    int at_points = 0, random = 0, killed = 0;
    for (size_t p = 0; p < sizeof points / sizeof *points; p++)
        for (int pass = 1; pass < 40; pass += 1 + pass / 4) {
            char plan[64];
            snprintf(plan, sizeof plan, "%s:%d", points[p], pass);
            at_points += one_run(plan, true, 0);
            at_points += one_run(plan, false, 0);
        }
    int64_t until = mc_now_ns() + (int64_t)(seconds * 1e9);
    for (; random < runs && mc_now_ns() < until; random++) killed += one_run(NULL, random & 1, rand() % 800000);
    if (at_points < 100) die("hardly a point was passed");
    printf("kill_queue: %d killed at points, %d of %d at random\n", at_points, killed, random);
    return 0;
}
