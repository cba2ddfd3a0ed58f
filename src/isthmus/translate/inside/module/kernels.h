/* SPDX-License-Identifier: GPL-2.0-only */
/* What kernels of other versions call otherwise: the names here are Linux 6.1's.  Mainline's history; a
 * distribution that has taken later changes into an old version may need more. */
#ifndef ISTHMUS_KERNELS_H
#define ISTHMUS_KERNELS_H

#include <linux/mm.h>
#include <linux/pagemap.h>
#include <linux/sched.h>
#include <linux/sched/signal.h>
#include <linux/task_work.h>
#include <linux/uaccess.h>
#include <linux/version.h>
#include <asm/debugreg.h>
#include <asm/futex.h>
#include <asm/msr.h>

#define BEFORE(major, minor) (LINUX_VERSION_CODE < KERNEL_VERSION(major, minor, 0))

#if BEFORE(4, 20)
#define kernel_siginfo siginfo
#endif

#if BEFORE(5, 0)
#define begin_user_access(address, size)                                         \
	(access_ok(VERIFY_READ, address, size) ? (user_access_begin(), true) : false)
#define may_access(address, size) access_ok(VERIFY_WRITE, address, size)
#else
#define begin_user_access(address, size) user_access_begin(address, size)
#define may_access(address, size) access_ok(address, size)
#endif

#if BEFORE(5, 8)
#include <asm/traps.h>

#define mmap_read_lock_killable(map) down_read_killable(&(map)->mmap_sem)
#define mmap_read_unlock(map) up_read(&(map)->mmap_sem)
#define copy_from_kernel_nofault probe_kernel_read

static inline long from_user_nofault(void *to, const void __user *from, size_t size)
{
	long left = size;

	pagefault_disable();
	if (may_access(from, size))
		left = __copy_from_user_inatomic(to, from, size);
	pagefault_enable();
	return left ? -EFAULT : 0;
}
#define copy_from_user_nofault from_user_nofault

static inline long to_user_nofault(void __user *to, const void *from, size_t size)
{
	long left = size;

	pagefault_disable();
	if (may_access(to, size))
		left = __copy_to_user_inatomic(to, from, size);
	pagefault_enable();
	return left ? -EFAULT : 0;
}
#define copy_to_user_nofault to_user_nofault
#else
#include <asm/trap_pf.h>
#include <asm/trapnr.h>
#endif

/* 5.8 and 5.9 have it as a macro, later ones in an enum. */
#if BEFORE(5, 10) && !defined(TWA_RESUME)
#define TWA_RESUME true
#endif

#if BEFORE(6, 16)
#define rdmsrq rdmsrl
#define wrmsrq wrmsrl
#endif

static inline void force_signal(int number)
{
#if BEFORE(5, 3)
	force_sig(number, current);
#else
	force_sig(number);
#endif
}

/* A single step happened: what a debugger finds in DR6. */
static inline void note_step(void)
{
#if BEFORE(5, 10)
	current->thread.debugreg6 |= DR_STEP;
#else
	current->thread.virtual_dr6 |= DR_STEP;
#endif
}

/* Have a page of the running program's brought in, with its mappings locked; an error number if it
 * cannot be had. */
static inline int bring_in(unsigned long address, bool writes)
{
	unsigned int flags = writes ? FAULT_FLAG_WRITE : 0;

#if BEFORE(5, 9)
	return fixup_user_fault(current, current->mm, address, flags, NULL);
#else
	return fixup_user_fault(current->mm, address, flags, NULL);
#endif
}

/* Access a byte of the running program's as it would, changing nothing.  False if it may not. */
static inline bool touch(unsigned long address, bool writes)
{
#if BEFORE(5, 16)
	char seen;
	u32 word;

	/* fault_in_pages_writeable() of these writes a zero. */
	return writes ? !futex_atomic_cmpxchg_inatomic(&word, (u32 __user *)(address & ~3UL), 0, 0)
		      : !get_user(seen, (char __user *)address);
#else
	return !(writes ? fault_in_safe_writeable((char __user *)address, 1)
			: fault_in_readable((char __user *)address, 1));
#endif
}

#endif
