/*
 * sessions.c — `xlstm session`: a store of named conversations on disk. Resuming one reads the prompt, writes the
 * continuation and puts the state back.
 */
#include "generation.h"
#include "prompt.h"

#include <errno.h>
#include <inttypes.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

typedef struct session_options {
    prompt_options prompt;
    sampling_options sampling;
    model_options model;
    const char *store, *name, *idle;
    uint64_t max_tokens;
    bool json, create, stats;
} session_options;

#define FIELD(member) offsetof(session_options, member)
static const option_row rows[] = {
    {"store", 0, OPTION_TEXT, FIELD(store), "FOLDER", "where sessions are kept; else ~/.local/share/xlstm/sessions", NULL,
     NULL, 0, 0},
    {"name", 0, OPTION_TEXT, FIELD(name), "NAME", "fork, put: the new session's name", NULL, NULL, 0, 0},
    {"create", 0, OPTION_FLAG, FIELD(create), NULL, "resume: begin a session of that name if there is none", NULL, NULL, 0,
     0},
    {"idle", 0, OPTION_TEXT, FIELD(idle), "AGE", "expire: not used for this long: 30d, 12h, 90m, 5s", NULL, NULL, 0, 0},
    {"max-tokens", 0, OPTION_COUNT, FIELD(max_tokens), "N", "resume: end after N new tokens; 0 only reads the prompt",
     "50", NULL, 0, 0},
    {"stats", 0, OPTION_FLAG, FIELD(stats), NULL, "resume: tokens a second on standard error", NULL, NULL, 0, 0},
    {"json", 'j', OPTION_FLAG, FIELD(json), NULL, "list, show: print JSON", NULL, NULL, 0, 0},
};

/* ---- the store -------------------------------------------------------------------------------------------------- */

/* Makes every folder on the way. */
static int make_folders(char *path)
{
    for (char *p = path + 1; *p; p++) {
        if (*p != '/')
            continue;
        *p = 0;
        bool bad = mkdir(path, 0700) && errno != EEXIST;
        *p = '/';
        if (bad)
            return fail("%s: cannot make the folder: %s", path, strerror(errno));
    }
    return EXIT_OK;
}

static int open_store(xlstm_store **out, const session_options *o)
{
    buffer path = {0};
    const char *data = getenv("XDG_DATA_HOME"), *home = getenv("HOME");
    if (o->store)
        buffer_addf(&path, "%s", o->store);
    else if (data && data[0] == '/')
        buffer_addf(&path, "%s/xlstm/sessions", data);
    else if (home && home[0])
        buffer_addf(&path, "%s/.local/share/xlstm/sessions", home);
    else
        return fail_usage("say where the sessions are kept with --store FOLDER: there is no home folder");
    xlstm_error err = {0};
    int status = o->store ? EXIT_OK : make_folders(path.data);
    if (status == EXIT_OK && xlstm_store_open(out, path.data, &err))
        status = fail_error(&err);
    buffer_free(&path);
    return status;
}

static int find(xlstm_store_entry *out, xlstm_store *store, const char *name)
{
    xlstm_error err = {0};
    return xlstm_store_find(out, store, name, &err) ? fail_error(&err) : EXIT_OK;
}

/* ---- list and show ---------------------------------------------------------------------------------------------- */

static void age(char out[32], int64_t since)
{
    int64_t s = (int64_t)time(NULL) - since;
    if (s < 120)
        snprintf(out, 32, "%" PRId64 " s", s < 0 ? 0 : s);
    else if (s < 7200)
        snprintf(out, 32, "%" PRId64 " min", s / 60);
    else if (s < 172800)
        snprintf(out, 32, "%" PRId64 " h", s / 3600);
    else
        snprintf(out, 32, "%" PRId64 " d", s / 86400);
}

static json_t *entry_json(const xlstm_store_entry *e)
{
    char fingerprint[20];
    buffer name = {0};
    buffer_add(&name, "", 0);
    buffer_add_utf8(&name, e->name, strlen(e->name));
    snprintf(fingerprint, sizeof fingerprint, "%016" PRIx64, e->fingerprint);
    json_t *o = must(json_pack("{s:I, s:s, s:I, s:I, s:s, s:I, s:I, s:I}", "id", (json_int_t)e->id, "name", name.data,
                               "parent", (json_int_t)e->parent, "position", (json_int_t)e->position, "fingerprint",
                               fingerprint, "bytes", (json_int_t)e->bytes, "created", (json_int_t)e->created, "used",
                               (json_int_t)e->used));
    buffer_free(&name);
    return o;
}

static void print_json(json_t *value)
{
    char *text = must(json_dumps(value, JSON_INDENT(2)));
    outputf("%s\n", text);
    free(text);
    json_decref(value);
}

static int list(const session_options *o, xlstm_store *store, char **arguments, size_t n)
{
    (void)arguments;
    (void)n;
    xlstm_store_entry *all;
    size_t count;
    xlstm_error err = {0};
    if (xlstm_store_list(&all, &count, store, &err))
        return fail_error(&err);
    if (o->json) {
        json_t *array = json_array();
        for (size_t i = 0; i < count; i++)
            json_array_append_new(array, entry_json(&all[i]));
        print_json(array);
    }
    for (size_t i = 0; i < count && !o->json; i++) {
        char tokens[32], bytes[32], used[32];
        human_count(tokens, all[i].position);
        human_bytes(bytes, all[i].bytes);
        age(used, all[i].used);
        outputf("%6" PRIu64 "  %-24s %14s tokens  %9s  used %s ago\n", all[i].id, all[i].name, tokens, bytes, used);
    }
    xlstm_free(all);
    return EXIT_OK;
}

static int show(const session_options *o, xlstm_store *store, char **arguments, size_t n)
{
    (void)n;
    xlstm_store_entry e;
    int status = find(&e, store, arguments[0]);
    if (status)
        return status;
    if (o->json) {
        print_json(entry_json(&e));
        return EXIT_OK;
    }
    char tokens[32], bytes[32], used[32], created[32];
    human_count(tokens, e.position);
    human_bytes(bytes, e.bytes);
    age(used, e.used);
    age(created, e.created);
    outputf("session %" PRIu64 "%s%s\n", e.id, e.name[0] ? ": " : "", e.name);
    outputf("  position  %s tokens\n  model     fingerprint %016" PRIx64 "\n  size      %s\n", tokens, e.fingerprint, bytes);
    outputf("  created   %s ago\n  used      %s ago\n", created, used);
    if (e.parent)
        outputf("  forked    from session %" PRIu64 "\n", e.parent);
    return EXIT_OK;
}

/* ---- changes ---------------------------------------------------------------------------------------------------- */

static int fork_session(const session_options *o, xlstm_store *store, char **arguments, size_t n)
{
    (void)n;
    xlstm_store_entry e;
    uint64_t id;
    xlstm_error err = {0};
    int status = find(&e, store, arguments[0]);
    if (status == EXIT_OK && xlstm_store_fork(&id, store, e.id, o->name, &err))
        status = fail_error(&err);
    if (status == EXIT_OK)
        outputf("%" PRIu64 "\n", id);
    return status;
}

static int rename_session(const session_options *o, xlstm_store *store, char **arguments, size_t n)
{
    (void)o;
    (void)n;
    xlstm_store_entry e;
    xlstm_error err = {0};
    int status = find(&e, store, arguments[0]);
    if (status == EXIT_OK && xlstm_store_rename(store, e.id, arguments[1], &err))
        status = fail_error(&err);
    return status;
}

static int remove_sessions(const session_options *o, xlstm_store *store, char **arguments, size_t n)
{
    (void)o;
    int status = EXIT_OK;
    for (size_t i = 0; i < n; i++) {
        xlstm_store_entry e;
        xlstm_error err = {0};
        int one = find(&e, store, arguments[i]);
        if (one == EXIT_OK && xlstm_store_remove(store, e.id, &err))
            one = fail_error(&err);
        status = status ? status : one;
    }
    return status;
}

static int expire(const session_options *o, xlstm_store *store, char **arguments, size_t n)
{
    (void)arguments;
    (void)n;
    char *unit = NULL;
    int64_t seconds = o->idle ? strtoll(o->idle, &unit, 10) : -1;
    int64_t scale = !unit || unit == o->idle || !unit[0] || unit[1] ? 0
                    : *unit == 'd'                                    ? 86400
                    : *unit == 'h'                                    ? 3600
                    : *unit == 'm'                                    ? 60
                    : *unit == 's'                                    ? 1
                                                                      : 0;
    if (seconds < 0 || scale == 0 || seconds > INT64_MAX / 100000)
        return fail_usage("expire: say how long unused with --idle, like 30d, 12h, 90m or 5s");
    size_t removed;
    xlstm_error err = {0};
    if (xlstm_store_expire(&removed, store, seconds * scale, &err))
        return fail_error(&err);
    outputf("%zu\n", removed);
    return EXIT_OK;
}

/* A state file into the store, and out of it. */
static int put(const session_options *o, xlstm_store *store, char **arguments, size_t n)
{
    (void)n;
    xlstm_state *state;
    uint64_t id;
    xlstm_error err = {0};
    if (xlstm_state_load(&state, NULL, arguments[0], true, &err))
        return fail_error(&err);
    int status = xlstm_store_create(&id, store, state, o->name, &err) ? fail_error(&err) : EXIT_OK;
    if (status == EXIT_OK)
        outputf("%" PRIu64 "\n", id);
    xlstm_state_free(state);
    return status;
}

static int get(const session_options *o, xlstm_store *store, char **arguments, size_t n)
{
    (void)o;
    (void)n;
    xlstm_store_entry e;
    xlstm_state *state = NULL;
    xlstm_error err = {0};
    int status = find(&e, store, arguments[0]);
    if (status == EXIT_OK &&
        (xlstm_store_load(&state, store, NULL, e.id, true, &err) || xlstm_state_save(state, arguments[1], NULL, &err)))
        status = fail_error(&err);
    xlstm_state_free(state);
    return status;
}

/* ---- resume ----------------------------------------------------------------------------------------------------- */

/* One run of `resume`. */
typedef struct talk {
    const session_options *o;
    xlstm_model *model;
    const xlstm_tokenizer *tokenizer;
    xlstm_session *session;
    uint64_t id;  /* 0: to be created */
    bool stopped; /* by Ctrl-C, after the prompt was read */
} talk;

static void print_more(void *user, sample *s)
{
    size_t *printed = user;
    output(s->text.data + *printed, s->shown_text - *printed);
    *printed = s->shown_text;
    output_flush();
}

/* Brings the session to where it was left. */
static int take_up(talk *t, xlstm_store *store, const char *name)
{
    xlstm_store_entry e;
    xlstm_state *state;
    xlstm_error err = {0};
    if (xlstm_session_new(&t->session, t->model, &err))
        return fail_error(&err);
    if (xlstm_store_find(&e, store, name, &err)) {
        if (!t->o->create || err.code != XLSTM_E_ARGUMENT)
            return fail_error(&err);
        /* what the store would refuse after the text was generated */
        return xlstm_store_check_name(name, &err) ? fail_usage("%s", err.message) : EXIT_OK;
    }
    t->id = e.id;
    int status = xlstm_store_load(&state, store, t->model, e.id, true, &err) ? fail_error(&err) : EXIT_OK;
    if (status == EXIT_OK && xlstm_state_restore(t->session, state, &err))
        status = fail_error(&err);
    xlstm_state_free(state);
    return status;
}

static int put_back(talk *t, xlstm_store *store, const char *name)
{
    xlstm_state *state = NULL;
    xlstm_error err = {0};
    int code = xlstm_state_snapshot(&state, t->session, &err);
    if (code == 0)
        code = t->id ? xlstm_store_save(store, t->id, state, &err) : xlstm_store_create(&t->id, store, state, name, &err);
    xlstm_state_free(state);
    return code ? fail_error(&err) : EXIT_OK;
}

static int say(talk *t, sampling_options *sampling)
{
    prompt p = {0};
    counters c = {0};
    sample s = {0};
    xlstm_sampler *sampler = NULL;
    xlstm_state *before = NULL;
    xlstm_error err = {0};
    size_t printed = 0;
    int status = prompt_read(&p, &t->o->prompt, t->model);
    int32_t first = first_id(t->model);
    if (status == EXIT_OK && p.ids.n > 0)
        status = read_ids(t->session, p.ids.ids, p.ids.n, &c, &t->o->model);
    else if (status == EXIT_OK && xlstm_session_position(t->session) == 0)
        status = first < 0 ? fail_usage("a new session needs a prompt: give one with -p")
                           : read_ids(t->session, &first, 1, &c, &t->o->model);
    else if (status == EXIT_OK && !xlstm_session_logits(t->session))
        status = fail("the session ends without logits to go on from; give a prompt with -p");
    if (status == EXIT_INTERRUPTED)
        complain("interrupted while reading the prompt; nothing was stored");
    if (status == EXIT_OK && xlstm_state_snapshot(&before, t->session, &err))
        status = fail_error(&err);
    if (status == EXIT_OK)
        status = sampling_new(&sampler, sampling, t->model, 0);
    if (status == EXIT_OK) {
        for (size_t i = 0; i < p.ids.n; i++)
            xlstm_sampler_accept(sampler, p.ids.ids[i]);
        status = sample_start(&s, t->session, sampler, t->tokenizer, sampling, p.ids.ids, p.ids.n);
    }
    if (status == EXIT_OK)
        status = generate_samples(&s, 1, t->o->max_tokens, true, print_more, &printed, &c);
    if (status == EXIT_OK && t->o->max_tokens > 0) {
        print_more(&printed, &s);
        output("\n", 1);
    }
    t->stopped = s.reason == STOP_INTERRUPT && !output_broken();
    interrupt_clear();
    if (status == EXIT_OK)
        status = sample_settle(&s, before, t->tokenizer, &t->o->model);
    if (t->o->stats)
        print_stats(&c, t->model);
    sample_free(&s);
    xlstm_state_free(before);
    prompt_free(&p);
    return status;
}

static int resume(const session_options *o, xlstm_store *store, char **arguments, size_t n)
{
    (void)n;
    talk t = {.o = o};
    sampling_options sampling = o->sampling;
    sampling_settle_seed(&sampling);
    for (size_t i = 0; i < sampling.stop.n && o->prompt.escape; i++) {
        size_t size = strlen(sampling.stop.items[i]);
        unescape(sampling.stop.items[i], &size);
        if (strlen(sampling.stop.items[i]) != size)
            return fail_usage("--stop holds a NUL character, expected a text without one");
    }
    int status = open_model(&t.model, &o->model, false);
    if (status == EXIT_OK && !(t.tokenizer = need_tokenizer(t.model, "session resume")))
        status = EXIT_RUNTIME;
    if (status == EXIT_OK)
        status = take_up(&t, store, arguments[0]);
    if (status == EXIT_OK)
        interrupt_watch();
    if (status == EXIT_OK)
        status = say(&t, &sampling);
    if (status == EXIT_OK)
        status = put_back(&t, store, arguments[0]);
    if (status == EXIT_OK && t.stopped)
        status = EXIT_INTERRUPTED;
    xlstm_session_free(t.session);
    xlstm_model_free(t.model);
    return status;
}

/* ---- command ---------------------------------------------------------------------------------------------------- */

static const struct action {
    const char *name, *arguments;
    size_t least, most;
    int (*run)(const session_options *o, xlstm_store *store, char **arguments, size_t n);
} actions[] = {
    {"list", "", 0, 0, list},
    {"show", "SESSION", 1, 1, show},
    {"resume", "SESSION [-p TEXT] [--create]", 1, 1, resume},
    {"fork", "SESSION [--name NAME]", 1, 1, fork_session},
    {"rename", "SESSION NAME", 2, 2, rename_session},
    {"rm", "SESSION...", 1, SIZE_MAX, remove_sessions},
    {"expire", "--idle AGE", 0, 0, expire},
    {"put", "FILE [--name NAME]", 1, 1, put},
    {"get", "SESSION FILE", 2, 2, get},
};

static int run(const void *options, char **arguments, size_t n)
{
    const char *names[COUNT_OF(actions)];
    for (size_t i = 0; i < COUNT_OF(actions); i++) {
        names[i] = actions[i].name;
        if (n == 0 || strcmp(arguments[0], names[i]) != 0)
            continue;
        if (n - 1 < actions[i].least || n - 1 > actions[i].most)
            return fail_usage("usage: xlstm session %s %s", actions[i].name, actions[i].arguments);
        xlstm_store *store = NULL;
        int status = open_store(&store, options);
        if (status)
            return status;
        status = actions[i].run(options, store, arguments + 1, n - 1);
        xlstm_store_close(store);
        return output_finish(status);
    }
    const char *near = n > 0 ? nearest_name(arguments[0], names, COUNT_OF(names)) : NULL;
    return fail_usage("expected list, show, resume, fork, rename, rm, expire, put or get%s%s%s",
                      near ? "; did you mean " : "", near ? near : "", near ? "?" : "");
}

static const option_group groups[] = {
    {"Sessions", rows, COUNT_OF(rows), 0},
    PROMPT_GROUP(session_options, prompt),
    SAMPLING_GROUP(session_options, sampling),
    MODEL_GROUP(session_options, model),
};

const command command_session = {
    .name = "session",
    .summary = "conversations that are kept on disk: resume, fork, list, expire",
    .usage = "list|show|resume|fork|rename|rm|expire|put|get ...",
    .details = "A SESSION is a name or a number.\n"
               "\n"
               "list                        all, the last used first\n"
               "show SESSION                facts\n"
               "resume SESSION -p TEXT      go on: read TEXT, print the continuation, keep the state; --create begins a "
               "new session\n"
               "fork SESSION                a second session with the same state, in constant time; prints its number\n"
               "rename SESSION NAME\n"
               "rm SESSION...\n"
               "expire --idle AGE           remove what was not used for so long; prints how many\n"
               "put FILE                    take in a state file; prints the session's number\n"
               "get SESSION FILE            write a state file\n"
               "\n"
               "Any number of processes may share a store; see docs/sessions.md.",
    .arguments = "ACTION ...",
    .size = sizeof(session_options),
    .groups = groups,
    .n_groups = COUNT_OF(groups),
    .run = run,
};
