# A kernel that is not Linux: 64-bit mode, a task segment, handlers that record what they get, and a
# door: once RBX is not zero, it returns (IRETQ) through the frame at 0x9000.  Tests write frame, code
# and page tables through the debug stub.  Low memory is a 2 MiB page for all, the test's area begins
# at 0x10000.  Mode switching: Intel SDM vol. 3A, 9.9; task segment: 7.7; gates: 6.14.1.
#
# 0x1000 page tables   0x5000 handlers, 32 of 64 bytes   0x6000 IDT   0x7100 records   0x7400 GDT
# 0x7500 task segment  0x8000 stack    0x8800 stack of its own for #UD (IST 1)    0x9000 the frame
#
# Records: 0x7100 count of #UD; 0x7108 its last RIP; 0x7110 last other vector + 1; 0x7118 count;
# 0x7120 CR2; 0x7128 error code or RIP, 0x7130 RIP or CS.  After #UD it goes on 2 bytes behind, after
# anything else it stays.
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
	xorl %eax, %eax
	movl $0x1000, %edi
	movl $0x3000, %ecx
	rep stosl
	movl $0x2007, 0x1000
	movl $0x3007, 0x2000
	movl $0x4003, 0x2018
	movl $0x87, 0x3000
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
	orl $0x80010000, %eax
	movl %eax, %cr0
	ljmpl $24, $(0xfffff000 + long - start)
	.code64
long:
	leaq gdt(%rip), %rsi
	movl $0x7400, %edi
	movl $(gdtr - gdt), %ecx
	rep movsb
	movw $(gdtr - gdt - 1), 0x7000
	movq $0x7400, 0x7002
	lgdt 0x7000
	movq $0x8000, 0x7504
	movq $0x8800, 0x7524
	movw $48, %ax
	ltr %ax
	movl $0x8000, %esp
	# Thirty-two handlers, all but the sixth alike.
	xorl %edx, %edx
1:	movl %edx, %edi
	shll $6, %edi
	addl $0x5000, %edi
	movl %edx, %ebx
	shll $4, %ebx
	addl $0x6000, %ebx
	movw %di, (%rbx)
	movw $24, 2(%rbx)
	movw $0x8e00, 4(%rbx)
	leaq other(%rip), %rsi
	cmpl $6, %edx
	jne 2f
	movb $1, 4(%rbx)
	leaq undefined(%rip), %rsi
2:	movl %edi, %ebx
	movl $64, %ecx
	rep movsb
	cmpl $6, %edx
	je 3f
	movl %edx, 4(%rbx)
	incl 4(%rbx)
3:	incl %edx
	cmpl $32, %edx
	jb 1b
	movw $0x1ff, 0x7000
	movq $0x6000, 0x7002
	lidt 0x7000
	xorl %ebx, %ebx
idle:	testl %ebx, %ebx
	jz idle
	movl $0x9000, %esp
	iretq
undefined:
	incq 0x7100
	pushq %rax
	movq 8(%rsp), %rax
	movq %rax, 0x7108
	addq $2, 8(%rsp)
	popq %rax
	iretq
	.fill 48, 1, 0x90
other:
	pushq %rax
	.byte 0x48, 0xc7, 0xc0, 0, 0, 0, 0	# movq $vector, %rax: the number is written above
	movq %rax, 0x7110
	incq 0x7118
	movq %cr2, %rax
	movq %rax, 0x7120
	movq 8(%rsp), %rax
	movq %rax, 0x7128
	movq 16(%rsp), %rax
	movq %rax, 0x7130
5:	jmp 5b
	.fill 32, 1, 0x90
	.balign 8
gdt:
	.quad 0
	.quad 0x00cf9b000000ffff
	.quad 0x00cf93000000ffff
	.quad 0x00af9b000000ffff
	.quad 0x00cff3000000ffff	# 0x20 data for users
	.quad 0x00affb000000ffff	# 0x28 64-bit code for users
	.quad 0x0000890075000067	# 0x30 task segment at 0x7500
	.quad 0
	.quad 0x00cffb000000ffff	# 0x40 32-bit code for users
gdtr:
	.word gdtr - gdt - 1
	.long 0xfffff000 + gdt - start
	.org 0xff0
	.code16
	.byte 0xe9
	.word start - . - 2
