/* The program's memory, as the handler reaches it.
 *
 * process_vm_readv and _writev say EFAULT where a touch would raise SIGSEGV at an address of ours; the
 * fault is then raised at the program's own instruction.  They know nothing of three things that a touch
 * does: a stack grows, memory that may only be executed is fetched from, and a store that crosses into a
 * page that is not there changes nothing.  /proc/self/maps answers for the first two, asked only after a
 * failure. */
#include "process.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/uio.h>
#include <string.h>

/* Bytes moved, or an error's number. */
static long moved(int access, uint64_t address, void *bytes, size_t size)
{
    struct iovec ours = {bytes, size}, theirs = {(void *)address, size};
    long call = access == ISTHMUS_WRITE ? SYS_process_vm_writev : SYS_process_vm_readv;
    return RAW(call, RAW(SYS_getpid, 0, 0, 0, 0, 0, 0), &ours, 1, &theirs, 1, 0);
}

/* Where a filter of system calls forbids asking (EPERM, ENOSYS): touch it.  A fault is then the
 * program's own, at an address of ours: the next best. */
static void touch(int access, uint64_t address, uint8_t *bytes, size_t size)
{
    uint64_t open = bit_of(SIGSEGV) | bit_of(SIGBUS), before;
    RAW(SYS_rt_sigprocmask, SIG_UNBLOCK, &open, &before, 8, 0, 0);
    volatile uint8_t *there = (volatile uint8_t *)address;
    for (size_t i = 0; i < size; i++)
        if (access == ISTHMUS_WRITE)
            there[i] = bytes[i];
        else
            bytes[i] = there[i];
    RAW(SYS_rt_sigprocmask, SIG_SETMASK, &before, 0, 8, 0, 0);
}

/* All or nothing within one page; whether it was done. */
static bool within_page(int access, uint64_t address, uint8_t *bytes, size_t size)
{
    long done = moved(access, address, bytes, size);
    if (done < 0 && done != -EFAULT) {
        touch(access, address, bytes, size);
        return true;
    }
    if (done == (long)size)
        return true;
    if (!region_at(address).grows)
        return false;
    uint8_t byte;
    touch(ISTHMUS_READ, address, &byte, 1);
    return moved(access, address, bytes, size) == (long)size;
}

int reach(void *window, int access, uint64_t address, uint8_t *bytes, uint32_t size,
          uint64_t *fault_address, uint32_t *error_code)
{
    uint32_t first = PAGE - (uint32_t)(address % PAGE);
    uint8_t before[64] = {0};
    if (access == ISTHMUS_WRITE && window)
        ((struct window *)window)->available = 0; /* it may write what comes next */
    if (size <= first || size > sizeof before)
        first = size;
    *error_code = access == ISTHMUS_WRITE ? 6 : 4;
    *fault_address = address;
    if (access == ISTHMUS_READ) {
        if (!within_page(access, address, bytes, first))
            return ISTHMUS_PAGE_FAULT;
    } else {
        if (first < size && moved(ISTHMUS_READ, address, before, first) != (long)first &&
            region_at(address).mapped)
            return ISTHMUS_PAGE_FAULT;
        if (!within_page(access, address, bytes, first))
            return ISTHMUS_PAGE_FAULT;
    }
    if (first == size || within_page(access, address + first, bytes + first, size - first))
        return ISTHMUS_OK;
    if (access == ISTHMUS_WRITE)
        within_page(access, address, before, first); /* as if never written */
    *fault_address = address + first;
    return ISTHMUS_PAGE_FAULT;
}

bool put_bytes(uint64_t address, const void *bytes, size_t size)
{
    for (size_t done = 0; done < size;) {
        size_t piece = PAGE - (address + done) % PAGE;
        if (piece > size - done)
            piece = size - done;
        if (!within_page(ISTHMUS_WRITE, address + done, (uint8_t *)bytes + done, piece))
            return false;
        done += piece;
    }
    return true;
}

/* The next hexadecimal number of a line of /proc/self/maps, and what ended it. */
struct reader {
    int file;
    unsigned at, filled;
    char buffer[1024];
};

static int next(struct reader *reader)
{
    if (reader->at == reader->filled) {
        long got = RAW(SYS_read, reader->file, reader->buffer, sizeof reader->buffer, 0, 0, 0);
        if (got <= 0)
            return -1;
        reader->at = 0;
        reader->filled = (unsigned)got;
    }
    return (unsigned char)reader->buffer[reader->at++];
}

static uint64_t number(struct reader *reader, int *end)
{
    uint64_t value = 0;
    for (;;) {
        *end = next(reader);
        if (*end >= '0' && *end <= '9')
            value = value << 4 | (uint64_t)(*end - '0');
        else if (*end >= 'a' && *end <= 'f')
            value = value << 4 | (uint64_t)(*end - 'a' + 10);
        else
            return value;
    }
}

/* Whether the kernel would enlarge a stack that ends at `end` down to there (mm/mmap.c,
 * acct_stack_growth), with its gap of 256 pages to what lies below (`below`). */
static bool may_grow(uint64_t address, uint64_t end, uint64_t below)
{
    struct rlimit limit;
    uint64_t page = address & ~(uint64_t)(PAGE - 1);
    return RAW(SYS_getrlimit, RLIMIT_STACK, &limit, 0, 0, 0, 0) == 0 &&
           (limit.rlim_cur == RLIM_INFINITY || end - page <= limit.rlim_cur) &&
           page >= below + 256 * PAGE;
}

struct region region_at(uint64_t address)
{
    struct region region = {0};
    struct reader reader = {.at = 0, .filled = 0};
    uint64_t below = 0;
    long file = RAW(SYS_openat, AT_FDCWD, "/proc/self/maps", O_RDONLY | O_CLOEXEC, 0, 0, 0);
    if (file < 0) { /* no /proc: whether anything is there can still be known */
        uint8_t vector;
        region.mapped = RAW(SYS_mincore, address & ~(uint64_t)(PAGE - 1), PAGE, &vector, 0, 0, 0) ==
                        0;
        region.executable = region.mapped;
        return region;
    }
    reader.file = (int)file;
    for (;;) {
        int end;
        uint64_t from = number(&reader, &end);
        if (end != '-')
            break;
        uint64_t to = number(&reader, &end);
        char rights[4], name[8] = "";
        for (unsigned i = 0; i < 4; i++)
            rights[i] = (char)next(&reader);
        bool named = false;
        for (int byte; (byte = next(&reader)) != '\n' && byte >= 0;) {
            for (unsigned i = 0; i + 1 < sizeof name; i++)
                name[i] = name[i + 1];
            name[sizeof name - 1] = (char)byte;
            named = true;
        }
        if (address < from) {
            region.grows = named && !memcmp(name + 1, "[stack]", 7) && may_grow(address, to, below);
            break;
        }
        if (address < to) {
            region = (struct region){.mapped = true, .readable = rights[0] == 'r',
                                     .writable = rights[1] == 'w', .executable = rights[2] == 'x'};
            break;
        }
        below = to;
    }
    RAW(SYS_close, file, 0, 0, 0, 0, 0);
    return region;
}

/* Whether an address is one that this CPU's paging does not have: between 47 bits (56 with LA57) and
 * their sign.  The kernel has paging of five levels on if it maps above 47 bits where asked to. */
bool beyond_canonical(uint64_t address)
{
    uint64_t high = address >> 47;
    if (high == 0 || high == 0x1ffff)
        return false;
    uint64_t above = UINT64_C(1) << 48;
    long got = RAW(SYS_mmap, above, PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (got > 0)
        RAW(SYS_munmap, got, PAGE, 0, 0, 0, 0);
    high = address >> 56;
    return got < (long)(UINT64_C(1) << 47) || (high != 0 && high != 0xff);
}
