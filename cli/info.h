/* info.h — the model summary, also shown by `generate --info`. */
#ifndef CLI_INFO_H
#define CLI_INFO_H

#include "common.h"

void info_print(FILE *to, const xlstm_model *model);
/* Draws the wiring with style 0 unicode or 1 ascii. EXIT_OK or a status after a message. */
int wiring_print(FILE *to, const xlstm_model *model, int style);

#endif
