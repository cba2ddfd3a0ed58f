/* The load: memory patterns over many pages, arithmetic with known answers, computing threads. */
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "payload.h"

#define PAGE 4096u
#define SLICES 16u /* one sixteenth of the memory is rewritten in a round */
#define MAX_THREADS 16u

static uint64_t *memory;
static size_t pages;
static uint64_t *generation; /* of each page; kept apart from the pages themselves */

static uint64_t mixed(uint64_t x)
{
    x ^= x >> 33;
    x *= 0xff51afd7ed558ccdu;
    x ^= x >> 33;
    x *= 0xc4ceb9fe1a85ec53u;
    return x ^ x >> 33;
}

static void write_page(size_t page, uint64_t round)
{
    uint64_t *words = memory + page * (PAGE / 8);
    generation[page] = round;
    for (size_t i = 0; i < PAGE / 8; i += 8)
        words[i] = mixed(round * 0x9e3779b97f4a7c15u + page * 512 + i);
}

static bool check_page(size_t page, uint32_t *sum)
{
    const uint64_t *words = memory + page * (PAGE / 8);
    for (size_t i = 0; i < PAGE / 8; i += 8) {
        if (words[i] != mixed(generation[page] * 0x9e3779b97f4a7c15u + page * 512 + i)) {
            report("wrong", "what=memory page=%zu word=%zu value=%016llx", page, i,
                   (unsigned long long)words[i]);
            return false;
        }
        *sum = *sum * 31 + (uint32_t)words[i];
    }
    return true;
}

bool load_memory(uint64_t round, uint32_t *checksum)
{
    size_t slice = pages / SLICES;
    size_t write_at = (round % SLICES) * slice;
    size_t check_at = ((round + SLICES / 2) % SLICES) * slice;
    bool right = true;
    *checksum = 0;
    for (size_t i = 0; i < slice; i++) {
        right = check_page(check_at + i, checksum) && right;
        write_page(write_at + i, round);
    }
    return right;
}

/* Integer, x87 and SSE2 work whose results are exact by IEEE 754 and the integer rules, so that every
 * correct CPU gives the same bits. */
bool load_known_answers(void)
{
    uint64_t hash = 1;
    for (unsigned i = 0; i < 2000; i++)
        hash = mixed(hash + i) / 3 * 7 % 0xfffffffffffffc5u + (hash << 7 | hash >> 57);
    long double x87 = 0;
    for (unsigned i = 1; i <= 200; i++)
        x87 = __builtin_sqrtl(x87 * x87 + (long double)i / 3);
    double sse = 0;
    for (unsigned i = 1; i <= 200; i++)
        sse = __builtin_sqrt(sse * sse + (double)i / 7);
    uint8_t bytes[26] = {0};
    memcpy(bytes, &hash, 8);
    memcpy(bytes + 8, &x87, 10);
    memcpy(bytes + 18, &sse, 8);
    uint32_t sum = crc32(bytes, sizeof bytes);
    if (sum == KNOWN_ANSWERS)
        return true;
    report("wrong", "what=arithmetic value=%08x", sum);
    return false;
}

static struct worker {
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t asked, answered;
    uint64_t question, answer;
} workers[MAX_THREADS];
static unsigned worker_count;

static uint64_t worked(uint64_t question)
{
    for (unsigned i = 0; i < 500; i++)
        question = mixed(question + i);
    return question;
}

static void *work(void *argument)
{
    struct worker *self = argument;
    uint64_t done = 0;
    pthread_mutex_lock(&self->lock);
    for (;;) {
        while (self->question == done)
            pthread_cond_wait(&self->asked, &self->lock);
        done = self->question;
        self->answer = worked(done);
        pthread_cond_signal(&self->answered);
    }
    return NULL;
}

bool load_threads(uint64_t *sums)
{
    bool right = true;
    *sums = 0;
    for (unsigned i = 0; i < worker_count; i++) {
        struct worker *worker = &workers[i];
        pthread_mutex_lock(&worker->lock);
        uint64_t question = ++worker->question;
        worker->answer = 0;
        pthread_cond_signal(&worker->asked);
        while (!worker->answer)
            pthread_cond_wait(&worker->answered, &worker->lock);
        uint64_t answer = worker->answer;
        pthread_mutex_unlock(&worker->lock);
        *sums += answer;
        if (answer != worked(question)) {
            report("wrong", "what=thread number=%u", i);
            right = false;
        }
    }
    return right;
}

void load_start(const struct options *options)
{
    pages = (size_t)options->memory_mib * 256 / SLICES * SLICES;
    memory = aligned_alloc(PAGE, pages * PAGE);
    generation = calloc(pages, sizeof *generation);
    if (!memory || !generation) {
        report("wrong", "what=start reason=memory");
        _exit(3);
    }
    for (size_t page = 0; page < pages; page++)
        write_page(page, 0);
    worker_count = options->threads < MAX_THREADS ? options->threads : MAX_THREADS;
    for (unsigned i = 0; i < worker_count; i++) {
        pthread_mutex_init(&workers[i].lock, NULL);
        pthread_cond_init(&workers[i].asked, NULL);
        pthread_cond_init(&workers[i].answered, NULL);
        if (pthread_create(&workers[i].thread, NULL, work, &workers[i]))
            _exit(3);
    }
}
