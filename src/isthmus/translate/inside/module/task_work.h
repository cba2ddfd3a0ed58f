/* SPDX-License-Identifier: GPL-2.0-only */
/* Work of a task's own, done before it returns to its program.
 *
 * Debian and Ubuntu export task_work_add(); Linux itself does not.  Elsewhere it is found as a probe
 * would find it, once, when the module is loaded. */
#ifndef ISTHMUS_TASK_WORK_H
#define ISTHMUS_TASK_WORK_H

#include "kernels.h"

/* For the running task.  An error number if it cannot be added. */
int add_task_work(struct callback_head *work);

/* An error number if this kernel lets nobody add any. */
int find_task_work(void);

#endif
