/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/* AVX's comparisons: VCMPPS and kin with their 32 predicates, VCOMISS and kin
 * (Intel SDM vol. 2A, CMPPD with table 3-1, COMISD; vol. 2B, UCOMISD). */
#include "float.h"

/* What a predicate is true of; and whether a quiet NaN is invalid.  Bit 4 turns the latter round. */
struct predicate {
    bool of[4]; /* by enum relation: less, equal, greater, unordered */
    bool signalling;
};

static const struct predicate predicates[16] = {
    {{0, 1, 0, 0}, false}, {{1, 0, 0, 0}, true},  {{1, 1, 0, 0}, true},  {{0, 0, 0, 1}, false},
    {{1, 0, 1, 1}, false}, {{0, 1, 1, 1}, true},  {{0, 0, 1, 1}, true},  {{1, 1, 1, 0}, false},
    {{0, 1, 0, 1}, false}, {{1, 0, 0, 1}, true},  {{1, 1, 0, 1}, true},  {{0, 0, 0, 0}, false},
    {{1, 0, 1, 0}, false}, {{0, 1, 1, 0}, true},  {{0, 0, 1, 0}, true},  {{1, 1, 1, 1}, false},
};

static bool execute_predicates(struct instruction *insn)
{
    bool wide = insn->prefix & 1, scalar = insn->prefix & 2;
    if (insn->opcode != 0xc2)
        return false;
    bool whole = decode_operands(insn);
    unsigned imm = take_byte(insn);
    if (!whole || insn->ended) {
        decline(insn);
        return true;
    }
    uint32_t name = ISTHMUS_VCMPPS + insn->prefix;
    unsigned size = wide ? 8 : 4, bytes = scalar ? size : vector_bytes(insn);
    struct vector a, b, result;
    if (!begin(insn, name) || !load_vector(insn, &b, bytes, false))
        return true;
    get_vector(insn, insn->vvvv, &a);
    result = a;
    struct soft soft = start(insn);
    const struct predicate *predicate = &predicates[imm & 15];
    bool signalling = predicate->signalling ^ (imm >> 4 & 1);
    for (unsigned i = 0; i < bytes / size; i++) {
        enum relation relation = soft_compare(&soft, format_of(wide), get(&a, wide, i),
                                              get(&b, wide, i), signalling);
        put(&result, wide, i, predicate->of[relation] ? ~UINT64_C(0) : 0);
    }
    if (scalar)
        insn->long_vector = false;
    end(insn, &soft, insn->reg, &result, name);
    return true;
}

/* VUCOMISS, SD (2E) and VCOMISS, SD (2F), the latter of which takes quiet NaNs for invalid. */
static bool execute_to_flags(struct instruction *insn)
{
    static const uint32_t names[2][2] = {{ISTHMUS_VUCOMISS, ISTHMUS_VUCOMISD},
                                         {ISTHMUS_VCOMISS, ISTHMUS_VCOMISD}};
    static const uint64_t flags[4] = {FLAG_CF, FLAG_ZF, 0, FLAG_ZF | FLAG_PF | FLAG_CF};
    bool wide = insn->prefix == P66, signalling = insn->opcode & 1;
    if ((insn->opcode & 0xfe) != 0x2e || (insn->prefix != NP && !wide))
        return false;
    if (!decode_operands(insn) || insn->vvvv) {
        decline(insn);
        return true;
    }
    uint32_t name = names[signalling][wide];
    struct vector a, b;
    if (!begin(insn, name) || !load_vector(insn, &b, wide ? 8 : 4, false))
        return true;
    get_vector(insn, insn->reg, &a);
    struct soft soft = start(insn);
    enum relation relation =
        soft_compare(&soft, format_of(wide), get(&a, wide, 0), get(&b, wide, 0), signalling);
    if (!settle(insn, &soft))
        return true;
    set_flags(insn, FLAG_CF | FLAG_PF | FLAG_AF | FLAG_ZF | FLAG_SF | FLAG_OF, flags[relation]);
    finish(insn, vector_name(insn, name));
    return true;
}

bool execute_avx_compare(struct instruction *insn)
{
    if (insn->xop || insn->map != MAP_0F)
        return false;
    return execute_predicates(insn) || execute_to_flags(insn);
}
