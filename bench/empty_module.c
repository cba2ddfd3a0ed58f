// SPDX-License-Identifier: GPL-2.0-only
/* The cheapest #UD notifier there is: it skips the six bytes of bench/inside_traps.c's EXTRQ. */
#include <linux/kdebug.h>
#include <linux/module.h>
#include <linux/ptrace.h>
#include <asm/trapnr.h>

static int on_die(struct notifier_block *block, unsigned long kind, void *data)
{
	struct die_args *args = data;

	if (kind != DIE_TRAP || args->trapnr != X86_TRAP_UD || !user_mode(args->regs))
		return NOTIFY_DONE;
	args->regs->ip += 6;
	return NOTIFY_STOP;
}

static struct notifier_block block = { .notifier_call = on_die, .priority = INT_MAX - 1 };

static int __init begin(void)
{
	return register_die_notifier(&block);
}

static void __exit end(void)
{
	unregister_die_notifier(&block);
}

module_init(begin);
module_exit(end);
MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("Skip a missing instruction of six bytes");
