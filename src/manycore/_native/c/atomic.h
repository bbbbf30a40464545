/* A number in shared memory that is changed without a lock, and whose change can be waited for.
 *
 *   change   one atomic operation on `bits` (floats: compare-and-swap), then open the gate
 *   wait     close the gate, look at `bits`, sleep
 *
 * Every operation is seq_cst. If a process dies: before its operation nothing has happened, after it all
 * has; a wake-up may be lost, and who waits looks by itself every MC_CHECK_MOST_NS.
 *
 * Source: eventcount (gate.h) beside a C11 atomic. */
#ifndef MANYCORE_ATOMIC_H
#define MANYCORE_ATOMIC_H

#include "gate.h"
#include "owner.h"

#define MC_ATOMIC_MAGIC 0x4d4f5441u /* "ATOM" */

typedef struct {
    mc_header header;
    _Atomic uint64_t bits; /* two's complement, or an IEEE double */
    mc_gate gate;
    uint32_t reserved[11];
} mc_atomic;

_Static_assert(sizeof(mc_atomic) == MC_CACHE_LINE, "one line");

static inline void mc_atomic_init(mc_atomic *a, uint64_t bits) {
    memset(a, 0, sizeof *a);
    a->bits = bits;
    a->header.version = MC_LAYOUT_VERSION;
    a->header.magic = MC_ATOMIC_MAGIC;
}

static inline bool mc_atomic_valid(const mc_atomic *a) {
    return a->header.magic == MC_ATOMIC_MAGIC && a->header.version == MC_LAYOUT_VERSION;
}

static inline uint64_t mc_atomic_load(mc_atomic *a) { return atomic_load(&a->bits); }

static inline void mc_atomic_changed(mc_atomic *a) { mc_gate_open(&a->gate, INT32_MAX); }

static inline uint64_t mc_atomic_exchange(mc_atomic *a, uint64_t bits) {
    uint64_t before = atomic_exchange(&a->bits, bits);
    mc_atomic_changed(a);
    return before;
}

/* On failure `*expected` becomes what is there. */
static inline bool mc_atomic_compare_exchange(mc_atomic *a, uint64_t *expected, uint64_t desired) {
    if (!atomic_compare_exchange_strong(&a->bits, expected, desired)) return false;
    mc_atomic_changed(a);
    return true;
}

static inline int64_t mc_atomic_add(mc_atomic *a, int64_t amount) {
    int64_t before = (int64_t)atomic_fetch_add(&a->bits, (uint64_t)amount);
    mc_atomic_changed(a);
    return before;
}

static inline double mc_bits_to_double(uint64_t bits) {
    double value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static inline uint64_t mc_double_to_bits(double value) {
    uint64_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

static inline double mc_atomic_add_double(mc_atomic *a, double amount) {
    uint64_t seen = atomic_load(&a->bits);
    while (!atomic_compare_exchange_weak(&a->bits, &seen, mc_double_to_bits(mc_bits_to_double(seen) + amount))) {
    }
    mc_atomic_changed(a);
    return mc_bits_to_double(seen);
}

/* `sign` is 1 for the larger of both, -1 for the smaller. Returns what was there. */
static inline int64_t mc_atomic_extreme(mc_atomic *a, int64_t value, int sign) {
    uint64_t seen = atomic_load(&a->bits);
    while (sign > 0 ? (int64_t)seen < value : (int64_t)seen > value)
        if (atomic_compare_exchange_weak(&a->bits, &seen, (uint64_t)value)) {
            mc_atomic_changed(a);
            break;
        }
    return (int64_t)seen;
}

static inline double mc_atomic_extreme_double(mc_atomic *a, double value, int sign) {
    uint64_t seen = atomic_load(&a->bits);
    while (sign > 0 ? mc_bits_to_double(seen) < value : mc_bits_to_double(seen) > value)
        if (atomic_compare_exchange_weak(&a->bits, &seen, mc_double_to_bits(value))) {
            mc_atomic_changed(a);
            break;
        }
    return mc_bits_to_double(seen);
}

typedef struct {
    mc_atomic *atomic;
    uint64_t bits;
} mc_atomic_context;

static inline bool mc_atomic_differs(void *context) {
    mc_atomic_context *c = context;
    return atomic_load(&c->atomic->bits) != c->bits;
}

/* Waits while the number is `bits`. */
static inline mc_outcome mc_atomic_wait(mc_atomic *a, uint64_t bits, mc_waiting *w, mc_spinner *spinner) {
    mc_atomic_context context = {a, bits};
    for (;;) {
        if (mc_atomic_differs(&context)) return MC_TAKEN;
        if (!w->spun) {
            w->spun = true;
            if (mc_spin(spinner, mc_atomic_differs, &context)) return MC_TAKEN;
        }
        int64_t now = mc_waiting_clock(w);
        if (mc_waiting_is_due(w, now)) {
            if (mc_atomic_differs(&context)) return MC_TAKEN;
            return now >= w->deadline_ns ? MC_TIMED_OUT : MC_AGAIN;
        }
        uint32_t seen = mc_gate_close(&a->gate);
        if (mc_atomic_differs(&context)) return MC_TAKEN;
        int error = mc_wait(&a->gate, seen, mc_waiting_until(w));
        w->slept = true;
        if (error == EINTR) return MC_AGAIN;
    }
}

#endif
