/*
 * options.c — reads options from defaults, environment and command line by the tables of options.h, and prints help
 * from the same tables. Leaves what the values mean to the commands.
 */
#include "options.h"
#include "common.h"

#include <ctype.h>
#include <errno.h>
#include <float.h>
#include <getopt.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

enum { HELP_WIDTH = 100, HELP_COLUMN = 34 };

/* ---- values ----------------------------------------------------------------------------------------------------- */

/* Where a value came from, for messages: "--top-k" or "XLSTM_TOP_K". */
typedef struct value_source {
    char name[80];
} value_source;

static int wrong_value(const value_source *source, const char *value, const char *expected)
{
    complain("%s is \"%s\", expected %s", source->name, value, expected);
    return EXIT_USAGE;
}

static int wrong_range(const value_source *source, const char *value, const option_row *row, const char *what)
{
    char expected[120];
    if (row->high > 0)
        snprintf(expected, sizeof expected, "%s from %.10g to %.10g", what, row->low, row->high);
    else
        snprintf(expected, sizeof expected, "%s of at least %.10g", what, row->low);
    return wrong_value(source, value, expected);
}

static int parse_count(uint64_t *out, const char *value, const option_row *row, const value_source *source)
{
    char *end;
    errno = 0;
    unsigned long long x = strtoull(value, &end, 10);
    if (!isdigit((unsigned char)value[0]) || *end || errno || (double)x < row->low ||
        (row->high > 0 && (double)x > row->high))
        return wrong_range(source, value, row, "a whole number");
    *out = x;
    return EXIT_OK;
}

static int parse_number(float *out, const char *value, const option_row *row, const value_source *source)
{
    char *end;
    double x = strtod(value, &end);
    if (end == value || *end || isnan(x) || x < row->low || (row->high > 0 && x > row->high))
        return wrong_range(source, value, row, "a number");
    if (x > (double)FLT_MAX)
        return wrong_value(source, value, "a number of at most 3.4e38");
    *out = (float)x;
    return EXIT_OK;
}

static int parse_choice(int *out, const char *value, const option_row *row, const value_source *source)
{
    int i = 0;
    for (const char *at = row->choices;; i++) {
        size_t n = strcspn(at, "|");
        if (strlen(value) == n && !strncasecmp(at, value, n)) {
            *out = i;
            return EXIT_OK;
        }
        if (!at[n])
            break;
        at += n + 1;
    }
    char expected[120];
    snprintf(expected, sizeof expected, "one of %s", row->choices);
    return wrong_value(source, value, expected);
}

static int parse_flag(bool *out, const char *value, const value_source *source)
{
    static const char *const yes[] = {"1", "on", "yes", "true"}, *const no[] = {"", "0", "off", "no", "false"};
    for (size_t i = 0; i < COUNT_OF(yes); i++)
        if (!strcasecmp(value, yes[i])) {
            *out = true;
            return EXIT_OK;
        }
    for (size_t i = 0; i < COUNT_OF(no); i++)
        if (!strcasecmp(value, no[i])) {
            *out = false;
            return EXIT_OK;
        }
    return wrong_value(source, value, "1 or 0");
}

int ids_parse(id_list *out, const char *text, size_t size, const char **stopped)
{
    const char *at = text, *end = text + size;
    out->given = true;
    for (;;) {
        while (at < end && (isspace((unsigned char)*at) || *at == ',' || *at == '[' || *at == ']'))
            at++;
        if (at == end)
            return 0;
        int64_t id = 0;
        const char *start = at;
        while (at < end && isdigit((unsigned char)*at) && id <= INT32_MAX)
            id = id * 10 + (*at++ - '0');
        if (at == start || id > INT32_MAX) {
            *stopped = start;
            return -1;
        }
        ids_add(out, (int32_t)id);
    }
}

void ids_add(id_list *list, int32_t id)
{
    if ((list->n & (list->n - 1)) == 0) /* capacity is the next power of two */
        list->ids = must(realloc(list->ids, (list->n ? 2 * list->n : 1) * sizeof *list->ids));
    list->ids[list->n++] = id;
    list->given = true;
}

static int parse_bias(bias_list *list, const char *value, const value_source *source)
{
    char *end;
    errno = 0;
    long id = strtol(value, &end, 10);
    if (end == value || *end != '=' || id < 0 || id > INT32_MAX || errno)
        return wrong_value(source, value, "ID=BIAS, for example 13=-inf");
    const char *number = end + 1;
    double bias = strtod(number, &end);
    if (end == number || *end || isnan(bias) || (fabs(bias) > (double)FLT_MAX && bias != -(double)INFINITY))
        return wrong_value(source, value, "ID=BIAS with a bias from -3.4e38 to 3.4e38 or -inf");
    list->items = must(realloc(list->items, (list->n + 1) * sizeof *list->items));
    list->items[list->n++] = (xlstm_logit_bias){(int32_t)id, (float)bias};
    return EXIT_OK;
}

static const struct {
    const char *name;
    uint32_t bits;
} cpu_names[] = {
    {"scalar", XLSTM_CPU_SCALAR},
    {"avx2", XLSTM_CPU_AVX2},
    {"avx512", XLSTM_CPU_AVX512},
    {"avx512-bf16", XLSTM_CPU_AVX512_BF16},
    {"avx512-vnni", XLSTM_CPU_AVX512_VNNI},
    {"amx", XLSTM_CPU_AMX},
    {"neon", XLSTM_CPU_NEON},
    {"dotprod", XLSTM_CPU_DOTPROD},
};

static int parse_cpu(uint32_t *out, const char *value, const value_source *source)
{
    uint32_t bits = XLSTM_CPU_SCALAR;
    for (const char *at = value;;) {
        size_t n = strcspn(at, ","), i = 0;
        while (i < COUNT_OF(cpu_names) && (strlen(cpu_names[i].name) != n || strncasecmp(cpu_names[i].name, at, n) != 0))
            i++;
        if (i == COUNT_OF(cpu_names))
            return wrong_value(source, value,
                               "names separated by commas: scalar, avx2, avx512, avx512-bf16, avx512-vnni, amx, "
                               "neon, dotprod");
        bits |= cpu_names[i].bits;
        if (!at[n])
            break;
        at += n + 1;
    }
    *out = bits;
    return EXIT_OK;
}

/* Puts a value where the row's field is. */
static int set_value(void *field, const option_row *row, const char *value, const value_source *source)
{
    switch (row->kind) {
    case OPTION_FLAG:
        return parse_flag(field, value, source);
    case OPTION_TEXT:
        *(const char **)field = value;
        return EXIT_OK;
    case OPTION_LIST: {
        string_list *list = field;
        list->items = must(realloc(list->items, (list->n + 1) * sizeof *list->items));
        list->items[list->n++] = must(strdup(value));
        return EXIT_OK;
    }
    case OPTION_COUNT:
        return parse_count(field, value, row, source);
    case OPTION_SEED:
        ((seed_value *)field)->given = true;
        return parse_count(&((seed_value *)field)->value, value, row, source);
    case OPTION_NUMBER:
        return parse_number(field, value, row, source);
    case OPTION_CHOICE:
        return parse_choice(field, value, row, source);
    case OPTION_DTYPE: {
        xlstm_error err;
        if (!xlstm_dtype_parse(field, value, &err))
            return EXIT_OK;
        complain("%s: %s", source->name, err.message);
        return EXIT_USAGE;
    }
    case OPTION_IDS: {
        const char *stopped;
        if (!ids_parse(field, value, strlen(value), &stopped))
            return EXIT_OK;
        return wrong_value(source, stopped, "token ids like 1,2,3");
    }
    case OPTION_BIAS:
        return parse_bias(field, value, source);
    case OPTION_CPU:
        return parse_cpu(field, value, source);
    }
    return EXIT_USAGE;
}

static void clear_value(void *field, const option_row *row)
{
    switch (row->kind) {
    case OPTION_LIST: {
        string_list *list = field;
        for (size_t i = 0; i < list->n; i++)
            free(list->items[i]);
        free(list->items);
        *list = (string_list){0};
        break;
    }
    case OPTION_IDS:
        free(((id_list *)field)->ids);
        *(id_list *)field = (id_list){0};
        break;
    case OPTION_BIAS:
        free(((bias_list *)field)->items);
        *(bias_list *)field = (bias_list){0};
        break;
    default:
        break;
    }
}

/* ---- environment ------------------------------------------------------------------------------------------------ */

void option_environment_name(char *out, size_t size, const char *name)
{
    snprintf(out, size, "XLSTM_%s", name);
    for (char *at = out + 6; *at; at++)
        *at = *at == '-' ? '_' : (char)toupper((unsigned char)*at);
}

static bool has_twin(const command *c, const option_row *row)
{
    return !c->no_twin || strcmp(c->no_twin, row->name) != 0;
}

/* A list's variable holds one value a line. */
static int read_environment(void *field, const option_row *row)
{
    value_source source;
    option_environment_name(source.name, sizeof source.name, row->name);
    const char *value = getenv(source.name);
    if (!value)
        return EXIT_OK;
    if (row->kind != OPTION_LIST && row->kind != OPTION_BIAS)
        return set_value(field, row, value, &source);
    char *copy = must(strdup(value)), *rest = copy, *line;
    int status = EXIT_OK;
    while (status == EXIT_OK && (line = strsep(&rest, "\n")))
        if (*line)
            status = set_value(field, row, line, &source);
    free(copy);
    return status;
}

/* ---- command line ----------------------------------------------------------------------------------------------- */

enum { MAX_OPTIONS = 128, CODE_HELP = 1000, CODE_FIRST = 1001 };

typedef struct flat_option {
    const option_row *row;
    void *field;
    const char *typed; /* on the command line, the last value; NULL: not there */
} flat_option;

/* Options that exclude each other: one on the command line sets the variables of its rivals aside. */
static const struct {
    const char *command; /* NULL: any */
    const char *names[4];
} rivals[] = {
    {NULL, {"prompt", "prompt-file", "prompt-ids", "interactive"}},
    {"generate", {"state-in", "prefix-cache"}},
    {"generate", {"state-out", "interactive"}},
    {"generate", {"state-out", "samples"}},
    {"ingest", {"state-in", "resume"}},
    {"perplexity", {"kl-base", "kl"}},
    {"tokenize", {"json", "jsonl"}},
    {"bench", {"json", "csv", "md"}},
    {"bench", {"model", "preset"}},
    {"bench", {"model", "type"}},
    {"bench", {"threads", "thread-counts"}},
    {"bench", {"dtype", "activations"}},
};

static bool are_rivals(const command *c, const char *a, const char *b)
{
    for (size_t i = 0; i < COUNT_OF(rivals); i++) {
        int found = 0;
        for (size_t k = 0; k < COUNT_OF(rivals[i].names) && rivals[i].names[k]; k++)
            found += !strcmp(rivals[i].names[k], a) || !strcmp(rivals[i].names[k], b);
        if (found == 2 && (!rivals[i].command || !strcmp(rivals[i].command, c->name)))
            return true;
    }
    return false;
}

/* Whether the command line leaves the option to its environment twin. A typed default (--samples 1) excludes nothing. */
static bool asks_environment(const command *c, const flat_option *option, const flat_option *flat, size_t n)
{
    if (option->typed || !has_twin(c, option->row))
        return false;
    for (size_t i = 0; i < n; i++) {
        const char *typed = flat[i].typed, *preset = flat[i].row->preset;
        if (typed && !(preset && !strcmp(typed, preset)) && are_rivals(c, flat[i].row->name, option->row->name))
            return false;
    }
    return true;
}

/* Not an option, or the beginning of several. */
static int unknown_option(const command *c, const char *typed, const flat_option *flat, size_t n)
{
    const char *names[MAX_OPTIONS];
    for (size_t i = 0; i < n; i++)
        names[i] = flat[i].row->name;
    const char *name = typed + strspn(typed, "-");
    char bare[64];
    snprintf(bare, sizeof bare, "%.*s", (int)strcspn(name, "="), name);
    const char *longer[MAX_OPTIONS];
    size_t n_longer = 0;
    for (size_t i = 0; i < n; i++)
        if (!strncmp(typed, "--", 2) && *bare && !strncmp(names[i], bare, strlen(bare)))
            longer[n_longer++] = names[i];
    const char *near = strlen(bare) > 1 ? nearest_name(bare, names, n) : NULL;
    if (n_longer > 1) {
        buffer list = {0};
        for (size_t i = 0; i < n_longer; i++)
            buffer_addf(&list, "%s--%s", i == 0 ? "" : i + 1 < n_longer ? ", " : " or ", longer[i]);
        complain("--%s is not an option; did you mean %s?", bare, list.data);
        buffer_free(&list);
    } else if (near) {
        complain("unknown option %s; did you mean --%s?", typed, near);
    } else {
        complain("unknown option %s", typed);
    }
    complain("try: xlstm %s --help", c->name);
    return EXIT_USAGE;
}

int options_parse(const command *c, void *options, int argc, char **argv, char ***arguments, size_t *n_arguments)
{
    flat_option flat[MAX_OPTIONS];
    struct option table[MAX_OPTIONS + 2];
    char letters[2 * MAX_OPTIONS + 4] = ":h";
    size_t n = 0, n_letters = 2;
    for (size_t g = 0; g < c->n_groups; g++) {
        for (size_t i = 0; i < c->groups[g].n; i++) {
            const option_row *row = &c->groups[g].rows[i];
            char *field = (char *)options + c->groups[g].base + row->field;
            bool flag = row->kind == OPTION_FLAG;
            flat[n] = (flat_option){row, field, NULL};
            table[n] = (struct option){row->name, flag ? no_argument : required_argument, NULL, CODE_FIRST + (int)n};
            n++;
            if (row->letter) {
                letters[n_letters++] = row->letter;
                if (!flag)
                    letters[n_letters++] = ':';
            }
            value_source source = {"default"};
            if (row->preset && set_value(field, row, row->preset, &source))
                return EXIT_USAGE;
        }
    }
    letters[n_letters] = 0;
    table[n] = (struct option){"help", no_argument, NULL, CODE_HELP};
    table[n + 1] = (struct option){0};

    opterr = 0;
    optind = 1;
    for (;;) {
        int before = optind;
        int code = getopt_long(argc, argv, letters, table, NULL);
        if (code == -1)
            break;
        if (code == CODE_HELP || code == 'h') {
            print_command_help(c);
            return -1;
        }
        if (code == '?') {
            char letter[3] = {'-', (char)optopt, 0};
            if (optopt >= CODE_FIRST && optopt < CODE_FIRST + (int)n) {
                complain("--%s takes no value", flat[optopt - CODE_FIRST].row->name);
                return EXIT_USAGE;
            }
            const char *typed = argv[optind > before ? optind - 1 : before];
            return unknown_option(c, optopt ? letter : typed, flat, n);
        }
        if (code == ':') {
            complain("%s needs a value", argv[optind - 1]);
            complain("try: xlstm %s --help", c->name);
            return EXIT_USAGE;
        }
        size_t i = 0;
        while (i < n && code != CODE_FIRST + (int)i && code != flat[i].row->letter)
            i++;
        if (i == n)
            continue;
        value_source source;
        snprintf(source.name, sizeof source.name, "--%s", flat[i].row->name);
        flat[i].typed = optarg ? optarg : "1";
        int status = set_value(flat[i].field, flat[i].row, flat[i].typed, &source);
        if (status)
            return status;
    }
    *arguments = argv + optind;
    *n_arguments = (size_t)(argc - optind);
    if (*n_arguments > 0 && !c->arguments) {
        complain("unexpected argument \"%s\"; give the model with -m and text with -p", argv[optind]);
        complain("try: xlstm %s --help", c->name);
        return EXIT_USAGE;
    }
    for (size_t i = 0; i < n; i++)
        if (asks_environment(c, &flat[i], flat, n) && read_environment(flat[i].field, flat[i].row))
            return EXIT_USAGE;
    return EXIT_OK;
}

void options_release(const command *c, void *options)
{
    for (size_t g = 0; g < c->n_groups; g++)
        for (size_t i = 0; i < c->groups[g].n; i++)
            clear_value((char *)options + c->groups[g].base + c->groups[g].rows[i].field, &c->groups[g].rows[i]);
}

/* ---- suggestions ------------------------------------------------------------------------------------------------ */

/* Edits (insert, delete, replace, swap neighbours) between two short names. */
static int edit_distance(const char *a, const char *b)
{
    enum { MAX = 40 };
    int rows[3][MAX + 1];
    int n = (int)strlen(a), m = (int)strlen(b);
    if (n > MAX || m > MAX)
        return MAX;
    int *before = rows[0], *last = rows[1], *now = rows[2];
    for (int j = 0; j <= m; j++)
        last[j] = before[j] = j;
    for (int i = 1; i <= n; i++) {
        now[0] = i;
        for (int j = 1; j <= m; j++) {
            int best = last[j - 1] + (a[i - 1] != b[j - 1]);
            if (last[j] + 1 < best)
                best = last[j] + 1;
            if (now[j - 1] + 1 < best)
                best = now[j - 1] + 1;
            if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] && before[j - 2] + 1 < best)
                best = before[j - 2] + 1;
            now[j] = best;
        }
        int *free_row = before;
        before = last;
        last = now;
        now = free_row;
    }
    return last[m];
}

const char *nearest_name(const char *typed, const char *const *names, size_t n)
{
    const char *best = NULL;
    int least = 1 + (int)strlen(typed) / 3;
    for (size_t i = 0; i < n; i++) {
        int distance = edit_distance(typed, names[i]);
        if (distance > 1 && strlen(typed) > 2 && strstr(names[i], typed))
            distance = 1; /* a part of the name */
        if (distance < least || (distance == least && !best)) {
            least = distance;
            best = names[i];
        }
    }
    return best;
}

/* ---- help ------------------------------------------------------------------------------------------------------- */

void print_wrapped(FILE *to, const char *text, int column, int indent, int width)
{
    while (*text) {
        if (*text == '\n') {
            fprintf(to, "\n%*s", text[1] && text[1] != '\n' ? indent : 0, "");
            column = indent;
            text++;
            continue;
        }
        int n = (int)strcspn(text, " \n");
        if (column > indent && column + n > width) {
            fprintf(to, "\n%*s", indent, "");
            column = indent;
        }
        fprintf(to, "%.*s", n, text);
        column += n;
        text += n;
        if (*text == ' ') {
            if (column + 1 + (int)strcspn(text + 1, " \n") <= width) {
                fputc(' ', to);
                column++;
                text++;
            } else {
                while (*text == ' ')
                    text++;
                fprintf(to, "\n%*s", indent, "");
                column = indent;
            }
        }
    }
    fputc('\n', to);
}

const char *option_shown_preset(const option_row *row)
{
    return row->preset && strcmp(row->preset, "auto") != 0 ? row->preset : NULL;
}

void print_command_help(const command *c)
{
    FILE *to = stdout;
    fprintf(to, "xlstm %s - %s\n\nUsage: xlstm %s %s\n", c->name, c->summary, c->name, c->usage);
    for (size_t g = 0; g < c->n_groups; g++) {
        fprintf(to, "\n%s\n", c->groups[g].title);
        for (size_t i = 0; i < c->groups[g].n; i++) {
            const option_row *row = &c->groups[g].rows[i];
            char letter[5] = "    ";
            if (row->letter)
                snprintf(letter, sizeof letter, "-%c, ", row->letter);
            int column = fprintf(to, "  %s--%s%s%s", letter, row->name, row->argument ? " " : "",
                                 row->argument ? row->argument : "");
            if (column >= HELP_COLUMN - 1) {
                fputc('\n', to);
                column = 0;
            }
            fprintf(to, "%*s", HELP_COLUMN - column, "");
            char text[600];
            const char *preset = option_shown_preset(row);
            snprintf(text, sizeof text, "%s%s%s%s", row->help, preset ? " (default " : "", preset ? preset : "",
                     preset ? ")" : "");
            print_wrapped(to, text, HELP_COLUMN, HELP_COLUMN, HELP_WIDTH);
        }
    }
    if (c->details) {
        fputc('\n', to);
        print_wrapped(to, c->details, 0, 0, HELP_WIDTH);
    }
    fputc('\n', to);
    char twins[200];
    snprintf(twins, sizeof twins, "Every option%s%s has an environment twin that the command line overrides: --model is "
                                  "XLSTM_MODEL, --no-repack is XLSTM_NO_REPACK=1.",
             c->no_twin ? " but --" : "", c->no_twin ? c->no_twin : "");
    print_wrapped(to, twins, 0, 0, HELP_WIDTH);
}

void print_program_help(FILE *to)
{
    fprintf(to, "xlstm %s - runs xLSTM language models\n\nUsage: xlstm COMMAND [OPTIONS]\n\nCommands\n",
            xlstm_version());
    for (size_t i = 0; all_commands[i]; i++)
        fprintf(to, "  %-12s %s\n", all_commands[i]->name, all_commands[i]->summary);
    fprintf(to, "\n"
                "  xlstm COMMAND --help   the options of a command\n"
                "  xlstm --version        the version\n"
                "\n"
                "Start with:\n"
                "  xlstm generate -p \"Once upon a time\"            text from the small model that ships\n"
                "  xlstm generate -m FOLDER -p \"Once upon a time\"  text from a Hugging Face xLSTM folder\n"
                "  xlstm chat -m FOLDER                            a conversation\n"
                "\n"
                "Results go to standard output, everything else to standard error. Exit status: 0 success,\n"
                "1 failure, 2 wrong usage, 130 interrupted by Ctrl-C.\n");
}
