/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/* One instruction: decode its opcode, offer it to each group. */
#include "site.h"

static void execute(struct instruction *insn, size_t available)
{
    static bool (*const groups[])(struct instruction *) = {
        execute_clock, execute_sse4a, execute_popcnt,   execute_crc32, execute_movbe,
        execute_flags, execute_wait,  execute_prefetch, execute_3dnow,
        execute_system, execute_bits, execute_integer, execute_crypto, execute_sse4,
        execute_floats, execute_x87,
    };
    static bool (*const vex_groups[])(struct instruction *) = {
        execute_bits, execute_integer, execute_crypto, execute_sse4, execute_avx2, execute_xop,
        execute_floats, execute_avx_arithmetic, execute_avx_compare, execute_avx_convert,
        execute_lwp, execute_avx_moves,
    };
    if (decode_opcode(insn)) {
        if (insn->lock && !(insn->map == MAP_0F && insn->opcode == 0xc7))
            return; /* but for CMPXCHG16B nothing here can be locked: a true #UD */
        size_t count = insn->vex ? sizeof vex_groups / sizeof *vex_groups
                                 : sizeof groups / sizeof *groups;
        bool taken = false;
        for (size_t i = 0; i < count && !taken; i++) {
            struct instruction attempt = *insn; /* a group that declines leaves no trace */
            taken = (insn->vex ? vex_groups : groups)[i](&attempt);
            if (taken && attempt.run)
                *insn = attempt;
            else if (taken)
                insn->ended = attempt.ended;
        }
        if (!taken && insn->machine->ordinary) {
            struct instruction attempt = *insn;
            if (execute_ordinary(&attempt))
                insn->ended = attempt.ended;
        }
        if (!insn->run && !insn->ended && insn->outcome->kind == ISTHMUS_NOT_OURS)
            name_refused(insn);
    }
    if (insn->ended)
        *insn->outcome = (struct isthmus_outcome){
            .kind = available < LONGEST ? ISTHMUS_MORE_BYTES : ISTHMUS_NOT_OURS};
    else if (insn->run)
        insn->run(insn);
}

static struct instruction begin(struct isthmus_machine *machine, const uint8_t *code,
                                size_t available, const struct isthmus_memory *memory,
                                struct isthmus_outcome *outcome)
{
    *outcome = (struct isthmus_outcome){.kind = ISTHMUS_NOT_OURS};
    return (struct instruction){
        .machine = machine, .memory = memory, .outcome = outcome, .code = code, .segment = -1,
        .available = available < LONGEST ? available : LONGEST,
    };
}

void isthmus_execute(struct isthmus_machine *machine, const uint8_t *code, size_t available,
                     const struct isthmus_memory *memory, struct isthmus_outcome *outcome)
{
    struct instruction insn = begin(machine, code, available, memory, outcome);
    execute(&insn, available);
}

bool isthmus_learn(struct instruction *insn, struct isthmus_machine *machine, const uint8_t *code,
                   size_t available, const struct isthmus_memory *memory,
                   struct isthmus_outcome *outcome)
{
    *insn = begin(machine, code, available, memory, outcome);
    execute(insn, available);
    return insn->run && insn->lean && !insn->ended;
}

const char *isthmus_mnemonic_name(uint32_t mnemonic)
{
    static const char *const names[ISTHMUS_MNEMONICS] = {
        "",
#define ISTHMUS_M(name) #name,
#include "mnemonics.inc"
#undef ISTHMUS_M
    };
    static const char *const vex_names[ISTHMUS_MNEMONICS] = {
        "",
#define ISTHMUS_M(name) "V" #name,
#include "mnemonics.inc"
#undef ISTHMUS_M
    };
    uint32_t number = mnemonic & ~(uint32_t)ISTHMUS_VEX_FORM;
    if (number >= ISTHMUS_MNEMONICS)
        return "";
    const char *name = names[number];
    return mnemonic & ISTHMUS_VEX_FORM && name[0] != 'V' ? vex_names[number] : name;
}
