"""VMware: a level as CPUID masks, and the nearest EVC modes."""
