/* A program full of instructions that this CPU may lack; built and run by test_preload.py.
 *
 * preload_probe WHAT: prints "ok" if WHAT came out right under `isthmus run`. */
#define _GNU_SOURCE
#include <immintrin.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <ucontext.h>
#include <unistd.h>

static volatile int caught;

static uint64_t extrq(uint64_t value) /* EXTRQ XMM0, 16, 8 */
{
    uint64_t result;
    __asm__ volatile("movq %1, %%xmm0; .byte 0x66,0x0f,0x78,0xc0,16,8; movq %%xmm0, %0"
                     : "=r"(result) : "r"(value) : "xmm0");
    return result;
}

static int sse4a(void)
{
    for (uint64_t i = 0; i < 1000; i++)
        if (extrq(i << 8 | i << 40) != (i & 0xffff))
            return 1;
    return 0;
}

static int fma4(void) /* VFMADDPS YMM0, YMM1, YMM2, YMM3: all 256 bits */
{
    float a[8], b[8], c[8], r[8];
    for (int i = 0; i < 8; i++)
        a[i] = (float)i, b[i] = 2, c[i] = 100;
    __asm__ volatile("vmovups %1, %%ymm1; vmovups %2, %%ymm2; vmovups %3, %%ymm3\n"
                     ".byte 0xc4,0xe3,0x75,0x68,0xc2,0x30; vmovups %%ymm0, %0"
                     : "=m"(r) : "m"(a), "m"(b), "m"(c) : "ymm0", "ymm1", "ymm2", "ymm3");
    for (int i = 0; i < 8; i++)
        if (r[i] != 2 * a[i] + 100)
            return 1;
    return 0;
}

static int xop(void) /* VPROTB XMM0, XMM1, 4 */
{
    uint8_t from[16], to[16];
    memset(from, 0x1f, sizeof from);
    __asm__ volatile("vmovdqu %1, %%xmm1; .byte 0x8f,0xe8,0x78,0xc0,0xc1,4; vmovdqu %%xmm0, %0"
                     : "=m"(to) : "m"(from) : "xmm0", "xmm1");
    return to[0] != 0xf1 || to[15] != 0xf1;
}

static int tbm(void) /* BLCFILL RAX, RCX */
{
    uint64_t result;
    __asm__ volatile(".byte 0x8f,0xe9,0xf8,0x01,0xc9" : "=a"(result) : "c"(0xf7ull) : "cc");
    return result != (0xf7 & 0xf8);
}

static int amd3dnow(void) /* PFADD MM0, MM1 */
{
    float a[2] = {1.5f, 2}, b[2] = {3, -1}, r[2];
    __asm__ volatile("movq %1, %%mm0; movq %2, %%mm1; .byte 0x0f,0x0f,0xc1,0x9e; movq %%mm0, %0; emms"
                     : "=m"(r) : "m"(a), "m"(b) : "mm0", "mm1");
    return r[0] != 4.5f || r[1] != 1;
}

static int run_of_eight(void) /* one trap should do them all */
{
    uint64_t result;
    __asm__ volatile("movq %1, %%xmm0; .rept 8; .byte 0x66,0x0f,0x78,0xc0,60,1; .endr; movq %%xmm0, %0"
                     : "=r"(result) : "r"(0xff00ull) : "xmm0");
    return result != 0xff;
}

static void *in_thread(void *argument)
{
    (void)argument;
    return sse4a() ? "wrong" : NULL;
}

static int threads(void)
{
    pthread_attr_t small;
    pthread_t ids[8];
    int wrong = 0;
    pthread_attr_init(&small);
    pthread_attr_setstacksize(&small, 16384);
    for (int i = 0; i < 8; i++)
        wrong |= pthread_create(&ids[i], i & 1 ? &small : NULL, in_thread, NULL);
    for (int i = 0; i < 8; i++) {
        void *answer;
        pthread_join(ids[i], &answer);
        wrong |= answer != NULL;
    }
    return wrong;
}

static void skip(int number, siginfo_t *information, void *data)
{
    ucontext_t *context = data;
    (void)information;
    caught += number == SIGILL || number == SIGSEGV;
    context->uc_mcontext.gregs[REG_RIP] += number == SIGILL ? 2 : 6;
}

static int own_handler(void) /* UD2 goes to the program, EXTRQ does not */
{
    struct sigaction action = {.sa_sigaction = skip, .sa_flags = SA_SIGINFO}, old;
    sigaction(SIGILL, &action, NULL);
    __asm__ volatile("ud2");
    sigaction(SIGILL, NULL, &old);
    return caught != 1 || sse4a() || old.sa_sigaction != skip;
}

static int refused(void) /* GETSEC is undefined in every process, and done by nobody */
{
    struct sigaction action = {.sa_sigaction = skip, .sa_flags = SA_SIGINFO};
    sigaction(SIGILL, &action, NULL);
    __asm__ volatile(".byte 0x0f, 0x37" ::: "rax", "rbx");
    return caught != 1;
}

static int blocked(void)
{
    sigset_t all;
    sigfillset(&all);
    sigprocmask(SIG_BLOCK, &all, NULL);
    pthread_sigmask(SIG_SETMASK, &all, NULL);
    signal(SIGILL, SIG_IGN);
    return sse4a();
}

static int forked(void)
{
    int status;
    pid_t child = fork();
    if (!child)
        _exit(sse4a());
    waitpid(child, &status, 0);
    return status != 0;
}

static int little_stack(void) /* less than a signal frame is left on it */
{
    static uint8_t stack[1024] __attribute__((aligned(16)));
    uint64_t result, saved;
    __asm__ volatile("mov %%rsp, %1; mov %2, %%rsp; movq %3, %%xmm0\n"
                     ".byte 0x66,0x0f,0x78,0xc0,16,8; movq %%xmm0, %0; mov %1, %%rsp"
                     : "=&r"(result), "=&r"(saved) : "r"(stack + 1024), "r"(0xabcd00ull) : "xmm0");
    return result != 0xabcd;
}

static int page_fault(void) /* VPROTB XMM0, [RAX], XMM1 of nothing: SIGSEGV at the instruction */
{
    struct sigaction action = {.sa_sigaction = skip, .sa_flags = SA_SIGINFO};
    void *nowhere = mmap(NULL, 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    sigaction(SIGSEGV, &action, NULL);
    __asm__ volatile(".byte 0x8f,0xe8,0x78,0xc0,0x00,4" : : "a"(nowhere) : "xmm0");
    return caught != 1;
}

int main(int argc, char **argv)
{
    static const struct {
        const char *name;
        int (*run)(void);
    } all[] = {{"sse4a", sse4a}, {"fma4", fma4}, {"xop", xop}, {"tbm", tbm}, {"3dnow", amd3dnow},
               {"run", run_of_eight}, {"threads", threads}, {"own-handler", own_handler},
               {"refused", refused},
               {"blocked", blocked}, {"fork", forked}, {"little-stack", little_stack},
               {"page-fault", page_fault}};
    for (unsigned i = 0; argc > 1 && i < sizeof all / sizeof *all; i++)
        if (!strcmp(argv[1], all[i].name)) {
            puts(all[i].run() ? "wrong" : "ok");
            return 0;
        }
    if (argc > 1 && !strcmp(argv[1], "ud2"))
        __asm__ volatile("ud2");
    return 2;
}
