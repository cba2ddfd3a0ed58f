/* SPDX-License-Identifier: GPL-2.0-only */
/* Between the live registers and the core's register file.
 *
 * Nobody has used the floating-point registers since the instruction: #UD comes with interrupts off, and
 * kernel code is built without SSE.  So they are those of the code that faulted, also inside
 * kernel_fpu_begin(), and are read and written directly. */
#ifndef ISTHMUS_REGISTERS_H
#define ISTHMUS_REGISTERS_H

#include <linux/bitops.h>
#include <linux/string.h>
#include <linux/topology.h>
#include <asm/asm.h>
#include <asm/processor-flags.h>
#include <asm/ptrace.h>

#include "machine.h"
#include "x87_image.h"

#define EACH_LOW(do) do(0) do(1) do(2) do(3) do(4) do(5) do(6) do(7)
#define EACH_HIGH(do) do(8) do(9) do(10) do(11) do(12) do(13) do(14) do(15)
#define EACH_REGISTER(do) EACH_LOW(do) EACH_HIGH(do)

#define TAKE(n) asm volatile("movdqu %%xmm" #n ", %0" : "=m"(machine->xmm[n]));
static __always_inline void take_xmm_low(struct isthmus_machine *machine)
{
	EACH_LOW(TAKE)
}

static __always_inline void take_xmm_high(struct isthmus_machine *machine)
{
	EACH_HIGH(TAKE)
}
#undef TAKE

/* All of them: those that were not written are as they were, and choosing takes longer. */
#define GIVE(n) asm volatile("movdqu %0, %%xmm" #n : : "m"(machine->xmm[n]));
static __always_inline void give_xmm_low(const struct isthmus_machine *machine)
{
	EACH_LOW(GIVE)
}

static __always_inline void give_xmm_high(const struct isthmus_machine *machine)
{
	EACH_HIGH(GIVE)
}
#undef GIVE

/* The upper halves; false where this CPU has none.  An instruction of AVX that is missing raises #UD
 * here, which our own notifier declines, and the exception table cures. */
static inline bool take_ymm(struct isthmus_machine *machine)
{
	u32 low, high;

	if (!(machine->cr4 & X86_CR4_OSXSAVE))
		return false;
	asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
	if ((low & 6) != 6)
		return false;
	asm goto("1: vextractf128 $1, %%ymm0, (%0)\n" _ASM_EXTABLE(1b, %l[none])
		 : : "r"(machine->ymm_high[0]) : "memory" : none);
#define TAKE(n) asm volatile("vextractf128 $1, %%ymm" #n ", %0" : "=m"(machine->ymm_high[n]));
	EACH_REGISTER(TAKE)
#undef TAKE
	return true;
none:
	return false;
}

static inline void give_ymm(const struct isthmus_machine *machine)
{
#define GIVE(n) asm volatile("vinsertf128 $1, %0, %%ymm" #n ", %%ymm" #n : : "m"(machine->ymm_high[n]));
	EACH_REGISTER(GIVE)
#undef GIVE
}

/* Registers of MMX lie in those of the x87, which only FXSAVE reads without disturbing them. */
struct fxsave {
	struct x87_image image;
	u8 rest[352];
} __aligned(16);

static inline void take_x87(struct isthmus_machine *machine)
{
	struct fxsave area;

	asm volatile("fxsave64 %0" : "=m"(area));
	take_x87_image(machine, &area.image);
}

static inline void give_x87(const struct isthmus_machine *machine, const struct isthmus_outcome *all)
{
	struct fxsave area;

	asm volatile("fxsave64 %0" : "=m"(area));
	give_x87_image(machine, all, &area.image);
	asm volatile("fxrstor64 %0" : : "m"(area));
}

static __always_inline void take_general(struct isthmus_machine *machine, const struct pt_regs *regs)
{
	uint64_t *gpr = machine->gpr;

	gpr[0] = regs->ax, gpr[1] = regs->cx, gpr[2] = regs->dx, gpr[3] = regs->bx;
	gpr[4] = regs->sp, gpr[5] = regs->bp, gpr[6] = regs->si, gpr[7] = regs->di;
	gpr[8] = regs->r8, gpr[9] = regs->r9, gpr[10] = regs->r10, gpr[11] = regs->r11;
	machine->rflags = regs->flags;
	gpr[12] = regs->r12, gpr[13] = regs->r13, gpr[14] = regs->r14, gpr[15] = regs->r15;
}

static __always_inline void give_general(const struct isthmus_machine *machine, u32 written,
					 struct pt_regs *regs)
{
#define AT(name) offsetof(struct pt_regs, name)
	static const u8 places[16] = {
		AT(ax), AT(cx), AT(dx), AT(bx), AT(sp), AT(bp), AT(si), AT(di),
		AT(r8), AT(r9), AT(r10), AT(r11), AT(r12), AT(r13), AT(r14), AT(r15),
	};
#undef AT

	for (; written; written &= written - 1) {
		unsigned int number = __ffs(written);

		*(unsigned long *)((u8 *)regs + places[number]) = machine->gpr[number];
	}
}

static __always_inline void take_control_registers(struct isthmus_machine *machine)
{
	asm volatile("mov %%cr0, %0" : "=r"(machine->cr0));
	asm volatile("mov %%cr4, %0" : "=r"(machine->cr4));
}

static __always_inline void take_clock(struct isthmus_machine *machine)
{
	unsigned int cpu = raw_smp_processor_id(), low, high;

	machine->tsc_aux = cpu | cpu_to_node(cpu) << 12;
	/* Not rdtsc_ordered(): the kernel may have made it an RDTSCP at boot. */
	asm volatile("lfence; rdtsc" : "=a"(low), "=d"(high));
	machine->tsc = (u64)high << 32 | low;
}

#endif
