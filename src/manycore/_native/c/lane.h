/* A lane: the shared memory through which one end of a connection sends its large messages, beside the socket.
 *
 *   sender                                  socket                     receiver
 *   copy a part into the next chunk
 *   record: which chunk, how many bytes  =============>   copy the part out of the chunk
 *                                                         `read` = chunk + 1: it may be used again
 *   no chunk is free: the part itself    =============>   ...
 *
 * A lane belongs to one process and one direction. The records go through the socket, and so does whatever finds no
 * free chunk: there alone does anybody sleep, and a death of either side is there what it always was. Who reads too
 * slowly, or not at all, has a full lane and then a full socket, on which the sender sleeps; nothing grows.
 *
 * Which reader understands this? A sender begins with an offer: its large frames go as they always did, and with their
 * first byte travels the lane's descriptor (SCM_RIGHTS). A reader of ours maps it and sets `accepted`; any other gets
 * the same bytes without noticing (the kernel drops the descriptor), and after MC_LANE_OFFERS frames none is offered
 * any more. Only what is sent after `accepted` uses the lane:
 *
 *   frame  = -2 or -3, 4 bytes              -3: the content of a bytes object, of which no pickle was made
 *            id, 8 bytes; size, 8 bytes     with the first of them travels the descriptor, always
 *            { chunk, 4; length, 4 } ...    or { 0; length + MC_LANE_INLINE } and the bytes
 *
 * The descriptor travels with every frame, so any process that has the end reads any frame, whoever read the last.
 *
 * Invariants
 *   the sender fills chunk k only if k < read + MC_LANE_CHUNKS; the receiver reads it only after its record
 *   `read` never exceeds what was sent. It is stored by whoever reads, in the order of the records: readers take turns,
 *       as they do with any connection
 *   every page was asked for before the first record, and the size is sealed: no reader meets SIGBUS
 * If a process dies
 *   the sender      what it sent whole is read: in-flight frames hold the descriptor. Then end of file, as ever
 *   the receiver    before it stored `read`: the next record that anybody reads stores a larger one
 *   both            the memory has no name and goes with the last descriptor and mapping
 *
 * Source: the credit of a sliding window; passing descriptors, unix(7). */
#ifndef MANYCORE_LANE_H
#define MANYCORE_LANE_H

#include "fault.h"
#include "wire.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/stat.h>

#define MC_LANE_MAGIC 0x454e414cu /* "LANE" */
#define MC_LANE_LEAST 65536       /* bytes; below, the socket is as fast */
#define MC_LANE_CHUNK 131072u     /* bytes; less costs system calls, more makes each side wait longer for the other */
#define MC_LANE_CHUNKS 16u        /* 2 MiB: what the caches hold */
#define MC_LANE_HEAD 4096u
#define MC_LANE_SIZE (MC_LANE_HEAD + MC_LANE_CHUNKS * MC_LANE_CHUNK)
#define MC_LANE_OFFERS 16
#define MC_LANE_INLINE 0x80000000u
#define MC_LANE_PART 32768u /* bytes that go through the socket at a time */
#define MC_LANE_PATIENCE_MS 100 /* with too many descriptors on their way; then a frame goes without */
#define MC_LANE_PLAIN 0xfffffffeu /* -2 */
#define MC_LANE_OBJECT 0xfffffffdu /* -3 */
#define MC_LANE_MANIFEST 24

typedef struct {
    mc_header header;
    uint64_t id;
    mc_word accepted;
    _Alignas(MC_CACHE_LINE) _Atomic uint32_t read; /* chunks, counted from the beginning */
} mc_lane_head;

/* What one process has of a lane. */
typedef struct {
    mc_lane_head *shared; /* NULL: none */
    int fd;               /* the sender's; -1 in a receiver */
    bool filled;          /* all its pages are there */
    uint32_t written;     /* chunks */
    mc_spinner spinner;
} mc_lane;

static inline uint8_t *mc_lane_chunk(mc_lane *l, uint32_t chunk) {
    return (uint8_t *)l->shared + MC_LANE_HEAD + (size_t)(chunk % MC_LANE_CHUNKS) * MC_LANE_CHUNK;
}

static inline void mc_lane_close(mc_lane *l) {
    if (l->shared != NULL) munmap(l->shared, MC_LANE_SIZE);
    if (l->fd >= 0) close(l->fd);
    l->shared = NULL;
    l->fd = -1;
}

static inline int mc_lane_map(mc_lane *l, int fd) {
    void *base = mmap(NULL, MC_LANE_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd, 0);
    if (base == MAP_FAILED) return errno;
    l->shared = base;
    return 0;
}

/* Begins a lane, of which there is one page; 0 or errno. */
static inline int mc_lane_create(mc_lane *l) {
    uint64_t id;
    memset(l, 0, sizeof *l);
    l->fd = (int)syscall(SYS_memfd_create, "manycore:lane", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (l->fd < 0) return errno;
    int error = 0;
    if (ftruncate(l->fd, MC_LANE_SIZE) < 0 || fallocate(l->fd, 0, 0, MC_LANE_HEAD) < 0 ||
        fcntl(l->fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) < 0 ||
        getrandom(&id, sizeof id, GRND_NONBLOCK) != sizeof id)
        error = errno;
    if (!error) error = mc_lane_map(l, l->fd);
    if (error) {
        mc_lane_close(l);
        return error;
    }
    l->shared->id = id;
    l->shared->header = (mc_header){MC_LANE_MAGIC, MC_LAYOUT_VERSION};
    return 0;
}

/* The other pages; 0 or errno. */
static inline int mc_lane_fill(mc_lane *l) {
    while (!l->filled) {
        if (fallocate(l->fd, 0, MC_LANE_HEAD, MC_LANE_SIZE - MC_LANE_HEAD) == 0) l->filled = true;
        else if (errno != EINTR) return errno;
    }
    return 0;
}

/* Maps what came with a frame, and accepts it; 0 or errno. */
static inline int mc_lane_accept(mc_lane *l, int fd) {
    struct stat status;
    memset(l, 0, sizeof *l);
    l->fd = -1;
    int seals = fcntl(fd, F_GET_SEALS);
    if (seals < 0 || (seals & F_SEAL_SHRINK) == 0 || fstat(fd, &status) < 0 || status.st_size != MC_LANE_SIZE)
        return EBADMSG;
    int error = mc_lane_map(l, fd);
    if (error) return error;
    if (l->shared->header.magic != MC_LANE_MAGIC || l->shared->header.version != MC_LAYOUT_VERSION) {
        mc_lane_close(l);
        return EBADMSG;
    }
    atomic_store(&l->shared->accepted, 1);
    return 0;
}

static inline bool mc_lane_has_room(void *context) {
    mc_lane *l = context;
    /* acquire: pairs with the release in mc_lane_give_back; the chunk was copied out before it is written again */
    return l->written - atomic_load_explicit(&l->shared->read, memory_order_acquire) < MC_LANE_CHUNKS;
}

static inline void mc_lane_give_back(mc_lane *l, uint32_t chunk) {
    MC_FAULT("lane:chunk read");
    atomic_store_explicit(&l->shared->read, chunk + 1, memory_order_release);
}

/* A message on its way. */
typedef struct {
    const uint8_t *data;
    size_t size, done; /* bytes whose records are sent */
    uint32_t kind;     /* MC_LANE_PLAIN or MC_LANE_OBJECT */
    bool begun;        /* its first four bytes are sent */
    int refused;       /* times that the kernel would not take the descriptor */
    bool waits;        /* for the socket; signals were looked at since there was no room in it */
    size_t progress;   /* of what is being sent */
    size_t length;     /* of the part whose record is being sent; 0: none */
    bool inlined;
    uint8_t record[MC_LANE_MANIFEST];
    size_t record_size;
} mc_lane_message;

static inline void mc_lane_next_part(mc_lane *l, mc_lane_message *m) {
    size_t left = m->size - m->done, at = 0;
    uint32_t words[2];
    if (m->done == 0) {
        uint64_t size = m->size;
        memcpy(m->record, &l->shared->id, 8);
        memcpy(m->record + 8, &size, 8);
        at = 16;
    }
    m->inlined = !mc_lane_has_room(l) && !mc_spin(&l->spinner, mc_lane_has_room, l);
    m->length = left < (m->inlined ? MC_LANE_PART : MC_LANE_CHUNK) ? left : m->inlined ? MC_LANE_PART : MC_LANE_CHUNK;
    if (!m->inlined) memcpy(mc_lane_chunk(l, l->written), m->data + m->done, m->length);
    MC_FAULT("lane:chunk copied");
    words[0] = m->inlined ? 0 : l->written;
    words[1] = (uint32_t)m->length | (m->inlined ? MC_LANE_INLINE : 0);
    memcpy(m->record + at, words, 8);
    m->record_size = at + 8;
    m->progress = 0;
}

/* Sends bytes of it. Before this waits for the socket it is EINTR once: a signal may have come while a part was copied,
 * and then there is no system call to be interrupted. */
static inline int mc_lane_write(int fd, mc_lane_message *m, const struct iovec *parts, int count, int passed) {
    int error = mc_wire_write(fd, parts, count, &m->progress, passed, m->waits ? 0 : MSG_DONTWAIT);
    if (error == ETOOMANYREFS) { /* of this user, in all sockets: who accepted the lane has it, and needs none */
        if (m->refused++ < MC_LANE_PATIENCE_MS) return poll(NULL, 0, 1) < 0 ? errno : EINTR;
        error = mc_wire_write(fd, parts, count, &m->progress, -1, m->waits ? 0 : MSG_DONTWAIT);
    }
    m->waits = error == EAGAIN;
    return m->waits ? EINTR : error;
}

/* Sends a message, or goes on with it; 0 or errno. EINTR: look at signals, and call again. */
static inline int mc_lane_send(int fd, mc_lane *l, mc_lane_message *m) {
    int error;
    if (!m->begun) {
        uint8_t head[4] = {0xff, 0xff, 0xff, (uint8_t)m->kind};
        struct iovec part = {head, 4};
        error = mc_lane_write(fd, m, &part, 1, -1);
        if (error) return error;
        m->begun = true;
        MC_FAULT("lane:begun");
    }
    while (m->done < m->size) {
        if (m->length == 0) mc_lane_next_part(l, m);
        struct iovec parts[2] = {{m->record, m->record_size}, {(uint8_t *)m->data + m->done, m->length}};
        error = mc_lane_write(fd, m, parts, m->inlined ? 2 : 1, m->done == 0 ? l->fd : -1);
        if (error) return error;
        MC_FAULT("lane:record sent");
        if (!m->inlined) l->written++;
        m->done += m->length;
        m->length = 0;
    }
    return 0;
}

#endif
