# A 32-bit program that calls its kernel by one entry, over and over, and checks what comes back.
#
# Which: -DENTRY_int80, ENTRY_vdso (__kernel_vsyscall, what the kernel chose at boot; INT 80h where it
# offers none, as glibc does), ENTRY_sysenter, ENTRY_syscall (both by hand, in the vDSO's convention,
# and so they return into the vDSO; Linux arch/x86/entry/vdso/vdso32/system_call.S and common.c,
# do_fast_syscall_32).  With -DABROAD by INT 80h on one host and by the entry named on the other: the
# lab's Intel host has a slow TSC, its AMD hosts have a fast one, so SYSENTER is for where it is slow
# and SYSCALL for where it is fast.  All else, also the output, is done by INT 80h.
# Once in a while it says a line:
#   entry NAME COUNTER SUM FAULTS
# and for each signal what the kernel tells of its cause, and where the vDSO's entry is:
#   fault NAME TRAP ERROR EIP CR2 VSYSCALL
# A round: getpid, a pselect6 that must succeed and one that must fail by its sixth argument; all
# registers but EAX must come back.  SUM goes over what they return; FAULTS counts the SIGILL and
# SIGSEGV that came instead, after which it goes on with the next round.

#define SYS_exit 1
#define SYS_write 4
#define SYS_getpid 20
#define SYS_nanosleep 162
#define SYS_rt_sigaction 174
#define SYS_pselect6 308
#define AT_SYSINFO 32
#define SIGILL 4
#define SIGSEGV 11
#define SA_NODEFER 0x40000000
#define FACTOR 1664525
#define SLOW 50000000			/* ticks in a pause of 40 ms: 1.25 GHz */

	.code32
	.text
	.globl _start
_start:
	movl %esp, stack
	movl (%esp), %ecx
	leal 8(%esp,%ecx,4), %esi	# past the arguments: the environment, then the auxiliary vector
1:	lodsl
	testl %eax, %eax
	jnz 1b
2:	lodsl
	movl %eax, %ebx
	lodsl
	testl %ebx, %ebx
	jz 3f
	cmpl $AT_SYSINFO, %ebx
	jne 2b
	movl %eax, vsyscall
	jmp 2b
3:	movl $SYS_rt_sigaction, %eax
	movl $SIGILL, %ebx
	movl $action, %ecx
	xorl %edx, %edx
	movl $8, %esi
	int $0x80
	movl $SYS_rt_sigaction, %eax
	movl $SIGSEGV, %ebx
	int $0x80
	movl $SYS_getpid, %eax
	int $0x80
	movl %eax, process

round:
	movl stack, %esp
	incl counter
	movl $SYS_getpid, %eax
	movl $0x11111111, %ebx
	movl $0x22222222, %ecx
	movl $0x33333333, %edx
	movl $0x44444444, %esi
	movl $0x55555555, %edi
	movl $0x66666666, %ebp
	call enter
	subl process, %eax		# 0
	subl $0x11111111, %ebx
	subl $0x22222222, %ecx
	subl $0x33333333, %edx
	subl $0x44444444, %esi
	subl $0x55555555, %edi
	subl $0x66666666, %ebp
	orl %ebx, %eax
	orl %ecx, %eax
	orl %edx, %eax
	orl %esi, %eax
	orl %edi, %eax
	orl %ebp, %eax
	call add
	movl $good_mask, %ebp
	call select			# 0
	call add
	movl $bad_mask, %ebp
	call select			# -EINVAL
	call add
	jmp say

# The signal handler: the call was not made.  It never returns, so its frame is left as it is
# (Linux asm/sigframe.h, sigframe_ia32; uapi asm/sigcontext.h, sigcontext_32).
fault:
	movl %esp, %esi
	movl stack, %esp
	incl faults
	movl $causes, %edi
	movl 56(%esi), %eax		# trapno
	call number
	movl 60(%esi), %eax		# err
	call number
	movl 64(%esi), %eax		# ip
	call number
	movl 92(%esi), %eax		# cr2
	call number
	movl vsyscall, %eax
	call number
	movl $SYS_write, %eax
	movl $1, %ebx
	movl $cause, %ecx
	movl $(cause_end - cause), %edx
	int $0x80

say:
	rdtsc
	movl %eax, began
	movl $SYS_nanosleep, %eax
	movl $pause, %ebx
	xorl %ecx, %ecx
	int $0x80
	rdtsc
	subl began, %eax
	cmpl $SLOW, %eax
	sbbl %eax, %eax			# all ones if it is slow
#if defined ENTRY_syscall
	notl %eax
#endif
	movl %eax, abroad
	movl counter, %eax
	testl $3, %eax
	jnz round
	movl $numbers, %edi
	call number
	movl sum, %eax
	call number
	movl faults, %eax
	call number
	movl $SYS_write, %eax
	movl $1, %ebx
	movl $line, %ecx
	movl $(line_end - line), %edx
	int $0x80
	jmp round

select:
	movl $SYS_pselect6, %eax
	xorl %ebx, %ebx
	xorl %ecx, %ecx
	xorl %edx, %edx
	xorl %esi, %esi
	movl $moment, %edi
	call enter
	ret

add:
	imull $FACTOR, sum, %ebx
	addl $1, %ebx
	addl %eax, %ebx
	movl %ebx, sum
	ret

number:					# EAX in hexadecimal at EDI, which goes on behind a blank
	movl $8, %ecx
1:	roll $4, %eax
	movl %eax, %edx
	andl $15, %edx
	movb digits(%edx), %dl
	movb %dl, (%edi)
	incl %edi
	loop 1b
	incl %edi
	ret

enter:
#if defined ENTRY_int80
	int $0x80
	ret
#elif defined ENTRY_vdso
	cmpl $0, vsyscall
	jne 1f
	int $0x80
	ret
1:	jmp *vsyscall
#else
# if defined ABROAD
	cmpl $0, abroad
	jne 1f
	int $0x80
	ret
1:
# endif
	pushl %ecx
	pushl %edx
	pushl %ebp
# if defined ENTRY_sysenter
	movl %esp, %ebp
	sysenter
# elif defined ENTRY_syscall
	movl %ecx, %ebp
	syscall
# else
#  error "no entry named"
# endif
	hlt				# the kernel returns into the vDSO, which pops and returns
#endif

	.data
	.balign 4
stack:		.long 0
vsyscall:	.long 0
process:	.long 0
counter:	.long 0
sum:		.long 1
faults:		.long 0
began:		.long 0
abroad:		.long 0
action:		.long fault, SA_NODEFER, 0, 0, 0
pause:		.long 0, 40000000
moment:		.long 0, 1000
good_mask:	.long 0, 8
bad_mask:	.long digits, 7
digits:		.ascii "0123456789abcdef"
#if defined ENTRY_int80
# define NAME "int80    "
#elif defined ENTRY_vdso
# define NAME "vdso     "
#elif defined ENTRY_sysenter
# define NAME "sysenter "
#else
# define NAME "syscall  "
#endif
line:		.ascii "entry ", NAME
numbers:	.ascii "00000000 00000000 00000000\n"
line_end:
cause:		.ascii "fault ", NAME
causes:		.ascii "00000000 00000000 00000000 00000000 00000000\n"
cause_end:
