# What a second vCPU of the small kernel begins with (small_kernel.S): INIT-SIPI brings it to 0xC000,
# and it goes to 64-bit mode at once, on the first one's page tables.  There it loads
# its interrupt table again and again, from what stands at 0xC100, which a test may change.
# Mode switching: Intel SDM vol. 3A, 9.8.5 (from real mode to long mode in one step).
	.code16
start:
	cli
	xorw %ax, %ax
	movw %ax, %ds
	lgdtl 0xc000 + gdtr - start
	movl $0x620, %eax
	movl %eax, %cr4
	movl $0x1000, %eax
	movl %eax, %cr3
	movl $0xc0000080, %ecx
	rdmsr
	orl $0x100, %eax
	wrmsr
	movl $0x80010001, %eax
	movl %eax, %cr0
	ljmpl $24, $(0xc000 + long - start)
	.code64
long:
	movw $16, %ax
	movw %ax, %ds
	movw %ax, %ss
	movl $0xe000, %esp
	movq $0xe000, 0xc204
	movq $0xd800, 0xc224
	movw $48, %ax
	ltr %ax
1:	lidt 0xc100
	jmp 1b
	.balign 8
gdt:
	.quad 0, 0
	.quad 0x00cf93000000ffff	# 0x10 data
	.quad 0x00af9b000000ffff	# 0x18 64-bit code
	.quad 0, 0
	.quad 0x00008900c2000067	# 0x30 task segment at 0xC200; 0xD800 is the stack for #UD (IST 1)
	.quad 0
gdtr:
	.word gdtr - gdt - 1
	.long 0xc000 + gdt - start
