/*
 * trace.c — `xlstm trace`: ranges of every stage of the forward pass, block by block, and on request the values.
 */
#include "generation.h"
#include "prompt.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

typedef struct trace_options {
    prompt_options prompt;
    const char *dump, *state_in;
    bool json;
    model_options model;
} trace_options;

#define FIELD(member) offsetof(trace_options, member)
static const option_row rows[] = {
    {"json", 0, OPTION_FLAG, FIELD(json), NULL, "a JSON list, one object for each block and stage", NULL, NULL, 0, 0},
    {"dump", 0, OPTION_TEXT, FIELD(dump), "FOLDER",
     "also write each stage's values there as BLOCK.STAGE.npy, float32 [tokens, width]", NULL, NULL, 0, 0},
    {"state-in", 0, OPTION_TEXT, FIELD(state_in), "FILE", "begin where a saved state stands", NULL, NULL, 0, 0},
};

typedef struct stage {
    int block; /* -1: outside the blocks */
    char name[32];
    uint64_t count, nan, inf;
    double min, max, sum, squares; /* over finite values */
    FILE *file;
    uint64_t rows, width;
} stage;

typedef struct table {
    stage *stages;
    size_t n;
    const char *dump;
    bool failed;
} table;

/* ---- .npy files --------------------------------------------------------------------------------------------------- */

enum { NPY_HEADER = 128 };

/* Version 1.0 header, padded to its fixed size; rewritten once the number of rows is known. */
static bool write_npy_header(FILE *f, uint64_t n_rows, uint64_t width)
{
    char text[NPY_HEADER + 1];
    memset(text, ' ', sizeof text);
    memcpy(text, "\x93NUMPY\x01\x00", 8);
    text[8] = NPY_HEADER - 10;
    text[9] = 0;
    const int n = snprintf(text + 10, NPY_HEADER - 10, "{'descr': '<f4', 'fortran_order': False, 'shape': (%llu, %llu), }",
                           (unsigned long long)n_rows, (unsigned long long)width);
    text[10 + n] = ' ';
    text[NPY_HEADER - 1] = '\n';
    return fseek(f, 0, SEEK_SET) == 0 && fwrite(text, 1, NPY_HEADER, f) == NPY_HEADER;
}

static void open_npy(table *t, stage *s)
{
    char path[1024];
    if (s->block < 0)
        snprintf(path, sizeof path, "%s/%s.npy", t->dump, s->name);
    else
        snprintf(path, sizeof path, "%s/%03d.%s.npy", t->dump, s->block, s->name);
    s->file = fopen(path, "wb");
    if (!s->file || !write_npy_header(s->file, 0, s->width)) {
        if (!t->failed)
            complain("%s: cannot write: %s", path, strerror(errno));
        t->failed = true;
    }
}

/* ---- gathering ---------------------------------------------------------------------------------------------------- */

static stage *stage_of(table *t, int block, const char *name, size_t width)
{
    for (size_t i = 0; i < t->n; i++)
        if (t->stages[i].block == block && !strcmp(t->stages[i].name, name))
            return &t->stages[i];
    t->stages = must(realloc(t->stages, (t->n + 1) * sizeof *t->stages));
    stage *s = &t->stages[t->n++];
    *s = (stage){.block = block, .min = INFINITY, .max = -INFINITY, .width = width};
    snprintf(s->name, sizeof s->name, "%s", name);
    if (t->dump)
        open_npy(t, s);
    return s;
}

static void on_stage(void *user, int block, const char *name, const float *values, size_t n_rows, size_t width)
{
    table *t = user;
    stage *s = stage_of(t, block, name, width);
    s->count += n_rows * width;
    s->rows += n_rows;
    for (size_t i = 0; i < n_rows * width; i++) {
        const double x = values[i];
        if (isnan(x)) {
            s->nan++;
            continue;
        }
        if (isinf(x)) {
            s->inf++;
            continue;
        }
        s->min = x < s->min ? x : s->min;
        s->max = x > s->max ? x : s->max;
        s->sum += x;
        s->squares += x * x;
    }
    if (s->file && !t->failed && fwrite(values, sizeof *values, n_rows * width, s->file) != n_rows * width) {
        complain("%s: cannot write: %s", t->dump, strerror(errno));
        t->failed = true;
    }
}

static int finish_dump(table *t)
{
    for (size_t i = 0; i < t->n; i++) {
        stage *s = &t->stages[i];
        if (!s->file)
            continue;
        bool written = write_npy_header(s->file, s->rows, s->width);
        written = fclose(s->file) == 0 && written;
        if (!written && !t->failed) {
            complain("%s: cannot write: %s", t->dump, strerror(errno));
            t->failed = true;
        }
    }
    return t->failed ? EXIT_RUNTIME : EXIT_OK;
}

/* ---- printing ----------------------------------------------------------------------------------------------------- */

static void print_json_number(const char *key, double x)
{
    if (isfinite(x))
        outputf(",\"%s\":%.9g", key, x);
    else
        outputf(",\"%s\":null", key);
}

static void print_table(const table *t, bool json)
{
    if (json)
        outputf("[");
    else
        outputf("%5s  %-14s %11s %13s %13s %13s %13s %8s %8s\n", "block", "stage", "count", "min", "max", "mean", "rms",
                "NaN", "Inf");
    for (size_t i = 0; i < t->n; i++) {
        const stage *s = &t->stages[i];
        const double finite = (double)(s->count - s->nan - s->inf);
        const double mean = s->sum / finite, rms = sqrt(s->squares / finite);
        if (json) {
            outputf("%s{\"block\":%d,\"stage\":\"%s\",\"count\":%llu", i ? ",\n " : "", s->block, s->name,
                    (unsigned long long)s->count);
            print_json_number("min", s->min);
            print_json_number("max", s->max);
            print_json_number("mean", mean);
            print_json_number("rms", rms);
            outputf(",\"nan\":%llu,\"inf\":%llu}", (unsigned long long)s->nan, (unsigned long long)s->inf);
        } else {
            char block[16] = "-";
            if (s->block >= 0)
                snprintf(block, sizeof block, "%d", s->block);
            outputf("%5s  %-14s %11llu %13.6g %13.6g %13.6g %13.6g %8llu %8llu\n", block, s->name,
                    (unsigned long long)s->count, s->min, s->max, mean, rms, (unsigned long long)s->nan,
                    (unsigned long long)s->inf);
        }
    }
    if (json)
        outputf("]\n");
}

/* ---- command ------------------------------------------------------------------------------------------------------ */

static int run(const void *options, char **arguments, size_t n)
{
    (void)arguments;
    (void)n;
    const trace_options *o = options;
    if (o->dump && !*o->dump)
        return fail_usage("--dump: the name of the folder is empty");
    xlstm_model *model;
    int status = open_model(&model, &o->model, false);
    if (status)
        return status;
    prompt input = {0};
    xlstm_session *session = NULL;
    xlstm_error err = {0};
    table t = {.dump = o->dump};
    status = prompt_read(&input, &o->prompt, model);
    if (status == EXIT_OK && input.ids.n == 0)
        status = fail_usage("give at least one token with --prompt, --prompt-file or --prompt-ids");
    if (status == EXIT_OK)
        status = new_session(&session, model, o->state_in);
    if (status == EXIT_OK) {
        xlstm_session_set_trace(session, on_stage, &t);
        const bool sound = xlstm_prefill(session, input.ids.ids, input.ids.n, &err) == XLSTM_OK;
        print_table(&t, o->json); /* above all when it failed */
        status = finish_dump(&t);
        if (!sound)
            status = fail_error(&err);
    }
    free(t.stages);
    xlstm_session_free(session);
    prompt_free(&input);
    xlstm_model_free(model);
    return output_finish(status);
}

static const option_group groups[] = {
    PROMPT_GROUP(trace_options, prompt),
    {"Output", rows, COUNT_OF(rows), 0},
    MODEL_GROUP(trace_options, model),
};

const command command_trace = {
    .name = "trace",
    .summary = "show the ranges of every stage of the forward pass, block by block",
    .usage = "-m MODEL (-p TEXT | --prompt-ids 1,2,3) [--json]",
    .details = "For each block and stage: how many values, their minimum, maximum, mean and root mean square, and how "
               "many are NaN or infinite. The begin-of-sequence token, where one is put in front, is included.",
    .size = sizeof(trace_options),
    .groups = groups,
    .n_groups = COUNT_OF(groups),
    .run = run,
};
