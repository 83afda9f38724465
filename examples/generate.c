/*
 * generate.c — the shortest useful program: open a model, read a prompt, stream what comes next.
 *   cc generate.c $(pkg-config --cflags --libs xlstm) -o generate && ./generate MODEL "Once upon a time"
 */
#include <stdio.h>
#include <string.h>
#include <xlstm.h>

int main(int argc, char **argv)
{
    if (argc != 3) return fprintf(stderr, "usage: generate MODEL PROMPT\n"), 2;

    xlstm_error err = {0};
    xlstm_model *model = NULL;
    xlstm_session *session = NULL;
    xlstm_sampler *sampler = NULL;
    xlstm_stream *stream = NULL;
    int32_t *ids = NULL;
    size_t n = 0;
    if (xlstm_model_open(&model, argv[1], NULL, &err) < 0) goto end;
    const xlstm_model_info *info = xlstm_model_get_info(model);
    const xlstm_tokenizer *tokenizer = xlstm_model_tokenizer(model);
    const xlstm_sampler_options sampling = {.temperature = 0.8f, .top_p = 0.95f, .seed = 7};
    if (tokenizer == NULL) {
        snprintf(err.message, sizeof err.message, "%s has no tokenizer.json", argv[1]);
        err.code = XLSTM_E_ARGUMENT;
        goto end;
    }
    if (xlstm_session_new(&session, model, &err) < 0) goto end;
    if (xlstm_sampler_new(&sampler, info->n_tokens, &sampling, &err) < 0) goto end;
    if (xlstm_stream_new(&stream, tokenizer, true, &err) < 0) goto end;
    if (xlstm_tokenizer_encode(&ids, &n, tokenizer, argv[2], strlen(argv[2]), 0, &err) < 0) goto end;

    printf("%s", argv[2]);
    if (xlstm_prefill(session, ids, n, &err) < 0) goto end;
    for (int i = 0; i < 100; i++) {
        int32_t id;
        const char *text;
        size_t size;
        if (xlstm_sampler_choose(&id, sampler, xlstm_session_logits(session), &err) < 0) goto end;
        if (id == xlstm_tokenizer_end_of_text(tokenizer)) break;
        if (xlstm_stream_push(&text, &size, stream, id, &err) < 0) goto end;
        fwrite(text, 1, size, stdout);
        fflush(stdout);
        if (xlstm_decode(session, id, &err) < 0) goto end;
    }
    printf("\n");
end:
    if (err.code < 0) fprintf(stderr, "%s\n", err.message);
    xlstm_free(ids);
    xlstm_stream_free(stream);
    xlstm_sampler_free(sampler);
    xlstm_session_free(session);
    xlstm_model_free(model);
    return err.code < 0;
}
