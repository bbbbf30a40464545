/* Who holds a thing: an identity of a process that fits one atomic word, and whether it is dead.
 *
 *   bits 0-21   pid (the kernel's bound on pids is 2^22)
 *   bits 22-28  hash of the pid namespace: pids of another namespace mean nothing here
 *   bit 29      its parent has seen it die: nobody else has to look
 *   bits 30-31  flags, for the structure that uses the word
 *   bits 32-63  when the process started, in clock ticks since boot, modulo 2^32
 *
 * The word is claimed by one compare-and-swap from 0, so there is no instant at which a thing is held
 * and its holder unknown. A pid that the kernel has given to another process has another start time.
 * A dead process never claims again, so "the word still names D" after D was found dead means that D's
 * claim is still there: whoever swaps the word from D to itself has taken it over, and only one can.
 *
 * Dead is: no such process, another start time, or a zombie without living threads. A process that is
 * stopped, or whose state cannot be told (no /proc, another pid namespace), counts as alive.
 *
 * The identity is computed once a process and kept in a page that the kernel wipes in a forked child
 * (MADV_WIPEONFORK), so that a child never passes for its parent, however it was forked.
 *
 * Source: the takeover of robust mutexes (futex robust lists), with start times in the place of the
 * kernel's walk at exit. */
#ifndef MANYCORE_OWNER_H
#define MANYCORE_OWNER_H

#include "layout.h"
#include "wait.h"

#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

#define MC_OWNER_PID 0x3fffffull
#define MC_OWNER_FLAG_A (1ull << 30)
#define MC_OWNER_FLAG_B (1ull << 31)
#define MC_OWNER_DEAD (1ull << 29)
#define MC_OWNER_FLAGS (MC_OWNER_DEAD | MC_OWNER_FLAG_A | MC_OWNER_FLAG_B)
#define MC_OWNER_SPACE 0x1fc00000ull
#define MC_OWNER_START_SHIFT 32

typedef _Atomic uint64_t mc_owner_word;

static inline uint32_t mc_owner_pid(uint64_t owner) { return (uint32_t)(owner & MC_OWNER_PID); }

/* The 32 bits of an owner word on which waiters sleep: pid, namespace and flags. */
static inline mc_word *mc_owner_futex(mc_owner_word *word) {
#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "the low half of an owner word is at its beginning on little-endian machines only"
#endif
    return (mc_word *)word;
}

#ifndef MC_OWNER_SIMULATED /* the explorer of interleavings has parties of its own */

/* ---- what /proc says ---- */

typedef struct {
    uint32_t pid;
    char state;        /* 'R', 'S', 'T', 'Z', ... */
    long threads;
    uint32_t started;  /* clock ticks since boot, modulo 2^32 */
} mc_process_stat;

/* 0, or the errno of open or read, or EINVAL for a text that cannot be read. */
static inline int mc_read_stat(const char *path, mc_process_stat *out) {
    char text[1024];
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return errno;
    ssize_t length = read(fd, text, sizeof text - 1);
    int error = length < 0 ? errno : 0;
    close(fd);
    if (error) return error;
    text[length] = 0;
    char *rest = strrchr(text, ')'); /* the name may hold blanks and brackets */
    if (rest == NULL || rest[1] != ' ') return EINVAL;
    out->pid = (uint32_t)strtoul(text, NULL, 10);
    out->state = rest[2];
    char *at = rest + 3;
    for (int field = 4; field <= 22; field++) { /* proc(5) counts from 1; the state is number 3 */
        unsigned long long value = strtoull(at, &at, 10);
        if (field == 20) out->threads = (long)value;
        if (field == 22) out->started = (uint32_t)value;
    }
    return 0;
}

static inline uint64_t mc_make_self(void) {
    uint32_t pid = (uint32_t)getpid();
    char link[64];
    uint64_t space = 0;
    ssize_t length = readlink("/proc/self/ns/pid", link, sizeof link);
    for (ssize_t i = 0; i < length; i++) space = space * 31 + (unsigned char)link[i];
    space = (space ^ (space >> 7) ^ (space >> 14)) & 0x7f;
    mc_process_stat stat = {0};
    if (mc_read_stat("/proc/self/stat", &stat) != 0 || stat.pid != pid)
        stat.started = 0; /* no /proc, or one of another namespace: the pid has to do */
    return ((uint64_t)stat.started << MC_OWNER_START_SHIFT) | space << 22 | pid;
}

/* ---- this process, this thread ---- */

static _Atomic uint64_t mc_self_unmapped; /* stays 0: where to look until the page is there */
static _Atomic(_Atomic uint64_t *) mc_self_page = &mc_self_unmapped;

static __attribute__((noinline)) uint64_t mc_self_slowly(void) {
    _Atomic uint64_t *page = atomic_load(&mc_self_page);
    uint64_t self = mc_make_self();
    if (page == &mc_self_unmapped) {
        void *fresh = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (fresh == MAP_FAILED) return self; /* slower every time, and right */
        if (madvise(fresh, 4096, MADV_WIPEONFORK) != 0 ||
            !atomic_compare_exchange_strong(&mc_self_page, &page, (_Atomic uint64_t *)fresh)) {
            munmap(fresh, 4096);
            if (page == &mc_self_unmapped) return self;
        } else {
            page = fresh;
        }
    }
    atomic_store(page, self);
    return self;
}

static inline uint64_t mc_self(void) {
    /* acquire: pairs with the swap that makes the page known */
    _Atomic uint64_t *page = atomic_load_explicit(&mc_self_page, memory_order_acquire);
    uint64_t self = atomic_load_explicit(page, memory_order_relaxed);
    return __builtin_expect(self != 0, 1) ? self : mc_self_slowly();
}

static inline uint32_t mc_thread(uint64_t self) {
    static __thread __attribute__((tls_model("initial-exec"))) struct {
        uint64_t self; /* whose number it is: a forked child's thread has another */
        uint32_t tid;
    } known;
    if (__builtin_expect(known.self != self, 0)) {
        known.tid = (uint32_t)syscall(SYS_gettid);
        known.self = self;
    }
    return known.tid;
}

/* ---- others ---- */

/* True when the process of this word has ended for certain. Other flags in the word are ignored. */
static inline bool mc_owner_is_dead(uint64_t owner) {
    uint64_t self = mc_self();
    uint32_t pid = mc_owner_pid(owner);
    if (owner & MC_OWNER_DEAD) return true;
    if (pid == 0 || ((owner ^ self) & MC_OWNER_SPACE) != 0) return false;
    if (((owner ^ self) & ~MC_OWNER_FLAGS) == 0) return false;
    if (kill((pid_t)pid, 0) != 0 && errno == ESRCH) return true;
    uint32_t started = (uint32_t)(owner >> MC_OWNER_START_SHIFT);
    if (started == 0 || (self >> MC_OWNER_START_SHIFT) == 0) return false;
    char path[32];
    snprintf(path, sizeof path, "/proc/%u/stat", pid);
    mc_process_stat stat;
    int error = mc_read_stat(path, &stat);
    if (error == ESRCH || error == ENOENT) /* gone meanwhile, or hidden from us by the mount's options */
        return kill((pid_t)pid, 0) != 0 && errno == ESRCH;
    if (error) return false;
    if (stat.started != started) return true;
    return (stat.state == 'Z' || stat.state == 'X' || stat.state == 'x') && stat.threads <= 1;
}

#endif /* MC_OWNER_SIMULATED */

/* ---- who waits: for people, never for the algorithms ---- */

#define MC_WAITERS_SHOWN 8

/* Written by a waiter that has waited for some milliseconds, cleared when it leaves. A record whose
 * process or thread is gone is stale: the next waiter takes it, and readers leave it out. So the thread is
 * written last and cleared first: a record that is read has its own time. */
typedef struct {
    mc_owner_word who;
    _Atomic uint32_t tid;
    _Atomic uint32_t since_ms; /* CLOCK_MONOTONIC, modulo 2^32 */
} mc_waiter;

typedef struct {
    mc_waiter shown[MC_WAITERS_SHOWN];
} mc_waiters;

_Static_assert(sizeof(mc_waiters) == 2 * MC_CACHE_LINE, "two lines beside the hot one");

/* Takes a free record, or that of a dead process; -1 when there is none (then it is just not shown). */
static inline int mc_waiters_enter(mc_waiters *w, uint64_t self) {
#ifdef MC_OWNER_SIMULATED /* the explorer has no people to tell */
    (void)w, (void)self;
    return -1;
#endif
    for (int pass = 0; pass < 2; pass++) {
        for (int i = 0; i < MC_WAITERS_SHOWN; i++) {
            mc_waiter *mine = &w->shown[i];
            uint64_t held = atomic_load(&mine->who);
            if (held != 0 && (pass == 0 || !mc_owner_is_dead(held))) continue;
            if (!atomic_compare_exchange_strong(&mine->who, &held, self)) continue;
            atomic_store(&mine->since_ms, (uint32_t)(mc_now_ns() / 1000000));
            atomic_store(&mine->tid, mc_thread(self));
            return i;
        }
    }
    return -1;
}

static inline void mc_waiters_leave(mc_waiters *w, int index) {
    if (index >= 0) {
        atomic_store(&w->shown[index].tid, 0);
        atomic_store(&w->shown[index].who, 0);
    }
}

/* ---- the state of one wait, which outlives interruptions by signals ---- */

#define MC_CHECK_FIRST_NS 4000000  /* ns; a wait this long is worth a look at the holder (20 us) */
#define MC_CHECK_MOST_NS 40000000  /* ns; a death is noticed within this, whatever happened to the wake-ups */
#define MC_TRY_CHECK_NS 10000000   /* ns between looks at the holder by failing attempts without waiting */

typedef enum {
    MC_TAKEN,      /* done */
    MC_TAKEN_OVER, /* done, from a dead process: `dead` says from which */
    MC_TIMED_OUT,
    MC_AGAIN,      /* a signal, or some milliseconds have gone: look at signals and call again */
    MC_BROKEN,     /* a barrier that cannot be completed */
} mc_outcome;

typedef struct {
    int64_t deadline_ns, began_ns, check_ns, interval_ns;
    uint64_t dead;  /* the process taken over from */
    int shown;      /* the record in mc_waiters, or -1 */
    bool slept;     /* has been in the kernel's queue at least once */
    bool spun;
    int looks;      /* for a deadlock, so far; -1: one was found and told, so there are no more */
} mc_waiting;

static inline void mc_waiting_begin(mc_waiting *w, int64_t deadline_ns) {
    w->deadline_ns = deadline_ns;
    w->began_ns = 0; /* read the clock when it comes to sleeping */
    w->check_ns = w->interval_ns = 0;
    w->dead = 0;
    w->shown = -1;
    w->slept = w->spun = false;
    w->looks = 0;
}

/* The time now; starts the periods of looking at the first call. */
static inline int64_t mc_waiting_clock(mc_waiting *w) {
    int64_t now = mc_now_ns();
    if (w->began_ns == 0) {
        w->began_ns = now;
        w->interval_ns = MC_CHECK_FIRST_NS;
        w->check_ns = now + w->interval_ns;
    }
    return now;
}

/* Is it time to look at the holders? Also at the deadline, so that even a short wait notices a death. */
static inline bool mc_waiting_is_due(mc_waiting *w, int64_t now) {
    if (now >= w->check_ns) {
        w->interval_ns = w->interval_ns * 2 < MC_CHECK_MOST_NS ? w->interval_ns * 2 : MC_CHECK_MOST_NS;
        w->check_ns = now + w->interval_ns;
        return true;
    }
    return now >= w->deadline_ns;
}

static inline int64_t mc_waiting_until(const mc_waiting *w) {
    return w->check_ns < w->deadline_ns ? w->check_ns : w->deadline_ns;
}

#endif
