/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/* AVX's conversions between singles, doubles and integers (Intel SDM vol. 2A, CVTDQ2PD and what
 * follows it). */
#include "float.h"

enum element { SINGLE, DOUBLE, INTEGER };

/* In map 0F. */
struct conversion {
    uint8_t opcode, prefix;
    uint8_t from, to; /* of enum element */
    bool truncates, scalar;
    uint32_t name;
};

static const struct conversion conversions[] = {
    {0x5a, NP, SINGLE, DOUBLE, false, false, ISTHMUS_VCVTPS2PD},
    {0x5a, P66, DOUBLE, SINGLE, false, false, ISTHMUS_VCVTPD2PS},
    {0x5a, PF3, SINGLE, DOUBLE, false, true, ISTHMUS_VCVTSS2SD},
    {0x5a, PF2, DOUBLE, SINGLE, false, true, ISTHMUS_VCVTSD2SS},
    {0x5b, NP, INTEGER, SINGLE, false, false, ISTHMUS_VCVTDQ2PS},
    {0x5b, P66, SINGLE, INTEGER, false, false, ISTHMUS_VCVTPS2DQ},
    {0x5b, PF3, SINGLE, INTEGER, true, false, ISTHMUS_VCVTTPS2DQ},
    {0xe6, P66, DOUBLE, INTEGER, true, false, ISTHMUS_VCVTTPD2DQ},
    {0xe6, PF3, INTEGER, DOUBLE, false, false, ISTHMUS_VCVTDQ2PD},
    {0xe6, PF2, DOUBLE, INTEGER, false, false, ISTHMUS_VCVTPD2DQ},
};

static uint64_t convert(struct soft *soft, const struct conversion *conversion, uint64_t x)
{
    if (conversion->from == INTEGER)
        return soft_from_integer(soft, format_of(conversion->to == DOUBLE), (int32_t)x);
    if (conversion->to == INTEGER)
        return soft_to_integer(soft, format_of(conversion->from == DOUBLE), x, 32);
    return conversion->to == DOUBLE ? soft_single_to_double(soft, x)
                                    : soft_double_to_single(soft, x);
}

static void run_conversion(struct instruction *insn)
{
    const struct conversion *conversion = insn->operation;
    bool from_wide = conversion->from == DOUBLE, to_wide = conversion->to == DOUBLE;
    /* The wider of the two fills the vector. */
    unsigned count = conversion->scalar ? 1 : vector_bytes(insn) / (from_wide || to_wide ? 8 : 4);
    struct vector from, result = {0};
    if (!begin(insn, conversion->name) ||
        !load_vector(insn, &from, count * (from_wide ? 8 : 4), false))
        return;
    struct soft soft = start(insn);
    if (conversion->truncates)
        soft.rounding = TO_ZERO;
    if (conversion->scalar)
        get_vector(insn, insn->vvvv, &result);
    for (unsigned i = 0; i < count; i++)
        put(&result, to_wide, i, convert(&soft, conversion, get(&from, from_wide, i)));
    if (conversion->scalar)
        result.lane[1] = (union lane){0};
    end(insn, &soft, insn->reg, &result, conversion->name);
}

static bool execute_vectors(struct instruction *insn)
{
    for (size_t i = 0; i < sizeof conversions / sizeof *conversions; i++) {
        const struct conversion *conversion = &conversions[i];
        if (conversion->opcode != insn->opcode || conversion->prefix != insn->prefix)
            continue;
        if (!decode_operands(insn) || (!conversion->scalar && insn->vvvv)) {
            decline(insn);
            return true;
        }
        insn->operation = conversion;
        insn->run = run_conversion;
        return true;
    }
    return false;
}

/* VCVTSI2SS, SD (F3, F2 0F 2A): from a general register or memory. */
static bool execute_from_general(struct instruction *insn)
{
    bool wide = insn->prefix == PF2;
    if (insn->opcode != 0x2a || (insn->prefix != PF3 && !wide))
        return false;
    if (!decode_operands(insn)) {
        decline(insn);
        return true;
    }
    uint32_t name = wide ? ISTHMUS_VCVTSI2SD : ISTHMUS_VCVTSI2SS;
    bool quad = insn->rex & 8; /* VEX.W, which counts in 64-bit mode only */
    uint64_t value;
    struct vector result;
    if (!begin(insn, name) || !load_integer(insn, quad ? 64 : 32, &value))
        return true;
    get_vector(insn, insn->vvvv, &result);
    struct soft soft = start(insn);
    put(&result, wide, 0,
        soft_from_integer(&soft, format_of(wide), quad ? (int64_t)value : (int32_t)value));
    insn->long_vector = false;
    end(insn, &soft, insn->reg, &result, name);
    return true;
}

/* VCVTTSS2SI, SD (F3, F2 0F 2C) and VCVTSS2SI, SD (2D): to a general register. */
static bool execute_to_general(struct instruction *insn)
{
    static const uint32_t names[2][2] = {{ISTHMUS_VCVTTSS2SI, ISTHMUS_VCVTTSD2SI},
                                         {ISTHMUS_VCVTSS2SI, ISTHMUS_VCVTSD2SI}};
    bool wide = insn->prefix == PF2, truncates = !(insn->opcode & 1);
    if ((insn->opcode & 0xfe) != 0x2c || (insn->prefix != PF3 && !wide))
        return false;
    if (!decode_operands(insn) || insn->vvvv) {
        decline(insn);
        return true;
    }
    uint32_t name = names[!truncates][wide];
    unsigned bits = insn->rex & 8 ? 64 : 32;
    struct vector from;
    if (!begin(insn, name) || !load_vector(insn, &from, wide ? 8 : 4, false))
        return true;
    struct soft soft = start(insn);
    if (truncates)
        soft.rounding = TO_ZERO;
    uint64_t value = soft_to_integer(&soft, format_of(wide), get(&from, wide, 0), bits);
    if (!settle(insn, &soft))
        return true;
    set_gpr(insn, insn->reg, bits, value);
    finish(insn, vector_name(insn, name));
    return true;
}

bool execute_avx_convert(struct instruction *insn)
{
    if (insn->xop || insn->map != MAP_0F)
        return false;
    return execute_vectors(insn) || execute_from_general(insn) || execute_to_general(insn);
}
