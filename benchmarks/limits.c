/* The machine's limits: what two processes, the memory and the kernel can do at best.
 *
 * Prints "name value" lines. Each figure is the median of several short runs, so the whole program is
 * done in about two seconds; with the argument "quick" in a fraction of that. Whoever waits for the
 * other process polls for its death through PR_SET_PDEATHSIG, so nothing is left behind. */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define RUNS 5
#define MIB ((size_t)1 << 20)

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static int by_size(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(double *values, int n) {
    qsort(values, (size_t)n, sizeof *values, by_size);
    return values[n / 2];
}

static void check(int ok, const char *what) {
    if (!ok) {
        perror(what);
        exit(1);
    }
}

/* The words that two processes share; a cache line each, or they would slow each other. */
typedef struct {
    _Alignas(64) atomic_uint ping;
    _Alignas(64) atomic_uint pong;
} words;

static words *shared_words(void) {
    words *w = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    check(w != MAP_FAILED, "mmap");
    return w;
}

static pid_t child(void) {
    pid_t parent = getpid(), pid = fork();
    check(pid >= 0, "fork");
    if (pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        if (getppid() != parent) _exit(1);
    }
    return pid;
}

/* Binds the caller to one core; a negative one leaves it where it is. */
static void pin(int core) {
    if (core < 0) return;
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(core, &set);
    sched_setaffinity(0, sizeof set, &set);
}

static double pipe_round_trip(int rounds, int core, int other) {
    int there[2], back[2];
    char byte = 0;
    cpu_set_t before;
    check(pipe(there) == 0 && pipe(back) == 0, "pipe");
    sched_getaffinity(0, sizeof before, &before);
    pin(core);
    pid_t pid = child();
    if (pid == 0) {
        pin(other);
        close(there[1]);
        close(back[0]);
        while (read(there[0], &byte, 1) == 1)
            if (write(back[1], &byte, 1) != 1) break;
        _exit(0);
    }
    close(there[0]);
    close(back[1]);
    double start = now();
    for (int i = 0; i < rounds; i++)
        check(write(there[1], &byte, 1) == 1 && read(back[0], &byte, 1) == 1, "pipe round trip");
    double took = (now() - start) / rounds;
    close(there[1]);
    close(back[0]);
    waitpid(pid, NULL, 0);
    sched_setaffinity(0, sizeof before, &before);
    return took;
}

static double pipe_bandwidth(size_t total) {
    static char buffer[1 << 20];
    int ends[2];
    check(pipe(ends) == 0, "pipe");
    pid_t pid = child();
    if (pid == 0) {
        close(ends[1]);
        while (read(ends[0], buffer, sizeof buffer) > 0) {}
        _exit(0);
    }
    close(ends[0]);
    double start = now();
    for (size_t sent = 0; sent < total;) {
        ssize_t n = write(ends[1], buffer, sizeof buffer);
        check(n > 0, "write");
        sent += (size_t)n;
    }
    close(ends[1]);
    waitpid(pid, NULL, 0);
    return (double)total / (now() - start) / 1e9;
}

static void futex_wait(atomic_uint *word, unsigned seen) {
    syscall(SYS_futex, word, FUTEX_WAIT, seen, NULL, NULL, 0);
}

static void futex_wake(atomic_uint *word) { syscall(SYS_futex, word, FUTEX_WAKE, 1, NULL, NULL, 0); }

static void await(atomic_uint *word, unsigned wanted, int spin) {
    unsigned seen;
    while ((seen = atomic_load_explicit(word, memory_order_acquire)) != wanted)
        if (!spin) futex_wait(word, seen);
}

static double word_round_trip(unsigned rounds, int spin, int core, int other) {
    words *w = shared_words();
    cpu_set_t before;
    sched_getaffinity(0, sizeof before, &before);
    pin(core);
    pid_t pid = child();
    if (pid == 0) {
        pin(other);
        atomic_store_explicit(&w->pong, rounds + 1, memory_order_release);
        for (unsigned i = 1; i <= rounds; i++) {
            await(&w->ping, i, spin);
            atomic_store_explicit(&w->pong, i, memory_order_release);
            if (!spin) futex_wake(&w->pong);
        }
        _exit(0);
    }
    while (atomic_load_explicit(&w->pong, memory_order_acquire) != rounds + 1) {} /* it runs */
    double start = now();
    for (unsigned i = 1; i <= rounds; i++) {
        atomic_store_explicit(&w->ping, i, memory_order_release);
        if (!spin) futex_wake(&w->ping);
        await(&w->pong, i, spin);
    }
    double took = (now() - start) / rounds;
    waitpid(pid, NULL, 0);
    munmap(w, 4096);
    sched_setaffinity(0, sizeof before, &before);
    return took;
}

static double copy_rate(size_t bytes) {
    char *from = malloc(bytes), *to = malloc(bytes);
    check(from && to, "malloc");
    memset(from, 1, bytes);
    memset(to, 2, bytes);
    double start = now();
    memcpy(to, from, bytes);
    double took = now() - start;
    volatile char seen = to[bytes - 1];
    (void)seen;
    free(from);
    free(to);
    return (double)bytes / took / 1e9;
}

static void shared_copy(size_t bytes, double *fresh, double *warm) {
    char *from = malloc(bytes);
    check(from != NULL, "malloc");
    memset(from, 1, bytes);
    int fd = memfd_create("limits", MFD_CLOEXEC);
    check(fd >= 0 && ftruncate(fd, (off_t)bytes) == 0, "memfd");
    char *to = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    check(to != MAP_FAILED, "mmap");
    double start = now();
    memcpy(to, from, bytes);
    *fresh = (double)bytes / (now() - start) / 1e9;
    start = now();
    memcpy(to, from, bytes);
    *warm = (double)bytes / (now() - start) / 1e9;
    munmap(to, bytes);
    close(fd);
    free(from);
}

static double mutex_pair(int robust, int rounds) {
    pthread_mutex_t *mutex = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    pthread_mutexattr_t kind;
    check(mutex != MAP_FAILED, "mmap");
    pthread_mutexattr_init(&kind);
    pthread_mutexattr_setpshared(&kind, PTHREAD_PROCESS_SHARED);
    if (robust) pthread_mutexattr_setrobust(&kind, PTHREAD_MUTEX_ROBUST);
    pthread_mutex_init(mutex, &kind);
    double start = now();
    for (int i = 0; i < rounds; i++) {
        pthread_mutex_lock(mutex);
        pthread_mutex_unlock(mutex);
    }
    double took = (now() - start) / rounds;
    munmap(mutex, 4096);
    return took;
}

static double fork_and_wait(void) {
    double start = now();
    pid_t pid = child();
    if (pid == 0) _exit(0);
    waitpid(pid, NULL, 0);
    return now() - start;
}

int main(int argc, char **argv) {
    int quick = argc > 1 && strcmp(argv[1], "quick") == 0;
    int runs = quick ? 1 : RUNS, rounds = quick ? 500 : 3000;
    int spinning = quick ? 5000 : 100000, pairs = quick ? 10000 : 500000;
    size_t block = 64 * MIB;
    double v[6][16];
    cpu_set_t allowed;
    signal(SIGPIPE, SIG_IGN);
    sched_getaffinity(0, sizeof allowed, &allowed);
    int core = 0, other;
    while (core < CPU_SETSIZE - 1 && !CPU_ISSET(core, &allowed)) core++;
    for (other = core + 1; other < CPU_SETSIZE - 1 && !CPU_ISSET(other, &allowed);) other++;
    int many = CPU_COUNT(&allowed) > 1;

    double one[16], two[16], sleeping[16], busy[16], piped[16];
    for (int i = 0; i < runs; i++) {
        one[i] = pipe_round_trip(rounds, core, core);
        if (many) two[i] = pipe_round_trip(rounds, core, other);
        if (many) sleeping[i] = word_round_trip((unsigned)rounds, 0, core, other);
        if (many) busy[i] = word_round_trip((unsigned)spinning, 1, core, other);
        piped[i] = pipe_bandwidth((quick ? 16 : 128) * MIB);
        v[0][i] = copy_rate(block);
        shared_copy(block, &v[1][i], &v[2][i]);
        v[3][i] = mutex_pair(0, pairs);
        v[4][i] = mutex_pair(1, pairs);
        v[5][i] = fork_and_wait();
    }
    printf("pipe_round_trip_one_core_us %.3f\n", 1e6 * median(one, runs));
    if (many) printf("pipe_round_trip_us %.3f\n", 1e6 * median(two, runs));
    if (many) printf("futex_round_trip_us %.3f\n", 1e6 * median(sleeping, runs));
    if (many) printf("spinning_round_trip_us %.3f\n", 1e6 * median(busy, runs));
    printf("pipe_1mb_gb_s %.2f\n", median(piped, runs));
    printf("memcpy_64mb_gb_s %.2f\n", median(v[0], runs));
    printf("copy_into_fresh_shared_gb_s %.2f\n", median(v[1], runs));
    printf("copy_into_warm_shared_gb_s %.2f\n", median(v[2], runs));
    printf("mutex_pair_ns %.1f\n", 1e9 * median(v[3], runs));
    printf("robust_mutex_pair_ns %.1f\n", 1e9 * median(v[4], runs));
    printf("fork_and_wait_us %.1f\n", 1e6 * median(v[5], runs));
    return 0;
}
