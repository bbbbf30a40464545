/* Last words in C: the native stack of a thread that gets a fatal signal, written to a descriptor before the handler
 * that was there already, `faulthandler`'s, does its part.
 *
 * Steps of the handler:
 *     1  what was there is put back, so that whatever goes wrong from here on comes to it
 *     2  the stack is walked and written, one line a frame
 *     3  it returns to the instruction that failed, which fails again; a signal that somebody sent is sent again
 *
 * Everything that a handler may not do is done before: `backtrace` loads its library at its first call. `dladdr` takes the
 * loader's lock, which its own thread may take again; if another holds it for good, a timer ends the wait, and step 3
 * follows. Stacks are walked on a stack of this file's own, since the thread's may be what has overflowed.
 *
 * If the process dies: at each step by the same signal as without all this; what was written stays in the descriptor.
 */
#ifndef MANYCORE_CRASH_H
#define MANYCORE_CRASH_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif

#if defined(__has_include)
#if __has_include(<execinfo.h>)
#define MC_CRASH_STACKS 1 /* not in musl */
#endif
#endif

#ifdef MC_CRASH_STACKS

#include <dlfcn.h>
#include <errno.h>
#include <execinfo.h>
#include <limits.h>
#include <signal.h>
#include <stdint.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/time.h>
#include <ucontext.h>
#include <unistd.h>

#define MC_CRASH_FRAMES 64
#define MC_CRASH_STACK_BYTES (64 * 1024) /* touched by nobody before a crash */
#define MC_CRASH_PATIENCE_S 2
#define MC_CRASH_SIGNALS 5

static const int mc_crash_signals[MC_CRASH_SIGNALS] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT};
static struct sigaction mc_crash_before[MC_CRASH_SIGNALS];
static char mc_crash_stack[MC_CRASH_STACK_BYTES] __attribute__((aligned(16)));
static char mc_crash_program[PATH_MAX]; /* argv[0], which the loader knows it by, may be a title by now */
static void *mc_crash_program_base;
static int mc_crash_is_loaded;
static volatile int mc_crash_fd = -1;
static volatile int mc_crash_signum; /* the first, once there is one */

struct mc_crash_line {
    char bytes[1024];
    size_t size;
};

static void mc_crash_put(struct mc_crash_line *line, const char *text)
{
    while (*text != '\0' && line->size < sizeof line->bytes - 1)
        line->bytes[line->size++] = *text++;
}

static void mc_crash_put_number(struct mc_crash_line *line, uintptr_t number, unsigned base)
{
    char digits[24];
    size_t at = sizeof digits;
    digits[--at] = '\0';
    do
        digits[--at] = "0123456789abcdef"[number % base];
    while ((number /= base) != 0);
    mc_crash_put(line, digits + at);
}

static void mc_crash_write(struct mc_crash_line *line)
{
    line->bytes[line->size++] = '\n';
    if (write(mc_crash_fd, line->bytes, line->size) < 0) { /* nobody is there to be told */
    }
    line->size = 0;
}

/* One frame, as `faulthandler` of Python 3.14 has it. */
static void mc_crash_write_frame(uintptr_t address, int is_return)
{
    struct mc_crash_line line = {.size = 0};
    Dl_info info = {0};
    uintptr_t call = address - (is_return ? 1 : 0); /* the call may be the last instruction of its function */
    int known = address != 0 && dladdr((void *)call, &info) != 0;
    const char *file = !known || info.dli_fname == NULL ? "?" : info.dli_fname;
    mc_crash_put(&line, "  Binary file \"");
    mc_crash_put(&line, known && info.dli_fbase == mc_crash_program_base ? mc_crash_program : file);
    mc_crash_put(&line, "\"");
    if (known) {
        mc_crash_put(&line, ", at ");
        mc_crash_put(&line, info.dli_sname == NULL ? "" : info.dli_sname);
        mc_crash_put(&line, "+0x");
        mc_crash_put_number(&line, address - (uintptr_t)(info.dli_sname == NULL ? info.dli_fbase : info.dli_saddr), 16);
    }
    mc_crash_put(&line, " [0x");
    mc_crash_put_number(&line, address, 16);
    mc_crash_put(&line, "]");
    mc_crash_write(&line);
}

/* Where the signal came; 0 where this file does not know how to tell. */
static uintptr_t mc_crash_place(const ucontext_t *context)
{
#if defined(__x86_64__)
    return (uintptr_t)context->uc_mcontext.gregs[REG_RIP];
#elif defined(__aarch64__)
    return (uintptr_t)context->uc_mcontext.pc;
#else
    (void)context;
    return 0;
#endif
}

/* After a jump to where there is no code, and so nothing that says how to go on: as if that had returned. */
static void mc_crash_go_back(ucontext_t *context)
{
#if defined(__x86_64__)
    greg_t *registers = context->uc_mcontext.gregs;
    registers[REG_RIP] = *(greg_t *)registers[REG_RSP];
    registers[REG_RSP] += (greg_t)sizeof(greg_t);
#elif defined(__aarch64__)
    context->uc_mcontext.pc = context->uc_mcontext.regs[30];
#else
    (void)context;
#endif
}

static void mc_crash_walk(const siginfo_t *info, ucontext_t *context)
{
    void *frames[MC_CRASH_FRAMES];
    struct mc_crash_line line = {.size = 0};
    uintptr_t place = mc_crash_place(context);
    mcontext_t registers = context->uc_mcontext;
    int first = 0, count;
    mc_crash_put(&line, "Native stack of ");
    mc_crash_put_number(&line, (uintptr_t)getpid(), 10);
    mc_crash_put(&line, " (most recent call first):");
    mc_crash_write(&line);
    if (info->si_code > 0 && info->si_signo == SIGSEGV && (uintptr_t)info->si_addr == place) {
        mc_crash_write_frame(place, 0);
        mc_crash_go_back(context);
        place = mc_crash_place(context);
    }
    count = backtrace(frames, MC_CRASH_FRAMES);
    context->uc_mcontext = registers; /* for who comes next */
    while (first < count && (uintptr_t)frames[first] != place)
        first++;
    if (first == count) /* where this file does not know the place: this handler's own frames are shown too */
        first = 0;
    for (int i = first; i < count; i++)
        mc_crash_write_frame((uintptr_t)frames[i], i != first);
    if (count == MC_CRASH_FRAMES) {
        mc_crash_put(&line, "  ...");
        mc_crash_write(&line);
    }
}

static void mc_crash_is_late(int signum)
{
    (void)signum;
    raise(mc_crash_signum);
}

static void mc_crash_tell(const siginfo_t *info, ucontext_t *context)
{
    struct sigaction late, before;
    struct itimerval patience, none, left;
    sigset_t alarm;
    memset(&late, 0, sizeof late);
    memset(&patience, 0, sizeof patience);
    memset(&none, 0, sizeof none);
    late.sa_handler = mc_crash_is_late;
    late.sa_flags = SA_ONSTACK;
    patience.it_value.tv_sec = MC_CRASH_PATIENCE_S;
    sigemptyset(&alarm);
    sigaddset(&alarm, SIGALRM);
    sigaction(SIGALRM, &late, &before);
    setitimer(ITIMER_REAL, &patience, &left);
    pthread_sigmask(SIG_UNBLOCK, &alarm, NULL);
    mc_crash_walk(info, context);
    setitimer(ITIMER_REAL, &none, NULL);
    sigaction(SIGALRM, &before, NULL);
    setitimer(ITIMER_REAL, &left, NULL); /* the handler that was there may know a way on */
}

static void mc_crash(int signum, siginfo_t *info, void *context)
{
    int number = errno, sent = info->si_code <= 0;
    for (int i = 0; i < MC_CRASH_SIGNALS; i++)
        if (mc_crash_signals[i] == signum)
            sigaction(signum, &mc_crash_before[i], NULL);
    if (mc_crash_signum == 0) {
        mc_crash_signum = signum;
        mc_crash_tell(info, (ucontext_t *)context);
    } else { /* another thread's, or from walking the stack: the first is the one to tell of */
        signum = mc_crash_signum;
        sent = 1;
    }
    errno = number;
    if (sent)
        raise(signum);
}

/* Load what walking a stack needs. Not in a fork of a program with threads: one of them may have held the loader's lock. */
static inline void mc_crash_load(void)
{
    void *frame;
    Dl_info info;
    ssize_t size;
    if (mc_crash_is_loaded)
        return;
    mc_crash_is_loaded = 1;
    backtrace(&frame, 1);
    if (dladdr((void *)getauxval(AT_PHDR), &info) != 0)
        mc_crash_program_base = info.dli_fbase;
    size = readlink("/proc/self/exe", mc_crash_program, sizeof mc_crash_program - 1);
    mc_crash_program[size < 0 ? 0 : size] = '\0';
}

/* Have the native stack written to `fd` at a fatal signal, before the handlers do their part that are there now.
 * Called by the main thread, which gets a stack for that. Returns 0, or -1 with errno. */
static inline int mc_crash_install(int fd)
{
    struct sigaction action, before;
    stack_t stack = {.ss_sp = mc_crash_stack, .ss_flags = 0, .ss_size = sizeof mc_crash_stack};
    mc_crash_load();
    mc_crash_fd = fd;
    if (sigaltstack(&stack, NULL) != 0)
        return -1;
    memset(&action, 0, sizeof action);
    action.sa_sigaction = mc_crash;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
    for (int i = 0; i < MC_CRASH_SIGNALS; i++) {
        if (sigaction(mc_crash_signals[i], NULL, &before) != 0)
            return -1;
        if (before.sa_sigaction == mc_crash) /* in a fork of a process that has it */
            continue;
        mc_crash_before[i] = before;
        if (sigaction(mc_crash_signals[i], &action, NULL) != 0)
            return -1;
    }
    return 0;
}

#else

static inline void mc_crash_load(void)
{
}

static inline int mc_crash_install(int fd)
{
    (void)fd;
    return 0;
}

#endif
#endif
