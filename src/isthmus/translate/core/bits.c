/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/* Bit manipulation on general registers: BMI1, BMI2, ADX (Intel SDM vol. 2) and TBM (AMD APM vol. 3).
 *
 * TZCNT and LZCNT are not here: where they are missing they run as BSF and BSR and never fault. */
#include "vector.h"

/* VEX on general registers: 256 bits are a true #UD; CR4.OSXSAVE does not matter (SDM, class 13). */
static unsigned size(const struct instruction *insn)
{
    return insn->wide && insn->machine->mode == 64 ? 64 : 32;
}

static uint64_t cut(uint64_t value, unsigned bits)
{
    return bits == 64 ? value : value & 0xffffffff;
}

/* CF as given, ZF and SF by the result, OF clear; AF and PF keep what they are: undefined. */
static void logic_flags(struct instruction *insn, uint64_t result, unsigned bits, bool carry)
{
    uint64_t flags = (carry ? FLAG_CF : 0) | (result ? 0 : FLAG_ZF) |
                     (result >> (bits - 1) & 1 ? FLAG_SF : 0);
    set_flags(insn, FLAG_CF | FLAG_ZF | FLAG_SF | FLAG_OF, flags);
}

static uint64_t extract(uint64_t value, uint64_t control, unsigned bits)
{
    unsigned start = control & 0xff, length = control >> 8 & 0xff;
    value = start < bits ? value >> start : 0;
    return length < bits ? value & ((UINT64_C(1) << length) - 1) : value;
}

static uint64_t scatter(uint64_t value, uint64_t mask)
{
    uint64_t result = 0;
    for (unsigned i = 0, from = 0; i < 64; i++)
        if (mask >> i & 1)
            result |= (value >> from++ & 1) << i;
    return result;
}

static uint64_t gather(uint64_t value, uint64_t mask)
{
    uint64_t result = 0;
    for (unsigned i = 0, to = 0; i < 64; i++)
        if (mask >> i & 1)
            result |= (value >> i & 1) << to++;
    return result;
}

/* 0F38 F2, F3, F5 to F7 under VEX. */
static bool execute_bmi(struct instruction *insn)
{
    static const uint32_t shifts[4] = {ISTHMUS_BEXTR, ISTHMUS_SHLX, ISTHMUS_SARX, ISTHMUS_SHRX};
    static const uint32_t lowest[4] = {0, ISTHMUS_BLSR, ISTHMUS_BLSMSK, ISTHMUS_BLSI};
    uint32_t name = 0;
    uint8_t op = insn->opcode, prefix = insn->prefix;
    if (insn->map != MAP_0F38 || insn->xop || op < 0xf2 || op > 0xf7 || op == 0xf4)
        return false;
    if (!decode_operands(insn)) {
        decline(insn);
        return true;
    }
    if (op == 0xf2 && prefix == NP)
        name = ISTHMUS_ANDN;
    else if (op == 0xf3 && prefix == NP && (insn->reg & 7) <= 3)
        name = lowest[insn->reg & 7];
    else if (op == 0xf5)
        name = prefix == NP    ? ISTHMUS_BZHI
               : prefix == PF3 ? ISTHMUS_PEXT
               : prefix == PF2 ? ISTHMUS_PDEP
                               : 0;
    else if (op == 0xf6 && prefix == PF2)
        name = ISTHMUS_MULX;
    else if (op == 0xf7)
        name = shifts[prefix == P66 ? 1 : prefix == PF3 ? 2 : prefix == PF2 ? 3 : 0];
    if (!name || insn->long_vector) {
        decline(insn);
        return true;
    }
    unsigned bits = size(insn);
    uint64_t source, result = 0, other = get_gpr(insn, insn->vvvv, bits);
    name_it(insn, name);
    if (!load_integer(insn, bits, &source))
        return true;
    switch (name) {
    case ISTHMUS_ANDN:
        result = ~other & source;
        break;
    case ISTHMUS_BLSR:
        result = source & (source - 1);
        break;
    case ISTHMUS_BLSMSK:
        result = source ^ (source - 1);
        break;
    case ISTHMUS_BLSI:
        result = source & -source;
        break;
    case ISTHMUS_BEXTR:
        result = extract(source, other, bits);
        break;
    case ISTHMUS_BZHI:
        result = (other & 0xff) < bits ? source & ((UINT64_C(1) << (other & 0xff)) - 1) : source;
        break;
    case ISTHMUS_PDEP:
        result = scatter(other, source);
        break;
    case ISTHMUS_PEXT:
        result = gather(other, source);
        break;
    case ISTHMUS_SHLX:
        result = source << (other & (bits - 1));
        break;
    case ISTHMUS_SHRX:
        result = source >> (other & (bits - 1));
        break;
    case ISTHMUS_SARX:
        result = (uint64_t)((bits == 64 ? (int64_t)source : (int32_t)source) >>
                            (other & (bits - 1)));
        break;
    default: { /* MULX: RDX times the source into reg:vvvv, which gets the low half first */
        uint64_t factor = get_gpr(insn, RDX, bits);
        __extension__ unsigned __int128 product = (unsigned __int128)factor * source;
        set_gpr(insn, insn->vvvv, bits, (uint64_t)product);
        set_gpr(insn, insn->reg, bits, (uint64_t)(product >> bits));
        finish(insn, name);
        return true;
    }
    }
    result = cut(result, bits);
    if (op == 0xf3)
        set_gpr(insn, insn->vvvv, bits, result);
    else
        set_gpr(insn, insn->reg, bits, result);
    if (name == ISTHMUS_ANDN)
        logic_flags(insn, result, bits, false);
    else if (name == ISTHMUS_BLSR || name == ISTHMUS_BLSMSK)
        logic_flags(insn, result, bits, source == 0);
    else if (name == ISTHMUS_BLSI)
        logic_flags(insn, result, bits, source != 0);
    else if (name == ISTHMUS_BZHI)
        logic_flags(insn, result, bits, (other & 0xff) >= bits);
    else if (name == ISTHMUS_BEXTR) /* SF is undefined */
        set_flags(insn, FLAG_CF | FLAG_ZF | FLAG_OF, result ? 0 : FLAG_ZF);
    finish(insn, name);
    return true;
}

static bool execute_rorx(struct instruction *insn)
{
    if (insn->map != MAP_0F3A || insn->xop || insn->opcode != 0xf0 || insn->prefix != PF2)
        return false;
    bool whole = decode_operands(insn);
    unsigned by = take_byte(insn), bits = size(insn);
    if (!whole || insn->ended || insn->long_vector || insn->vvvv) {
        decline(insn);
        return true;
    }
    uint64_t source;
    name_it(insn, ISTHMUS_RORX);
    if (!load_integer(insn, bits, &source))
        return true;
    by &= bits - 1;
    set_gpr(insn, insn->reg, bits, by ? source >> by | source << (bits - by) : source);
    finish(insn, ISTHMUS_RORX);
    return true;
}

/* ADCX (66) and ADOX (F3), 0F 38 F6. */
static bool execute_adx(struct instruction *insn)
{
    if (insn->map != MAP_0F38 || insn->opcode != 0xf6 ||
        (insn->prefix != P66 && insn->prefix != PF3))
        return false;
    if (!decode_operands(insn)) {
        decline(insn);
        return true;
    }
    uint64_t flag = insn->prefix == P66 ? FLAG_CF : FLAG_OF, source;
    uint32_t name = insn->prefix == P66 ? ISTHMUS_ADCX : ISTHMUS_ADOX;
    unsigned bits = insn->rex & 8 ? 64 : 32;
    name_it(insn, name);
    if (!load_integer(insn, bits, &source))
        return true;
    __extension__ unsigned __int128 sum =
        (unsigned __int128)get_gpr(insn, insn->reg, bits) + source +
        (insn->machine->rflags & flag ? 1 : 0);
    set_gpr(insn, insn->reg, bits, (uint64_t)sum);
    set_flags(insn, flag, sum >> bits & 1 ? flag : 0);
    finish(insn, name);
    return true;
}

/* TBM: XOP map 9 opcodes 01 and 02, and BEXTR with an immediate in map A. */
static bool execute_tbm(struct instruction *insn)
{
    static const uint32_t first[8] = {
        0, ISTHMUS_BLCFILL, ISTHMUS_BLSFILL, ISTHMUS_BLCS,
        ISTHMUS_TZMSK, ISTHMUS_BLCIC, ISTHMUS_BLSIC, ISTHMUS_T1MSKC,
    };
    bool immediate = insn->map == MAP_XOPA && insn->opcode == 0x10;
    if (!insn->xop ||
        (!immediate && (insn->map != MAP_XOP9 || (insn->opcode != 1 && insn->opcode != 2))))
        return false;
    bool whole = decode_operands(insn);
    unsigned bits = size(insn), extension = insn->reg & 7;
    uint64_t control = 0, x, result;
    uint32_t name = ISTHMUS_BEXTR;
    if (immediate)
        for (unsigned i = 0; i < 4; i++)
            control |= (uint64_t)take_byte(insn) << 8 * i;
    else if (insn->opcode == 1)
        name = first[extension];
    else
        name = extension == 1 ? ISTHMUS_BLCMSK : extension == 6 ? ISTHMUS_BLCI : 0;
    if (!whole || insn->ended || !name || insn->long_vector || insn->prefix ||
        (immediate && insn->vvvv)) {
        decline(insn);
        return true;
    }
    name_it(insn, name);
    if (!load_integer(insn, bits, &x))
        return true;
    switch (name) {
    case ISTHMUS_BLCFILL: result = x & (x + 1); break;
    case ISTHMUS_BLSFILL: result = x | (x - 1); break;
    case ISTHMUS_BLCS: result = x | (x + 1); break;
    case ISTHMUS_TZMSK: result = ~x & (x - 1); break;
    case ISTHMUS_BLCIC: result = ~x & (x + 1); break;
    case ISTHMUS_BLSIC: result = ~x | (x - 1); break;
    case ISTHMUS_T1MSKC: result = ~x | (x + 1); break;
    case ISTHMUS_BLCMSK: result = x ^ (x + 1); break;
    case ISTHMUS_BLCI: result = x | ~(x + 1); break;
    default: result = extract(x, control, bits); break;
    }
    result = cut(result, bits);
    set_gpr(insn, immediate ? insn->reg : insn->vvvv, bits, result);
    bool down = name == ISTHMUS_BLSFILL || name == ISTHMUS_BLSIC || name == ISTHMUS_TZMSK;
    if (immediate)
        set_flags(insn, FLAG_CF | FLAG_ZF | FLAG_OF, result ? 0 : FLAG_ZF);
    else /* CF: borrow of x - 1, or carry of x + 1 */
        logic_flags(insn, result, bits, down ? x == 0 : cut(x + 1, bits) == 0);
    finish(insn, name);
    return true;
}

bool execute_bits(struct instruction *insn)
{
    if (!insn->vex)
        return execute_adx(insn);
    return execute_bmi(insn) || execute_rorx(insn) || execute_tbm(insn);
}
