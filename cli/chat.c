/*
 * chat.c — `xlstm chat`: a conversation whose memory is the model's state. Every turn is read once; what was said stays
 * in the state, so turns cost the same however long the conversation is, and it can be forked, undone and saved.
 */
#include "generation.h"
#include "line.h"
#include "turns.h"

#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

typedef struct chat_options {
    sampling_options sampling;
    model_options model;
    uint64_t max_tokens;
    const char *system, *chat_template, *user_prefix, *assistant_prefix, *state_in, *prefix_cache;
    bool escape, no_history, stats;
} chat_options;

#define FIELD(member) offsetof(chat_options, member)
static const option_row rows[] = {
    {"max-tokens", 0, OPTION_COUNT, FIELD(max_tokens), "N", "end an answer after N tokens", "500", NULL, 1, 0},
    {"system", 's', OPTION_TEXT, FIELD(system), "TEXT", "what the model is told before the first turn", NULL, NULL, 0, 0},
    {"chat-template", 0, OPTION_TEXT, FIELD(chat_template), "FILE",
     "a template (Jinja) for the turns, or plain for none; the model's own if it has one", "auto", NULL, 0, 0},
    {"user-prefix", 0, OPTION_TEXT, FIELD(user_prefix), "TEXT", "what stands before your words without a template",
     "User: ", NULL, 0, 0},
    {"assistant-prefix", 0, OPTION_TEXT, FIELD(assistant_prefix), "TEXT",
     "what stands before the answer without a template", "Assistant:", NULL, 0, 0},
    {"state-in", 0, OPTION_TEXT, FIELD(state_in), "FILE", "go on with a saved conversation", NULL, NULL, 0, 0},
    {"prefix-cache", 0, OPTION_TEXT, FIELD(prefix_cache), "FOLDER",
     "keep states of first turns here; one that begins alike, a long system text say, reads only the rest", NULL, NULL, 0,
     0},
    {"escape", 0, OPTION_FLAG, FIELD(escape), NULL, "interpret \\n and the like in the texts above and in --stop", NULL,
     NULL, 0, 0},
    {"no-history", 0, OPTION_FLAG, FIELD(no_history), NULL, "do not keep typed lines in the history file", NULL, NULL, 0,
     0},
    {"stats", 0, OPTION_FLAG, FIELD(stats), NULL, "timings on standard error after every answer", NULL, NULL, 0, 0},
};

/* What /undo needs to take a turn back, besides the state before it. */
typedef struct turn {
    size_t history; /* ids read before the turn */
    uint64_t count; /* turns before it */
    char *words;    /* what the user said, for /regenerate */
} turn;

/* A line of talk with a name. */
typedef struct conversation {
    char *name;
    xlstm_session *session;
    id_list history;  /* ids read since the start or the last load, for the penalties */
    uint64_t n_turns; /* 0: the next one is the first */
    xlstm_history *borders; /* states between turns; the newest is where the session stands */
    turn *undo;             /* the turns between them, oldest first */
    size_t n_undo;
} conversation;

typedef struct chat {
    const chat_options *o;
    sampling_options sampling;
    xlstm_model *model;
    const xlstm_tokenizer *tokenizer;
    turn_style style;
    line_reader *reader;
    conversation *conversations;
    size_t n, current;
    xlstm_prefix_cache *cache; /* NULL: none */
    uint64_t n_answers; /* shifts the seed, so that answers differ */
    counters last;
    bool failed, leave;
} chat;

static conversation *talk(chat *c)
{
    return &c->conversations[c->current];
}

/* A remark of the program, on standard error so that piped answers stay clean. */
static void remark(const char *format, ...) __attribute__((format(printf, 1, 2)));
static void remark(const char *format, ...)
{
    va_list list;
    output_flush();
    va_start(list, format);
    vfprintf(stderr, format, list);
    va_end(list);
    fputc('\n', stderr);
}

static void chat_failed(chat *c, const xlstm_error *err)
{
    c->failed = true;
    fail_error(err);
}

/* ---- conversations ---------------------------------------------------------------------------------------------- */

/* Memory for the states that /undo goes back to, in each conversation. */
enum { UNDO_BYTES = 2000000000 };

static void forget_turns(conversation *v, size_t n)
{
    if (n == 0)
        return;
    for (size_t i = 0; i < n; i++)
        free(v->undo[i].words);
    v->n_undo -= n;
    memmove(v->undo, v->undo + n, v->n_undo * sizeof *v->undo);
}

/* The session stands between two turns: remembers it. Turns whose beginning fell out of the budget are forgotten. */
static void mark_border(chat *c, conversation *v)
{
    xlstm_error err = {0};
    if (xlstm_history_push(v->borders, v->session, &err)) {
        chat_failed(c, &err);
        return;
    }
    const size_t kept = xlstm_history_count(v->borders) - 1;
    if (v->n_undo > kept)
        forget_turns(v, v->n_undo - kept);
}

/* Nothing before this moment can be undone. */
static void forget_undo(chat *c, conversation *v)
{
    xlstm_error err = {0};
    forget_turns(v, v->n_undo);
    xlstm_history_free(v->borders);
    if (xlstm_history_new(&v->borders, UNDO_BYTES, &err))
        chat_failed(c, &err);
    else
        mark_border(c, v);
}

/* Takes over the session. */
static conversation *add_conversation(chat *c, const char *name, xlstm_session *session)
{
    c->conversations = must(realloc(c->conversations, (c->n + 1) * sizeof *c->conversations));
    c->conversations[c->n] = (conversation){.name = must(strdup(name)), .session = session};
    forget_undo(c, &c->conversations[c->n]);
    return &c->conversations[c->n++];
}

static void conversation_free(conversation *v)
{
    forget_turns(v, v->n_undo);
    xlstm_history_free(v->borders);
    free(v->undo);
    free(v->history.ids);
    free(v->name);
    xlstm_session_free(v->session);
}

static size_t find_conversation(const chat *c, const char *name)
{
    size_t i = 0;
    while (i < c->n && strcmp(c->conversations[i].name, name) != 0)
        i++;
    return i;
}

/* ---- a turn ----------------------------------------------------------------------------------------------------- */

typedef struct display {
    size_t printed;
    bool began; /* leading white space is over */
} display;

static void show(void *user, sample *s)
{
    display *d = user;
    while (!d->began && d->printed < s->shown_text && strchr(" \n\t", s->text.data[d->printed]))
        d->printed++;
    d->began = d->began || d->printed < s->shown_text;
    output(s->text.data + d->printed, s->shown_text - d->printed);
    d->printed = s->shown_text;
    output_flush();
}

/* Reads the ids, answers, and leaves the session after the answer. */
static int answer(chat *c, const id_list *ids)
{
    conversation *v = talk(c);
    xlstm_error err = {0};
    c->last = (counters){0};
    size_t reused = 0;
    int status = c->cache && xlstm_session_position(v->session) == 0
                     ? read_cached(c->cache, v->session, ids, &reused, &c->last, &c->o->model)
                     : read_ids(v->session, ids->ids, ids->n, &c->last, &c->o->model);
    if (status)
        return status;
    for (size_t i = 0; i < ids->n; i++)
        ids_add(&v->history, ids->ids[i]);
    xlstm_state *asked = NULL;
    if (xlstm_state_snapshot(&asked, v->session, &err))
        return fail_error(&err);
    xlstm_sampler *sampler;
    status = sampling_new(&sampler, &c->sampling, c->model, c->n_answers++);
    if (status == EXIT_OK) {
        for (size_t i = 0; i < v->history.n; i++)
            xlstm_sampler_accept(sampler, v->history.ids[i]);
        sample s;
        display d = {0};
        status = sample_start(&s, v->session, sampler, c->tokenizer, &c->sampling, ids->ids, ids->n);
        if (status == EXIT_OK) {
            status = generate_samples(&s, 1, c->o->max_tokens, true, show, &d, &c->last);
            output("\n", 1);
            output_flush();
        }
        interrupt_clear();
        if (status == EXIT_OK)
            status = sample_settle(&s, asked, c->tokenizer, &c->o->model);
        for (size_t i = 0; i < s.shown_ids && status == EXIT_OK; i++)
            ids_add(&v->history, s.ids.ids[i]);
        if (s.reason == STOP_LENGTH)
            remark("(cut after %llu tokens: --max-tokens)", (unsigned long long)c->o->max_tokens);
        sample_free(&s);
    }
    xlstm_state_free(asked);
    return status;
}

/* Puts the conversation `back` borders before the newest: 0 takes back a turn under way, 1 the last complete one. */
static bool go_back(chat *c, size_t back)
{
    conversation *v = talk(c);
    xlstm_error err = {0};
    if (xlstm_history_restore(v->borders, v->session, back, &err)) {
        chat_failed(c, &err);
        return false;
    }
    if (back > 0) {
        turn *t = &v->undo[--v->n_undo];
        v->history.n = t->history;
        v->n_turns = t->count;
        free(t->words);
    }
    return true;
}

static void say(chat *c, const char *words)
{
    conversation *v = talk(c);
    buffer text = {0};
    int32_t *encoded = NULL;
    id_list ids = {0};
    xlstm_error err = {0};
    const size_t read_before = v->history.n;
    if (turn_text(&text, &c->style, words, v->n_turns == 0)) {
        c->failed = true;
    } else if (xlstm_tokenizer_encode(&encoded, &ids.n, c->tokenizer, text.data, text.size, 0, &err)) {
        chat_failed(c, &err);
    } else {
        ids.ids = encoded;
        const int status = answer(c, &ids);
        if (status) { /* nothing of this turn remains, least of all a poisoned state */
            c->failed = c->failed || status == EXIT_RUNTIME;
            interrupt_clear();
            v->history.n = read_before;
            go_back(c, 0);
            remark("(the turn was taken back)");
        } else {
            v->undo = must(realloc(v->undo, (v->n_undo + 1) * sizeof *v->undo));
            v->undo[v->n_undo++] = (turn){.history = read_before, .count = v->n_turns++, .words = must(strdup(words))};
            mark_border(c, v);
            if (c->o->stats)
                print_stats(&c->last, c->model);
        }
    }
    xlstm_free(encoded);
    buffer_free(&text);
}

/* ---- commands --------------------------------------------------------------------------------------------------- */

static void load_state(chat *c, const char *path)
{
    conversation *v = talk(c);
    xlstm_state *state = NULL;
    xlstm_error err = {0};
    if (xlstm_state_load(&state, c->model, path, true, &err) || xlstm_state_restore(v->session, state, &err)) {
        chat_failed(c, &err);
    } else {
        forget_undo(c, v);
        v->history.n = 0;
        v->n_turns = xlstm_session_position(v->session) > 0;
        remark("(%s: %llu tokens read)", path, (unsigned long long)xlstm_session_position(v->session));
    }
    xlstm_state_free(state);
}

static void do_save(chat *c, const char *path)
{
    xlstm_state *state = NULL;
    xlstm_error err = {0};
    if (xlstm_state_snapshot(&state, talk(c)->session, &err) || xlstm_state_save(state, path, "chat", &err))
        chat_failed(c, &err);
    else
        remark("(saved in %s)", path);
    xlstm_state_free(state);
}

static void do_fork(chat *c, const char *name)
{
    if (find_conversation(c, name) < c->n) {
        c->failed = true;
        complain("there is a conversation named %s already; /switch %s goes there", name, name);
        return;
    }
    xlstm_session *session;
    xlstm_error err = {0};
    if (xlstm_session_fork(&session, talk(c)->session, &err)) {
        chat_failed(c, &err);
        return;
    }
    conversation *v = add_conversation(c, name, session);
    const conversation *source = talk(c);
    for (size_t i = 0; i < source->history.n; i++)
        ids_add(&v->history, source->history.ids[i]);
    v->n_turns = source->n_turns;
    c->current = c->n - 1;
    remark("(now in %s; %s stays as it is)", name, source->name);
}

static void do_switch(chat *c, const char *name)
{
    size_t i = find_conversation(c, name);
    if (i == c->n) {
        c->failed = true;
        complain("there is no conversation named %s; /list shows them", name);
        return;
    }
    c->current = i;
    remark("(now in %s)", name);
}

static void do_list(chat *c, const char *unused)
{
    (void)unused;
    for (size_t i = 0; i < c->n; i++)
        remark("%s %s: %llu tokens read", i == c->current ? "*" : " ", c->conversations[i].name,
               (unsigned long long)xlstm_session_position(c->conversations[i].session));
}

static void do_undo(chat *c, const char *unused)
{
    (void)unused;
    if (talk(c)->n_undo == 0)
        remark("(nothing to undo)");
    else if (go_back(c, 1))
        remark("(the last turn is forgotten)");
}

static void do_regenerate(chat *c, const char *unused)
{
    (void)unused;
    conversation *v = talk(c);
    if (v->n_undo == 0) {
        remark("(there is no answer to make again)");
        return;
    }
    char *words = must(strdup(v->undo[v->n_undo - 1].words));
    if (go_back(c, 1))
        say(c, words);
    free(words);
}

static void do_reset(chat *c, const char *unused)
{
    (void)unused;
    conversation *v = talk(c);
    xlstm_error err = {0};
    if (xlstm_session_reset(v->session, &err))
        chat_failed(c, &err);
    forget_undo(c, v);
    v->history.n = 0;
    v->n_turns = 0;
    remark("(everything is forgotten)");
}

static void do_stats(chat *c, const char *unused)
{
    (void)unused;
    print_stats(&c->last, c->model);
    remark("%-9s %s, %llu tokens read, seed %llu", "talk", talk(c)->name,
           (unsigned long long)xlstm_session_position(talk(c)->session), (unsigned long long)c->sampling.seed.value);
}

static void do_quit(chat *c, const char *unused)
{
    (void)unused;
    c->leave = true;
}

static void do_help(chat *c, const char *unused);

static const struct {
    const char *name, *argument, *help;
    void (*run)(chat *c, const char *argument);
} chat_commands[] = {
    {"save", "FILE", "save the conversation's state", do_save},
    {"load", "FILE", "go on with a saved state", load_state},
    {"fork", "NAME", "go on in a copy of this conversation", do_fork},
    {"switch", "NAME", "go to another conversation (the first is named main)", do_switch},
    {"list", NULL, "show the conversations", do_list},
    {"undo", NULL, "forget the last turn", do_undo},
    {"regenerate", NULL, "answer the last words again", do_regenerate},
    {"reset", NULL, "forget everything said", do_reset},
    {"stats", NULL, "timings of the last answer, memory, position", do_stats},
    {"help", NULL, "this list", do_help},
    {"quit", NULL, "leave (so does Ctrl-D)", do_quit},
};

static void do_help(chat *c, const char *unused)
{
    (void)c;
    (void)unused;
    for (size_t i = 0; i < COUNT_OF(chat_commands); i++) {
        const char *argument = chat_commands[i].argument ? chat_commands[i].argument : "";
        remark("  /%s %-*s %s", chat_commands[i].name, (int)(16 - strlen(chat_commands[i].name)), argument,
               chat_commands[i].help);
    }
    remark("  Ctrl-C stops an answer. A backslash at the end of a line continues it. //x says /x.");
}

static void run_chat_command(chat *c, char *line)
{
    size_t length = strcspn(line, " ");
    char *argument = line + length + strspn(line + length, " ");
    size_t end = strlen(argument);
    while (end > 0 && argument[end - 1] == ' ')
        argument[--end] = 0;
    line[length] = 0;
    const char *names[COUNT_OF(chat_commands)];
    for (size_t i = 0; i < COUNT_OF(chat_commands); i++) {
        names[i] = chat_commands[i].name;
        if (strcmp(names[i], line) != 0)
            continue;
        if (!!chat_commands[i].argument != !!*argument) {
            c->failed = true;
            if (chat_commands[i].argument)
                complain("/%s needs a %s", line, chat_commands[i].argument);
            else
                complain("/%s takes nothing after it", line);
            return;
        }
        chat_commands[i].run(c, argument);
        return;
    }
    const char *near = nearest_name(line, names, COUNT_OF(chat_commands));
    c->failed = true;
    complain("unknown command /%s; %s%s", line, near ? "did you mean /" : "try /help", near ? near : "");
}

/* ---- the program ------------------------------------------------------------------------------------------------ */

static void converse(chat *c)
{
    buffer line = {0};
    while (!c->leave && !output_broken()) {
        char prompt[80];
        snprintf(prompt, sizeof prompt, c->current ? "%.60s> " : "> ", talk(c)->name);
        line_result result = line_read(&line, c->reader, prompt);
        if (result == LINE_END || (result == LINE_INTERRUPTED && !line_is_terminal(c->reader)))
            break;
        interrupt_clear();
        if (result == LINE_INTERRUPTED || strspn(line.data, " \t\n") == line.size)
            continue;
        if (strlen(line.data) != line.size) {
            c->failed = true;
            complain("the turn holds a NUL character, expected text");
        } else if (line.data[0] == '/' && line.data[1] != '/') {
            run_chat_command(c, line.data + 1);
        } else {
            say(c, line.data + (line.data[0] == '/'));
        }
    }
    buffer_free(&line);
    c->failed = c->failed || ferror(stdin);
}

/* Copies an option that --escape changes. */
static int text_option(char **out, const char *name, const char *text, bool escape)
{
    if (!text)
        return EXIT_OK;
    *out = must(strdup(text));
    size_t size = strlen(*out);
    if (escape)
        unescape(*out, &size);
    return strlen(*out) == size ? EXIT_OK : fail_usage("--%s holds a NUL character, expected a text without one", name);
}

/* The stop texts asked for, and what ends a turn. */
static int add_stops(chat *c)
{
    const sampling_options *asked = &c->o->sampling;
    string_list *stops = &c->sampling.stop;
    id_list *ids = &c->sampling.stop_id;
    char *text = turn_stop_text(&c->style);
    int32_t id = turn_stop_id(&c->style);
    stops->items = must(calloc(asked->stop.n + 1, sizeof(char *)));
    int status = EXIT_OK;
    for (size_t i = 0; i < asked->stop.n && status == EXIT_OK; i++)
        status = text_option(&stops->items[stops->n++], "stop", asked->stop.items[i], c->o->escape);
    if (text)
        stops->items[stops->n++] = text;
    for (size_t i = 0; i < asked->stop_id.n; i++)
        ids_add(ids, asked->stop_id.ids[i]);
    if (id >= 0 && (uint32_t)id < xlstm_model_get_info(c->model)->n_tokens)
        ids_add(ids, id);
    return status;
}

static int open_chat(chat *c)
{
    int status = open_model(&c->model, &c->o->model, false);
    if (status)
        return status;
    c->tokenizer = need_tokenizer(c->model, "a chat");
    if (!c->tokenizer)
        return EXIT_RUNTIME;
    c->style = (turn_style){.system = c->o->system,
                            .user_prefix = c->o->user_prefix,
                            .assistant_prefix = c->o->assistant_prefix,
                            .tokenizer = c->tokenizer};
    status = turn_style_open(&c->style, c->o->chat_template);
    if (status)
        return status;
    status = add_stops(c);
    xlstm_sampler *sampler = NULL;
    if (status == EXIT_OK) /* what no answer could be chosen with is refused before the first turn */
        status = sampling_new(&sampler, &c->sampling, c->model, 0);
    xlstm_sampler_free(sampler);
    if (status)
        return status;
    xlstm_session *session;
    xlstm_error err = {0};
    if (xlstm_session_new(&session, c->model, &err))
        return fail_error(&err);
    add_conversation(c, "main", session);
    const xlstm_prefix_cache_options cache = {.folder = c->o->prefix_cache};
    if (cache.folder && xlstm_prefix_cache_new(&c->cache, c->model, &cache, &err))
        return fail_error(&err);
    if (c->o->state_in)
        load_state(c, c->o->state_in);
    return c->failed ? EXIT_RUNTIME : EXIT_OK;
}

static int run(const void *options, char **arguments, size_t n)
{
    (void)arguments;
    (void)n;
    chat_options o = *(const chat_options *)options;
    chat c = {.o = &o, .sampling = o.sampling};
    char *texts[3] = {NULL};
    int status = text_option(&texts[0], "system", o.system, o.escape);
    if (status == EXIT_OK)
        status = text_option(&texts[1], "user-prefix", o.user_prefix, o.escape);
    if (status == EXIT_OK)
        status = text_option(&texts[2], "assistant-prefix", o.assistant_prefix, o.escape);
    o.system = texts[0];
    o.user_prefix = texts[1];
    o.assistant_prefix = texts[2];
    c.sampling.stop = (string_list){0};
    c.sampling.stop_id = (id_list){0};
    sampling_settle_seed(&c.sampling);

    if (status == EXIT_OK)
        status = open_chat(&c);
    if (status == EXIT_OK) {
        interrupt_watch();
        char *path = o.no_history ? NULL : history_path();
        c.reader = line_new(path);
        free(path);
        if (line_is_terminal(c.reader) && !o.model.quiet)
            remark("%s. /help lists commands, Ctrl-C stops an answer, Ctrl-D leaves.",
                   xlstm_model_get_info(c.model)->path);
        converse(&c);
        if (!line_is_terminal(c.reader) && c.failed)
            status = EXIT_RUNTIME;
        line_free(c.reader);
    }
    for (size_t i = 0; i < c.n; i++)
        conversation_free(&c.conversations[i]);
    free(c.conversations);
    xlstm_prefix_cache_free(c.cache);
    xlstm_model_free(c.model);
    for (size_t i = 0; i < c.sampling.stop.n; i++)
        free(c.sampling.stop.items[i]);
    free(c.sampling.stop.items);
    free(c.sampling.stop_id.ids);
    turn_style_close(&c.style);
    for (size_t i = 0; i < COUNT_OF(texts); i++)
        free(texts[i]);
    return output_finish(status);
}

static const option_group groups[] = {
    {"Conversation", rows, COUNT_OF(rows), 0},
    SAMPLING_GROUP(chat_options, sampling),
    MODEL_GROUP(chat_options, model),
};

const command command_chat = {
    .name = "chat",
    .summary = "talk with a model; the conversation can be forked, undone and saved",
    .usage = "[-m MODEL] [--system TEXT] [--max-tokens N]",
    .details =
        "Lines that begin with / are commands: /save FILE, /load FILE, /fork NAME, /switch NAME, /list, /undo, "
        "/regenerate, /reset, /stats, /help, /quit. Ctrl-C stops an answer, which stays as far as it came; Ctrl-D "
        "leaves. Only the new turn is read; what was said before is in the state. A backslash at the end of a line continues it; pasted lines stay together.\n"
        "\n"
        "Without a terminal every line of standard input is a turn and only answers go to standard output; the exit "
        "status is then 1 if a turn or a command failed.",
    .size = sizeof(chat_options),
    .groups = groups,
    .n_groups = COUNT_OF(groups),
    .run = run,
};
