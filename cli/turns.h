/*
 * turns.h — what a model reads for one turn of a conversation: in the style of its chat template, or plainly as
 * "User: ... Assistant:". Only the new part is made, because the state remembers the rest.
 */
#ifndef CLI_TURNS_H
#define CLI_TURNS_H

#include "common.h"

typedef struct turn_style {
    const char *source;             /* the template; NULL: plain */
    char *file;                     /* its bytes if it came from a file; owned */
    const char *system;             /* what the model is told first, may be NULL */
    const char *user_prefix, *assistant_prefix; /* plain style */
    const xlstm_tokenizer *tokenizer;
} turn_style;

/* `choice`: "auto" (the model's own template if it has one), "plain" or the path of a template file. The other members
 * are the caller's. EXIT_OK or a status after a message. */
int turn_style_open(turn_style *style, const char *choice);
void turn_style_close(turn_style *style);
/* The text between the last answer (or nothing, for the first turn) and the next one. Fails with a message. */
int turn_text(buffer *out, const turn_style *style, const char *words, bool first);
/* What ends an answer besides the model's own stop ids: the special token that the template puts behind one, -1 if it is
 * none; a plain style's next "User:" (malloc'ed), NULL for templates. */
int32_t turn_stop_id(const turn_style *style);
char *turn_stop_text(const turn_style *style);

#endif
