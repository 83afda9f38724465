/*
 * complete.c — the man page and the shell completions, written from the option tables. The results are kept in the
 * tree (docs/xlstm.1, completions/); a test tells when they are out of date.
 */
#include "common.h"

#include <stdlib.h>
#include <string.h>

int print_completion(const char *shell);
int print_manual(void);

typedef void (*row_fn)(const command *c, const option_row *row);

static void each_row(const command *c, row_fn fn)
{
    for (size_t g = 0; g < c->n_groups; g++)
        for (size_t i = 0; i < c->groups[g].n; i++)
            fn(c, &c->groups[g].rows[i]);
}

static bool takes_file(const option_row *row)
{
    return row->argument && (!strcmp(row->argument, "FILE") || !strcmp(row->argument, "PATH"));
}

/* The part of a help text that fits beside a completion: up to the first sentence mark. */
static void print_short(const char *text, const char *escaped)
{
    size_t n = strcspn(text, ";(");
    while (n > 0 && text[n - 1] == ' ')
        n--;
    for (size_t i = 0; i < n; i++) {
        if (text[i] == '\'') /* out of the quotes and in again */
            outputf("'\\''");
        else
            outputf("%s%c", strchr(escaped, text[i]) ? "\\" : "", text[i]);
    }
}

/* "auto|on|off" with blanks between. */
static void print_choices(const option_row *row)
{
    for (const char *at = row->choices; *at; at++)
        outputf("%c", *at == '|' ? ' ' : *at);
}

/* ---- bash ------------------------------------------------------------------------------------------------------- */

static void bash_word(const command *c, const option_row *row)
{
    (void)c;
    outputf(" --%s", row->name);
}

static void bash_value(const command *c, const option_row *row)
{
    if (!row->argument)
        return;
    outputf("    %s:--%s", c->name, row->name);
    if (row->letter)
        outputf(" | %s:-%c", c->name, row->letter);
    outputf(") ");
    if (row->choices) {
        outputf("COMPREPLY=($(compgen -W '");
        print_choices(row);
        outputf("' -- \"$word\"));");
    } else if (takes_file(row)) {
        outputf("compopt -o filenames; COMPREPLY=($(compgen -f -- \"$word\"));");
    } else {
        outputf(":;");
    }
    outputf(" return ;;\n");
}

static void print_bash(void)
{
    outputf("# bash completion for xlstm; written by `xlstm __complete bash`\n"
            "# shellcheck shell=bash disable=SC2207\n"
            "_xlstm()\n"
            "{\n"
            "    local word=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD - 1]} command=${COMP_WORDS[1]}\n"
            "    COMPREPLY=()\n"
            "    if [ \"$COMP_CWORD\" -eq 1 ]; then\n"
            "        COMPREPLY=($(compgen -W '");
    for (size_t i = 0; all_commands[i]; i++)
        outputf("%s ", all_commands[i]->name);
    outputf("help --help --version' -- \"$word\"))\n"
            "        return\n"
            "    fi\n"
            "    case $command:$before in\n");
    for (size_t i = 0; all_commands[i]; i++)
        each_row(all_commands[i], bash_value);
    outputf("    esac\n"
            "    case $command in\n");
    for (size_t i = 0; all_commands[i]; i++) {
        outputf("    %s) COMPREPLY=($(compgen -W '--help", all_commands[i]->name);
        each_row(all_commands[i], bash_word);
        outputf("' -- \"$word\")) ;;\n");
    }
    outputf("    esac\n"
            "}\n"
            "complete -F _xlstm xlstm\n");
}

/* ---- zsh -------------------------------------------------------------------------------------------------------- */

static void zsh_row(const command *c, const option_row *row)
{
    (void)c;
    bool again = row->kind == OPTION_LIST || row->kind == OPTION_IDS || row->kind == OPTION_BIAS;
    outputf("            %s", again ? "'*'" : "");
    if (row->letter)
        outputf("{-%c,--%s}", row->letter, row->name);
    else
        outputf("--%s", row->name);
    outputf("'%s[", row->argument ? "=" : "");
    print_short(row->help, "[]:");
    outputf("]");
    if (row->choices) {
        outputf(":%s:(", row->name);
        print_choices(row);
        outputf(")");
    } else if (takes_file(row)) {
        outputf(":%s:_files", row->argument);
    } else if (row->argument) {
        outputf(":%s: ", row->argument);
    }
    outputf("' \\\n");
}

static void print_zsh(void)
{
    outputf("#compdef xlstm\n"
            "# zsh completion for xlstm; written by `xlstm __complete zsh`\n"
            "_xlstm() {\n"
            "    local -a commands\n"
            "    commands=(\n");
    for (size_t i = 0; all_commands[i]; i++)
        outputf("        '%s:%s'\n", all_commands[i]->name, all_commands[i]->summary);
    outputf("    )\n"
            "    if (( CURRENT == 2 )); then\n"
            "        _describe command commands\n"
            "        return\n"
            "    fi\n"
            "    local command=$words[2]\n"
            "    shift words\n"
            "    (( CURRENT-- ))\n"
            "    case $command in\n");
    for (size_t i = 0; all_commands[i]; i++) {
        outputf("    %s)\n        _arguments \\\n", all_commands[i]->name);
        each_row(all_commands[i], zsh_row);
        outputf("            '*:file:_files'\n        ;;\n");
    }
    outputf("    esac\n"
            "}\n"
            "_xlstm \"$@\"\n");
}

/* ---- fish ------------------------------------------------------------------------------------------------------- */

static void fish_row(const command *c, const option_row *row)
{
    outputf("complete -c xlstm -n '__fish_seen_subcommand_from %s' -l %s", c->name, row->name);
    if (row->letter)
        outputf(" -s %c", row->letter);
    if (row->choices) {
        outputf(" -x -a '");
        print_choices(row);
        outputf("'");
    } else if (takes_file(row)) {
        outputf(" -r -F");
    } else if (row->argument) {
        outputf(" -x");
    }
    outputf(" -d '");
    print_short(row->help, "\\");
    outputf("'\n");
}

static void print_fish(void)
{
    outputf("# fish completion for xlstm; written by `xlstm __complete fish`\n"
            "complete -c xlstm -f\n");
    for (size_t i = 0; all_commands[i]; i++)
        outputf("complete -c xlstm -n __fish_use_subcommand -a %s -d '%s'\n", all_commands[i]->name,
                all_commands[i]->summary);
    for (size_t i = 0; all_commands[i]; i++)
        each_row(all_commands[i], fish_row);
}

int print_completion(const char *shell)
{
    static const struct {
        const char *name;
        void (*print)(void);
    } shells[] = {{"bash", print_bash}, {"zsh", print_zsh}, {"fish", print_fish}};
    for (size_t i = 0; i < COUNT_OF(shells); i++) {
        if (!strcmp(shells[i].name, shell)) {
            shells[i].print();
            return output_finish(EXIT_OK);
        }
    }
    return fail_usage("usage: xlstm __complete bash|zsh|fish");
}

/* ---- man page --------------------------------------------------------------------------------------------------- */

/* One line for roff: hyphens stay hyphens to copy, and none begins with a request. */
static void print_roff_line(const char *text, size_t n)
{
    if (n > 0 && (*text == '.' || *text == '\''))
        outputf("\\&");
    for (size_t i = 0; i < n; i++) {
        if (text[i] == '-' || text[i] == '\\')
            outputf(text[i] == '-' ? "\\-" : "\\e");
        else
            outputf("%c", text[i]);
    }
    outputf("\n");
}

/* Text for roff: lines are kept, an empty one begins a paragraph, those of a list ("words    what they mean") hang. */
static void print_roff(const char *text)
{
    bool list = false, paragraph = true;
    for (const char *at = text, *end; *at; at = *end ? end + 1 : end) {
        end = at + strcspn(at, "\n");
        const char *gap = strstr(at, "  ");
        if (gap && gap < end) {
            const char *meaning = gap + strspn(gap, " ");
            outputf(".TP %d\n", (int)(meaning - at));
            print_roff_line(at, (size_t)(gap - at));
            print_roff_line(meaning, (size_t)(end - meaning));
            list = true;
        } else if (end == at) {
            outputf(".PP\n");
            list = false;
        } else {
            if (list || !paragraph)
                outputf(list ? ".TP\n" : ".br\n");
            print_roff_line(at, (size_t)(end - at));
        }
        paragraph = end == at;
    }
}

static void print_roff_row(const option_row *row)
{
    outputf(".TP\n");
    if (row->letter)
        outputf("\\fB\\-%c\\fR, ", row->letter);
    outputf("\\fB\\-\\-");
    for (const char *at = row->name; *at; at++)
        outputf(*at == '-' ? "\\-" : "%c", *at);
    outputf("\\fR");
    if (row->argument)
        outputf(" \\fI%s\\fR", row->argument);
    outputf("\n");
    const char *preset = option_shown_preset(row);
    char text[600];
    snprintf(text, sizeof text, "%s%s%s%s", row->help, preset ? " (default " : "", preset ? preset : "",
             preset ? ")" : "");
    print_roff(text);
}

int print_manual(void)
{
    outputf(".\\\" Written by `xlstm __man`.\n"
            ".TH XLSTM 1 \"\" \"xlstm %s\" \"User Commands\"\n"
            ".SH NAME\n"
            "xlstm \\- run xLSTM language models\n"
            ".SH SYNOPSIS\n"
            ".B xlstm\n"
            ".I COMMAND\n"
            "[\\fIOPTIONS\\fR]\n"
            ".SH DESCRIPTION\n",
            xlstm_version());
    print_roff("Runs language models of the xLSTM architecture as Hugging Face publishes them. The whole memory of a text "
               "is a state of fixed size, which can be saved, loaded and forked. Results go to standard output, progress, "
               "timings and warnings to standard error.");
    outputf(".SH COMMANDS\n");
    for (size_t i = 0; all_commands[i]; i++) {
        const command *c = all_commands[i];
        outputf(".SS xlstm %s\n", c->name);
        outputf(".B xlstm %s\n", c->name);
        print_roff(c->usage);
        outputf(".PP\n");
        char summary[200];
        snprintf(summary, sizeof summary, "%c%s.", c->summary[0] - 'a' + 'A', c->summary + 1);
        print_roff(summary);
        if (c->details) {
            outputf(".PP\n");
            print_roff(c->details);
        }
        for (size_t g = 0; g < c->n_groups; g++) {
            if (c->groups[g].rows == model_rows) {
                outputf(".PP\nAnd the options under MODEL OPTIONS.\n");
                continue;
            }
            for (size_t k = 0; k < c->groups[g].n; k++)
                print_roff_row(&c->groups[g].rows[k]);
        }
    }
    outputf(".SH MODEL OPTIONS\nCommands that open a model take these.\n");
    for (size_t i = 0; i < MODEL_ROWS; i++)
        print_roff_row(&model_rows[i]);
    outputf(".SH ENVIRONMENT\n");
    print_roff("Every option has a twin that the command line overrides: --max-tokens is XLSTM_MAX_TOKENS, --model is "
               "XLSTM_MODEL. An option on the command line also overrides the variables of options that it excludes: "
               "--prompt those of --prompt-file and --prompt-ids. Flags are 1 or 0; of repeatable options a variable holds "
               "one value a line. Options without a twin, because their names mean another thing in other commands:");
    for (size_t i = 0; all_commands[i]; i++)
        if (all_commands[i]->no_twin)
            outputf(".br\nxlstm %s \\-\\-%s\n", all_commands[i]->name, all_commands[i]->no_twin);
    outputf(".SH EXIT STATUS\n");
    print_roff("0 success; 1 failure, with a message that names file, tensor or field; 2 wrong usage; 130 interrupted by "
               "Ctrl-C. When the reader of a pipe leaves, the program ends with 0.");
    outputf(".SH FILES\n.TP\n.I share/xlstm/models/\nThe model that is used without \\-\\-model.\n"
            ".TP\n.I ~/.local/state/xlstm/history\nLines typed in a chat (under XDG_STATE_HOME if that is set).\n"
            ".SH EXAMPLES\n.nf\n"
            "xlstm generate \\-p \"Once upon a time\" \\-\\-max\\-tokens 200 \\-\\-temperature 0.8 \\-\\-stats\n"
            "xlstm generate \\-p \"$(cat notes.txt)\" \\-\\-max\\-tokens 0 \\-\\-state\\-out notes.state\n"
            "xlstm generate \\-\\-state\\-in notes.state \\-p \" In short:\"\n"
            "xlstm tokenize \\-p \"Once upon\" | xargs xlstm logits \\-\\-prompt\\-ids\n"
            ".fi\n");
    return output_finish(EXIT_OK);
}
