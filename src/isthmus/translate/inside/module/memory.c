// SPDX-License-Identifier: GPL-2.0-only
/* The core's memory callback.  A program's operand goes through the checks of every access to user
 * memory, so what it may not touch (the kernel's half above all) is a page fault of its own. */
#include <linux/mutex.h> /* which futex.h of 6.12 leans on */
#include <linux/futex.h>

#include "memory.h"

/* copy_to_kernel_nofault() is not exported; this is its loop. */
static long store_in_kernel(u8 *to, const u8 *from, u32 size)
{
#if BEFORE(5, 8)
	return probe_kernel_write(to, from, size);
#else
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
#endif
}

/* Whether the page's first bytes can be accessed as asked; nothing is changed. */
static bool reachable(int access, uint64_t page)
{
	u32 seen;
	bool reached;

	if (access != ISTHMUS_WRITE)
		return !copy_from_user_nofault(&seen, (void __user *)page, sizeof(seen));
	/* CMPXCHG asks for the right to write even where it finds another value. */
	pagefault_disable();
	reached = !futex_atomic_cmpxchg_inatomic(&seen, (u32 __user *)page, 0, 0);
	pagefault_enable();
	return reached;
}

int isthmus_move(void *context, int access, uint64_t address, uint8_t *bytes, uint32_t size,
		 uint64_t *fault_address, uint32_t *error_code)
{
	const struct asker *asker = context;
	long failed;

	*error_code = (access == ISTHMUS_WRITE ? X86_PF_WRITE : 0) | (asker->user ? X86_PF_USER : 0);
	if (asker->user && offset_in_page(address) + size > PAGE_SIZE) {
		/* Asked first: of a store that faults on its second page nothing is written. */
		uint64_t second = (address | ~PAGE_MASK) + 1;

		if (!reachable(access, second)) {
			u8 first;

			if (!copy_from_user_nofault(&first, (void __user *)address, 1))
				*fault_address = second;
			return ISTHMUS_PAGE_FAULT;
		}
	}
	if (access == ISTHMUS_WRITE)
		failed = asker->user ? copy_to_user_nofault((void __user *)address, bytes, size)
				     : store_in_kernel((u8 *)address, bytes, size);
	else
		failed = asker->user ? copy_from_user_nofault(bytes, (void __user *)address, size)
				     : copy_from_kernel_nofault(bytes, (void *)address, size);
	return failed ? ISTHMUS_PAGE_FAULT : ISTHMUS_OK;
}
