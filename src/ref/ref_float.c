/*
 * ref_float.c — the scalar backend in float32. See ref_body.h.
 */
#define REAL float
#define FN(name) name##f
#define STATE_F64 0
#define OPS xl_reference_backend
#define NAME "reference"
#include "ref_body.h"
