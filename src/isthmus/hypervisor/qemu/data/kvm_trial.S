# The guest of the KVM trial: from the reset vector through protected mode into 64-bit mode with
# paging, an interrupt gate and an SSE instruction, then the answer 0x2a to the isa-debug-exit port.
# Intel SDM vol. 3A, 9.9 (mode switching); the image is 4 KiB, mapped to end at 4 GiB.
	.code16
	.org 0
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
	# One PML4 entry, two PDPT entries: the first 2 MiB (stack, tables) and the last (this image).
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
	# a gate for vector 3, then INT3: exceptions must be delivered
	leaq handler(%rip), %rax
	movl $0x6000, %edi
	movw %ax, 48(%rdi)
	movw $24, 50(%rdi)
	movw $0x8e00, 52(%rdi)
	shrq $16, %rax
	movw %ax, 54(%rdi)
	movl $0, 56(%rdi)
	movw $0xff, 0x7000
	movq $0x6000, 0x7002
	lidt 0x7000
	pxor %xmm0, %xmm0
	int3
	hlt
handler:
	cpuid
	movb $0x2a, %al
	outb %al, $0xf4
1:	hlt
	jmp 1b
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
