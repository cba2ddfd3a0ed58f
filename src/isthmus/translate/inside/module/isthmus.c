// SPDX-License-Identifier: GPL-2.0-only
/*
 * The placement inside a guest: a #UD of this kernel or of its programs is offered to the emulation
 * core before it becomes a SIGILL or an oops.
 *
 * #UD reaches a die notifier for user and kernel alike, with interrupts off and before anything else
 * is done (arch/x86/kernel/traps.c, do_error_trap; BUG and WARN are taken out before, handle_bug).
 * The notifier may neither sleep nor fault: what needs that is left to task work (later.c).
 *
 * There are two ways.  An instruction that was met before and touches registers only is run again from
 * what was decoded then, with no call but to its own function; its bytes are compared each time.
 * Everything else goes the long way.
 *
 * Nothing here reads a clock by the kernel's own functions: they may contain the very instruction.
 */
#include <linux/debugfs.h>
#include <linux/kdebug.h>
#include <linux/kernel.h>
#include <linux/module.h>
#include <linux/notifier.h>
#include <linux/percpu.h>
#include <linux/random.h>
#include <linux/seq_file.h>
#include <asm/segment.h>

#include "kernels.h"
#include "later.h"
#include "memory.h"
#include "registers.h"
#include "site.h"
#include "task_work.h"

enum { MOST_IN_ONE_TRAP = 32, SITES = 64, DOUBTS = 8 };

static bool user = true, kernel = true, batch = true;
module_param(user, bool, 0644);
MODULE_PARM_DESC(user, "translate for programs");
module_param(kernel, bool, 0644);
MODULE_PARM_DESC(kernel, "translate for the kernel itself");
module_param(batch, bool, 0644);
MODULE_PARM_DESC(batch, "translate a run of missing instructions in one trap");

/* What a decoded instruction needs of the registers. */
enum wants { XMM_LOW = 1, XMM_HIGH = 2, YMM = 4, GENERAL = 8, CLOCK = 16 };

/* A decoded instruction. */
struct site {
	u64 bytes[2];  /* all FETCHED ones, those behind it as well */
	u64 *count;    /* of its mnemonic */
	u16 segment;   /* the code segment it was met in; 0: nothing is kept here */
	u8 mode;
	u8 wants;
	bool followed; /* what stands behind it may be missing, too */
	struct instruction decoded;
};

/* What each CPU has of its own: counters, and the instructions that it met lately. */
struct counters {
	u64 traps, declined, faulted, paged, lacking;
	u64 by_mnemonic[2][ISTHMUS_MNEMONICS]; /* plain, and by VEX */
	u32 depth; /* of traps in traps: the kernel functions used here may lack instructions, too */
	struct {
		const struct task_struct *task;
		unsigned long ip;
		u8 code[FETCHED];
		u32 times;
	} doubted; /* what was last seen that is not ours */
	struct site sites[SITES];
};
static struct counters __percpu *counters;
static struct dentry *folder;

static __always_inline struct site *site_of(struct counters *mine, unsigned long ip)
{
	struct site *site = &mine->sites[(ip ^ ip >> 6) % SITES];

	OPTIMIZER_HIDE_VAR(site); /* else it is computed anew at each use */
	return site;
}

static __always_inline u64 *count_of(struct counters *mine, u32 mnemonic)
{
	return &mine->by_mnemonic[!!(mnemonic & ISTHMUS_VEX_FORM)][mnemonic & 0xffff];
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

/* 64, 32, or 0 for a code segment of the program's own making (a local table's). */
static unsigned int mode_of(const struct pt_regs *regs)
{
	u16 data, extra;

	if (regs->cs == __USER_CS || regs->cs == __KERNEL_CS)
		return 64;
	if (regs->cs != __USER32_CS)
		return 0;
	/* Nor are bases of other segments known than those of FS and GS. */
	savesegment(ds, data);
	savesegment(es, extra);
	return regs->ss == __USER_DS && data == __USER_DS && extra == __USER_DS ? 32 : 0;
}

static __always_inline bool has_vex(const u8 *code)
{
	return code[0] == 0xc4 || code[0] == 0xc5 || code[0] == 0x8f;
}

static bool is_prefix(u8 byte)
{
	return (byte & 0xe7) == 0x26 || (byte & 0xfc) == 0x64 || byte == 0xf0 || byte == 0xf2 ||
	       byte == 0xf3 || (byte & 0xf0) == 0x40;
}

/* What only some instructions ask for, found by their prefixes and opcode. */
static void take_the_rest(struct isthmus_machine *machine, const u8 *code, bool from_user)
{
	unsigned int at = 0;

	for (; at < FETCHED - 2 && is_prefix(code[at]); at++)
		if (code[at] == 0x64)
			rdmsrq(MSR_FS_BASE, machine->segment_base[ISTHMUS_FS]);
		else if (code[at] == 0x65) /* the program's, while the kernel has its own in place */
			rdmsrq(from_user ? MSR_KERNEL_GS_BASE : MSR_GS_BASE,
			       machine->segment_base[ISTHMUS_GS]);
	if (code[at] != 0x0f || (code[at + 1] != 0x01 && code[at + 1] != 0xc7))
		return;
	take_clock(machine);
	/* Not for the kernel: it may be the random generator itself that asks, with its locks held.  It
	 * takes "none now" for an answer. */
	if (code[at + 1] == 0xc7 && from_user) {
		get_random_bytes(&machine->random, sizeof(machine->random));
		machine->random_valid = 1;
	}
}

/* Keep what isthmus_learn() decoded and did. */
static void keep(struct counters *mine, struct site *site, const struct pt_regs *regs,
		 const struct isthmus_machine *machine, const u8 *code,
		 const struct isthmus_outcome *outcome)
{
	const struct instruction *insn = &site->decoded;

	memcpy(site->bytes, code, FETCHED);
	site->count = count_of(mine, outcome->mnemonic);
	site->mode = machine->mode;
	site->wants = 0;
	if (insn->lean & LEAN_XMM)
		site->wants |= XMM_LOW;
	if (insn->lean & LEAN_XMM && (insn->lean & LEAN_YMM || (insn->reg | insn->rm) & 8))
		site->wants |= XMM_HIGH;
	if (insn->lean & LEAN_YMM)
		site->wants |= YMM;
	if (insn->lean & LEAN_GENERAL)
		site->wants |= GENERAL;
	if (insn->lean & LEAN_CLOCK)
		site->wants |= CLOCK;
	site->followed = promising(code + outcome->length);
	site->segment = regs->cs;
}

/* The short way, for one instruction.  False if it has to go the long one; nothing is changed then. */
static __always_inline bool again(struct counters *mine, struct pt_regs *regs, struct site *site)
{
	struct isthmus_machine machine;
	struct isthmus_outcome outcome;
	unsigned long ip = regs->ip;

	if (site->segment != regs->cs || regs->flags & X86_EFLAGS_TF ||
	    !same_code(user_mode(regs), ip, site->bytes))
		return false;
	machine.mode = site->mode;
	machine.rip = ip;
	take_control_registers(&machine);
	if (site->wants & XMM_LOW)
		take_xmm_low(&machine);
	if (unlikely(site->wants != XMM_LOW)) {
		machine.cpl = regs->cs & 3;
		if (site->wants & XMM_HIGH)
			take_xmm_high(&machine);
		machine.has_ymm = site->wants & YMM && take_ymm(&machine);
		if (site->wants & GENERAL)
			take_general(&machine, regs);
		if (site->wants & CLOCK)
			take_clock(&machine);
	}
	isthmus_again(&site->decoded, &machine, &outcome);
	if (outcome.kind != ISTHMUS_DONE)
		return false; /* it raises another exception: the long way tells */
	if (site->wants & XMM_LOW)
		give_xmm_low(&machine);
	if (unlikely(site->wants != XMM_LOW)) {
		if (site->wants & XMM_HIGH)
			give_xmm_high(&machine);
		if (site->wants & YMM)
			give_ymm(&machine);
		if (site->wants & GENERAL) {
			give_general(&machine, outcome.gpr_written, regs);
			regs->flags = machine.rflags;
		}
	}
	regs->ip = machine.rip;
	/* RF was set by the fault so that the instruction could be tried again; it has been done. */
	regs->flags &= ~X86_EFLAGS_RF;
	++*site->count;
	return true;
}

/* What follows in a run of missing instructions, as far as the short way leads. */
static noinline void go_on(struct counters *mine, struct pt_regs *regs)
{
	for (unsigned int done = 1; done < MOST_IN_ONE_TRAP; done++) {
		struct site *site = site_of(mine, regs->ip);

		if (!again(mine, regs, site) || !site->followed)
			break;
	}
}

/* Whether what the instruction raises was left to task work.  The kernel has no such thing. */
static bool put_off(struct pt_regs *regs, const struct isthmus_machine *machine, u32 vector,
		    u32 error_code, unsigned long address)
{
	const struct raised raised = {
		.vector = vector, .error_code = error_code, .mxcsr = machine->mxcsr,
		.address = address, .ip = regs->ip,
	};

	return user_mode(regs) && leave_for_later(&raised);
}

/* Whether a #UD of a program that is not ours is to be believed.  Another thread may have changed the code
 * since, and what is there now the CPU may well execute: it tries again.  Only UD0, UD1 and UD2 leave no
 * doubt (Intel SDM vol. 2B). */
static bool believed(struct counters *mine, unsigned long ip, const u8 *code)
{
	if (code[0] == 0x0f && (code[1] == 0x0b || code[1] == 0xb9 || code[1] == 0xff))
		return true;
	if (mine->doubted.task != current || mine->doubted.ip != ip ||
	    memcmp(mine->doubted.code, code, FETCHED)) {
		mine->doubted.task = current;
		mine->doubted.ip = ip;
		mine->doubted.times = 0;
		memcpy(mine->doubted.code, code, FETCHED);
	}
	return ++mine->doubted.times >= DOUBTS;
}

/* The long way: all registers, memory, faults. */
static noinline int at_length(struct counters *mine, struct pt_regs *regs, unsigned int mode)
{
	struct isthmus_machine machine;
	struct isthmus_outcome outcome, all = { 0 };
	bool from_user = user_mode(regs);
	struct asker asker = { .user = from_user };
	const struct isthmus_memory memory = { .move = isthmus_move, .context = &asker };
	size_t available = in_page(regs->ip);
	u8 code[FETCHED + 2] = { 0 }; /* promising() looks at two bytes more */
	unsigned long missing = regs->ip; /* the first byte of code that is not there */
	unsigned int done = 0;

	machine.mode = mode;
	machine.cpl = regs->cs & 3;
	machine.rip = regs->ip;
	machine.rflags = regs->flags;
	machine.has_ymm = machine.has_x87 = machine.random_valid = 0;
	machine.x87_status = 0;
	machine.ordinary = 0; /* what every CPU has, this one has */
	memset(machine.segment_base, 0, sizeof(machine.segment_base));
	take_general(&machine, regs);
	take_control_registers(&machine);
	asm volatile("stmxcsr %0" : "=m"(machine.mxcsr));
	take_xmm_low(&machine);
	take_xmm_high(&machine);
	if (!fetch(from_user, regs->ip, code, available))
		goto gone;
	if (!from_user && has_vex(code) && within_module(regs->ip, THIS_MODULE))
		return NOTIFY_DONE; /* our own question whether this CPU has AVX */
	for (;;) {
		unsigned long next = machine.rip;
		struct site *site = site_of(mine, next);

		take_the_rest(&machine, code, from_user);
		if (!machine.has_ymm && has_vex(code))
			machine.has_ymm = take_ymm(&machine);
		if (x87_coming(code) && !(all.touched & (ISTHMUS_WROTE_MMX | ISTHMUS_EMPTIED_MMX)))
			take_x87(&machine);
		if (mine->depth == 1) { /* else it may be in use below us */
			site->segment = 0;
			if (isthmus_learn(&site->decoded, &machine, code, available, &memory, &outcome) &&
			    outcome.kind == ISTHMUS_DONE && available == FETCHED)
				keep(mine, site, regs, &machine, code, &outcome);
		} else {
			isthmus_execute(&machine, code, available, &memory, &outcome);
		}
		if (outcome.kind == ISTHMUS_MORE_BYTES && available < FETCHED) {
			/* The CPU has seen the page behind, or has not needed it to be sure of #UD. */
			if (fetch(from_user, next + available, code + available, FETCHED - available)) {
				available = FETCHED;
				continue;
			}
			missing = next + available;
			if (!done)
				goto gone;
		}
		if (outcome.kind != ISTHMUS_DONE)
			break;
		++*count_of(mine, outcome.mnemonic);
		all.gpr_written |= outcome.gpr_written;
		all.xmm_written |= outcome.xmm_written;
		all.ymm_written |= outcome.ymm_written;
		all.mmx_written |= outcome.mmx_written;
		all.touched |= outcome.touched;
		if (outcome.touched & (ISTHMUS_WROTE_MMX | ISTHMUS_EMPTIED_MMX))
			machine.has_x87 = 0; /* the tags are no longer those that were taken */
		if (++done == MOST_IN_ONE_TRAP || !batch || machine.rflags & X86_EFLAGS_TF ||
		    machine.rip != next + outcome.length || /* it jumped */
		    all.touched & (ISTHMUS_USED_TSC | ISTHMUS_USED_RANDOM | ISTHMUS_WROTE_X87) ||
		    (outcome.length < available && !promising(code + outcome.length)))
			break;
		available = in_page(machine.rip);
		if (!fetch(from_user, machine.rip, code, available) || !promising(code))
			break;
	}
	if (!done && outcome.kind == ISTHMUS_FAULT) {
		if (!put_off(regs, &machine, outcome.vector, outcome.error_code, outcome.address))
			return NOTIFY_DONE;
		if (outcome.touched & ISTHMUS_WROTE_MXCSR)
			asm volatile("ldmxcsr %0" : : "m"(machine.mxcsr));
		mine->faulted++;
		return NOTIFY_STOP;
	}
	if (!done) {
		if (outcome.kind == ISTHMUS_LACKS_STATE)
			mine->lacking++;
		return !from_user || believed(mine, regs->ip, code) ? NOTIFY_DONE : NOTIFY_STOP;
	}
	give_general(&machine, all.gpr_written, regs);
	if (unlikely(all.touched & (ISTHMUS_WROTE_MMX | ISTHMUS_EMPTIED_MMX | ISTHMUS_WROTE_X87)))
		give_x87(&machine, &all);
	if (all.xmm_written) {
		give_xmm_low(&machine);
		give_xmm_high(&machine);
	}
	if (all.ymm_written)
		give_ymm(&machine);
	if (unlikely(all.touched & ISTHMUS_WROTE_MXCSR))
		asm volatile("ldmxcsr %0" : : "m"(machine.mxcsr));
	regs->ip = machine.rip;
	regs->flags = machine.rflags & ~X86_EFLAGS_RF;
	mine->traps++;
	if (unlikely(machine.rflags & X86_EFLAGS_TF))
		put_off(regs, &machine, X86_TRAP_DB, 0, 0);
	return NOTIFY_STOP;
gone:
	/* Code that is not there (any more): it is fetched, or the program has its page fault. */
	if (!put_off(regs, &machine, X86_TRAP_PF, X86_PF_USER | X86_PF_INSTR, missing))
		return NOTIFY_DONE;
	mine->paged++;
	return NOTIFY_STOP;
}

static int on_die(struct notifier_block *block, unsigned long kind, void *data)
{
	const struct die_args *args = data;
	struct pt_regs *regs = args->regs;
	struct counters *mine;
	struct site *site;
	unsigned int mode;
	int answer = NOTIFY_DONE;

	if (kind != DIE_TRAP || args->trapnr != X86_TRAP_UD || !(user_mode(regs) ? user : kernel))
		return NOTIFY_DONE;
	mine = this_cpu_ptr(counters);
	site = site_of(mine, regs->ip);
	if (likely(++mine->depth == 1) && again(mine, regs, site)) {
		if (unlikely(site->followed) && batch)
			go_on(mine, regs);
		mine->traps++;
		mine->depth--;
		return NOTIFY_STOP;
	}
	mode = mode_of(regs);
	if (mode)
		answer = at_length(mine, regs, mode);
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
	int failed = find_task_work();

	if (failed)
		return failed;
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
	await_later(); /* task work of ours must be done before our text goes */
	debugfs_remove_recursive(folder);
	free_percpu(counters);
}

module_init(begin);
module_exit(end);
MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("Isthmus: instructions that this CPU lacks");
