/*
 * quantize.c — `xlstm quantize`: a model in smaller formats, chosen by tensor, with an importance matrix.
 */
#include "convert.h"

typedef struct quantize_options {
    xlstm_dtype embedding, head;
    string_list tensors;
    const char *imatrix;
    convert_options convert;
} quantize_options;

#define FIELD(member) offsetof(quantize_options, member)
static const option_row rows[] = {
    {"imatrix", 'i', OPTION_TEXT, FIELD(imatrix), "FILE",
     "importance matrix that `xlstm imatrix` made: spend precision where the model uses it", NULL, NULL, 0, 0},
    {"type-embedding", 0, OPTION_DTYPE, FIELD(embedding), "TYPE", "format of the embedding", NULL, NULL, 0, 0},
    {"type-head", 0, OPTION_DTYPE, FIELD(head), "TYPE", "format of the head", NULL, NULL, 0, 0},
    {"tensor", 0, OPTION_LIST, FIELD(tensors), "PATTERN=TYPE",
     "format of the tensors that match, by GGUF name: ffn_down=q8_0, 'blk.[0-3].*=q6_k' (repeatable, the last match wins)",
     NULL, NULL, 0, 0},
};

static int run(const void *options, char **arguments, size_t n)
{
    const quantize_options *o = options;
    if (!o->convert.type && !o->embedding && !o->head && !o->tensors.n)
        return fail_usage("give a format with --type, such as q4_k");
    xlstm_convert_options wanted = {
        .embedding = o->embedding,
        .head = o->head,
        .tensors = (const char *const *)o->tensors.items,
        .n_tensors = o->tensors.n,
        .imatrix = o->imatrix,
    };
    return convert_model(&wanted, &o->convert, arguments, n);
}

static const option_group groups[] = {
    {"Formats", rows, COUNT_OF(rows), 0},
    CONVERT_GROUP(quantize_options, convert),
};

const command command_quantize = {
    .name = "quantize",
    .summary = "write a model in smaller formats",
    .usage = "--type q4_k [--imatrix FILE] MODEL OUT.gguf",
    .details = "As xlstm convert, with formats by tensor. Norms, gates and biases stay float32. A matrix whose rows are no "
               "whole blocks of the format gets one with smaller blocks; docs/gguf.md says which.",
    .arguments = "MODEL OUT",
    .size = sizeof(quantize_options),
    .groups = groups,
    .n_groups = COUNT_OF(groups),
    .run = run,
};
