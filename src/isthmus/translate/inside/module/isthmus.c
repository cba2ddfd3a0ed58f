// SPDX-License-Identifier: GPL-2.0-only
/*
 * The placement inside a guest: a #UD of this kernel or of its programs is offered to the emulation
 * core before it becomes a SIGILL or an oops.
 *
 * #UD reaches a die notifier for user and kernel alike, with interrupts off and before anything else
 * is done (arch/x86/kernel/traps.c, do_error_trap; BUG and WARN are taken out before, handle_bug).
 * Nobody has used the floating-point registers in between: kernel code is built without SSE, so the
 * live registers are those of the code that faulted, also inside kernel_fpu_begin().  They are read
 * and written directly.
 *
 * The notifier may neither sleep nor fault.  What needs a context that may (a page that has to be
 * brought in, a signal) is left to task work, which runs before the task returns to its program; the
 * instruction is then tried again, or the program has its signal.
 *
 * Nothing here reads a clock by the kernel's own functions: they may contain the very instruction.
 */
#include <linux/cpu.h>
#include <linux/debugfs.h>
#include <linux/kdebug.h>
#include <linux/kernel.h>
#include <linux/module.h>
#include <linux/notifier.h>
#include <linux/pagemap.h>
#include <linux/percpu.h>
#include <linux/random.h>
#include <linux/sched.h>
#include <linux/sched/signal.h>
#include <linux/seq_file.h>
#include <linux/slab.h>
#include <linux/task_work.h>
#include <linux/topology.h>
#include <linux/uaccess.h>
#include <asm/msr.h>
#include <asm/processor-flags.h>
#include <asm/ptrace.h>
#include <asm/segment.h>
#include <asm/trap_pf.h>
#include <asm/trapnr.h>

#include "site.h"

enum { FETCHED = 16, MOST_IN_ONE_TRAP = 32, SITES = 64 };

static bool user = true, kernel = true, batch = true;
module_param(user, bool, 0644);
MODULE_PARM_DESC(user, "translate for programs");
module_param(kernel, bool, 0644);
MODULE_PARM_DESC(kernel, "translate for the kernel itself");
module_param(batch, bool, 0644);
MODULE_PARM_DESC(batch, "translate a run of missing instructions in one trap");

/* What each CPU has of its own: counters, and the instructions that it met lately, decoded. */
struct counters {
	u64 traps, declined, faulted, paged, lacking;
	u64 by_mnemonic[2][ISTHMUS_MNEMONICS]; /* plain, and by VEX */
	u32 depth; /* of traps in traps: the kernel functions used here may lack instructions, too */
	struct isthmus_site sites[SITES];
};
static struct counters __percpu *counters;
static struct dentry *folder;
static atomic_t outstanding = ATOMIC_INIT(0);

/* A fault that the instruction raises, for the task work. */
struct later {
	struct callback_head work;
	u32 vector;
	bool write;
	unsigned long address, ip;
};

/* Whose memory it is, for the callback. */
struct asker {
	bool user;
};

static void signal_task(int number, int code, unsigned long address)
{
	struct kernel_siginfo information;

	clear_siginfo(&information);
	information.si_signo = number;
	information.si_code = code;
	information.si_addr = (void __user *)address;
	/* A fault's signal cannot be put off: a program that blocks or ignores it dies. */
	if (sigismember(&current->blocked, number) ||
	    current->sighand->action[number - 1].sa.sa_handler == SIG_IGN)
		force_sig(number);
	else
		send_sig_info(number, &information, current);
}

static void do_later(struct callback_head *work)
{
	struct later *later = container_of(work, struct later, work);

	switch (later->vector) {
	case X86_TRAP_PF:
		if (later->write ? fault_in_safe_writeable((char __user *)later->address, 1)
				 : fault_in_readable((char __user *)later->address, 1))
			signal_task(SIGSEGV, SEGV_MAPERR, later->address);
		break; /* else the instruction comes again, and finds its page */
	case X86_TRAP_AC:
		signal_task(SIGBUS, BUS_ADRALN, 0);
		break;
	case X86_TRAP_XF:
	case X86_TRAP_MF:
		signal_task(SIGFPE, FPE_FLTINV, later->ip);
		break;
	case X86_TRAP_DB:
		signal_task(SIGTRAP, TRAP_TRACE, later->ip);
		break;
	default: /* #GP, #SS */
		signal_task(SIGSEGV, SI_KERNEL, 0);
	}
	kfree(later);
	atomic_dec(&outstanding);
}

/* Whether the fault was left to task work. */
static bool leave_for_later(u32 vector, bool write, unsigned long address, unsigned long ip)
{
	struct later *later = kmalloc(sizeof(*later), GFP_ATOMIC);

	if (!later)
		return false;
	*later = (struct later){ .vector = vector, .write = write, .address = address, .ip = ip };
	init_task_work(&later->work, do_later);
	atomic_inc(&outstanding);
	if (task_work_add(current, &later->work, TWA_RESUME)) {
		atomic_dec(&outstanding);
		kfree(later);
		return false;
	}
	return true;
}

/* Up to FETCHED bytes of code; none of another page unless the first ends inside the instruction. */
static __always_inline size_t fetch(bool from_user, unsigned long ip, u8 *code)
{
	size_t first = min_t(size_t, FETCHED, PAGE_SIZE - offset_in_page(ip));

	if (from_user && first == FETCHED && access_ok((void __user *)ip, FETCHED)) {
		u64 __user *from = (u64 __user *)ip;

		pagefault_disable();
		__uaccess_begin_nospec();
		unsafe_get_user(((u64 *)code)[0], from, gone);
		unsafe_get_user(((u64 *)code)[1], from + 1, gone);
		user_access_end();
		pagefault_enable();
		return FETCHED;
gone:
		user_access_end();
		pagefault_enable();
		return 0;
	}
	if (from_user ? copy_from_user_nofault(code, (void __user *)ip, first)
		      : copy_from_kernel_nofault(code, (void *)ip, first))
		return 0;
	if (first < FETCHED &&
	    !(from_user ? copy_from_user_nofault(code + first, (void __user *)(ip + first),
						 FETCHED - first)
			: copy_from_kernel_nofault(code + first, (void *)(ip + first),
						   FETCHED - first)))
		return FETCHED;
	return first;
}

/* copy_to_kernel_nofault() is not exported; this is its loop. */
static long store_in_kernel(u8 *to, const u8 *from, u32 size)
{
	pagefault_disable();
	for (; size >= 8; size -= 8, to += 8, from += 8)
		__put_kernel_nofault(to, from, u64, failed);
	for (; size >= 4; size -= 4, to += 4, from += 4)
		__put_kernel_nofault(to, from, u32, failed);
	for (; size; size--, to++, from++)
		__put_kernel_nofault(to, from, u8, failed);
	pagefault_enable();
	return 0;
failed:
	pagefault_enable();
	return -EFAULT;
}

static int move(void *context, int access, uint64_t address, uint8_t *bytes, uint32_t size,
		uint64_t *fault_address, uint32_t *error_code)
{
	const struct asker *asker = context;
	long failed;

	if (access == ISTHMUS_WRITE)
		failed = asker->user ? copy_to_user_nofault((void __user *)address, bytes, size)
				     : store_in_kernel((u8 *)address, bytes, size);
	else
		failed = asker->user ? copy_from_user_nofault(bytes, (void __user *)address, size)
				     : copy_from_kernel_nofault(bytes, (void *)address, size);
	if (!failed)
		return ISTHMUS_OK;
	*error_code = (access == ISTHMUS_WRITE ? X86_PF_WRITE : 0) | (asker->user ? X86_PF_USER : 0);
	/* Which of two pages it was: the first byte that cannot be reached. */
	if (asker->user && offset_in_page(address) + size > PAGE_SIZE) {
		uint64_t second = (address | (PAGE_SIZE - 1)) + 1;
		u8 probe;

		if (!copy_from_user_nofault(&probe, (void __user *)address, 1) &&
		    copy_from_user_nofault(&probe, (void __user *)second, 1))
			*fault_address = second;
	}
	return ISTHMUS_PAGE_FAULT;
}

#define EACH_REGISTER(do) \
	do(0) do(1) do(2) do(3) do(4) do(5) do(6) do(7) \
	do(8) do(9) do(10) do(11) do(12) do(13) do(14) do(15)

static __always_inline void take_xmm(struct isthmus_machine *machine)
{
#define TAKE(n) asm volatile("movdqu %%xmm" #n ", %0" : "=m"(machine->xmm[n]));
	EACH_REGISTER(TAKE)
#undef TAKE
}

static void give_xmm(const struct isthmus_machine *machine, u32 written)
{
	while (written) {
		unsigned int number = __ffs(written);

		written &= written - 1;
		switch (number) {
#define GIVE(n) case n: asm volatile("movdqu %0, %%xmm" #n : : "m"(machine->xmm[n])); break;
		EACH_REGISTER(GIVE)
#undef GIVE
		}
	}
}

/* The upper halves; false where this CPU has none.  An instruction of AVX that is missing raises #UD
 * here, which our own notifier declines, and the exception table cures. */
static bool take_ymm(struct isthmus_machine *machine)
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

static void give_ymm(const struct isthmus_machine *machine, u32 written)
{
	for (; written; written &= written - 1)
		switch (__ffs(written)) {
#define GIVE(n) case n: asm volatile("vinsertf128 $1, %0, %%ymm" #n ", %%ymm" #n \
				     : : "m"(machine->ymm_high[n])); break;
		EACH_REGISTER(GIVE)
#undef GIVE
		}
}

/* Registers of MMX lie in those of the x87, which only FXSAVE reads without disturbing them. */
struct fxsave {
	u16 control, status;
	u8 tags, reserved; /* abridged, by physical number */
	u16 opcode;
	u64 ip, data;
	u32 mxcsr, mask;
	u8 st[8][16];
	u8 rest[352];
} __aligned(16);

static void take_x87(struct isthmus_machine *machine)
{
	struct fxsave area;

	asm volatile("fxsave64 %0" : "=m"(area));
	/* ST(i) is physical register (TOP + i) mod 8; MMi is physical register i. */
	for (unsigned int i = 0; i < 8; i++) {
		unsigned int number = (i + (area.status >> 11)) & 7;

		memcpy(machine->mmx[number], area.st[i], 8);
		memcpy(&machine->x87_high[number], area.st[i] + 8, 2);
	}
	machine->has_x87 = 1;
	machine->x87_control = area.control;
	machine->x87_status = area.status;
	machine->x87_tags = area.tags;
}

static void give_x87(const struct isthmus_machine *machine, const struct isthmus_outcome *all)
{
	struct fxsave area;
	unsigned int top = 0;

	asm volatile("fxsave64 %0" : "=m"(area));
	if (all->touched & ISTHMUS_WROTE_X87) {
		top = machine->x87_status >> 11 & 7;
		area.status = machine->x87_status;
		area.tags = machine->x87_tags;
		area.opcode = machine->x87_opcode;
		area.ip = machine->x87_ip;
		area.data = machine->x87_dp;
	} else { /* MMX: the top is 0 */
		area.status &= ~0x3800;
		area.tags = all->touched & ISTHMUS_EMPTIED_MMX ? 0 : 0xff;
	}
	for (unsigned int i = 0; i < 8; i++) {
		unsigned int number = (i + top) & 7;
		u16 high = all->mmx_written >> number & 1 ? 0xffff : machine->x87_high[number];

		memcpy(area.st[i], machine->mmx[number], 8);
		memcpy(area.st[i] + 8, &high, 2);
	}
	asm volatile("fxrstor64 %0" : : "m"(area));
}

static __always_inline void take_general(struct isthmus_machine *machine, const struct pt_regs *regs)
{
	uint64_t *gpr = machine->gpr;

	gpr[0] = regs->ax, gpr[1] = regs->cx, gpr[2] = regs->dx, gpr[3] = regs->bx;
	gpr[4] = regs->sp, gpr[5] = regs->bp, gpr[6] = regs->si, gpr[7] = regs->di;
	gpr[8] = regs->r8, gpr[9] = regs->r9, gpr[10] = regs->r10, gpr[11] = regs->r11;
	gpr[12] = regs->r12, gpr[13] = regs->r13, gpr[14] = regs->r14, gpr[15] = regs->r15;
	machine->rip = regs->ip;
	machine->rflags = regs->flags;
}

static void give_general(const struct isthmus_machine *machine, u32 written, struct pt_regs *regs)
{
	unsigned long *const places[16] = {
		&regs->ax, &regs->cx, &regs->dx, &regs->bx, &regs->sp, &regs->bp, &regs->si,
		&regs->di, &regs->r8, &regs->r9, &regs->r10, &regs->r11, &regs->r12, &regs->r13,
		&regs->r14, &regs->r15,
	};

	for (; written; written &= written - 1)
		*places[__ffs(written)] = machine->gpr[__ffs(written)];
}

/* What only some instructions ask for, found by bytes that may lie in its first ones. */
static void take_the_rest(struct isthmus_machine *machine, const u8 *code, bool from_user)
{
	for (unsigned int i = 0; i < 5; i++) {
		if (code[i] == 0x64)
			rdmsrl(MSR_FS_BASE, machine->segment_base[ISTHMUS_FS]);
		else if (code[i] == 0x65) /* the program's, while the kernel has its own in place */
			rdmsrl(from_user ? MSR_KERNEL_GS_BASE : MSR_GS_BASE,
			       machine->segment_base[ISTHMUS_GS]);
		if (code[i] != 0x0f)
			continue;
		if (code[i + 1] == 0x01 || code[i + 1] == 0xc7) {
			unsigned int cpu = raw_smp_processor_id(), low, high;

			machine->tsc_aux = cpu | cpu_to_node(cpu) << 12;
			/* Not rdtsc_ordered(): the kernel may have made it an RDTSCP at boot. */
			asm volatile("lfence; rdtsc" : "=a"(low), "=d"(high));
			machine->tsc = (u64)high << 32 | low;
		}
		/* Not for the kernel: it may be the random generator itself that asks, with its
		 * locks held.  It takes "none now" for an answer. */
		if (code[i + 1] == 0xc7 && from_user) {
			get_random_bytes(&machine->random, sizeof(machine->random));
			machine->random_valid = 1;
		}
		break;
	}
}

/* FISTTP's opcodes */
static __always_inline bool is_x87(u8 byte)
{
	return byte == 0xdb || byte == 0xdd || byte == 0xdf;
}

/* Whether a further missing instruction may follow: worth an attempt at decoding. */
static bool promising(const u8 *code)
{
	u8 byte = *code;

	if (byte == 0x66 || byte == 0xf2 || byte == 0xf3 || (byte & 0xf0) == 0x40)
		byte = code[1];
	if ((byte & 0xf0) == 0x40)
		byte = code[2];
	return byte == 0x0f || byte == 0xc4 || byte == 0xc5 || byte == 0x8f || is_x87(byte);
}

/* 64, 32, or 0 for a code segment of the program's own making (a local table's). */
static __always_inline unsigned int mode_of(const struct pt_regs *regs)
{
	if (likely(regs->cs == __USER_CS || regs->cs == __KERNEL_CS))
		return 64;
	return regs->cs == __USER32_CS ? 32 : 0;
}

/* Whether an instruction may come that asks for the registers of MMX or the x87. */
static __always_inline bool x87_coming(const u8 *code)
{
	unsigned int i;

	if ((code[0] & 0xf0) == 0x40)
		code++;
	if (code[0] == 0x0f)
		return code[1] != 0x01 && code[1] != 0xc7;
	for (i = 0; i < 5; i++) /* prefixes may stand before */
		if (is_x87(code[i]))
			return true;
	return false;
}

/* The instruction bytes at hand: `at` of `available` are behind us. */
struct window {
	size_t available;
	unsigned int at;
	u8 code[FETCHED + 16] __aligned(8);
};

/* Whether a further missing instruction may stand at `ip`; then its bytes are at hand. */
static bool look_ahead(struct window *window, bool from_user, unsigned long ip)
{
	if (!promising(window->code + window->at))
		return false;
	if (window->at + 15 > window->available) {
		window->available = fetch(from_user, ip, window->code);
		window->at = 0;
	}
	return window->available;
}

static __always_inline void take_control(struct isthmus_machine *machine, const struct pt_regs *regs)
{
	asm volatile("stmxcsr %0" : "=m"(machine->mxcsr));
	asm volatile("mov %%cr0, %0" : "=r"(machine->cr0));
	asm volatile("mov %%cr4, %0" : "=r"(machine->cr4));
	machine->rip = regs->ip;
	machine->cpl = regs->cs & 3;
	machine->has_ymm = 0;
	machine->has_x87 = 0;
	machine->x87_status = 0;
	machine->random_valid = 0;
	machine->ordinary = 0; /* what every CPU has, this one has */
}

static __always_inline void go_on(struct pt_regs *regs, const struct isthmus_machine *machine,
				  u32 touched)
{
	if (unlikely(touched & ISTHMUS_WROTE_MXCSR))
		asm volatile("ldmxcsr %0" : : "m"(machine->mxcsr));
	regs->ip = machine->rip;
	/* RF was set by the fault so that the instruction could be tried again; it has been done. */
	regs->flags &= ~X86_EFLAGS_RF;
	this_cpu_inc(counters->traps);
}

static __always_inline struct isthmus_site *site_of(struct counters *mine, unsigned long ip)
{
	return &mine->sites[(ip ^ ip >> 6) & (SITES - 1)];
}

static __always_inline bool has_vex(const u8 *code)
{
	return code[0] == 0xc4 || code[0] == 0xc5 || code[0] == 0x8f;
}

/* The short way, for instructions that were met before and touch nothing but XMM registers: a third
 * of the work of the long one.  False if the first of them is not such a one. */
static bool again(struct counters *mine, struct window *window, bool from_user,
		  struct pt_regs *regs, unsigned int mode)
{
	struct isthmus_site *site = site_of(mine, regs->ip);
	struct isthmus_machine machine;
	struct isthmus_outcome outcome;
	const struct isthmus_memory memory = { .move = move }; /* never asked */
	unsigned int done = 0, xmm = 0, touched = 0;

	if (!site->lean || has_vex(window->code) || regs->flags & X86_EFLAGS_TF ||
	    !isthmus_knows(site, mode, window->code, window->available))
		return false;
	machine.mode = mode;
	take_control(&machine, regs);
	take_xmm(&machine);
	for (;;) {
		isthmus_again(site, &machine, &memory, &outcome);
		if (outcome.kind != ISTHMUS_DONE)
			break;
		mine->by_mnemonic[!!(outcome.mnemonic & ISTHMUS_VEX_FORM)][outcome.mnemonic & 0xffff]++;
		xmm |= outcome.xmm_written;
		touched |= outcome.touched;
		window->at += outcome.length;
		if (++done == MOST_IN_ONE_TRAP || !batch ||
		    !look_ahead(window, from_user, machine.rip))
			break;
		site = site_of(mine, machine.rip);
		if (!site->lean || has_vex(window->code + window->at) ||
		    !isthmus_knows(site, mode, window->code + window->at,
				   window->available - window->at))
			break;
	}
	if (!done)
		return false; /* it raises another exception: the long way tells */
	give_xmm(&machine, xmm);
	go_on(regs, &machine, touched);
	return true;
}

/* The long way: all registers, memory, faults. */
static int at_length(struct counters *mine, struct window *window, bool from_user,
		     struct pt_regs *regs, unsigned int mode)
{
	struct isthmus_machine machine;
	struct isthmus_outcome outcome;
	struct asker asker = { .user = from_user };
	const struct isthmus_memory memory = { .move = move, .context = &asker };
	struct isthmus_outcome all = { 0 };
	unsigned int done = 0, ymm = 0;

	machine.mode = mode;
	take_general(&machine, regs);
	take_control(&machine, regs);
	take_xmm(&machine);
	if (mode != 64)
		memset(machine.segment_base, 0, sizeof(machine.segment_base));
	do {
		const u8 *here = window->code + window->at;
		uint64_t next = machine.rip;

		take_the_rest(&machine, here, from_user);
		if (!machine.has_ymm && has_vex(here))
			machine.has_ymm = take_ymm(&machine);
		if (x87_coming(here) && !(all.touched & (ISTHMUS_WROTE_MMX | ISTHMUS_EMPTIED_MMX)))
			take_x87(&machine);
		if (mine->depth == 1)
			isthmus_learn(site_of(mine, next), &machine, here,
				      window->available - window->at, &memory, &outcome);
		else
			isthmus_execute(&machine, here, window->available - window->at, &memory,
					&outcome);
		if (outcome.kind != ISTHMUS_DONE)
			break;
		mine->by_mnemonic[!!(outcome.mnemonic & ISTHMUS_VEX_FORM)][outcome.mnemonic & 0xffff]++;
		all.gpr_written |= outcome.gpr_written;
		all.xmm_written |= outcome.xmm_written;
		ymm |= outcome.ymm_written;
		all.touched |= outcome.touched;
		all.mmx_written |= outcome.mmx_written;
		if (outcome.touched & (ISTHMUS_WROTE_MMX | ISTHMUS_EMPTIED_MMX))
			machine.has_x87 = 0; /* the tags are no longer those that were taken */
		window->at += outcome.length;
		if (++done == MOST_IN_ONE_TRAP || !batch || machine.rflags & X86_EFLAGS_TF ||
		    machine.rip != next + outcome.length || /* it jumped */
		    all.touched & (ISTHMUS_USED_TSC | ISTHMUS_USED_RANDOM | ISTHMUS_WROTE_X87))
			break;
	} while (look_ahead(window, from_user, machine.rip));
	if (!done && outcome.kind == ISTHMUS_FAULT) {
		if (!from_user || !leave_for_later(outcome.vector, outcome.error_code & X86_PF_WRITE,
						   outcome.address, regs->ip))
			return NOTIFY_DONE;
		if (outcome.touched & ISTHMUS_WROTE_MXCSR)
			asm volatile("ldmxcsr %0" : : "m"(machine.mxcsr));
		mine->faulted++;
		return NOTIFY_STOP;
	}
	if (!done) {
		if (outcome.kind == ISTHMUS_LACKS_STATE)
			mine->lacking++;
		return NOTIFY_DONE;
	}
	give_general(&machine, all.gpr_written, regs);
	if (unlikely(all.touched & (ISTHMUS_WROTE_MMX | ISTHMUS_EMPTIED_MMX | ISTHMUS_WROTE_X87)))
		give_x87(&machine, &all);
	give_xmm(&machine, all.xmm_written);
	give_ymm(&machine, ymm);
	regs->flags = machine.rflags;
	go_on(regs, &machine, all.touched);
	if (unlikely(machine.rflags & X86_EFLAGS_TF) && from_user)
		leave_for_later(X86_TRAP_DB, false, 0, regs->ip);
	return NOTIFY_STOP;
}

static int on_die(struct notifier_block *block, unsigned long kind, void *data)
{
	const struct die_args *args = data;
	struct pt_regs *regs = args->regs;
	struct counters *mine;
	struct window window;
	bool from_user;
	unsigned int mode;
	int answer;

	if (kind != DIE_TRAP || args->trapnr != X86_TRAP_UD)
		return NOTIFY_DONE;
	from_user = user_mode(regs);
	mode = mode_of(regs);
	if (!(from_user ? user : kernel) || !mode)
		return NOTIFY_DONE;
	mine = this_cpu_ptr(counters);
	window.at = 0;
	window.available = fetch(from_user, regs->ip, window.code);
	if (unlikely(!window.available)) {
		if (!from_user || !leave_for_later(X86_TRAP_PF, false, regs->ip, regs->ip))
			return NOTIFY_DONE;
		mine->paged++; /* the page went away since: fetch it, or SIGSEGV */
		return NOTIFY_STOP;
	}
	if (unlikely(!from_user) && has_vex(window.code) && within_module(regs->ip, THIS_MODULE))
		return NOTIFY_DONE; /* our own question whether this CPU has AVX */
	if (++mine->depth == 1 && again(mine, &window, from_user, regs, mode)) {
		mine->depth--;
		return NOTIFY_STOP;
	}
	answer = at_length(mine, &window, from_user, regs, mode);
	mine->depth--;
	if (answer == NOTIFY_DONE)
		mine->declined++;
	return answer;
}

/* After kprobes (INT_MAX), before everybody else. */
static struct notifier_block block = { .notifier_call = on_die, .priority = INT_MAX - 1 };

static u64 sum_of(size_t offset)
{
	u64 sum = 0;
	int cpu;

	for_each_possible_cpu(cpu)
		sum += *(u64 *)((u8 *)per_cpu_ptr(counters, cpu) + offset);
	return sum;
}

static int counters_show(struct seq_file *file, void *unused)
{
#define LINE(name) seq_printf(file, #name " %llu\n", sum_of(offsetof(struct counters, name)))
	LINE(traps);
	LINE(declined);
	LINE(faulted);
	LINE(paged);
	LINE(lacking);
#undef LINE
	for (u32 i = 0; i < 2 * ISTHMUS_MNEMONICS; i++) {
		u64 sum = sum_of(offsetof(struct counters, by_mnemonic) + i * sizeof(u64));
		u32 vex = i < ISTHMUS_MNEMONICS ? 0 : ISTHMUS_VEX_FORM;

		if (sum)
			seq_printf(file, "%s %llu\n",
				   isthmus_mnemonic_name(i % ISTHMUS_MNEMONICS | vex), sum);
	}
	return 0;
}
DEFINE_SHOW_ATTRIBUTE(counters);

static int __init begin(void)
{
	int failed;

	counters = alloc_percpu(struct counters);
	if (!counters)
		return -ENOMEM;
	folder = debugfs_create_dir("isthmus", NULL);
	debugfs_create_file("counters", 0400, folder, NULL, &counters_fops);
	failed = register_die_notifier(&block);
	if (failed) {
		debugfs_remove_recursive(folder);
		free_percpu(counters);
	}
	return failed;
}

static void __exit end(void)
{
	unregister_die_notifier(&block);
	/* Task work of ours must be done before our text goes. */
	while (atomic_read(&outstanding))
		schedule_timeout_uninterruptible(1);
	synchronize_rcu();
	debugfs_remove_recursive(folder);
	free_percpu(counters);
}

module_init(begin);
module_exit(end);
MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("Isthmus: instructions that this CPU lacks");
