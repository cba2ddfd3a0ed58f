/* Makes the package bochscpu-python usable here: the functions of newer C libraries that its wheel
 * wants, and another CPU model in place of the one that it always takes (BOCHS_MODEL: the symbol
 * that makes one; BOCHS_SO: the extension's path). */
#include <dlfcn.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

long __isoc23_strtol(const char *a, char **b, int c) { return strtol(a, b, c); }
long long __isoc23_strtoll(const char *a, char **b, int c) { return strtoll(a, b, c); }
unsigned long __isoc23_strtoul(const char *a, char **b, int c) { return strtoul(a, b, c); }
unsigned long long __isoc23_strtoull(const char *a, char **b, int c) { return strtoull(a, b, c); }

int __isoc23_sscanf(const char *text, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    int read = vsscanf(text, format, arguments);
    va_end(arguments);
    return read;
}

void *_Z23create_corei3_cnl_cpuidP8BX_CPU_C(void *cpu)
{
    void *library = dlopen(getenv("BOCHS_SO"), RTLD_NOLOAD | RTLD_LAZY);
    void *(*make)(void *) = (void *(*)(void *))dlsym(library, getenv("BOCHS_MODEL"));
    return make(cpu);
}
