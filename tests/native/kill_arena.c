/* Readers of an arena that are killed: at each named point, and at any instruction.
 *
 * After each death the allocator reclaims what the dead held, and everything must be as if it had never lived. */
#define _GNU_SOURCE
#define MANYCORE_FAULTS
#include "allocator.h"

#include <signal.h>
#include <stdio.h>
#include <sys/wait.h>
#include <time.h>

#define BLOCKS 12

static mc_arena arena;
static int fd;
static uint64_t ref[BLOCKS], length[BLOCKS];

static void die(const char *what) {
    fprintf(stderr, "kill_arena: %s\n", what);
    exit(1);
}

static void put_all(void) {
    static const uint64_t sizes[BLOCKS] = {10, 100, 600, 5000, 10000, 10000, 60000, 70000, 100, 200000, 10, 1000};
    static uint8_t source[200000];
    for (int i = 0; i < BLOCKS; i++) {
        mc_fresh fresh;
        length[i] = sizes[i];
        memset(source, i, sizes[i]);
        if (mc_arena_alloc(&arena, sizes[i], &fresh) != 0 || mc_arena_fill(&arena, &fresh, source, sizes[i]) != 0)
            die("put");
        mc_arena_publish(fresh.block, fresh.ref, false);
        ref[i] = fresh.ref;
    }
}

/* A process that has its own mapping, takes everything, uses it, and gives it back in another order. */
static void reader(uint32_t owner) {
    mc_view view;
    mc_block *block[BLOCKS];
    if (mc_view_open(&view, fd) != 0) _exit(2);
    for (int i = 0; i < BLOCKS; i++) {
        block[i] = mc_block_take(&view, ref[i], length[i], owner);
        if (block[i] == NULL || mc_block_payload(block[i])[length[i] - 1] != i) _exit(3);
        memset(mc_block_payload(block[i]), 255, length[i]);
    }
    for (int i = 0; i < BLOCKS; i++)
        if (!mc_block_give_back(&view, block[(i * 5 + 3) % BLOCKS], ref[(i * 5 + 3) % BLOCKS], owner)) _exit(4);
    _exit(0);
}

static void after(uint32_t owner) {
    mc_arena_reclaim_dead(&arena, owner);
    for (int i = 0; i < BLOCKS; i++) mc_arena_release(&arena, ref[i]); /* what it had not taken */
    const char *wrong = mc_arena_valid(&arena);
    if (wrong != NULL) die(wrong);
    if (arena.damaged) die("damaged");
    if (arena.live != 0) die("a block is lost");
}

int main(int argc, char **argv) {
    double seconds = argc > 1 ? atof(argv[1]) : 2;
    int runs = argc > 2 ? atoi(argv[2]) : 10000;
    unsigned seed = argc > 3 ? (unsigned)atoi(argv[3]) : 1;
    static const char *const points[] = {"arena:taking", "arena:taken", "arena:returning", "arena:linked", "arena:returned"};
    fd = memfd_create("kill", MFD_CLOEXEC);
    if (fd < 0 || ftruncate(fd, 1 << 30) != 0 || mc_arena_open(&arena, fd, 1 << 30, 64 << 20, 64 << 20) != 0) die("open");
    uint32_t owner = 1;
    int status, at_points = 0, random = 0, killed = 0;
    for (size_t p = 0; p < sizeof points / sizeof *points; p++)
        for (int pass = 1; pass <= BLOCKS; pass++, owner++) {
            char plan[64];
            put_all();
            pid_t pid = fork();
            if (pid == 0) {
                snprintf(plan, sizeof plan, "%s:%d", points[p], pass);
                setenv("MANYCORE_FAULT", plan, 1);
                reader(owner);
            }
            if (pid < 0 || waitpid(pid, &status, 0) != pid) die("fork");
            if (!WIFSIGNALED(status) || WTERMSIG(status) != SIGKILL) die("the point was not passed");
            after(owner);
            at_points++;
        }
    struct timespec start, now;
    clock_gettime(CLOCK_MONOTONIC, &start);
    for (; random < runs; random++, owner++) {
        clock_gettime(CLOCK_MONOTONIC, &now);
        if ((double)(now.tv_sec - start.tv_sec) > seconds) break;
        put_all();
        pid_t pid = fork();
        if (pid == 0) reader(owner);
        if (pid < 0) die("fork");
        for (volatile unsigned spin = (unsigned)rand_r(&seed) % 400000; spin > 0; spin--) {}
        kill(pid, SIGKILL);
        if (waitpid(pid, &status, 0) != pid) die("waitpid");
        if (WIFEXITED(status) && WEXITSTATUS(status) != 0) die("the reader found something wrong");
        killed += WIFSIGNALED(status);
        after(owner);
    }
    printf("killed at named points %d, at random %d of %d\n", at_points, killed, random);
    return 0;
}
