// SPDX-License-Identifier: GPL-2.0-only
/*
 * FISTTP as the translator's module does it.  QEMU's TCG executes FISTTP on every CPU model, so #UD is
 * raised before it by INT 6, whose return address is that of the instruction; only a kernel may do
 * that.  Each line has the result, the status word and the tags (FNSTENV).
 */
#include <linux/kernel.h>
#include <linux/module.h>
#include <asm/fpu/api.h>

struct environment {
	u32 control, status, tags, rest[4];
};

#define RUN(trap, load, store) \
	asm volatile("fninit\n fldcw %[control]\n" load "\n" trap "\n" store " %[result]\n" \
		     "fnstenv %[environment]\n fninit" \
		     : [result] "+m"(result), [environment] "=m"(environment) \
		     : [control] "m"(control), [number] "m"(number) : "memory")

#define TELL(name, value, load, store) do { \
	u8 number[16] = { 0 }; \
	struct environment environment; \
	u64 result = 0x5555555555555555; \
	memcpy(number, value, 10); \
	kernel_fpu_begin(); \
	RUN("int $6", load, store); \
	kernel_fpu_end(); \
	pr_emerg("x87 " name " %llx %x %x\n", result, environment.status & 0xffff, \
		 environment.tags & 0xffff); \
	} while (0)

static int __init begin(void)
{
	static const u8 nearly_four[10] = { 255, 255, 255, 255, 255, 255, 255, 255, 0, 0x40 };
	static const u8 infinite[10] = { 0, 0, 0, 0, 0, 0, 0, 0x80, 0xff, 0x7f };
	u16 control = 0x37f;

	TELL("inexact", nearly_four, "fldt %[number]", "fisttpll");
	TELL("short", nearly_four, "fldt %[number]", "fisttps");
	TELL("second", nearly_four, "fldt %[number]\n fldt %[number]", "fisttpl");
	TELL("invalid", infinite, "fldt %[number]", "fisttpll");
	TELL("empty", infinite, "", "fisttpll");
	control = 0x37e;
	TELL("unmasked", infinite, "fldt %[number]", "fisttpll");
	pr_emerg("x87 end\n");
	return -ENODEV;
}

module_init(begin);
MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("FISTTP behind an INT 6, for the lab");
