/* A fingerprint of bytes, as fast as memory is read: has a large value changed since it was looked at last?
 *
 *   word 0 1 2 3 4 5 6 7 | 8 ...      each of eight lanes: lane = (lane ^ word) * odd constant
 *   what is left over                 the same, padded with zeros
 *   the lanes and the length          folded into one number
 *
 * A lane's step is a bijection of the lane for a given word, and of the word for a given lane. So a change of one word
 * changes its lane for certain; what has changed in several places is missed once in 2^64.
 * Not for strangers' data: who knows the constants can make two values with one fingerprint.
 *
 * Source: the multiply-and-fold of wyhash, with the lanes of xxHash. */
#ifndef MANYCORE_FINGERPRINT_H
#define MANYCORE_FINGERPRINT_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define MC_FINGERPRINT_LANES 8
#define MC_FINGERPRINT_STEP (MC_FINGERPRINT_LANES * sizeof(uint64_t))

static inline uint64_t mc_fingerprint_mix(uint64_t x) { /* the finalizer of MurmurHash3: a bijection */
    x ^= x >> 33;
    x *= 0xff51afd7ed558ccdu;
    x ^= x >> 33;
    x *= 0xc4ceb9fe1a85ec53u;
    return x ^ x >> 33;
}

static inline void mc_fingerprint_step(uint64_t *lanes, const unsigned char *from) {
    uint64_t words[MC_FINGERPRINT_LANES];
    memcpy(words, from, MC_FINGERPRINT_STEP);
    for (int i = 0; i < MC_FINGERPRINT_LANES; i++) {
        lanes[i] = (lanes[i] ^ words[i]) * 0x9e3779b97f4a7c15u;
        lanes[i] ^= lanes[i] >> 32; /* high bits of a word would else reach high bits alone */
    }
}

static inline uint64_t mc_fingerprint(const void *data, size_t size) {
    uint64_t lanes[MC_FINGERPRINT_LANES];
    const unsigned char *at = data;
    size_t left = size;
    for (int i = 0; i < MC_FINGERPRINT_LANES; i++) lanes[i] = 0x2d358dccaa6c78a5u * (uint64_t)(2 * i + 1);
    for (; left >= MC_FINGERPRINT_STEP; at += MC_FINGERPRINT_STEP, left -= MC_FINGERPRINT_STEP) mc_fingerprint_step(lanes, at);
    if (left > 0) {
        unsigned char last[MC_FINGERPRINT_STEP] = {0};
        memcpy(last, at, left);
        mc_fingerprint_step(lanes, last);
    }
    uint64_t whole = size;
    for (int i = 0; i < MC_FINGERPRINT_LANES; i++) whole = mc_fingerprint_mix(whole ^ lanes[i]);
    return whole;
}

#endif
