/* cpu_backend.h — the backend for ordinary processors: vector kernels chosen at run time, a pool of threads. */
#ifndef XL_CPU_BACKEND_H
#define XL_CPU_BACKEND_H

#include "../backend.h"

extern const xl_backend_ops xl_cpu_backend;

#endif
