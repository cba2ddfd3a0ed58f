/* libFuzzer's target: the decoder and the whole core on a machine state made of the input.
 *
 * The input: 16 bytes of choices, then up to 15 of code (all that follow, so that an instruction is
 * cut wherever the input ends).  The registers come from a generator that the choices seed; memory
 * answers, faults or has no answer by the choices too.  What must hold whatever the bytes are is
 * checked after each execution; the sanitizers check the rest. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "machine.h"

enum { CHOICES = 16, LONGEST = 15, MOST_MOVES = 64 };

struct world {
    uint64_t random;
    uint8_t readable, writable; /* of 0 to 255: how often an access fails; 0 never */
    uint8_t unanswered;
    unsigned loads, stores, failures;
};

static uint64_t next(uint64_t *state) /* splitmix64 */
{
    uint64_t z = *state += UINT64_C(0x9e3779b97f4a7c15);
    z = (z ^ z >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ z >> 27) * UINT64_C(0x94d049bb133111eb);
    return z ^ z >> 31;
}

static void broken(const char *promise)
{
    fprintf(stderr, "promise broken: %s\n", promise);
    abort();
}

#define PROMISE(condition) ((condition) ? (void)0 : broken(#condition))

static int move(void *context, int access, uint64_t address, uint8_t *bytes, uint32_t size,
                uint64_t *fault_address, uint32_t *error_code)
{
    struct world *world = context;
    bool write = access == ISTHMUS_WRITE;
    PROMISE(write || access == ISTHMUS_READ);
    PROMISE(size >= 1 && size <= 64);
    PROMISE(!world->failures); /* after a refusal nothing more is asked */
    PROMISE(write || !world->stores); /* memory is written last */
    PROMISE(world->loads + world->stores < MOST_MOVES);
    uint64_t draw = next(&world->random);
    if ((uint8_t)draw < world->unanswered) {
        world->failures++;
        return ISTHMUS_UNANSWERED;
    }
    if ((uint8_t)(draw >> 8) < (write ? world->writable : world->readable)) {
        world->failures++;
        *fault_address = address + (draw >> 16) % size;
        *error_code = write ? 6 : 4;
        return ISTHMUS_PAGE_FAULT;
    }
    if (write) {
        uint8_t sum = 0;
        for (uint32_t i = 0; i < size; i++)
            sum ^= bytes[i]; /* all of it must be there: MSan and ASan see to that */
        world->random ^= sum;
        world->stores++;
    } else {
        for (uint32_t i = 0; i < size; i++)
            bytes[i] = (uint8_t)next(&world->random);
        world->loads++;
    }
    return ISTHMUS_OK;
}

/* Small, large, negative and wild values. */
static uint64_t value(uint64_t *random)
{
    uint64_t draw = next(random);
    switch (draw >> 61) {
    case 0: return draw & 0xff;
    case 1: return ~(draw & 0xff);
    case 2: return draw & 0xfffff0;
    case 3: return UINT64_C(0x7ffffffff000) - (draw & 0x1f);
    default: return next(random);
    }
}

static void fill(struct isthmus_machine *machine, const uint8_t *choice, uint64_t *random)
{
    static const uint8_t modes[4] = {64, 64, 32, 16};
    uint8_t *bytes = (uint8_t *)machine;
    memset(machine, 0, sizeof *machine);
    for (size_t i = 0; i < sizeof *machine; i++)
        bytes[i] = (uint8_t)next(random);
    for (unsigned i = 0; i < 16; i++)
        machine->gpr[i] = value(random);
    for (unsigned i = 0; i < 6; i++)
        machine->segment_base[i] = value(random);
    machine->mode = modes[choice[0] & 3];
    machine->rip = machine->mode == 64 ? value(random) : (uint32_t)value(random);
    machine->cpl = choice[0] & 4 ? 3 : 0;
    machine->has_ymm = choice[0] >> 3 & 1;
    machine->random_valid = choice[0] >> 4 & 1;
    machine->ordinary = choice[0] >> 5 & 1;
    machine->cr0 = (choice[1] & 1 ? 4 : 0) | (choice[1] & 2 ? 8 : 0) | (choice[1] & 4 ? 0x40000 : 0);
    machine->cr4 = (choice[1] & 8 ? 0 : 0x40200) | (choice[1] & 16 ? 4 : 0);
    if (choice[1] & 32)
        machine->cr4 &= ~UINT64_C(0x40000);
    machine->mxcsr &= 0xffff | (choice[1] & 64 ? 0x20000 : 0);
    if (!(choice[1] & 128))
        machine->mxcsr |= 0x1f80; /* all exceptions masked, as nearly everywhere */
    if (!(choice[2] & 1))
        machine->cr4 |= 0x400; /* OSXMMEXCPT */
    if (!(choice[2] & 2))
        machine->x87_status &= 0x3800; /* no exception waits */
    machine->has_x87 = !(choice[2] & 4);
    if (machine->mode != 64)
        for (unsigned i = 0; i < 16; i++)
            machine->gpr[i] &= i < 8 ? 0xffffffff : 0;
}

static bool is_gather(uint32_t mnemonic)
{
    const char *name = isthmus_mnemonic_name(mnemonic);
    return !strncmp(name, "VPGATHER", 8) || !strncmp(name, "VGATHER", 7);
}

/* An exception leaves everything, but MXCSR's flags and the elements that were gathered before. */
static bool left_alone(struct isthmus_machine before, const struct isthmus_machine *after,
                       const struct isthmus_outcome *outcome)
{
    if (outcome->kind == ISTHMUS_FAULT && outcome->touched & ISTHMUS_WROTE_MXCSR)
        before.mxcsr = after->mxcsr;
    if (outcome->kind == ISTHMUS_FAULT && is_gather(outcome->mnemonic))
        for (unsigned i = 0; i < 16; i++) {
            if (outcome->xmm_written >> i & 1)
                memcpy(before.xmm[i], after->xmm[i], 16);
            if (outcome->ymm_written >> i & 1)
                memcpy(before.ymm_high[i], after->ymm_high[i], 16);
        }
    return !memcmp(&before, after, sizeof before);
}

static unsigned changed(const void *before, const void *after, size_t each, unsigned count)
{
    unsigned mask = 0;
    for (unsigned i = 0; i < count; i++)
        if (memcmp((const uint8_t *)before + i * each, (const uint8_t *)after + i * each, each))
            mask |= 1u << i;
    return mask;
}

static void check(const struct isthmus_machine *before, const struct isthmus_machine *after,
                  const struct isthmus_outcome *outcome, const struct world *world, size_t length)
{
    bool done = outcome->kind == ISTHMUS_DONE;
    const char *name = isthmus_mnemonic_name(outcome->mnemonic);
    bool masked = !strncmp(name, "VPMASKMOV", 9) || !strncmp(name, "VMASKMOV", 8);
    PROMISE(world->stores <= 1 || masked);
    PROMISE(outcome->kind <= ISTHMUS_REFUSED);
    PROMISE((outcome->kind == ISTHMUS_REFUSED) == (outcome->refused != 0));
    PROMISE(outcome->refused < ISTHMUS_FAMILIES);
    PROMISE(done || left_alone(*before, after, outcome));
    bool named = outcome->mnemonic != ISTHMUS_NONE;
    PROMISE(!named || isthmus_mnemonic_name(outcome->mnemonic)[0]);
    PROMISE(!named || outcome->length <= length);
    switch (outcome->kind) {
    case ISTHMUS_DONE:
        PROMISE(named || before->ordinary); /* what every CPU has goes without a name */
        PROMISE(outcome->length >= 1 && outcome->length <= LONGEST && !world->failures);
        /* XBEGIN goes to its fallback and ordinary jumps anywhere, all others to the next one. */
        if (named && outcome->mnemonic != ISTHMUS_XBEGIN) {
            uint64_t next_rip = before->rip + outcome->length;
            PROMISE(after->rip == (before->mode == 64 ? next_rip : (uint32_t)next_rip));
        }
        PROMISE(!(changed(before->gpr, after->gpr, 8, 16) & ~outcome->gpr_written));
        PROMISE(!(changed(before->xmm, after->xmm, 16, 16) & ~outcome->xmm_written));
        PROMISE(!(changed(before->ymm_high, after->ymm_high, 16, 16) & ~outcome->ymm_written));
        PROMISE(!(changed(before->mmx, after->mmx, 8, 8) & ~outcome->mmx_written));
        PROMISE(before->rflags == after->rflags || outcome->flags_written);
        PROMISE(before->mxcsr == after->mxcsr || outcome->touched & ISTHMUS_WROTE_MXCSR);
        PROMISE(before->has_ymm || !outcome->ymm_written);
        PROMISE(before->has_x87 || !(outcome->touched & ISTHMUS_WROTE_X87));
        PROMISE((before->x87_status == after->x87_status && before->x87_tags == after->x87_tags) ||
                outcome->touched & ISTHMUS_WROTE_X87);
        PROMISE(before->x87_control == after->x87_control &&
                !changed(before->x87_high, after->x87_high, 2, 8));
        PROMISE(!memcmp(before->segment_base, after->segment_base, sizeof before->segment_base));
        PROMISE(before->cr0 == after->cr0 && before->cr4 == after->cr4);
        PROMISE(before->mode == after->mode && before->cpl == after->cpl);
        PROMISE(before->tsc == after->tsc && before->random == after->random);
        break;
    case ISTHMUS_FAULT:
        PROMISE(named);
        PROMISE(outcome->vector == 7 || outcome->vector == 12 || outcome->vector == 13 ||
                outcome->vector == 14 || outcome->vector == 16 || outcome->vector == 17 ||
                outcome->vector == 19);
        PROMISE((outcome->vector == 14) == (world->failures != 0));
        break;
    case ISTHMUS_PENDING:
        PROMISE(world->failures);
        break;
    case ISTHMUS_LACKS_STATE:
        PROMISE(named && !world->stores);
        break;
    case ISTHMUS_MORE_BYTES:
        PROMISE(length < LONGEST && !world->loads && !world->stores);
        break;
    default: /* the guest's own #UD: nobody's memory was touched for it */
        PROMISE(!named && !world->stores && !world->failures);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < CHOICES)
        return 0;
    const uint8_t *choice = data;
    size_t length = size - CHOICES;
    if (length > 2 * LONGEST) /* more may be lent than counts */
        length = 2 * LONGEST;
    uint8_t *code = malloc(length ? length : 1); /* exactly as long, so that ASan sees its end */
    memcpy(code, data + CHOICES, length);
    uint64_t random = 0;
    memcpy(&random, choice + 8, 8);
    struct isthmus_machine machine, before;
    struct isthmus_outcome outcome;
    fill(&machine, choice, &random);
    before = machine;
    struct world world = {.random = random};
    if (choice[2] & 1)
        world.readable = choice[3];
    if (choice[2] & 2)
        world.writable = choice[4];
    if (choice[2] & 4)
        world.unanswered = choice[5];
    const struct isthmus_memory memory = {.move = move, .context = &world};
    isthmus_execute(&machine, code, length, &memory, &outcome);
    check(&before, &machine, &outcome, &world, length < LONGEST ? length : LONGEST);
    free(code);
    return 0;
}
