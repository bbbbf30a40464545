/* The allocator's books: which byte of the file belongs to which block, and which has a page.
 *
 * All of this is private memory of one process, and one thread at a time is in it (in Python: the
 * interpreter lock), but for mc_arena_back and mc_arena_fill, which touch only a block that is FILLING.
 *
 *     small   <= 64 KiB   slots of slabs of 256 KiB or 1 MiB; a stack of free slots a class
 *     medium  <= 16 MiB   buddy blocks of regions of 64 MiB (the first: 16 MiB)
 *     large               a region of its own, kept and recycled as it is
 *
 * Invariants:
 *     every granule of a buddy region belongs to exactly one block: free, used, or a slab;
 *     two free buddies are one block;
 *     a granule marked in `pages` has its page, and only such granules are mapped and touched, so that no
 *     access can fail for want of memory;
 *     resident = all marked granules <= budget; idle = those of free blocks <= resident. */
#ifndef MANYCORE_BUDDY_H
#define MANYCORE_BUDDY_H

#include "arena.h"

#define MC_BACK_BYTES (2ull << 20) /* pages asked for at once: 0.2 ms */
#define MC_ORDERS (MC_REGION_ORDER + 1)
#define MC_TAG_FREE 0x20u
#define MC_TAG_USED 0x40u
#define MC_TAG_SLAB 0x80u
#define MC_TAG_ORDER 0x1fu

typedef struct {
    uint32_t used;   /* slots handed out */
    uint32_t carved; /* slots that have a header */
    uint32_t slots;
    uint32_t class_; /* of sizes */
} mc_slab;

typedef struct {
    uint64_t size;
    int large_class;  /* -1: a buddy region */
    bool used;        /* large only */
    uint64_t prefix;  /* large only: granules from the beginning that have pages */
    uint8_t *tag;     /* buddy only, a granule: MC_TAG_* | order at a block's first, 0 inside */
    uint32_t *next;   /* buddy only, a free block's first granule: node + 1 of its neighbours in the free list */
    uint32_t *prev;
    uint64_t *pages;  /* buddy only: a bit a granule */
    mc_slab **slab;   /* buddy only, a slab's first granule */
} mc_region;

typedef struct {
    uint64_t *place;
    uint64_t count, room;
} mc_stack;

typedef struct {
    mc_view view;
    mc_region region[MC_REGIONS];
    uint32_t regions;
    uint32_t free_list[MC_ORDERS]; /* node + 1; a node is region << 14 | granule */
    mc_stack slots[MC_SMALL_CLASSES];
    mc_slab *filling[MC_SMALL_CLASSES]; /* the slab that is being carved */
    uint64_t filling_place[MC_SMALL_CLASSES];
    mc_stack large[MC_LARGE_CLASSES];
    uint64_t file_size, file_used;
    uint64_t budget;   /* bytes */
    uint64_t reserve;  /* bytes of idle pages kept while busy */
    uint64_t resident; /* bytes */
    uint64_t idle;     /* bytes */
    uint64_t grown;    /* bytes of pages asked for, ever */
    uint64_t live;     /* blocks handed out */
    uint32_t generation;
    bool damaged; /* something impossible was found on the stack: hand out nothing any more */
} mc_arena;

/* A block that is being filled; [cold, cold_end) are the bytes from its header on that have no pages yet. */
typedef struct {
    mc_block *block;
    uint64_t ref;
    uint64_t cold, cold_end;
} mc_fresh;

static inline bool mc_push(mc_stack *stack, uint64_t place) {
    if (stack->count == stack->room) {
        uint64_t room = stack->room ? stack->room * 2 : 64;
        uint64_t *bigger = realloc(stack->place, room * sizeof *bigger);
        if (bigger == NULL)
            return false;
        stack->place = bigger;
        stack->room = room;
    }
    stack->place[stack->count++] = place;
    return true;
}

static inline int mc_small_class(uint64_t length) {
    if (length <= 512)
        return 0;
    uint64_t last = length - 1;
    int bit = 63 - __builtin_clzll(last);
    return (bit - 9) * 2 + (int)(last >> (bit - 1) & 1) + 1;
}

static inline uint64_t mc_small_bytes(int class_) {
    return class_ % 2 == 0 ? 512ull << (class_ / 2) : 768ull << (class_ / 2);
}

static inline int mc_slab_order(int class_) { return mc_small_bytes(class_) <= 16384 ? 6 : 8; }

static inline int mc_order(uint64_t bytes) {
    uint64_t granules = (bytes + MC_GRANULE - 1) / MC_GRANULE;
    return granules <= 1 ? 0 : 64 - __builtin_clzll(granules - 1);
}

static inline uint64_t mc_large_bytes(int class_) { return ((32ull << 20) << class_) + MC_LARGE_SLACK; }

/* ---- pages --------------------------------------------------------------------------------------- */

static inline bool mc_has_page(const mc_region *region, uint64_t granule) {
    return region->pages[granule / 64] >> (granule % 64) & 1;
}

static inline uint64_t mc_count_pages(const mc_region *region, uint64_t first, uint64_t count) {
    uint64_t total = 0;
    while (count > 0) {
        uint64_t bit = first % 64, part = 64 - bit < count ? 64 - bit : count;
        uint64_t mask = (part == 64 ? ~0ull : (1ull << part) - 1) << bit;
        total += (uint64_t)__builtin_popcountll(region->pages[first / 64] & mask);
        first += part;
        count -= part;
    }
    return total;
}

static inline void mc_mark_pages(mc_region *region, uint64_t first, uint64_t count, bool present) {
    while (count > 0) {
        uint64_t bit = first % 64, part = 64 - bit < count ? 64 - bit : count;
        uint64_t mask = (part == 64 ? ~0ull : (1ull << part) - 1) << bit;
        if (present)
            region->pages[first / 64] |= mask;
        else
            region->pages[first / 64] &= ~mask;
        first += part;
        count -= part;
    }
}

/* In pieces: the kernel undoes a whole call that a signal interrupts, and a timer may send one every millisecond. */
static inline int mc_file_back(mc_arena *arena, uint64_t offset, uint64_t length) {
    while (length > 0) {
        uint64_t part = length < MC_BACK_BYTES ? length : MC_BACK_BYTES;
        if (fallocate(arena->view.fd, 0, (off_t)offset, (off_t)part) == 0) {
            offset += part;
            length -= part;
        } else if (errno != EINTR) {
            return errno;
        }
    }
    return 0;
}

static inline void mc_file_punch(mc_arena *arena, uint64_t offset, uint64_t length) {
    while (fallocate(arena->view.fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)offset, (off_t)length) != 0)
        if (errno != EINTR)
            return; /* the pages stay: wasteful, not wrong */
}

/* ---- regions ------------------------------------------------------------------------------------- */

static inline int mc_region_new(mc_arena *arena, uint64_t size, int large_class) {
    mc_arena_shared *shared = arena->view.shared;
    uint32_t number = arena->regions;
    if (number == MC_REGIONS || arena->file_used + size > arena->file_size)
        return ENOSPC;
    uint64_t entry = offsetof(mc_arena_shared, region) + number * sizeof(mc_region_place);
    int error = mc_file_back(arena, entry, sizeof(mc_region_place));
    if (error)
        return error;
    mc_region *region = &arena->region[number];
    memset(region, 0, sizeof *region);
    region->size = size;
    region->large_class = large_class;
    if (large_class < 0) {
        uint64_t granules = size / MC_GRANULE;
        region->tag = calloc(granules, 1);
        region->next = calloc(granules, sizeof *region->next);
        region->prev = calloc(granules, sizeof *region->prev);
        region->pages = calloc((granules + 63) / 64, sizeof *region->pages);
        region->slab = calloc(granules, sizeof *region->slab);
        if (!region->tag || !region->next || !region->prev || !region->pages || !region->slab) {
            free(region->tag), free(region->next), free(region->prev), free(region->pages), free(region->slab);
            return ENOMEM;
        }
    }
    shared->region[number].offset = arena->file_used;
    shared->region[number].size = size;
    arena->file_used += size;
    arena->regions = number + 1;
    /* release pairs with the acquire in mc_view_region */
    atomic_store_explicit(&shared->regions, number + 1, memory_order_release);
    return 0;
}

/* ---- buddies ------------------------------------------------------------------------------------- */

static inline uint32_t mc_node(uint32_t region, uint64_t granule) { return region << MC_REGION_ORDER | (uint32_t)granule; }

static inline void mc_list_add(mc_arena *arena, uint32_t number, uint64_t granule, int order) {
    mc_region *region = &arena->region[number];
    uint32_t node = mc_node(number, granule), head = arena->free_list[order];
    region->tag[granule] = (uint8_t)(MC_TAG_FREE | (unsigned)order);
    region->next[granule] = head;
    region->prev[granule] = 0;
    if (head != 0)
        arena->region[(head - 1) >> MC_REGION_ORDER].prev[(head - 1) & ((1u << MC_REGION_ORDER) - 1)] = node + 1;
    arena->free_list[order] = node + 1;
}

static inline void mc_list_remove(mc_arena *arena, uint32_t number, uint64_t granule, int order) {
    mc_region *region = &arena->region[number];
    uint32_t next = region->next[granule], prev = region->prev[granule];
    if (next != 0)
        arena->region[(next - 1) >> MC_REGION_ORDER].prev[(next - 1) & ((1u << MC_REGION_ORDER) - 1)] = prev;
    if (prev != 0)
        arena->region[(prev - 1) >> MC_REGION_ORDER].next[(prev - 1) & ((1u << MC_REGION_ORDER) - 1)] = next;
    else
        arena->free_list[order] = next;
    region->tag[granule] = 0;
}

static inline int mc_buddy_alloc(mc_arena *arena, int order, uint32_t *number, uint64_t *granule) {
    int from = order;
    while (from < MC_ORDERS && arena->free_list[from] == 0)
        from++;
    if (from == MC_ORDERS) {
        from = arena->regions == 0 ? MC_FIRST_ORDER : MC_REGION_ORDER;
        int error = mc_region_new(arena, (uint64_t)MC_GRANULE << from, -1);
        if (error)
            return error;
        mc_list_add(arena, arena->regions - 1, 0, from);
    }
    uint32_t node = arena->free_list[from] - 1;
    *number = node >> MC_REGION_ORDER;
    *granule = node & ((1u << MC_REGION_ORDER) - 1);
    mc_list_remove(arena, *number, *granule, from);
    while (from > order) {
        from--;
        mc_list_add(arena, *number, *granule + (1ull << from), from);
    }
    mc_region *region = &arena->region[*number];
    region->tag[*granule] = (uint8_t)(MC_TAG_USED | (unsigned)order);
    arena->idle -= mc_count_pages(region, *granule, 1ull << order) * MC_GRANULE;
    return 0;
}

static inline void mc_buddy_free(mc_arena *arena, uint32_t number, uint64_t granule) {
    mc_region *region = &arena->region[number];
    int order = region->tag[granule] & MC_TAG_ORDER;
    arena->idle += mc_count_pages(region, granule, 1ull << order) * MC_GRANULE;
    region->tag[granule] = 0;
    while ((uint64_t)MC_GRANULE << (order + 1) <= region->size) {
        uint64_t buddy = granule ^ (1ull << order);
        if (region->tag[buddy] != (MC_TAG_FREE | (unsigned)order))
            break;
        mc_list_remove(arena, number, buddy, order);
        granule &= ~(1ull << order);
        order++;
    }
    mc_list_add(arena, number, granule, order);
}

/* ---- giving pages back ----------------------------------------------------------------------------- */

static inline void mc_punch_granules(mc_arena *arena, uint32_t number, uint64_t first, uint64_t count) {
    mc_region *region = &arena->region[number];
    uint64_t present = mc_count_pages(region, first, count);
    if (present == 0)
        return;
    mc_file_punch(arena, arena->view.shared->region[number].offset + first * MC_GRANULE, count * MC_GRANULE);
    mc_mark_pages(region, first, count, false);
    arena->resident -= present * MC_GRANULE;
    arena->idle -= present * MC_GRANULE;
}

/* Turn slabs of which no slot is out into free buddies. */
static inline void mc_release_slabs(mc_arena *arena) {
    for (int class_ = 0; class_ < MC_SMALL_CLASSES; class_++) {
        mc_stack *stack = &arena->slots[class_];
        uint64_t mask = ~(((uint64_t)MC_GRANULE << mc_slab_order(class_)) / 64 - 1);
        uint64_t kept = 0;
        for (uint64_t i = 0; i < stack->count; i++) {
            uint64_t start = stack->place[i] & mask;
            mc_region *region = &arena->region[MC_PLACE_REGION(start)];
            if (region->slab[MC_PLACE_OFFSET(start) / MC_GRANULE]->used > 0)
                stack->place[kept++] = stack->place[i];
        }
        stack->count = kept;
    }
    for (uint32_t number = 0; number < arena->regions; number++) {
        mc_region *region = &arena->region[number];
        if (region->large_class >= 0)
            continue;
        for (uint64_t granule = 0; granule < region->size / MC_GRANULE;) {
            uint8_t tag = region->tag[granule];
            uint64_t span = 1ull << (tag & MC_TAG_ORDER);
            mc_slab *slab = region->slab[granule];
            if (tag & MC_TAG_SLAB && slab->used == 0) {
                if (arena->filling[slab->class_] == slab)
                    arena->filling[slab->class_] = NULL;
                region->slab[granule] = NULL;
                free(slab);
                mc_buddy_free(arena, number, granule);
            }
            granule += span;
        }
    }
}

/* Give idle pages back to the system until `idle` is at most `keep`; the largest pieces first. */
static inline void mc_arena_shed(mc_arena *arena, uint64_t keep) {
    for (int class_ = MC_LARGE_CLASSES - 1; class_ >= 0 && arena->idle > keep; class_--)
        for (uint64_t i = 0; i < arena->large[class_].count && arena->idle > keep; i++) {
            uint32_t number = (uint32_t)arena->large[class_].place[i];
            mc_region *region = &arena->region[number];
            uint64_t bytes = region->prefix * MC_GRANULE;
            if (bytes == 0)
                continue;
            uint64_t excess = (arena->idle - keep + MC_GRANULE - 1) / MC_GRANULE * MC_GRANULE;
            uint64_t part = bytes < excess ? bytes : excess;
            mc_file_punch(arena, arena->view.shared->region[number].offset + bytes - part, part);
            region->prefix -= part / MC_GRANULE;
            arena->resident -= part;
            arena->idle -= part;
        }
    for (int order = MC_ORDERS - 1; order >= 0 && arena->idle > keep; order--)
        for (uint32_t node = arena->free_list[order]; node != 0 && arena->idle > keep;) {
            uint32_t number = (node - 1) >> MC_REGION_ORDER, granule = (node - 1) & ((1u << MC_REGION_ORDER) - 1);
            mc_punch_granules(arena, number, granule, 1ull << order);
            node = arena->region[number].next[granule];
        }
}

/* Count `bytes` more pages as resident, giving up idle ones where the budget wants it. */
static inline int mc_budget(mc_arena *arena, uint64_t bytes) {
    if (bytes > arena->budget)
        return ENOSPC;
    if (arena->resident + bytes > arena->budget) {
        uint64_t excess = arena->resident + bytes - arena->budget;
        if (arena->idle < excess)
            mc_release_slabs(arena);
        if (arena->idle < excess)
            return ENOSPC;
        mc_arena_shed(arena, arena->idle - excess);
    }
    arena->resident += bytes;
    arena->grown += bytes;
    return 0;
}

#endif
