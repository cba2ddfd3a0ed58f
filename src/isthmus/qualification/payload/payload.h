/* The payload: a program in a lab guest that computes known answers and reports every surprise.
 * The format of its reports is docs/payload.md. */
#ifndef ISTHMUS_PAYLOAD_H
#define ISTHMUS_PAYLOAD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct options {
    unsigned tick_ms;   /* period of the full round of checks */
    unsigned beat_ms;   /* period of the heartbeat */
    unsigned memory_mib;/* size of the pattern that is rewritten and checked */
    unsigned threads;   /* computing threads beside the main one */
    bool disk;          /* write and check a sequence number on /dev/vda */
    char tests[512];    /* "all", "none", or feature names separated by commas */
};

/* report.c */
void report_open(void);
void report(const char *type, const char *format, ...) __attribute__((format(printf, 2, 3)));
void report_after_death(void);
uint32_t crc32(const void *data, size_t length);

/* instructions.c */
void instructions_choose(const char *names);
const char *instructions_chosen(void);
/* Runs every chosen instruction once; reports a wrong answer; returns how many were right. */
unsigned instructions_run(void);

/* load.c */
void load_start(const struct options *options);
/* Checks one round; each returns false after reporting what was wrong. */
bool load_memory(uint64_t round, uint32_t *checksum);
bool load_known_answers(void);
bool load_threads(uint64_t *sums);

/* machine.c */
void machine_remember(void);
void machine_compare(void);
uint64_t machine_tsc(void);
void machine_cpu(char *text, size_t size);

#endif
