/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/* AVX's own arithmetic: sums, products, quotients, roots, extremes, and the two approximations
 * (Intel SDM vol. 2). */
#include "float.h"

typedef uint64_t operator_function(struct soft *soft, const struct format *format, uint64_t x,
                                   uint64_t y);

static uint64_t plus(struct soft *soft, const struct format *format, uint64_t x, uint64_t y)
{
    return soft_add(soft, format, x, y, false);
}

static uint64_t minus(struct soft *soft, const struct format *format, uint64_t x, uint64_t y)
{
    return soft_add(soft, format, x, y, true);
}

static uint64_t root(struct soft *soft, const struct format *format, uint64_t x, uint64_t y)
{
    (void)x;
    return soft_square_root(soft, format, y);
}

static uint64_t reciprocal(struct soft *soft, const struct format *format, uint64_t x, uint64_t y)
{
    (void)soft, (void)format, (void)x;
    return soft_reciprocal(y);
}

static uint64_t reciprocal_root(struct soft *soft, const struct format *format, uint64_t x,
                                uint64_t y)
{
    (void)soft, (void)format, (void)x;
    return soft_reciprocal_root(y);
}

/* In map 0F; the prefix says which elements, in the order PS, PD, SS, SD. */
struct operation {
    uint8_t opcode;
    bool unary; /* but for its scalar forms, which take the other elements from VEX.vvvv */
    bool singles; /* there are no doubles */
    uint32_t name;
    operator_function *run;
};

static const struct operation operations[] = {
    {0x51, true, false, ISTHMUS_VSQRTPS, root},
    {0x52, true, true, ISTHMUS_VRSQRTPS, reciprocal_root},
    {0x53, true, true, ISTHMUS_VRCPPS, reciprocal},
    {0x58, false, false, ISTHMUS_VADDPS, plus},
    {0x59, false, false, ISTHMUS_VMULPS, soft_multiply},
    {0x5c, false, false, ISTHMUS_VSUBPS, minus},
    {0x5d, false, false, ISTHMUS_VMINPS, soft_least},
    {0x5e, false, false, ISTHMUS_VDIVPS, soft_divide},
    {0x5f, false, false, ISTHMUS_VMAXPS, soft_greatest},
};

static void run_operation(struct instruction *insn)
{
    const struct operation *operation = insn->operation;
    bool wide = insn->prefix & 1, scalar = insn->prefix & 2;
    uint32_t name = operation->name + (operation->singles ? scalar : insn->prefix);
    unsigned size = wide ? 8 : 4, bytes = scalar ? size : vector_bytes(insn);
    struct vector a, b, result;
    if (!begin(insn, name) || !load_vector(insn, &b, bytes, false))
        return;
    get_vector(insn, insn->vvvv, &a);
    result = a;
    struct soft soft = start(insn);
    for (unsigned i = 0; i < bytes / size; i++)
        put(&result, wide, i,
            operation->run(&soft, format_of(wide), get(&a, wide, i), get(&b, wide, i)));
    if (scalar)
        result.lane[1] = (union lane){0};
    end(insn, &soft, insn->reg, &result, name);
}

bool execute_avx_arithmetic(struct instruction *insn)
{
    if (insn->xop || insn->map != MAP_0F)
        return false;
    for (size_t i = 0; i < sizeof operations / sizeof *operations; i++) {
        const struct operation *operation = &operations[i];
        if (operation->opcode != insn->opcode)
            continue;
        bool scalar = insn->prefix & 2;
        if (!decode_operands(insn) || (operation->singles && insn->prefix & 1) ||
            (operation->unary && !scalar && insn->vvvv)) {
            decline(insn);
            return true;
        }
        insn->operation = operation;
        insn->run = run_operation;
        return true;
    }
    return false;
}
