/* Frames over a descriptor: the standard library's connections' bytes, in as few system calls as there can be. Large
 * messages between two ends of ours go another way: `lane.h`.
 *
 *   frame  = size, 4 bytes, big-endian, signed; bytes        (size <= 2^31 - 1)
 *          | -1, 4 bytes; size, 8 bytes, big-endian; bytes
 *
 * Everything is in the kernel's buffers: what a process has sent is delivered whatever becomes of it, and the end of
 * the last descriptor of the other end is an end of file. Nothing is read ahead, so that a descriptor can be given to
 * another process, or be waited for, between any two frames.
 *
 * A waiting reader looks for a bounded time (mc_spin) before it sleeps: on a free core a frame comes within 2 us, where
 * a wake-up takes 20.
 *
 * Both functions can be called again after EINTR, and go on where they were; `progress` says where that is.
 *
 * If a process dies: amidst a frame, the reader gets MC_WIRE_END with `progress` in the midst of it. */
#ifndef MANYCORE_WIRE_H
#define MANYCORE_WIRE_H

#include "wait.h"

#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>

#define MC_WIRE_SPIN_NS 20000 /* ns; a round trip between spinning ends takes 4000, a sleep and a wake-up some 20000 */
#define MC_WIRE_END (-1) /* end of file; other results are 0 or an errno */

/* Whether descriptors can travel over it. */
static inline bool mc_wire_is_local(int fd) {
    int domain = 0;
    socklen_t length = sizeof domain;
    return getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &domain, &length) == 0 && domain == AF_UNIX;
}

/* Sends parts, two at most, from byte `progress` on; with the first byte travels `passed`, if it is not negative.
 * `flags`: 0, or MSG_DONTWAIT, with which EAGAIN is a result. */
static inline int mc_wire_write(int fd, const struct iovec *parts, int count, size_t *progress, int passed, int flags) {
    union {
        struct cmsghdr head;
        char bytes[CMSG_SPACE(sizeof(int))];
    } control;
    bool is_socket = true;
    size_t total = parts[0].iov_len + (count > 1 ? parts[1].iov_len : 0);
    while (*progress < total) {
        struct iovec left[2];
        int many = 0;
        size_t skip = *progress;
        for (int i = 0; i < count; i++) {
            if (skip < parts[i].iov_len)
                left[many++] = (struct iovec){(uint8_t *)parts[i].iov_base + skip, parts[i].iov_len - skip};
            skip = skip > parts[i].iov_len ? skip - parts[i].iov_len : 0;
        }
        ssize_t n;
        if (is_socket) {
            struct msghdr message = {.msg_iov = left, .msg_iovlen = (size_t)many};
            if (passed >= 0 && *progress == 0) {
                memset(&control, 0, sizeof control);
                message.msg_control = control.bytes;
                message.msg_controllen = sizeof control.bytes;
                control.head = (struct cmsghdr){CMSG_LEN(sizeof(int)), SOL_SOCKET, SCM_RIGHTS};
                memcpy(CMSG_DATA(&control.head), &passed, sizeof passed);
            }
            n = sendmsg(fd, &message, MSG_NOSIGNAL | flags);
            if (n < 0 && errno == ENOTSOCK) {
                is_socket = false;
                continue;
            }
        } else {
            n = writev(fd, left, many);
        }
        if (n >= 0) {
            *progress += (size_t)n;
            if (*progress < total) return EINTR; /* that is why it was not all: somebody must look at the signal */
        } else if (errno == EAGAIN) {
            if (flags) return EAGAIN;
            struct pollfd writable = {fd, POLLOUT, 0};
            if (poll(&writable, 1, -1) < 0) return errno;
        } else if (errno == ENOBUFS || errno == ENOMEM) { /* passing: look again in a millisecond */
            if (poll(NULL, 0, 1) < 0) return errno;
        } else {
            return errno;
        }
    }
    return 0;
}

/* Sends a frame from byte `progress` on. Before its data, and with their first byte, travels `passed`. */
static inline int mc_wire_send(int fd, const void *data, size_t size, size_t *progress, int passed) {
    uint8_t head[12];
    size_t length = 4;
    if (size <= 0x7fffffff) {
        for (int i = 0; i < 4; i++) head[i] = (uint8_t)(size >> (24 - 8 * i));
    } else {
        memset(head, 0xff, 4);
        for (int i = 0; i < 8; i++) head[4 + i] = (uint8_t)((uint64_t)size >> (56 - 8 * i));
        length = 12;
    }
    struct iovec parts[2] = {{head, length}, {(void *)data, size}};
    if (passed < 0) return mc_wire_write(fd, parts, size > 0 ? 2 : 1, progress, -1, 0);
    if (*progress < length) {
        int error = mc_wire_write(fd, parts, 1, progress, -1, 0);
        return error ? error : EINTR; /* somebody may have waited for these bytes to send us a signal */
    }
    size_t sent = *progress - length;
    int error = mc_wire_write(fd, parts + 1, 1, &sent, passed, 0);
    if (error == ETOOMANYREFS) error = mc_wire_write(fd, parts + 1, 1, &sent, -1, 0); /* it was but an offer */
    *progress = length + sent;
    return error;
}

typedef struct {
    int fd;
    bool pipe; /* it is no socket */
    uint8_t *into;
    size_t size;
    int *passed; /* where a descriptor that comes along is put; NULL drops it */
    ssize_t got; /* -1 and `error` where there is nothing */
    int error;
} mc_wire_try;

static inline ssize_t mc_wire_take(mc_wire_try *t) {
    if (t->passed == NULL) return recv(t->fd, t->into, t->size, MSG_DONTWAIT);
    union {
        struct cmsghdr head;
        char bytes[CMSG_SPACE(sizeof(int))];
    } control;
    struct iovec part = {t->into, t->size};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = control.bytes,
                             .msg_controllen = CMSG_LEN(sizeof(int))}; /* room for one; the kernel drops others */
    ssize_t n = recvmsg(t->fd, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    struct cmsghdr *found = n >= 0 ? CMSG_FIRSTHDR(&message) : NULL;
    if (found != NULL && found->cmsg_level == SOL_SOCKET && found->cmsg_type == SCM_RIGHTS &&
        found->cmsg_len >= CMSG_LEN(sizeof(int))) {
        if (*t->passed >= 0) close(*t->passed);
        memcpy(t->passed, CMSG_DATA(found), sizeof(int));
    }
    return n;
}

/* Takes what is there without waiting; true unless there is nothing. */
static inline bool mc_wire_look(void *context) {
    mc_wire_try *t = context;
    if (!t->pipe) {
        t->got = mc_wire_take(t);
        t->error = t->got < 0 ? errno : 0;
        if (t->error != ENOTSOCK) return t->error != EAGAIN;
        t->pipe = true;
    }
    struct pollfd readable = {t->fd, POLLIN, 0};
    int ready = poll(&readable, 1, 0);
    if (ready > 0) t->got = read(t->fd, t->into, t->size);
    t->error = ready < 0 || (ready > 0 && t->got < 0) ? errno : ready == 0 ? EAGAIN : 0;
    return t->error != EAGAIN;
}

/* Receives `size` bytes into `into`, of which `progress` are there. Spins only where `spinner` is given. A descriptor
 * that comes along is put into `passed`, or dropped. */
static inline int mc_wire_receive(int fd, void *into, size_t size, size_t *progress, mc_spinner *spinner, int *passed) {
    mc_wire_try t = {.fd = fd, .passed = passed};
    while (*progress < size) {
        t.into = (uint8_t *)into + *progress;
        t.size = size - *progress;
        if (!mc_wire_look(&t) && !(spinner != NULL && mc_spin(spinner, mc_wire_look, &t))) {
            struct pollfd readable = {fd, POLLIN, 0};
            if (poll(&readable, 1, -1) < 0) return errno;
            spinner = NULL; /* and no mc_slept: where both ends share a core, short sleeps say nothing for spinning */
            continue;
        }
        if (t.error) return t.error;
        if (t.got == 0) return MC_WIRE_END;
        *progress += (size_t)t.got;
        spinner = NULL;
    }
    return 0;
}

/* Waits until there is something to read, or an end; 1, 0 at the deadline, or -errno. */
static inline int mc_wire_poll(int fd, int64_t deadline_ns) {
    struct pollfd readable = {fd, POLLIN, 0};
    for (;;) {
        int64_t left = deadline_ns == MC_NEVER ? -1 : (deadline_ns - mc_now_ns() + 999999) / 1000000;
        int n = poll(&readable, 1, left < 0 ? (deadline_ns == MC_NEVER ? -1 : 0) : left > 1000000 ? 1000000 : (int)left);
        if (n > 0) return readable.revents & POLLNVAL ? -EBADF : 1;
        if (n < 0) return -errno;
        if (deadline_ns != MC_NEVER && mc_now_ns() >= deadline_ns) return 0;
    }
}

#endif
