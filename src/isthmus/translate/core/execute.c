/* Execution of decoded instructions.  Semantics: Intel SDM vol. 2, AMD APM vol. 3 and 4. */
#include "isthmus_core.h"

#define CF 0x001u
#define PF 0x004u
#define AF 0x010u
#define ZF 0x040u
#define SF 0x080u
#define OF 0x800u

static uint64_t little(const uint8_t *bytes, unsigned size)
{
    uint64_t value = 0;
    for (unsigned i = 0; i < size; i++)
        value |= (uint64_t)bytes[i] << (8 * i);
    return value;
}

static void put(uint8_t *bytes, uint64_t value, unsigned size)
{
    for (unsigned i = 0; i < size; i++)
        bytes[i] = (uint8_t)(value >> (8 * i));
}

/* Writing 32 bits clears the upper half; writing 16 keeps the rest (SDM vol. 1, 3.4.1.1). */
static void set_register(struct ic_cpu *cpu, unsigned number, uint64_t value, unsigned size)
{
    if (size == 8)
        cpu->gpr[number] = value;
    else if (size == 4)
        cpu->gpr[number] = value & 0xffffffffu;
    else
        cpu->gpr[number] = (cpu->gpr[number] & ~0xffffull) | (value & 0xffff);
}

static uint64_t source(const struct ic_insn *insn, const struct ic_cpu *cpu, const uint8_t *data)
{
    if (insn->loads)
        return little(data, insn->operand);
    if (insn->operand == 1 && insn->byte_high_registers && insn->rm >= 4)
        return cpu->gpr[insn->rm - 4] >> 8 & 0xff; /* AH, CH, DH, BH */
    uint64_t value = cpu->gpr[insn->rm];
    return insn->operand == 8 ? value : value & ((1ull << (8 * insn->operand)) - 1);
}

static void popcnt(const struct ic_insn *insn, struct ic_cpu *cpu, const uint8_t *data)
{
    uint64_t value = source(insn, cpu, data);
    unsigned count = 0;
    for (uint64_t rest = value; rest; rest &= rest - 1)
        count++;
    set_register(cpu, insn->reg, count, insn->operand);
    cpu->rflags &= ~(uint64_t)(CF | PF | AF | ZF | SF | OF);
    if (!value)
        cpu->rflags |= ZF;
}

/* CRC-32C, reflected polynomial 0x82f63b78; the upper half of the destination becomes zero. */
static void crc32c(const struct ic_insn *insn, struct ic_cpu *cpu, const uint8_t *data)
{
    uint64_t value = source(insn, cpu, data);
    uint32_t crc = (uint32_t)cpu->gpr[insn->reg];
    for (unsigned i = 0; i < 8u * insn->operand; i++, value >>= 1)
        crc = (crc >> 1) ^ (0x82f63b78u & (0u - ((crc ^ (uint32_t)value) & 1)));
    cpu->gpr[insn->reg] = crc;
}

static uint64_t swapped(uint64_t value, unsigned size)
{
    uint64_t result = 0;
    for (unsigned i = 0; i < size; i++)
        result = result << 8 | (value >> (8 * i) & 0xff);
    return result;
}

/* A field of `length` bits (0 means 64) at `index`; undefined where it leaves the low quadword (APM
 * vol. 4, EXTRQ): we take what bits there are.  The upper quadword is undefined, too; we leave it. */
static uint64_t field_mask(unsigned length)
{
    return length == 0 ? ~0ull : (1ull << length) - 1;
}

static void extrq(uint8_t *xmm, unsigned length, unsigned index)
{
    put(xmm, little(xmm, 8) >> index & field_mask(length), 8);
}

static void insertq(uint8_t *xmm, uint64_t value, unsigned length, unsigned index)
{
    uint64_t mask = field_mask(length);
    put(xmm, (little(xmm, 8) & ~(mask << index)) | (value & mask) << index, 8);
}

bool ic_execute(const struct ic_insn *insn, struct ic_cpu *cpu, uint8_t data[16])
{
    uint8_t *reg = cpu->xmm[insn->reg], *rm = cpu->xmm[insn->rm];
    const uint64_t flags = SF | ZF | AF | PF | CF;
    switch (insn->op) {
    case IC_RDTSCP:
        cpu->gpr[0] = cpu->tsc & 0xffffffffu;
        cpu->gpr[2] = cpu->tsc >> 32;
        cpu->gpr[1] = cpu->tsc_aux;
        break;
    case IC_MONITOR:
    case IC_MWAIT:
        /* Waiting may always end at once (SDM vol. 2B, MWAIT). */
        if (cpu->cpl != 0)
            return false;
        break;
    case IC_POPCNT: popcnt(insn, cpu, data); break;
    case IC_CRC32: crc32c(insn, cpu, data); break;
    case IC_EXTRQ_IMM: extrq(rm, insn->imm[0] & 63, insn->imm[1] & 63); break;
    case IC_EXTRQ_REG: extrq(reg, rm[0] & 63, rm[1] & 63); break;
    case IC_INSERTQ_IMM: insertq(reg, little(rm, 8), insn->imm[0] & 63, insn->imm[1] & 63); break;
    case IC_INSERTQ_REG: insertq(reg, little(rm, 8), rm[8] & 63, rm[9] & 63); break;
    case IC_MOVNTSD:
    case IC_MOVNTSS:
        put(data, little(reg, insn->operand), insn->operand);
        break;
    case IC_MOVBE_LOAD:
        set_register(cpu, insn->reg, swapped(little(data, insn->operand), insn->operand),
                     insn->operand);
        break;
    case IC_MOVBE_STORE:
        put(data, swapped(cpu->gpr[insn->reg], insn->operand), insn->operand);
        break;
    case IC_LAHF:
        cpu->gpr[0] = (cpu->gpr[0] & ~0xff00ull) | ((cpu->rflags & flags) | 2) << 8;
        break;
    case IC_SAHF:
        cpu->rflags = (cpu->rflags & ~flags) | (cpu->gpr[0] >> 8 & flags);
        break;
    default:
        return false;
    }
    cpu->rip += insn->length;
    if (cpu->mode == 32)
        cpu->rip &= 0xffffffffu;
    return true;
}

const char *ic_name(unsigned op)
{
    static const char *const names[IC_OPS] = {
        "", "RDTSCP", "MONITOR", "MWAIT", "POPCNT", "EXTRQ", "EXTRQ", "INSERTQ", "INSERTQ",
        "MOVNTSD", "MOVNTSS", "CRC32", "MOVBE", "MOVBE", "LAHF", "SAHF",
    };
    return op < IC_OPS ? names[op] : "";
}
