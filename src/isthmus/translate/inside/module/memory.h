/* SPDX-License-Identifier: GPL-2.0-only */
/* Code and operands, read and written where nothing may sleep or fault. */
#ifndef ISTHMUS_MEMORY_H
#define ISTHMUS_MEMORY_H

#include "kernels.h"
#include "machine.h"

enum { FETCHED = 16 }; /* bytes of code: the longest instruction has 15 */

/* Whose memory it is: the context of isthmus_move. */
struct asker {
	bool user;
};

int isthmus_move(void *context, int access, uint64_t address, uint8_t *bytes, uint32_t size,
		 uint64_t *fault_address, uint32_t *error_code);

/* `count` bytes of code, all of one page. */
static inline bool fetch(bool from_user, unsigned long ip, u8 *code, size_t count)
{
	return !(from_user ? copy_from_user_nofault(code, (void __user *)ip, count)
			   : copy_from_kernel_nofault(code, (void *)ip, count));
}

/* Up to the page's end: the CPU looks at the next one for bytes that it needs, and so do we. */
static inline size_t in_page(unsigned long ip)
{
	return min_t(size_t, FETCHED, PAGE_SIZE - offset_in_page(ip));
}

/* Whether `ip` is in the half of programs or of the kernel that it has to be in, and the FETCHED bytes
 * there are these.  Inline: a call to fetch() takes as long as all of a short instruction's work. */
static __always_inline bool same_code(bool from_user, unsigned long ip, const u64 *bytes)
{
	u64 low, high;

	if (offset_in_page(ip) > PAGE_SIZE - FETCHED)
		return false;
	if (from_user) {
		const u64 __user *code = (const u64 __user *)ip;

		pagefault_disable();
		if (!begin_user_access(code, FETCHED))
			goto gone;
		unsafe_get_user(low, code, gone_user);
		unsafe_get_user(high, code + 1, gone_user);
		user_access_end();
	} else {
		if ((long)ip >= 0)
			return false;
		pagefault_disable();
#if BEFORE(5, 8)
		if (probe_kernel_read(&low, (u64 *)ip, 8) || probe_kernel_read(&high, (u64 *)ip + 1, 8))
			goto gone;
#else
		__get_kernel_nofault(&low, (u64 *)ip, u64, gone);
		__get_kernel_nofault(&high, (u64 *)ip + 1, u64, gone);
#endif
	}
	pagefault_enable();
	return low == bytes[0] && high == bytes[1];
gone_user:
	user_access_end();
gone:
	pagefault_enable();
	return false;
}

#endif
