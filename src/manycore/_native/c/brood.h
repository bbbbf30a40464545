/* The children of a zygote, and what it does for them again and again: it makes spares, notes which were asked, reaps,
 * and reports. In C, without an object of Python's or anything of malloc's being written: each page that a zygote writes
 * after a fork is copied, at 1 to 3 us, and a few lines of Python write to 150; and where none is written, a fork is
 * cheaper, and so are its child's copies (image.h).
 *
 *   mc_brood_wait     until a descriptor of Python's is ready, a child that ended left something to be read, a time or
 *                     a signal has come; or until a spare is to be forked, for that needs the interpreter's hooks
 *   mc_brood_open, mc_brood_enter     before and after a fork
 *   mc_brood_bury     a child that has ended: its group, its resources, the report
 *
 * One process with one thread has it; nothing is shared. Places for spares are told of in `_launch/spares.py`.
 *
 * Invariants:
 *   a child is in the table from its fork until it is reaped, and nobody else reaps it; so its pid, and the process
 *       group of the same number, mean nobody else meanwhile
 *   a place has one spare at most, from its fork until it takes a request or is reaped
 *   before a spare is reaped, what it said of a request is read
 *   nothing waits for the parent: reports that do not fit the socket are kept, in order
 *
 * If the process dies: the table goes with it; its children go on, tied to the parent by their lifelines.
 */
#ifndef MANYCORE_BROOD_H
#define MANYCORE_BROOD_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif

#include "child.h"
#include "wait.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>

#define MC_PLACES 2                  /* for spares: as many as SLOT_FDS in wire.py */
#define MC_OTHERS 3                  /* descriptors that Python serves, at most; the first is the control socket */
#define MC_SPARE_AFTER_NS 4000000    /* from a launch to the next spare, unless the child ends sooner: both want a core */
#define MC_SPARE_KEPT_NS 2000000000  /* a spare costs about 3 MB */
#define MC_FIRST_ROOM 64             /* for as many children at first */
#define MC_EXITED 12                 /* kinds of report, of wire.py */
#define MC_GONE 15

enum mc_event { MC_TIME, MC_READY, MC_WORDS, MC_SPARE, MC_SIGNAL }; /* what mc_brood_wait comes back with */

struct mc_child {
    uint64_t launch_id; /* 0: a spare */
    int64_t born;       /* ns, CLOCK_MONOTONIC; of a spare, when it took its request */
    int pid;
    int lifeline;       /* kept open, so that a child that closes every descriptor stays tied to the parent */
    int stack;          /* a memfd, for its last words */
    int image;          /* which image of the memory it was forked from (image.h); 0: none */
    bool linger;        /* outlives the parent by a moment */
    bool owns_group;    /* the group ends with the child, however the child ends */
};

struct mc_place {
    int pid;       /* of the spare that is there; 0: none */
    bool told;     /* it was told to end */
    int64_t until; /* it is then */
    int end, pen;  /* the two ends of the socket between the parent and the spare: the spare's, the parent's */
};

struct mc_report {
    struct mc_report *next;
    size_t size;
    char bytes[];
};

struct mc_brood {
    struct mc_child *children;
    size_t count, room;
    struct mc_place places[MC_PLACES];
    struct mc_report *unsent; /* the oldest first */
    int64_t due;              /* when the next spare is to be made; 0: nothing was launched since the last */
    uint64_t generation;      /* of what the parent has told; it asks those of the last */
    int wanted;               /* spares */
    int image;                /* the last that was taken, counted from 1 */
    bool owed;                /* one was to be made, and all places had spares that were told to end */
    int lifeline;             /* read end of the pipe whose write ends the parent and its zygotes hold */
    int wake;                 /* here comes a byte with each signal: its number */
    int said;                 /* what spares say: a struct mc_taken each */
    int others[MC_OTHERS];    /* what Python serves; -1: none */
    bool signalled;           /* a signal beside SIGCHLD has come */
    bool unreaped;            /* there may be ended children though nothing is ready at `wake` */
    int turn;                 /* which of them is looked at first */
    int found;                /* after MC_READY the descriptor; after MC_WORDS the child's pid */
};

struct mc_taken { /* from a spare that takes a request */
    uint64_t pid, launch_id, linger;
};

struct mc_numbers { /* a report without text; a report with text is a marshal tuple, which begins with another byte */
    unsigned char kind[8];
    double numbers[7];
};

struct mc_ready { /* to the parent: a spare is there */
    uint64_t generation, pid, born;
};

/* A brood, all zeros, in pages of its own; NULL where there is no memory. It lasts as long as the process. */
static inline struct mc_brood *mc_brood_new(void)
{
    void *brood = mmap(NULL, sizeof(struct mc_brood), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return brood == MAP_FAILED ? NULL : brood;
}

static inline struct mc_child *mc_brood_find(struct mc_brood *b, int pid)
{
    for (size_t i = b->count; i-- > 0;) /* the youngest first: most are spares */
        if (b->children[i].pid == pid)
            return &b->children[i];
    return NULL;
}

/* -- reports ------------------------------------------------------------------------------------------------------- */

/* Send a record to the parent. Returns whether that is done with; else there is no room for it now. */
static inline bool mc_brood_send(struct mc_brood *b, const void *bytes, size_t size)
{
    while (send(b->others[0], bytes, size, MSG_DONTWAIT | MSG_NOSIGNAL) < 0) {
        if (errno == EINTR)
            continue;
        if (errno == ENOBUFS || errno == ENOMEM) { /* there is room in the socket, but no memory */
            poll(NULL, 0, MC_FULL_RETRY_MS);
            return false;
        }
        return errno != EAGAIN; /* nobody is there to be told, and the socket says so too; or it is too long for any socket */
    }
    return true;
}

/* Send what is kept, as far as there is room. */
static inline void mc_brood_flush(struct mc_brood *b)
{
    struct mc_report *first;
    while ((first = b->unsent) != NULL && mc_brood_send(b, first->bytes, first->size)) {
        b->unsent = first->next;
        free(first);
    }
}

/* Tell the parent, after all that was told before. Returns 0, or -1 where there is no memory to keep it. */
static inline int mc_brood_tell(struct mc_brood *b, const void *bytes, size_t size)
{
    if (b->unsent == NULL && mc_brood_send(b, bytes, size))
        return 0;
    struct mc_report *report = malloc(sizeof *report + size), **last = &b->unsent;
    if (report == NULL)
        return -1;
    report->next = NULL;
    report->size = size;
    memcpy(report->bytes, bytes, size);
    while (*last != NULL)
        last = &(*last)->next;
    *last = report;
    mc_brood_flush(b);
    return 0;
}

static inline void mc_brood_tell_numbers(struct mc_brood *b, unsigned char kind, const double *numbers, size_t count)
{
    struct mc_numbers report = {.kind = {kind}};
    memcpy(report.numbers, numbers, count * sizeof *numbers);
    if (mc_brood_tell(b, &report, sizeof report.kind + count * sizeof *numbers) != 0)
        _exit(1); /* the parent learns it otherwise from who has ended, but not from who is silent */
}

/* -- spares -------------------------------------------------------------------------------------------------------- */

/* Tell a spare to end, by way of its queue: a request that was there before, it takes. */
static inline void mc_place_end(struct mc_place *place)
{
    uint64_t pid = (uint64_t)place->pid;
    if (place->pid == 0 || place->told)
        return;
    place->told = true;
    send(place->pen, &pid, sizeof pid, MSG_DONTWAIT | MSG_NOSIGNAL); /* full, or no parent: it ends with this process */
}

/* Have all spares end, as they are out of date; others follow in a quiet moment. */
static inline void mc_brood_drop(struct mc_brood *b)
{
    for (int i = 0; i < MC_PLACES; i++) {
        if (b->places[i].pid != 0 && !b->places[i].told && b->due == 0)
            b->due = mc_now_ns();
        mc_place_end(&b->places[i]);
    }
}

/* Have those end that know less than the parent has told. */
static inline void mc_brood_renew(struct mc_brood *b, uint64_t generation)
{
    if (generation != b->generation) {
        b->generation = generation;
        mc_brood_drop(b);
    }
}

/* Where the next spare is to be; -1 if there are enough, or there is no place yet. */
static inline int mc_brood_place(struct mc_brood *b)
{
    int fit = 0, place = -1;
    for (int i = MC_PLACES; i-- > 0;) {
        fit += b->places[i].pid != 0 && !b->places[i].told;
        place = b->places[i].pid == 0 ? i : place;
    }
    if (fit >= b->wanted)
        return -1;
    b->owed = place < 0;
    return place;
}

/* A spare is one no more. */
static inline void mc_brood_leave(struct mc_brood *b, int pid)
{
    for (int i = 0; i < MC_PLACES; i++)
        if (b->places[i].pid == pid)
            b->places[i].pid = 0;
    if (b->owed) {
        b->owed = false;
        b->due = mc_now_ns();
    }
}

/* Note which spares have taken requests since this was called. */
static inline void mc_brood_note(struct mc_brood *b)
{
    struct mc_taken said[64];
    ssize_t size;
    do {
        size = read(b->said, said, sizeof said);
        for (ssize_t i = 0; i < size / (ssize_t)sizeof *said; i++) {
            struct mc_child *child = mc_brood_find(b, (int)said[i].pid);
            if (child == NULL)
                continue;
            mc_brood_leave(b, child->pid);
            child->launch_id = said[i].launch_id;
            child->linger = said[i].linger != 0;
            child->born = mc_now_ns();
            /* Where one process follows another, the next finds a spare that had a whole launch's time to get ready. */
            b->wanted = child->linger ? 2 : 1;
            b->due = child->born + MC_SPARE_AFTER_NS;
        }
    } while (size == (ssize_t)sizeof said);
}

/* -- forks --------------------------------------------------------------------------------------------------------- */

/* The threads of this process, as the kernel counts them; -1 where it does not. */
static inline int mc_thread_count(void)
{
    struct stat status;
    return stat("/proc/self/task", &status) == 0 ? (int)status.st_nlink - 2 : -1;
}

/* What a child is to have: an open file of its own of the lifeline, a memfd, room in the table. Returns 0, or -1. */
static inline int mc_brood_open(struct mc_brood *b, int *lifeline, int *stack)
{
    char path[32];
    if (b->count == b->room) {
        size_t room = b->room ? 2 * b->room : MC_FIRST_ROOM, bytes = room * sizeof *b->children;
        void *children =
            b->room ? mremap(b->children, b->room * sizeof *b->children, bytes, MREMAP_MAYMOVE)
                    : mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (children == MAP_FAILED)
            return -1;
        b->children = children;
        b->room = room;
    }
    *stack = memfd_create("manycore-stacks", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (*stack < 0) /* an old kernel, a sandbox: a file without a name does the same */
        *stack = open("/dev/shm", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
    if (*stack < 0)
        return -1;
    snprintf(path, sizeof path, "/proc/self/fd/%d", b->lifeline);
    *lifeline = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
    if (*lifeline < 0) {
        int error = errno;
        close(*stack);
        errno = error;
        return -1;
    }
    return 0;
}

/* In the zygote, after the fork of a child: a spare in a place, or with `place` -1 what was asked for. */
static inline void mc_brood_enter(struct mc_brood *b, int pid, int place, int lifeline, int stack)
{
    int64_t now = mc_now_ns();
    setpgid(pid, pid); /* the child does it too; whoever is first */
    b->children[b->count++] = (struct mc_child){.born = now, .pid = pid, .lifeline = lifeline, .stack = stack, .image = b->image};
    if (place < 0)
        return;
    struct mc_ready ready = {b->generation, (uint64_t)pid, (uint64_t)now};
    b->places[place].pid = pid;
    b->places[place].told = false;
    b->places[place].until = now + MC_SPARE_KEPT_NS;
    send(b->places[place].end, &ready, sizeof ready, MSG_DONTWAIT | MSG_NOSIGNAL); /* nobody reads it: nobody asks */
    b->due = mc_brood_place(b) >= 0 ? now : 0;
}

/* Note which launch a child was forked for; the next spare comes when it has had a moment for its own start. */
static inline void mc_brood_ask(struct mc_brood *b, int pid, uint64_t launch_id, bool linger)
{
    struct mc_child *child = mc_brood_find(b, pid);
    child->launch_id = launch_id;
    child->linger = linger;
    b->due = mc_now_ns() + MC_SPARE_AFTER_NS;
}

/* Whether the children have so few images of the memory that another may be taken: each is kept as long as one has it. */
static inline bool mc_brood_may_take(struct mc_brood *b)
{
    int one = 0;
    for (size_t i = 0; i < b->count; i++) {
        int image = b->children[i].image;
        if (image != 0 && image != one) {
            if (one != 0)
                return false;
            one = image;
        }
    }
    return true;
}

/* -- deaths -------------------------------------------------------------------------------------------------------- */

/* What has become of a child that has ended: its group, if it owned that or was killed, ends while the zombie still holds
 * the number; then it is reaped, and the parent is told. Its memfd must have been read. */
static inline void mc_brood_bury(struct mc_brood *b, int pid)
{
    siginfo_t info = {0};
    struct rusage used;
    int status = 0;
    struct mc_child *found = mc_brood_find(b, pid);
    waitid(P_PID, (id_t)pid, &info, WEXITED | WNOHANG | WNOWAIT);
    if (found != NULL && (found->owns_group || info.si_code != CLD_EXITED))
        kill(-pid, SIGKILL);
    if (wait4(pid, &status, WNOHANG, &used) != pid || found == NULL)
        return; /* an orphan of some child's */
    struct mc_child child = *found;
    *found = b->children[--b->count];
    close(child.stack);
    close(child.lifeline);
    if (child.launch_id == 0) {
        double gone = pid;
        mc_brood_leave(b, pid);
        mc_brood_tell_numbers(b, MC_GONE, &gone, 1);
        return;
    }
    double exited[7] = {
        (double)child.launch_id,
        pid,
        status,
        (double)used.ru_utime.tv_sec + (double)used.ru_utime.tv_usec / 1e6,
        (double)used.ru_stime.tv_sec + (double)used.ru_stime.tv_usec / 1e6,
        (double)used.ru_maxrss * 1024.0,
        (double)(mc_now_ns() - child.born) / 1e9,
    };
    mc_brood_tell_numbers(b, MC_EXITED, exited, 7);
    if (b->due != 0) /* a core is free, and whoever waited for this child may start the next */
        b->due = child.born;
}

/* Bury all that have ended, up to one that left something to be read: the stacks of a crash, or what it has learned.
 * Returns its pid, or 0. */
static inline int mc_brood_reap(struct mc_brood *b)
{
    unsigned char signals[512];
    ssize_t size;
    do {
        size = read(b->wake, signals, sizeof signals);
        for (ssize_t i = 0; i < size; i++)
            b->signalled = b->signalled || signals[i] != SIGCHLD;
    } while (size == (ssize_t)sizeof signals);
    for (;;) {
        struct stat words;
        siginfo_t info = {0};
        b->unreaped = waitid(P_ALL, 0, &info, WEXITED | WNOHANG | WNOWAIT) == 0 && info.si_pid != 0;
        if (!b->unreaped)
            return 0;
        struct mc_child *child = mc_brood_find(b, info.si_pid);
        if (child != NULL && child->launch_id == 0) /* what a spare has said of a request is there by now */
            mc_brood_note(b);
        if (child != NULL && fstat(child->stack, &words) == 0 && words.st_size > 0)
            return info.si_pid;
        mc_brood_bury(b, info.si_pid);
    }
}

/* Have all groups of children end, or with `all` false those that may not linger; what is left of them ends with them. */
static inline void mc_brood_kill(struct mc_brood *b, bool all)
{
    for (size_t i = 0; i < b->count; i++) {
        b->children[i].owns_group = true;
        if (all || !b->children[i].linger)
            kill(-b->children[i].pid, SIGKILL);
    }
}

static int mc_brood_woken_by = -1; /* where a byte is written with each SIGCHLD */

static void mc_brood_wake(int signum)
{
    int error = errno;
    unsigned char number = (unsigned char)signum;
    if (write(mc_brood_woken_by, &number, 1) < 0) { /* full: its other end is ready to read */
    }
    errno = error;
}

/* Have SIGCHLD write a byte, its number, to the other end of `wake`; the interpreter's own handler would write to its memory.
 * Of those that came before this, there may have been none. */
static inline int mc_brood_listen(struct mc_brood *b, int wake_write)
{
    struct sigaction action;
    memset(&action, 0, sizeof action);
    action.sa_handler = mc_brood_wake;
    action.sa_flags = SA_RESTART | SA_ONSTACK;
    mc_brood_woken_by = wake_write;
    b->unreaped = true;
    return sigaction(SIGCHLD, &action, NULL);
}

/* -- the loop ------------------------------------------------------------------------------------------------------ */

/* Do what there is to be done, until there is something for the caller; `until` in ns, or MC_NEVER. */
static inline enum mc_event mc_brood_wait(struct mc_brood *b, int64_t until)
{
    for (;;) {
        if (b->unreaped && (b->found = mc_brood_reap(b)) != 0)
            return MC_WORDS;
        if (b->signalled) {
            b->signalled = false;
            return MC_SIGNAL;
        }
        int64_t now = mc_now_ns(), next = until;
        bool due = b->due != 0 && now >= b->due;
        for (int i = 0; i < MC_PLACES; i++) {
            struct mc_place *place = &b->places[i];
            if (place->pid != 0 && now >= place->until)
                mc_place_end(place);
            if (place->pid != 0 && !place->told && place->until < next)
                next = place->until;
        }
        if (b->due != 0 && b->due < next)
            next = b->due;
        struct pollfd fds[2 + MC_OTHERS] = {{.fd = b->wake, .events = POLLIN}, {.fd = b->said, .events = POLLIN}};
        for (int i = 0; i < MC_OTHERS; i++)
            fds[2 + i] = (struct pollfd){.fd = b->others[i], .events = POLLIN};
        if (b->unsent != NULL)
            fds[2].events |= POLLOUT;
        int64_t wait = next > now ? next - now : 0;
        struct timespec patience = {.tv_sec = wait / 1000000000, .tv_nsec = wait % 1000000000};
        int ready = ppoll(fds, 2 + MC_OTHERS, next == MC_NEVER ? NULL : &patience, NULL);
        if (ready < 0)
            continue;
        if (ready == 0) { /* a quiet moment */
            if (mc_now_ns() >= until)
                return MC_TIME;
            if (due)
                return MC_SPARE;
            continue;
        }
        b->unreaped = fds[0].revents != 0;
        if (fds[1].revents != 0)
            mc_brood_note(b);
        if (fds[2].revents & POLLOUT)
            mc_brood_flush(b);
        for (int i = 0; i < MC_OTHERS; i++) {
            int which = (b->turn + i) % MC_OTHERS;
            if (fds[2 + which].revents & ~POLLOUT) {
                b->turn = which + 1;
                b->found = b->others[which];
                return MC_READY;
            }
        }
    }
}

#endif
