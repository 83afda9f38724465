/*
 * poison.h — copies of a bf16 checkpoint with single weights overwritten, for tests of non-finite values.
 */
#ifndef POISON_H
#define POISON_H

#include "weights.h"

#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <unistd.h>

#include <cmocka.h>

/* Overwrites one bf16 element of a tensor in a checkpoint folder; returns what was there. */
static inline uint16_t poison_weight(const char *folder, const char *tensor, size_t element, uint16_t value)
{
    xl_weights *w;
    assert_int_equal(xl_weights_open(&w, folder, NULL, NULL), XLSTM_OK);
    const xl_tensor *t = xl_weights_find(w, tensor);
    assert_non_null(t);
    assert_int_equal(t->dtype, XLSTM_BF16);
    char path[256];
    snprintf(path, sizeof(path), "%s/%s", folder, xl_weights_file(w, t->file));
    int fd = open(path, O_RDWR);
    uint16_t before;
    assert_int_equal(pread(fd, &before, 2, (off_t)(t->offset + 2 * element)), 2);
    assert_int_equal(pwrite(fd, &value, 2, (off_t)(t->offset + 2 * element)), 2);
    close(fd);
    xl_weights_close(w);
    return before;
}

/* A copy of a checkpoint folder under /tmp; static storage. */
static inline char *copy_folder(const char *model)
{
    static char folder[64];
    char command[512];
    snprintf(folder, sizeof(folder), "/tmp/xlstm-test-XXXXXX");
    assert_non_null(mkdtemp(folder));
    snprintf(command, sizeof(command), "cp %s/*.json %s/*.safetensors %s/ && chmod u+w %s/*", model, model, folder, folder);
    assert_int_equal(system(command), 0);
    return folder;
}

/* The same with a NaN in one element. */
static inline char *poisoned_copy(const char *model, const char *tensor, size_t element)
{
    char *folder = copy_folder(model);
    (void)poison_weight(folder, tensor, element, 0x7fc0);
    return folder;
}

static inline void remove_folder(const char *folder)
{
    char command[128];
    snprintf(command, sizeof(command), "rm -rf %s", folder);
    assert_int_equal(system(command), 0);
}

#endif
