/* Three writers, three readers, one queue, under a sanitizer; every record whole, once, in order per writer. */
#define _GNU_SOURCE
#include "queue.h"

#include <pthread.h>
#include <stdio.h>

#define PARTIES 3
#define LONGEST 70000

static mc_queue_handle q;
static atomic_int writing = PARTIES;
static _Atomic uint64_t put_count[PARTIES], got_count;
static int64_t until;

static void die(const char *what) {
    fprintf(stderr, "stress_queue: %s\n", what);
    exit(1);
}

static void take(mc_lock *lock) {
    static _Thread_local mc_spinner spinner;
    mc_waiting w;
    mc_waiting_begin(&w, MC_NEVER);
    while (mc_lock_wait(lock, mc_self(), &w, &spinner) == MC_AGAIN) {}
    mc_lock_left(lock, &w);
}

static void *writer(void *argument) {
    uint32_t who = (uint32_t)(uintptr_t)argument;
    static _Thread_local unsigned char content[LONGEST];
    mc_queue *s = q.shared;
    mc_spinner spinner = {0};
    for (uint32_t index = 0; mc_now_ns() < until; index++) {
        uint32_t size = index % 50 == 0 ? LONGEST : index % 100, head[2] = {who, index};
        memset(content, (int)(who + index), size);
        mc_waiting w;
        mc_waiting_begin(&w, MC_NEVER);
        for (;;) {
            uint32_t seen = atomic_load(&s->head.version);
            if (mc_queue_has_room(s)) {
                take(&s->writers);
                if (mc_queue_has_room(s)) break;
                mc_lock_release(&s->writers);
            } else mc_queue_sleep(&s->head.version, &s->room, seen, &w, &spinner);
        }
        mc_queue_place place = mc_queue_look(&s->tail);
        mc_queue_cursor cursor = mc_queue_cursor_at(&q, place);
        if (mc_queue_begin_record(&q, &cursor, 0, sizeof head + size) != 0 ||
            mc_queue_write(&q, &cursor, head, sizeof head) != 0 || mc_queue_write(&q, &cursor, content, size) != 0)
            die("put");
        mc_queue_publish(&s->tail, cursor, place.count + 1);
        mc_lock_release(&s->writers);
        mc_queue_wake(&s->items, 1);
        mc_queue_left(&s->room, &w);
        put_count[who]++;
    }
    writing--;
    mc_queue_wake(&s->items, PARTIES);
    return NULL;
}

static void *reader(void *argument) {
    (void)argument;
    static _Thread_local unsigned char content[LONGEST];
    mc_queue *s = q.shared;
    mc_spinner spinner = {0};
    int64_t last[PARTIES] = {-1, -1, -1};
    for (;;) {
        mc_waiting w;
        mc_waiting_begin(&w, MC_NEVER);
        for (;;) {
            uint32_t seen = atomic_load(&s->tail.version);
            bool over = writing == 0;
            if (mc_queue_has_items(s)) {
                take(&s->readers);
                if (mc_queue_has_items(s)) break;
                mc_lock_release(&s->readers);
            } else if (over) return NULL;
            else mc_queue_sleep(&s->tail.version, &s->items, seen, &w, &spinner);
        }
        mc_queue_place place = mc_queue_look(&s->head);
        mc_queue_cursor cursor = mc_queue_cursor_at(&q, place);
        uint64_t kind, size;
        uint32_t head[2];
        if (mc_queue_next_record(&q, &cursor, &kind, &size) != 0 || mc_queue_read(&q, &cursor, head, sizeof head) != 0 ||
            mc_queue_read(&q, &cursor, content, size - sizeof head) != 0)
            die("get");
        mc_queue_publish(&s->head, cursor, place.count + 1);
        mc_queue_give_back(&q, place.block, cursor.block);
        mc_lock_release(&s->readers);
        mc_queue_wake(&s->room, 1);
        mc_queue_left(&s->items, &w);
        if (w.slept && mc_queue_has_items(s)) mc_queue_wake(&s->items, 1);
        size -= sizeof head;
        if (head[0] >= PARTIES || (int64_t)head[1] <= last[head[0]]) die("out of order");
        if (size != (head[1] % 50 == 0 ? LONGEST : head[1] % 100)) die("size");
        for (uint64_t i = 0; i < size; i++)
            if (content[i] != (unsigned char)(head[0] + head[1])) die("content");
        last[head[0]] = head[1];
        got_count++;
    }
}

int main(int argc, char **argv) {
    until = mc_now_ns() + (int64_t)((argc > 1 ? atof(argv[1]) : 2) * 1e9);
    int fd = memfd_create("stress", MFD_CLOEXEC);
    if (fd < 0 || mc_queue_open(&q, fd, 20) != 0) die("open");
    pthread_t threads[2 * PARTIES];
    for (uintptr_t i = 0; i < PARTIES; i++) {
        pthread_create(&threads[i], NULL, writer, (void *)i);
        pthread_create(&threads[PARTIES + i], NULL, reader, NULL);
    }
    for (int i = 0; i < 2 * PARTIES; i++) pthread_join(threads[i], NULL);
    uint64_t put = put_count[0] + put_count[1] + put_count[2];
    if (put != got_count) die("records are lost");
    printf("stress_queue: %llu records\n", (unsigned long long)put);
    mc_queue_close(&q);
    close(fd);
    return 0;
}
