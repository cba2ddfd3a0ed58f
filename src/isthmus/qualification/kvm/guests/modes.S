# A guest that is its own kernel, and stands in one mode of the processor for all its life.
#
# QEMU boots it as it boots Linux (Linux: Documentation/arch/x86/boot.rst); the command line names the
# mode by its first letter:
#   real     real mode; IDTR moved away from 0
#   unreal   real mode; a hidden base that is not the selector's, limits of 4 GiB
#   16       protected mode, 16 bits: expand-down stack, limits to the byte, LDT, 16-bit task segment
#   vm86     virtual-8086 mode under a monitor of 32 bits, by its task segment and permission map
#   32       CPL 3 in a conforming segment of DPL 0, paging on, bases other than 0, one that wraps,
#            expand-down stack out of an LDT, a read-only segment, ES null
#   long     64 bits: CPL 3 with DS and ES null, bases of FS and GS in either half, and by SYSCALL
#            CPL 0 with SS null; LDT, task segment, KERNEL_GS_BASE
# In all protected modes the descriptors are wiped from memory once they are loaded: what is in the
# processor's hidden parts exists nowhere else.  Intel SDM vol. 3A: 3.4 (segments), 5.3 (limits),
# 7.2 (task segments), 9.9 (switching modes), 20.1 and 20.2 (virtual-8086).
#
# It counts, sums over a table through its segments, checks itself, and says a line for each ROUNDS
# rounds:   NAME COUNTER SUM FAULTS BAD WHY
# FAULTS has a bit for each access beyond a limit that the processor forbade since the line before;
# BAD counts what was not as it was loaded, and WHY is the number of the last such thing (see SPOILT).
#
# Everything lies in the 64 KiB from LINEAR on; symbols are offsets in them.
#   0x0200 code   0x77f0 stack of the monitor   0x7ff0 stack   0x8000 table   0x8800 task segment
#   0x9000 IDT    0xa000 vectors of real mode;  page tables from 0x30000 on, a mark at 2 MiB

#define LINEAR 0x10000
#define TABLE 0x8000
#define TASK 0x8800
#define GATES 0x9000
#define VECTORS 0xa000
#define ENTRIES 256
#define ROUNDS 256
#define FACTOR 1664525
#define STEP 0x9e3779b1
#define MARK 0x5ca1ab1e
#define PAGES 0x30000
#define HIGH 0xffff8000			/* bits 63 to 32 of addresses in either half */
#define LOW 0x00007f80

	.code16
	.text
	.org 0x1f1
	.byte 63			# sectors of this part: 32 KiB with the first
	.org 0x1fe
	.word 0xaa55
	.byte 0xeb, start - (. + 1)
	.ascii "HdrS"
	.word 0x0202			# protocol
	.long 0				# realmode_swtch
	.word 0, 0			# start_sys_seg, kernel_version
	.byte 0, 1			# type_of_loader, loadflags: LOADED_HIGH
	.word 0				# setup_move_size
	.long 0x100000, 0, 0, 0		# code32_start, ramdisk, its size, bootsect_kludge
	.word 0				# heap_end_ptr
	.byte 0, 0
cmd_line_ptr:
	.long 0
	.long 0x37ffffff		# initrd_addr_max
start:
	cli
	cld
	movw $(LINEAR >> 4), %ax
	movw %ax, %ds
	movw %ax, %es
	movw %ax, %ss
	movl $0x7ff0, %esp
	ljmp $(LINEAR >> 4), $1f
1:	movw $TABLE, %di
	xorl %eax, %eax
	movw $ENTRIES, %cx
2:	stosl
	addl $STEP, %eax
	loop 2b
	movw $TASK, %di			# task segment and gates empty
	xorl %eax, %eax
	movw $((VECTORS + 0x400 - TASK) / 4), %cx
	rep stosl
	# The serial line: 115200 baud, 8 bits (16550 data sheet).
	movw $0x3fb, %dx
	movb $0x83, %al
	outb %al, %dx
	movw $0x3f8, %dx
	movb $1, %al
	outb %al, %dx
	incw %dx
	xorb %al, %al
	outb %al, %dx
	movw $0x3fb, %dx
	movb $3, %al
	outb %al, %dx
	movl cmd_line_ptr, %eax
	shrl $4, %eax
	movw %ax, %es
	movb %es:0, %al
	cmpb $'r', %al
	je real
	cmpb $'u', %al
	je unreal
	cmpb $'1', %al
	je sixteen
	cmpb $'v', %al
	je virtual
	cmpb $'3', %al
	je thirtytwo
	cmpb $'l', %al
	je long
	hlt

	.macro WANT segment
	movw %\segment, want_\segment
	.endm

	# A vector of real mode, or the first half of a gate, in the table at DI.
	.macro GATE at, offset, segment
	movw $\offset, \at(%di)
	movw $\segment, \at + 2(%di)
	.endm

	# What WORK asks of each access beyond a limit: does it fault, then it goes on at 71.
	.macro PROBE bit, instruction:vararg
	movl $71f, resume
	\instruction
	jmp 72f
71:	orl $(1 << \bit), faults
72:	movl $0, resume
	.endm

	# Something is not as it was, and this is its number.
	.macro SPOILT number
	movl $\number, %eax
	.endm

# What makes the event of each round.  Under the monitor it is a fault: on an AMD host of Bochs the
# guest may get its last fault once more in place of an INT (docs/kvm-lab.md, "Failure 6").
	.macro BY_INT
	int $0x21
	.endm

	.macro BY_FAULT
	aam $0				# a division by 0, which changes nothing
	.endm

# The same text for 16, 32 and 64 bits.  at: "(%rip)" for 64, else nothing; event: what the round's
# event is made by; more: a macro for each round, seldom: one for each line; both leave 0 in EAX, or
# what is spoilt.
	.macro WORK event, more, seldom, at
1:	movl $ROUNDS, left\at
2:	incl counter\at
	movl sum\at, %ebx
	movl at_fs\at, %esi
	movl $ENTRIES, %ecx
3:	imull $FACTOR, %ebx, %ebx
	addl %fs:(%esi), %ebx
	addl $4, %esi
	decl %ecx
	jnz 3b
	movl at_gs\at, %esi
	movl $ENTRIES, %ecx
3:	imull $FACTOR, %ebx, %ebx
	addl %gs:(%esi), %ebx
	addl $4, %esi
	decl %ecx
	jnz 3b
	movl %ebx, sum\at
	\event
	movl counter\at, %eax
	cmpl %eax, interrupts\at
	je 4f
	movl %eax, interrupts\at
	SPOILT 1
	call spoilt_\@
4:	movw %cs, %ax
	cmpw %ax, want_cs\at
	je 4f
	SPOILT 2
	call spoilt_\@
4:	movw %ds, %ax
	cmpw %ax, want_ds\at
	je 4f
	SPOILT 3
	call spoilt_\@
4:	movw %es, %ax
	cmpw %ax, want_es\at
	je 4f
	SPOILT 4
	call spoilt_\@
4:	movw %fs, %ax
	cmpw %ax, want_fs\at
	je 4f
	SPOILT 5
	call spoilt_\@
4:	movw %gs, %ax
	cmpw %ax, want_gs\at
	je 4f
	SPOILT 6
	call spoilt_\@
4:	movw %ss, %ax
	cmpw %ax, want_ss\at
	je 4f
	SPOILT 7
	call spoilt_\@
4:	\more
	testl %eax, %eax
	jz 4f
	call spoilt_\@
4:	decl left\at
	jnz 2b
	\seldom
	testl %eax, %eax
	jz 4f
	call spoilt_\@
4:	movl $0, name_at\at
5:	movl name\at, %edi
	addl name_at\at, %edi
	movb (%edi), %al
	call byte_\@
	incl name_at\at
	cmpl $6, name_at\at
	jne 5b
	movl counter\at, %eax
	call number_\@
	movl sum\at, %eax
	call number_\@
	movl faults\at, %eax
	call number_\@
	movl bad\at, %eax
	call number_\@
	movl why\at, %eax
	call number_\@
	movb $10, %al
	call byte_\@
	movl $0, faults\at
	jmp 1b

spoilt_\@:
	movl %eax, why\at
	incl bad\at
	ret

number_\@:
	movl %eax, %edi
	movb $' ', %al
	call byte_\@
	movl $8, %ecx
6:	roll $4, %edi
	movl %edi, %eax
	andb $15, %al
	addb $'0', %al
	cmpb $('9' + 1), %al
	jb 7f
	addb $('a' - '9' - 1), %al
7:	call byte_\@
	decl %ecx
	jnz 6b
	ret

byte_\@:
	movb %al, %ah
	movw $0x3fd, %dx
8:	inb %dx, %al
	testb $0x20, %al
	jz 8b
	movb %ah, %al
	movw $0x3f8, %dx
	outb %al, %dx
	ret
	.endm

	.macro NOTHING
	xorl %eax, %eax
	.endm

# ---- real mode

	.macro IN_REAL
	PROBE 0, movw 0xffff, %ax
	PROBE 1, addr32 movb %gs:0x20000, %al
	call idt_is_real
	.endm

real:
	call real_gates
	movw $((LINEAR + TABLE - 0x100) >> 4), %ax
	movw %ax, %fs
	movl $0x100, at_fs
	movw $((LINEAR + TABLE - 0x7ff0) >> 4), %ax
	movw %ax, %gs
	movl $0x7ff0, at_gs
	movl $name_real, name
	jmp real_work

# ---- real mode with what protected mode has left in the hidden parts

	.macro IN_UNREAL
	PROBE 0, movw 0xffff, %ax
	xorl %eax, %eax
	movl $0x200000, %esi		# beyond 64 KiB, through ES: base 0, limit 4 GiB
	cmpl $MARK, %es:(%esi)
	je 73f
	SPOILT 9
73:	testl %eax, %eax
	jnz 74f
	call idt_is_real
74:
	.endm

unreal:
	call real_gates
	lgdtl gdtr
	movl %cr0, %eax
	orb $1, %al
	movl %eax, %cr0
	movw $0x58, %ax			# flat
	movw %ax, %es
	movw $0x70, %ax			# base LINEAR + TABLE - 0xfc
	movw %ax, %fs
	movw $0x78, %ax			# base 0xfffff000
	movw %ax, %gs
	movl %cr0, %eax
	andb $0xfe, %al
	movl %eax, %cr0
	ljmp $(LINEAR >> 4), $1f
1:	movl $0x200000, %esi
	movl $MARK, %es:(%esi)
	movl $0xfc, at_fs
	movl $(LINEAR + TABLE + 0x1000), at_gs
	movl $name_unreal, name
	call wipe
	WANT cs
	WANT ds
	WANT es
	WANT fs
	WANT gs
	WANT ss
	WORK BY_INT, IN_UNREAL, NOTHING

real_work:
	WANT cs
	WANT ds
	WANT es
	WANT fs
	WANT gs
	WANT ss
	WORK BY_INT, IN_REAL, NOTHING

real_gates:
	movw $VECTORS, %di
	GATE 4*0x21, real_interrupt, (LINEAR>>4)
	GATE 4*13, real_fault, (LINEAR>>4)
	GATE 4*12, real_fault, (LINEAR>>4)
	lidtl idtr_real
	ret

real_interrupt:
	incl interrupts
	iretw

real_fault:
	pushw %bp
	movw %sp, %bp
	pushl %eax
	movw resume, %ax
	movw %ax, 2(%bp)
	popl %eax
	popw %bp
	iretw

idt_is_real:
	sidtl scratch
	xorl %eax, %eax
	cmpw $0x3ff, scratch
	jne 1f
	cmpl $(LINEAR + VECTORS), scratch + 2
	je 2f
1:	SPOILT 8
2:	ret

wipe:					# the descriptors that are loaded; not those of code and of stacks
	movl $0, 0x20 + gdt
	movl $0, 0x24 + gdt
	movl $0, 0x28 + gdt
	movl $0, 0x2c + gdt
	movl $0, 0x30 + gdt
	movl $0, 0x34 + gdt
	movl $0, 0x38 + gdt
	movl $0, 0x3c + gdt
	movl $0, 0x40 + gdt
	movl $0, 0x44 + gdt
	movl $0, 0x68 + gdt
	movl $0, 0x6c + gdt
	movl $0, 0x70 + gdt
	movl $0, 0x74 + gdt
	movl $0, 0x78 + gdt
	movl $0, 0x7c + gdt
	movl $0, 0xb0 + gdt
	movl $0, 0xb4 + gdt
	ret

# ---- protected mode, 16 bits

	.macro IN_SIXTEEN
	PROBE 0, movb %es:0xfe, %al	# expand-down: begins above its limit
	PROBE 1, movl %fs:0x3fd, %eax	# ends in the middle of this
	PROBE 2, movl %gs:0x3fd, %eax
	PROBE 3, movb %ss:0x6fff, %al
	xorl %eax, %eax
	cmpl $0, %es:0x100		# its first byte: the table's first entry
	je 73f
	SPOILT 9
73:	strw scratch
	cmpw $0xb0, scratch
	je 73f
	SPOILT 10
73:	sldtw scratch
	cmpw $0x40, scratch
	je 73f
	SPOILT 11
73:	sgdtl scratch
	cmpl $(LINEAR + gdt), scratch + 2
	je 73f
	SPOILT 12
73:	sidtl scratch
	cmpl $(LINEAR + GATES), scratch + 2
	je 73f
	SPOILT 8
73:	pushw %gs			# out of the LDT, which is wiped from the GDT
	popw %gs
	.endm

sixteen:
	lgdtl gdtr
	movw $GATES, %di
	GATE 8*0x21, sixteen_interrupt, 0x18
	movl $0x8600, 8 * 0x21 + 4(%di)
	GATE 8*13, sixteen_fault, 0x18
	movl $0x8600, 8 * 13 + 4(%di)
	GATE 8*12, sixteen_fault, 0x18
	movl $0x8600, 8 * 12 + 4(%di)
	lidtl idtr
	movl %cr0, %eax
	orb $1, %al
	movl %eax, %cr0
	ljmp $0x18, $1f
1:	movw $0x20, %ax
	movw %ax, %ds
	movw $0x30, %ax
	movw %ax, %es
	movw $0x38, %ax
	movw %ax, %fs
	movw $0x40, %ax
	lldt %ax
	movw $0x0c, %ax
	movw %ax, %gs
	movw $0x28, %ax
	movw %ax, %ss
	movl $0x7ff0, %esp
	movw $0xb0, %ax
	ltr %ax
	movl $0, at_fs
	movl $0, at_gs
	movl $name_sixteen, name
	call wipe
	WANT cs
	WANT ds
	WANT es
	WANT fs
	WANT gs
	WANT ss
	WORK BY_INT, IN_SIXTEEN, NOTHING

sixteen_interrupt:
	incl interrupts
	iretw

sixteen_fault:				# error code, IP, CS, FLAGS
	pushw %bp
	movw %sp, %bp
	pushl %eax
	movw resume, %ax
	movw %ax, 4(%bp)
	popl %eax
	popw %bp
	addw $2, %sp
	iretw

# ---- virtual-8086 mode, and its monitor

	.macro IN_VIRTUAL
	PROBE 0, movw 0xffff, %ax
	hlt				# the monitor's: it counts
	xorl %eax, %eax
	movl halts, %edx
	cmpl %edx, counter
	je 73f
	SPOILT 13
73:	smsw %dx
	testb $1, %dl
	jnz 73f
	SPOILT 14
73:
	.endm

virtual:
	call monitor_gates
	movl %cr0, %eax
	orb $1, %al
	movl %eax, %cr0
	ljmpl $0x08, $virtual_monitor
	.code32
virtual_monitor:
	movw $0x10, %ax
	movw %ax, %ds
	movw %ax, %ss
	movl $0x77f0, %esp
	movw $0x48, %ax
	ltr %ax
	movl $name_virtual, name
	movl $0x100, at_fs
	movl $0x7ff0, at_gs
	movw $(LINEAR >> 4), %ax
	movw %ax, want_cs
	movw %ax, want_ds
	movw %ax, want_ss
	movw $((LINEAR + TABLE - 0x200) >> 4), want_es
	movw $((LINEAR + TABLE - 0x100) >> 4), want_fs
	movw $((LINEAR + TABLE - 0x7ff0) >> 4), want_gs
	movl $0, 0x48 + gdt
	movl $0, 0x4c + gdt
	pushl $((LINEAR + TABLE - 0x7ff0) >> 4)
	pushl $((LINEAR + TABLE - 0x100) >> 4)
	pushl $(LINEAR >> 4)
	pushl $((LINEAR + TABLE - 0x200) >> 4)
	pushl $(LINEAR >> 4)
	pushl $0x7ff0
	pushl $0x23002			# VM, IOPL 3
	pushl $(LINEAR >> 4)
	pushl $virtual_work
	iretl
	.code16
virtual_work:
	WORK BY_FAULT, IN_VIRTUAL, NOTHING

# For vm86 and 32: gates of 32 bits, and the monitor's stack in the task segment.
monitor_gates:
	lgdtl gdtr
	movw $GATES, %di
	GATE 8*0, monitor_division, 0x08
	movl $0x8e00, 8 * 0 + 4(%di)
	GATE 8*13, monitor_fault, 0x08
	movl $0x8e00, 8 * 13 + 4(%di)
	GATE 8*12, monitor_fault, 0x08
	movl $0x8e00, 8 * 12 + 4(%di)
	lidtl idtr
	movl $0x77f0, TASK + 4
	movw $0x10, TASK + 8
	movw $0x68, TASK + 0x66		# the permission map: all ports up to 0x3ff
	movb $0xff, TASK + 0xe8
	ret

	.code32
monitor_division:			# DS may be null here, or wiped: all through SS
	incl %ss:interrupts
	addl $2, (%esp)			# AAM
	iretl

monitor_fault:				# error code, EIP, CS, EFLAGS, ESP, SS
	pushl %eax
	movl %ss:resume, %eax
	testl %eax, %eax
	jz 1f
	movl %eax, 8(%esp)
	jmp 2f
1:	incl 8(%esp)			# HLT
	incl %ss:halts
2:	popl %eax
	addl $4, %esp
	iretl

# ---- protected mode, 32 bits

	.macro IN_THIRTYTWO
	PROBE 0, movb 0xa000, %al	# DS ends here
	PROBE 1, movl %fs:0xffd, %eax
	PROBE 2, movl %eax, %fs:0xfc	# read-only
	PROBE 3, movb %ss:0xfff, %al	# expand-down: begins above
	PROBE 4, movb %es:0, %al	# null
	hlt
	xorl %eax, %eax
	movl halts, %edx
	cmpl %edx, counter
	je 73f
	SPOILT 13
73:	strw scratch
	cmpw $0x48, scratch
	je 73f
	SPOILT 10
73:	sldtw scratch
	cmpw $0x40, scratch
	je 73f
	SPOILT 11
73:	sgdtl scratch
	cmpl $(LINEAR + gdt), scratch + 2
	je 73f
	SPOILT 12
73:	sidtl scratch
	cmpl $(LINEAR + GATES), scratch + 2
	je 73f
	SPOILT 8
73:	smsw %edx
	testb $1, %dl
	jnz 73f
	SPOILT 14
73:
	.endm

	.code16
thirtytwo:
	call monitor_gates
	movw $(PAGES >> 4), %ax
	movw %ax, %es
	movl $0x87, %es:0		# 4 MiB for all, and the last 4 MiB not there
	movl %cr4, %eax
	orb $0x10, %al			# PSE
	movl %eax, %cr4
	movl $PAGES, %eax
	movl %eax, %cr3
	movl %cr0, %eax
	orl $0x80000001, %eax
	movl %eax, %cr0
	ljmpl $0x08, $thirtytwo_kernel
	.code32
thirtytwo_kernel:
	movw $0x10, %ax
	movw %ax, %ds
	movw %ax, %ss
	movl $0x77f0, %esp
	movw $0x40, %ax
	lldt %ax
	movw $0x48, %ax
	ltr %ax
	xorl %eax, %eax
	movw %ax, %es
	movw $0x73, %ax
	movw %ax, %fs
	movw $0x7b, %ax
	movw %ax, %gs
	movw $0x6b, %ax
	movw %ax, %ds
	movl $name_thirtytwo, name
	movl $0xfc, at_fs
	movl $(LINEAR + TABLE + 0x1000), at_gs
	movw $0x63, want_cs
	movw $0x6b, want_ds
	movw $0, want_es
	movw $0x73, want_fs
	movw $0x7b, want_gs
	movw $0x17, want_ss
	movl $0, 0x40 + gdt
	movl $0, 0x44 + gdt
	movl $0, 0x48 + gdt
	movl $0, 0x4c + gdt
	movl $0, 0x68 + gdt
	movl $0, 0x6c + gdt
	movl $0, 0x70 + gdt
	movl $0, 0x74 + gdt
	movl $0, 0x78 + gdt
	movl $0, 0x7c + gdt
	pushl $0x17
	pushl $0x7ff0
	pushl $0x3002
	pushl $0x63
	pushl $thirtytwo_work
	iretl
thirtytwo_work:
	WORK BY_FAULT, IN_THIRTYTWO, NOTHING

# ---- 64 bits

	.macro IN_LONG
	movl $0, %edi
	syscall
	.endm

	.macro SELDOM_IN_LONG
	movl $1, %edi
	syscall
	.endm

	.macro MSR number, low, high, spoilt
	movl $\number, %ecx
	rdmsr
	cmpl $(\low), %eax
	jne 74f
	cmpl $(\high), %edx
	je 75f
74:	movl $\spoilt, %r8d
75:
	.endm

	.macro SET number, low, high
	movl $\number, %ecx
	movl $(\low), %eax
	movl $(\high), %edx
	wrmsr
	.endm

	.code16
long:
	lgdtl gdtr
	movw $(PAGES >> 4), %ax
	movw %ax, %es
	movl $(PAGES + 0x1007), %es:0
	movl $(PAGES + 0x1007), %es:8 * 255
	movl $(PAGES + 0x1007), %es:8 * 256
	movl $(PAGES + 0x2007), %es:0x1000
	movl $0x87, %es:0x2000
	movl %cr4, %eax
	orb $0x20, %al			# PAE
	movl %eax, %cr4
	movl $PAGES, %eax
	movl %eax, %cr3
	SET 0xc0000080, 0x101, 0	# EFER: LME, SCE
	movl %cr0, %eax
	orl $0x80000001, %eax
	movl %eax, %cr0
	ljmpl $0x50, $(LINEAR + long_kernel)
	.code64
long_kernel:
	leaq LINEAR + 0x77f0, %rsp
	movw $0x58, %ax
	movw %ax, %ss
	movl $0x77f0 + LINEAR, LINEAR + TASK + 4
	movw $0xa0, %ax
	lldt %ax
	movw $0x90, %ax
	ltr %ax
	movw $long_interrupt, LINEAR + GATES + 16 * 0x21
	movw $0x50, LINEAR + GATES + 16 * 0x21 + 2
	movl $((LINEAR & 0xffff0000) | 0xee00), LINEAR + GATES + 16 * 0x21 + 4
	lidt idtr_long(%rip)
	xorl %eax, %eax
	movw %ax, %ds
	movw %ax, %es
	movw %ax, %fs
	movw %ax, %gs
	SET 0xc0000100, (LINEAR+TABLE-0xfc), HIGH
	SET 0xc0000101, (LINEAR+TABLE-0x100), LOW
	SET 0xc0000102, (LINEAR+TABLE-0x40), HIGH
	SET 0xc0000081, 0, 0x7b<<16|0x50
	SET 0xc0000082, LINEAR+long_call, 0
	SET 0xc0000084, 0, 0
	movq $0x123456789abc, %rax
	movq %rax, %cr2
	movl $(LINEAR + name_long), name(%rip)
	movl $0xfc, at_fs(%rip)
	movl $0x100, at_gs(%rip)
	movw $0x8b, want_cs(%rip)
	movw $0x83, want_ss(%rip)
	xorl %eax, %eax
	movw %ax, want_ds(%rip)
	movw %ax, want_es(%rip)
	movw %ax, want_fs(%rip)
	movw %ax, want_gs(%rip)
	movq %rax, gdt + 0x90(%rip)
	movq %rax, gdt + 0x98(%rip)
	movq %rax, gdt + 0xa0(%rip)
	movq %rax, gdt + 0xa8(%rip)
	pushq $0x83
	pushq $(LINEAR + 0x7ff0)
	pushq $0x3002
	pushq $0x8b
	pushq $(LINEAR + long_work)
	iretq
long_work:
	WORK BY_INT, IN_LONG, SELDOM_IN_LONG, (%rip)

long_interrupt:
	incl interrupts(%rip)
	iretq

# EDI 0: the short check; 1: that of all registers of the system.  EAX: 0, or what is spoilt.
long_call:
	movq %rcx, kept(%rip)
	movq %r11, kept + 8(%rip)
	xorl %r8d, %r8d
	swapgs
	cmpl $STEP, %gs:0x44
	je 1f
	movl $9, %r8d
1:	swapgs
	xorl %eax, %eax
	movw %ax, %ss			# null at CPL 0: 64-bit mode only
	movl $ENTRIES, %ecx		# work meanwhile, so that a move can meet it
2:	addl %fs:0xfc, %eax
	decl %ecx
	jnz 2b
	movw %ss, %ax
	testw %ax, %ax
	jz 1f
	movl $7, %r8d
1:	movw $0x0f, %ax			# out of the LDT, which is wiped from the GDT
	movw %ax, %es
	xorl %eax, %eax
	movw %ax, %es
	strw %ax
	cmpw $0x90, %ax
	je 1f
	movl $10, %r8d
1:	sldtw %ax
	cmpw $0xa0, %ax
	je 1f
	movl $11, %r8d
1:	testl %edi, %edi
	jz 3f
	MSR 0xc0000080, 0x501, 0, 15
	MSR 0xc0000100, (LINEAR+TABLE-0xfc), HIGH, 16
	MSR 0xc0000101, (LINEAR+TABLE-0x100), LOW, 17
	MSR 0xc0000102, (LINEAR+TABLE-0x40), HIGH, 18
	MSR 0xc0000081, 0, 0x7b<<16|0x50, 19
	MSR 0xc0000082, LINEAR+long_call, 0, 20
	movq $0x123456789abc, %rax
	movq %cr2, %rdx
	cmpq %rax, %rdx
	je 3f
	movl $21, %r8d
3:	movl %r8d, %eax
	movq kept(%rip), %rcx
	movq kept + 8(%rip), %r11
	sysretq

# ---- what all modes share

	.balign 8
gdt:
	.quad 0
	.quad 0x00cf9b010000ffff	# 0x08 code, 32 bits, base LINEAR
	.quad 0x00cf93010000ffff	# 0x10 data, 32 bits, base LINEAR
	.quad 0x00009b010000ffff	# 0x18 code, 16 bits, base LINEAR
	.quad 0x000093010000ffff	# 0x20 data, 16 bits, base LINEAR
	.quad 0x0000970100006fff	# 0x28 stack, expand-down: 0x7000 to 0xffff
	.quad 0x000097017f0000ff	# 0x30 data, expand-down, base the table's - 0x100: 0x100 to 0xffff
	.quad 0x00009301800003ff	# 0x38 data, the table to the byte
	.word 0x1f, ldt, 0x8201, 0	# 0x40 LDT
	.quad 0x00008901880000e8	# 0x48 task segment, 32 bits
	.quad 0x00af9b000000ffff	# 0x50 code, 64 bits
	.quad 0x00cf93000000ffff	# 0x58 data, flat
	.quad 0x00c09f010000000f	# 0x60 code, 32 bits, conforming, DPL 0
	.quad 0x0040f30100009fff	# 0x68 data, DPL 3, to the byte
	.quad 0x0090f1017f040000	# 0x70 data, DPL 3, read-only, AVL, one page, base the table's - 0xfc
	.quad 0xffcff3fff000ffff	# 0x78 data, DPL 3, base 0xfffff000
	.quad 0x00cff3000000ffff	# 0x80 data, DPL 3, flat
	.quad 0x00affb000000ffff	# 0x88 code, DPL 3, 64 bits
	.quad 0x0000890188000067, 0	# 0x90 task segment, 64 bits
	.word 0x1f, ldt, 0x8201, 0	# 0xa0 LDT
	.quad 0
	.quad 0x000081018800002b	# 0xb0 task segment, 16 bits
gdt_end:
ldt:
	.quad 0
	.quad 0x0000f301800003ff	# 0x0c, 0x0f data, DPL 3, the table to the byte
	.quad 0x00c0f70100000000	# 0x17 stack, DPL 3, 32 bits, expand-down: from 0x1000 on
	.quad 0
gdtr:
	.word gdt_end - gdt - 1
	.long LINEAR + gdt
idtr:
	.word 8 * 0x30 - 1
	.long LINEAR + GATES
idtr_long:
	.word 16 * 0x30 - 1
	.quad LINEAR + GATES
idtr_real:
	.word 0x3ff
	.long LINEAR + VECTORS
name_real:
	.ascii "real  "
name_unreal:
	.ascii "unreal"
name_sixteen:
	.ascii "16    "
name_virtual:
	.ascii "vm86  "
name_thirtytwo:
	.ascii "32    "
name_long:
	.ascii "long  "
	.balign 8
counter:	.long 0
sum:		.long 1
faults:		.long 0
bad:		.long 0
why:		.long 0
left:		.long 0
interrupts:	.long 0
halts:		.long 0
resume:		.long 0
at_fs:		.long 0
at_gs:		.long 0
name:		.long 0
name_at:	.long 0
kept:		.quad 0, 0
scratch:	.quad 0, 0
want_cs:	.word 0
want_ds:	.word 0
want_es:	.word 0
want_fs:	.word 0
want_gs:	.word 0
want_ss:	.word 0
	.org 0x8000
	hlt				# the part in high memory, which is not used
	.org 0x8200
