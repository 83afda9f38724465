/*
 * machine.h — what this machine can do at best, measured: read bandwidth and multiply-add peaks. `bench` runs these
 * between its own measurements, because both change with the neighbours on shared machines.
 */
#ifndef CLI_MACHINE_H
#define CLI_MACHINE_H

#include <stdbool.h>
#include <stdint.h>

typedef struct machine machine;

typedef enum peak_kind { PEAK_F32, PEAK_BF16, PEAK_INT8, PEAKS } peak_kind;

/* `threads` 0: all CPUs. Takes about a gigabyte, less where memory is short. NULL on failure. */
machine *machine_new(uint32_t threads);
void machine_free(machine *m);
uint32_t machine_threads(const machine *m);
/* Name of the processor. Borrowed. */
const char *machine_cpu(const machine *m);

/* Bytes a second when all threads read, each a stream of its own, in about `seconds`: the better of leaving the fetching to
 * the processor and fetching ahead by hand. */
double machine_read_bandwidth(machine *m, double seconds);
/* Operations a second (a multiply-add is two) from registers with the best instruction of that kind; 0 if the processor
 * has none. */
double machine_peak(machine *m, peak_kind kind, double seconds);
/* "avx512-bf16", ... ; NULL if there is none. */
const char *machine_peak_name(peak_kind kind);

#endif
