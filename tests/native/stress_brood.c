/* A zygote's children without Python, under a sanitizer: spares that are asked, told to end or killed, and children that are
 * forked when asked for. Each launch ends once, with the status that it had, and nothing is left open. */
#define _GNU_SOURCE
#include "brood.h"

#include <dirent.h>

#define LAUNCHES 4096

static struct mc_brood brood = {.wanted = 1};
static int parent_end, say;
static uint32_t seed;
static uint64_t asked[LAUNCHES + 1]; /* the pid of the spare that was asked */
static bool ended[LAUNCHES + 1];
static uint64_t launches, exits, gone, taken, words;

_Noreturn static void die(const char *what) {
    fprintf(stderr, "stress_brood: %s: %s\n", what, strerror(errno));
    exit(1);
}

static uint32_t draw(void) { /* xorshift */
    seed ^= seed << 13;
    seed ^= seed >> 17;
    return seed ^= seed << 5;
}

static int open_files(void) {
    int count = 0;
    DIR *folder = opendir("/proc/self/fd");
    while (readdir(folder) != NULL) count++;
    closedir(folder);
    return count;
}

struct request {
    uint64_t pid, launch_id;
};

/* In a child: as its launch is to end. */
static void end(uint64_t launch_id, int stack) {
    if (launch_id % 5 == 0 && write(stack, "words", 5) != 5) _exit(99);
    if (launch_id % 7 == 0) raise(SIGKILL);
    _exit((int)(launch_id % 50));
}

static void be_spare(int place, int stack) {
    for (;;) {
        struct request request;
        ssize_t size = recv(brood.places[place].end, &request, sizeof request, 0);
        if (size <= 0) _exit(98);
        if (request.pid != (uint64_t)getpid()) continue;
        if (size == sizeof request.pid) _exit(0);
        struct mc_taken said = {request.pid, request.launch_id, request.launch_id % 2};
        if (write(say, &said, sizeof said) != sizeof said) _exit(97);
        end(request.launch_id, stack);
    }
}

static int make(int place) {
    int lifeline, stack, pid;
    uint64_t launch_id = place < 0 ? ++launches : 0;
    if (mc_brood_open(&brood, &lifeline, &stack) != 0) die("open");
    if ((pid = fork()) < 0) die("fork");
    if (pid == 0) {
        if (place >= 0) be_spare(place, stack);
        end(launch_id, stack);
    }
    mc_brood_enter(&brood, pid, place, lifeline, stack);
    if (place < 0) mc_brood_ask(&brood, pid, launch_id, draw() % 2);
    return pid;
}

/* The parent: what it is told. */
static struct mc_ready spares[MC_PLACES];

static void read_all(void) {
    struct mc_numbers report;
    ssize_t size;
    while ((size = recv(parent_end, &report, sizeof report, MSG_DONTWAIT)) > 0) {
        if (report.kind[0] == MC_EXITED) {
            uint64_t launch_id = (uint64_t)report.numbers[0];
            int status = (int)report.numbers[2];
            if (launch_id == 0 || launch_id > launches || ended[launch_id]) die("a launch that ended twice, or was none");
            ended[launch_id] = true;
            exits++;
            if (launch_id % 7 == 0 ? !WIFSIGNALED(status) : !WIFEXITED(status) || WEXITSTATUS(status) != (int)(launch_id % 50))
                die("another status");
        } else if (report.kind[0] == MC_GONE) {
            for (int i = 0; i < MC_PLACES; i++)
                if (spares[i].pid == (uint64_t)report.numbers[0]) spares[i].pid = 0;
            for (uint64_t id = 1; id <= launches; id++)
                if (asked[id] == (uint64_t)report.numbers[0]) { /* asked in vain: asked no more */
                    ended[id] = true;
                    gone++;
                }
        } else {
            die("another report");
        }
    }
    for (int i = 0; i < MC_PLACES; i++) {
        struct mc_ready ready;
        while (recv(brood.places[i].pen, &ready, sizeof ready, MSG_DONTWAIT) == sizeof ready) spares[i] = ready;
    }
}

static void act(void) {
    read_all();
    switch (draw() % 8) {
    case 0:
        make(-1);
        break;
    case 1:
        mc_brood_drop(&brood);
        break;
    case 2:
        mc_brood_renew(&brood, draw() % 3);
        break;
    case 3:
        if (draw() % 4 == 0 && brood.count > 0) { /* an idle spare is killed */
            int pid = brood.places[draw() % MC_PLACES].pid;
            if (pid != 0 && spares[0].pid != (uint64_t)pid && spares[1].pid != (uint64_t)pid) kill(pid, SIGKILL);
        }
        break;
    default:
        for (int i = 0; i < MC_PLACES; i++)
            if (spares[i].pid != 0) {
                struct request request = {spares[i].pid, ++launches};
                asked[launches] = spares[i].pid;
                spares[i].pid = 0;
                if (send(brood.places[i].pen, &request, sizeof request, 0) < 0) die("send");
                taken++;
                return;
            }
    }
}

int main(int argc, char **argv) {
    int64_t until = mc_now_ns() + (int64_t)((argc > 1 ? atof(argv[1]) : 1.0) * 1e9);
    seed = (argc > 2 ? (uint32_t)atoi(argv[2]) : 1) * 2 + 1;
    int pair[2], pipes[2];
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) != 0) die("socketpair");
    parent_end = pair[0];
    brood.others[0] = pair[1];
    brood.others[1] = brood.others[2] = -1;
    for (int i = 0; i < MC_PLACES; i++) {
        if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) != 0) die("socketpair");
        brood.places[i].pen = pair[0];
        brood.places[i].end = pair[1];
    }
    if (pipe2(pipes, O_NONBLOCK | O_CLOEXEC) != 0) die("pipe2");
    brood.wake = pipes[0];
    mc_brood_listen(&brood, pipes[1]);
    if (pipe2(pipes, O_NONBLOCK | O_CLOEXEC) != 0) die("pipe2");
    brood.said = pipes[0];
    say = pipes[1];
    if (pipe2(pipes, O_CLOEXEC) != 0) die("pipe2");
    brood.lifeline = pipes[0];
    int open_before = open_files();
    bool over = false;
    while (!over || brood.count > 0) {
        if (!over && (mc_now_ns() >= until || launches + 12 >= LAUNCHES)) {
            over = true;
            brood.wanted = 0;
            for (int i = 0; i < 10; i++) make(-1); /* after the last of them nothing happens that could show the others */
        }
        if (over) mc_brood_drop(&brood);
        switch (mc_brood_wait(&brood, mc_now_ns() + draw() % 300000)) {
        case MC_TIME:
            if (!over) act();
            break;
        case MC_WORDS:
            words++;
            mc_brood_bury(&brood, brood.found);
            break;
        case MC_SPARE: {
            brood.due = 0;
            int place = mc_brood_place(&brood);
            if (place >= 0) make(place);
            break;
        }
        case MC_READY:
            die("nobody writes there");
        case MC_SIGNAL:
            die("no other signal was sent");
        }
        read_all();
        if (mc_now_ns() > until + 20 * INT64_C(1000000000)) die("children that do not end");
    }
    read_all();
    for (uint64_t id = 1; id <= launches; id++)
        if (!ended[id]) die("a launch whose end nobody was told");
    if (brood.unsent != NULL) die("a report that was kept");
    if (open_files() != open_before) die("descriptors left open");
    printf("%llu launches, %llu of spares, of which %llu had ended; %llu ends, %llu with words\n",
           (unsigned long long)launches, (unsigned long long)taken, (unsigned long long)gone, (unsigned long long)exits,
           (unsigned long long)words);
    return 0;
}
