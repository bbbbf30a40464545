/* The result ring: records of bytes from one worker to the parent.
 *
 *     worker                                parent
 *     wait for room, copy the record,       read records in [tail, head), copy them out,
 *     head += size        (release)         tail += size        (release), wake a writer that waits
 *
 * `head` and `tail` count bytes and never wrap; a record is contiguous, and a record of size 0 says that
 * the rest of the lap is empty. A record is published by one store after it is whole, so a worker that is
 * killed half-way leaves nothing half-visible. The parent believes nothing: a size that cannot be is
 * reported, and its worker is killed as if it had crashed.
 *
 * A short record is a small result of the item after that of the record before it, whichever that was. A third of
 * the bytes go from core to core, which is most of what a result of some nanoseconds' work costs.
 *
 * The parent reads many records between two stores of `tail`: each store takes a cache line from the worker, and a
 * worker that waits for room is woken to all of it at once.
 *
 * Source: Lamport, "Specifying Concurrent Program Modules" (the single-producer single-consumer ring). */
#ifndef MANYCORE_RESULT_RING_H
#define MANYCORE_RESULT_RING_H

#include "fault.h"
#include "wait.h"

#define MC_RESULTS_MAGIC 0x6d637272u

typedef struct {
    uint32_t size;    /* bytes of the whole record, a multiple of 8; 0 = the lap ends here */
    uint8_t status;
    uint8_t kind;     /* how the payload is encoded */
    uint16_t flags;
    uint64_t task;
    uint64_t item;
    int64_t took_ns;
    uint32_t length;  /* bytes of payload */
    uint32_t unused;
} mc_record;
_Static_assert(sizeof(mc_record) == 40, "records are packed");

typedef struct {
    uint32_t size;    /* that of this struct */
    uint8_t status;   /* 0 */
    uint8_t kind;     /* one whose value has at most 8 bytes */
    uint16_t took_ns;
    uint64_t value;
} mc_short;
_Static_assert(sizeof(mc_short) == 16, "and so are short ones");

typedef struct {
    mc_header header;
    uint64_t capacity; /* bytes of data, a power of two */
    _Alignas(MC_CACHE_LINE) _Atomic uint64_t head; /* written by the worker */
    _Alignas(MC_CACHE_LINE) _Atomic uint64_t tail; /* written by the parent */
    _Alignas(MC_CACHE_LINE) mc_word full;          /* 1 while the worker sleeps for room */
    _Alignas(MC_CACHE_LINE) uint8_t data[];
} mc_results;

static inline void mc_results_init(mc_results *r, uint64_t capacity) {
    r->capacity = capacity;
    r->header.version = MC_LAYOUT_VERSION;
    atomic_thread_fence(memory_order_release);
    r->header.magic = MC_RESULTS_MAGIC;
}

static inline bool mc_results_valid(const mc_results *r, size_t bytes) {
    return bytes > sizeof(mc_results) && r->header.magic == MC_RESULTS_MAGIC &&
           r->header.version == MC_LAYOUT_VERSION && r->capacity > 0 && !(r->capacity & (r->capacity - 1)) &&
           r->capacity <= bytes - sizeof(mc_results);
}

static inline bool mc_results_empty(const mc_results *r) {
    return atomic_load(&((mc_results *)r)->head) == atomic_load(&((mc_results *)r)->tail);
}

/* Bytes that wait for the parent. */
static inline uint64_t mc_results_used(mc_results *r) { return atomic_load(&r->head) - atomic_load(&r->tail); }

/* Where a record of `size` bytes may be written, or NULL when there is no room now. The lap's rest is
 * given up when the record does not fit into it. */
static inline mc_record *mc_reserve(mc_results *r, uint32_t size) {
    uint64_t head = atomic_load_explicit(&r->head, memory_order_relaxed); /* ours alone */
    uint64_t tail = atomic_load_explicit(&r->tail, memory_order_acquire); /* pairs with mc_take */
    uint64_t at = head & (r->capacity - 1), rest = r->capacity - at, room = r->capacity - (head - tail);
    if (size > rest) {
        if (rest > room) return NULL;
        ((mc_record *)(r->data + at))->size = 0;
        atomic_store_explicit(&r->head, head + rest, memory_order_release); /* pairs with mc_peek */
        MC_FAULT("results:lap ended");
        at = 0;
        room -= rest;
    }
    return size <= room ? (mc_record *)(r->data + at) : NULL;
}

static inline void mc_commit(mc_results *r, uint32_t size) {
    MC_FAULT("results:copied");
    atomic_store_explicit(&r->head, atomic_load_explicit(&r->head, memory_order_relaxed) + size,
                          memory_order_release); /* pairs with mc_peek */
    MC_FAULT("results:published");
}

/* Sleep until there may be room: 0 or EINTR. */
static inline int mc_wait_room(mc_results *r, uint32_t size) {
    atomic_store(&r->full, 1);
    MC_FAULT("results:waiting");
    atomic_thread_fence(memory_order_seq_cst); /* before the look at tail, as in mc_take the other way round */
    if (mc_reserve(r, size) != NULL) {
        atomic_store(&r->full, 0);
        return 0;
    }
    int e = mc_wait(&r->full, 1, MC_NEVER);
    atomic_store(&r->full, 0);
    return e == EINTR ? EINTR : 0;
}

/* The record at `*tail`, before `head`; NULL when there is none. `*tail` goes past the end of a lap, and `*broken` is
 * set when the bytes cannot be a record. Of a short one only the fields of mc_short may be looked at. */
static inline mc_record *mc_look(const mc_results *r, uint64_t head, uint64_t *tail, bool *broken) {
    for (;;) {
        uint64_t used = head - *tail, at = *tail & (r->capacity - 1), rest = r->capacity - at;
        if (used == 0) return NULL;
        mc_record *record = (mc_record *)(uintptr_t)(r->data + at);
        if (used > r->capacity || used < 8 || (*tail & 7)) break;
        uint32_t size = record->size;
        if (size == 0) {
            if (rest > used) break;
            *tail += rest;
            continue;
        }
        if (size > used || size > rest || (size & 7)) break;
        if (size == sizeof(mc_short)) return record;
        if (size < sizeof(mc_record) || record->length > size - sizeof(mc_record)) break;
        return record;
    }
    *broken = true;
    return NULL;
}

/* What is before `tail` has been read. */
static inline void mc_take_to(mc_results *r, uint64_t tail) {
    atomic_store(&r->tail, tail); /* seq_cst: before the look at full; pairs with mc_reserve */
    uint32_t waiting = 1;
    if (atomic_load(&r->full) && atomic_compare_exchange_strong(&r->full, &waiting, 0)) mc_wake(&r->full, 1);
}

/* The next record, NULL when there is none; as mc_look. */
static inline mc_record *mc_peek(mc_results *r, bool *broken) {
    uint64_t head = atomic_load_explicit(&r->head, memory_order_acquire); /* pairs with mc_commit */
    uint64_t tail = atomic_load_explicit(&r->tail, memory_order_relaxed), at = tail; /* ours alone */
    mc_record *record = mc_look(r, head, &at, broken);
    if (at != tail) mc_take_to(r, at);
    return record;
}

static inline void mc_take(mc_results *r, uint32_t size) {
    mc_take_to(r, atomic_load_explicit(&r->tail, memory_order_relaxed) + size);
}

#endif
