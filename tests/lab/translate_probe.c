/* The first and only process of a lab guest: executes instructions that the CPU may lack and prints
 * what they did, one line each group.  A CPU that has them and one that lacks them, translated,
 * must print the same.  Static, no arguments; built by test_translate_probe.py. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <ucontext.h>
#include <unistd.h>

static __thread sigjmp_buf back;
static __thread volatile int got_signal, got_code;
static __thread void *volatile got_address;
static uint8_t *code_page;

static void on_signal(int number, siginfo_t *info, void *context)
{
    (void)context;
    got_signal = number;
    got_code = info->si_code;
    got_address = info->si_addr;
    siglongjmp(back, 1);
}

static uint64_t seed = 88172645463325252u;

static uint64_t dice(void)
{
    seed ^= seed << 13;
    seed ^= seed >> 7;
    return seed ^= seed << 17;
}

static uint64_t hash;

static void note(uint64_t value)
{
    hash = (hash ^ value) * 1099511628211u;
    hash ^= hash >> 29;
}

static void tell(const char *what)
{
    printf("probe %s %016llx\n", what, (unsigned long long)hash);
    fflush(stdout);
    hash = 14695981039346656037u;
}

typedef void function(void *rdi, void *rsi, void *rdx);

/* Put bytes into the code page, ended by RET. */
static function *emit(const uint8_t *bytes, unsigned count)
{
    memcpy(code_page, bytes, count);
    code_page[count] = 0xc3;
    return (function *)code_page;
}

static float plain(void)
{
    return (float)(int32_t)dice() / (float)(1 << dice() % 24) + 0.37f;
}

static void do_3dnow(void)
{
    static const struct {
        const char *name;
        uint8_t suffix;
        bool integers;
    } all[] = {
        {"pfadd", 0x9e, 0}, {"pfsub", 0x9a, 0}, {"pfsubr", 0xaa, 0}, {"pfmul", 0xb4, 0},
        {"pfacc", 0xae, 0}, {"pfnacc", 0x8a, 0}, {"pfpnacc", 0x8e, 0}, {"pfcmpge", 0x90, 0},
        {"pfcmpgt", 0xa0, 0}, {"pfcmpeq", 0xb0, 0}, {"pfmin", 0x94, 0}, {"pfmax", 0xa4, 0},
        {"pf2id", 0x1d, 0}, {"pswapd", 0xbb, 1}, {"pmulhrw", 0xb7, 1}, {"pavgusb", 0xbf, 1},
        {"pi2fw", 0x0c, 1}, {"pi2fd", 0x0d, 2},
    };
    for (unsigned i = 0; i < sizeof all / sizeof *all; i++) {
        /* MOVQ MM3,[RDI]; MOVQ MM6,[RSI]; op MM3,MM6; op MM6,[RDX]; store both; FEMMS */
        const uint8_t code[] = {0x0f, 0x6f, 0x1f, 0x0f, 0x6f, 0x36, 0x0f, 0x0f, 0xde, all[i].suffix,
                                0x0f, 0x0f, 0x32, all[i].suffix, 0x0f, 0x7f, 0x1f, 0x0f, 0x7f, 0x36,
                                0x0f, 0x0e};
        function *run = emit(code, sizeof code);
        for (unsigned n = 0; n < 30; n++) {
            union { float f[2]; uint64_t q; int32_t d[2]; } a, b, c;
            for (unsigned k = 0; k < 2; k++) {
                a.f[k] = plain(), b.f[k] = n % 5 ? plain() : a.f[k], c.f[k] = plain();
                if (all[i].integers)
                    a.d[k] = (int32_t)dice(), b.d[k] = (int32_t)dice(), c.d[k] = (int32_t)dice();
            }
            if (all[i].suffix == 0x0d) /* those that need no rounding */
                b.d[0] >>= 8, b.d[1] >>= 8, c.d[0] >>= 8, c.d[1] >>= 8;
            run(&a, &b, &c);
            note(a.q), note(b.q);
        }
        tell(all[i].name);
    }
    /* FEMMS left the x87 stack empty: this sum is right only then. */
    volatile long double x = 1.25L, y = 0;
    for (int i = 0; i < 8; i++)
        y += x * i;
    note((uint64_t)(y * 4));
    tell("x87");
}

static void do_sse4a(void)
{
    uint64_t a[2], b[2];
    for (unsigned n = 0; n < 60; n++) {
        for (unsigned i = 0; i < 2; i++)
            a[i] = dice(), b[i] = dice();
        /* a field inside the quadword, as the manual wants it */
        unsigned length = dice() % 63 + 1, index = dice() % (65 - length);
        uint64_t control = length | index << 8;
        __asm__ volatile("movdqu %0, %%xmm0; movdqu %0, %%xmm11; movdqu %1, %%xmm5; movq %2, %%xmm4;"
                         "punpcklqdq %%xmm4, %%xmm5; extrq %%xmm4, %%xmm11; insertq %%xmm5, %%xmm0;"
                         "movdqu %%xmm0, %0; movdqu %%xmm11, %1"
                         : "+m"(a), "+m"(b)
                         : "r"(control)
                         : "xmm0", "xmm4", "xmm5", "xmm11");
        note(a[0]), note(b[0]);
        uint8_t code[] = {0xf3, 0x0f, 0x6f, 0x07,                                /* MOVDQU XMM0,[RDI] */
                          0xf3, 0x44, 0x0f, 0x6f, 0x0e,                          /* MOVDQU XMM9,[RSI] */
                          0xf2, 0x44, 0x0f, 0x78, 0xc8, (uint8_t)length, (uint8_t)index, /* INSERTQ 9,0 */
                          0x66, 0x0f, 0x78, 0xc0, (uint8_t)length, (uint8_t)index, /* EXTRQ XMM0 */
                          0xf3, 0x0f, 0x7f, 0x07, 0xf3, 0x44, 0x0f, 0x7f, 0x0e};
        emit(code, sizeof code)(a, b, NULL);
        note(a[0]), note(b[0]);
    }
    tell("sse4a");
}

static __thread uint64_t thread_local_word = 0x0123456789abcdefu;

static void do_popcnt(void)
{
    uint64_t result, flags, word;
    for (unsigned n = 0; n < 60; n++) {
        word = n % 7 ? dice() >> dice() % 64 : 0;
        __asm__ volatile("popcnt %2, %0; pushf; pop %1" : "=r"(result), "=r"(flags) : "r"(word) : "cc");
        note(result), note(flags & 0x8d5);
        __asm__ volatile("popcntl %2, %k0; pushf; pop %1" : "=r"(result), "=r"(flags) : "m"(word) : "cc");
        note(result), note(flags & 0x8d5);
        result = dice();
        __asm__ volatile("popcntw %1, %w0" : "+r"(result) : "m"(word) : "cc");
        note(result);
        thread_local_word = dice();
        __asm__ volatile("popcnt %1, %0" : "=r"(result) : "m"(thread_local_word) : "cc"); /* FS */
        note(result);
    }
    tell("popcnt");
    uint8_t *pages = mmap(NULL, 8192, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    const uint8_t code[] = {0xf3, 0x48, 0x0f, 0xb8, 0x07, 0x48, 0x89, 0x07, 0xc3};
    for (unsigned split = 1; split < 5; split++) {
        uint8_t *start = pages + 4096 - split;
        memcpy(start, code, sizeof code);
        word = dice();
        ((function *)start)(&word, NULL, NULL);
        note(word);
        memcpy(pages + 4096 - split, &word, 8); /* and an operand across the page's end */
        __asm__ volatile("popcnt %1, %0" : "=r"(result) : "m"(*(uint64_t *)start) : "cc");
        note(result);
    }
    munmap(pages, 8192);
    tell("page-ends");
}

static void expect(const char *what, function *run, void *rdi, uint64_t base)
{
    got_signal = 0;
    if (!sigsetjmp(back, 1))
        run(rdi, rdi, rdi);
    printf("probe %s signal %d code %d at +%llx\n", what, got_signal, got_signal ? got_code : 0,
           got_signal ? (unsigned long long)((uint64_t)got_address - base) : 0);
    fflush(stdout);
}

static void do_faults(void)
{
    static const uint8_t load[] = {0xf3, 0x48, 0x0f, 0xb8, 0x07};  /* POPCNT RAX,[RDI] */
    static const uint8_t store[] = {0xf2, 0x0f, 0x2b, 0x07};       /* MOVNTSD [RDI],XMM0 */
    uint8_t *page = mmap(NULL, 12288, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    uint64_t base = (uint64_t)page;
    mprotect(page + 4096, 4096, PROT_NONE);
    mprotect(page + 8192, 4096, PROT_READ);
    expect("load-none", emit(load, sizeof load), page + 4100, base);
    expect("store-none", emit(store, sizeof store), page + 4100, base);
    expect("store-readonly", emit(store, sizeof store), page + 8200, base);
    expect("load-readonly", emit(load, sizeof load), page + 8200, base);
    expect("load-across", emit(load, sizeof load), page + 4092, base);
    expect("store-across", emit(store, sizeof store), page + 4092, base);
    note(*(uint64_t *)(page + 4088)); /* nothing of it was written */
    expect("load-kernel", emit(load, sizeof load), (void *)0xffffffff81000000, 0);
    expect("load-noncanonical", emit(load, sizeof load), (void *)0x1234000000000000, 0);
    expect("load-null", emit(load, sizeof load), NULL, 0);
    munmap(page, 12288);
    uint8_t *fresh = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    double value = 42.5;
    __asm__ volatile("movsd %1, %%xmm0; movntsd %%xmm0, %0" : "=m"(*fresh) : "m"(value) : "xmm0");
    note(*(uint64_t *)fresh);
    tell("first-touch");
    if (fork() == 0) { /* what the child stores must stay the child's */
        value = 7.0;
        __asm__ volatile("movsd %1, %%xmm0; movntsd %%xmm0, %0" : "=m"(*fresh) : "m"(value) : "xmm0");
        _exit(memcmp(fresh, &value, 8) != 0);
    }
    int status;
    wait(&status);
    note((uint64_t)status), note(*(uint64_t *)fresh);
    tell("copy-on-write");
}

static void do_undefined(void)
{
    static const struct {
        const char *name;
        uint8_t code[6];
        unsigned count;
    } all[] = {
        {"ud2", {0x0f, 0x0b}, 2}, {"ud1", {0x0f, 0xb9, 0xc0}, 3},
        {"lock-popcnt", {0xf0, 0xf3, 0x0f, 0xb8, 0x07}, 5},
        {"mwait", {0x0f, 0x01, 0xc9}, 3}, {"movnt-register", {0xf2, 0x0f, 0x2b, 0xc0}, 4},
    };
    for (unsigned i = 0; i < sizeof all / sizeof *all; i++)
        expect(all[i].name, emit(all[i].code, all[i].count), code_page + 64, (uint64_t)code_page);
}

static uint64_t rdtsc(void)
{
    uint32_t low, high;
    __asm__ volatile("lfence; rdtsc" : "=a"(low), "=d"(high));
    return (uint64_t)high << 32 | low;
}

static void do_clock(void)
{
    unsigned wrong = 0, strange = 0;
    for (unsigned cpu = 0; cpu < 4; cpu++) {
        cpu_set_t set;
        CPU_ZERO(&set);
        CPU_SET(cpu, &set);
        if (sched_setaffinity(0, sizeof set, &set))
            continue;
        for (unsigned n = 0; n < 50; n++) {
            uint32_t low, high, aux;
            uint64_t before = rdtsc();
            __asm__ volatile("rdtscp" : "=a"(low), "=d"(high), "=c"(aux));
            uint64_t after = rdtsc(), now = (uint64_t)high << 32 | low;
            wrong += !(before <= now && now <= after);
            strange += aux != cpu;
        }
    }
    static const uint8_t code[] = {0x0f, 0x01, 0xf9};
    printf("probe clock wrong %u strange %u\n", wrong, strange);
    prctl(PR_SET_TSC, PR_TSC_SIGSEGV);
    expect("tsc-forbidden", emit(code, sizeof code), NULL, 0);
    prctl(PR_SET_TSC, PR_TSC_ENABLE);
}

/* 32-bit code in a 64-bit process, by a far return to Linux's 32-bit code segment. */
static void do_compatibility(void)
{
    uint8_t *low = mmap(NULL, 8192, PROT_READ | PROT_WRITE | PROT_EXEC,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_32BIT, -1, 0);
    static const uint8_t code[] = {0xf3, 0x0f, 0xb8, 0x46, 0x04,        /* popcnt eax, [esi+4] */
                                   0xf3, 0x66, 0x0f, 0xb8, 0x4c, 0x3e, 0x08, /* popcnt cx, [esi+edi+8] */
                                   0xf2, 0x0f, 0x2b, 0x06,              /* movntsd [esi], xmm0 */
                                   0xea, 0, 0, 0, 0, 0x33, 0};          /* jmp far 33:back */
    memcpy(low, code, sizeof code);
    uint32_t words[8];
    for (unsigned i = 0; i < 8; i++)
        words[i] = (uint32_t)dice();
    memcpy(low + 4096, words, sizeof words);
    /* the way back: a 64-bit RET in the low page */
    low[100] = 0xc3;
    uint32_t return_to = (uint32_t)(uint64_t)(low + 100);
    memcpy(low + 17, &return_to, 4);
    uint64_t a = 0, c = 0x1111111111111111u;
    __asm__ volatile("movq %%rsp, %%r12; movq %4, %%rsp; call 1f; jmp 2f;"
                     "1: pushq $0x23; pushq %2; lretq;"
                     "2: movq %%r12, %%rsp"
                     : "+a"(a), "+c"(c)
                     : "r"((uint64_t)low), "S"((uint64_t)(low + 4096)), "r"((uint64_t)(low + 8192)), "D"(4ul)
                     : "r12", "memory", "cc", "xmm0", "r8", "r9", "r10", "r11");
    note((uint32_t)a), note((uint16_t)c);
    tell("compatibility");
    munmap(low, 8192);
}

static volatile unsigned steps;
static uint64_t step_hash;

static void on_step(int number, siginfo_t *info, void *context)
{
    (void)number;
    ucontext_t *at = context;
    uint64_t rip = (uint64_t)at->uc_mcontext.gregs[REG_RIP];
    /* Only what is on our page: the way there and back is the library's affair. */
    if (rip - (uint64_t)code_page >= 4096)
        return;
    steps++;
    step_hash = step_hash * 31 + (rip - (uint64_t)code_page);
    step_hash = step_hash * 31 + (uint64_t)info->si_code;
    step_hash += (uint64_t)info->si_addr - (uint64_t)code_page;
}

/* A program that steps itself (TF): one trap behind each instruction, at the next one. */
static void do_steps(void)
{
    static const uint8_t code[] = {
        0x9c, 0x81, 0x0c, 0x24, 0, 1, 0, 0, 0x9d, /* PUSHF; OR dword [RSP], 0x100; POPF */
        0xf3, 0x48, 0x0f, 0xb8, 0x07,             /* POPCNT RAX,[RDI] */
        0x90,                                     /* NOP */
        0x66, 0x0f, 0x78, 0xc0, 8, 8,             /* EXTRQ XMM0 */
        0x0f, 0x01, 0xf9,                         /* RDTSCP */
        0x0f, 0x6f, 0x07,                         /* MOVQ MM0,[RDI] */
        0x0f, 0x0f, 0xc0, 0x9e,                   /* PFADD MM0,MM0 */
        0xf2, 0x0f, 0x2b, 0x07,                   /* MOVNTSD [RDI],XMM0 */
        0x0f, 0x0e,                               /* FEMMS */
        0x9c, 0x81, 0x24, 0x24, 0xff, 0xfe, 0xff, 0xff, 0x9d, 0xc3}; /* the same, AND; RET */
    struct sigaction step = {.sa_sigaction = on_step, .sa_flags = SA_SIGINFO}, before;
    uint64_t *word = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    sigaction(SIGTRAP, &step, &before);
    for (unsigned n = 0; n < 3; n++) {
        emit(code, sizeof code)(word, word, word);
        printf("probe steps %u %016llx\n", steps, (unsigned long long)step_hash);
    }
    fflush(stdout);
    sigaction(SIGTRAP, &before, NULL);
    munmap(word, 4096);
}

static void *worker(void *argument)
{
    uint64_t number = (uint64_t)argument, sum = 0;
    for (uint64_t n = 0; n < 150; n++) {
        uint64_t value[2] = {number << 20 | n << 8, 0}, control[2] = {40 | 8 << 8, 0};
        __asm__ volatile("movdqu %0, %%xmm6; movdqu %1, %%xmm7; extrq %%xmm7, %%xmm6; movdqu %%xmm6, %0"
                         : "+m"(value) : "m"(control) : "xmm6", "xmm7");
        sum += value[0];
        if (n % 16 == 0 && !sigsetjmp(back, 1))
            __asm__ volatile("ud2");
        sum += (uint64_t)got_signal;
    }
    return (void *)sum;
}

static void do_threads(void)
{
    pthread_t threads[4];
    for (uint64_t i = 0; i < 4; i++)
        pthread_create(&threads[i], NULL, worker, (void *)(i + 1));
    for (unsigned i = 0; i < 4; i++) {
        void *sum;
        pthread_join(threads[i], &sum);
        note((uint64_t)sum);
    }
    tell("threads");
}

int main(void)
{
    mkdir("/dev", 0755);
    mount("devtmpfs", "/dev", "devtmpfs", 0, NULL);
    int console = open("/dev/console", O_RDWR);
    for (int i = 0; i < 3; i++)
        dup2(console, i);
    struct sigaction action = {.sa_sigaction = on_signal, .sa_flags = SA_SIGINFO | SA_NODEFER};
    for (const int *s = (const int[]){SIGILL, SIGSEGV, SIGBUS, SIGFPE, SIGTRAP, 0}; *s; s++)
        sigaction(*s, &action, NULL);
    code_page = mmap(NULL, 4096, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    printf("probe ready\n");
    fflush(stdout);
    volatile bool works = false;
    while (!works) { /* until the CPU, or the translator, does it */
        if (!sigsetjmp(back, 1)) {
            __asm__ volatile("popcnt %%rax, %%rax" ::: "rax", "cc");
            works = true;
        } else {
            usleep(10000);
        }
    }
    hash = 14695981039346656037u;
    do_popcnt();
    do_sse4a();
    do_3dnow();
    do_faults();
    do_undefined();
    do_clock();
    do_compatibility();
    do_steps();
    do_threads();
    printf("probe end\n");
    fflush(stdout);
    for (;;)
        pause();
}
