#include "options.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct options options = {
    .tick_ms = 100,
    .beat_ms = 20,
    .memory_mib = 32,
    .rewrite_kib = 1024,
    .threads = 2,
    .jump_ms = 1000,
    .disk_path = "/dev/vda",
    .tests = "all",
};

static bool number(const char *text, unsigned lowest, unsigned highest, unsigned *result)
{
    char *end;
    unsigned long value = strtoul(text, &end, 10);
    if (*text < '0' || *text > '9' || *end || value < lowest || value > highest)
        return false;
    *result = (unsigned)value;
    return true;
}

static bool flag(const char *text, bool *result)
{
    *result = strcmp(text, "1") == 0;
    return *result || strcmp(text, "0") == 0;
}

static bool choice(const char *text, const char *off, const char *on, bool *result)
{
    *result = strcmp(text, on) == 0;
    return *result || strcmp(text, off) == 0;
}

static bool text(const char *value, char *result, size_t size)
{
    return *value && (size_t)snprintf(result, size, "%s", value) < size;
}

bool option_read(const char *word)
{
    char name[32];
    const char *equals = strchr(word, '=');
    if (!equals || (size_t)(equals - word) >= sizeof name)
        return false;
    snprintf(name, sizeof name, "%.*s", (int)(equals - word), word);
    const char *value = equals + 1;
    if (!strcmp(name, "tick_ms"))
        return number(value, 1, 60000, &options.tick_ms);
    if (!strcmp(name, "beat_ms"))
        return number(value, 0, 60000, &options.beat_ms);
    if (!strcmp(name, "memory_mib"))
        return number(value, 1, 65536, &options.memory_mib);
    if (!strcmp(name, "rewrite_kib"))
        return number(value, 0, 1u << 24, &options.rewrite_kib);
    if (!strcmp(name, "threads"))
        return number(value, 1, 64, &options.threads);
    if (!strcmp(name, "jump_ms"))
        return number(value, 1, 86400000, &options.jump_ms);
    if (!strcmp(name, "ticks"))
        return number(value, 0, 1u << 30, &options.ticks);
    if (!strcmp(name, "disk"))
        return flag(value, &options.disk);
    if (!strcmp(name, "blind"))
        return flag(value, &options.blind);
    if (!strcmp(name, "disk_path"))
        return text(value, options.disk_path, sizeof options.disk_path);
    if (!strcmp(name, "fault"))
        return choice(value, "die", "report", &options.report_faults);
    if (!strcmp(name, "watch"))
        return choice(value, "beat", "spin", &options.spin);
    if (!strcmp(name, "test"))
        return text(value, options.tests, sizeof options.tests);
    return false;
}

unsigned options_from_kernel(const char *path)
{
    static const char prefix[] = "isthmus.";
    char line[4096];
    unsigned unknown = 0;
    FILE *file = fopen(path, "r");
    if (!file || !fgets(line, sizeof line, file))
        line[0] = 0;
    if (file)
        fclose(file);
    char *rest = NULL;
    for (char *word = strtok_r(line, " \n", &rest); word; word = strtok_r(NULL, " \n", &rest))
        if (!strncmp(word, prefix, sizeof prefix - 1) && !option_read(word + sizeof prefix - 1))
            unknown++;
    return unknown;
}

bool test_wanted(const char *group)
{
    if (!strcmp(options.tests, "all"))
        return true;
    size_t length = strlen(group);
    for (const char *at = options.tests; at; at = strchr(at, ','), at = at ? at + 1 : NULL)
        if (!strncmp(at, group, length) && (at[length] == ',' || !at[length]))
            return true;
    return false;
}
