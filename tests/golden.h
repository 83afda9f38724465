/*
 * golden.h — reads tests/golden/<model>/golden.json and golden.bin (tests/golden/README.md): prompts with the float32 logits
 * and greedy ids of Hugging Face transformers, the float64 logits of tools/reference.py, values of single stages,
 * perplexities. Trusts the files; aborts on any surprise.
 */
#ifndef GOLDEN_H
#define GOLDEN_H

#include <jansson.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define GOLDEN_UNUSED __attribute__((unused))
#define GOLDEN_CHECK(x) ((x) ? (void)0 : (fprintf(stderr, "%s:%d: %s failed\n", __FILE__, __LINE__, #x), abort()))

typedef struct golden_prompt {
    int32_t *ids; /* [n] */
    size_t n;
    size_t first_row;     /* logits of rows first_row .. n-1 are recorded */
    const float *logits;  /* [n - first_row][vocab_size], transformers in float32 */
    const double *oracle; /* [vocab_size], last row in float64 */
    double scale;         /* largest |logit| */
    int32_t *greedy;      /* [n_greedy] ids that follow */
    size_t n_greedy;
} golden_prompt;

typedef struct golden_stage {
    int block; /* -1: outside the blocks */
    const char *name;
    size_t width;
    const float *values; /* [ids of the stage prompt][width] */
} golden_stage;

typedef struct golden {
    json_t *json;
    uint8_t *bin;
    size_t bin_size, vocab_size;
    golden_prompt *prompts; /* [n_prompts] */
    size_t n_prompts;
    int32_t *stage_ids; /* [n_stage_ids], NULL without stages */
    size_t n_stage_ids;
    golden_stage *stages; /* [n_stages] */
    size_t n_stages;
} golden;

static GOLDEN_UNUSED const void *golden_at(const golden *g, const json_t *offset, size_t bytes)
{
    GOLDEN_CHECK(json_is_integer(offset));
    size_t at = (size_t)json_integer_value(offset);
    GOLDEN_CHECK(at % 8 == 0 && at <= g->bin_size && bytes <= g->bin_size - at);
    return g->bin + at;
}

static GOLDEN_UNUSED int32_t *golden_ids(size_t *n, const json_t *list)
{
    GOLDEN_CHECK(json_is_array(list));
    *n = json_array_size(list);
    int32_t *ids = malloc(*n * sizeof *ids);
    GOLDEN_CHECK(ids != NULL);
    for (size_t i = 0; i < *n; i++) ids[i] = (int32_t)json_integer_value(json_array_get(list, i));
    return ids;
}

static GOLDEN_UNUSED void golden_load(golden *g, const char *model)
{
    char path[256];
    memset(g, 0, sizeof *g);
    snprintf(path, sizeof path, "tests/golden/%s/golden.bin", model);
    FILE *file = fopen(path, "rb");
    GOLDEN_CHECK(file != NULL);
    GOLDEN_CHECK(fseek(file, 0, SEEK_END) == 0);
    g->bin_size = (size_t)ftell(file);
    rewind(file);
    g->bin = malloc(g->bin_size);
    GOLDEN_CHECK(g->bin != NULL && fread(g->bin, 1, g->bin_size, file) == g->bin_size);
    fclose(file);
    snprintf(path, sizeof path, "tests/golden/%s/golden.json", model);
    g->json = json_load_file(path, 0, NULL);
    GOLDEN_CHECK(g->json != NULL && json_integer_value(json_object_get(g->json, "format")) == 1);
    g->vocab_size = (size_t)json_integer_value(json_object_get(g->json, "vocab_size"));

    const json_t *prompts = json_object_get(g->json, "prompts");
    g->n_prompts = json_array_size(prompts);
    g->prompts = calloc(g->n_prompts, sizeof *g->prompts);
    for (size_t i = 0; i < g->n_prompts; i++) {
        const json_t *entry = json_array_get(prompts, i);
        golden_prompt *p = &g->prompts[i];
        p->ids = golden_ids(&p->n, json_object_get(entry, "ids"));
        p->greedy = golden_ids(&p->n_greedy, json_object_get(entry, "greedy"));
        p->first_row = (size_t)json_integer_value(json_object_get(entry, "first_row"));
        p->scale = json_real_value(json_object_get(entry, "scale"));
        p->logits = golden_at(g, json_object_get(entry, "logits"), (p->n - p->first_row) * g->vocab_size * 4);
        p->oracle = golden_at(g, json_object_get(entry, "oracle"), g->vocab_size * 8);
    }

    const json_t *stages = json_object_get(g->json, "stages");
    if (stages == NULL) return;
    g->stage_ids = golden_ids(&g->n_stage_ids, json_object_get(stages, "ids"));
    const json_t *entries = json_object_get(stages, "entries");
    g->n_stages = json_array_size(entries);
    g->stages = calloc(g->n_stages, sizeof *g->stages);
    for (size_t i = 0; i < g->n_stages; i++) {
        const json_t *entry = json_array_get(entries, i);
        golden_stage *s = &g->stages[i];
        s->block = (int)json_integer_value(json_object_get(entry, "block"));
        s->name = json_string_value(json_object_get(entry, "stage"));
        s->width = (size_t)json_integer_value(json_object_get(entry, "width"));
        s->values = golden_at(g, json_object_get(entry, "values"), g->n_stage_ids * s->width * 4);
    }
}

static GOLDEN_UNUSED void golden_unload(golden *g)
{
    for (size_t i = 0; i < g->n_prompts; i++) {
        free(g->prompts[i].ids);
        free(g->prompts[i].greedy);
    }
    free(g->prompts);
    free(g->stage_ids);
    free(g->stages);
    free(g->bin);
    json_decref(g->json);
}

#endif
