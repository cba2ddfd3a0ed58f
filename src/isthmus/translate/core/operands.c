/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/* Registers, flags and memory operands, with the exceptions that touching them raises.
 * Sources: Intel SDM vol. 1, 3.7 (addresses) and vol. 3A, 6.15 (exceptions). */
#include "instruction.h"

static uint64_t truncated(uint64_t value, unsigned bits)
{
    return bits == 64 ? value : value & ((UINT64_C(1) << bits) - 1);
}

uint64_t effective_address(const struct instruction *insn, int *segment)
{
    const struct isthmus_machine *machine = insn->machine;
    uint64_t offset = insn->displacement;
    *segment = ISTHMUS_DS;
    if (insn->base == 16) {
        /* RIP-relative to the end of the instruction, immediates included: those were taken. */
        offset += machine->rip + insn->at;
    } else if (insn->base >= 0) {
        offset += machine->gpr[insn->base];
        if (insn->base == RSP || insn->base == RBP)
            *segment = ISTHMUS_SS;
    }
    if (insn->index >= 0)
        offset += machine->gpr[insn->index] << insn->scale;
    if (insn->segment >= 0)
        *segment = insn->segment;
    return truncated(offset, address_bits(insn));
}

static bool canonical(const struct isthmus_machine *machine, uint64_t address)
{
    /* All bits from the highest of four or of five levels' addresses upwards are equal (SDM vol. 1,
     * 3.3.7.1). */
    int64_t high = (int64_t)address >> (machine->cr4 & CR4_LA57 ? 56 : 47);
    return high == 0 || high == -1;
}

static bool access(struct instruction *insn, int kind, int segment, uint64_t offset,
                   uint8_t *bytes, uint32_t size)
{
    struct isthmus_machine *machine = insn->machine;
    bool has_base = machine->mode != 64 || segment >= ISTHMUS_FS;
    uint64_t linear = offset + (has_base ? machine->segment_base[segment] : 0);
    if (machine->mode != 64) {
        linear = truncated(linear, 32);
    } else if (!canonical(machine, linear) || !canonical(machine, linear + size - 1)) {
        fault(insn, segment == ISTHMUS_SS ? VECTOR_SS : VECTOR_GP, true, 0);
        return false;
    }
    if (insn->aligned && (linear & (size - 1))) {
        fault(insn, VECTOR_GP, true, 0);
        return false;
    }
    if (size <= 8 && machine->cpl == 3 && (machine->cr0 & CR0_AM) && (machine->rflags & FLAG_AC) &&
        (linear & (size - 1))) {
        fault(insn, VECTOR_AC, true, 0);
        return false;
    }
    uint64_t fault_address = linear;
    uint32_t error_code = 0;
    switch (insn->memory->move(insn->memory->context, kind, linear, bytes, size, &fault_address,
                               &error_code)) {
    case ISTHMUS_OK:
        return true;
    case ISTHMUS_PAGE_FAULT:
        fault(insn, VECTOR_PF, true, error_code);
        insn->outcome->address = fault_address;
        return false;
    default:
        insn->outcome->kind = ISTHMUS_PENDING;
        return false;
    }
}

bool load_at(struct instruction *insn, int segment, uint64_t offset, uint8_t *bytes, uint32_t size)
{
    return access(insn, ISTHMUS_READ, segment, offset, bytes, size);
}

bool load_to_store(struct instruction *insn, int segment, uint64_t offset, uint8_t *bytes,
                   uint32_t size)
{
    if (load_at(insn, segment, offset, bytes, size))
        return true;
    if (insn->outcome->kind == ISTHMUS_FAULT && insn->outcome->vector == VECTOR_PF)
        insn->outcome->error_code |= PAGE_FAULT_WRITE;
    return false;
}

bool load(struct instruction *insn, uint8_t *bytes, uint32_t size)
{
    int segment;
    uint64_t offset = effective_address(insn, &segment);
    return access(insn, ISTHMUS_READ, segment, offset, bytes, size);
}

bool store(struct instruction *insn, const uint8_t *bytes, uint32_t size)
{
    int segment;
    uint64_t offset = effective_address(insn, &segment);
    return store_at(insn, segment, offset, bytes, size);
}

bool store_at(struct instruction *insn, int segment, uint64_t offset, const uint8_t *bytes,
              uint32_t size)
{
    uint8_t copy[64];
    for (uint32_t i = 0; i < size; i++)
        copy[i] = bytes[i];
    return access(insn, ISTHMUS_WRITE, segment, offset, copy, size);
}

bool store_masked(struct instruction *insn, int segment, uint64_t offset, const uint8_t *bytes,
                  uint32_t mask, unsigned width)
{
    uint8_t present[8];
    if (!mask)
        return true;
    unsigned first = (unsigned)__builtin_ctz(mask), last = 31 - (unsigned)__builtin_clz(mask);
    for (unsigned i = first; first != last && i <= last; i += last - first)
        if (!load_to_store(insn, segment, offset + i * width, present, width))
            return false;
    for (unsigned i = first; i <= last; i++)
        if (mask >> i & 1 && !store_at(insn, segment, offset + i * width, bytes + i * width, width))
            return false;
    return true;
}

bool store_integer(struct instruction *insn, unsigned bits, uint64_t value)
{
    if (!insn->is_memory) {
        set_gpr(insn, insn->rm, bits, value);
        return true;
    }
    uint8_t bytes[8];
    for (unsigned i = 0; i < bits / 8; i++)
        bytes[i] = (uint8_t)(value >> 8 * i);
    return store(insn, bytes, bits / 8);
}

bool load_integer(struct instruction *insn, unsigned bits, uint64_t *value)
{
    if (!insn->is_memory) {
        *value = get_gpr(insn, insn->rm, bits);
        return true;
    }
    uint8_t bytes[8];
    if (!load(insn, bytes, bits / 8))
        return false;
    *value = 0;
    for (unsigned i = 0; i < bits / 8; i++)
        *value |= (uint64_t)bytes[i] << (8 * i);
    return true;
}

uint64_t get_gpr(const struct instruction *insn, unsigned number, unsigned bits)
{
    const uint64_t *gpr = insn->machine->gpr;
    if (bits == 8 && !insn->rex && number >= 4)
        return gpr[number - 4] >> 8 & 0xff; /* AH, CH, DH, BH */
    return truncated(gpr[number], bits);
}

void set_gpr(struct instruction *insn, unsigned number, unsigned bits, uint64_t value)
{
    uint64_t *gpr = insn->machine->gpr;
    if (bits == 16)
        gpr[number] = (gpr[number] & ~UINT64_C(0xffff)) | (value & 0xffff);
    else
        gpr[number] = truncated(value, bits); /* 32-bit results clear the upper half */
    insn->outcome->gpr_written |= 1u << number;
}

void set_flags(struct instruction *insn, uint64_t affected, uint64_t value)
{
    insn->machine->rflags = (insn->machine->rflags & ~affected) | (value & affected);
    insn->outcome->flags_written = 1;
}

void decline(struct instruction *insn)
{
    insn->outcome->kind = ISTHMUS_NOT_OURS;
    insn->outcome->mnemonic = ISTHMUS_NONE;
    insn->outcome->length = 0;
}

void fault(struct instruction *insn, uint32_t vector, bool has_error, uint32_t error_code)
{
    insn->outcome->kind = ISTHMUS_FAULT;
    insn->outcome->vector = vector;
    insn->outcome->has_error = has_error;
    insn->outcome->error_code = error_code;
}

bool none_waiting(struct instruction *insn)
{
    const struct isthmus_machine *machine = insn->machine;
    if (!(machine->x87_status & ~machine->x87_control & 0x3f))
        return true;
    fault(insn, VECTOR_MF, false, 0);
    return false;
}

bool mmx_usable(struct instruction *insn)
{
    if (insn->machine->cr0 & CR0_EM) {
        decline(insn);
        return false;
    }
    if (insn->machine->cr0 & CR0_TS) {
        fault(insn, VECTOR_NM, false, 0);
        return false;
    }
    return none_waiting(insn);
}
