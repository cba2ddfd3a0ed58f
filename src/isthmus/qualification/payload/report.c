#include "report.h"

#include <errno.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#define QUEUE_SIZE (512u << 10)
#define DOING_SIZE 32

struct shared {
    pthread_mutex_t lock;
    uint64_t next_number;
    uint64_t dropped;
    _Atomic uint64_t head; /* written to the port so far */
    _Atomic uint64_t tail; /* whole records queued so far */
    char doing[DOING_SIZE];
    char queue[QUEUE_SIZE];
};

static struct shared *shared;
static int wakeup = -1;
static uint32_t crc_table[256];

/* CRC-32 of IEEE 802.3, as zlib's crc32(). */
static uint32_t crc32(const char *data, size_t length)
{
    uint32_t crc = 0xffffffffu;
    for (size_t i = 0; i < length; i++)
        crc = crc_table[(crc ^ (uint8_t)data[i]) & 0xff] ^ (crc >> 8);
    return ~crc;
}

void report_setup(void)
{
    for (uint32_t i = 0; i < 256; i++) {
        uint32_t value = i;
        for (int bit = 0; bit < 8; bit++)
            value = value & 1 ? 0xedb88320u ^ (value >> 1) : value >> 1;
        crc_table[i] = value;
    }
    shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    wakeup = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    if (shared == MAP_FAILED || wakeup < 0) {
        perror("payload: no memory for the report queue");
        exit(1);
    }
    pthread_mutexattr_t attributes;
    pthread_mutexattr_init(&attributes);
    pthread_mutexattr_setpshared(&attributes, PTHREAD_PROCESS_SHARED);
    pthread_mutexattr_setrobust(&attributes, PTHREAD_MUTEX_ROBUST);
    pthread_mutex_init(&shared->lock, &attributes);
    pthread_mutexattr_destroy(&attributes);
}

void record_begin(struct record *record, const char *type)
{
    record->length = (size_t)snprintf(record->body, sizeof record->body, "%s", type);
}

void record_add(struct record *record, const char *key, const char *format, ...)
{
    char value[256];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(value, sizeof value, format, arguments);
    va_end(arguments);
    int added = snprintf(record->body + record->length, sizeof record->body - record->length,
                         " %s=%s", key, value);
    /* A field that does not fit is left out whole; the judge misses it rather than half of it. */
    if (added > 0 && record->length + (size_t)added < sizeof record->body)
        record->length += (size_t)added;
    record->body[record->length] = 0;
}

static void queue_bytes(uint64_t position, const char *bytes, size_t count)
{
    for (size_t i = 0; i < count; i++)
        shared->queue[(position + i) % QUEUE_SIZE] = bytes[i];
}

void record_commit(struct record *record)
{
    char line[RECORD_BODY + 64];
    if (pthread_mutex_lock(&shared->lock) == EOWNERDEAD)
        pthread_mutex_consistent(&shared->lock);
    uint64_t number = shared->next_number;
    int length = snprintf(line, sizeof line, "isthmus1 %llu %s", (unsigned long long)number,
                          record->body);
    uint32_t crc = crc32(line, (size_t)length);
    length += snprintf(line + length, sizeof line - (size_t)length, " crc=%08x\n", crc);
    uint64_t tail = atomic_load(&shared->tail);
    if (tail + (uint64_t)length - atomic_load(&shared->head) > QUEUE_SIZE) {
        shared->dropped++;
    } else {
        queue_bytes(tail, line, (size_t)length);
        atomic_store(&shared->tail, tail + (uint64_t)length);
    }
    shared->next_number = number + 1;
    pthread_mutex_unlock(&shared->lock);
    uint64_t one = 1;
    if (write(wakeup, &one, sizeof one) < 0 && errno != EAGAIN)
        abort();
}

int report_wakeup(void)
{
    return wakeup;
}

size_t report_waiting(const char **bytes)
{
    uint64_t head = atomic_load(&shared->head), tail = atomic_load(&shared->tail);
    size_t start = head % QUEUE_SIZE, count = (size_t)(tail - head);
    *bytes = shared->queue + start;
    return count < QUEUE_SIZE - start ? count : QUEUE_SIZE - start;
}

void report_written(size_t count)
{
    atomic_fetch_add(&shared->head, count);
}

uint64_t report_dropped(void)
{
    return shared->dropped;
}

void report_doing(const char *what)
{
    snprintf(shared->doing, sizeof shared->doing, "%s", what);
}

void report_last_doing(char *name, size_t size)
{
    snprintf(name, size, "%.*s", DOING_SIZE - 1, shared->doing[0] ? shared->doing : "-");
}
