/* Bells: how a process that waits for several things at once learns that one of them has changed.
 *
 * A bell is a pipe of the process that waits, so that it can be polled beside descriptors and by an event
 * loop. Each thing that can be waited for has a table of bells; who changes the thing rings them.
 *
 *   watcher                                       changer
 *   take a slot: owner, pipe                      change it
 *   armed = 1, say so in the thing's own word     look at that word (it does so anyhow, for sleepers)
 *   look at the thing, leave if it is ready       for each slot that was armed: armed = 0, write a byte
 *   poll the pipe, empty it, arm again
 *
 * Both write their own word first and read the other's second, all sequentially consistent, so one of them
 * sees the other. A slot is rung once for each time it was armed: a pipe never fills, and a watcher that has
 * been told and is slow costs the changers nothing. Where nobody watches, a changer does not come here.
 *
 * A ringer opens the pipe as /proc/PID/fd/N, and compares the inode before it writes: whatever has become of
 * the process and of the number, no other file is ever written to. What it has opened it keeps, a few at a
 * time. It opens for reading as well, so a pipe whose reader is gone raises no signal.
 *
 * If a process dies
 *   watching                          its slot is taken by the next that finds no free one; if it was armed,
 *                                     one spare attempt to ring
 *   changing, before it has rung      the watchers look by themselves, a few times a second
 * Where /proc does not show the watcher (another pid namespace, another user), and where a table is full, the
 * watchers look by themselves too.
 *
 * Source: eventcounts (gate.h), with a pipe in the place of the futex. */
#ifndef MANYCORE_BELL_H
#define MANYCORE_BELL_H

#include "owner.h"

#include <sys/stat.h>

#define MC_BELLS 12       /* watchers of one thing at a time; the rest look by themselves */
#define MC_BELLS_KNOWN 8u /* pipes of others that a process keeps open; less makes more system calls a ring */

typedef struct {
    mc_owner_word owner;    /* 0: free; swapped by watchers */
    _Atomic uint64_t inode; /* of the pipe; the watcher */
    _Atomic uint32_t fd;    /* its number there; the watcher */
    _Atomic uint32_t armed; /* 1: ring me; set by the watcher, cleared by one ringer */
} mc_bell;

typedef struct {
    mc_bell bells[MC_BELLS];
} mc_bells;

#ifndef MC_BELL_SIMULATED

static struct {
    atomic_flag busy; /* guards `known` among the threads of this process */
    struct {
        uint64_t inode; /* 0: nothing */
        int fd;
    } known[MC_BELLS_KNOWN];
} mc_bells_open = {.busy = ATOMIC_FLAG_INIT};

static inline bool mc_bell_is(int fd, uint64_t inode) {
    struct stat status;
    return fstat(fd, &status) == 0 && S_ISFIFO(status.st_mode) && (uint64_t)status.st_ino == inode;
}

static inline void mc_bell_write(int fd) {
    ssize_t written = write(fd, "", 1); /* a pipe that is full can be read already */
    (void)written;
}

static __attribute__((noinline, unused)) void mc_bell_ring(uint64_t owner, int fd, uint64_t inode) {
    if (((owner ^ mc_self()) & ~MC_OWNER_FLAGS) == 0) {
        if (mc_bell_is(fd, inode)) mc_bell_write(fd);
        return;
    }
    bool mine = !atomic_flag_test_and_set_explicit(&mc_bells_open.busy, memory_order_acquire);
    int *known = &mc_bells_open.known[inode % MC_BELLS_KNOWN].fd;
    uint64_t *known_inode = &mc_bells_open.known[inode % MC_BELLS_KNOWN].inode;
    if (mine && *known_inode == inode && mc_bell_is(*known, inode)) {
        mc_bell_write(*known);
    } else {
        char path[40];
        snprintf(path, sizeof path, "/proc/%u/fd/%d", mc_owner_pid(owner), fd);
        int opened = open(path, O_RDWR | O_NONBLOCK | O_CLOEXEC | O_NOCTTY);
        if (opened >= 0 && mc_bell_is(opened, inode)) {
            mc_bell_write(opened);
            if (mine) {
                int before = *known;
                bool open_still = *known_inode != 0 && mc_bell_is(before, *known_inode);
                *known = opened;
                *known_inode = inode;
                opened = open_still ? before : -1;
            }
        }
        if (opened >= 0) close(opened);
    }
    if (mine) atomic_flag_clear_explicit(&mc_bells_open.busy, memory_order_release);
}

#endif

/* A slot for the pipe `fd` of this process; -1 when all are taken by the living. */
static inline int mc_bells_enter(mc_bells *b, uint64_t self, int fd, uint64_t inode) {
    for (int pass = 0; pass < 2; pass++) {
        for (int i = 0; i < MC_BELLS; i++) {
            mc_bell *mine = &b->bells[i];
            uint64_t held = atomic_load(&mine->owner);
            if (held != 0 && (pass == 0 || !mc_owner_is_dead(held))) continue;
            if (!atomic_compare_exchange_strong(&mine->owner, &held, self)) continue;
            atomic_store(&mine->armed, 0);
            atomic_store(&mine->fd, (uint32_t)fd);
            atomic_store(&mine->inode, inode);
            return i;
        }
    }
    return -1;
}

/* Afterwards the watcher says in the thing's own word that somebody watches, and then looks at the thing. */
static inline void mc_bells_arm(mc_bells *b, int slot) {
    if (slot >= 0) atomic_store(&b->bells[slot].armed, 1);
}

/* A forked child that has its parent's slot number leaves it alone. */
static inline void mc_bells_leave(mc_bells *b, uint64_t self, int slot) {
    if (slot < 0 || atomic_load(&b->bells[slot].owner) != self) return;
    atomic_store(&b->bells[slot].armed, 0);
    atomic_store(&b->bells[slot].owner, 0);
}

/* Rings all that are armed. A slot that changes hands meanwhile may be read half old, half new: then the inode does
 * not fit and nobody is rung; and nobody has to be, for the new owner arms after our change, and looks. */
static inline void mc_bells_ring(mc_bells *b) {
    for (int i = 0; i < MC_BELLS; i++) {
        mc_bell *bell = &b->bells[i];
        if (atomic_load(&bell->armed) == 0 || atomic_exchange(&bell->armed, 0) == 0) continue;
        uint64_t owner = atomic_load(&bell->owner), inode = atomic_load(&bell->inode);
        int fd = (int)atomic_load(&bell->fd);
        if (owner != 0) mc_bell_ring(owner, fd, inode);
    }
}

#endif
