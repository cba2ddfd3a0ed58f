# A program without an operating system: which instructions raise #NM while CR0.TS is set?
# Says a line for each on the serial port, its name and N (#NM), U (#UD) or - (it ran), then "end".
# Multiboot (the GNU specification, 3.1); gates: Intel SDM vol. 3A, 6.11; CR4.OSXSAVE, XCR0: 13.3.
	.set MAGIC, 0x1badb002
	.text
	.balign 4
	.long MAGIC, 0, -MAGIC
	.globl _start
_start:
	movl $stack, %esp
	lgdt gdtr
	ljmp $8, $1f
1:	movw $16, %ax
	movw %ax, %ds
	movw %ax, %es
	movw %ax, %ss

	.macro gate vector, handler
	movl $\handler, %eax
	movw %ax, idt + \vector * 8
	movw $8, idt + \vector * 8 + 2
	movw $0x8e00, idt + \vector * 8 + 4
	shrl $16, %eax
	movw %ax, idt + \vector * 8 + 6
	.endm
	gate 6, invalid
	gate 7, not_available
	lidt idtr

	movl %cr0, %eax
	andl $~4, %eax			# no EM
	orl $2, %eax			# MP
	movl %eax, %cr0
	movl %cr4, %eax
	orl $0x40600, %eax		# OSXSAVE, OSXMMEXCPT, OSFXSR
	movl %eax, %cr4
	xorl %ecx, %ecx
	xorl %edx, %edx
	movl $7, %eax			# x87, SSE, AVX
	xsetbv
	movl %cr0, %eax
	orl $8, %eax			# TS
	movl %eax, %cr0

	.macro try name, instruction:vararg
	movl $2f, behind
	movb $'-', %bl
	movl $7, %eax
	xorl %edx, %edx
	\instruction
2:	movl $3f, %esi
	jmp 4f
3:	.asciz "\name"
4:	call say
	.endm
	try fxsave, fxsave area
	try fxrstor, fxrstor area
	try movaps, movaps %xmm0, %xmm1
	try vmovaps, vmovaps %ymm0, %ymm1
	try xsave, xsave area
	try xsaveopt, xsaveopt area
	try xrstor, xrstor area
	movl $5f, %esi
	call say
6:	hlt
	jmp 6b
5:	.asciz "end"

say:	movw $0x3f8, %dx
7:	lodsb
	testb %al, %al
	jz 8f
	outb %al, %dx
	jmp 7b
8:	movb $' ', %al
	outb %al, %dx
	movb %bl, %al
	outb %al, %dx
	movb $'\n', %al
	outb %al, %dx
	ret

not_available:
	movb $'N', %bl
	jmp 9f
invalid:
	movb $'U', %bl
9:	movl behind, %eax
	movl %eax, (%esp)
	iret

	.data
	.balign 64
area:	.fill 4096
behind:	.long 0
gdt:	.quad 0, 0x00cf9a000000ffff, 0x00cf92000000ffff
gdtr:	.word 23
	.long gdt
idtr:	.word 255
	.long idt
	.balign 8
idt:	.fill 256
	.fill 4096
stack:
