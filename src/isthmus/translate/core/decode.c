/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
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

/* Whether the byte begins VEX or XOP.  Neither exists in virtual-8086 mode (nor in real mode, whose #UD
 * reaches no placement: SDM vol. 2A, table 2-21; AMD APM vol. 4, 1.2).  Outside 64-bit mode C4 and C5 are LES and LDS unless the next
 * byte would name a register; 8F is POP unless its map is 8 or more (AMD APM vol. 6, 1.2). */
static bool vector_prefix(const struct instruction *insn, uint8_t byte)
{
    if (insn->at >= insn->available || (byte != 0xc4 && byte != 0xc5 && byte != 0x8f))
        return false;
    if (insn->machine->mode == 16 && insn->machine->rflags & FLAG_VM)
        return false;
    uint8_t next = insn->code[insn->at];
    if (byte == 0x8f)
        return (next & 0x1f) >= 8;
    return insn->machine->mode == 64 || (next & 0xc0) == 0xc0;
}

/* Intel SDM vol. 2A, 2.3.5: the prefix's fields are inverted. */
static bool decode_vex(struct instruction *insn, uint8_t byte)
{
    bool foreign = insn->prefix || insn->repeat || insn->rex; /* a true #UD */
    uint8_t first = take_byte(insn), second = first;
    insn->vex = true;
    insn->xop = byte == 0x8f;
    insn->rex = 0x40 | (~first >> 5 & 4);
    insn->map = MAP_0F;
    if (byte != 0xc5) {
        second = take_byte(insn);
        insn->rex = 0x40 | (~first >> 5 & 7);
        insn->map = first & 0x1f;
        insn->wide = second >> 7;
    }
    insn->vvvv = ~second >> 3 & 15;
    if (insn->machine->mode != 64) {
        insn->rex = 0;
        insn->vvvv &= 7;
        insn->wide = insn->wide && byte != 0xc5;
    } else if (insn->wide) {
        insn->rex |= 8;
    }
    insn->long_vector = second >> 2 & 1;
    insn->prefix = (uint8_t[]){0, 1, 2, 3}[second & 3]; /* none, 66, F3, F2 */
    insn->opcode = take_byte(insn);
    return !insn->ended && !foreign && !insn->lock;
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
    insn->prefix = insn->repeat == 0xf3 ? 2 : insn->repeat == 0xf2 ? 3 : insn->operand_size;
    if (vector_prefix(insn, byte))
        return decode_vex(insn, byte);
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
        if (insn->index == RSP && !insn->vsib)
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
    insn->modrm_at = insn->at;
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
