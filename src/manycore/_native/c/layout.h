/* What every shared structure agrees on: sizes, magic numbers, version.
 *
 * A structure in shared memory begins with a `mc_header`, so that a process that maps the wrong
 * bytes, or bytes of another version, says so instead of following garbage. */
#ifndef MANYCORE_LAYOUT_H
#define MANYCORE_LAYOUT_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define MC_CACHE_LINE 64 /* bytes; x86-64 and arm64 */
#define MC_LAYOUT_VERSION 1u

typedef struct {
    uint32_t magic;   /* which structure this is; written last, by its creator */
    uint32_t version; /* MC_LAYOUT_VERSION */
} mc_header;

_Static_assert(sizeof(mc_header) == 8, "the header is two words");
_Static_assert(ATOMIC_LLONG_LOCK_FREE == 2, "64-bit atomics must be lock-free to work between processes");
_Static_assert(ATOMIC_INT_LOCK_FREE == 2, "32-bit atomics must be lock-free to work between processes");

#endif
