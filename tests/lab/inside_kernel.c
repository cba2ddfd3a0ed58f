// SPDX-License-Identifier: GPL-2.0-only
/* Missing instructions in the kernel's own text: with interrupts on and off, in an interrupt, beside
 * kernel_fpu_begin(), with an operand that is not there.  Loaded by test_inside_hostile.py. */
#include <linux/kernel.h>
#include <linux/module.h>
#include <linux/smp.h>
#include <asm/fpu/api.h>
#include <asm/asm.h>

static u64 memory = 0x0102030405060708;
static atomic_t wrong = ATOMIC_INIT(0);

static u32 ones(u64 of)
{
	u32 count;

	asm volatile(".byte 0xf3,0x48,0x0f,0xb8,0xc1" : "=a"(count) : "c"(of) : "cc");
	return count;
}

static u64 swapped(const void *from)
{
	u64 value;

	asm volatile(".byte 0x48,0x0f,0x38,0xf0,0x07" : "=a"(value) : "D"(from) : "memory");
	return value;
}

static void store(void *to, u64 value)
{
	asm volatile(".byte 0x48,0x0f,0x38,0xf1,0x37" : : "D"(to), "S"(value) : "memory");
}

static bool readable(const void *from)
{
	asm goto("1: .byte 0x48,0x0f,0x38,0xf0,0x07\n" _ASM_EXTABLE(1b, %l[gone])
		 : : "D"(from) : "rax", "memory" : gone);
	return true;
gone:
	return false;
}

static void on_each(void *unused)
{
	if (ones(0xff) != 8 || swapped(&memory) != 0x0807060504030201)
		atomic_inc(&wrong);
}

static void tell(const char *name, u64 value)
{
	pr_emerg("case kernel-%s: %llx\n", name, value);
}

static int __init begin(void)
{
	unsigned long flags;
	u64 count, low;

	tell("popcnt", ones(0xf0f0));
	local_irq_save(flags);
	count = 0;
	for (unsigned int i = 0; i < 1000; i++)
		count += ones(i) + (swapped(&memory) & 1);
	local_irq_restore(flags);
	tell("interrupts-off", count);
	store(&memory, 0x1122334455667788);
	tell("store", memory);
	store(&memory, 0x0807060504030201);
	kernel_fpu_begin();
	/* MOVNTSD: EXTRQ the kernel's objtool does not know, and then it leaves the return thunks as they are */
	asm volatile("movq %1, %%xmm0; .byte 0xf2,0x0f,0x2b,0x07"
		     : : "D"(&low), "r"(0x123456789abcdef0) : "memory");
	kernel_fpu_end();
	tell("vector", low);
	tell("readable", readable(&memory));
	tell("unreadable", readable((void *)0xffffffffffffe000));
	tell("not-canonical", readable((void *)0x8000000000000000));
	for (unsigned int i = 0; i < 100; i++)
		on_each_cpu(on_each, NULL, 1);
	tell("in-interrupts", atomic_read(&wrong));
	WARN(1, "case kernel-warning: told\n");
	return 0;
}

static void __exit end(void)
{
}

module_init(begin);
module_exit(end);
MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("Missing instructions in kernel text");
