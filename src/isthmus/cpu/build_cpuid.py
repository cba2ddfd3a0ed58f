"""Build the extension module ``isthmus.cpu._cpuid``: the CPUID instruction for Python (cffi)."""

import cffi

ffibuilder = cffi.FFI()
ffibuilder.cdef("void isthmus_cpuid(uint32_t leaf, uint32_t subleaf, uint32_t words[4]);")
ffibuilder.set_source(
    "isthmus.cpu._cpuid",
    """
    #include <stdint.h>

    static void isthmus_cpuid(uint32_t leaf, uint32_t subleaf, uint32_t words[4])
    {
    #if defined(__x86_64__) || defined(__i386__)
        __asm__ volatile("cpuid"
                         : "=a"(words[0]), "=b"(words[1]), "=c"(words[2]), "=d"(words[3])
                         : "a"(leaf), "c"(subleaf));
    #else
        (void)leaf, (void)subleaf;
        words[0] = words[1] = words[2] = words[3] = 0;
    #endif
    }
    """,
    extra_compile_args=["-std=gnu11", "-O2", "-Wall", "-Wextra"],
)
