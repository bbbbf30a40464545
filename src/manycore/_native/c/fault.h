/* Named points at which a test build kills the process.
 *
 * MC_FAULT("lock:claimed") compiles to nothing, unless MANYCORE_FAULTS is defined. Then the
 * environment variable MANYCORE_FAULT="lock:claimed:3" makes the third pass of that point in this
 * process end it with SIGKILL: no handler, no destructor, no flush, as the worst death does.
 *
 * A point is named `structure:step`, where the step is what has just been done. Each structure lists
 * its points in README.md, with what is left behind at each. Passes are counted a point name and a
 * translation unit; a forked child goes on counting where its parent stood. */
#ifndef MANYCORE_FAULT_H
#define MANYCORE_FAULT_H

#ifdef MANYCORE_FAULTS

#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static inline void mc_fault_pass(const char *point, atomic_int *passes) {
    const char *plan = getenv("MANYCORE_FAULT");
    if (plan == NULL)
        return;
    size_t length = strlen(point);
    if (strncmp(plan, point, length) != 0 || (plan[length] != ':' && plan[length] != '\0'))
        return;
    int wanted = plan[length] == ':' ? atoi(plan + length + 1) : 1;
    if (atomic_fetch_add(passes, 1) + 1 == wanted) {
        kill(getpid(), SIGKILL);
        for (;;)
            pause();
    }
}

#define MC_FAULT(point)                                                                            \
    do {                                                                                           \
        static atomic_int mc_fault_passes;                                                         \
        mc_fault_pass(point, &mc_fault_passes);                                                    \
    } while (0)

#else
#define MC_FAULT(point) ((void)0)
#endif

#endif
