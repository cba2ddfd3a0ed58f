/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/* What is known by name and done by nobody: the guest gets its honest #UD, the operator an alert.
 *
 * Asked last, of an opcode that no group took.  Whether the instruction would have been legal is
 * not judged (CPL, control registers): a #UD it is in any case.  The rest of the operand does
 * not matter either: the ModRM byte is enough.
 * Sources: Intel SDM vol. 2, appendix A; Intel Architecture Instruction Set Extensions (319433);
 * AMD APM vol. 3, appendix A. */
#include "vector.h"

enum { ANY_PREFIX = 9 };

/* What the byte behind the opcode must be. */
enum shape {
    ANY,        /* anything, or absent */
    EXACT,      /* this byte */
    EXACT_64,   /* this byte, in 64-bit mode only */
    MEMORY,     /* ModRM: memory, with this /digit */
    REGISTER,   /* ModRM: a register, with this /digit */
    ANY_MEMORY, /* ModRM: memory */
    ANY_REGISTER
};

struct refusal {
    uint8_t map, opcode, prefix, shape, detail, family;
};

#define R(map, opcode, prefix, shape, detail, family) \
    {map, opcode, prefix, shape, detail, ISTHMUS_REFUSED_##family}

static const struct refusal legacy[] = {
    R(MAP_0F, 0x05, ANY_PREFIX, ANY, 0, syscall),
    R(MAP_0F, 0x07, ANY_PREFIX, ANY, 0, syscall),
    R(MAP_0F, 0x34, ANY_PREFIX, ANY, 0, sysenter),
    R(MAP_0F, 0x35, ANY_PREFIX, ANY, 0, sysenter),
    R(MAP_0F, 0x37, NP, ANY, 0, smx), /* GETSEC */
    R(MAP_0F, 0x00, PF2, REGISTER, 6, lkgs),
    R(MAP_0F, 0x00, PF2, MEMORY, 6, lkgs),
    R(MAP_0F, 0x01, NP, EXACT, 0xc0, sgx), /* ENCLV */
    R(MAP_0F, 0x01, NP, EXACT, 0xc1, hypercall), /* VMCALL */
    R(MAP_0F, 0x01, NP, EXACT, 0xc2, vmx),
    R(MAP_0F, 0x01, NP, EXACT, 0xc3, vmx),
    R(MAP_0F, 0x01, NP, EXACT, 0xc4, vmx),
    R(MAP_0F, 0x01, NP, EXACT, 0xc5, pconfig),
    R(MAP_0F, 0x01, NP, EXACT, 0xc6, wrmsrns),
    R(MAP_0F, 0x01, PF2, EXACT, 0xc6, msrlist),
    R(MAP_0F, 0x01, PF3, EXACT, 0xc6, msrlist),
    R(MAP_0F, 0x01, NP, EXACT, 0xc7, tse), /* PBNDKB */
    R(MAP_0F, 0x01, NP, EXACT, 0xca, smap),
    R(MAP_0F, 0x01, NP, EXACT, 0xcb, smap),
    R(MAP_0F, 0x01, PF2, EXACT, 0xca, fred),
    R(MAP_0F, 0x01, PF3, EXACT, 0xca, fred),
    R(MAP_0F, 0x01, P66, EXACT, 0xcc, tdx),
    R(MAP_0F, 0x01, P66, EXACT_64, 0xcd, tdx),
    R(MAP_0F, 0x01, P66, EXACT_64, 0xce, tdx),
    R(MAP_0F, 0x01, P66, EXACT_64, 0xcf, tdx),
    R(MAP_0F, 0x01, NP, EXACT, 0xcf, sgx), /* ENCLS */
    R(MAP_0F, 0x01, NP, EXACT, 0xd7, sgx), /* ENCLU */
    R(MAP_0F, 0x01, NP, EXACT, 0xd0, xsave), /* XGETBV */
    R(MAP_0F, 0x01, NP, EXACT, 0xd1, xsave), /* XSETBV */
    R(MAP_0F, 0x01, NP, EXACT, 0xd4, vmx), /* VMFUNC */
    R(MAP_0F, 0x01, ANY_PREFIX, EXACT, 0xd8, svm),
    R(MAP_0F, 0x01, PF3, EXACT, 0xd9, sev), /* VMGEXIT */
    R(MAP_0F, 0x01, PF2, EXACT, 0xd9, sev),
    R(MAP_0F, 0x01, ANY_PREFIX, EXACT, 0xd9, hypercall), /* VMMCALL */
    R(MAP_0F, 0x01, ANY_PREFIX, EXACT, 0xda, svm),
    R(MAP_0F, 0x01, ANY_PREFIX, EXACT, 0xdb, svm),
    R(MAP_0F, 0x01, ANY_PREFIX, EXACT, 0xdc, svm),
    R(MAP_0F, 0x01, ANY_PREFIX, EXACT, 0xdd, svm),
    R(MAP_0F, 0x01, ANY_PREFIX, EXACT, 0xde, svm),
    R(MAP_0F, 0x01, ANY_PREFIX, EXACT, 0xdf, svm),
    R(MAP_0F, 0x01, PF2, EXACT, 0xe8, tsxldtrk),
    R(MAP_0F, 0x01, PF2, EXACT, 0xe9, tsxldtrk),
    R(MAP_0F, 0x01, PF3, EXACT, 0xe8, cet), /* SETSSBSY */
    R(MAP_0F, 0x01, PF3, EXACT, 0xea, cet), /* SAVEPREVSSP */
    R(MAP_0F, 0x01, PF3, MEMORY, 5, cet), /* RSTORSSP */
    R(MAP_0F, 0x01, PF3, EXACT, 0xec, uintr),
    R(MAP_0F, 0x01, PF3, EXACT, 0xed, uintr),
    R(MAP_0F, 0x01, PF3, EXACT, 0xee, uintr),
    R(MAP_0F, 0x01, PF3, EXACT, 0xef, uintr),
    R(MAP_0F, 0x01, NP, EXACT, 0xee, pku),
    R(MAP_0F, 0x01, NP, EXACT, 0xef, pku),
    R(MAP_0F, 0x01, PF3, EXACT, 0xfa, mcommit),
    R(MAP_0F, 0x01, PF3, EXACT_64, 0xfd, sev), /* RMPQUERY */
    R(MAP_0F, 0x01, NP, EXACT, 0xfe, invlpgb),
    R(MAP_0F, 0x01, NP, EXACT, 0xff, invlpgb), /* TLBSYNC */
    R(MAP_0F, 0x01, PF2, EXACT_64, 0xfe, sev), /* RMPUPDATE */
    R(MAP_0F, 0x01, PF3, EXACT_64, 0xfe, sev), /* RMPADJUST */
    R(MAP_0F, 0x01, PF2, EXACT, 0xff, sev), /* PVALIDATE */
    R(MAP_0F, 0x01, PF3, EXACT_64, 0xff, sev), /* PSMASH */
    R(MAP_0F, 0x78, NP, ANY, 0, vmx), /* VMREAD */
    R(MAP_0F, 0x79, NP, ANY, 0, vmx), /* VMWRITE */
    R(MAP_0F, 0xae, NP, MEMORY, 4, xsave),
    R(MAP_0F, 0xae, NP, MEMORY, 5, xsave),
    R(MAP_0F, 0xae, NP, MEMORY, 6, xsave),
    R(MAP_0F, 0xae, P66, MEMORY, 6, cache), /* CLWB */
    R(MAP_0F, 0xae, P66, MEMORY, 7, cache), /* CLFLUSHOPT */
    R(MAP_0F, 0xae, P66, EXACT, 0xf8, cache), /* PCOMMIT */
    R(MAP_0F, 0xae, PF3, REGISTER, 0, fsgsbase),
    R(MAP_0F, 0xae, PF3, REGISTER, 1, fsgsbase),
    R(MAP_0F, 0xae, PF3, REGISTER, 2, fsgsbase),
    R(MAP_0F, 0xae, PF3, REGISTER, 3, fsgsbase),
    R(MAP_0F, 0xae, PF3, REGISTER, 5, cet), /* INCSSP */
    R(MAP_0F, 0xae, PF3, MEMORY, 6, cet), /* CLRSSBSY */
    R(MAP_0F, 0xc7, NP, MEMORY, 3, xsave),
    R(MAP_0F, 0xc7, NP, MEMORY, 4, xsave),
    R(MAP_0F, 0xc7, NP, MEMORY, 5, xsave),
    R(MAP_0F, 0xc7, NP, MEMORY, 6, vmx),
    R(MAP_0F, 0xc7, P66, MEMORY, 6, vmx),
    R(MAP_0F, 0xc7, PF3, MEMORY, 6, vmx),
    R(MAP_0F, 0xc7, NP, MEMORY, 7, vmx),
    R(MAP_0F, 0xc7, PF3, REGISTER, 6, uintr), /* SENDUIPI */
    R(MAP_0F38, 0x80, P66, ANY_MEMORY, 0, vmx), /* INVEPT */
    R(MAP_0F38, 0x81, P66, ANY_MEMORY, 0, vmx), /* INVVPID */
    R(MAP_0F38, 0x82, P66, ANY_MEMORY, 0, invpcid),
    R(MAP_0F38, 0xd8, PF3, MEMORY, 0, key_locker),
    R(MAP_0F38, 0xd8, PF3, MEMORY, 1, key_locker),
    R(MAP_0F38, 0xd8, PF3, MEMORY, 2, key_locker),
    R(MAP_0F38, 0xd8, PF3, MEMORY, 3, key_locker),
    R(MAP_0F38, 0xdc, PF3, ANY, 0, key_locker), /* AESENC128KL; a register: LOADIWKEY */
    R(MAP_0F38, 0xdd, PF3, ANY_MEMORY, 0, key_locker),
    R(MAP_0F38, 0xde, PF3, ANY_MEMORY, 0, key_locker),
    R(MAP_0F38, 0xdf, PF3, ANY_MEMORY, 0, key_locker),
    R(MAP_0F38, 0xfa, PF3, ANY_REGISTER, 0, key_locker),
    R(MAP_0F38, 0xfb, PF3, ANY_REGISTER, 0, key_locker),
    R(MAP_0F38, 0xf5, P66, ANY_MEMORY, 0, cet), /* WRUSS */
    R(MAP_0F38, 0xf6, NP, ANY_MEMORY, 0, cet), /* WRSS */
    R(MAP_0F38, 0xf8, PF2, ANY_MEMORY, 0, enqcmd),
    R(MAP_0F38, 0xf8, PF3, ANY_MEMORY, 0, enqcmd),
    R(MAP_0F3A, 0xf0, PF3, EXACT, 0xc0, hreset),
};

/* Undefined outside 64-bit mode, on a CPU that has them too. */
static bool only_in_64bit(unsigned family)
{
    switch (family) {
    case ISTHMUS_REFUSED_fred:
    case ISTHMUS_REFUSED_fsgsbase:
    case ISTHMUS_REFUSED_lkgs:
    case ISTHMUS_REFUSED_msrlist:
    case ISTHMUS_REFUSED_tse:
    case ISTHMUS_REFUSED_uintr:
        return true;
    default:
        return false;
    }
}

static bool fits(const struct refusal *row, uint8_t byte)
{
    bool is_memory = byte < 0xc0;
    switch (row->shape) {
    case EXACT:
    case EXACT_64: return byte == row->detail;
    case MEMORY: return is_memory && (byte >> 3 & 7) == row->detail;
    case REGISTER: return !is_memory && (byte >> 3 & 7) == row->detail;
    case ANY_MEMORY: return is_memory;
    case ANY_REGISTER: return !is_memory;
    default: return true;
    }
}

/* KANDW and its like in maps 0F and 0F3A; the tile instructions of AMX in 0F38. */
static unsigned family_of_vex(const struct instruction *insn, uint8_t byte)
{
    uint8_t opcode = insn->opcode;
    bool is_memory = byte < 0xc0;
    if (insn->xop)
        return 0;
    if (insn->map == MAP_0F && insn->prefix != PF3) {
        if (opcode == 0x90 || opcode == 0x91) /* KMOV from and to memory; 90 from a mask too */
            return insn->prefix != PF2 && !insn->long_vector && !insn->vvvv &&
                           (opcode == 0x90 || is_memory)
                       ? ISTHMUS_REFUSED_avx512 : 0;
        if (is_memory)
            return 0;
        if (opcode == 0x92 || opcode == 0x93)
            return !insn->long_vector && !insn->vvvv ? ISTHMUS_REFUSED_avx512 : 0;
        if (insn->prefix == PF2)
            return 0;
        if (opcode == 0x44 || opcode == 0x98 || opcode == 0x99)
            return !insn->long_vector && !insn->vvvv ? ISTHMUS_REFUSED_avx512 : 0;
        if (opcode == 0x41 || opcode == 0x42 || (opcode >= 0x45 && opcode <= 0x47) ||
            opcode == 0x4a || opcode == 0x4b)
            return insn->long_vector ? ISTHMUS_REFUSED_avx512 : 0;
        return 0;
    }
    if (insn->map == MAP_0F3A)
        return opcode >= 0x30 && opcode <= 0x33 && insn->prefix == P66 && !is_memory &&
                       !insn->long_vector && !insn->vvvv
                   ? ISTHMUS_REFUSED_avx512 : 0;
    if (insn->map != MAP_0F38 || insn->wide || insn->long_vector || insn->machine->mode != 64)
        return 0;
    bool tile;
    switch (opcode) {
    case 0x49: /* LDTILECFG, STTILECFG; TILERELEASE, TILEZERO */
        tile = !insn->vvvv && (is_memory ? insn->prefix <= P66 && (byte >> 3 & 7) == 0
                               : insn->prefix == NP ? byte == 0xc0
                                                    : insn->prefix == PF2 && (byte & 7) == 0);
        break;
    case 0x4b: /* TILELOADD, TILELOADDT1, TILESTORED: by SIB */
        tile = !insn->vvvv && insn->prefix != NP && is_memory && (byte & 7) == 4;
        break;
    case 0x5c: tile = !is_memory && (insn->prefix == PF3 || insn->prefix == PF2); break;
    case 0x5e: tile = !is_memory; break;
    case 0x6c: tile = !is_memory && insn->prefix <= P66; break;
    default: tile = false;
    }
    return tile ? ISTHMUS_REFUSED_amx : 0;
}

/* EVEX: 62 and three bytes; outside 64-bit mode 62 is BOUND unless the next would name a register.
 * Bits that must be 0 and 1, and a map that exists (Intel SDM vol. 2A, 2.7.1). */
static unsigned family_of_evex(struct instruction *insn)
{
    if (insn->repeat || insn->operand_size || insn->rex)
        return 0; /* #UD on a CPU with AVX-512 too */
    uint8_t first = take_byte(insn), second = take_byte(insn);
    uint8_t map = first & 7;
    if (insn->ended || (insn->machine->mode != 64 && first < 0xc0))
        return 0;
    bool exists = (map >= 1 && map <= 3) || map == 5 || map == 6;
    return exists && !(first & 8) && (second & 4) ? ISTHMUS_REFUSED_avx512 : 0;
}

static unsigned family_of(struct instruction *insn)
{
    if (!insn->vex && insn->map == MAP_ONE_BYTE)
        return insn->opcode == 0x62 ? family_of_evex(insn) : 0;
    if (insn->vex && insn->map == MAP_0F && insn->opcode == 0x77)
        return 0; /* VZEROUPPER: the only one that no ModRM follows */
    if (insn->vex) {
        uint8_t byte = take_byte(insn);
        return insn->ended ? 0 : family_of_vex(insn, byte);
    }
    bool wants = false;
    for (size_t i = 0; i < sizeof legacy / sizeof *legacy; i++) {
        const struct refusal *row = &legacy[i];
        if (row->map != insn->map || row->opcode != insn->opcode ||
            (row->prefix != ANY_PREFIX && row->prefix != insn->prefix) ||
            (row->shape == EXACT_64 && insn->machine->mode != 64))
            continue;
        if (row->shape == ANY)
            return row->family;
        wants = insn->at >= insn->available;
        if (!wants && fits(row, insn->code[insn->at]))
            return row->family;
    }
    insn->ended = insn->ended || wants;
    return 0;
}

void name_refused(struct instruction *insn)
{
    unsigned family = family_of(insn);
    if (family && (insn->machine->mode == 64 || !only_in_64bit(family))) {
        insn->outcome->kind = ISTHMUS_REFUSED;
        insn->outcome->refused = family;
    }
}

const char *isthmus_refused_name(uint32_t family)
{
    static const char *const names[] = {
        "",
#define ISTHMUS_R(name) #name,
#include "refused.inc"
#undef ISTHMUS_R
    };
    return family < sizeof names / sizeof *names ? names[family] : "";
}
