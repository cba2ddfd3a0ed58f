/* SPDX-License-Identifier: GPL-2.0-only */
/* What an instruction of a program raises, left for a context that may sleep and send signals. */
#ifndef ISTHMUS_LATER_H
#define ISTHMUS_LATER_H

#include <linux/types.h>

struct raised {
	u32 vector, error_code, mxcsr;
	unsigned long address, ip;
};

/* Before the task returns to its program, its page is brought in, or it has its signal.  False if that
 * cannot be arranged. */
bool leave_for_later(const struct raised *raised);

/* Wait until nothing of this is left in any task: once nobody leaves anything more. */
void await_later(void);

#endif
