/*
 * fork.c — one prompt, three continuations: the prompt is read once, then its state is forked. A fork costs one copy of
 * a fixed-size block, however long the prompt was. The three are decoded together, one batch a token.
 *   cc fork.c $(pkg-config --cflags --libs xlstm) -o fork && ./fork MODEL "Once upon a time"
 */
#include <stdio.h>
#include <string.h>
#include <xlstm.h>

#define CHECK(call)                                                                                                    \
    if ((call) < 0) return fprintf(stderr, "%s\n", err.message), 1
enum { FORKS = 3, LENGTH = 40 };

int main(int argc, char **argv)
{
    xlstm_error err = {0};
    if (argc != 3) return fprintf(stderr, "usage: fork MODEL PROMPT\n"), 2;
    xlstm_model *model;
    xlstm_session *prompt;
    CHECK(xlstm_model_open(&model, argv[1], NULL, &err));
    CHECK(xlstm_session_new(&prompt, model, &err));
    const xlstm_tokenizer *tokenizer = xlstm_model_tokenizer(model);
    if (tokenizer == NULL) return fprintf(stderr, "%s has no tokenizer.json\n", argv[1]), 1;

    int32_t *ids;
    size_t n;
    CHECK(xlstm_tokenizer_encode(&ids, &n, tokenizer, argv[2], strlen(argv[2]), 0, &err));
    CHECK(xlstm_prefill(prompt, ids, n, &err));
    xlstm_free(ids);

    xlstm_sampler *sampler[FORKS];
    xlstm_segment batch[FORKS] = {0};
    int32_t text[FORKS][LENGTH];
    for (int f = 0; f < FORKS; f++) {
        const xlstm_sampler_options options = {.temperature = 0.9f, .seed = (uint64_t)f + 1};
        CHECK(xlstm_sampler_new(&sampler[f], xlstm_model_get_info(model)->n_tokens, &options, &err));
        CHECK(xlstm_session_fork(&batch[f].session, prompt, &err));
    }
    for (int i = 0; i < LENGTH; i++) {
        for (int f = 0; f < FORKS; f++) {
            CHECK(xlstm_sampler_choose(&text[f][i], sampler[f], xlstm_session_logits(batch[f].session), &err));
            batch[f].tokens = &text[f][i];
            batch[f].count = 1;
            batch[f].want = XLSTM_WANT_LAST;
        }
        CHECK(xlstm_evaluate(model, batch, FORKS, &err));
    }
    for (int f = 0; f < FORKS; f++) {
        char *words;
        CHECK(xlstm_tokenizer_decode(&words, &n, tokenizer, text[f], LENGTH, true, &err));
        printf("%d: %s%s\n", f + 1, argv[2], words);
        xlstm_free(words);
        xlstm_sampler_free(sampler[f]);
        xlstm_session_free(batch[f].session);
    }
    xlstm_session_free(prompt);
    xlstm_model_free(model);
    return 0;
}
