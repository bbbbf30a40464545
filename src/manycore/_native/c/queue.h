/* A queue of records between any number of processes: a chain of blocks, with a lock at each end.
 *
 *      writers (one at a time)                       readers (one at a time)
 *      lock W                                        lock R
 *      copy the record behind the tail               copy the record at the head
 *      publish the tail, the count     ==>           publish the head, the count
 *      unlock, wake a reader                         give back the blocks left behind, unlock, wake a writer
 *                         <== blocks, last in first out <==
 *
 * Memory. A memfd: a header, then blocks of MC_QUEUE_BLOCK bytes. A record is a word (its length
 * and kind) and its bytes, from block to block along `next`. A writer that needs a block takes, in this
 * order: the one already chained behind the tail (left by a writer that died or ran out of memory), one
 * that readers gave back, one never used; the file grows as it is used. Each process maps the file in
 * extents that double, as it meets them, so nothing is ever moved.
 *
 * Beyond MC_QUEUE_KEPT free blocks, those given back return their pages to the system, but for the first,
 * which has the links; a writer that takes such a block asks for pages again, so it can fail but not fault.
 *
 * Publishing. Each end is a pair of states and a version: the state of version v is state[v & 1], and the
 * version is stored after it. So position and count change in one store, and what a writer had copied before
 * it died is as if it had never been.
 *
 * Sleeping. Who is about to sleep sets a bit of `awaited`, looks at the version again, and sleeps on `awaited`; who
 * publishes wakes one if the bit is set, clears it and counts up, so that whoever was about to sleep does not. (A flag
 * beside the word that one sleeps on will not do: a publisher that is late may clear it for nobody.) Who has slept
 * sets it again when it leaves, for others may sleep still. All sleeps are cut into pieces (mc_waiting), so a wake-up
 * that a dying process swallowed costs some milliseconds. Who waits for other things at the same time sets another
 * bit, and has a bell (bell.h).
 *
 * Invariants
 *   got <= put; got == put exactly when head and tail are at the same place
 *   between head and tail every byte is a whole record's; nothing behind the tail is ever read
 *   W's state, `fresh` and the chain behind the tail are written under W; R's state under R
 *   `free` is popped under W and pushed under R, so it has one popper and no ABA
 * If a process dies
 *   holding W      its record was not published, or was: nothing to repair. At most one block is lost to
 *                  the chain (taken, and not yet linked)
 *   holding R      the record was not taken, or was; in the second case it is lost with its taker, and the
 *                  blocks that it was about to give back are lost to the chain
 *   asleep, woken  nothing; the others look again by themselves
 *
 * Source: the two-lock queue of Michael and Scott (1996), over blocks, with published state pairs in the
 * place of its node pointers. */
#ifndef MANYCORE_QUEUE_H
#define MANYCORE_QUEUE_H

#include "bell.h"
#include "fault.h"
#include "lock.h"

#include <linux/falloc.h>

#define MC_QUEUE_MAGIC 0x55455551u /* "QUEU" */
#ifndef MC_QUEUE_BLOCK
#define MC_QUEUE_BLOCK 32768u      /* bytes; less makes more links, more makes a larger empty queue */
#endif
#define MC_QUEUE_DATA (MC_QUEUE_BLOCK - 16u)
#define MC_QUEUE_SECOND 4096u /* of the header, for broadcast.h */
#define MC_QUEUE_HEADER (4096u + MC_QUEUE_SECOND)
#define MC_QUEUE_EXTENTS 26        /* 2^25 blocks, 1 TiB */
#define MC_QUEUE_KEPT 2048u        /* blocks given back that keep their pages: 64 MiB; less makes a large queue slower */
#define MC_QUEUE_STEP 128u         /* blocks by which the file grows at most: 4 MiB */
#define MC_QUEUE_KIND_SHIFT 56

typedef struct {
    _Atomic uint32_t block, offset;
    _Atomic uint64_t count;
} mc_queue_state;

typedef struct {
    mc_word version;
    uint32_t reserved;
    mc_queue_state state[2];
    _Atomic uint64_t bytes; /* of payload, since the beginning; for people */
} mc_queue_end;

/* Who waits for the other side. */
typedef struct {
    mc_word awaited; /* bits 0, 1: below; bits 2-31: how often they were cleared. What sleepers sleep on */
    mc_bells bells;
} mc_queue_waits;

#define MC_QUEUE_SLEEPS 1u  /* somebody sleeps, or is about to */
#define MC_QUEUE_WATCHES 2u /* somebody has armed a bell */
#define MC_QUEUE_WAITS (MC_QUEUE_SLEEPS | MC_QUEUE_WATCHES)

/* What has become of the items that were taken, where that is kept: all under R. Every one of them is done, lost,
 * in somebody's hands or nobody knows in whose, but for the step between the head's publication and the entry here:
 * what is then missing was taken by a process that died in that step. */
#define MC_QUEUE_HANDS 40 /* processes whose hands are known at a time */

typedef struct {
    mc_owner_word owner; /* 0: free */
    _Atomic uint64_t count;
} mc_queue_hand;

typedef struct {
    uint32_t kept; /* whether any of this is; written by the creator */
    mc_word changed; /* when all that was put is done or lost; joiners sleep on it */
    _Atomic uint64_t done, lost, unknown;
    mc_queue_waits waits; /* of joiners */
    mc_queue_hand hands[MC_QUEUE_HANDS];
} mc_queue_work;

typedef struct {
    mc_header header;
    uint32_t block_bytes;
    uint32_t meets;           /* of a channel without a buffer: 1. Written by the creator */
    uint64_t most;            /* items; 0 is unbounded. Written by the creator */
    mc_word closed;           /* 1: no more records */
    _Atomic uint64_t offer;   /* of a channel without a buffer: meet.h */
    _Alignas(MC_CACHE_LINE) mc_lock writers;
    _Alignas(MC_CACHE_LINE) mc_lock readers;
    _Alignas(MC_CACHE_LINE) mc_queue_end tail;
    _Alignas(MC_CACHE_LINE) mc_queue_end head;
    _Alignas(MC_CACHE_LINE) mc_queue_waits items; /* of readers, for writers */
    _Alignas(MC_CACHE_LINE) mc_queue_waits room;  /* of writers, for readers */
    _Alignas(MC_CACHE_LINE) mc_word free;          /* index + 1 of the block given back last; 0 is none */
    _Atomic uint32_t free_count;                   /* about; a death may make it too large or too small */
    _Alignas(MC_CACHE_LINE) _Atomic uint32_t fresh; /* the first block never used; W */
    _Atomic uint32_t allocated;                    /* blocks that the file has; W */
    _Alignas(MC_CACHE_LINE) mc_queue_work work;
} mc_queue;

_Static_assert(sizeof(mc_queue) <= MC_QUEUE_HEADER - MC_QUEUE_SECOND, "the header's first page");

typedef struct {
    _Atomic uint32_t next;      /* index + 1 of the block behind; W */
    _Atomic uint32_t next_free; /* R, while the block is given back */
    _Atomic uint32_t bare;      /* its pages but the first went back to the system; R, then W */
    uint32_t reserved;
    unsigned char data[MC_QUEUE_DATA];
} mc_queue_block;

_Static_assert(sizeof(mc_queue_block) == MC_QUEUE_BLOCK, "blocks lie side by side");

/* What one process knows of a queue. */
typedef struct {
    mc_queue *shared;
    _Atomic(unsigned char *) extents[MC_QUEUE_EXTENTS];
    int fd;
    mc_spinner spinner;
} mc_queue_handle;

/* A place in the chain, private to who holds a lock. */
typedef struct {
    uint32_t block, offset;
    mc_queue_block *at;
} mc_queue_cursor;

/* ---- memory ---- */

static inline off_t mc_queue_file_offset(uint32_t block) { return MC_QUEUE_HEADER + (off_t)block * MC_QUEUE_BLOCK; }

/* NULL when it cannot be mapped. */
static inline mc_queue_block *mc_queue_block_at(mc_queue_handle *q, uint32_t block) {
    if (block == 0) return (mc_queue_block *)((unsigned char *)q->shared + MC_QUEUE_HEADER);
    int extent = 32 - __builtin_clz(block); /* extent k holds the blocks from 2^(k-1) to 2^k */
    uint32_t first = 1u << (extent - 1);
    if (extent >= MC_QUEUE_EXTENTS) return NULL;
    unsigned char *base = atomic_load_explicit(&q->extents[extent], memory_order_acquire);
    if (base == NULL) {
        size_t size = (size_t)first * MC_QUEUE_BLOCK;
        void *fresh = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, q->fd,
                           mc_queue_file_offset(first));
        if (fresh == MAP_FAILED) return NULL;
        /* another thread of this process may have been faster */
        if (!atomic_compare_exchange_strong(&q->extents[extent], &base, (unsigned char *)fresh)) munmap(fresh, size);
        else base = fresh;
    }
    return (mc_queue_block *)(base + (size_t)(block - first) * MC_QUEUE_BLOCK);
}

/* Maps the queue of a descriptor; 0 or errno. A new one is begun when `most` is not negative. */
static inline int mc_queue_open(mc_queue_handle *q, int fd, int64_t most) {
    memset(q, 0, sizeof *q);
    q->fd = fd;
    size_t size = MC_QUEUE_HEADER + MC_QUEUE_BLOCK;
    if (most >= 0) {
        int error;
        do error = posix_fallocate(fd, 0, (off_t)size);
        while (error == EINTR);
        if (error) return error;
    }
    void *base = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (base == MAP_FAILED) return errno;
    q->shared = base;
    if (most >= 0) {
        mc_queue *s = q->shared;
        s->block_bytes = MC_QUEUE_BLOCK;
        s->most = (uint64_t)most;
        mc_lock_init(&s->writers, 0);
        mc_lock_init(&s->readers, 0);
        atomic_store(&s->fresh, 1);
        atomic_store(&s->allocated, 1);
        s->header.version = MC_LAYOUT_VERSION;
        s->header.magic = MC_QUEUE_MAGIC;
    } else if (q->shared->header.magic != MC_QUEUE_MAGIC || q->shared->header.version != MC_LAYOUT_VERSION ||
               q->shared->block_bytes != MC_QUEUE_BLOCK) {
        munmap(base, size);
        return EINVAL;
    }
    return 0;
}

static inline void mc_queue_close(mc_queue_handle *q) {
    if (q->shared == NULL) return;
    for (int extent = 1; extent < MC_QUEUE_EXTENTS; extent++) {
        unsigned char *base = atomic_load(&q->extents[extent]);
        if (base != NULL) munmap(base, ((size_t)1 << (extent - 1)) * MC_QUEUE_BLOCK);
    }
    munmap(q->shared, MC_QUEUE_HEADER + MC_QUEUE_BLOCK);
    q->shared = NULL;
}

/* ---- the published states ---- */

typedef struct {
    uint32_t block, offset;
    uint64_t count;
} mc_queue_place;

/* Consistent from any process, under no lock. */
static inline mc_queue_place mc_queue_look(mc_queue_end *end) {
    for (;;) {
        /* acquire: pairs with the release in mc_queue_publish */
        uint32_t version = atomic_load_explicit(&end->version, memory_order_acquire);
        mc_queue_state *state = &end->state[version & 1];
        mc_queue_place place = {
            atomic_load_explicit(&state->block, memory_order_relaxed),
            atomic_load_explicit(&state->offset, memory_order_relaxed),
            atomic_load_explicit(&state->count, memory_order_relaxed),
        };
        /* orders the loads above before the one below; pairs with the fence in mc_queue_publish */
        atomic_thread_fence(memory_order_acquire);
        if (atomic_load_explicit(&end->version, memory_order_relaxed) == version) return place;
    }
}

/* Under the end's lock. */
static inline void mc_queue_publish(mc_queue_end *end, mc_queue_cursor cursor, uint64_t count) {
    uint32_t version = atomic_load_explicit(&end->version, memory_order_relaxed);
    mc_queue_state *state = &end->state[(version + 1) & 1];
    /* the last version is seen before this slot, its predecessor's, changes */
    atomic_thread_fence(memory_order_release);
    atomic_store_explicit(&state->block, cursor.block, memory_order_relaxed);
    atomic_store_explicit(&state->offset, cursor.offset, memory_order_relaxed);
    atomic_store_explicit(&state->count, count, memory_order_relaxed);
    /* release: pairs with the acquire in mc_queue_look; everything copied is seen before it is announced */
    MC_FAULT("queue:publishing");
    atomic_store_explicit(&end->version, version + 1, memory_order_release);
    MC_FAULT("queue:published");
}

/* Under the end's lock: the same again, under another version, so that who is about to sleep on it does not. */
static inline void mc_queue_touch(mc_queue_end *end) {
    mc_queue_place place = mc_queue_look(end);
    mc_queue_cursor cursor = {place.block, place.offset, NULL};
    mc_queue_publish(end, cursor, place.count);
}

/* The number at one instant: that of the look at the tail, between two looks at the same head. */
static inline uint64_t mc_queue_size(mc_queue *s) {
    for (;;) {
        uint64_t got = mc_queue_look(&s->head).count, put = mc_queue_look(&s->tail).count;
        if (mc_queue_look(&s->head).count == got) return put - got;
    }
}

/* The head first: where the tail is at the same place afterwards, there was nothing at the first look. In the other
 * order, a queue through which items run could be called empty that never was. */
static inline bool mc_queue_has_items(mc_queue *s) {
    uint64_t got = mc_queue_look(&s->head).count;
    return mc_queue_look(&s->tail).count != got;
}

static inline bool mc_queue_has_room(mc_queue *s) { return s->most == 0 || mc_queue_size(s) < s->most; }

static inline void mc_queue_wake(mc_queue_waits *waits, int count) {
    /* orders the publication before the look at `awaited`; pairs with mc_queue_sleep and mc_queue_arm */
    atomic_thread_fence(memory_order_seq_cst);
    uint32_t who = atomic_load_explicit(&waits->awaited, memory_order_relaxed);
    if ((who & MC_QUEUE_WAITS) == 0) return;
    while (!atomic_compare_exchange_weak(&waits->awaited, &who, (who & ~MC_QUEUE_WAITS) + MC_QUEUE_WAITS + 1))
        if ((who & MC_QUEUE_WAITS) == 0) return; /* another did it, after our publication */
    MC_FAULT("queue:waking");
    if (who & MC_QUEUE_SLEEPS) mc_wake(&waits->awaited, count);
    if (who & MC_QUEUE_WATCHES) mc_bells_ring(&waits->bells);
}

/* Wakes everybody, for the last time. The bits alone do not tell who sleeps: when one has been woken and has not run yet,
 * they say nobody, and it is that one who tells of the others. */
static inline void mc_queue_wake_all(mc_queue_waits *waits) {
    atomic_fetch_or(&waits->awaited, MC_QUEUE_WAITS);
    mc_queue_wake(waits, INT32_MAX);
}

/* Whether somebody waits, or did a moment ago. */
static inline bool mc_queue_is_awaited(mc_queue_waits *waits) {
    return (atomic_load(&waits->awaited) & MC_QUEUE_WAITS) != 0;
}

/* Of a watcher that has a slot: from now on it is rung, once. It looks at the queue afterwards. */
static inline void mc_queue_arm(mc_queue_waits *waits, int slot) {
    mc_bells_arm(&waits->bells, slot);
    atomic_fetch_or(&waits->awaited, MC_QUEUE_WATCHES);
}

/* Of a reader that is about to wait, where writers wait for readers (`meets`): it says so, and rings the watchers. */
static inline void mc_queue_announce(mc_queue *s) {
    atomic_fetch_or(&s->items.awaited, MC_QUEUE_SLEEPS);
    if (atomic_load(&s->room.awaited) & MC_QUEUE_WATCHES) {
        atomic_fetch_and(&s->room.awaited, ~MC_QUEUE_WATCHES);
        mc_bells_ring(&s->room.bells);
    }
}

/* ---- writing, under W ---- */

static inline mc_queue_cursor mc_queue_cursor_at(mc_queue_handle *q, mc_queue_place place) {
    mc_queue_cursor cursor = {place.block, place.offset, mc_queue_block_at(q, place.block)};
    return cursor;
}

static inline void mc_queue_push(mc_queue *s, mc_queue_block *block, uint32_t number) {
    uint32_t top = atomic_load_explicit(&s->free, memory_order_relaxed);
    do atomic_store_explicit(&block->next_free, top, memory_order_relaxed);
    /* release: pairs with the acquire in mc_queue_extend */
    while (!atomic_compare_exchange_weak_explicit(&s->free, &top, number, memory_order_release, memory_order_relaxed));
    atomic_fetch_add_explicit(&s->free_count, 1, memory_order_relaxed);
}

/* Moves to the block behind, which is taken from somewhere if there is none; 0 or errno. */
static inline int mc_queue_extend(mc_queue_handle *q, mc_queue_cursor *c) {
    mc_queue *s = q->shared;
    uint32_t next = atomic_load_explicit(&c->at->next, memory_order_relaxed);
    if (next == 0) {
        /* acquire: pairs with the release in mc_queue_give_back */
        uint32_t free = atomic_load_explicit(&s->free, memory_order_acquire);
        while (free != 0) {
            mc_queue_block *block = mc_queue_block_at(q, free - 1);
            if (block == NULL) return ENOMEM;
            uint32_t below = atomic_load_explicit(&block->next_free, memory_order_relaxed);
            if (atomic_compare_exchange_weak_explicit(&s->free, &free, below, memory_order_acquire,
                                                      memory_order_acquire))
                break;
        }
        if (free != 0) {
            mc_queue_block *block = mc_queue_block_at(q, free - 1);
            atomic_fetch_sub_explicit(&s->free_count, 1, memory_order_relaxed);
            if (atomic_load_explicit(&block->bare, memory_order_relaxed)) {
                int error;
                do error = posix_fallocate(q->fd, mc_queue_file_offset(free - 1), MC_QUEUE_BLOCK);
                while (error == EINTR);
                if (error) { /* as it was */
                    mc_queue_push(s, block, free);
                    return error;
                }
                atomic_store_explicit(&block->bare, 0, memory_order_relaxed);
            }
        }
        if (free == 0) {
            uint32_t fresh = atomic_load_explicit(&s->fresh, memory_order_relaxed);
            uint32_t allocated = atomic_load_explicit(&s->allocated, memory_order_relaxed);
            if (fresh >= 1u << (MC_QUEUE_EXTENTS - 1)) return EFBIG;
            if (fresh >= allocated) {
                uint32_t step = allocated < MC_QUEUE_STEP ? allocated : MC_QUEUE_STEP;
                int error;
                do error = posix_fallocate(q->fd, mc_queue_file_offset(allocated), (off_t)step * MC_QUEUE_BLOCK);
                while (error == EINTR);
                if (error) return error;
                atomic_store_explicit(&s->allocated, allocated + step, memory_order_relaxed);
            }
            atomic_store_explicit(&s->fresh, fresh + 1, memory_order_relaxed);
            free = fresh + 1;
        }
        MC_FAULT("queue:block taken");
        mc_queue_block *block = mc_queue_block_at(q, free - 1);
        if (block == NULL) return ENOMEM;
        atomic_store_explicit(&block->next, 0, memory_order_relaxed);
        atomic_store_explicit(&c->at->next, free, memory_order_relaxed);
        MC_FAULT("queue:block linked");
        next = free;
    }
    c->block = next - 1;
    c->offset = 0;
    c->at = mc_queue_block_at(q, c->block);
    return c->at == NULL ? ENOMEM : 0;
}

static inline int mc_queue_write(mc_queue_handle *q, mc_queue_cursor *c, const void *from, size_t size) {
    const unsigned char *bytes = from;
    while (size > 0) {
        if (c->offset == MC_QUEUE_DATA) {
            int error = mc_queue_extend(q, c);
            if (error) return error;
        }
        size_t part = MC_QUEUE_DATA - c->offset;
        if (part > size) part = size;
        memcpy(c->at->data + c->offset, bytes, part);
        c->offset += (uint32_t)part;
        bytes += part;
        size -= part;
        MC_FAULT("queue:part copied");
    }
    return 0;
}

/* Records begin at multiples of 8, so that their word is never divided. */
static inline void mc_queue_align(mc_queue_cursor *c) { c->offset = (c->offset + 7) & ~7u; }

static inline int mc_queue_begin_record(mc_queue_handle *q, mc_queue_cursor *c, uint64_t kind, uint64_t size) {
    uint64_t word = kind << MC_QUEUE_KIND_SHIFT | size;
    mc_queue_align(c);
    return mc_queue_write(q, c, &word, sizeof word);
}

/* ---- reading, under R ---- */

/* 0 or errno; what it passes was published, so there is a block behind. Nothing is copied where `into` is NULL. */
static inline int mc_queue_read(mc_queue_handle *q, mc_queue_cursor *c, void *into, size_t size) {
    unsigned char *bytes = into;
    while (size > 0) {
        if (c->offset == MC_QUEUE_DATA) {
            uint32_t next = atomic_load_explicit(&c->at->next, memory_order_relaxed);
            if (next == 0) return EBADMSG;
            c->block = next - 1;
            c->offset = 0;
            c->at = mc_queue_block_at(q, c->block);
            if (c->at == NULL) return ENOMEM;
        }
        size_t part = MC_QUEUE_DATA - c->offset;
        if (part > size) part = size;
        if (bytes != NULL) {
            memcpy(bytes, c->at->data + c->offset, part);
            bytes += part;
        }
        c->offset += (uint32_t)part;
        size -= part;
    }
    return 0;
}

static inline int mc_queue_pass(mc_queue_handle *q, mc_queue_cursor *c, size_t size) {
    return mc_queue_read(q, c, NULL, size);
}

static inline int mc_queue_next_record(mc_queue_handle *q, mc_queue_cursor *c, uint64_t *kind, uint64_t *size) {
    uint64_t word;
    mc_queue_align(c);
    int error = mc_queue_read(q, c, &word, sizeof word);
    *kind = word >> MC_QUEUE_KIND_SHIFT;
    *size = word & ((1ull << MC_QUEUE_KIND_SHIFT) - 1);
    return error;
}

/* Gives back the blocks from `first` up to, not including, `last`. After the head was published. */
static inline void mc_queue_give_back(mc_queue_handle *q, uint32_t first, uint32_t last) {
    mc_queue *s = q->shared;
    while (first != last) {
        mc_queue_block *block = mc_queue_block_at(q, first);
        if (block == NULL) return;
        uint32_t next = atomic_load_explicit(&block->next, memory_order_relaxed);
        MC_FAULT("queue:block left");
        int32_t count = (int32_t)atomic_load_explicit(&s->free_count, memory_order_relaxed);
        if (count >= (int32_t)MC_QUEUE_KEPT) {
            atomic_store_explicit(&block->bare, 1, memory_order_relaxed); /* before the pages go */
            fallocate(q->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, mc_queue_file_offset(first) + 4096,
                      MC_QUEUE_BLOCK - 4096);
        }
        mc_queue_push(s, block, first + 1);
        first = next - 1;
    }
}

/* ---- what was taken, under R ---- */

static inline mc_queue_hand *mc_queue_hand_of(mc_queue *s, uint64_t self) {
    mc_queue_hand *hands = s->work.hands, *free = NULL;
    for (int i = 0; i < MC_QUEUE_HANDS; i++) {
        uint64_t owner = atomic_load_explicit(&hands[i].owner, memory_order_relaxed);
        if (owner == self) return &hands[i];
        if (free == NULL && (owner == 0 || atomic_load_explicit(&hands[i].count, memory_order_relaxed) == 0))
            free = &hands[i];
    }
    if (free != NULL) atomic_store_explicit(&free->owner, self, memory_order_relaxed);
    return free;
}

/* After the head was published. */
static inline void mc_queue_hold(mc_queue *s, uint64_t self, uint64_t many) {
    MC_FAULT("queue:record not held");
    mc_queue_hand *hand = mc_queue_hand_of(s, self);
    atomic_fetch_add_explicit(hand != NULL ? &hand->count : &s->work.unknown, many, memory_order_relaxed);
}

static inline bool mc_queue_all_done(mc_queue *s) {
    /* acquire: pairs with the release in mc_queue_settled */
    uint64_t done = atomic_load_explicit(&s->work.done, memory_order_acquire);
    return done + atomic_load_explicit(&s->work.lost, memory_order_acquire) >= mc_queue_look(&s->tail).count;
}

static inline uint64_t mc_queue_lost(mc_queue *s) { return atomic_load(&s->work.lost); }

static inline void mc_queue_settled(mc_queue *s) {
    if (mc_queue_all_done(s)) atomic_fetch_add_explicit(&s->work.changed, 1, memory_order_release);
}

/* One item is done: of those in one's own hands, else of anybody's, for it may have been passed on, else one that
 * was thought lost, else one that is still in the queue. False when there is none. */
static inline bool mc_queue_done(mc_queue *s, uint64_t self) {
    mc_queue_work *work = &s->work;
    if (mc_queue_all_done(s) && mc_queue_lost(s) == 0) return false;
    _Atomic uint64_t *from = NULL;
    for (int i = 0; i < MC_QUEUE_HANDS; i++) {
        mc_queue_hand *hand = &work->hands[i];
        if (atomic_load_explicit(&hand->count, memory_order_relaxed) == 0) continue;
        from = &hand->count;
        if (atomic_load_explicit(&hand->owner, memory_order_relaxed) == self) break;
    }
    if (from == NULL && atomic_load(&work->unknown) != 0) from = &work->unknown;
    if (from == NULL && mc_queue_lost(s) != 0) from = &work->lost;
    if (from != NULL) atomic_fetch_sub_explicit(from, 1, memory_order_relaxed);
    MC_FAULT("queue:task left");
    atomic_fetch_add_explicit(&work->done, 1, memory_order_release);
    mc_queue_settled(s);
    return true;
}

/* What the dead had in their hands is lost. */
static inline void mc_queue_count_back(mc_queue *s) {
    mc_queue_work *work = &s->work;
    uint64_t held = 0, lost = 0;
    for (int i = 0; i < MC_QUEUE_HANDS; i++) {
        mc_queue_hand *hand = &work->hands[i];
        uint64_t count = atomic_load_explicit(&hand->count, memory_order_relaxed);
        if (count == 0) continue;
        if (mc_owner_is_dead(atomic_load_explicit(&hand->owner, memory_order_relaxed)))
            atomic_store_explicit(&hand->count, 0, memory_order_relaxed);
        else held += count;
    }
    held += atomic_load(&work->unknown) + atomic_load(&work->done) + atomic_load(&work->lost);
    uint64_t taken = mc_queue_look(&s->head).count;
    if (taken > held) lost = taken - held;
    if (lost == 0) return;
    MC_FAULT("queue:hand emptied");
    atomic_fetch_add_explicit(&work->lost, lost, memory_order_release);
    mc_queue_settled(s);
}

/* All that was put counts as done: of who has emptied the queue. */
static inline void mc_queue_forget_work(mc_queue *s) {
    for (int i = 0; i < MC_QUEUE_HANDS; i++) atomic_store(&s->work.hands[i].count, 0);
    atomic_store(&s->work.unknown, 0);
    atomic_store(&s->work.done, mc_queue_look(&s->tail).count - mc_queue_lost(s));
    atomic_fetch_add(&s->work.changed, 1);
}

/* ---- waiting, under no lock ---- */

typedef struct {
    mc_word *version;
    uint32_t seen;
} mc_queue_changed_context;

static inline bool mc_queue_changed(void *context) {
    mc_queue_changed_context *c = context;
    return atomic_load_explicit(c->version, memory_order_relaxed) != c->seen;
}

/* Sleeps until the version is no longer `seen`. MC_TAKEN: look again; MC_AGAIN: look at signals first. */
static inline mc_outcome mc_queue_sleep(mc_word *version, mc_queue_waits *waits, uint32_t seen, mc_waiting *w,
                                        mc_spinner *spinner) {
    if (!w->spun) {
        w->spun = true;
        mc_queue_changed_context context = {version, seen};
        if (mc_spin(spinner, mc_queue_changed, &context)) return MC_TAKEN;
    }
    int64_t now = mc_waiting_clock(w);
    if (now >= w->deadline_ns) return MC_TIMED_OUT;
    if (mc_waiting_is_due(w, now)) return MC_AGAIN;
    uint32_t awaited = atomic_fetch_or(&waits->awaited, MC_QUEUE_SLEEPS) | MC_QUEUE_SLEEPS; /* seq_cst, as the look */
    if (atomic_load(version) != seen) return MC_TAKEN;
    int error = mc_wait(&waits->awaited, awaited, mc_waiting_until(w));
    if (error != EAGAIN) {
        w->slept = true;
        w->spun = false;
    }
    return error == EINTR ? MC_AGAIN : MC_TAKEN;
}

/* Whoever has slept calls this when it leaves. */
static inline void mc_queue_left(mc_queue_waits *waits, mc_waiting *w) {
    if (w->slept) atomic_fetch_or(&waits->awaited, MC_QUEUE_SLEEPS);
}

#endif
