/*
 * main.c — the program `xlstm`: picks the command. A command is one file that defines a `command` (options.h) and one
 * row here.
 */
#include "common.h"

#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>

extern const command command_generate, command_chat, command_info, command_logits, command_tokenize,
    command_perplexity, command_trace, command_diagnose, command_bench, command_ingest, command_state, command_session,
    command_convert, command_quantize, command_imatrix;

const command *const all_commands[] = {
    &command_generate, &command_chat,     &command_info,    &command_logits,  &command_tokenize, &command_perplexity,
    &command_trace,    &command_diagnose, &command_bench,   &command_ingest,  &command_state,    &command_session,
    &command_convert,  &command_quantize, &command_imatrix, NULL,
};

int print_completion(const char *shell); /* complete.c */
int print_manual(void);

static const command *find_command(const char *name)
{
    for (size_t i = 0; all_commands[i]; i++)
        if (!strcmp(all_commands[i]->name, name))
            return all_commands[i];
    return NULL;
}

static int unknown_command(const char *name)
{
    const char *names[64];
    size_t n = 0;
    while (all_commands[n]) {
        names[n] = all_commands[n]->name;
        n++;
    }
    const char *near = nearest_name(name, names, n);
    if (near)
        complain("unknown command \"%s\"; did you mean %s?", name, near);
    else
        complain("unknown command \"%s\"", name);
    return fail_usage("try: xlstm --help");
}

static int run_command(const command *c, int argc, char **argv)
{
    void *options = must(calloc(1, c->size));
    char **arguments;
    size_t n;
    int status = options_parse(c, options, argc, argv, &arguments, &n);
    if (status == EXIT_OK)
        status = c->run(options, arguments, n);
    else if (status < 0) /* help was printed */
        status = output_finish(EXIT_OK);
    options_release(c, options);
    free(options);
    return status;
}

/* A file must not be opened under the number of a closed standard stream and then be read or written as that. */
static void occupy_streams(void)
{
    for (int fd = 0; fd <= 2; fd++)
        if (fcntl(fd, F_GETFD) < 0 && open("/dev/null", fd == 0 ? O_WRONLY : O_RDONLY) != fd) /* any use fails */
            exit(EXIT_RUNTIME);
}

int main(int argc, char **argv)
{
    occupy_streams();
    signal(SIGPIPE, SIG_IGN); /* a closed pipe is an error of the write, see output() */
    signal(SIGXFSZ, SIG_IGN); /* so is a file that may not grow further */
    const char *name = argc > 1 ? argv[1] : "";
    if (argc < 2) {
        print_program_help(stderr);
        return EXIT_USAGE;
    }
    if (!strcmp(name, "--version") || !strcmp(name, "-V") || !strcmp(name, "version")) {
        outputf("xlstm %s\n", xlstm_version());
        return output_finish(EXIT_OK);
    }
    if (!strcmp(name, "--help") || !strcmp(name, "-h") || !strcmp(name, "help")) {
        const command *topic = argc > 2 && name[0] != '-' ? find_command(argv[2]) : NULL;
        if (argc > 2 && name[0] != '-' && !topic)
            return unknown_command(argv[2]);
        if (topic)
            print_command_help(topic);
        else
            print_program_help(stdout);
        return output_finish(EXIT_OK);
    }
    if (!strcmp(name, "__complete"))
        return print_completion(argc > 2 ? argv[2] : "");
    if (!strcmp(name, "__man"))
        return print_manual();
    const command *c = find_command(name);
    return c ? run_command(c, argc - 1, argv + 1) : unknown_command(name);
}
