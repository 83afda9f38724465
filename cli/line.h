/*
 * line.h — one line after another from a person or a pipe. On a terminal: editing, history, pasting of several lines.
 * The only file that knows libedit.
 */
#ifndef CLI_LINE_H
#define CLI_LINE_H

#include "common.h"

typedef struct line_reader line_reader;

/* `history_file`: where lines are kept, NULL for nowhere. Reads standard input. */
line_reader *line_new(const char *history_file);
void line_free(line_reader *r);

typedef enum line_result { LINE_READ, LINE_END, LINE_INTERRUPTED } line_result;

/* Replaces *out with the next line, without its newline. A backslash at the end of a line joins the next one with a line
 * break; pasted line breaks stay in the line. On a terminal `prompt` is shown. */
line_result line_read(buffer *out, line_reader *r, const char *prompt);
bool line_is_terminal(const line_reader *r);

/* ~/.local/state/xlstm/history, or under XDG_STATE_HOME; folders are made. NULL if there is no home. Free it. */
char *history_path(void);

#endif
