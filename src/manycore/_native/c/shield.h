/* shield: steps of one thread that a Ctrl-C does not come between.

     raise   SIGINT's handler is replaced by one that takes a note
     lower   the handler is put back, and a SIGINT that was noted is raised again, for whoever handles it

   Python runs its signal handlers in its main thread, between two steps of whatever runs there; an exception from
   one (KeyboardInterrupt) is an exit from any point of the code. Where steps belong together, the handler has to wait.
   A mask does not make it wait: the kernel then gives the signal to another thread, whose note is read in the main one.

   One thread of a process has a shield at a time: its main one. Shields of several extensions may be nested, each over
   the other's note. Whatever was there before is put back as it was, so what is raised again goes to it: a handler of
   Python's or of another library, or the default, which ends the process.
   If the process dies: nothing is kept. If it forks: the child lowers its shield at once (`mc_shield_drop`), and
   forgets the note: that signal was the parent's.
   Cost: two system calls, a quarter of a microsecond.
*/
#ifndef MC_SHIELD_H
#define MC_SHIELD_H

#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <string.h>

static volatile sig_atomic_t mc_shield_noted; /* written by the handler, in any thread */
static int mc_shield_depth;                   /* by the main thread only, as the next one */
static struct sigaction mc_shield_before;

static void mc_shield_note(int signum) {
    (void)signum;
    mc_shield_noted = 1;
}

/* Whether this was the outermost one. */
static inline bool mc_shield_raise(void) {
    if (mc_shield_depth++) return false;
    struct sigaction note;
    memset(&note, 0, sizeof note);
    note.sa_handler = mc_shield_note;
    note.sa_flags = SA_ONSTACK;
    sigemptyset(&note.sa_mask);
    sigaction(SIGINT, &note, &mc_shield_before);
    return true;
}

/* Whether this was the outermost one. */
static inline bool mc_shield_lower(void) {
    if (mc_shield_depth == 0 || --mc_shield_depth) return false;
    sigaction(SIGINT, &mc_shield_before, NULL);
    if (mc_shield_noted) {
        mc_shield_noted = 0;
        raise(SIGINT);
    }
    return true;
}

static inline void mc_shield_drop(void) {
    if (mc_shield_depth) sigaction(SIGINT, &mc_shield_before, NULL);
    mc_shield_depth = 0;
    mc_shield_noted = 0;
}

#endif
