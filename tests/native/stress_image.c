/* Memory that is put into a file again and again, under a sanitizer: it reads as it did, for this process and for what it
 * forks, and what one of them writes is seen by no other. */
#include "image.h"

#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>

#define PAGE 4096
#define PAGES 256
#define RUNS 16

static unsigned char model[PAGES * PAGE]; /* what is to be in `memory` */
static unsigned char *memory;
static uint32_t seed;

_Noreturn static void die(const char *what) {
    fprintf(stderr, "stress_image: %s: %s\n", what, strerror(errno));
    _exit(1);
}

static uint32_t draw(void) { /* xorshift */
    seed ^= seed << 13;
    seed ^= seed >> 17;
    return seed ^= seed << 5;
}

static void look(const char *when) {
    if (memcmp(memory, model, sizeof model) != 0) die(when);
}

static void scribble(int times) {
    while (times-- > 0) {
        size_t at = draw() % sizeof model, size = draw() % 64;
        if (at + size > sizeof model) continue;
        unsigned char value = (unsigned char)draw();
        memset(memory + at, value, size);
        memset(model + at, value, size);
    }
}

static void put(void) {
    unsigned long runs[2 * RUNS];
    size_t count = 0;
    for (size_t page = draw() % 8; page < PAGES && count < RUNS; page += 1 + draw() % 32) {
        size_t pages = 1 + draw() % 32;
        if (page + pages > PAGES) break;
        runs[2 * count] = (unsigned long)(memory + page * PAGE);
        runs[2 * count++ + 1] = pages * PAGE;
        page += pages;
    }
    bool fails = draw() % 8 == 0;
    if (fails && count > 0) /* the page behind the memory is not mapped */
        runs[2 * (count - 1)] = (unsigned long)(memory + PAGES * PAGE);
    int result = mc_image(runs, count);
    if (fails && count > 0 ? result != -1 || errno != EFAULT : result != 0) die("put");
}

static void in_fork(void) {
    int status, pid = fork();
    if (pid < 0) die("fork");
    if (pid == 0) {
        seed ^= (uint32_t)getpid() << 1;
        look("in a fork");
        for (int i = draw() % 3; i > 0; i--) {
            scribble(200);
            look("written in a fork");
            if (draw() % 2) put();
            look("put in a fork");
        }
        _exit(0);
    }
    scribble(50); /* at the same time */
    if (waitpid(pid, &status, 0) != pid || status != 0) die("a fork has failed");
}

int main(int argc, char **argv) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    double until = (double)now.tv_sec + (double)now.tv_nsec / 1e9 + (argc > 1 ? atof(argv[1]) : 1.0);
    seed = (argc > 2 ? (uint32_t)atoi(argv[2]) : 1) * 2 + 1;
    memory = mmap(NULL, (PAGES + 1) * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED || munmap(memory + PAGES * PAGE, PAGE) != 0) die("mmap");
    unsigned rounds = 0;
    do {
        scribble(100);
        put();
        look("put");
        in_fork();
        look("after a fork");
        rounds++;
        clock_gettime(CLOCK_MONOTONIC, &now);
    } while ((double)now.tv_sec + (double)now.tv_nsec / 1e9 < until);
    printf("%u rounds\n", rounds);
    return 0;
}
