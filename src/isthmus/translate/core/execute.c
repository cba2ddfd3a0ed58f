/* One instruction: decode its opcode, offer it to each group. */
#include "instruction.h"

void isthmus_execute(struct isthmus_machine *machine, const uint8_t *code, size_t available,
                     const struct isthmus_memory *memory, struct isthmus_outcome *outcome)
{
    static bool (*const groups[])(struct instruction *) = {
        execute_clock, execute_sse4a, execute_popcnt,   execute_crc32, execute_movbe,
        execute_flags, execute_wait,  execute_prefetch, execute_3dnow,
    };
    *outcome = (struct isthmus_outcome){.kind = ISTHMUS_NOT_OURS};
    struct instruction insn = {
        .machine = machine, .memory = memory, .outcome = outcome, .code = code, .segment = -1,
        .available = available < LONGEST ? available : LONGEST,
    };
    if (decode_opcode(&insn)) {
        if (insn.lock)
            return; /* nothing here can be locked: a true #UD */
        for (size_t i = 0; i < sizeof groups / sizeof *groups; i++) {
            struct instruction attempt = insn; /* a group that declines leaves no trace */
            if (groups[i](&attempt)) {
                insn.ended = attempt.ended;
                break;
            }
        }
    }
    if (insn.ended)
        *outcome = (struct isthmus_outcome){
            .kind = available < LONGEST ? ISTHMUS_MORE_BYTES : ISTHMUS_NOT_OURS};
}

const char *isthmus_mnemonic_name(uint32_t mnemonic)
{
    static const char *const names[ISTHMUS_MNEMONICS] = {
        [ISTHMUS_NONE] = "", [ISTHMUS_RDTSCP] = "RDTSCP", [ISTHMUS_EXTRQ] = "EXTRQ",
        [ISTHMUS_INSERTQ] = "INSERTQ", [ISTHMUS_MOVNTSS] = "MOVNTSS",
        [ISTHMUS_MOVNTSD] = "MOVNTSD", [ISTHMUS_POPCNT] = "POPCNT", [ISTHMUS_CRC32] = "CRC32",
        [ISTHMUS_MOVBE] = "MOVBE", [ISTHMUS_LAHF] = "LAHF", [ISTHMUS_SAHF] = "SAHF",
        [ISTHMUS_PREFETCH] = "PREFETCH", [ISTHMUS_PREFETCHW] = "PREFETCHW",
        [ISTHMUS_MONITOR] = "MONITOR", [ISTHMUS_MWAIT] = "MWAIT", [ISTHMUS_FEMMS] = "FEMMS",
        [ISTHMUS_PAVGUSB] = "PAVGUSB", [ISTHMUS_PF2ID] = "PF2ID", [ISTHMUS_PF2IW] = "PF2IW",
        [ISTHMUS_PFACC] = "PFACC", [ISTHMUS_PFADD] = "PFADD", [ISTHMUS_PFCMPEQ] = "PFCMPEQ",
        [ISTHMUS_PFCMPGE] = "PFCMPGE", [ISTHMUS_PFCMPGT] = "PFCMPGT", [ISTHMUS_PFMAX] = "PFMAX",
        [ISTHMUS_PFMIN] = "PFMIN", [ISTHMUS_PFMUL] = "PFMUL", [ISTHMUS_PFNACC] = "PFNACC",
        [ISTHMUS_PFPNACC] = "PFPNACC", [ISTHMUS_PFRCP] = "PFRCP", [ISTHMUS_PFRCPIT1] = "PFRCPIT1",
        [ISTHMUS_PFRCPIT2] = "PFRCPIT2", [ISTHMUS_PFRSQIT1] = "PFRSQIT1",
        [ISTHMUS_PFRSQRT] = "PFRSQRT", [ISTHMUS_PFSUB] = "PFSUB", [ISTHMUS_PFSUBR] = "PFSUBR",
        [ISTHMUS_PI2FD] = "PI2FD", [ISTHMUS_PI2FW] = "PI2FW", [ISTHMUS_PMULHRW] = "PMULHRW",
        [ISTHMUS_PSWAPD] = "PSWAPD",
    };
    return mnemonic < ISTHMUS_MNEMONICS ? names[mnemonic] : "";
}
