/*
 * What this CPU does where makers differ without any fault or bit telling: one line per probe,
 * "name value".  Probes that may fault run in a child process.  The expected values by maker are in
 * data/silicon.json; manuals leave most of them undefined, so they were measured.
 */
#define _GNU_SOURCE
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <ucontext.h>
#include <unistd.h>

enum { STATUS_FLAGS = 0x8d5, PAGE = 4096 };

/* Runs one instruction with all status flags clear, or all set, and gives those it leaves. */
#define FLAGS_OF(name, instruction)                                                                \
	static unsigned name(uint64_t before)                                                      \
	{                                                                                          \
		uint64_t after;                                                                    \
		__asm__ volatile("mov $0x12345679, %%eax; mov $7, %%ebx; mov $0, %%edx;"           \
				 "push %1; popfq;" instruction "; pushfq; pop %0"                  \
				 : "=&r"(after)                                                    \
				 : "r"(before)                                                     \
				 : "rax", "rbx", "rdx", "cc", "memory");                           \
		return after & STATUS_FLAGS;                                                       \
	}
FLAGS_OF(mul, "mul %%ebx")
FLAGS_OF(divide, "div %%ebx")
FLAGS_OF(shift, "shl $3, %%eax")

static void flags(const char *name, unsigned (*probe)(uint64_t))
{
	unsigned clear = probe(2);

	printf("%s %03x %03x\n", name, clear, probe(2 | STATUS_FLAGS));
}

static void double_shifts(void)
{
	uint16_t left = 0x1234, right = 0x1234, source = 0xabcd;

	__asm__("mov $20, %%cl; shldw %%cl, %1, %0" : "+r"(left) : "r"(source) : "cl", "cc");
	__asm__("mov $20, %%cl; shrdw %%cl, %1, %0" : "+r"(right) : "r"(source) : "cl", "cc");
	printf("double-shift-16 %04x %04x\n", left, right);
}

static void bit_scans_of_zero(void)
{
	uint64_t forward = 0x1122334455667788, backward = forward;

	__asm__("bsfl %1, %k0" : "+r"(forward) : "r"(0) : "cc");
	__asm__("bsrl %1, %k0" : "+r"(backward) : "r"(0) : "cc");
	printf("bit-scan-of-zero %016lx %016lx\n", forward, backward);
}

static void x87_pointers(void)
{
	static unsigned char area[512] __attribute__((aligned(64)));
	const double two = 2;
	uint64_t pointer;
	uint32_t mask;

	__asm__ volatile("fninit; fldl %1; fxsave64 %0; fstp %%st" : "=m"(area) : "m"(two));
	memcpy(&pointer, area + 8, sizeof(pointer));
	memcpy(&mask, area + 28, sizeof(mask));
	printf("x87-instruction-pointer %s\n", pointer ? "kept" : "zero");
	printf("mxcsr-mask %08x\n", mask);
}

static void null_selector(void)
{
	enum { SET_GS = 0x1001, GET_GS = 0x1004 };
	unsigned long base = 1;

	syscall(SYS_arch_prctl, SET_GS, 0x12340UL);
	__asm__ volatile("mov %0, %%gs" : : "r"(0));
	syscall(SYS_arch_prctl, GET_GS, &base);
	printf("null-selector-base %lx\n", base);
}

static void report(int number, siginfo_t *info, void *context)
{
	uintptr_t at = (uintptr_t)((ucontext_t *)context)->uc_mcontext.gregs[REG_RIP];
	const char *text = number == SIGILL ? "illegal\n" : at < 0x10000 ? "below-64k\n" : "fault\n";

	(void)info;
	(void)!write(STDOUT_FILENO, text, strlen(text));
	_exit(0);
}

static void in_child(const char *name, void (*probe)(void))
{
	static unsigned char stack[65536];
	pid_t child;

	printf("%s ", name);
	fflush(stdout);
	child = fork();
	if (child == 0) {
		stack_t alternate = { .ss_sp = stack, .ss_size = sizeof(stack) };
		struct sigaction action = { .sa_sigaction = report,
					    .sa_flags = SA_SIGINFO | SA_ONSTACK };

		sigaltstack(&alternate, NULL);
		sigaction(SIGILL, &action, NULL);
		sigaction(SIGSEGV, &action, NULL);
		sigaction(SIGBUS, &action, NULL);
		probe();
		puts("ran");
		fflush(stdout);
		_exit(0);
	}
	waitpid(child, NULL, 0);
}

static void run(const unsigned char *code, size_t size)
{
	unsigned char *page = mmap(NULL, 2 * PAGE, PROT_READ | PROT_WRITE | PROT_EXEC,
				   MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	memset(page, 0x90, PAGE);
	memcpy(page, code, size);
	page[PAGE - 1] = 0xc3;
	((void (*)(void))page)();
}

#define CODE(name, ...)                                                                            \
	static void name(void)                                                                     \
	{                                                                                          \
		static const unsigned char code[] = { __VA_ARGS__ };                               \
		run(code, sizeof(code));                                                           \
	}
CODE(short_jump, 0x66, 0xeb, 0x00)
CODE(near_jump, 0x66, 0xe9, 0x00, 0x00, 0x00, 0x00)
CODE(tls_call, 0x66, 0x48, 0xe8, 0x00, 0x00, 0x00, 0x00, 0x58)

static void misaligned_mode(void)
{
	unsigned mode = 0x1f80 | 1 << 17;

	__asm__ volatile("ldmxcsr %0" : : "m"(mode));
}

static void far_jump(void)
{
	static struct {
		uint64_t offset;
		uint16_t selector;
	} __attribute__((packed)) target;
	unsigned char *page = mmap(NULL, PAGE, PROT_READ | PROT_WRITE | PROT_EXEC,
				   MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	static const unsigned char back[] = { 0xff, 0xe3 }; /* jmp *%rbx */

	memcpy(page, back, sizeof(back));
	target.offset = (uintptr_t)page;
	__asm__ volatile("mov %%cs, %0" : "=r"(target.selector));
	__asm__ volatile("lea 1f(%%rip), %%rbx; .byte 0x48, 0xff, 0x28; 1:"
			 :
			 : "a"(&target)
			 : "rbx", "memory");
}

int main(void)
{
	setvbuf(stdout, NULL, _IOLBF, 0);
	flags("flags-mul", mul);
	flags("flags-div", divide);
	flags("flags-shift", shift);
	double_shifts();
	bit_scans_of_zero();
	x87_pointers();
	null_selector();
	in_child("66-short-jump", short_jump);
	in_child("66-near-jump", near_jump);
	in_child("66-48-call", tls_call);
	in_child("mxcsr-misaligned-mode", misaligned_mode);
	in_child("far-jump-m16-64", far_jump);
	return 0;
}
