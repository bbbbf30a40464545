/* A gate: where those sleep who wait for a change of something that is not itself a wait word.
 *
 *   bit 0       somebody sleeps, or is about to
 *   bits 1-31   how many times the gate was opened, modulo 2^31
 *
 *   waiter                                     who changes
 *   seen = mc_gate_close(gate)                 change it                   (seq_cst)
 *   look again, leave if it is there           mc_gate_open(gate, n)
 *   mc_wait(gate, seen, until)
 *
 * Both sides write their own word first and read the other's second, all four seq_cst, so at least one
 * of them sees the other (Dekker): the waiter finds the change, or the changer finds bit 0.
 *
 * Opening clears bit 0. So who was woken alone, by mc_gate_open(gate, 1), and found what it waited for,
 * calls mc_gate_leave and looks again: others may sleep still, and it speaks for them.
 *
 * If a process dies anywhere: a wake-up may be lost. Every sleep on a gate is therefore bounded
 * (MC_CHECK_MOST_NS), and the sleeper looks for itself.
 *
 * Source: eventcounts (Reed and Kanodia), with the waiters' bit of Drepper's mutex. */
#ifndef MANYCORE_GATE_H
#define MANYCORE_GATE_H

#include "fault.h"
#include "wait.h"

typedef mc_word mc_gate;

static inline uint32_t mc_gate_close(mc_gate *gate) { return atomic_fetch_or(gate, 1) | 1; }

static inline void mc_gate_open(mc_gate *gate, int count) {
    uint32_t seen = atomic_load(gate);
    if (!(seen & 1)) return;
    while (!atomic_compare_exchange_weak(gate, &seen, (seen + 2) & ~1u)) {
        if (!(seen & 1)) return; /* another opened it after our change, and woke somebody who will look */
    }
    MC_FAULT("gate:opened");
    mc_wake(gate, count);
}

/* Of one that was woken alone, or gave up: others may sleep. Afterwards it looks whether there is something
 * for one of them, and if so opens the gate for it: in this order, or a change in between wakes nobody. */
static inline void mc_gate_leave(mc_gate *gate) { atomic_fetch_or(gate, 1); }

#endif
