/* Prefixes, REX, opcode maps, ModRM, SIB and displacements in all three modes.
 * Sources: Intel SDM vol. 2A, chapter 2; AMD APM vol. 3, chapter 1. */
#include "instruction.h"

uint8_t take_byte(struct instruction *insn)
{
    if (insn->at >= insn->available) {
        insn->ended = true;
        return 0;
    }
    return insn->code[insn->at++];
}

static uint64_t take_signed(struct instruction *insn, unsigned bytes)
{
    uint64_t value = 0;
    for (unsigned i = 0; i < bytes; i++)
        value |= (uint64_t)take_byte(insn) << (8 * i);
    uint64_t sign = UINT64_C(1) << (8 * bytes - 1);
    return (value ^ sign) - sign;
}

/* True if the byte is a legacy prefix, which is then noted. */
static bool note_prefix(struct instruction *insn, uint8_t byte)
{
    switch (byte) {
    case 0x26: case 0x2e: case 0x36: case 0x3e:
        /* ES CS SS DS; in 64-bit mode they are null prefixes that do not even end FS or GS. */
        if (insn->machine->mode != 64)
            insn->segment = byte >> 3 & 3;
        return true;
    case 0x64: insn->segment = ISTHMUS_FS; return true;
    case 0x65: insn->segment = ISTHMUS_GS; return true;
    case 0x66: insn->operand_size = true; return true;
    case 0x67: insn->address_size = true; return true;
    case 0xf0: insn->lock = true; return true;
    case 0xf2: case 0xf3: insn->repeat = byte; return true;
    default: return false;
    }
}

bool decode_opcode(struct instruction *insn)
{
    uint8_t byte = take_byte(insn);
    for (;; byte = take_byte(insn)) {
        if (insn->ended)
            return false;
        if (note_prefix(insn, byte)) {
            insn->rex = 0; /* REX counts only right before the opcode */
        } else if (insn->machine->mode == 64 && (byte & 0xf0) == 0x40) {
            insn->rex = byte;
        } else {
            break;
        }
    }
    insn->map = MAP_ONE_BYTE;
    if (byte == 0x0f) {
        insn->map = MAP_0F;
        byte = take_byte(insn);
        if (byte == 0x38 || byte == 0x3a) {
            insn->map = byte == 0x38 ? MAP_0F38 : MAP_0F3A;
            byte = take_byte(insn);
        }
    }
    insn->opcode = byte;
    return !insn->ended;
}

unsigned address_bits(const struct instruction *insn)
{
    switch (insn->machine->mode) {
    case 64: return insn->address_size ? 32 : 64;
    case 32: return insn->address_size ? 16 : 32;
    default: return insn->address_size ? 32 : 16;
    }
}

unsigned operand_bits(const struct instruction *insn)
{
    if (insn->rex & 8)
        return 64;
    return insn->operand_size != (insn->machine->mode == 16) ? 16 : 32;
}

static void decode_16bit_address(struct instruction *insn, uint8_t rm)
{
    static const int8_t bases[8] = {RBX, RBX, RBP, RBP, RSI, RDI, RBP, RBX};
    static const int8_t indices[8] = {RSI, RDI, RSI, RDI, -1, -1, -1, -1};
    insn->base = bases[rm];
    insn->index = indices[rm];
    if (insn->mod == 0 && rm == 6) {
        insn->base = -1;
        insn->displacement = take_signed(insn, 2);
    } else if (insn->mod != 0) {
        insn->displacement = take_signed(insn, insn->mod == 1 ? 1 : 2);
    }
}

static void decode_wide_address(struct instruction *insn, uint8_t rm)
{
    uint8_t base = rm;
    if (rm == 4) {
        uint8_t sib = take_byte(insn);
        base = sib & 7;
        insn->scale = sib >> 6;
        insn->index = (sib >> 3 & 7) | (insn->rex & 2) << 2;
        if (insn->index == RSP)
            insn->index = -1;
    }
    /* The special meanings of 101 as a base go by the bits without REX.B. */
    if (insn->mod == 0 && base == 5) {
        insn->base = rm == 5 && insn->machine->mode == 64 ? 16 : -1;
        insn->displacement = take_signed(insn, 4);
        return;
    }
    insn->base = base | (insn->rex & 1) << 3;
    if (insn->mod != 0)
        insn->displacement = take_signed(insn, insn->mod == 1 ? 1 : 4);
}

bool decode_operands(struct instruction *insn)
{
    uint8_t byte = take_byte(insn);
    uint8_t rm = byte & 7;
    insn->mod = byte >> 6;
    insn->reg = (uint8_t)((byte >> 3 & 7) | (insn->rex & 4) << 1);
    insn->is_memory = insn->mod != 3;
    insn->base = insn->index = -1;
    insn->scale = 0;
    insn->displacement = 0;
    if (!insn->is_memory) {
        insn->rm = (uint8_t)(rm | (insn->rex & 1) << 3);
    } else {
        insn->rm = rm;
        if (address_bits(insn) == 16)
            decode_16bit_address(insn, rm);
        else
            decode_wide_address(insn, rm);
    }
    return !insn->ended;
}
