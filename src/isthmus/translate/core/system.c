/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/* Instructions of one maker or one generation that touch little: random numbers, CMPXCHG16B, direct
 * stores, waits, CLZERO, RDPRU, RDPID, and TSX, whose transactions abort at once.
 * Sources: Intel SDM vol. 2 and vol. 1, 16; AMD APM vol. 3. */
#include "vector.h"

/* EAX of an aborted transaction: no bit set, so "do not retry" (SDM vol. 1, 16.3.5, table 16-1). */
enum { ABORTED = 0 };

static bool execute_random(struct instruction *insn) /* 0F C7 /6 and /7, register */
{
    uint32_t name = (insn->reg & 7) == 6 ? ISTHMUS_RDRAND : ISTHMUS_RDSEED;
    unsigned bits = operand_bits(insn);
    name_it(insn, name);
    bool valid = insn->machine->random_valid;
    set_gpr(insn, insn->rm, bits, valid ? insn->machine->random : 0);
    set_flags(insn, FLAG_CF | FLAG_PF | FLAG_AF | FLAG_ZF | FLAG_SF | FLAG_OF, valid ? FLAG_CF : 0);
    insn->outcome->touched |= ISTHMUS_USED_RANDOM;
    finish(insn, name);
    return true;
}

static bool execute_cmpxchg16b(struct instruction *insn)
{
    uint8_t bytes[16];
    uint64_t *gpr = insn->machine->gpr, memory[2] = {0, 0};
    int segment;
    name_it(insn, ISTHMUS_CMPXCHG16B);
    insn->aligned = true;
    uint64_t offset = effective_address(insn, &segment);
    if (!load_to_store(insn, segment, offset, bytes, 16))
        return true;
    for (unsigned i = 0; i < 16; i++)
        memory[i / 8] |= (uint64_t)bytes[i] << 8 * (i % 8);
    bool equal = memory[0] == gpr[RAX] && memory[1] == gpr[RDX];
    uint64_t written[2] = {equal ? gpr[RBX] : memory[0], equal ? gpr[RCX] : memory[1]};
    for (unsigned i = 0; i < 16; i++)
        bytes[i] = (uint8_t)(written[i / 8] >> 8 * (i % 8));
    if (!store_at(insn, segment, offset, bytes, 16))
        return true;
    if (!equal) {
        set_gpr(insn, RAX, 64, memory[0]);
        set_gpr(insn, RDX, 64, memory[1]);
    }
    set_flags(insn, FLAG_ZF, equal ? FLAG_ZF : 0);
    finish(insn, ISTHMUS_CMPXCHG16B);
    return true;
}

static bool execute_group9(struct instruction *insn) /* 0F C7 */
{
    if (insn->map != MAP_0F || insn->opcode != 0xc7)
        return false;
    if (!decode_operands(insn)) {
        decline(insn);
        return true;
    }
    unsigned extension = insn->reg & 7;
    if (insn->is_memory) {
        if (extension == 1 && insn->rex & 8 && insn->machine->mode == 64 && !insn->repeat)
            return execute_cmpxchg16b(insn);
    } else if (!insn->lock) {
        if (extension == 7 && insn->repeat == 0xf3) {
            name_it(insn, ISTHMUS_RDPID);
            set_gpr(insn, insn->rm, 64, insn->machine->tsc_aux);
            finish(insn, ISTHMUS_RDPID);
            return true;
        }
        if (extension >= 6 && !insn->repeat)
            return execute_random(insn);
    }
    decline(insn);
    return true;
}

static bool execute_direct_store(struct instruction *insn)
{
    if (insn->map != MAP_0F38 || (insn->opcode != 0xf9 && insn->opcode != 0xf8))
        return false;
    bool wide = insn->opcode == 0xf8; /* MOVDIR64B: 66; MOVDIRI: none */
    if (!decode_operands(insn) || !insn->is_memory || insn->prefix != (wide ? P66 : NP)) {
        decline(insn);
        return true;
    }
    if (!wide) {
        unsigned bits = insn->rex & 8 ? 64 : 32;
        name_it(insn, ISTHMUS_MOVDIRI);
        if (store_integer(insn, bits, insn->machine->gpr[insn->reg]))
            finish(insn, ISTHMUS_MOVDIRI);
        return true;
    }
    uint8_t bytes[64];
    uint64_t to = get_gpr(insn, insn->reg, address_bits(insn));
    name_it(insn, ISTHMUS_MOVDIR64B);
    uint64_t base = insn->machine->mode == 64 ? 0 : insn->machine->segment_base[ISTHMUS_ES];
    if ((to + base) & 63) {
        fault(insn, VECTOR_GP, true, 0);
        return true;
    }
    if (load(insn, bytes, 64) && store_at(insn, ISTHMUS_ES, to, bytes, 64))
        finish(insn, ISTHMUS_MOVDIR64B);
    return true;
}

static bool clear_line(struct instruction *insn) /* CLZERO, 0F 01 FC */
{
    static const uint8_t zeroes[64];
    name_it(insn, ISTHMUS_CLZERO);
    uint64_t at = get_gpr(insn, RAX, address_bits(insn)) & ~UINT64_C(63);
    int segment = insn->segment >= 0 ? insn->segment : ISTHMUS_DS;
    if (store_at(insn, segment, at, zeroes, 64))
        finish(insn, ISTHMUS_CLZERO);
    return true;
}

static bool execute_group7(struct instruction *insn) /* 0F 01, register forms */
{
    if (insn->map != MAP_0F || insn->opcode != 0x01)
        return false;
    uint8_t byte = take_byte(insn);
    if (insn->ended)
        return false;
    bool plain = insn->prefix == NP && !insn->repeat;
    switch (byte) {
    case 0xd5: /* XEND outside a transaction: #GP(0) */
        if (!plain)
            return false;
        name_it(insn, ISTHMUS_XEND);
        fault(insn, VECTOR_GP, true, 0);
        return true;
    case 0xd6: /* XTEST: never in a transaction */
        if (!plain)
            return false;
        name_it(insn, ISTHMUS_XTEST);
        set_flags(insn, FLAG_CF | FLAG_PF | FLAG_AF | FLAG_ZF | FLAG_SF | FLAG_OF, FLAG_ZF);
        finish(insn, ISTHMUS_XTEST);
        return true;
    case 0xe8: /* SERIALIZE: a trap and its return serialise */
        if (!plain)
            return false;
        finish(insn, ISTHMUS_SERIALIZE);
        return true;
    case 0xfa: /* MONITORX; MWAITX may end for any reason, at once too */
    case 0xfb: {
        if (!plain)
            return false;
        uint32_t name = byte == 0xfa ? ISTHMUS_MONITORX : ISTHMUS_MWAITX;
        name_it(insn, name);
        uint8_t watched;
        /* Zen 5 looks at ECX for MONITORX, and at all of RCX for MWAITX. */
        unsigned bits = byte == 0xfb && insn->machine->mode == 64 ? 64 : 32;
        uint64_t extensions = get_gpr(insn, RCX, bits);
        int segment = insn->segment >= 0 ? insn->segment : ISTHMUS_DS;
        if (byte == 0xfa ? extensions != 0 : (extensions & ~UINT64_C(3)) != 0) {
            fault(insn, VECTOR_GP, true, 0);
        } else if (byte == 0xfb) {
            insn->outcome->touched |= ISTHMUS_WAITED;
            finish(insn, name);
        } else if (load_at(insn, segment, get_gpr(insn, RAX, address_bits(insn)), &watched, 1)) {
            finish(insn, name);
        }
        return true;
    }
    case 0xfc:
        return plain ? clear_line(insn) : false;
    case 0xfd: /* RDPRU: MPERF and APERF as a CPU at its base clock shows them: the TSC's */
        if (!plain)
            return false;
        name_it(insn, ISTHMUS_RDPRU);
        if ((insn->machine->cr4 & CR4_TSD) && insn->machine->cpl) {
            decline(insn);
            return true;
        }
        bool known = get_gpr(insn, RCX, 32) <= 1;
        set_gpr(insn, RAX, 32, known ? insn->machine->tsc : 0);
        set_gpr(insn, RDX, 32, known ? insn->machine->tsc >> 32 : 0);
        if (known)
            insn->outcome->touched |= ISTHMUS_USED_TSC;
        finish(insn, ISTHMUS_RDPRU);
        return true;
    default:
        return false;
    }
}

static bool execute_waitpkg(struct instruction *insn) /* 0F AE /6, register */
{
    if (insn->map != MAP_0F || insn->opcode != 0xae || insn->prefix == NP)
        return false;
    if (!decode_operands(insn) || insn->is_memory || (insn->reg & 7) != 6) {
        decline(insn);
        return true;
    }
    if (insn->prefix == PF3) {
        uint8_t watched;
        int segment = insn->segment >= 0 ? insn->segment : ISTHMUS_DS;
        name_it(insn, ISTHMUS_UMONITOR);
        if (load_at(insn, segment, get_gpr(insn, insn->rm, address_bits(insn)), &watched, 1))
            finish(insn, ISTHMUS_UMONITOR);
        return true;
    }
    /* The wait ends at once; CF clear: not by the operating system's limit. */
    uint32_t name = insn->prefix == P66 ? ISTHMUS_TPAUSE : ISTHMUS_UMWAIT;
    name_it(insn, name);
    if (get_gpr(insn, insn->rm, 32) & ~UINT64_C(1)) {
        fault(insn, VECTOR_GP, true, 0);
        return true;
    }
    set_flags(insn, FLAG_CF | FLAG_PF | FLAG_AF | FLAG_ZF | FLAG_SF | FLAG_OF, 0);
    insn->outcome->touched |= ISTHMUS_WAITED;
    finish(insn, name);
    return true;
}

static bool execute_ptwrite(struct instruction *insn) /* F3 0F AE /4: no trace takes the value */
{
    if (insn->map != MAP_0F || insn->opcode != 0xae || insn->prefix != PF3)
        return false;
    uint64_t value;
    if (!decode_operands(insn) || (insn->reg & 7) != 4 || insn->operand_size)
        return false; /* others of this opcode follow */
    name_it(insn, ISTHMUS_PTWRITE);
    if (load_integer(insn, insn->rex & 8 ? 64 : 32, &value))
        finish(insn, ISTHMUS_PTWRITE);
    return true;
}

static bool execute_tsx(struct instruction *insn) /* C7 F8 rel (XBEGIN), C6 F8 ib (XABORT) */
{
    if (insn->map != MAP_ONE_BYTE || (insn->opcode != 0xc7 && insn->opcode != 0xc6))
        return false;
    uint8_t byte = take_byte(insn);
    if (insn->ended || byte != 0xf8)
        return false;
    if (insn->opcode == 0xc6) { /* outside a transaction it does nothing */
        take_byte(insn);
        if (insn->ended)
            decline(insn);
        else
            finish(insn, ISTHMUS_XABORT);
        return true;
    }
    unsigned bytes = operand_bits(insn) == 16 ? 2 : 4;
    uint64_t distance = 0;
    for (unsigned i = 0; i < bytes; i++)
        distance |= (uint64_t)take_byte(insn) << 8 * i;
    if (insn->ended) {
        decline(insn);
        return true;
    }
    uint64_t sign = UINT64_C(1) << (8 * bytes - 1);
    finish(insn, ISTHMUS_XBEGIN);
    uint64_t target = insn->machine->rip + ((distance ^ sign) - sign);
    insn->machine->rip = insn->machine->mode == 64 ? target : target & 0xffffffff;
    set_gpr(insn, RAX, 32, ABORTED);
    return true;
}

bool execute_system(struct instruction *insn)
{
    /* Each takes bytes only once it knows that the opcode is its own, or on a copy. */
    static bool (*const members[])(struct instruction *) = {
        execute_group9, execute_direct_store, execute_group7, execute_ptwrite, execute_waitpkg,
        execute_tsx,
    };
    for (size_t i = 0; i < sizeof members / sizeof *members; i++) {
        struct instruction attempt = *insn;
        if (members[i](&attempt)) {
            *insn = attempt;
            return true;
        }
    }
    return false;
}
