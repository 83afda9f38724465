/* test_tokenizer.c — ids and text against what Hugging Face `tokenizers` made (tests/data/tokenizer, written by
 * test_tokenizer_parity.py, and the real tokenizer files where they exist), streams against whole texts, what the files
 * say about themselves, and hostile files. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "json.h"
#include "make_model.h"
#include "tokenizer.h"
#include "xlstm.h"

#include <dirent.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define SMALL "tests/data/tokenizer"
#define REAL "../shared/data/tokenizers"
#define STORIES "models/xlstm-stories-10m"

static xlstm_error err;

static xlstm_tokenizer *open_good(const char *path)
{
    xlstm_tokenizer *t = NULL;
    if (xlstm_tokenizer_open(&t, path, &err) != XLSTM_OK) fail_msg("%s", err.message);
    return t;
}

static xlstm_tokenizer *open_text(const char *json, const char *config)
{
    xlstm_tokenizer *t = NULL;
    if (xlstm_tokenizer_open_memory(&t, json, strlen(json), config, config ? strlen(config) : 0, &err) != XLSTM_OK) {
        fail_msg("%s", err.message);
    }
    return t;
}

/* ---- golden files ----------------------------------------------------------------------------------------------- */

static void assert_ids(const xlstm_tokenizer *t, const char *name, const json_t *text, const json_t *expected,
                       unsigned flags)
{
    int32_t *ids;
    size_t n;
    if (xlstm_tokenizer_encode(&ids, &n, t, json_string_value(text), json_string_length(text), flags, &err)) {
        fail_msg("%s: %s", name, err.message);
    }
    bool same = n == json_array_size(expected);
    for (size_t i = 0; same && i < n; i++) same = ids[i] == json_integer_value(json_array_get(expected, i));
    if (!same) {
        char *shown = json_dumps(text, JSON_ENCODE_ANY | JSON_ENSURE_ASCII);
        fail_msg("%s: flags %u: ids differ: %.600s", name, flags, shown);
    }
    xlstm_free(ids);
}

/* All at once and id by id. */
static void assert_text(const xlstm_tokenizer *t, const char *name, const json_t *list, const json_t *expected,
                        bool skip)
{
    size_t n = json_array_size(list), size;
    int32_t *ids = calloc(n + 1, sizeof *ids);
    for (size_t i = 0; i < n; i++) ids[i] = (int32_t)json_integer_value(json_array_get(list, i));
    char *text;
    if (xlstm_tokenizer_decode(&text, &size, t, ids, n, skip, &err)) fail_msg("%s: %s", name, err.message);
    if (size != json_string_length(expected) || memcmp(text, json_string_value(expected), size) != 0) {
        char *shown = json_dumps(expected, JSON_ENCODE_ANY | JSON_ENSURE_ASCII);
        fail_msg("%s: text differs: expected %.600s, found %.600s", name, shown, text);
    }
    xlstm_stream *stream;
    assert_int_equal(xlstm_stream_new(&stream, t, skip, &err), XLSTM_OK);
    size_t at = 0, part;
    const char *s;
    for (size_t i = 0; i <= n; i++) {
        int status =
            i < n ? xlstm_stream_push(&s, &part, stream, ids[i], &err) : xlstm_stream_finish(&s, &part, stream, &err);
        assert_int_equal(status, XLSTM_OK);
        assert_int_equal(xl_utf8_valid(s, part), part);
        assert_true(at + part <= size);
        assert_memory_equal(s, text + at, part);
        at += part;
    }
    assert_int_equal(at, size);
    if (n > 0) assert_int_equal(xlstm_stream_push(&s, &part, stream, ids[0], &err), XLSTM_E_ARGUMENT);
    xlstm_stream_free(stream);
    xlstm_free(text);
    free(ids);
}

static const json_t *either(const json_t *line, const char *key, const char *otherwise)
{
    const json_t *value = json_object_get(line, key);
    return value != NULL ? value : json_object_get(line, otherwise);
}

static size_t check_golden(const xlstm_tokenizer *t, const char *path)
{
    FILE *f = fopen(path, "r");
    if (f == NULL) fail_msg("%s: cannot be opened", path);
    char *text = NULL;
    size_t capacity = 0, lines = 0;
    ssize_t n;
    for (; (n = getline(&text, &capacity, f)) > 0; lines++) {
        json_t *line;
        if (xl_json_parse(&line, text, (size_t)n, path, true, &err) != XLSTM_OK) fail_msg("%s", err.message);
        const json_t *input = json_object_get(line, "text"), *ids = json_object_get(line, "ids");
        const json_t *special = json_object_get(line, "special");
        assert_ids(t, path, input, ids, 0);
        assert_ids(t, path, input, special != NULL ? special : either(line, "ids_special", "ids"),
                   XLSTM_ENCODE_SPECIAL);
        if (json_object_get(line, "literal")) {
            assert_ids(t, path, input, json_object_get(line, "literal"), XLSTM_ENCODE_LITERAL);
        }
        const json_t *skipped = json_object_get(line, "skipped");
        assert_text(t, path, ids, json_object_get(line, "decoded"), false);
        assert_text(t, path, ids, skipped != NULL ? skipped : either(line, "decoded_skip_special", "decoded"), true);
        json_decref(line);
    }
    free(text);
    fclose(f);
    return lines;
}

static void test_small_golden(void **state)
{
    (void)state;
    DIR *folder = opendir(SMALL);
    assert_non_null(folder);
    size_t files = 0, lines = 0;
    for (struct dirent *e; (e = readdir(folder)) != NULL;) {
        char *end = strstr(e->d_name, ".jsonl");
        if (end == NULL) continue;
        char json[400], golden[400];
        snprintf(json, sizeof json, SMALL "/%.*s.json", (int)(end - e->d_name), e->d_name);
        snprintf(golden, sizeof golden, SMALL "/%.300s", e->d_name);
        xlstm_tokenizer *t = open_good(json);
        lines += check_golden(t, golden);
        files++;
        xlstm_tokenizer_free(t);
    }
    closedir(folder);
    print_message("%zu tokenizers, %zu texts\n", files, lines);
    assert_true(files >= 18 && lines >= 18 * 20);
}

static void test_real_golden(void **state)
{
    (void)state;
    static const char *const names[] = {"gpt-neox-20b", "gpt2", "phi-2", "phi-3-mini", "falcon", "cl100k", "qwen3"};
    if (!xl_is_folder(REAL)) {
        print_message("skip: real tokenizer files: %s does not exist\n", REAL);
        skip();
    }
    for (size_t i = 0; i < XL_COUNT(names); i++) {
        char path[400], golden[400];
        snprintf(path, sizeof path, REAL "/%s", names[i]);
        snprintf(golden, sizeof golden, REAL "/golden/%s.jsonl", names[i]);
        xlstm_tokenizer *t = open_good(path);
        assert_int_equal(check_golden(t, golden), 72);
        xlstm_tokenizer_free(t);
    }
}

/* ---- the tokenizer that ships ----------------------------------------------------------------------------------- */

static void test_shipped(void **state)
{
    (void)state;
    xlstm_tokenizer *t = open_good(STORIES);
    assert_string_equal(xlstm_tokenizer_token(t, xlstm_tokenizer_end_of_text(t)), "<|endoftext|>");
    assert_true(xlstm_tokenizer_is_special(t, xlstm_tokenizer_end_of_text(t)));
    static const char text[] = "Once upon a time, a caf\xc3\xa9 cat <|endoftext|> \xf0\x9f\x99\x82 sat.\n\n  The end";
    int32_t *ids;
    size_t n, size;
    char *back;
    assert_int_equal(xlstm_tokenizer_encode(&ids, &n, t, text, strlen(text), 0, &err), XLSTM_OK);
    size_t ends = 0;
    for (size_t i = 0; i < n; i++) ends += ids[i] == xlstm_tokenizer_end_of_text(t);
    assert_int_equal(ends, 1);
    assert_int_equal(xlstm_tokenizer_decode(&back, &size, t, ids, n, false, &err), XLSTM_OK);
    assert_int_equal(size, strlen(text));
    assert_string_equal(back, text);
    xlstm_free(back);
    xlstm_free(ids);
    assert_int_equal(xlstm_tokenizer_encode(&ids, &n, t, text, strlen(text), XLSTM_ENCODE_LITERAL, &err), XLSTM_OK);
    for (size_t i = 0; i < n; i++) assert_false(xlstm_tokenizer_is_special(t, ids[i]));
    xlstm_free(ids);
    xlstm_tokenizer_free(t);

    /* the file itself finds its companions, too */
    xlstm_tokenizer *file = open_good(STORIES "/tokenizer.json");
    assert_int_equal(xlstm_tokenizer_size(file), 4096);
    assert_int_equal(xlstm_tokenizer_find(file, "<|endoftext|>"), 0);
    assert_int_equal(xlstm_tokenizer_find(file, "no such token"), -1);
    assert_null(xlstm_tokenizer_token(file, -1));
    assert_null(xlstm_tokenizer_token(file, 1 << 30));
    xlstm_tokenizer_free(file);
}

/* ---- bytes that are no text ------------------------------------------------------------------------------------- */

static void test_invalid_utf8(void **state)
{
    (void)state;
    static const struct {
        const char *bytes, *text;
    } cases[] = {{"\xff", "\xef\xbf\xbd"},
                 {"a\xc3", "a\xef\xbf\xbd"},
                 {"\xe2\x82", "\xef\xbf\xbd"},
                 {"\xe2\x82g", "\xef\xbf\xbdg"},
                 {"\xed\xa0\x80", "\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd"},
                 {"\xc0\x80", "\xef\xbf\xbd\xef\xbf\xbd"},
                 {"\xf0\x9f\x99\xf0\x9f\x99\x82", "\xef\xbf\xbd\xf0\x9f\x99\x82"},
                 {"\xf4\x90\x80\x80", "\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd"},
                 {"\xf8\x88\x80\x80\x80", "\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd"}};
    static const char *const files[] = {SMALL "/neox.json", SMALL "/llama2.json", SMALL "/metaspace.json"};
    for (size_t k = 0; k < XL_COUNT(files); k++) {
        xlstm_tokenizer *t = open_good(files[k]);
        for (size_t i = 0; i < XL_COUNT(cases); i++) {
            int32_t *a, *b;
            size_t n, m;
            assert_int_equal(xlstm_tokenizer_encode(&a, &n, t, cases[i].bytes, strlen(cases[i].bytes), 0, &err),
                             XLSTM_OK);
            assert_int_equal(xlstm_tokenizer_encode(&b, &m, t, cases[i].text, strlen(cases[i].text), 0, &err),
                             XLSTM_OK);
            assert_int_equal(n, m);
            assert_memory_equal(a, b, n * sizeof *a);
            xlstm_free(a);
            xlstm_free(b);
        }
        xlstm_tokenizer_free(t);
    }
}

/* Half characters wait for their other half; at the end they become U+FFFD. */
static void test_stream(void **state)
{
    (void)state;
    xlstm_tokenizer *t = open_good(SMALL "/gpt2.json");
    xlstm_stream *s;
    const char *text;
    size_t n;
    int32_t e2 = xlstm_tokenizer_find(t, "\xc3\xa2"), x82 = xlstm_tokenizer_find(t, "\xc4\xa4"),
            ac = xlstm_tokenizer_find(t, "\xc2\xac"), a = xlstm_tokenizer_find(t, "a");
    assert_true(e2 >= 0 && x82 >= 0 && ac >= 0 && a >= 0);
    assert_int_equal(xlstm_stream_new(&s, t, false, &err), XLSTM_OK);
    int32_t ids[] = {e2, x82, ac, e2, a, e2, x82};
    const char *expected[] = {"",
                              "",
                              "\xe2\x82\xac",
                              "",
                              ("\xef\xbf\xbd"
                               "a"),
                              "",
                              ""};
    for (size_t i = 0; i < XL_COUNT(ids); i++) {
        assert_int_equal(xlstm_stream_push(&text, &n, s, ids[i], &err), XLSTM_OK);
        assert_int_equal(n, strlen(expected[i]));
        assert_memory_equal(text, expected[i], n);
    }
    assert_int_equal(xlstm_stream_finish(&text, &n, s, &err), XLSTM_OK);
    assert_int_equal(n, 3);
    assert_memory_equal(text, "\xef\xbf\xbd", 3);
    assert_int_equal(xlstm_stream_push(&text, &n, s, a, &err), XLSTM_E_ARGUMENT);
    xlstm_stream_free(s);

    assert_int_equal(xlstm_stream_new(&s, t, false, &err), XLSTM_OK);
    assert_int_equal(xlstm_stream_push(&text, &n, s, 1 << 20, &err), XLSTM_E_ARGUMENT);
    assert_non_null(strstr(err.message, "1048576"));
    assert_int_equal(xlstm_stream_push(&text, &n, s, -1, &err), XLSTM_E_ARGUMENT);
    xlstm_stream_free(s);
    char *whole;
    assert_int_equal(xlstm_tokenizer_decode(&whole, &n, t, &(int32_t){99999}, 1, false, &err), XLSTM_E_ARGUMENT);
    assert_null(whole);
    xlstm_tokenizer_free(t);
}

/* ---- what files say about themselves ---------------------------------------------------------------------------- */

#define TINY_MODEL                                                                                                         \
    "\"model\": {\"type\": \"BPE\", \"unk_token\": \"u\", \"vocab\": {\"u\": 0, \"a\": 1, \"b\": 2, \"ab\": 3, \"!\": 4, " \
    "\" \": 5}, \"merges\": [\"a b\"]}"
#define ADDED(id, text, special)                                                                                       \
    "{\"id\": " #id ", \"content\": \"" text "\", \"special\": " #special ", \"normalized\": false}"

static void test_config(void **state)
{
    (void)state;
    static const char json[] = "{\"added_tokens\": [" ADDED(6, "<s>", true) ", " ADDED(7, "</s>", true) ", " ADDED(
        8, "<|endoftext|>", false) "], " TINY_MODEL "}";
    static const char template[] = "{\"added_tokens\": [" ADDED(
        6, "<s>",
        true) "], " TINY_MODEL
              ", \"post_processor\": {\"type\": \"TemplateProcessing\", \"single\": [{\"SpecialToken\": {\"id\": \"<s>\", "
              "\"type_id\": 0}}, {\"Sequence\": {\"id\": \"A\", \"type_id\": 0}}], \"pair\": [], \"special_tokens\": {\"<s>\": "
              "{\"id\": \"<s>\", \"ids\": [6], \"tokens\": [\"<s>\"]}}}}";
    static const struct {
        const char *json, *config;
        int bos, end;
        xlstm_switch adds;
        const char *chat;
    } cases[] = {
        {json, NULL, -1, 8, XLSTM_AUTO, NULL},
        {json, "{}", -1, 8, XLSTM_AUTO, NULL},
        {json, "{\"bos_token\": \"<s>\", \"eos_token\": {\"content\": \"</s>\"}, \"add_bos_token\": true}", 6, 7,
         XLSTM_ON, NULL},
        {json, "{\"eos_token\": \"!\", \"add_bos_token\": false}", -1, 8, XLSTM_OFF, NULL},
        {json, "{\"eos_token\": null, \"bos_token\": \"absent\", \"add_bos_token\": null}", -1, 8, XLSTM_AUTO, NULL},
        {json, "{\"model_max_length\": 1000000000000000019884624838656, \"bos_token\": \"<s>\"}", 6, 8, XLSTM_AUTO, NULL},
        {json, "{\"chat_template\": \"{{ x }}\"}", -1, 8, XLSTM_AUTO, "{{ x }}"},
        {json,
         "{\"chat_template\": [{\"name\": \"tool\", \"template\": \"t\"}, {\"name\": \"default\", \"template\": \"d\"}]}",
         -1, 8, XLSTM_AUTO, "d"},
        {template, NULL, 6, -1, XLSTM_ON, NULL},
        {template, "{\"add_bos_token\": false}", 6, -1, XLSTM_OFF, NULL},
    };
    for (size_t i = 0; i < XL_COUNT(cases); i++) {
        xlstm_tokenizer *t = open_text(cases[i].json, cases[i].config);
        assert_int_equal(xlstm_tokenizer_bos(t), cases[i].bos);
        assert_int_equal(xlstm_tokenizer_end_of_text(t), cases[i].end);
        assert_int_equal(xlstm_tokenizer_adds_bos(t), cases[i].adds);
        if (cases[i].chat == NULL) assert_null(xlstm_tokenizer_chat_template(t));
        else assert_string_equal(xlstm_tokenizer_chat_template(t), cases[i].chat);
        xlstm_tokenizer_free(t);
    }
    xlstm_tokenizer *t;
    static const char *const bad[] = {"{\"eos_token\": 3}", "{\"chat_template\": 1}", "[]", "{",
                                      "{\"bos_token\": {\"content\": 1}}"};
    for (size_t i = 0; i < XL_COUNT(bad); i++) {
        assert_int_equal(xlstm_tokenizer_open_memory(&t, json, strlen(json), bad[i], strlen(bad[i]), &err),
                         XLSTM_E_FORMAT);
        assert_non_null(strstr(err.message, "tokenizer_config.json"));
        assert_null(t);
    }
}

/* A folder with chat_template.jinja, which wins over the member of tokenizer_config.json. */
static void test_folder(void **state)
{
    (void)state;
    char folder[] = "/tmp/xlstm-tokenizer-XXXXXX", path[100];
    assert_non_null(mkdtemp(folder));
    static const char *const files[][2] = {{"tokenizer.json", "{" TINY_MODEL "}"},
                                           {"tokenizer_config.json", "{\"chat_template\": \"member\"}"},
                                           {"chat_template.jinja", "file"}};
    xlstm_tokenizer *t;
    assert_int_equal(xlstm_tokenizer_open(&t, folder, &err), XLSTM_E_IO);
    assert_non_null(strstr(err.message, "tokenizer.json"));
    for (size_t i = 0; i < 3; i++) {
        snprintf(path, sizeof path, "%s/%s", folder, files[i][0]);
        FILE *f = fopen(path, "w");
        assert_non_null(f);
        fputs(files[i][1], f);
        fclose(f);
        t = open_good(folder);
        if (i == 0) assert_null(xlstm_tokenizer_chat_template(t));
        else assert_string_equal(xlstm_tokenizer_chat_template(t), i == 1 ? "member" : "file");
        xlstm_tokenizer_free(t);
    }
    for (size_t i = 0; i < 3; i++) {
        snprintf(path, sizeof path, "%s/%s", folder, files[i][0]);
        unlink(path);
    }
    rmdir(folder);
}

/* The texts that travel in a GGUF file, and one that has none. */
static void test_gguf(void **state)
{
    (void)state;
    char *folder = mk_folder(), path[200];
    snprintf(path, sizeof path, "%s/model.gguf", folder);
    mk_model m = {.scheme = "gguf"};
    mk_put_model(folder, &m);
    xlstm_tokenizer *t;
    assert_int_equal(xlstm_tokenizer_open(&t, path, &err), XLSTM_E_UNSUPPORTED);
    assert_non_null(strstr(err.message, "no tokenizer"));
    mk_list list = mk_build(&m);
    xl_text keys = {0};
    uint64_t n = mk_gguf_keys(&keys, &m);
    mk_key_string(&keys, "tokenizer.huggingface.json", "{" TINY_MODEL "}");
    mk_key_string(&keys, "xlstm.tokenizer_config", "{\"bos_token\": \"b\", \"chat_template\": \"t\"}");
    mk_put_gguf(folder, "model.gguf", &keys, n + 2, list.t, list.n);
    free(keys.data);
    mk_free(&list);
    t = open_good(path);
    assert_int_equal(xlstm_tokenizer_bos(t), 2);
    assert_string_equal(xlstm_tokenizer_chat_template(t), "t");
    int32_t *ids;
    size_t count;
    assert_int_equal(xlstm_tokenizer_encode(&ids, &count, t, "ab?b", 4, 0, &err), XLSTM_OK);
    assert_int_equal(count, 3);
    assert_memory_equal(ids, ((int32_t[]){3, 0, 2}), sizeof(int32_t[3]));
    xlstm_free(ids);
    xlstm_tokenizer_free(t);
    mk_remove_folder(folder);
}

/* ---- hostile files ---------------------------------------------------------------------------------------------- */

#define WITH(rest) "{" TINY_MODEL ", " rest "}"
#define MODEL(rest) "{\"model\": {" rest "}}"
#define VOCAB "\"vocab\": {\"a\": 0, \"b\": 1, \"ab\": 2}"

static void test_refused(void **state)
{
    (void)state;
    static const struct {
        const char *json, *part;
        int code;
    } cases[] = {
        {"", "line 1", XLSTM_E_FORMAT},
        {"[1]", "object", XLSTM_E_FORMAT},
        {"{}", "model", XLSTM_E_FORMAT},
        {"{\"model\": 3}", "model", XLSTM_E_FORMAT},
        {"{\"model\": {}, \"model\": {}}", "duplicate", XLSTM_E_FORMAT},
        {MODEL("\"type\": \"Unigram\", \"vocab\": []"), "Unigram", XLSTM_E_UNSUPPORTED},
        {MODEL("\"type\": \"BPE\""), "vocab", XLSTM_E_FORMAT},
        {MODEL(VOCAB), "unnamed", XLSTM_E_UNSUPPORTED},
        {MODEL("\"type\": \"BPE\", " VOCAB), "merges", XLSTM_E_FORMAT},
        {MODEL("\"vocab\": {\"a\": -1}, \"merges\": []"), "found -1", XLSTM_E_FORMAT},
        {MODEL("\"vocab\": {\"a\": 2147483648}, \"merges\": []"), "found 2147483648", XLSTM_E_FORMAT},
        {MODEL("\"vocab\": {\"a\": 4194304}, \"merges\": []"), "found 4194304", XLSTM_E_FORMAT},
        {MODEL("\"vocab\": {\"a\": 1.5}, \"merges\": []"), "integer", XLSTM_E_FORMAT},
        {MODEL("\"vocab\": {\"a\": \"0\"}, \"merges\": []"), "integer", XLSTM_E_FORMAT},
        {MODEL("\"vocab\": {\"a\": 7, \"b\": 7}, \"merges\": []"), "id 7", XLSTM_E_FORMAT},
        {MODEL("\"vocab\": {\"a\": 7, \"a\": 8}, \"merges\": []"), "duplicate", XLSTM_E_FORMAT},
        {MODEL(VOCAB ", \"merges\": [\"a c\"]"), "merges[0]: token \"c\"", XLSTM_E_FORMAT},
        {MODEL(VOCAB ", \"merges\": [\"a b\", \"b a\"]"), "merges[1]: token \"ba\"", XLSTM_E_FORMAT},
        {MODEL(VOCAB ", \"merges\": [\"ab\"]"), "merges[0]", XLSTM_E_FORMAT},
        {MODEL(VOCAB ", \"merges\": [\"a b c\"]"), "merges[0]", XLSTM_E_FORMAT},
        {MODEL(VOCAB ", \"merges\": [[\"a\", 1]]"), "merges[0]", XLSTM_E_FORMAT},
        {MODEL(VOCAB ", \"merges\": [[\"a\"]]"), "merges[0]", XLSTM_E_FORMAT},
        {MODEL(VOCAB ", \"merges\": {}"), "merges", XLSTM_E_FORMAT},
        {MODEL(VOCAB ", \"merges\": [], \"unk_token\": \"q\""), "unk_token", XLSTM_E_FORMAT},
        {MODEL(VOCAB ", \"merges\": [], \"dropout\": 0.1"), "dropout", XLSTM_E_UNSUPPORTED},
        {MODEL(VOCAB ", \"merges\": [], \"end_of_word_suffix\": \"</w>\""), "end_of_word_suffix", XLSTM_E_UNSUPPORTED},
        {MODEL(VOCAB ", \"merges\": [], \"continuing_subword_prefix\": \"##\""), "##", XLSTM_E_UNSUPPORTED},
        {MODEL(VOCAB ", \"merges\": [], \"fuse_unk\": 1"), "fuse_unk", XLSTM_E_FORMAT},
        {WITH("\"added_tokens\": {}"), "added_tokens", XLSTM_E_FORMAT},
        {WITH("\"added_tokens\": [3]"), "added token", XLSTM_E_FORMAT},
        {WITH("\"added_tokens\": [" ADDED(-5, "x", true) "]"), "found -5", XLSTM_E_FORMAT},
        {WITH("\"added_tokens\": [" ADDED(99999999, "x", true) "]"), "found 99999999", XLSTM_E_FORMAT},
        {WITH("\"added_tokens\": [" ADDED(3, "x", true) "]"), "already belongs to \"ab\"", XLSTM_E_FORMAT},
        {WITH("\"added_tokens\": [" ADDED(7, "ab", true) "]"), "id 7 here, but id 3", XLSTM_E_FORMAT},
        {WITH("\"added_tokens\": [" ADDED(7, "x", 1) "]"), "special", XLSTM_E_FORMAT},
        {WITH("\"normalizer\": []"), "normalizer", XLSTM_E_FORMAT},
        {WITH("\"normalizer\": {\"type\": \"Precompiled\"}"), "Precompiled", XLSTM_E_UNSUPPORTED},
        {WITH("\"normalizer\": {\"type\": \"Prepend\"}"), "prepend", XLSTM_E_FORMAT},
        {WITH("\"normalizer\": {\"type\": \"Sequence\", \"normalizers\": [{\"type\": \"Nmt\"}]}"), "normalizers[0]",
         XLSTM_E_UNSUPPORTED},
        {WITH("\"normalizer\": {\"type\": \"Replace\", \"pattern\": {\"Regex\": \"(\"}, \"content\": \"\"}"),
         "regular expression", XLSTM_E_FORMAT},
        {WITH("\"pre_tokenizer\": {\"type\": \"BertPreTokenizer\"}"), "BertPreTokenizer", XLSTM_E_UNSUPPORTED},
        {WITH("\"pre_tokenizer\": {\"type\": \"Split\", \"pattern\": \"x\"}"), "pattern", XLSTM_E_FORMAT},
        {WITH("\"pre_tokenizer\": {\"type\": \"Split\", \"pattern\": {\"String\": \"x\"}, \"behavior\": \"Odd\"}"),
         "Odd", XLSTM_E_FORMAT},
        {WITH("\"pre_tokenizer\": {\"type\": \"Split\", \"pattern\": {\"Regex\": \"[a&&b]\"}}"), "&&",
         XLSTM_E_UNSUPPORTED},
        {WITH("\"pre_tokenizer\": {\"type\": \"Split\", \"pattern\": {\"Regex\": \"\\\\h\"}}"), "\\h",
         XLSTM_E_UNSUPPORTED},
        {WITH("\"pre_tokenizer\": {\"type\": \"Metaspace\", \"replacement\": \"ab\"}"), "one character",
         XLSTM_E_FORMAT},
        {WITH("\"pre_tokenizer\": {\"type\": \"Metaspace\", \"replacement\": \"_\", \"prepend_scheme\": \"x\"}"),
         "prepend_scheme", XLSTM_E_FORMAT},
        {WITH("\"pre_tokenizer\": {\"type\": \"Sequence\"}"), "pretokenizers", XLSTM_E_FORMAT},
        {WITH("\"decoder\": {\"type\": \"WordPiece\"}"), "WordPiece", XLSTM_E_UNSUPPORTED},
        {WITH("\"decoder\": {\"type\": \"Strip\", \"content\": \"x\", \"start\": -1}"), "start", XLSTM_E_FORMAT},
        {WITH("\"post_processor\": {\"type\": \"Odd\"}"), "Odd", XLSTM_E_UNSUPPORTED},
        {WITH("\"post_processor\": {\"type\": \"TemplateProcessing\", \"single\": []}"), "Sequence A", XLSTM_E_FORMAT},
        {WITH("\"post_processor\": {\"type\": \"RobertaProcessing\", \"cls\": [\"a\", 77], \"sep\": [\"a\", 1]}"), "77",
         XLSTM_E_FORMAT},
    };
    for (size_t i = 0; i < XL_COUNT(cases); i++) {
        xlstm_tokenizer *t = NULL;
        memset(&err, 0, sizeof err);
        int status = xlstm_tokenizer_open_memory(&t, cases[i].json, strlen(cases[i].json), NULL, 0, &err);
        if (status == XLSTM_OK) fail_msg("not refused: %s", cases[i].json);
        assert_null(t);
        if (status != cases[i].code || strstr(err.message, cases[i].part) == NULL) {
            fail_msg("%s: expected code %d and \"%s\", found %d and \"%s\"", cases[i].json, cases[i].code,
                     cases[i].part, status, err.message);
        }
        assert_null(strchr(err.message, '\n'));
        assert_non_null(strstr(err.message, "tokenizer.json"));
        assert_int_equal(xlstm_tokenizer_open_memory(&t, cases[i].json, strlen(cases[i].json), NULL, 0, NULL), status);
    }
}

/* Nesting that is legal JSON, and Sequences in Sequences. */
static void test_nesting(void **state)
{
    (void)state;
    xl_text json = {0};
    xl_text_addf(&json, "{" TINY_MODEL ", \"normalizer\": ");
    for (int i = 0; i < 600; i++) xl_text_addf(&json, "{\"type\": \"Sequence\", \"normalizers\": [");
    for (int i = 0; i < 600; i++) xl_text_addf(&json, "]}");
    xl_text_addf(&json, "}");
    xlstm_tokenizer *t;
    assert_int_not_equal(xlstm_tokenizer_open_memory(&t, json.data, json.size, NULL, 0, &err), XLSTM_OK);
    assert_non_null(strstr(err.message, "nested"));
    json.size = 0;
    for (int i = 0; i < 100000; i++) xl_text_add(&json, "{\"a\":", 5);
    assert_int_equal(xlstm_tokenizer_open_memory(&t, json.data, json.size, NULL, 0, &err), XLSTM_E_FORMAT);
    xl_release(json.data);
}

/* Every prefix of a file and every byte changed: an answer, never a crash. What opens must encode and decode. */
static void test_bent_files(void **state)
{
    (void)state;
    static const char *const files[] = {SMALL "/neox.json", SMALL "/llama2.json", SMALL "/spaces.json"};
    uint64_t seed = 12345;
    print_message("seed %llu\n", (unsigned long long)seed);
    for (size_t k = 0; k < XL_COUNT(files); k++) {
        char *json;
        size_t size, opened = 0;
        assert_int_equal(xl_read_file(&json, &size, files[k], 1 << 20, &err), XLSTM_OK);
        for (size_t i = 0; i < 1500; i++) {
            seed = seed * 6364136223846793005u + 1442695040888963407u;
            size_t at = (size_t)(seed >> 33) % size;
            char old = json[at];
            xlstm_tokenizer *t;
            bool cut = i % 8 == 0;
            if (!cut) json[at] = (char)(i % 2 ? old ^ 1 << (seed >> 20 & 7) : "0123456789\"{}[],:"[seed >> 20 & 15]);
            if (xlstm_tokenizer_open_memory(&t, json, cut ? at : size, NULL, 0, &err) == XLSTM_OK) {
                int32_t *ids;
                size_t n;
                char *text;
                static const char input[] = "The cat  sat\xe2\x80\x94 12 <|left|> caf\xc3\xa9\xff\n";
                opened++;
                if (xlstm_tokenizer_encode(&ids, &n, t, input, sizeof input, XLSTM_ENCODE_SPECIAL, &err) == XLSTM_OK) {
                    assert_int_equal(xlstm_tokenizer_decode(&text, &n, t, ids, n, false, &err), XLSTM_OK);
                    xlstm_free(text);
                    xlstm_free(ids);
                }
                xlstm_tokenizer_free(t);
            } else {
                assert_null(t);
            }
            json[at] = old;
        }
        assert_true(opened > 100 && opened < 1500);
        xl_release(json);
    }
}

/* ---- odd pieces ------------------------------------------------------------------------------------------------- */

static void assert_decoded(const char *decoder, const char *const *tokens, size_t n, const char *expected)
{
    xl_text json = {0};
    xl_text_addf(&json, "{\"decoder\": %s, \"model\": {\"type\": \"BPE\", \"merges\": [], \"vocab\": {", decoder);
    int32_t ids[16];
    for (size_t i = 0; i < n; i++) {
        bool seen = false;
        ids[i] = (int32_t)i;
        for (size_t k = 0; k < i && !seen; k++) {
            if (strcmp(tokens[i], tokens[k]) == 0) {
                ids[i] = (int32_t)k;
                seen = true;
            }
        }
        if (!seen) xl_text_addf(&json, "%s\"%s\": %zu", i ? ", " : "", tokens[i], i);
    }
    xl_text_addf(&json, "}}}");
    xlstm_tokenizer *t = open_text(json.data, NULL);
    json_t *list = json_array(), *text = json_string(expected);
    for (size_t i = 0; i < n; i++) json_array_append_new(list, json_integer(ids[i]));
    assert_text(t, decoder, list, text, false);
    json_decref(list);
    json_decref(text);
    xlstm_tokenizer_free(t);
    xl_release(json.data);
}

static void test_decoders(void **state)
{
    (void)state;
    /* Fused text: matches across tokens, characters cut from both ends, a tail that must wait. */
    static const char *const ab[] = {"xa", "b", "aab", "a", "bx", "xxx"};
    assert_decoded("{\"type\": \"Sequence\", \"decoders\": [{\"type\": \"Fuse\"}, {\"type\": \"Replace\", \"pattern\": "
                   "{\"String\": \"ab\"}, \"content\": \"-\"}, {\"type\": \"Strip\", \"content\": \"x\", \"start\": 3, "
                   "\"stop\": 2}]}",
                   ab, 6, "-a--xx");
    assert_decoded("{\"type\": \"Sequence\", \"decoders\": [{\"type\": \"Fuse\"}, {\"type\": \"Replace\", \"pattern\": "
                   "{\"Regex\": \"(ab)+\"}, \"content\": \"-\"}]}",
                   ab, 6, "x-a-xxxx");
    assert_decoded("{\"type\": \"Strip\", \"content\": \"x\", \"start\": 1, \"stop\": 1}", ab, 6, "abaababx");
    assert_decoded("null", ab, 6, "xa b aab a bx xxx");
    assert_decoded("{\"type\": \"Sequence\", \"decoders\": []}", ab, 6, "xabaababxxxx");
    /* Byte tokens: text if the whole run is valid, else one U+FFFD a byte. */
    static const char *const run[] = {"<0xE2>", "<0x82>", "<0xaC>", "y", "<0xE2>", "<0x82>", "z"};
    assert_decoded("{\"type\": \"ByteFallback\"}", run, 7, "\xe2\x82\xacy\xef\xbf\xbd\xef\xbf\xbdz");
    assert_decoded("{\"type\": \"ByteFallback\"}", run, 2, "\xef\xbf\xbd\xef\xbf\xbd");
    static const char *const marks[] = {"__a_", "_b", "_"};
    assert_decoded("{\"type\": \"Metaspace\", \"replacement\": \"_\"}", marks, 3, "a b ");
    assert_decoded("{\"type\": \"Metaspace\", \"replacement\": \"_\", \"prepend_scheme\": \"never\"}", marks, 3,
                   "  a  b ");
}

/* An expression that explodes is given up with an error instead of running for ever. */
static void test_exploding_expression(void **state)
{
    (void)state;
    xlstm_tokenizer *t =
        open_text(WITH("\"pre_tokenizer\": {\"type\": \"Split\", \"pattern\": {\"Regex\": \"(a|a)+[xq]\"}, "
                       "\"behavior\": \"Isolated\", \"invert\": false}"),
                  NULL);
    char text[4000];
    memset(text, 'a', sizeof text);
    int32_t *ids;
    size_t n;
    assert_int_equal(xlstm_tokenizer_encode(&ids, &n, t, text, sizeof text, 0, &err), XLSTM_E_UNSUPPORTED);
    assert_non_null(strstr(err.message, "regular expression"));
    assert_null(ids);
    xlstm_tokenizer_free(t);
}

static void assert_normal(xl_form form, const char *in, const char *expected)
{
    xl_text out = {0};
    assert_int_equal(xl_normalize(&out, form, in, strlen(in), &err), XLSTM_OK);
    assert_string_equal(out.data, expected);
    assert_true(xl_normal_prefix(form, expected, strlen(expected)) <= strlen(expected));
    xl_release(out.data);
}

static void test_normal_forms(void **state)
{
    (void)state;
    assert_normal(XL_NFC, "e\xcc\x81", "\xc3\xa9");
    assert_normal(XL_NFC, "q\xcc\x87\xcc\xa3", "q\xcc\xa3\xcc\x87");               /* ordered by class */
    assert_normal(XL_NFC, "\xe1\x84\x80\xe1\x85\xa1\xe1\x86\xa8", "\xea\xb0\x81"); /* L V T */
    assert_normal(XL_NFC, "\xea\xb0\x80\xe1\x86\xa8", "\xea\xb0\x81");             /* LV T */
    assert_normal(XL_NFC, "\xea\xb0\x80\xe1\x86\xa7", "\xea\xb0\x80\xe1\x86\xa7"); /* U+11A7 is no T */
    assert_normal(XL_NFC, "\xe0\xa5\x98", "\xe0\xa4\x95\xe0\xa4\xbc");             /* excluded */
    assert_normal(XL_NFC, "\xe2\x84\xab", "\xc3\x85");                             /* a singleton */
    assert_normal(XL_NFD, "\xea\xb0\x81x", "\xe1\x84\x80\xe1\x85\xa1\xe1\x86\xa8x");
    assert_normal(XL_NFKC, "\xef\xac\x81\xc2\xb2", "fi2");
    assert_normal(XL_NFKD, "\xef\xac\x81\xc3\xa9", "fie\xcc\x81");
    xl_text out = {0}, marks = {0}, expected = {0};
    xl_lower(&out,
             "\xc3\x89"
             "A\xc4\xb0\xe1\xba\x9e",
             8);
    assert_string_equal(out.data, "\xc3\xa9"
                                  "ai\xcc\x87\xc3\x9f");
    /* many marks of two classes: above swaps with below, order within a class stays */
    xl_text_add(&marks, "q", 1);
    for (int i = 0; i < 50000; i++) xl_text_add(&marks, i % 2 ? "\xcc\xa3" : "\xcc\x8b", 2);
    xl_text_add(&expected, "q", 1);
    for (int i = 0; i < 50000; i++) xl_text_add(&expected, i < 25000 ? "\xcc\xa3" : "\xcc\x8b", 2);
    assert_normal(XL_NFC, marks.data, expected.data);
    xl_release(out.data);
    xl_release(marks.data);
    xl_release(expected.data);
}

/* ---- size, threads, speed --------------------------------------------------------------------------------------- */

static void test_long_words(void **state)
{
    (void)state;
    static const char *const files[] = {SMALL "/neox.json", SMALL "/llama2.json", SMALL "/o200k.json"};
    size_t size = 1000000;
    char *text = malloc(size);
    uint32_t seed = 7;
    for (size_t i = 0; i < size; i++) {
        seed = seed * 1664525u + 1013904223u;
        text[i] = "etaoinshrdlu"[(seed >> 24) % 12];
    }
    for (size_t k = 0; k < XL_COUNT(files); k++) {
        xlstm_tokenizer *t = open_good(files[k]);
        int32_t *ids;
        size_t n, back;
        char *out;
        assert_int_equal(xlstm_tokenizer_encode(&ids, &n, t, text, size, 0, &err), XLSTM_OK);
        assert_true(n < size);
        assert_int_equal(xlstm_tokenizer_decode(&out, &back, t, ids, n, false, &err), XLSTM_OK);
        assert_int_equal(back, size);
        assert_memory_equal(out, text, size);
        xlstm_free(out);
        xlstm_free(ids);
        xlstm_tokenizer_free(t);
    }
    free(text);
}

typedef struct job {
    const xlstm_tokenizer *t;
    const char *text;
    size_t size, n;
    int32_t *ids;
} job;

static void *encode_job(void *arg)
{
    job *j = arg;
    if (xlstm_tokenizer_encode(&j->ids, &j->n, j->t, j->text, j->size, 0, NULL) != XLSTM_OK) j->ids = NULL;
    return NULL;
}

static void test_shared_by_threads(void **state)
{
    (void)state;
    char *text;
    size_t size;
    assert_int_equal(xl_read_file(&text, &size, "LICENSE", 1 << 20, &err), XLSTM_OK);
    xlstm_tokenizer *t = open_good(SMALL "/neox.json");
    job jobs[4];
    pthread_t threads[4];
    for (size_t i = 0; i < 4; i++) {
        jobs[i] = (job){.t = t, .text = text, .size = size};
        assert_int_equal(pthread_create(&threads[i], NULL, encode_job, &jobs[i]), 0);
    }
    for (size_t i = 0; i < 4; i++) {
        pthread_join(threads[i], NULL);
        assert_non_null(jobs[i].ids);
        assert_int_equal(jobs[i].n, jobs[0].n);
        assert_memory_equal(jobs[i].ids, jobs[0].ids, jobs[0].n * sizeof(int32_t));
    }
    for (size_t i = 0; i < 4; i++) xlstm_free(jobs[i].ids);
    xlstm_tokenizer_free(t);
    xl_release(text);
}

/* Printed, not judged: bytes of text per second of processor time, the best of three. */
static void test_speed(void **state)
{
    (void)state;
    char *text = NULL;
    size_t size = 0;
    if (!xl_is_folder(REAL) || xl_read_file(&text, &size, "../shared/data/corpus/valid.txt", 1 << 24, &err)) {
        print_message("skip: speed: no large English text\n");
        skip();
    }
    static const char *const names[] = {"gpt-neox-20b", "cl100k", "qwen3", "falcon", "phi-3-mini"};
    for (size_t i = 0; i < XL_COUNT(names); i++) {
        char path[400];
        snprintf(path, sizeof path, REAL "/%s", names[i]);
        xlstm_tokenizer *t = open_good(path);
        double encode = 1e9, decode = 1e9;
        for (int k = 0; k < 3; k++) {
            int32_t *ids = NULL;
            size_t n = 0, back;
            char *out;
            clock_t t0 = clock();
            assert_int_equal(xlstm_tokenizer_encode(&ids, &n, t, text, size, 0, &err), XLSTM_OK);
            clock_t t1 = clock();
            assert_int_equal(xlstm_tokenizer_decode(&out, &back, t, ids, n, false, &err), XLSTM_OK);
            clock_t t2 = clock();
            encode = XL_MIN(encode, (double)(t1 - t0) / CLOCKS_PER_SEC);
            decode = XL_MIN(decode, (double)(t2 - t1) / CLOCKS_PER_SEC);
            xlstm_free(out);
            xlstm_free(ids);
        }
        print_message("%s: encode %.1f MB/s, decode %.1f MB/s\n", names[i], (double)size / 1e6 / encode,
                      (double)size / 1e6 / decode);
        xlstm_tokenizer_free(t);
    }
    xl_release(text);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_small_golden),
        cmocka_unit_test(test_real_golden),
        cmocka_unit_test(test_shipped),
        cmocka_unit_test(test_invalid_utf8),
        cmocka_unit_test(test_stream),
        cmocka_unit_test(test_config),
        cmocka_unit_test(test_folder),
        cmocka_unit_test(test_gguf),
        cmocka_unit_test(test_refused),
        cmocka_unit_test(test_nesting),
        cmocka_unit_test(test_bent_files),
        cmocka_unit_test(test_decoders),
        cmocka_unit_test(test_exploding_expression),
        cmocka_unit_test(test_normal_forms),
        cmocka_unit_test(test_long_words),
        cmocka_unit_test(test_shared_by_threads),
        cmocka_unit_test(test_speed),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
