/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/* What has no legacy form: broadcasts, permutes, variable shifts, masked moves, gathers, of AVX2 and
 * of AVX (Intel SDM vol. 2). */
#include "vector.h"

static bool begin(struct instruction *insn, uint32_t name)
{
    name_it(insn, vector_name(insn, name));
    return vex_usable(insn);
}

static uint32_t get_d(const struct vector *v, unsigned i) { return v->lane[i / 4].d[i % 4]; }
static uint64_t get_q(const struct vector *v, unsigned i) { return v->lane[i / 2].q[i % 2]; }

static bool execute_broadcast(struct instruction *insn)
{
    static const struct {
        uint8_t opcode, bytes;
        uint32_t name;
    } kinds[] = {
        {0x78, 1, ISTHMUS_VPBROADCASTB}, {0x79, 2, ISTHMUS_VPBROADCASTW},
        {0x58, 4, ISTHMUS_VPBROADCASTD}, {0x59, 8, ISTHMUS_VPBROADCASTQ},
        {0x5a, 16, ISTHMUS_VBROADCASTI128}, {0x18, 4, ISTHMUS_VBROADCASTSS},
        {0x19, 8, ISTHMUS_VBROADCASTSD}, {0x1a, 16, ISTHMUS_VBROADCASTF128},
    };
    for (size_t k = 0; k < sizeof kinds / sizeof *kinds; k++) {
        if (insn->map != MAP_0F38 || insn->prefix != P66 || insn->opcode != kinds[k].opcode)
            continue;
        bool wide_only = kinds[k].bytes == 16 || insn->opcode == 0x19;
        if (!decode_operands(insn) || insn->vvvv || insn->wide ||
            (wide_only && !insn->long_vector) ||
            (kinds[k].bytes == 16 && !insn->is_memory)) {
            decline(insn);
            return true;
        }
        struct vector from, result = {0};
        if (!begin(insn, kinds[k].name) || !load_vector(insn, &from, kinds[k].bytes, false))
            return true;
        for (unsigned i = 0; i < 32; i++)
            result.lane[i / 16].b[i % 16] = from.lane[0].b[i % kinds[k].bytes];
        set_vector(insn, insn->reg, &result);
        finish(insn, kinds[k].name);
        return true;
    }
    return false;
}

/* VPSRLV, VPSRAV, VPSLLV (45 to 47), VPERMD and VPERMPS (36, 16), by elements of a register. */
static bool execute_by_elements(struct instruction *insn)
{
    uint8_t op = insn->opcode;
    bool permutes = op == 0x36 || op == 0x16;
    if (insn->map != MAP_0F38 || insn->prefix != P66 || !(permutes || (op >= 0x45 && op <= 0x47)))
        return false;
    if (!decode_operands(insn) || (permutes && (!insn->long_vector || insn->wide)) ||
        (op == 0x46 && insn->wide)) {
        decline(insn);
        return true;
    }
    static const uint32_t names[3][2] = {{ISTHMUS_VPSRLVD, ISTHMUS_VPSRLVQ},
                                         {ISTHMUS_VPSRAVD, 0},
                                         {ISTHMUS_VPSLLVD, ISTHMUS_VPSLLVQ}};
    uint32_t name = op == 0x36   ? ISTHMUS_VPERMD
                    : op == 0x16 ? ISTHMUS_VPERMPS
                                 : names[op - 0x45][insn->wide];
    struct vector a, b, result = {0};
    if (!begin(insn, name) || !load_vector(insn, &b, vector_bytes(insn), false))
        return true;
    get_vector(insn, insn->vvvv, &a);
    for (unsigned i = 0; i < 8 && !insn->wide; i++) {
        uint32_t value = get_d(&a, i), by = get_d(&b, i), out;
        if (permutes)
            out = get_d(&b, value & 7);
        else if (op == 0x46)
            out = (uint32_t)((int32_t)value >> (by < 32 ? by : 31));
        else
            out = by >= 32 ? 0 : op == 0x45 ? value >> by : value << by;
        result.lane[i / 4].d[i % 4] = out;
    }
    for (unsigned i = 0; i < 4 && insn->wide; i++) {
        uint64_t value = get_q(&a, i), by = get_q(&b, i);
        result.lane[i / 2].q[i % 2] = by >= 64 ? 0 : op == 0x45 ? value >> by : value << by;
    }
    set_vector(insn, insn->reg, &result);
    finish(insn, name);
    return true;
}

/* VPERMQ, VPERMPD (00, 01), VPBLENDD (02), VPERM2F128 and I128 (06, 46), VINSERTF128 and I128 (18, 38),
 * VEXTRACTF128 and I128 (19, 39). */
static bool execute_by_immediate(struct instruction *insn)
{
    uint8_t op = insn->opcode;
    uint32_t name = op == 0x00   ? ISTHMUS_VPERMQ
                    : op == 0x01 ? ISTHMUS_VPERMPD
                    : op == 0x02 ? ISTHMUS_VPBLENDD
                    : op == 0x06 ? ISTHMUS_VPERM2F128
                    : op == 0x18 ? ISTHMUS_VINSERTF128
                    : op == 0x19 ? ISTHMUS_VEXTRACTF128
                    : op == 0x38 ? ISTHMUS_VINSERTI128
                    : op == 0x39 ? ISTHMUS_VEXTRACTI128
                    : op == 0x46 ? ISTHMUS_VPERM2I128
                                 : 0;
    if (insn->map != MAP_0F3A || insn->prefix != P66 || !name)
        return false;
    bool whole = decode_operands(insn), quads = op < 2;
    bool inserts = (op & 0xdf) == 0x18, extracts = (op & 0xdf) == 0x19;
    unsigned imm = take_byte(insn);
    if (!whole || insn->ended || insn->wide != quads || (op != 0x02 && !insn->long_vector) ||
        ((quads || extracts) && insn->vvvv)) {
        decline(insn);
        return true;
    }
    struct vector a, b, result = {0};
    if (!begin(insn, name))
        return true;
    if (extracts) {
        get_vector(insn, insn->reg, &a);
        result.lane[0] = a.lane[imm & 1];
        if (insn->is_memory) {
            if (!store(insn, result.lane[0].b, 16))
                return true;
        } else {
            insn->long_vector = false;
            set_vector(insn, insn->rm, &result);
        }
        finish(insn, name);
        return true;
    }
    if (!load_vector(insn, &b, inserts ? 16 : vector_bytes(insn), false))
        return true;
    get_vector(insn, insn->vvvv, &a);
    if (quads) {
        for (unsigned i = 0; i < 4; i++)
            result.lane[i / 2].q[i % 2] = get_q(&b, imm >> 2 * i & 3);
    } else if (op == 0x02) {
        for (unsigned i = 0; i < 8; i++)
            result.lane[i / 4].d[i % 4] = get_d(imm >> i & 1 ? &b : &a, i);
    } else if (inserts) {
        result = a;
        result.lane[imm & 1] = b.lane[0];
    } else {
        for (unsigned i = 0; i < 2; i++) {
            unsigned choice = imm >> 4 * i;
            if (!(choice & 8))
                result.lane[i] = (choice & 2 ? &b : &a)->lane[choice & 1];
        }
    }
    set_vector(insn, insn->reg, &result);
    finish(insn, name);
    return true;
}

/* VPMASKMOVD and Q: 8C loads, 8E stores; VMASKMOVPS and PD: 2C and 2D load, 2E and 2F store.  Elements
 * whose mask has no sign are not touched. */
static bool execute_masked(struct instruction *insn)
{
    bool floats = (insn->opcode & 0xfc) == 0x2c;
    bool loads = insn->opcode == 0x8c || (floats && !(insn->opcode & 2));
    if (insn->map != MAP_0F38 || insn->prefix != P66 ||
        (!floats && insn->opcode != 0x8c && insn->opcode != 0x8e))
        return false;
    if (!decode_operands(insn) || !insn->is_memory || (floats && insn->wide)) {
        decline(insn);
        return true;
    }
    bool wide = floats ? insn->opcode & 1 : insn->wide;
    uint32_t name = floats ? wide ? ISTHMUS_VMASKMOVPD : ISTHMUS_VMASKMOVPS
                    : wide ? ISTHMUS_VPMASKMOVQ
                           : ISTHMUS_VPMASKMOVD;
    unsigned width = wide ? 8 : 4, count = vector_bytes(insn) / width;
    struct vector mask, value, result = {0};
    int segment;
    if (!begin(insn, name))
        return true;
    uint64_t offset = effective_address(insn, &segment);
    get_vector(insn, insn->vvvv, &mask);
    get_vector(insn, insn->reg, &value);
    uint32_t chosen = 0;
    for (unsigned i = 0; i < count; i++) {
        unsigned at = i * width, sign = at + width - 1;
        bool set = mask.lane[sign / 16].b[sign % 16] >> 7;
        chosen |= (uint32_t)set << i;
        if (loads && set &&
            !load_at(insn, segment, offset + at, &result.lane[at / 16].b[at % 16], width))
            return true;
    }
    if (loads)
        set_vector(insn, insn->reg, &result);
    else if (!store_masked(insn, segment, offset, (const uint8_t *)&value, chosen, width))
        return true;
    finish(insn, name);
    return true;
}

/* Gathers, 90 to 93: a fault leaves what was gathered before it, and its mask bits cleared
 * (SDM vol. 2C, VPGATHERDD). */
static bool execute_gather(struct instruction *insn)
{
    static const uint32_t names[4][2] = {{ISTHMUS_VPGATHERDD, ISTHMUS_VPGATHERDQ},
                                         {ISTHMUS_VPGATHERQD, ISTHMUS_VPGATHERQQ},
                                         {ISTHMUS_VGATHERDPS, ISTHMUS_VGATHERDPD},
                                         {ISTHMUS_VGATHERQPS, ISTHMUS_VGATHERQPD}};
    if (insn->map != MAP_0F38 || insn->prefix != P66 || (insn->opcode & 0xfc) != 0x90)
        return false;
    insn->vsib = true;
    if (!decode_operands(insn) || !insn->is_memory || insn->index < 0 ||
        insn->reg == insn->vvvv || insn->reg == insn->index || insn->vvvv == insn->index ||
        address_bits(insn) == 16) {
        decline(insn);
        return true;
    }
    uint32_t name = names[insn->opcode & 3][insn->wide];
    bool long_index = insn->opcode & 1;
    unsigned width = insn->wide ? 8 : 4, bytes = vector_bytes(insn);
    unsigned count = bytes / (long_index || insn->wide ? 8 : 4);
    struct vector mask, index, result;
    if (!begin(insn, name))
        return true;
    get_vector(insn, (unsigned)insn->index, &index);
    get_vector(insn, insn->vvvv, &mask);
    get_vector(insn, insn->reg, &result);
    int number = insn->index, segment;
    insn->index = -1;
    uint64_t base = effective_address(insn, &segment);
    insn->index = number;
    bool moved = true;
    unsigned done = 0;
    for (; done < count && moved; done++) {
        unsigned at = done * width, sign = at + width - 1;
        if (!(mask.lane[sign / 16].b[sign % 16] >> 7))
            continue;
        uint64_t offset = long_index ? get_q(&index, done)
                                     : (uint64_t)(int64_t)(int32_t)get_d(&index, done);
        offset = base + (offset << insn->scale);
        if (address_bits(insn) == 32)
            offset &= 0xffffffff;
        uint8_t element[8];
        moved = load_at(insn, segment, offset, element, width);
        for (unsigned i = 0; moved && i < width; i++)
            result.lane[(at + i) / 16].b[(at + i) % 16] = element[i];
        if (moved)
            for (unsigned i = 0; i < width; i++)
                mask.lane[(at + i) / 16].b[(at + i) % 16] = 0;
    }
    if (!moved && insn->outcome->kind == ISTHMUS_PENDING)
        return true; /* nothing happened; everything is gathered again */
    if (moved) {
        for (unsigned i = count * width; i < 32; i++)
            result.lane[i / 16].b[i % 16] = 0;
        mask = (struct vector){0};
    }
    set_vector(insn, insn->reg, &result);
    set_vector(insn, insn->vvvv, &mask);
    if (moved)
        finish(insn, name);
    return true;
}

bool execute_avx2(struct instruction *insn)
{
    if (insn->xop)
        return false;
    return execute_broadcast(insn) || execute_by_elements(insn) || execute_by_immediate(insn) ||
           execute_masked(insn) || execute_gather(insn);
}
