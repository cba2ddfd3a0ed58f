/* The tick's number in the first sector of a disk, read back before it is written anew: a second
 * copy of this guest that wrote the same disk would be seen. */
#include "checks.h"
#include "options.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define SECTOR 4096 /* a multiple of every logical sector size */

struct mark {
    char magic[16];
    uint64_t run, tick;
};

static const char magic[16] = "isthmus-payload";
static int disk = -1;
static void *buffer;
static struct mark last;

static void event(const char *kind, const struct mark *got, int error)
{
    struct record record;
    record_begin(&record, "event");
    record_add(&record, "kind", "%s", kind);
    record_add(&record, "expected", "%llx.%llu", (unsigned long long)last.run,
               (unsigned long long)last.tick);
    record_add(&record, "got", "%llx.%llu", (unsigned long long)got->run,
               (unsigned long long)got->tick);
    record_add(&record, "error", "%d", error);
    record_commit(&record);
}

static bool put(void)
{
    memset(buffer, 0, SECTOR);
    memcpy(buffer, &last, sizeof last);
    return pwrite(disk, buffer, SECTOR, 0) == SECTOR;
}

void disk_setup(void)
{
    struct timespec now;
    if (!options.disk)
        return;
    disk = open(options.disk_path, O_RDWR | O_DIRECT | O_SYNC | O_CLOEXEC);
    clock_gettime(CLOCK_REALTIME, &now);
    memcpy(last.magic, magic, sizeof magic);
    last.run = (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
    if (disk < 0 || posix_memalign(&buffer, SECTOR, SECTOR) || !put())
        event("disk-error", &last, errno);
}

uint64_t disk_check(uint64_t tick)
{
    static uint64_t written;
    if (!buffer)
        return 0;
    struct mark found = {{0}, 0, 0};
    if (pread(disk, buffer, SECTOR, 0) != SECTOR) {
        event("disk-error", &last, errno);
        return written;
    }
    memcpy(&found, buffer, sizeof found);
    if (memcmp(&found, &last, sizeof found))
        event("disk", &found, 0);
    last.tick = tick;
    if (!put())
        event("disk-error", &last, errno);
    else
        written++;
    return written;
}
