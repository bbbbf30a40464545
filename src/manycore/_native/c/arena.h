/* Blocks of shared memory that one process hands out and any process gives back.
 *
 *     allocator                                  reader (any process)
 *     alloc -> FILLING -> copy -> publish SENT
 *                                    ref ======> take: SENT -> TAKEN by me
 *                                                ... the bytes are mine ...
 *     drain: exchange the stack's top <========= give back: TAKEN -> RETURNING, push on the stack
 *     RETURNING -> FREE, recycled warm
 *
 * What is shared is a page of header, one 64-byte header a block, and a stack of returned blocks. Who owns
 * which byte of the file (buddy blocks, slabs, which pages exist) is private to the allocator, so that
 * nothing another process does or leaves undone can damage it.
 *
 * README.md has the state machine, the races, and what a death at each step leaves. The stack is Treiber's,
 * pushed by many and emptied at one stroke by one, which is free of the ABA problem; the allocator is a
 * buddy system (Knowlton) with slabs for small blocks (Bonwick). */
#ifndef MANYCORE_ARENA_H
#define MANYCORE_ARENA_H

#include "fault.h"
#include "layout.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#define MC_ARENA_MAGIC 0x6d634152u
#define MC_BLOCK_MAGIC 0x6d63426cu
#define MC_GRANULE 4096u               /* bytes; what is given, taken back and mapped: a page */
#define MC_BLOCK_HEADER 64u            /* bytes before the payload: one line, so that the payload is aligned */
#define MC_REGIONS 2048u               /* pieces of the file, each mapped as a whole by who needs it */
#define MC_FIRST_ORDER 12              /* granules, log2: the first region has 16 MiB */
#define MC_REGION_ORDER 14             /* the others 64 MiB */
#define MC_MEDIUM_BYTES (16ull << 20)  /* a block above this has a region of its own */
#define MC_LARGE_CLASSES 11            /* regions of 32 MiB, 64 MiB ... 32 GiB less one */
#define MC_LARGE_SLACK (1ull << 20)    /* bytes added to those, so that a payload of 64 MiB and its header fit */
#define MC_SMALL_BYTES 65536u          /* a payload up to this is a slot of a slab */
#define MC_SMALL_CLASSES 15            /* 512, 768, 1024, 1536 ... 65536 bytes */
#define MC_HEADER_BYTES (64ull << 10)  /* of the file, before the first region */

/* ref: generation:24 | region:11 | header's place in the region, in units of 64 bytes:29 */
#define MC_PLACE_BITS 40
#define MC_UNIT_BITS 29
#define MC_PLACE(ref) ((ref) & ((1ull << MC_PLACE_BITS) - 1))
#define MC_GENERATION(ref) ((ref) >> MC_PLACE_BITS)
#define MC_MAKE_PLACE(region, offset) (((uint64_t)(region) << MC_UNIT_BITS) | ((uint64_t)(offset) / 64))
#define MC_PLACE_REGION(place) ((uint32_t)((place) >> MC_UNIT_BITS))
#define MC_PLACE_OFFSET(place) (((place) & ((1ull << MC_UNIT_BITS) - 1)) * 64)

enum { MC_FREE, MC_FILLING, MC_SENT, MC_TAKEN, MC_RETURNING, MC_LASTING };

/* state: generation:24 | kind:8 | owner:32 */
#define MC_STATE(generation, kind, owner)                                                                              \
    (((uint64_t)(generation) << MC_PLACE_BITS) | ((uint64_t)(kind) << 32) | (uint32_t)(owner))
#define MC_STATE_KIND(state) ((int)((state) >> 32 & 0xff))
#define MC_STATE_OWNER(state) ((uint32_t)(state))

typedef struct {
    _Atomic uint64_t state; /* allocator, but for SENT -> TAKEN -> RETURNING: the taker */
    _Atomic uint64_t next;  /* place + 1 of the block returned before; who returns it */
    uint64_t length;        /* bytes of payload in use; allocator, before SENT */
    uint32_t magic;         /* allocator, when the block is made */
    uint32_t spare;
    uint64_t pad[4];
} mc_block;

typedef struct {
    uint64_t offset; /* in the file */
    uint64_t size;
} mc_region_place;

typedef struct {
    mc_header header;
    _Atomic uint32_t regions; /* allocator; entries below it never change */
    uint32_t pad[13];
    _Atomic uint64_t returned; /* place + 1 of the top of the stack; anyone pushes, the allocator empties */
    uint64_t pad2[7];
    mc_region_place region[MC_REGIONS];
} mc_arena_shared;

_Static_assert(sizeof(mc_block) == MC_BLOCK_HEADER, "a block's header is one cache line");
_Static_assert(offsetof(mc_arena_shared, returned) == 64, "the stack has a line of its own");
_Static_assert(sizeof(mc_arena_shared) <= MC_HEADER_BYTES, "the header fits before the first region");

/* ---- what every process does -------------------------------------------------------------------- */

typedef struct {
    int fd;
    mc_arena_shared *shared;
    _Atomic(uint8_t *) base[MC_REGIONS]; /* regions mapped so far; a mapping stays as long as the view */
} mc_view;

/* 0, or an errno: EPROTO where this is not an arena of this version. */
static inline int mc_view_open(mc_view *view, int fd) {
    memset(view, 0, sizeof *view);
    view->fd = fd;
    void *address = mmap(NULL, MC_HEADER_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (address == MAP_FAILED)
        return errno;
    view->shared = address;
    if (view->shared->header.magic != MC_ARENA_MAGIC || view->shared->header.version != MC_LAYOUT_VERSION) {
        munmap(address, MC_HEADER_BYTES);
        view->shared = NULL;
        return EPROTO;
    }
    return 0;
}

static inline void mc_view_close(mc_view *view) {
    if (view->shared == NULL)
        return;
    uint32_t regions = atomic_load_explicit(&view->shared->regions, memory_order_acquire);
    for (uint32_t region = 0; region < regions && region < MC_REGIONS; region++) {
        uint8_t *base = atomic_load_explicit(&view->base[region], memory_order_relaxed);
        if (base != NULL)
            munmap(base, view->shared->region[region].size);
    }
    munmap(view->shared, MC_HEADER_BYTES);
    view->shared = NULL;
}

/* The region's first byte in this process, or NULL with errno. */
static inline uint8_t *mc_view_region(mc_view *view, uint32_t region) {
    if (region >= MC_REGIONS) {
        errno = ESTALE;
        return NULL;
    }
    uint8_t *base = atomic_load_explicit(&view->base[region], memory_order_acquire); /* pairs with the exchange below */
    if (base != NULL)
        return base;
    /* pairs with the release in mc_region_new */
    if (region >= atomic_load_explicit(&view->shared->regions, memory_order_acquire)) {
        errno = ESTALE;
        return NULL;
    }
    mc_region_place place = view->shared->region[region];
    void *address = mmap(NULL, place.size, PROT_READ | PROT_WRITE, MAP_SHARED, view->fd, (off_t)place.offset);
    if (address == MAP_FAILED)
        return NULL;
    if (!atomic_compare_exchange_strong_explicit(&view->base[region], &base, (uint8_t *)address, memory_order_acq_rel,
                                                 memory_order_acquire)) {
        munmap(address, place.size); /* another thread was first */
        return base;
    }
    return address;
}

/* The block at a place, or NULL with errno: ESTALE where there is none. */
static inline mc_block *mc_view_block(mc_view *view, uint64_t place) {
    uint8_t *base = mc_view_region(view, MC_PLACE_REGION(place));
    if (base == NULL)
        return NULL;
    uint64_t offset = MC_PLACE_OFFSET(place);
    if (offset + MC_BLOCK_HEADER > view->shared->region[MC_PLACE_REGION(place)].size) {
        errno = ESTALE;
        return NULL;
    }
    mc_block *block = (mc_block *)(base + offset);
    if (block->magic != MC_BLOCK_MAGIC) {
        errno = ESTALE;
        return NULL;
    }
    return block;
}

static inline uint8_t *mc_block_payload(mc_block *block) { return (uint8_t *)block + MC_BLOCK_HEADER; }

/* Become the owner of what was sent. Returns the block, or NULL with errno (ESTALE: taken, or released). */
static inline mc_block *mc_block_take(mc_view *view, uint64_t ref, uint64_t length, uint32_t owner) {
    mc_block *block = mc_view_block(view, MC_PLACE(ref));
    if (block == NULL)
        return NULL;
    uint64_t sent = MC_STATE(MC_GENERATION(ref), MC_SENT, 0);
    MC_FAULT("arena:taking");
    /* acquire pairs with the release in mc_arena_publish: the payload is whole */
    if (!atomic_compare_exchange_strong_explicit(&block->state, &sent, MC_STATE(MC_GENERATION(ref), MC_TAKEN, owner),
                                                 memory_order_acquire, memory_order_relaxed) ||
        block->length != length) {
        errno = ESTALE;
        return NULL;
    }
    MC_FAULT("arena:taken");
    return block;
}

/* Give a block that this owner took back to its allocator. False where it is not this owner's. */
static inline bool mc_block_give_back(mc_view *view, mc_block *block, uint64_t ref, uint32_t owner) {
    uint64_t generation = MC_GENERATION(ref);
    uint64_t mine = MC_STATE(generation, MC_TAKEN, owner);
    if (!atomic_compare_exchange_strong_explicit(&block->state, &mine, MC_STATE(generation, MC_RETURNING, owner),
                                                 memory_order_release, memory_order_relaxed))
        return false;
    MC_FAULT("arena:returning");
    uint64_t top = atomic_load_explicit(&view->shared->returned, memory_order_relaxed);
    do {
        atomic_store_explicit(&block->next, top, memory_order_relaxed);
        MC_FAULT("arena:linked");
        /* release pairs with the acquire in mc_arena_drain: the link, and all that was done with the payload */
    } while (!atomic_compare_exchange_weak_explicit(&view->shared->returned, &top, MC_PLACE(ref) + 1,
                                                    memory_order_release, memory_order_relaxed));
    MC_FAULT("arena:returned");
    return true;
}

/* Look at a block without owning it: a lasting one, that its allocator keeps meanwhile. */
static inline mc_block *mc_block_look(mc_view *view, uint64_t ref, uint64_t length) {
    mc_block *block = mc_view_block(view, MC_PLACE(ref));
    if (block == NULL)
        return NULL;
    uint64_t state = atomic_load_explicit(&block->state, memory_order_acquire); /* pairs with mc_arena_publish */
    if (state != MC_STATE(MC_GENERATION(ref), MC_LASTING, 0) || block->length != length) {
        errno = ESTALE;
        return NULL;
    }
    return block;
}

/* Reading one byte in 64 KiB lets the kernel map the pages around it at once: ten times faster than a write
 * fault on each page. Does nothing to pages that are mapped. */
static inline void mc_touch(const uint8_t *bytes, uint64_t length) {
    for (uint64_t at = 0; at < length; at += 65536)
        (void)*(const volatile uint8_t *)(bytes + at);
}

#endif
