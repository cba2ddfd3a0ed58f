/* What the payload checks in every tick.  Each check reports its own surprises as records of the
 * type "event" and returns how often it has run. */
#ifndef ISTHMUS_CHECKS_H
#define ISTHMUS_CHECKS_H

#include "report.h"

#include <setjmp.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>

/* arithmetic.c: known answers of the integer unit, the x87 and SSE */
uint64_t integer_answer(uint64_t seed, unsigned rounds);
#define INTEGER_ROUNDS 20000u
#define INTEGER_SEED UINT64_C(0x9e3779b97f4a7c15)
#define INTEGER_ANSWER UINT64_C(0x894d2261a01caca3)
uint64_t arithmetic_check(void);

/* memory.c: patterns over many pages, a part written anew in every tick */
bool memory_setup(void);
uint64_t memory_check(uint64_t tick);

/* threads.c: sums of several threads, a mutex, conditions */
void threads_setup(void);
uint64_t threads_check(void);
/* Sends SIGUSR1 to each thread and waits for its handler. */
uint64_t threads_signals(void);

/* faults.c: deliberate UD2, INT3, division by zero, access to forbidden memory; a timer signal */
void faults_setup(void);
struct fault_counts {
    uint64_t ud2, int3, division, segment, timer;
};
struct fault_counts faults_check(void);
/* Runs a check of which a SIGILL, SIGSEGV or SIGFPE may come; false when one came. */
bool guarded(const char *what, bool (*run)(void), bool *right);

/* clocks.c */
struct clocks {
    int64_t realtime_ns, monotonic_ns;
    uint64_t tsc;
};
void clocks_setup(void);
/* Reads all three under one lock and reports steps; TSC by RDTSC, which no CPU lacks. */
struct clocks clocks_read(void);
uint64_t tsc_read(void);

/* cpuid.c */
struct cpuid_registers {
    uint32_t register_[4]; /* EAX EBX ECX EDX */
};
struct cpuid_registers cpuid(uint32_t leaf, uint32_t subleaf);
void cpuid_setup(void); /* remembers and reports every leaf */
uint64_t cpuid_check(void);
void cpuid_vendor(char vendor[13]);

/* instructions.c: what this CPU offered at start, with known answers */
void instructions_setup(void);
uint64_t instructions_check(void);
void instructions_report(void);
void instructions_names(struct record *record);

/* disk.c: the tick's number in the first sector */
void disk_setup(void);
uint64_t disk_check(uint64_t tick);

#endif
