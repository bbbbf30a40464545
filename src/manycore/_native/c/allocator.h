/* The allocator's side of an arena: handing blocks out and taking them back.
 *
 * One process, one thread at a time (in Python: under the interpreter lock), but for mc_arena_back and
 * mc_arena_fill, which touch only a block that is FILLING. See buddy.h for the books, arena.h for the readers. */
#ifndef MANYCORE_ALLOCATOR_H
#define MANYCORE_ALLOCATOR_H

#include "buddy.h"

static inline mc_block *mc_block_make(mc_arena *arena, uint64_t place) {
    uint8_t *base = mc_view_region(&arena->view, MC_PLACE_REGION(place));
    if (base == NULL)
        return NULL;
    mc_block *block = (mc_block *)(base + MC_PLACE_OFFSET(place));
    if (block->magic != MC_BLOCK_MAGIC) {
        atomic_store_explicit(&block->state, 0, memory_order_relaxed);
        block->magic = MC_BLOCK_MAGIC;
    }
    return block;
}

static inline int mc_small_alloc(mc_arena *arena, int class_, uint64_t *place) {
    mc_stack *stack = &arena->slots[class_];
    uint64_t slot_bytes = mc_small_bytes(class_) + MC_BLOCK_HEADER;
    if (stack->count > 0) {
        *place = stack->place[--stack->count];
        uint64_t start = *place & ~(((uint64_t)MC_GRANULE << mc_slab_order(class_)) / 64 - 1);
        arena->region[MC_PLACE_REGION(start)].slab[MC_PLACE_OFFSET(start) / MC_GRANULE]->used++;
        return 0;
    }
    mc_slab *slab = arena->filling[class_];
    if (slab == NULL || slab->carved == slab->slots) {
        int order = mc_slab_order(class_);
        uint64_t granules = 1ull << order, granule;
        uint32_t number;
        slab = calloc(1, sizeof *slab);
        if (slab == NULL)
            return ENOMEM;
        int error = mc_buddy_alloc(arena, order, &number, &granule);
        if (error) {
            free(slab);
            return error;
        }
        mc_region *region = &arena->region[number];
        uint64_t missing = granules - mc_count_pages(region, granule, granules);
        if (missing > 0) {
            error = mc_budget(arena, missing * MC_GRANULE);
            uint64_t offset = arena->view.shared->region[number].offset + granule * MC_GRANULE;
            if (!error && (error = mc_file_back(arena, offset, granules * MC_GRANULE)) != 0)
                arena->resident -= missing * MC_GRANULE;
            if (error) {
                mc_buddy_free(arena, number, granule);
                free(slab);
                return error;
            }
            mc_mark_pages(region, granule, granules, true);
        }
        slab->slots = (uint32_t)(granules * MC_GRANULE / slot_bytes);
        slab->class_ = (uint32_t)class_;
        region->slab[granule] = slab;
        region->tag[granule] = (uint8_t)(MC_TAG_SLAB | (unsigned)order);
        arena->filling[class_] = slab;
        arena->filling_place[class_] = MC_MAKE_PLACE(number, granule * MC_GRANULE);
    }
    *place = arena->filling_place[class_] + slab->carved * (slot_bytes / 64);
    if (mc_block_make(arena, *place) == NULL)
        return errno;
    slab->carved++;
    slab->used++;
    return 0;
}

/* Put a place that nobody has any more where it can be handed out again. */
static inline void mc_place_free(mc_arena *arena, uint64_t place) {
    uint32_t number = MC_PLACE_REGION(place);
    mc_region *region = &arena->region[number];
    uint64_t granule = MC_PLACE_OFFSET(place) / MC_GRANULE;
    arena->live--;
    if (region->large_class >= 0) {
        region->used = false;
        arena->idle += region->prefix * MC_GRANULE;
        mc_push(&arena->large[region->large_class], number); /* out of memory: the region is lost, no more */
        return;
    }
    uint64_t starts[2] = {granule & ~63ull, granule & ~255ull};
    for (int i = 0; i < 2; i++) {
        mc_slab *slab = region->slab[starts[i]];
        if (region->tag[starts[i]] == (MC_TAG_SLAB | (i == 0 ? 6u : 8u)) && slab != NULL) {
            slab->used--;
            mc_push(&arena->slots[slab->class_], place);
            return;
        }
    }
    mc_buddy_free(arena, number, granule);
}

static inline void mc_arena_recycle(mc_arena *arena, mc_block *block, uint64_t place) {
    atomic_store_explicit(&block->state, MC_STATE(0, MC_FREE, 0), memory_order_relaxed);
    mc_place_free(arena, place);
}

/* Is this the place of a block that is out? Asked of the private books, not of shared memory. */
static inline bool mc_arena_is_out(mc_arena *arena, uint64_t place) {
    uint32_t number = MC_PLACE_REGION(place);
    if (number >= arena->regions)
        return false;
    mc_region *region = &arena->region[number];
    uint64_t offset = MC_PLACE_OFFSET(place);
    if (offset >= region->size)
        return false;
    if (region->large_class >= 0)
        return offset == 0 && region->used;
    uint64_t granule = offset / MC_GRANULE, starts[2] = {granule & ~63ull, granule & ~255ull};
    for (int i = 0; i < 2; i++) {
        mc_slab *slab = region->slab[starts[i]];
        if (region->tag[starts[i]] == (MC_TAG_SLAB | (i == 0 ? 6u : 8u)) && slab != NULL) {
            uint64_t at = offset - starts[i] * MC_GRANULE, slot = mc_small_bytes((int)slab->class_) + MC_BLOCK_HEADER;
            return at % slot == 0 && at / slot < slab->carved && slab->used > 0;
        }
    }
    return offset % MC_GRANULE == 0 && region->tag[granule] & MC_TAG_USED;
}

/* Recycle what was given back since the last time. */
static inline void mc_arena_drain(mc_arena *arena) {
    if (atomic_load_explicit(&arena->view.shared->returned, memory_order_relaxed) == 0)
        return;
    /* acquire pairs with the release in mc_block_give_back */
    uint64_t top = atomic_exchange_explicit(&arena->view.shared->returned, 0, memory_order_acquire);
    MC_FAULT("arena:drained");
    while (top != 0) {
        uint64_t place = top - 1;
        mc_block *block = mc_arena_is_out(arena, place) ? mc_view_block(&arena->view, place) : NULL;
        if (block == NULL ||
            MC_STATE_KIND(atomic_load_explicit(&block->state, memory_order_relaxed)) != MC_RETURNING) {
            arena->damaged = true; /* somebody wrote where he must not; what is left of the chain is not trusted */
            return;
        }
        top = atomic_load_explicit(&block->next, memory_order_relaxed);
        mc_arena_recycle(arena, block, place);
    }
    if (arena->idle > arena->reserve)
        mc_arena_shed(arena, arena->reserve);
}

static inline int mc_medium_alloc(mc_arena *arena, uint64_t need, uint64_t *place, mc_fresh *fresh) {
    uint32_t number;
    uint64_t granule, granules = (need + MC_GRANULE - 1) / MC_GRANULE;
    int error = mc_buddy_alloc(arena, mc_order(need), &number, &granule);
    if (error)
        return error;
    mc_region *region = &arena->region[number];
    uint64_t missing = granules - mc_count_pages(region, granule, granules);
    if (missing > 0) {
        error = mc_budget(arena, missing * MC_GRANULE);
        if (error) {
            mc_buddy_free(arena, number, granule);
            return error;
        }
        uint64_t first = granule, end = granule + granules;
        while (mc_has_page(region, first))
            first++;
        while (mc_has_page(region, end - 1))
            end--;
        mc_mark_pages(region, granule, granules, true);
        fresh->cold = (first - granule) * MC_GRANULE;
        fresh->cold_end = (end - granule) * MC_GRANULE;
    }
    *place = MC_MAKE_PLACE(number, granule * MC_GRANULE);
    return 0;
}

static inline int mc_large_alloc(mc_arena *arena, uint64_t need, uint64_t *place, mc_fresh *fresh) {
    int class_ = 0;
    while (class_ < MC_LARGE_CLASSES && mc_large_bytes(class_) < need)
        class_++;
    if (class_ == MC_LARGE_CLASSES)
        return EFBIG;
    uint32_t number;
    int from = class_;
    if (arena->large[from].count == 0 && from + 1 < MC_LARGE_CLASSES && arena->large[from + 1].count > 0)
        from++; /* a warm region of twice the size is better than a cold one */
    if (arena->large[from].count > 0) {
        number = (uint32_t)arena->large[from].place[--arena->large[from].count];
    } else {
        int error = mc_region_new(arena, mc_large_bytes(class_), class_);
        if (error)
            return error;
        number = arena->regions - 1;
    }
    mc_region *region = &arena->region[number];
    uint64_t granules = (need + MC_GRANULE - 1) / MC_GRANULE;
    region->used = true;
    arena->idle -= region->prefix * MC_GRANULE;
    if (granules > region->prefix) {
        int error = mc_budget(arena, (granules - region->prefix) * MC_GRANULE);
        if (error) {
            region->used = false;
            arena->idle += region->prefix * MC_GRANULE;
            mc_push(&arena->large[region->large_class], number);
            return error;
        }
        fresh->cold = region->prefix * MC_GRANULE;
        fresh->cold_end = granules * MC_GRANULE;
        region->prefix = granules;
    }
    *place = MC_MAKE_PLACE(number, 0);
    return 0;
}

/* ---- what the owner of an arena calls -------------------------------------------------------------- */

/* Make `fd` (a memfd of at least `file_size` bytes, all of it a hole) an arena. 0, or an errno. */
static inline int mc_arena_open(mc_arena *arena, int fd, uint64_t file_size, uint64_t budget, uint64_t reserve) {
    memset(arena, 0, sizeof *arena);
    arena->view.fd = fd;
    int error = mc_file_back(arena, 0, MC_GRANULE);
    if (error)
        return error;
    void *address = mmap(NULL, MC_HEADER_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (address == MAP_FAILED)
        return errno;
    arena->view.shared = address;
    arena->view.shared->header.version = MC_LAYOUT_VERSION;
    arena->view.shared->header.magic = MC_ARENA_MAGIC;
    arena->file_size = file_size;
    arena->file_used = MC_HEADER_BYTES;
    arena->budget = budget;
    arena->reserve = reserve;
    return 0;
}

static inline void mc_arena_close(mc_arena *arena) {
    for (uint32_t number = 0; number < arena->regions; number++) {
        mc_region *region = &arena->region[number];
        if (region->slab != NULL)
            for (uint64_t granule = 0; granule < region->size / MC_GRANULE; granule++)
                free(region->slab[granule]);
        free(region->tag), free(region->next), free(region->prev), free(region->pages), free(region->slab);
    }
    for (int class_ = 0; class_ < MC_SMALL_CLASSES; class_++)
        free(arena->slots[class_].place);
    for (int class_ = 0; class_ < MC_LARGE_CLASSES; class_++)
        free(arena->large[class_].place);
    arena->regions = 0;
    mc_view_close(&arena->view);
}

/* Strike cold pages that could not be had from the books. */
static inline void mc_forget_cold(mc_arena *arena, const mc_fresh *fresh) {
    uint64_t place = MC_PLACE(fresh->ref), offset = MC_PLACE_OFFSET(place);
    uint32_t number = MC_PLACE_REGION(place);
    mc_region *region = &arena->region[number];
    if (fresh->cold_end <= fresh->cold)
        return;
    uint64_t first = fresh->cold / MC_GRANULE, count = (fresh->cold_end - fresh->cold) / MC_GRANULE;
    mc_file_punch(arena, arena->view.shared->region[number].offset + offset + fresh->cold, count * MC_GRANULE);
    if (region->large_class >= 0)
        region->prefix = first;
    else
        mc_mark_pages(region, offset / MC_GRANULE + first, count, false);
    arena->resident -= count * MC_GRANULE;
}

/* Undo an allocation whose cold pages could not be had. */
static inline void mc_arena_abort(mc_arena *arena, mc_fresh *fresh) {
    mc_forget_cold(arena, fresh);
    mc_arena_recycle(arena, fresh->block, MC_PLACE(fresh->ref));
}

/* A block for `length` bytes, in state FILLING: mc_arena_fill or mc_arena_back it, then publish or abort.
 * 0, or an errno: ENOSPC over the budget or out of room, EFBIG for what no region holds, EIO when damaged. */
static inline int mc_arena_alloc(mc_arena *arena, uint64_t length, mc_fresh *fresh) {
    uint64_t place = 0;
    int error;
    memset(fresh, 0, sizeof *fresh);
    mc_arena_drain(arena);
    if (arena->damaged)
        return EIO;
    if (length <= MC_SMALL_BYTES)
        error = mc_small_alloc(arena, mc_small_class(length), &place);
    else if (length + MC_BLOCK_HEADER <= MC_MEDIUM_BYTES)
        error = mc_medium_alloc(arena, length + MC_BLOCK_HEADER, &place, fresh);
    else if (length >> 48)
        error = EFBIG;
    else
        error = mc_large_alloc(arena, length + MC_BLOCK_HEADER, &place, fresh);
    if (error)
        return error;
    arena->live++;
    arena->generation = arena->generation % 0xffffffu + 1; /* 24 bits, never 0 */
    fresh->ref = (uint64_t)arena->generation << MC_PLACE_BITS | place;
    uint32_t number = MC_PLACE_REGION(place);
    if (fresh->cold == 0 && fresh->cold_end > 0) /* the header wants its page now */
        error = mc_file_back(arena, arena->view.shared->region[number].offset + MC_PLACE_OFFSET(place), MC_GRANULE);
    if (!error && (fresh->block = mc_block_make(arena, place)) == NULL)
        error = errno;
    if (error) {
        mc_forget_cold(arena, fresh);
        mc_place_free(arena, place);
        return error;
    }
    if (fresh->cold == 0 && fresh->cold_end > 0)
        fresh->cold = MC_GRANULE;
    atomic_store_explicit(&fresh->block->state, MC_STATE(arena->generation, MC_FILLING, 0), memory_order_relaxed);
    fresh->block->length = length;
    return 0;
}

/* Give the cold part of a FILLING block its pages. Touches nothing else: no lock is needed. 0, or an errno. */
static inline int mc_arena_back(mc_arena *arena, const mc_fresh *fresh) {
    if (fresh->cold_end <= fresh->cold)
        return 0;
    uint64_t place = MC_PLACE(fresh->ref);
    uint64_t start = arena->view.shared->region[MC_PLACE_REGION(place)].offset + MC_PLACE_OFFSET(place);
    return mc_file_back(arena, start + fresh->cold, fresh->cold_end - fresh->cold);
}

/* Copy the payload into a FILLING block. What is cold is written through the descriptor: the kernel then neither
 * clears the pages first nor takes a fault for each, which is twice as fast. No lock is needed. 0, or an errno. */
static inline int mc_arena_fill(mc_arena *arena, const mc_fresh *fresh, const uint8_t *source, uint64_t length) {
    uint8_t *payload = mc_block_payload(fresh->block);
    uint64_t at = length, end = length; /* [at, end): what is cold */
    if (fresh->cold_end > fresh->cold && fresh->cold - MC_BLOCK_HEADER < length) {
        at = fresh->cold - MC_BLOCK_HEADER;
        end = fresh->cold_end - MC_BLOCK_HEADER < length ? fresh->cold_end - MC_BLOCK_HEADER : length;
    }
    uint64_t place = MC_PLACE(fresh->ref);
    uint64_t start = arena->view.shared->region[MC_PLACE_REGION(place)].offset + MC_PLACE_OFFSET(place);
    for (uint64_t done = at; done < end;) {
        ssize_t part = pwrite(arena->view.fd, source + done, end - done, (off_t)(start + MC_BLOCK_HEADER + done));
        if (part < 0 && errno != EINTR)
            return errno;
        if (part == 0)
            return EIO;
        done += part > 0 ? (uint64_t)part : 0;
    }
    if (at >= 65536)
        mc_touch(payload, at);
    memcpy(payload, source, at);
    if (end < length)
        memcpy(payload + end, source + end, length - end);
    MC_FAULT("arena:filled");
    return 0;
}

/* Hand a filled block out: to the one who takes it, or (lasting) to whoever looks, until it is released. */
static inline void mc_arena_publish(mc_block *block, uint64_t ref, bool lasting) {
    uint64_t state = MC_STATE(MC_GENERATION(ref), lasting ? MC_LASTING : MC_SENT, 0);
    atomic_store_explicit(&block->state, state, memory_order_release); /* pairs with mc_block_take and _look */
    MC_FAULT("arena:published");
}

/* Keep a FILLING block as this owner's, as if it had been sent and taken. */
static inline void mc_arena_hold(mc_block *block, uint64_t ref, uint32_t owner) {
    atomic_store_explicit(&block->state, MC_STATE(MC_GENERATION(ref), MC_TAKEN, owner), memory_order_release);
}

/* Take back what nobody has taken (or a lasting block). False where somebody has, or it is another block now. */
static inline bool mc_arena_release(mc_arena *arena, uint64_t ref) {
    uint64_t place = MC_PLACE(ref), generation = MC_GENERATION(ref);
    mc_block *block = mc_arena_is_out(arena, place) ? mc_view_block(&arena->view, place) : NULL;
    if (block == NULL)
        return false;
    uint64_t sent = MC_STATE(generation, MC_SENT, 0), lasting = MC_STATE(generation, MC_LASTING, 0);
    uint64_t held = MC_STATE(generation, MC_FILLING, 0);
    if (!atomic_compare_exchange_strong_explicit(&block->state, &sent, held, memory_order_acquire, memory_order_relaxed) &&
        !atomic_compare_exchange_strong_explicit(&block->state, &lasting, held, memory_order_acquire, memory_order_relaxed))
        return false;
    mc_arena_recycle(arena, block, place);
    return true;
}

/* Offer a block again that a process took which is dead now. False where it was given back already. */
static inline bool mc_arena_resend(mc_arena *arena, uint64_t ref, uint32_t owner) {
    uint64_t place = MC_PLACE(ref);
    mc_block *block = mc_arena_is_out(arena, place) ? mc_view_block(&arena->view, place) : NULL;
    uint64_t taken = MC_STATE(MC_GENERATION(ref), MC_TAKEN, owner);
    uint64_t sent = MC_STATE(MC_GENERATION(ref), MC_SENT, 0);
    return block != NULL &&
           (atomic_compare_exchange_strong_explicit(&block->state, &taken, sent, memory_order_acq_rel,
                                                    memory_order_acquire) ||
            taken == sent);
}

static inline bool mc_reclaim_one(mc_arena *arena, uint64_t place, uint32_t owner) {
    mc_block *block = mc_view_block(&arena->view, place);
    if (block == NULL)
        return false;
    uint64_t state = atomic_load_explicit(&block->state, memory_order_acquire);
    int kind = MC_STATE_KIND(state);
    if ((kind != MC_TAKEN && kind != MC_RETURNING) || MC_STATE_OWNER(state) != owner)
        return false;
    mc_arena_recycle(arena, block, place);
    return true;
}

/* Recycle every block of an owner that is dead. It pushes no more, so after a drain whatever still names it is
 * not on the stack: it died before the push. Returns how many. */
static inline uint64_t mc_arena_reclaim_dead(mc_arena *arena, uint32_t owner) {
    uint64_t count = 0;
    mc_arena_drain(arena);
    for (uint32_t number = 0; number < arena->regions && !arena->damaged; number++) {
        mc_region *region = &arena->region[number];
        if (region->large_class >= 0) {
            count += region->used && mc_reclaim_one(arena, MC_MAKE_PLACE(number, 0), owner);
            continue;
        }
        for (uint64_t granule = 0; granule < region->size / MC_GRANULE;) {
            uint8_t tag = region->tag[granule];
            uint64_t place = MC_MAKE_PLACE(number, granule * MC_GRANULE);
            mc_slab *slab = region->slab[granule];
            granule += 1ull << (tag & MC_TAG_ORDER);
            if (tag & MC_TAG_USED) {
                count += mc_reclaim_one(arena, place, owner);
            } else if (tag & MC_TAG_SLAB) {
                uint64_t units = (mc_small_bytes((int)slab->class_) + MC_BLOCK_HEADER) / 64;
                for (uint32_t slot = 0; slot < slab->carved; slot++)
                    count += mc_reclaim_one(arena, place + slot * units, owner);
            }
        }
    }
    if (arena->idle > arena->reserve)
        mc_arena_shed(arena, arena->reserve);
    return count;
}

/* Recycle what came back, and keep at most `keep` bytes of idle pages. */
static inline void mc_arena_trim(mc_arena *arena, uint64_t keep) {
    mc_arena_drain(arena);
    if (arena->idle > keep || arena->resident - arena->idle > 0)
        mc_release_slabs(arena);
    mc_arena_shed(arena, keep);
}

/* NULL, or what is wrong with the books. */
static inline const char *mc_arena_valid(mc_arena *arena) {
    uint64_t resident = 0, idle = 0, listed = 0, found = 0;
    for (uint32_t number = 0; number < arena->regions; number++) {
        mc_region *region = &arena->region[number];
        if (region->large_class >= 0) {
            resident += region->prefix * MC_GRANULE;
            idle += region->used ? 0 : region->prefix * MC_GRANULE;
            continue;
        }
        uint64_t granules = region->size / MC_GRANULE, granule = 0;
        resident += mc_count_pages(region, 0, granules) * MC_GRANULE;
        while (granule < granules) {
            uint8_t tag = region->tag[granule];
            uint64_t span = 1ull << (tag & MC_TAG_ORDER);
            if (!(tag & (MC_TAG_FREE | MC_TAG_USED | MC_TAG_SLAB)) || granule % span != 0)
                return "a granule belongs to no block";
            for (uint64_t inside = granule + 1; inside < granule + span; inside++)
                if (region->tag[inside] != 0)
                    return "blocks overlap";
            if (tag & MC_TAG_FREE) {
                found++;
                idle += mc_count_pages(region, granule, span) * MC_GRANULE;
                uint64_t buddy = granule ^ span;
                if (span < granules && region->tag[buddy] == tag)
                    return "two free buddies are not one block";
            }
            if (!(tag & MC_TAG_SLAB) != (region->slab[granule] == NULL))
                return "a slab has no books, or books no slab";
            granule += span;
        }
    }
    for (int order = 0; order < MC_ORDERS; order++)
        for (uint32_t node = arena->free_list[order]; node != 0; listed++) {
            mc_region *region = &arena->region[(node - 1) >> MC_REGION_ORDER];
            uint32_t granule = (node - 1) & ((1u << MC_REGION_ORDER) - 1);
            if (region->tag[granule] != (MC_TAG_FREE | (unsigned)order))
                return "a listed block is not free";
            node = region->next[granule];
        }
    if (listed != found)
        return "a free block is not listed";
    if (resident != arena->resident)
        return "resident pages are miscounted";
    if (idle != arena->idle)
        return "idle pages are miscounted";
    if (resident > arena->budget)
        return "over the budget";
    return NULL;
}

#endif
