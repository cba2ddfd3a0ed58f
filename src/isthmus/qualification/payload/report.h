/* The report stream: numbered, checksummed lines, handed by the worker to the supervisor.
 *
 * Format: docs/payload.md.  A record is made under one lock in memory that worker and supervisor
 * share, and counts only once it is whole; only the supervisor writes to the port.  So a worker
 * that is killed in the middle of anything leaves neither half a line nor a repeated one. */
#ifndef ISTHMUS_REPORT_H
#define ISTHMUS_REPORT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#define RECORD_BODY 900 /* bytes for type and fields; a line stays below 1024 */

struct record {
    size_t length;
    char body[RECORD_BODY];
};

/* Call once, before fork. */
void report_setup(void);

void record_begin(struct record *record, const char *type);

/* Adds " key=value"; a value must hold neither blanks nor line ends. */
void record_add(struct record *record, const char *key, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* Numbers the record and queues it.  Never blocks on the port: a full queue drops the record,
 * whose number is then missing from the stream, and counts it. */
void record_commit(struct record *record);

/* For the supervisor: a descriptor that becomes readable when there is something to write, the
 * bytes that wait (at most a piece, since the queue is a ring), and how many of them were written. */
int report_wakeup(void);
size_t report_waiting(const char **bytes);
void report_written(size_t count);
uint64_t report_dropped(void);

/* Names what the worker is doing, so that its death can be told from the supervisor. */
void report_doing(const char *what);
void report_last_doing(char *name, size_t size);

#endif
