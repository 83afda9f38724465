/*
 * options.h — tables that describe commands and their options. One table serves parsing, environment twins, --help,
 * the man page and the shell completions. Knows nothing of models.
 */
#ifndef CLI_OPTIONS_H
#define CLI_OPTIONS_H

#include "xlstm.h"

#include <stdio.h>

enum { EXIT_OK = 0, EXIT_RUNTIME = 1, EXIT_USAGE = 2, EXIT_INTERRUPTED = 130 };

#define COUNT_OF(a) (sizeof(a) / sizeof((a)[0]))

/* What an option's field in the command's struct is. */
typedef enum option_kind {
    OPTION_FLAG,   /* bool */
    OPTION_TEXT,   /* const char *, NULL while not given */
    OPTION_LIST,   /* string_list; may be given more than once */
    OPTION_COUNT,  /* uint64_t in low .. high */
    OPTION_SEED,   /* seed_value */
    OPTION_NUMBER, /* float in low .. high */
    OPTION_CHOICE, /* int: index into choices */
    OPTION_DTYPE,  /* xlstm_dtype */
    OPTION_IDS,    /* id_list: "1,2,3", also with spaces; a second use appends */
    OPTION_BIAS,   /* bias_list: "ID=BIAS"; may be given more than once */
    OPTION_CPU,    /* uint32_t of XLSTM_CPU_* bits: "avx2,avx512" */
} option_kind;

typedef struct seed_value {
    uint64_t value;
    bool given;
} seed_value;

typedef struct string_list {
    char **items;
    size_t n;
} string_list;

typedef struct id_list {
    int32_t *ids;
    size_t n;
    bool given; /* "" is an empty list that was given */
} id_list;

typedef struct bias_list {
    xlstm_logit_bias *items;
    size_t n;
} bias_list;

typedef struct option_row {
    const char *name; /* long name; its environment twin is XLSTM_NAME, see command.no_twin */
    char letter;      /* 0: none */
    option_kind kind;
    size_t field;         /* offset from the group's struct */
    const char *argument; /* how help names the value; NULL for flags */
    const char *help;
    const char *preset;  /* default, as it would be typed; NULL: all-zero */
    const char *choices; /* OPTION_CHOICE: "auto|on|off", in the order of the values */
    double low, high;    /* COUNT, NUMBER: accepted range; high 0: no limit */
} option_row;

typedef struct option_group {
    const char *title;
    const option_row *rows;
    size_t n;
    size_t base; /* offset of the group's struct in the command's struct */
} option_group;

typedef struct command {
    const char *name;
    const char *summary;   /* one line, no full stop */
    const char *usage;     /* what follows the name in a typical call */
    const char *details;   /* paragraphs for --help and the man page; may be NULL */
    const char *arguments; /* names of plain arguments, "FILE..."; NULL: none are taken */
    const char *no_twin;   /* option without an environment twin: its name means another thing elsewhere; NULL: none */
    size_t size;           /* of the struct that the groups fill */
    const option_group *groups;
    size_t n_groups;
    int (*run)(const void *options, char **arguments, size_t n); /* returns the exit status */
} command;

/* Every command, in the order of the help. NULL-terminated. main.c. */
extern const command *const all_commands[];

/* Fills `options` [command->size], zeroed by the caller, from defaults, environment and command line, in this order of
 * precedence; variables of options that one on the command line excludes are not read. `argv[0]` is the command's name.
 * Returns EXIT_OK, EXIT_USAGE after a message, or -1 after --help was printed. Plain arguments are gathered in
 * *arguments (into argv). Release in any case. */
int options_parse(const command *c, void *options, int argc, char **argv, char ***arguments, size_t *n_arguments);
void options_release(const command *c, void *options);

/* "XLSTM_MAX_TOKENS" from "max-tokens". */
void option_environment_name(char *out, size_t size, const char *name);
/* " (default 50)" material: the preset worth showing, or NULL. */
const char *option_shown_preset(const option_row *row);
/* The nearest of `n` names to a mistyped one, NULL if none is near. */
const char *nearest_name(const char *typed, const char *const *names, size_t n);

void print_command_help(const command *c);
void print_program_help(FILE *to);
/* Text in lines of at most `width` columns, continuation lines indented; line breaks in the text are kept. */
void print_wrapped(FILE *to, const char *text, int column, int indent, int width);

#endif
