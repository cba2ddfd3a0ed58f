/* Signals that the program gets from us, as the kernel would deliver them (arch/x86/kernel/signal_64.c):
 * on the stack and with the mask that its action asks for, the context being the program's own.
 *
 * The frame that the kernel made for our SIGILL is the frame that the program's handler needs: it only
 * has to be entered with it.  It is moved if the kernel put it on an alternate stack and the program's
 * action asks for none. */
#include "process.h"

#include <errno.h>
#include <string.h>

enum { TO_CONTEXT = 8, TO_INFORMATION = 312, FRAME = 440, RED_ZONE = 128 };
enum { DF = 0x400, AC = 0x40000, RESTORER = 0x04000000 };

static void set_default(int number)
{
    struct action standard = {0};
    RAW(SYS_rt_sigaction, number, &standard, 0, 8, 0, 0);
}

static void open_in(ucontext_t *context, int number)
{
    uint64_t mask;
    memcpy(&mask, &context->uc_sigmask, 8);
    mask &= ~bit_of(number);
    memcpy(&context->uc_sigmask, &mask, 8);
}

/* The end that no handler hinders: it comes as our own handler returns. */
static void die(int number, siginfo_t *information, ucontext_t *context)
{
    set_default(number);
    open_in(context, number);
    RAW(SYS_rt_tgsigqueueinfo, RAW(SYS_getpid, 0, 0, 0, 0, 0, 0),
        RAW(SYS_gettid, 0, 0, 0, 0, 0, 0), number, information, 0, 0);
}

/* Whether the kernel left the program's stack for an alternate one that the action does not want. */
static bool misplaced(const struct action *action, const ucontext_t *context)
{
    const stack_t *stack = &context->uc_stack;
    uint64_t sp = (uint64_t)context->uc_mcontext.gregs[REG_RSP], base = (uint64_t)stack->ss_sp;
    if (!stack->ss_size || (sp > base && sp - base <= stack->ss_size))
        return false;
    const struct lent *lent = lent_at(stack);
    return !(action->flags & SA_ONSTACK) || (lent && lent->theirs.ss_flags & SS_DISABLE);
}

/* The frame anew, below the program's own stack pointer; 0 if there is no room. */
static uint64_t moved_frame(const ucontext_t *context)
{
    const struct frame *registers = (const struct frame *)context->uc_mcontext.fpregs;
    size_t size = registers->magic1 == MAGIC1 ? registers->size : 512;
    uint64_t sp = (uint64_t)context->uc_mcontext.gregs[REG_RSP] - RED_ZONE;
    uint64_t area = (sp - size) & ~UINT64_C(63), frame = ((area - FRAME) & ~UINT64_C(15)) - 8;
    uint8_t copy[FRAME];
    memcpy(copy, (const uint8_t *)context - TO_CONTEXT, FRAME);
    memcpy(copy + TO_CONTEXT + offsetof(ucontext_t, uc_mcontext.fpregs), &area, 8);
    return put_bytes(area, registers, size) && put_bytes(frame, copy, FRAME) ? frame : 0;
}

static void enter(const struct action *action, int number, ucontext_t *context)
{
    uint64_t frame = (uint64_t)context - TO_CONTEXT, mask, flags;
    if (action->flags & RESTORER) /* else the one of our own action, the C library's */
        memcpy((void *)frame, &action->restorer, 8);
    if (misplaced(action, context) && !(frame = moved_frame(context))) {
        siginfo_t information = {.si_signo = SIGSEGV, .si_code = SI_KERNEL};
        die(SIGSEGV, &information, context);
        return;
    }
    memcpy(&mask, &context->uc_sigmask, 8);
    mask |= kernel_mask(action->mask);
    if (!(action->flags & SA_NODEFER))
        mask |= kernel_mask(bit_of(number));
    if (action->flags & SA_RESETHAND) {
        if (number == SIGILL)
            forget_program_action();
        else
            set_default(number);
    }
    flags = (uint64_t)context->uc_mcontext.gregs[REG_EFL] & AC;
    RAW(SYS_rt_sigprocmask, SIG_SETMASK, &mask, 0, 8, 0, 0);
    __asm__ volatile("pushfq; or %[flags], (%%rsp); popfq\n"
                     "mov %[frame], %%rsp; xor %%eax, %%eax; jmp *%[handler]"
                     :
                     : [frame] "r"(frame), [handler] "r"(action->handler), [flags] "r"(flags),
                       "D"((uint64_t)number), "S"(frame + TO_INFORMATION), "d"(frame + TO_CONTEXT)
                     : "memory", "cc", "rax");
    __builtin_unreachable();
}

static bool handled(const struct action *action)
{
    return action->handler != (uint64_t)SIG_DFL && action->handler != (uint64_t)SIG_IGN;
}

void deliver_exception(const struct exception *exception, ucontext_t *context)
{
    siginfo_t *information = (siginfo_t *)((uint8_t *)context - TO_CONTEXT + TO_INFORMATION);
    struct action action = {0};
    uint64_t mask;
    memset(information, 0, 128);
    information->si_signo = exception->number;
    information->si_code = exception->code;
    information->si_addr = (void *)exception->address;
    context->uc_mcontext.gregs[REG_TRAPNO] = (greg_t)exception->trap;
    context->uc_mcontext.gregs[REG_ERR] = (greg_t)exception->error;
    if (exception->cr2)
        context->uc_mcontext.gregs[REG_CR2] = (greg_t)exception->cr2;
    RAW(SYS_rt_sigaction, exception->number, 0, &action, 8, 0, 0);
    memcpy(&mask, &context->uc_sigmask, 8);
    if (handled(&action) && !(mask & bit_of(exception->number)))
        enter(&action, exception->number, context);
    else /* a blocked or ignored exception kills (kernel/signal.c, force_sig_info_to_task) */
        die(exception->number, information, context);
}

void deliver_sigill(siginfo_t *information, ucontext_t *context)
{
    struct action action = *program_action();
    bool sent = information->si_code <= 0; /* by kill and the like */
    uint64_t mask;
    memcpy(&mask, &context->uc_sigmask, 8);
    bool blocked = mask & stand_in();
    if (handled(&action) && (sent || !blocked))
        enter(&action, SIGILL, context);
    else if (!sent)
        set_default(SIGILL); /* the instruction raises it again */
    else if (!blocked && action.handler == (uint64_t)SIG_DFL)
        die(SIGILL, information, context);
}
