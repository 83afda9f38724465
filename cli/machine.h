/*
 * machine.h — what this machine can do at best, measured: read bandwidth and multiply-add peaks. `bench` runs these
 * between its own measurements, because both change with the neighbours on shared machines.
 */
#ifndef CLI_MACHINE_H
#define CLI_MACHINE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct machine machine;

/* Takes about a gigabyte, less where memory is short, and a second or two to find the fastest way of reading it.
 * `threads` 0: all CPUs. NULL on failure. */
machine *machine_new(uint32_t threads);
void machine_free(machine *m);
/* From here on with so many threads; 0: all CPUs. */
void machine_set_threads(machine *m, uint32_t threads);
/* Name of the processor. Static storage. */
const char *machine_cpu(void);

/* Bytes a second when all threads read, measured for about `seconds`: the best of a few ways of reading that have been the
 * fastest of many so far. */
double machine_read_bandwidth(machine *m, double seconds);
/* How the fastest one reads: "2 streams a thread, fetched 4096 bytes ahead". Static storage. */
const char *machine_read_way(const machine *m);

/* Kinds of multiply-add that this processor has, by name: "avx512", "avx512-bf16", "amx-int8", ...; NULL past the last. */
const char *machine_peak_at(size_t i);
/* NULL, and names that it has not, are false. */
bool machine_has_peak(const char *name);
/* Operations a second (a multiply-add is two) on operands in registers; 0 if the processor has none of that name. */
double machine_peak(machine *m, const char *name, double seconds);

#endif
