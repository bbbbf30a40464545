/* The queue, its watchers, its tasks, the broadcast, and senders that meet receivers, in every order, with deaths.
 *
 * Blocks are small, so that a few records need several. Time passes only when nobody can go on, and then, without a
 * death, something was lost: a wake-up, or a ring. */
#include "explore.h"

#define MANYCORE_FAULT_H /* each fault point is a stop */
#define MC_FAULT(point) ex_stop(point)
#define MC_OWNER_SIMULATED
#define MC_BELL_SIMULATED
#define MC_QUEUE_BLOCK 64u

static inline uint64_t mc_self(void) { return (uint64_t)(ex.current < 0 ? 900 : ex.current + 1); }
static inline uint32_t mc_thread(uint64_t self) { return (uint32_t)self; }
static inline bool mc_owner_is_dead(uint64_t owner) {
    uint64_t pid = owner & 0x3fffff;
    return pid >= 1 && pid <= EXPLORE_PARTIES && ex_is_dead((int)pid - 1);
}

static _Atomic uint32_t rung[EXPLORE_PARTIES]; /* each party's pipe */
static inline void mc_bell_ring(uint64_t owner, int fd, uint64_t inode);

#include "broadcast.h"
#include "meet.h"

static inline void mc_bell_ring(uint64_t owner, int fd, uint64_t inode) {
    if (inode != 77 || owner != (uint64_t)fd + 1) return; /* a slot that changed hands: the inode would tell */
    atomic_store(&rung[fd], 1);
    mc_wake((mc_word *)&rung[fd], 1);
}

#define BLOCKS 8
static _Alignas(4096) unsigned char memory[MC_QUEUE_HEADER + BLOCKS * MC_QUEUE_BLOCK];
static mc_queue_handle q;
static mc_queue *s;
static int timeouts, put_count, got_count;
static bool got[16];
static int received[EXPLORE_PARTIES];

static bool any_death(void) {
    for (int i = 0; i < ex.scenario->parties; i++)
        if (ex_is_dead(i)) return true;
    return false;
}
static bool stuck(void) {
    if (!any_death()) return false; /* whoever sleeps now has lost a wake-up */
    if (++timeouts > 1000) ex_fail("somebody waits for ever");
    return ex_time_passes();
}
static void all_are_done(void) {
    for (int i = 0; i < ex.scenario->parties; i++)
        if (ex.now.status[i] != EX_DONE && ex.now.status[i] != EX_DEAD) ex_fail("somebody sleeps for ever");
}

static void begin(uint64_t most) {
    memset(memory, 0, sizeof memory);
    memset(&q, 0, sizeof q);
    memset(got, 0, sizeof got);
    memset(received, 0, sizeof received);
    for (int i = 0; i < EXPLORE_PARTIES; i++) rung[i] = 0;
    s = q.shared = (mc_queue *)memory;
    q.spinner.cores = 1;
    for (int k = 1; k < 4; k++) q.extents[k] = memory + MC_QUEUE_HEADER + (MC_QUEUE_BLOCK << (k - 1));
    s->most = most;
    mc_lock_init(&s->writers, 0);
    mc_lock_init(&s->readers, 0);
    s->fresh = 1;
    s->allocated = BLOCKS;
    timeouts = put_count = got_count = 0;
}
static void begin_1(void) { begin(1); }
static void begin_2(void) { begin(2); }
static void begin_free(void) { begin(0); }

static void take(mc_lock *lock) {
    mc_spinner spinner = {.cores = 1};
    mc_waiting w;
    mc_waiting_begin(&w, MC_NEVER);
    while (mc_lock_wait(lock, mc_self(), &w, &spinner) == MC_AGAIN) {
    }
    mc_lock_left(lock, &w);
}

/* As put_records of queue.pyx. */
static void put(uint64_t number) {
    mc_spinner spinner = {.cores = 1};
    mc_waiting w;
    uint64_t payload[3] = {number, ~number, number * 3};
    mc_waiting_begin(&w, MC_NEVER);
    for (;;) {
        uint32_t seen = atomic_load(&s->head.version);
        if (!mc_queue_has_room(s)) {
            mc_queue_sleep(&s->head.version, &s->room, seen, &w, &spinner);
            continue;
        }
        take(&s->writers);
        mc_queue_place place = mc_queue_look(&s->tail);
        if (s->most != 0 && place.count - mc_queue_look(&s->head).count >= s->most) {
            mc_lock_release(&s->writers);
            continue;
        }
        mc_queue_cursor cursor = mc_queue_cursor_at(&q, place);
        if (mc_queue_begin_record(&q, &cursor, 0, sizeof payload) != 0) ex_fail("no memory");
        if (mc_queue_write(&q, &cursor, payload, sizeof payload) != 0) ex_fail("no memory");
        mc_queue_publish(&s->tail, cursor, place.count + 1);
        put_count++;
        mc_lock_release(&s->writers);
        mc_queue_wake(&s->items, 1);
        break;
    }
    mc_queue_left(&s->room, &w);
    if (w.slept && mc_queue_has_room(s)) mc_queue_wake(&s->room, 1);
}

/* As get_records; -1 when there is nothing, and it is not to wait or nothing will come. */
static int get(bool waits) {
    mc_spinner spinner = {.cores = 1};
    mc_waiting w;
    uint64_t payload[3] = {0}, kind, size;
    mc_waiting_begin(&w, MC_NEVER);
    for (;;) {
        uint32_t seen = atomic_load(&s->tail.version);
        if (!mc_queue_has_items(s)) {
            if (!waits || atomic_load(&s->closed)) return -1;
            if (s->meets) mc_queue_announce(s);
            mc_queue_sleep(&s->tail.version, &s->items, seen, &w, &spinner);
            continue;
        }
        take(&s->readers);
        mc_queue_place head = mc_queue_look(&s->head);
        if (mc_queue_look(&s->tail).count == head.count) {
            mc_lock_release(&s->readers);
            continue;
        }
        mc_queue_cursor cursor = mc_queue_cursor_at(&q, head);
        EX_CHECK(mc_queue_next_record(&q, &cursor, &kind, &size) == 0 && size == sizeof payload);
        EX_CHECK(mc_queue_read(&q, &cursor, payload, size) == 0);
        EX_CHECK(payload[1] == ~payload[0] && payload[2] == payload[0] * 3);
        bool taken = !s->meets || mc_offer_decide(s, head.count, MC_OFFER_TAKEN);
        mc_queue_publish(&s->head, cursor, head.count + 1);
        if (taken) {
            EX_CHECK(!got[payload[0]]);
            got[payload[0]] = true;
            got_count++;
        }
        if (s->work.kept) mc_queue_hold(s, mc_self(), 1);
        mc_queue_give_back(&q, head.block, cursor.block);
        mc_lock_release(&s->readers);
        mc_queue_wake(&s->room, s->meets ? 3 : 1);
        if (taken) break;
    }
    mc_queue_left(&s->items, &w);
    if (w.slept && mc_queue_has_items(s)) mc_queue_wake(&s->items, 1);
    return (int)payload[0];
}

static void shut(void) {
    atomic_store(&s->closed, 1);
    take(&s->writers);
    mc_queue_touch(&s->tail);
    mc_lock_release(&s->writers);
    mc_queue_wake_all(&s->items);
}

static void writer_a(void) {
    put(1);
    put(2);
}
static void writer_b(void) { put(5); }
static void reader_two(void) {
    EX_CHECK(get(true) >= 0);
    EX_CHECK(get(true) >= 0);
}
static void reader_one(void) { get(true); }

/* What a dead process holds is taken over, as whoever waits for it does. */
static void free_lock(mc_lock *lock) {
    uint64_t dead;
    if (mc_owner_pid(atomic_load(&lock->state)) != 0) EX_CHECK(mc_lock_take_over(lock, 900, &dead) && mc_lock_release(lock));
}
static void queue_end(void) {
    if (!any_death()) all_are_done();
    free_lock(&s->writers);
    free_lock(&s->readers);
    while (get(false) >= 0) {
    }
    EX_CHECK(mc_queue_size(s) == 0);
    if (!any_death()) EX_CHECK(put_count == got_count);
    EX_CHECK(mc_queue_look(&s->tail).count >= (uint64_t)put_count);
    EX_CHECK(mc_queue_look(&s->head).count - (uint64_t)got_count <= 1); /* at most the one in the hands of the dead */
}

/* ---- a watcher beside a reader ---- */

static void watcher(void) {
    int me = ex.current;
    int slot = mc_bells_enter(&s->items.bells, mc_self(), me, 77);
    EX_CHECK(slot >= 0);
    for (;;) {
        mc_queue_arm(&s->items, slot);
        if (mc_queue_has_items(s) || atomic_load(&s->closed)) break;
        int error = mc_wait((mc_word *)&rung[me], 0, MC_NEVER);
        if (error == ETIMEDOUT && !any_death()) ex_fail("nobody rang");
        atomic_store(&rung[me], 0);
    }
    mc_bells_leave(&s->items.bells, mc_self(), slot);
}
static void put_and_shut(void) {
    put(1);
    get(false);
    shut();
}
static void watch_end(void) { all_are_done(); }

/* ---- tasks ---- */

static void tasks_begin(void) {
    begin(0);
    s->work.kept = 1;
    put(1);
    put(2);
}
static void consumer(void) {
    if (get(false) < 0) return;
    take(&s->readers);
    EX_CHECK(mc_queue_done(s, mc_self()));
    mc_lock_release(&s->readers);
    if (mc_queue_all_done(s)) mc_queue_wake(&s->work.waits, 2);
}
static void joiner(void) {
    mc_spinner spinner = {.cores = 1};
    mc_waiting w;
    mc_waiting_begin(&w, MC_NEVER);
    for (;;) {
        uint32_t seen = atomic_load(&s->work.changed);
        if (mc_queue_all_done(s)) break;
        mc_queue_sleep(&s->work.changed, &s->work.waits, seen, &w, &spinner);
        if (mc_queue_all_done(s)) continue;
        take(&s->readers);
        mc_queue_count_back(s);
        mc_lock_release(&s->readers);
    }
}
static void rest(void) {
    for (int i = 0; i < 2; i++) consumer();
}
static void tasks_end(void) {
    all_are_done();
    EX_CHECK(s->work.done + s->work.lost == 2);
    if (!any_death()) EX_CHECK(s->work.lost == 0);
    EX_CHECK(s->work.lost <= 1);
}

/* ---- a broadcast ---- */

static void broadcast_begin(void) {
    begin(1);
    for (uint64_t i = 0; i < 2; i++) mc_broadcast_of(s)->receivers[i].owner = i + 1; /* at the tail, which is at 0 */
}
static void broadcast_send(uint64_t number) {
    mc_spinner spinner = {.cores = 1};
    mc_waiting w;
    mc_waiting_begin(&w, MC_NEVER);
    for (;;) {
        uint32_t seen = atomic_load(&s->head.version);
        if (!mc_queue_has_room(s)) {
            take(&s->readers);
            bool room = mc_broadcast_make_room(&q, 99);
            mc_lock_release(&s->readers);
            if (!room) mc_queue_sleep(&s->head.version, &s->room, seen, &w, &spinner);
            continue;
        }
        take(&s->writers);
        if (mc_queue_has_room(s)) break;
        mc_lock_release(&s->writers);
    }
    mc_queue_place place = mc_queue_look(&s->tail);
    mc_queue_cursor cursor = mc_queue_cursor_at(&q, place);
    if (mc_queue_begin_record(&q, &cursor, 0, sizeof number) != 0) ex_fail("no memory");
    if (mc_queue_write(&q, &cursor, &number, sizeof number) != 0) ex_fail("no memory");
    mc_queue_publish(&s->tail, cursor, place.count + 1);
    mc_lock_release(&s->writers);
    mc_queue_wake(&s->items, 3);
    mc_queue_left(&s->room, &w);
}
static void broadcaster(void) {
    for (uint64_t i = 1; i <= 2; i++) broadcast_send(i);
    shut();
}
static void listener(void) {
    mc_spinner spinner = {.cores = 1};
    mc_waiting w;
    int me = ex.current;
    mc_receiver *r = &mc_broadcast_of(s)->receivers[me];
    uint64_t number, kind, size;
    mc_waiting_begin(&w, MC_NEVER);
    for (;;) {
        uint32_t seen = atomic_load(&s->tail.version);
        if (mc_queue_look(&r->place).count == mc_queue_look(&s->tail).count) {
            if (atomic_load(&s->closed) && mc_queue_look(&r->place).count == mc_queue_look(&s->tail).count) break;
            mc_queue_sleep(&s->tail.version, &s->items, seen, &w, &spinner);
            continue;
        }
        take(&s->readers);
        mc_queue_place place = mc_queue_look(&r->place);
        mc_queue_cursor cursor = mc_queue_cursor_at(&q, place);
        EX_CHECK(mc_queue_next_record(&q, &cursor, &kind, &size) == 0 && size == sizeof number);
        EX_CHECK(mc_queue_read(&q, &cursor, &number, sizeof number) == 0);
        EX_CHECK(number == (uint64_t)received[me] + 1);
        mc_queue_publish(&r->place, cursor, place.count + 1);
        received[me]++;
        bool moved = mc_broadcast_advance(&q);
        mc_lock_release(&s->readers);
        if (moved) mc_queue_wake(&s->room, 1);
    }
    mc_queue_left(&s->items, &w);
}
static void broadcast_end(void) {
    if (!any_death()) all_are_done();
    for (int i = 0; i < 2; i++)
        if (ex.now.status[i] == EX_DONE) EX_CHECK(received[i] == 2);
    if (ex.now.status[2] != EX_DEAD) all_are_done();
}

/* ---- senders that meet receivers ---- */

enum { UNKNOWN, SENT, TAKEN_BACK };
static int outcome[16]; /* of each number, as its sender knows it */

static void meet_begin(void) {
    begin(1);
    s->meets = 1;
    memset(outcome, 0, sizeof outcome);
}
static uint64_t offer(uint64_t number) {
    mc_spinner spinner = {.cores = 1};
    mc_waiting w;
    uint64_t payload[3] = {number, ~number, number * 3};
    mc_waiting_begin(&w, MC_NEVER);
    for (;;) {
        uint32_t seen = atomic_load(&s->head.version);
        if (!mc_queue_has_room(s)) {
            if (!mc_offer_sweep(&q, mc_self())) mc_queue_sleep(&s->head.version, &s->room, seen, &w, &spinner);
            continue;
        }
        take(&s->writers);
        if (mc_queue_has_room(s)) break;
        mc_lock_release(&s->writers);
    }
    mc_queue_place place = mc_queue_look(&s->tail);
    mc_queue_cursor cursor = mc_queue_cursor_at(&q, place);
    if (mc_queue_begin_record(&q, &cursor, 0, sizeof payload) != 0) ex_fail("no memory");
    if (mc_queue_write(&q, &cursor, payload, sizeof payload) != 0) ex_fail("no memory");
    mc_offer_make(s, place.count);
    mc_queue_publish(&s->tail, cursor, place.count + 1);
    mc_lock_release(&s->writers);
    mc_queue_wake(&s->items, 1);
    mc_queue_left(&s->room, &w);
    return place.count + 1;
}
/* As withdraw of channel.pyx. */
static void take_back(uint64_t number, uint64_t count) {
    bool mine = mc_offer_decide(s, count - 1, MC_OFFER_WITHDRAWN);
    if (mine) mc_offer_sweep(&q, mc_self());
    outcome[number] = mine ? TAKEN_BACK : SENT;
}
static void hand_over(uint64_t number) {
    mc_spinner spinner = {.cores = 1};
    mc_waiting w;
    uint64_t count = offer(number);
    mc_waiting_begin(&w, MC_NEVER);
    for (;;) {
        uint32_t seen = atomic_load(&s->head.version);
        if (mc_queue_look(&s->head).count >= count) break;
        mc_queue_sleep(&s->head.version, &s->room, seen, &w, &spinner);
    }
    mc_queue_left(&s->room, &w);
    outcome[number] = SENT;
}
static void patient(void) {
    hand_over(1);
    shut();
}
static void hasty(void) { take_back(2, offer(2)); }
static void hasty_then_patient(void) {
    hasty();
    hand_over(3);
    shut();
}
static void reader_of_all(void) {
    while (get(true) >= 0) {
    }
}
static void meet_end(void) {
    all_are_done();
    free_lock(&s->writers);
    free_lock(&s->readers);
    while (get(false) >= 0) {
    }
    int lost = 0; /* who died after it was published that the record is gone had it */
    for (int i = 0; i < ex.scenario->parties; i++) lost += ex_is_dead(i) && strcmp(ex.now.at[i], "queue:published") == 0;
    for (int i = 0; i < 4; i++) {
        if (outcome[i] == TAKEN_BACK) EX_CHECK(!got[i]);
        if (outcome[i] == SENT && !got[i]) EX_CHECK(lost-- > 0);
    }
}

int main(int argc, char **argv) {
    double seconds = argc > 1 ? atof(argv[1]) : 0;
    ex_stuck = stuck;
    static const ex_scenario scenarios[] = {
        {"queue: a writer and a reader, one at a time", 2, {writer_a, reader_two}, {0}, begin_1, NULL, queue_end, 3, 0},
        {"queue: two writers, two readers", 4, {writer_a, writer_b, reader_two, reader_one}, {0}, begin_2, NULL, queue_end, 1, 0},
        {"queue: a writer that dies", 2, {writer_a, writer_b}, {true}, begin_free, NULL, queue_end, 3, 1},
        {"queue: a reader that dies", 3, {writer_a, reader_one, reader_one}, {false, true, false}, begin_free, NULL, queue_end, 1, 1},
        {"bells: a watcher and a writer", 2, {watcher, put_and_shut}, {0}, begin_free, NULL, watch_end, 4, 0},
        {"bells: two watchers, one of which dies", 3, {watcher, watcher, put_and_shut}, {true}, begin_free, NULL, watch_end, 1, 1},
        {"tasks: a consumer that dies", 3, {consumer, rest, joiner}, {true}, tasks_begin, NULL, tasks_end, 1, 1},
        {"broadcast: two receivers", 3, {listener, listener, broadcaster}, {0}, broadcast_begin, NULL, broadcast_end, 1, 0},
        {"broadcast: a receiver that dies", 3, {listener, listener, broadcaster}, {true}, broadcast_begin, NULL, broadcast_end, 0, 1},
        {"meet: a sender that gives up, and one that waits", 3, {patient, hasty, reader_of_all}, {0}, meet_begin, NULL, meet_end, 1, 0},
        {"meet: a sender that gives up and comes again", 2, {hasty_then_patient, reader_of_all}, {0}, meet_begin, NULL, meet_end, 3, 0},
        {"meet: a receiver that dies", 3, {patient, reader_of_all, reader_of_all}, {false, true, false}, meet_begin, NULL, meet_end, 1, 1},
        {"meet: a sender that dies", 3, {hasty, patient, reader_of_all}, {true}, meet_begin, NULL, meet_end, 1, 1},
    };
    for (size_t i = 0; i < sizeof scenarios / sizeof *scenarios; i++) explore(&scenarios[i], seconds);
    return 0;
}
