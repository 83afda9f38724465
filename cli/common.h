/*
 * common.h — what every command needs: messages, results on standard output, input texts, the shared model options and
 * opening a model with them, Ctrl-C. Leaves generation to generation.h.
 */
#ifndef CLI_COMMON_H
#define CLI_COMMON_H

#include "options.h"

#include <stddef.h>
#include <stdio.h>

/* ---- messages (standard error) and memory ----------------------------------------------------------------------- */

/* "xlstm: ..." and a newline. */
void complain(const char *format, ...) __attribute__((format(printf, 1, 2)));
/* The same, and returns EXIT_RUNTIME or EXIT_USAGE, so that commands can `return fail(...)`. */
int fail(const char *format, ...) __attribute__((format(printf, 1, 2)));
int fail_usage(const char *format, ...) __attribute__((format(printf, 1, 2)));
int fail_error(const xlstm_error *err);
/* What the last fail_error said. */
const char *last_error(void);
/* The pointer, or the end of the program if an allocation failed. */
void *must(void *memory);

/* A growing byte string, NUL-terminated once not empty. */
typedef struct buffer {
    char *data;
    size_t size, capacity;
} buffer;
void buffer_add(buffer *b, const char *bytes, size_t n);
void buffer_addf(buffer *b, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* As valid UTF-8: each byte that is not part of a character becomes U+FFFD. */
void buffer_add_utf8(buffer *b, const char *text, size_t size);
void buffer_free(buffer *b);

/* "origin: token position 41 (id 77), block 3, stage v, head 2, channel 9: value nan; ..." */
enum { FAULT_TEXT = 512 };
const char *fault_text(char out[FAULT_TEXT], const xlstm_fault *fault);

double now(void);                                 /* seconds, monotonic */
const char *human_bytes(char out[32], uint64_t bytes); /* "14.8 MB" */
const char *human_count(char out[32], uint64_t count); /* "10,485,760" */

/* ---- results (standard output) ---------------------------------------------------------------------------------- */

/* Writing never stops the program: the first failure is kept, and output_finish reports it. A closed pipe (`| head`) is
 * no error: whoever read has seen enough. */
void output(const char *bytes, size_t n);
void outputf(const char *format, ...) __attribute__((format(printf, 1, 2)));
void output_flush(void);
bool output_broken(void); /* nothing more can be written: stop working */
/* Flushes; returns `status`, or EXIT_RUNTIME after a message if something could not be written. */
int output_finish(int status);
/* A JSON string with quotes; invalid UTF-8 becomes U+FFFD. */
void output_json_string(const char *text, size_t size);
void output_json_ids(const int32_t *ids, size_t n);

/* Whether a file can be written at `path` (NULL: none is wanted), before work is done for it; complains and returns the exit
 * status. `option` names what asked for it. */
int check_output(const char *option, const char *path);

/* ---- input texts and ids ---------------------------------------------------------------------------------------- */

/* Whole file or, for "-", standard input. */
int read_whole(buffer *out, const char *path);
/* Interprets \n \t \r \0 \\ \" \' \e \xHH \uHHHH \UHHHHHHHH; anything else after a backslash is kept. In place. */
void unescape(char *text, size_t *size);
/* Ids separated by commas or white space, brackets ignored. -1 with *stopped at what is not an id. */
int ids_parse(id_list *out, const char *text, size_t size, const char **stopped);
void ids_add(id_list *list, int32_t id);

/* ---- interruption ----------------------------------------------------------------------------------------------- */

/* From here on the first Ctrl-C only raises a flag; a second one before it is lowered ends the program. */
void interrupt_watch(void);
bool interrupted(void);
void interrupt_clear(void);

/* ---- models ----------------------------------------------------------------------------------------------------- */

/* The options that every command with a model takes. */
typedef struct model_options {
    const char *model;
    xlstm_dtype dtype, kernel_dtype, state_dtype;
    int norm_reduction_float32, bos; /* xlstm_switch */
    uint64_t threads, chunk_size, device, device_states, offload_blocks;
    const char *backend;
    uint32_t cpu_mask;
    bool no_repack, obey_config_eos, verbose, quiet;
    string_list set;
} model_options;

extern const option_row model_rows[];
extern const size_t n_model_rows;
/* The group for a command's table: where its struct keeps its model_options. */
#define MODEL_GROUP(type, member) {"Model", model_rows, MODEL_ROWS, offsetof(type, member)}
enum { MODEL_ROWS = 18 };

/* The folder of the model that ships, "" if it is not where it belongs. Static storage. */
const char *shipped_model(void);
/* --model or the shipped model; NULL after a message. */
const char *model_path(const model_options *options);
/* Opens with all settings; EXIT_OK, or another status after a message. Free with xlstm_model_free. */
int open_model(xlstm_model **out, const model_options *options, bool headers_only);
/* A session that stands where the state in this file does; NULL: at the start. EXIT_OK, or another status after a message. */
int new_session(xlstm_session **out, xlstm_model *model, const char *state_in);
/* The model's tokenizer, NULL after a message that says what it was needed `for`. */
const xlstm_tokenizer *need_tokenizer(const xlstm_model *model, const char *what_for);

/* A bar on standard error with the time that is left, shown only on a terminal and only once the work has taken a while. */
typedef struct progress {
    double started, drawn;
    bool on, visible;
} progress;
progress progress_start(const model_options *options);
void progress_show(progress *p, const char *what, uint64_t done, uint64_t total);
void progress_end(progress *p);

#endif
