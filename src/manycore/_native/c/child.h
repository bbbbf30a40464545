/* What a zygote's child does before anything else, without an object of Python's being touched: each page that it
 * writes is copied then, at 1 to 3 us, and the interpreter writes into hundreds for as many lines of Python.
 *
 * Steps and their order: `_launch/worker.py`.
 *
 * If the process dies: each step is one system call; what a child that died had done goes with it.
 */
#ifndef MANYCORE_CHILD_H
#define MANYCORE_CHILD_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#ifndef SYS_pidfd_open
#define SYS_pidfd_open 434
#endif
#ifndef SYS_close_range
#define SYS_close_range 436
#endif

#define MC_POPULATE_WRITE 23 /* MADV_POPULATE_WRITE of madvise(2) */
#define MC_CORES_BYTES 1024 /* of an affinity mask; Linux is built for 8,192 cores at most */
#define MC_FULL_RETRY_MS 1  /* between attempts to send while too many descriptors are in flight */

/* Have the kernel send a signal when the last write end of a pipe closes.
 * Returns 0; 1 if it has closed already; -1 with errno where the kernel cannot. */
static inline int mc_arm(int lifeline, int owner, int signum)
{
    struct pollfd ended = {.fd = lifeline, .events = 0, .revents = 0};
    if (fcntl(lifeline, F_SETOWN, owner) != 0 || fcntl(lifeline, F_SETSIG, signum) != 0 ||
        fcntl(lifeline, F_SETFL, O_NONBLOCK | O_ASYNC) != 0)
        return -1;
    return poll(&ended, 1, 0) == 1;
}

/* Close all descriptors above 2 but those in `keep`, which is sorted here. */
static inline void mc_close_others(int *keep, int count)
{
    int previous = 2;
    for (int i = 1; i < count; i++) /* a handful: insertion sort */
        for (int j = i; j > 0 && keep[j] < keep[j - 1]; j--) {
            int fd = keep[j];
            keep[j] = keep[j - 1];
            keep[j - 1] = fd;
        }
    for (int i = 0; i <= count; i++) {
        unsigned int first = (unsigned int)previous + 1;
        if (i < count && keep[i] <= previous) /* one of the standard ones, or none */
            continue;
        unsigned int last = i < count ? (unsigned int)keep[i] - 1 : (unsigned int)INT_MAX;
        if (first <= last && syscall(SYS_close_range, first, last, 0) != 0) { /* a filter, a kernel in user space */
            long most = sysconf(_SC_OPEN_MAX);
            for (unsigned int fd = first; fd <= last && (long)fd < most; fd++)
                close((int)fd);
        }
        previous = i < count ? keep[i] : previous;
    }
}

/* Have the kernel copy pages now that are otherwise copied one by one as they are first written to: of `count` runs each its
 * address and its bytes. Where nothing is mapped, or the kernel is older than Linux 5.14, nothing happens. */
static inline void mc_populate(const unsigned long *runs, size_t count)
{
    for (size_t i = 0; i < count; i++)
        madvise((void *)runs[2 * i], runs[2 * i + 1], MC_POPULATE_WRITE);
}

/* Its own process group, the tie to the parent, the memfd for its stacks, and no descriptor of the zygote's. */
static inline int mc_settle(int lifeline, int stack, int stack_fd, int *keep, int count)
{
    if (setpgid(0, 0) != 0)
        return -1;
    int armed = mc_arm(lifeline, -getpid(), SIGKILL);
    if (armed > 0)
        _exit(1);
    if (armed < 0) /* a kernel in user space, or a filter: the zygote alone must do */
        if (prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0) != 0)
            return -1;
    if (stack != stack_fd && dup3(stack, stack_fd, O_CLOEXEC) < 0)
        return -1;
    mc_close_others(keep, count);
    return 0;
}

/* Take over the cores and the limits that a process has now; not where it has died, or has another user. */
static inline void mc_follow(int pid, const int *limits, int count)
{
    unsigned char theirs[MC_CORES_BYTES], ours[MC_CORES_BYTES];
    memset(theirs, 0, sizeof theirs);
    memset(ours, 0, sizeof ours);
    if (sched_getaffinity(pid, sizeof theirs, (cpu_set_t *)theirs) != 0 ||
        sched_getaffinity(0, sizeof ours, (cpu_set_t *)ours) != 0)
        return;
    if (memcmp(theirs, ours, sizeof ours) != 0 && sched_setaffinity(0, sizeof theirs, (cpu_set_t *)theirs) != 0)
        return;
    for (int i = 0; i < count; i++) {
        struct rlimit wanted, now;
        if (prlimit(pid, limits[i], NULL, &wanted) != 0 || prlimit(0, limits[i], NULL, &now) != 0)
            return;
        if ((wanted.rlim_cur != now.rlim_cur || wanted.rlim_max != now.rlim_max) && setrlimit(limits[i], &wanted) != 0)
            return;
    }
}

/* Send a record with this process's own pidfd; where no descriptor can go along, the other record without one.
 * Exits if nobody is there to read it. The parent may be slow: its death is seen as an error, or by the lifeline. */
static inline void mc_announce(int control, const char *with, size_t with_size, const char *without, size_t without_size)
{
    int pidfd = (int)syscall(SYS_pidfd_open, getpid(), 0);
    for (;;) {
        union {
            char bytes[CMSG_SPACE(sizeof(int))];
            struct cmsghdr aligned;
        } control_data;
        struct iovec body = {(void *)(pidfd >= 0 ? with : without), pidfd >= 0 ? with_size : without_size};
        struct msghdr message;
        memset(&message, 0, sizeof message);
        message.msg_iov = &body;
        message.msg_iovlen = 1;
        if (pidfd >= 0) {
            memset(&control_data, 0, sizeof control_data);
            message.msg_control = control_data.bytes;
            message.msg_controllen = sizeof control_data.bytes;
            struct cmsghdr *header = CMSG_FIRSTHDR(&message);
            header->cmsg_level = SOL_SOCKET;
            header->cmsg_type = SCM_RIGHTS;
            header->cmsg_len = CMSG_LEN(sizeof(int));
            memcpy(CMSG_DATA(header), &pidfd, sizeof pidfd);
        }
        if (sendmsg(control, &message, MSG_NOSIGNAL) >= 0)
            break;
        if (errno == EINTR)
            continue;
        if (errno == EAGAIN) {
            struct pollfd room = {.fd = control, .events = POLLOUT, .revents = 0};
            poll(&room, 1, -1);
        } else if (errno == ETOOMANYREFS && pidfd >= 0) {
            close(pidfd); /* the parent opens one itself */
            pidfd = -1;
        } else if (errno == ENOBUFS || errno == ENOMEM) {
            poll(NULL, 0, MC_FULL_RETRY_MS);
        } else {
            _exit(1);
        }
    }
    if (pidfd >= 0)
        close(pidfd);
    close(control);
}

#endif
