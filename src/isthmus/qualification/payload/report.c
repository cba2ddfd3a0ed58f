/* Reports: one line each, numbered without a gap over all threads and both processes.
 *
 *     I1 <sequence> <type> key=value ... ~<crc32 of all before the tilde, 8 hex digits>\n
 */
#include <dirent.h>
#include <fcntl.h>
#include <sched.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "payload.h"

#define PORT_NAME "org.isthmus.payload"

/* Shared by the supervisor and the payload, so that a death is reported in sequence. */
static struct shared {
    atomic_flag busy;
    uint64_t sequence;
} *shared;

static int port = -1;

uint32_t crc32(const void *data, size_t length)
{
    const uint8_t *bytes = data;
    uint32_t crc = 0xffffffffu;
    for (size_t i = 0; i < length; i++) {
        crc ^= bytes[i];
        for (int bit = 0; bit < 8; bit++)
            crc = (crc >> 1) ^ (0xedb88320u & (0u - (crc & 1)));
    }
    return ~crc;
}

static int open_port(void)
{
    DIR *folder = opendir("/sys/class/virtio-ports");
    struct dirent *entry;
    while (folder && (entry = readdir(folder))) {
        char path[320], name[64] = "";
        snprintf(path, sizeof path, "/sys/class/virtio-ports/%s/name", entry->d_name);
        int file = open(path, O_RDONLY);
        if (file < 0)
            continue;
        ssize_t got = read(file, name, sizeof name - 1);
        close(file);
        if (got <= 0 || strncmp(name, PORT_NAME, strlen(PORT_NAME)))
            continue;
        snprintf(path, sizeof path, "/dev/%s", entry->d_name);
        closedir(folder);
        return open(path, O_WRONLY | O_CLOEXEC);
    }
    if (folder)
        closedir(folder);
    return open("/dev/ttyS1", O_WRONLY | O_NOCTTY | O_CLOEXEC);
}

void report_open(void)
{
    shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (shared == MAP_FAILED)
        _exit(3);
    port = open_port();
}

void report_after_death(void)
{
    /* The dead one may have held it; nobody else is left who could. */
    atomic_flag_clear(&shared->busy);
}

void report(const char *type, const char *format, ...)
{
    char line[1024];
    va_list arguments;
    while (atomic_flag_test_and_set(&shared->busy))
        sched_yield();
    int length = snprintf(line, sizeof line, "I1 %llu %s ",
                          (unsigned long long)shared->sequence, type);
    va_start(arguments, format);
    length += vsnprintf(line + length, sizeof line - (size_t)length - 12, format, arguments);
    va_end(arguments);
    if (length > (int)sizeof line - 12)
        length = (int)sizeof line - 12;
    uint32_t sum = crc32(line, (size_t)length);
    length += snprintf(line + length, 12, "~%08x\n", sum);
    if (port >= 0 && write(port, line, (size_t)length) == length)
        shared->sequence++;
    atomic_flag_clear(&shared->busy);
}
