/* A sender and a receiver of large messages over one lane, under a sanitizer; every message whole, in order. */
#define _GNU_SOURCE
#include "lane.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

#define LONGEST (5u << 20) /* more than the lane holds */

static mc_lane lane; /* of both ends: in another mapping the sanitizer would not know the same memory */
static int ends[2];
static uint32_t seed;
static int64_t until;
static uint64_t messages, received, inlined_parts, parts;

static void die(const char *what) {
    fprintf(stderr, "stress_lane: %s\n", what);
    exit(1);
}

static uint32_t draw(uint32_t *state) { /* xorshift */
    *state ^= *state << 13;
    *state ^= *state >> 17;
    return *state ^= *state << 5;
}

static void *sender(void *argument) {
    (void)argument;
    uint8_t *data = malloc(LONGEST);
    uint32_t state = seed | 1;
    for (uint32_t index = 0; mc_now_ns() < until; index++) {
        size_t size = MC_LANE_LEAST + draw(&state) % (index % 4 ? 300000 : LONGEST - MC_LANE_LEAST);
        for (size_t i = 0; i < size; i += 97) data[i] = (uint8_t)(index + i);
        memcpy(data, &index, sizeof index);
        mc_lane_message message = {.data = data, .size = size, .kind = index % 2 ? MC_LANE_PLAIN : MC_LANE_OBJECT};
        int error;
        while ((error = mc_lane_send(ends[0], &lane, &message)) != 0)
            if (error != EINTR) die(strerror(error));
        messages++;
    }
    shutdown(ends[0], SHUT_WR);
    free(data);
    return NULL;
}

/* As receive of wire.pyx; false at the end of file between two messages. */
static bool receive(void *into, size_t size, int *passed) {
    mc_spinner spinner = {0};
    size_t progress = 0;
    int error;
    while ((error = mc_wire_receive(ends[1], into, size, &progress, &spinner, passed)) != 0) {
        if (error == MC_WIRE_END && progress == 0) return false;
        if (error != EINTR) die("receive");
    }
    return true;
}

static void *receiver(void *argument) {
    (void)argument;
    uint8_t *data = malloc(LONGEST), head[4], manifest[MC_LANE_MANIFEST];
    uint32_t state = seed ^ 0x5bd1e995u, index = 0;
    for (; receive(head, sizeof head, NULL); index++) {
        uint64_t id, size, done = 0;
        int passed = -1;
        if (head[0] != 0xff || head[3] != (uint8_t)(index % 2 ? MC_LANE_PLAIN : MC_LANE_OBJECT)) die("head");
        if (!receive(manifest, sizeof manifest, &passed) || passed < 0) die("manifest");
        close(passed);
        memcpy(&id, manifest, 8);
        memcpy(&size, manifest + 8, 8);
        if (id != lane.shared->id || size > LONGEST) die("manifest");
        for (uint8_t *record = manifest + 16; done < size; parts++) {
            uint32_t chunk, length;
            if (done > 0 && !receive(record, 8, NULL)) die("record");
            memcpy(&chunk, record, 4);
            memcpy(&length, record + 4, 4);
            bool is_inline = (length & MC_LANE_INLINE) != 0;
            length &= ~MC_LANE_INLINE;
            if (length == 0 || length > (is_inline ? MC_LANE_PART : MC_LANE_CHUNK) || done + length > size) die("record");
            if (is_inline) {
                if (!receive(data + done, length, NULL)) die("part");
                inlined_parts++;
            } else {
                memcpy(data + done, mc_lane_chunk(&lane, chunk), length);
                if (draw(&state) % 64 == 0) poll(NULL, 0, 1); /* a slow reader: the lane fills, then the socket */
                mc_lane_give_back(&lane, chunk);
            }
            done += length;
        }
        uint32_t number;
        memcpy(&number, data, sizeof number);
        if (number != index) die("out of order");
        for (size_t i = 97; i < size; i += 97)
            if (data[i] != (uint8_t)(index + i)) die("content");
    }
    received = index;
    free(data);
    return NULL;
}

int main(int argc, char **argv) {
    until = mc_now_ns() + (int64_t)((argc > 1 ? atof(argv[1]) : 2) * 1e9);
    seed = argc > 2 ? (uint32_t)atol(argv[2]) : 1;
    mc_lane other;
    if (mc_lane_create(&lane) != 0 || socketpair(AF_UNIX, SOCK_STREAM, 0, ends) != 0) die("open");
    if (mc_lane_accept(&other, lane.fd) != 0 || !lane.shared->accepted || other.shared->id != lane.shared->id) die("accept");
    mc_lane_close(&other);
    if (mc_lane_fill(&lane) != 0) die("fill");
    pthread_t threads[2];
    pthread_create(&threads[0], NULL, sender, NULL);
    pthread_create(&threads[1], NULL, receiver, NULL);
    for (int i = 0; i < 2; i++) pthread_join(threads[i], NULL);
    printf("stress_lane: %llu messages, %llu parts, %llu through the socket\n", (unsigned long long)messages,
           (unsigned long long)parts, (unsigned long long)inlined_parts);
    if (messages == 0 || received != messages) die("messages are lost");
    mc_lane_close(&lane);
    for (int i = 0; i < 2; i++) close(ends[i]);
    return 0;
}
