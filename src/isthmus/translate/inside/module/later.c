// SPDX-License-Identifier: GPL-2.0-only
/* Task work: it runs before the task returns to its program.
 *
 * Signals are those that arch/x86/kernel/traps.c and arch/x86/mm/fault.c send for the same exceptions. */
#include <linux/mutex.h> /* which futex.h of 6.12 leans on */
#include <linux/futex.h>
#include <linux/rcupdate.h>
#include <linux/slab.h>

#include "kernels.h"
#include "later.h"
#include "task_work.h"

struct later {
	struct callback_head work;
	struct raised raised;
};

static atomic_t outstanding = ATOMIC_INIT(0);

static void signal_task(int number, int code, unsigned long address)
{
	struct kernel_siginfo information;

	clear_siginfo(&information);
	information.si_signo = number;
	information.si_code = code;
	information.si_addr = (void __user *)address;
	/* A fault's signal cannot be put off: a program that blocks or ignores it dies. */
	if (sigismember(&current->blocked, number) ||
	    current->sighand->action[number - 1].sa.sa_handler == SIG_IGN)
		force_signal(number);
	else
		send_sig_info(number, &information, current);
}

/* As fpu__exception_code(), which is not exported: the first exception that is flagged and not masked. */
static int floating_code(u32 mxcsr)
{
	u32 raised = mxcsr & ~(mxcsr >> 7);

	if (raised & 0x01)
		return FPE_FLTINV;
	if (raised & 0x04)
		return FPE_FLTDIV;
	if (raised & 0x08)
		return FPE_FLTOVF;
	if (raised & 0x12) /* denormal, underflow */
		return FPE_FLTUND;
	return FPE_FLTRES;
}

/* The signal for a page that cannot be had: no mapping there, one that forbids it, or one that has nothing
 * there (a file that is shorter).  None if it can be had by now: mappings change while others look. */
static bool signal_page(const struct raised *raised)
{
	bool writes = raised->error_code & X86_PF_WRITE;
	unsigned long address = raised->address;
	struct vm_area_struct *area;
	int failed, number = SIGSEGV, code = SEGV_MAPERR;

	if (mmap_read_lock_killable(current->mm))
		return false;
	failed = bring_in(address, writes);
	area = find_vma(current->mm, address);
	if (area && area->vm_start <= address) {
		code = SEGV_ACCERR;
		if (area->vm_flags & (writes ? VM_WRITE : VM_READ))
			number = SIGBUS, code = BUS_ADRERR;
	}
	mmap_read_unlock(current->mm);
	if (!failed || failed == -ENOMEM)
		return false;
	current->thread.cr2 = address;
	signal_task(number, code, address);
	return true;
}

static void do_later(struct callback_head *work)
{
	struct later *later = container_of(work, struct later, work);
	const struct raised *raised = &later->raised;

	if (raised->vector == X86_TRAP_PF &&
	    (touch(raised->address, raised->error_code & X86_PF_WRITE) || !signal_page(raised)))
		goto done; /* the instruction comes again, and finds its page */
	/* What a handler is told in its context (sigcontext: trapno, err). */
	current->thread.trap_nr = raised->vector;
	current->thread.error_code = raised->error_code;
	switch (raised->vector) {
	case X86_TRAP_PF:
		break;
	case X86_TRAP_AC:
		signal_task(SIGBUS, BUS_ADRALN, 0);
		break;
	case X86_TRAP_SS:
		signal_task(SIGBUS, SI_KERNEL, 0);
		break;
	case X86_TRAP_XF:
	case X86_TRAP_MF:
		signal_task(SIGFPE, floating_code(raised->mxcsr), raised->ip);
		break;
	case X86_TRAP_DB:
		note_step();
		signal_task(SIGTRAP, TRAP_TRACE, raised->ip);
		break;
	default: /* #GP */
		signal_task(SIGSEGV, SI_KERNEL, 0);
	}
done:
	kfree(later);
	atomic_dec(&outstanding);
}

bool leave_for_later(const struct raised *raised)
{
	struct later *later = kmalloc(sizeof(*later), GFP_ATOMIC);

	if (!later)
		return false;
	later->raised = *raised;
	init_task_work(&later->work, do_later);
	atomic_inc(&outstanding);
	if (add_task_work(&later->work)) {
		atomic_dec(&outstanding);
		kfree(later);
		return false;
	}
	return true;
}

void await_later(void)
{
	while (atomic_read(&outstanding))
		schedule_timeout_uninterruptible(1);
	/* One that has counted itself out may still be before its return.  In a kernel that is never
	 * preempted it is through when each CPU has been elsewhere (in Linux 5.4 the other call waits there
	 * for as long as any program computes).  Else it may have been preempted there; it does not sleep
	 * any more, and that waits until every task has slept or gone back to its program. */
	if (IS_ENABLED(CONFIG_PREEMPTION) || IS_ENABLED(CONFIG_PREEMPT))
		synchronize_rcu_tasks();
	else
		synchronize_rcu();
}
