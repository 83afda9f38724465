/*
 * ref_double.c — the scalar backend in float64: the oracle. See ref_body.h.
 */
#define REAL double
#define FN(name) name
#define STATE_F64 1
#define OPS xl_reference64_backend
#define NAME "reference64"
#include "ref_body.h"
