/* Threads of one process on an arena, for ThreadSanitizer and AddressSanitizer.
 *
 * One allocator hands out blocks of all sizes; readers take, check and overwrite them, and give them back. */
#define _GNU_SOURCE
#include "allocator.h"

#include <pthread.h>
#include <stdio.h>
#include <time.h>

#define READERS 3
#define MAIL 64

typedef struct {
    _Atomic uint64_t ref; /* 0: empty */
    _Atomic uint64_t length; /* atomic: a reader that loses the block may look while they are written again */
    _Atomic uint8_t value;
} mail;

static mc_arena arena;
static mail box[MAIL];
static atomic_bool stop;
static atomic_ulong taken;

static void die(const char *what) {
    fprintf(stderr, "stress_arena: %s\n", what);
    abort();
}

static void *read_blocks(void *argument) {
    uint32_t owner = (uint32_t)(uintptr_t)argument, at = owner * 7;
    while (!atomic_load_explicit(&stop, memory_order_relaxed)) {
        mail *slot = &box[at++ % MAIL];
        uint64_t ref = atomic_load_explicit(&slot->ref, memory_order_acquire);
        if (ref == 0) continue;
        uint64_t length = atomic_load_explicit(&slot->length, memory_order_relaxed);
        uint8_t value = atomic_load_explicit(&slot->value, memory_order_relaxed);
        if (!atomic_compare_exchange_strong(&slot->ref, &ref, 0)) continue;
        mc_block *block = mc_block_take(&arena.view, ref, length, owner);
        if (block == NULL) die("what was sent cannot be taken");
        if (mc_block_take(&arena.view, ref, length, owner) != NULL) die("taken twice");
        uint8_t *payload = mc_block_payload(block);
        for (uint64_t i = 0; i < length; i += length / 8 + 1)
            if (payload[i] != value) die("other bytes than were put");
        if (length > 0) payload[length - 1] = payload[0] = (uint8_t)owner;
        if (!mc_block_give_back(&arena.view, block, ref, owner)) die("my own block is not mine");
        atomic_fetch_add_explicit(&taken, 1, memory_order_relaxed);
    }
    return NULL;
}

int main(int argc, char **argv) {
    double seconds = argc > 1 ? atof(argv[1]) : 2;
    static const uint64_t sizes[] = {0, 1, 100, 512, 3000, 10000, 65536, 65537, 300000, 2000000, 17u << 20};
    static uint8_t source[18 << 20];
    unsigned seed = argc > 2 ? (unsigned)atoi(argv[2]) : 1;
    int fd = memfd_create("stress", MFD_CLOEXEC);
    if (fd < 0 || ftruncate(fd, 16ll << 30) != 0 || mc_arena_open(&arena, fd, 16ll << 30, 256 << 20, 64 << 20) != 0) die("open");
    pthread_t thread[READERS];
    for (uintptr_t i = 0; i < READERS; i++) pthread_create(&thread[i], NULL, read_blocks, (void *)(i + 1));
    time_t end = time(NULL) + (time_t)seconds + 1;
    unsigned long full = 0, put = 0;
    while (time(NULL) < end) {
        for (int i = 0; i < 200; i++) {
            mail *slot = &box[rand_r(&seed) % MAIL];
            if (atomic_load_explicit(&slot->ref, memory_order_acquire) != 0) {
                uint64_t ref = atomic_exchange(&slot->ref, 0); /* sometimes nobody came: take it back */
                if (ref != 0 && !mc_arena_release(&arena, ref)) die("what nobody took cannot be released");
                continue;
            }
            unsigned choice = (unsigned)rand_r(&seed) % 100;
            uint64_t length = sizes[choice < 99 ? choice % 9 : 9 + choice % 2];
            mc_fresh fresh;
            int error = mc_arena_alloc(&arena, length, &fresh);
            if (error == ENOSPC) {
                full++;
                continue;
            }
            if (error) die("alloc");
            uint8_t value = (uint8_t)rand_r(&seed);
            atomic_store_explicit(&slot->value, value, memory_order_relaxed);
            atomic_store_explicit(&slot->length, length, memory_order_relaxed);
            memset(source, value, length < 4096 ? length : 4096);
            for (uint64_t at = 0; at < length; at += length / 8 + 1) source[at] = value;
            if (mc_arena_fill(&arena, &fresh, source, length) != 0) die("fill");
            mc_arena_publish(fresh.block, fresh.ref, false);
            atomic_store_explicit(&slot->ref, fresh.ref, memory_order_release);
            put++;
            if (put % 1000 == 0) mc_arena_trim(&arena, 1 << 20);
        }
    }
    atomic_store(&stop, true);
    for (int i = 0; i < READERS; i++) pthread_join(thread[i], NULL);
    for (int i = 0; i < MAIL; i++)
        if (box[i].ref != 0 && !mc_arena_release(&arena, box[i].ref)) die("release at the end");
    mc_arena_trim(&arena, 0);
    const char *wrong = mc_arena_valid(&arena);
    if (wrong != NULL) die(wrong);
    if (arena.live != 0 || arena.resident != 0 || arena.damaged) die("something is left");
    printf("put %lu, taken %lu, full %lu\n", put, atomic_load(&taken), full);
    mc_arena_close(&arena);
    close(fd);
    return 0;
}
