/* Options: words isthmus.NAME=VALUE of the kernel command line, or NAME=VALUE arguments. */
#ifndef ISTHMUS_OPTIONS_H
#define ISTHMUS_OPTIONS_H

#include <stdbool.h>

struct options {
    unsigned tick_ms;     /* period of the checks */
    unsigned beat_ms;     /* period of the heartbeat, 0 = none */
    unsigned memory_mib;  /* memory with patterns */
    unsigned rewrite_kib; /* how much of it is written anew every tick: what precopy must resend */
    unsigned threads;     /* threads that add sums */
    unsigned jump_ms;     /* a clock that advances by more between two looks is an event */
    unsigned ticks;       /* end after so many ticks, 0 = never */
    bool report_faults;   /* an unexpected SIGILL is an event instead of a death */
    bool spin;            /* watch the TSC without pause, on a vCPU of its own */
    bool disk;            /* keep the tick's number in the first sector of a disk */
    bool blind;           /* believe the names in tests, and not CPUID: as careless programs do */
    char disk_path[128];
    char tests[512]; /* groups of instructions: all, none, or names joined by commas */
};

extern struct options options;

/* Reads one NAME=VALUE; false for an unknown name or a value out of range. */
bool option_read(const char *word);
/* Reads all isthmus.* words of a kernel command line; returns how many were not understood. */
unsigned options_from_kernel(const char *path);
bool test_wanted(const char *group);

#endif
