/* The arena's protocols in every order, with deaths. */
#include "explore.h"

#define MANYCORE_FAULT_H /* each fault point is a stop */
#define MC_FAULT(point) ex_stop(point)
#include "allocator.h"

#include <sys/mman.h>

#define WARM 8 /* slots of the smallest class that are made before; no scenario has more out at once */

static mc_arena *made; /* not static itself: most of it are regions that are not there */
#define arena (*made)
static uint64_t refs[4];
static int winners;

static uint64_t put(uint8_t value) {
    mc_fresh fresh;
    EX_CHECK(mc_arena_alloc(&arena, 64, &fresh) == 0);
    uint8_t *payload = mc_block_payload(fresh.block);
    memset(payload, value, 64);
    ex_stop("filling");
    for (int i = 0; i < 64; i++) EX_CHECK(payload[i] == value); /* nobody else writes a block that is being filled */
    mc_arena_publish(fresh.block, fresh.ref, false);
    return fresh.ref;
}

/* Once an exploration: a fresh arena. */
static void scene(void) {
    uint64_t warm[WARM];
    int fd = memfd_create("explore", MFD_CLOEXEC);
    made = calloc(1, sizeof *made);
    if (fd < 0 || made == NULL || ftruncate(fd, 1 << 30) != 0 ||
        mc_arena_open(&arena, fd, 1 << 30, 64 << 20, 8 << 20) != 0) {
        perror("arena");
        exit(2);
    }
    for (int i = 0; i < WARM; i++) warm[i] = put(0);
    for (int i = 0; i < WARM; i++) mc_arena_release(&arena, warm[i]);
    /* what changes while slots of that class come and go: the return stack, the books of the class, the slots */
    ex_keeps(&arena.view.shared->returned, sizeof arena.view.shared->returned);
    ex_keeps(&arena.slots[0], sizeof arena.slots[0]);
    ex_keeps(arena.slots[0].place, WARM * sizeof *arena.slots[0].place);
    ex_keeps(arena.filling[0], sizeof *arena.filling[0]);
    ex_keeps(&arena.file_size, sizeof arena - offsetof(mc_arena, file_size));
    ex_keeps(arena.view.base[0] + MC_PLACE_OFFSET(arena.filling_place[0]),
             WARM * (mc_small_bytes(0) + MC_BLOCK_HEADER));
    winners = 0;
}

/* Own it, write, look whether somebody else wrote, give it back. */
static bool use(uint64_t ref, uint32_t owner, uint8_t expected) {
    mc_block *block = mc_block_take(&arena.view, ref, 64, owner);
    if (block == NULL) return false;
    uint8_t *payload = mc_block_payload(block);
    for (int i = 0; i < 64; i++) EX_CHECK(payload[i] == expected);
    memset(payload, (int)(100 + owner), 64);
    ex_stop("using");
    for (int i = 0; i < 64; i++) EX_CHECK(payload[i] == 100 + owner);
    EX_CHECK(mc_block_give_back(&arena.view, block, ref, owner));
    EX_CHECK(!mc_block_give_back(&arena.view, block, ref, owner));
    return true;
}

static void nothing_is_left(int count) {
    for (int party = 0; party < ex.scenario->parties; party++)
        if (ex_is_dead(party)) mc_arena_reclaim_dead(&arena, (uint32_t)party);
    mc_arena_drain(&arena);
    for (int i = 0; i < count; i++) mc_arena_release(&arena, refs[i]);
    EX_CHECK(!arena.damaged);
    EX_CHECK(arena.live == 0 && arena.slots[0].count == WARM); /* no slot was made besides */
    EX_CHECK(mc_arena_valid(&arena) == NULL);
    for (int party = 0; party < ex.scenario->parties; party++) EX_CHECK(ex.now.status[party] == EX_DONE || ex_is_dead(party));
}

/* One ref, two takers, and an allocator that wants it back. */
static void one_begin(void) {
    scene();
    refs[0] = put(7);
}
static void one_release(void) { winners += mc_arena_release(&arena, refs[0]); }
static void one_take_1(void) { winners += use(refs[0], 1, 7); }
static void one_take_2(void) { winners += use(refs[0], 2, 7); }
static void one_end(void) {
    bool death = ex_is_dead(1) || ex_is_dead(2);
    EX_CHECK(winners == 1 || (death && winners == 0));
    nothing_is_left(1);
}

/* Two return blocks while the allocator drains and hands the same memory out again. */
static void back_begin(void) {
    scene();
    for (int i = 0; i < 3; i++) refs[i] = put((uint8_t)i);
}
static void back_allocator(void) {
    refs[3] = put(9); /* drains */
    (void)mc_arena_release(&arena, refs[3]);
    refs[3] = put(10);
}
static void back_1(void) {
    EX_CHECK(use(refs[0], 1, 0));
    EX_CHECK(use(refs[2], 1, 2));
}
static void back_2(void) { EX_CHECK(use(refs[1], 2, 1)); }
static void back_end(void) { nothing_is_left(4); }

/* A taker dies; its task is offered again, to a second taker, while a stale third one tries the old ref. */
static void again_allocator(void) {
    if (ex_is_dead(1)) (void)mc_arena_resend(&arena, refs[0], 1);
    uint64_t other = put(8);
    (void)mc_arena_release(&arena, other);
}
static void again_2(void) {
    mc_block *block = mc_block_take(&arena.view, refs[0], 64, 2);
    if (block == NULL) return;
    winners++;
    ex_stop("using");
    EX_CHECK(mc_block_give_back(&arena.view, block, refs[0], 2));
}
static void again_end(void) {
    EX_CHECK(winners <= 1 + ex_is_dead(1));
    nothing_is_left(1);
}

/* The dead owner's blocks are reclaimed while a living one returns its own. */
static void reclaim_allocator(void) {
    if (ex_is_dead(1)) mc_arena_reclaim_dead(&arena, 1);
    refs[3] = put(9);
    if (ex_is_dead(1)) mc_arena_reclaim_dead(&arena, 1);
    EX_CHECK(!arena.damaged);
}

int main(int argc, char **argv) {
    double seconds = argc > 1 ? atof(argv[1]) : 0;
    const ex_scenario scenarios[] = {
        {"take against take against release", 3, {one_release, one_take_1, one_take_2}, {false, true, true}, one_begin,
         NULL, one_end, EX_EVERY, 1},
        {"two takers, both may die", 3, {one_release, one_take_1, one_take_2}, {false, true, true}, one_begin, NULL,
         one_end, EX_EVERY, 2},
        {"two returns against a drain", 3, {back_allocator, back_1, back_2}, {false, true, true}, back_begin, NULL,
         back_end, EX_EVERY, 1},
        {"resend after a death", 3, {again_allocator, one_take_1, again_2}, {false, true, true}, one_begin, NULL,
         again_end, EX_EVERY, 1},
        {"reclaim against returns", 3, {reclaim_allocator, back_1, back_2}, {false, true, false}, back_begin, NULL,
         back_end, EX_EVERY, 1},
    };
    for (size_t i = 0; i < sizeof scenarios / sizeof *scenarios; i++) explore(&scenarios[i], seconds);
    return 0;
}
