/*
 * convert.h — what `xlstm convert` and `xlstm quantize` share: running a conversion with messages and a progress bar.
 */
#ifndef CLI_CONVERT_H
#define CLI_CONVERT_H

#include "common.h"

/* Options of both. */
typedef struct convert_options {
    xlstm_dtype type;
    uint64_t threads;
    string_list set;
    bool verbose, quiet;
} convert_options;

extern const option_row convert_rows[];
enum { CONVERT_ROWS = 5 };
#define CONVERT_GROUP(type, member) {"Options", convert_rows, CONVERT_ROWS, offsetof(type, member)}

/* arguments: MODEL and OUT. `wanted` brings what only one command knows; the options of both are filled in here. */
int convert_model(xlstm_convert_options *wanted, const convert_options *options, char **arguments, size_t n);

#endif
