// SPDX-License-Identifier: GPL-2.0-only
#include "task_work.h"

#ifdef TASK_WORK_IS_EXPORTED

int add_task_work(struct callback_head *work)
{
	return task_work_add(current, work, TWA_RESUME);
}

int find_task_work(void)
{
	return 0;
}

#else
#include <linux/irqflags.h>
#include <linux/kprobes.h>
#include <asm/cpufeature.h>

static typeof(&task_work_add) found;

int find_task_work(void)
{
	struct kprobe probe = { .symbol_name = "task_work_add" };
	int failed = register_kprobe(&probe);

	if (failed) {
		pr_err("isthmus: this kernel neither exports task_work_add nor lets it be probed (%d)\n",
		       failed);
		return failed;
	}
	found = (typeof(found))probe.addr;
	unregister_kprobe(&probe);
	return 0;
}

int add_task_work(struct callback_head *work)
{
	int failed;
#ifdef CONFIG_X86_KERNEL_IBT
	/* Nobody was meant to call it by address: its ENDBR64 may have been taken away, or the probe's
	 * address lies behind it (Linux: arch/x86/kernel/kprobes/core.c, arch_adjust_kprobe_addr). */
	bool tracked = boot_cpu_has(X86_FEATURE_IBT);
	unsigned long flags;
	u64 control = 0;

	local_irq_save(flags);
	if (tracked) {
		rdmsrq(MSR_IA32_S_CET, control);
		wrmsrq(MSR_IA32_S_CET, control & ~CET_ENDBR_EN);
	}
#endif
	failed = found(current, work, TWA_RESUME);
#ifdef CONFIG_X86_KERNEL_IBT
	if (tracked)
		wrmsrq(MSR_IA32_S_CET, control);
	local_irq_restore(flags);
#endif
	return failed;
}

#endif
