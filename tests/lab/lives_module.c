// SPDX-License-Identifier: GPL-2.0
/* Executes missing instructions in the kernel when it is loaded; see test_translate_lives_on.py. */
#include <linux/module.h>

static int __init lives_init(void)
{
	u64 count;
	u32 low, high, aux;

	asm volatile("popcntq %1, %0" : "=r"(count) : "r"(0xff00ff00ff00ff00) : "cc");
	asm volatile("rdtscp" : "=a"(low), "=d"(high), "=c"(aux));
	pr_emerg("lives module %s\n", count == 32 && (low | high) ? "ok" : "wrong");
	return 0;
}

module_init(lives_init);
MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("Executes instructions that the CPU lacks");
