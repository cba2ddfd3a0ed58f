# A guest for measuring traps: 64-bit mode, an IDT whose #UD gate leads to a handler, and loops
# chosen by RBX (0: nothing, 1: EXTRQ, 2: RDTSCP, 3: UD2, 4: eight missing instructions with ordinary
# ones between them, 5: a POPCNT from memory), which the bench sets through the debug stub.
# Mode switching: Intel SDM vol. 3A, 9.9.
	.code16
start:
	cli
	cs lgdtl %cs:(gdtr - start + 0xf000)
	movl %cr0, %eax
	orb $1, %al
	movl %eax, %cr0
	ljmpl $8, $(0xfffff000 + protected - start)
	.code32
protected:
	movw $16, %ax
	movw %ax, %ds
	movw %ax, %ss
	movw %ax, %es
	movl $0x8000, %esp
	xorl %eax, %eax
	movl $0x1000, %edi
	movl $0x1400, %ecx
	rep stosl
	movl $0x2003, 0x1000
	movl $0x3003, 0x2000
	movl $0x4003, 0x2018
	movl $0x83, 0x3000
	movl $0xffe00083, 0x4ff8
	movl %cr4, %eax
	orl $0x620, %eax
	movl %eax, %cr4
	movl $0x1000, %eax
	movl %eax, %cr3
	movl $0xc0000080, %ecx
	rdmsr
	orl $0x100, %eax
	wrmsr
	movl %cr0, %eax
	orl $0x80000000, %eax
	movl %eax, %cr0
	ljmpl $24, $(0xfffff000 + long - start)
	.code64
long:
	# The handler is copied to RAM at 0x5000, since the stub cannot write into this ROM.
	leaq handler(%rip), %rsi
	movl $0x5000, %edi
	movl $160, %ecx
	rep movsb
	movl $0x6060, %edi
	movw $0x5000, (%rdi)
	movw $24, 2(%rdi)
	movw $0x8e00, 4(%rdi)
	movw $0xff, 0x7000
	movq $0x6000, 0x7002
	lidt 0x7000
	xorl %ebx, %ebx
	pxor %xmm0, %xmm0
loop:
	cmpl $1, %ebx
	je 1f
	cmpl $2, %ebx
	je 2f
	cmpl $3, %ebx
	je 3f
	cmpl $4, %ebx
	je 5f
	cmpl $5, %ebx
	je 6f
	.globl site
site:
	nop
	jmp loop
# Each loop reads memory, which ends a run of instructions done in one trap.
1:	extrq $8, $16, %xmm0
	movl 0x7000, %edi
	jmp loop
2:	rdtscp
	jmp loop
3:	ud2
5:	extrq $8, $16, %xmm0
	movl %eax, %ecx
	extrq $8, $8, %xmm1
	popcntl %ecx, %edx
	leaq 8(%rdx), %rsi
	popcntq %rsi, %rsi
	xorl %edx, %edx
	extrq $8, $16, %xmm2
	addl $3, %ecx
	popcntl %ecx, %ecx
	jmp 7f
	nop
7:	movdqa %xmm2, %xmm3
	extrq $8, $8, %xmm3
	cmpl %ecx, %edx
	popcntl %ecx, %ecx
	movl 0x7000, %edi
	jmp loop
6:	popcntl 0x7000, %ecx
	movl 0x7000, %edi
	jmp loop
handler:
	nop
4:	jmp 4b
	iretq
	.fill 128, 1, 0xcc
	.balign 8
gdt:
	.quad 0
	.quad 0x00cf9b000000ffff
	.quad 0x00cf93000000ffff
	.quad 0x00af9b000000ffff
gdtr:
	.word gdtr - gdt - 1
	.long 0xfffff000 + gdt - start
	.org 0xff0
	.code16
	.byte 0xe9
	.word start - . - 2
