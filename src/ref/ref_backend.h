/*
 * ref_backend.h — the scalar backends: "reference" (float32) and "reference64" (float64), one body compiled twice. They
 * are written to be read beside docs/model.md and are what every other backend is tested against. Layer 2.
 */
#ifndef XL_REF_BACKEND_H
#define XL_REF_BACKEND_H

#include "backend.h"

extern const xl_backend_ops xl_reference_backend, xl_reference64_backend;

#endif
