/* Decoding: prefixes, opcode, ModRM and SIB.  Intel SDM vol. 2A, chapter 2. */
#include "isthmus_core.h"

struct cursor {
    const uint8_t *code;
    size_t available, at;
    bool failed;
};

struct prefixes {
    bool operand16, address_small, repne, rep;
    uint8_t rex, segment;
};

static uint8_t next(struct cursor *cursor)
{
    if (cursor->at >= cursor->available || cursor->at >= 15) {
        cursor->failed = true;
        return 0;
    }
    return cursor->code[cursor->at++];
}

static uint64_t next_signed(struct cursor *cursor, unsigned bytes)
{
    uint64_t value = 0;
    for (unsigned i = 0; i < bytes; i++)
        value |= (uint64_t)next(cursor) << (8 * i);
    uint64_t sign = 1ull << (8 * bytes - 1);
    return (value ^ sign) - sign;
}

/* False on LOCK, which none of ours takes. */
static bool read_prefixes(struct cursor *cursor, uint8_t mode, struct prefixes *prefixes,
                          uint8_t *opcode)
{
    for (;;) {
        uint8_t byte = next(cursor);
        if (cursor->failed)
            return false;
        switch (byte) {
        case 0x66: prefixes->operand16 = true; break;
        case 0x67: prefixes->address_small = true; break;
        case 0xf2: prefixes->repne = true; prefixes->rep = false; break;
        case 0xf3: prefixes->rep = true; prefixes->repne = false; break;
        case 0x26: case 0x2e: case 0x36: case 0x3e: case 0x64: case 0x65:
            prefixes->segment = byte;
            break;
        case 0xf0: return false;
        default:
            if (mode == 64 && (byte & 0xf0) == 0x40) {
                prefixes->rex = byte;
                byte = next(cursor);
                /* A legacy prefix after REX makes the REX void; compilers never do that. */
            }
            *opcode = byte;
            return !cursor->failed;
        }
    }
}

/* The linear address of a memory operand, before RIP-relative is settled (see `relative`). */
static bool read_address(struct cursor *cursor, uint8_t modrm, const struct prefixes *prefixes,
                         const struct ic_cpu *cpu, uint64_t *address, bool *relative)
{
    uint8_t mod = modrm >> 6, rm = modrm & 7;
    uint64_t base = 0;
    *relative = false;
    if (cpu->mode == 32 && prefixes->address_small)
        return false; /* 16-bit addressing: not covered */
    if (rm == 4) {
        uint8_t sib = next(cursor);
        uint8_t index = (uint8_t)((sib >> 3 & 7) | (prefixes->rex & 2) << 2);
        uint8_t from = (uint8_t)((sib & 7) | (prefixes->rex & 1) << 3);
        if ((sib & 7) == 5 && mod == 0)
            base = next_signed(cursor, 4);
        else
            base = cpu->gpr[from];
        if (index != 4)
            base += cpu->gpr[index] << (sib >> 6);
    } else if (rm == 5 && mod == 0) {
        base = next_signed(cursor, 4);
        *relative = cpu->mode == 64;
    } else {
        base = cpu->gpr[rm | (prefixes->rex & 1) << 3];
    }
    if (mod == 1)
        base += next_signed(cursor, 1);
    else if (mod == 2)
        base += next_signed(cursor, 4);
    *address = base;
    return true;
}

static void settle_address(const struct prefixes *prefixes, const struct ic_cpu *cpu,
                           uint8_t length, bool relative, uint64_t *address)
{
    if (relative)
        *address += cpu->rip + length;
    if (cpu->mode == 32 || prefixes->address_small)
        *address &= 0xffffffffu;
    if (prefixes->segment == 0x64)
        *address += cpu->fs_base;
    else if (prefixes->segment == 0x65)
        *address += cpu->gs_base;
    if (cpu->mode == 32)
        *address &= 0xffffffffu;
}

/* Which operation the bytes after 0F name, given the mandatory prefix. */
static enum ic_op two_byte(struct cursor *cursor, uint8_t opcode, const struct prefixes *prefixes,
                           uint8_t *modrm)
{
    *modrm = next(cursor);
    bool memory = *modrm >> 6 != 3;
    bool none = !prefixes->rep && !prefixes->repne;
    switch (opcode) {
    case 0x01:
        if (*modrm == 0xf9 && none) return IC_RDTSCP;
        if (*modrm == 0xc8 && none) return IC_MONITOR;
        if (*modrm == 0xc9 && none) return IC_MWAIT;
        return IC_NOT_OURS;
    case 0x2b:
        if (!memory) return IC_NOT_OURS;
        return prefixes->repne ? IC_MOVNTSD : prefixes->rep ? IC_MOVNTSS : IC_NOT_OURS;
    case 0x78:
        if (memory) return IC_NOT_OURS;
        if (prefixes->repne) return IC_INSERTQ_IMM;
        return prefixes->operand16 && none && (*modrm >> 3 & 7) == 0 ? IC_EXTRQ_IMM : IC_NOT_OURS;
    case 0x79:
        if (memory) return IC_NOT_OURS;
        if (prefixes->repne) return IC_INSERTQ_REG;
        return prefixes->operand16 && none ? IC_EXTRQ_REG : IC_NOT_OURS;
    case 0xb8:
        return prefixes->rep ? IC_POPCNT : IC_NOT_OURS;
    default:
        return IC_NOT_OURS;
    }
}

static enum ic_op three_byte(struct cursor *cursor, uint8_t opcode,
                             const struct prefixes *prefixes, uint8_t *modrm)
{
    *modrm = next(cursor);
    if ((opcode != 0xf0 && opcode != 0xf1) || prefixes->rep)
        return IC_NOT_OURS;
    if (prefixes->repne)
        return IC_CRC32;
    if (*modrm >> 6 == 3)
        return IC_NOT_OURS;
    return opcode == 0xf0 ? IC_MOVBE_LOAD : IC_MOVBE_STORE;
}

static void set_sizes(struct ic_insn *insn, const struct prefixes *prefixes, uint8_t opcode)
{
    insn->operand = prefixes->rex & 8 ? 8 : prefixes->operand16 ? 2 : 4;
    if (insn->op == IC_CRC32 && opcode == 0xf0)
        insn->operand = 1;
    if (insn->op == IC_MOVNTSD)
        insn->operand = 8;
    if (insn->op == IC_MOVNTSS)
        insn->operand = 4;
}

bool ic_decode(const uint8_t *code, size_t available, const struct ic_cpu *cpu,
               struct ic_insn *insn)
{
    struct cursor cursor = {code, available, 0, false};
    struct prefixes prefixes = {false, false, false, false, 0, 0};
    uint8_t opcode = 0, modrm = 0;
    bool relative = false;
    *insn = (struct ic_insn){0};
    if ((cpu->mode != 32 && cpu->mode != 64)
        || !read_prefixes(&cursor, cpu->mode, &prefixes, &opcode))
        return false;
    if (opcode == 0x9e || opcode == 0x9f) {
        insn->op = opcode == 0x9e ? IC_SAHF : IC_LAHF;
        insn->length = (uint8_t)cursor.at;
        return cpu->mode == 64;
    }
    if (opcode != 0x0f)
        return false;
    opcode = next(&cursor);
    bool third = opcode == 0x38;
    if (third)
        opcode = next(&cursor);
    insn->op = (uint8_t)(third ? three_byte(&cursor, opcode, &prefixes, &modrm)
                               : two_byte(&cursor, opcode, &prefixes, &modrm));
    if (insn->op == IC_NOT_OURS || cursor.failed)
        return false;
    insn->reg = (uint8_t)((modrm >> 3 & 7) | (prefixes.rex & 4) << 1);
    insn->rm = (uint8_t)((modrm & 7) | (prefixes.rex & 1) << 3);
    insn->needs_tsc = insn->op == IC_RDTSCP;
    insn->byte_high_registers = prefixes.rex == 0;
    set_sizes(insn, &prefixes, opcode);
    if (modrm >> 6 != 3) {
        if (!read_address(&cursor, modrm, &prefixes, cpu, &insn->address, &relative))
            return false;
        insn->size = insn->operand;
        insn->stores = insn->op == IC_MOVNTSD || insn->op == IC_MOVNTSS
                       || insn->op == IC_MOVBE_STORE;
        insn->loads = !insn->stores;
    }
    if (insn->op == IC_EXTRQ_IMM || insn->op == IC_INSERTQ_IMM) {
        insn->imm[0] = next(&cursor);
        insn->imm[1] = next(&cursor);
    }
    insn->length = (uint8_t)cursor.at;
    if (insn->size)
        settle_address(&prefixes, cpu, insn->length, relative, &insn->address);
    return !cursor.failed;
}
