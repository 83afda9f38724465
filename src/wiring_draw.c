/*
 * wiring_draw.c — draws a discovered wiring as text. Everything is put on a canvas of cells, where lines are kept as the
 * set of directions they leave in, so that crossings and corners come out right in box characters and in plain ASCII.
 */
#include "wiring.h"

enum {
    WIDTH = 108,
    MAX_ROWS = 64, /* of the tallest part, a block */
    UP = 1, DOWN = 2, LEFT = 4, RIGHT = 8,
    LINE = 128, /* a cell below is a character, at or above it directions */
    STREAM = 10, /* column of the residual stream */
    BRANCH = 22, /* first column of the branches */
    STEP = 15,   /* between branches */
};

typedef struct canvas {
    uint8_t cell[MAX_ROWS][WIDTH];
    int rows;
    bool unicode;
} canvas;

static const char *const boxes[16] = {" ", "│", "│", "│", "─", "┘", "┐", "┤", "─", "└", "┌", "├", "─", "┴", "┬", "┼"};
static const char *const ascii[16] = {" ", "|", "|", "|", "-", "+", "+", "+", "-", "+", "+", "+", "-", "+", "+", "+"};

static void mark(canvas *c, int row, int column, int directions)
{
    uint8_t *cell = &c->cell[row][column];
    *cell = (uint8_t)((*cell >= LINE ? *cell : LINE) | directions);
}

static void down(canvas *c, int row, int last, int column)
{
    for (; row <= last; row++) mark(c, row, column, UP | DOWN);
}

/* Both ends turn inward only; what else meets them is marked by others. */
static void across(canvas *c, int row, int from, int to)
{
    mark(c, row, from, RIGHT);
    for (int i = from + 1; i < to; i++) mark(c, row, i, LEFT | RIGHT);
    mark(c, row, to, LEFT);
}

static void text(canvas *c, int row, int column, const char *s)
{
    for (; *s != '\0' && column < WIDTH; s++) c->cell[row][column++] = (uint8_t)*s;
}

static void centred(canvas *c, int row, int column, const char *s) { text(c, row, column - (int)strlen(s) / 2, s); }

static void flush(xl_text *out, canvas *c)
{
    for (int row = 0; row < c->rows; row++) {
        int end = WIDTH;
        while (end > 0 && (c->cell[row][end - 1] == 0 || c->cell[row][end - 1] == ' ')) end--;
        for (int i = 0; i < end; i++) {
            uint8_t cell = c->cell[row][i];
            if (cell >= LINE) {
                const char *s = c->unicode ? boxes[cell - LINE] : ascii[cell - LINE];
                xl_text_add(out, s, strlen(s));
            } else {
                char character = cell == 0 ? ' ' : (char)cell;
                xl_text_add(out, &character, 1);
            }
        }
        xl_text_add(out, "\n", 1);
    }
    *c = (canvas){.unicode = c->unicode};
}

/* ---- parts ------------------------------------------------------------------------------------------------------ */

/* Shape of the rows a role uses: its own part of a fused tensor. */
static void slice_shape(char out[XL_SHAPE_TEXT], const xl_slice *s)
{
    xl_tensor t = *s->t;
    t.shape[0] = s->rows;
    xl_shape_text(out, &t);
}

static const char *bias_mark(const xl_block_wiring *b, xl_role role) { return b->bias[role].t != NULL ? " + bias" : ""; }

/* "name  kind [shape] dtype" on one line, beginning at a column. */
static void line_part(canvas *c, int row, int column, const xl_block_wiring *b, xl_role role, const char *kind)
{
    char shape[XL_SHAPE_TEXT], line[160];
    slice_shape(shape, &b->weight[role]);
    snprintf(line, sizeof(line), "%s%s %s %s%s", xl_role_name(role), kind, shape,
             xlstm_dtype_name(b->weight[role].t->dtype), bias_mark(b, role));
    text(c, row, column, line);
}

/* Name, shape and dtype above each other, centred on a branch, in four rows; the line goes on below. */
static void branch_part(canvas *c, int row, int column, const xl_block_wiring *b, xl_role role)
{
    char shape[XL_SHAPE_TEXT];
    slice_shape(shape, &b->weight[role]);
    centred(c, row, column, xl_role_name(role));
    centred(c, row + 1, column, shape);
    centred(c, row + 2, column, xlstm_dtype_name(b->weight[role].t->dtype));
    if (b->bias[role].t != NULL) {
        centred(c, row + 3, column, "+ bias");
    } else {
        down(c, row + 3, row + 3, column);
    }
}

/* A row of branches that leave the line at `row`: the fan, then a part each. Returns the row below the parts. */
static int fan(canvas *c, int row, const xl_block_wiring *b, const xl_role *roles, int n)
{
    down(c, row, row, BRANCH);
    across(c, row + 1, BRANCH, BRANCH + (n - 1) * STEP);
    mark(c, row + 1, BRANCH, UP);
    for (int i = 0; i < n; i++) {
        mark(c, row + 1, BRANCH + i * STEP, DOWN);
        branch_part(c, row + 2, BRANCH + i * STEP, b, roles[i]);
    }
    return row + 6;
}

/* The stream passes a branch off to a norm. */
static void leave_stream(canvas *c, int row, const xl_block_wiring *b, xl_role norm)
{
    across(c, row, STREAM, BRANCH - 6);
    mark(c, row, STREAM, UP | DOWN);
    c->cell[row][BRANCH - 6] = '>';
    line_part(c, row, BRANCH - 4, b, norm, ": RMSNorm");
}

/* A result at `column` joins the stream. */
static void join_stream(canvas *c, int row, int column)
{
    across(c, row, STREAM + 2, column);
    mark(c, row, STREAM + 2, LEFT);
    mark(c, row, column, UP);
    text(c, row, STREAM - 1, "(+)");
}

static void draw_block(canvas *c, const xl_dims *d, const xl_block_wiring *b, uint32_t first, uint32_t count)
{
    static const xl_role upper[] = {XL_Q, XL_K, XL_V, XL_IGATE, XL_FGATE, XL_OGATE};
    static const xl_role lower[] = {XL_FFN_GATE, XL_FFN_UP};
    const int cell = BRANCH + 2 * STEP, ogate = BRANCH + 5 * STEP;
    char line[160];
    int row = 2;
    leave_stream(c, row, b, XL_NORM_MLSTM);
    row = fan(c, row + 1, b, upper, (int)XL_COUNT(upper));
    int side = row; /* ogate goes down beside the cell */
    across(c, row, BRANCH, BRANCH + 4 * STEP);
    for (int i = 0; i < 5; i++) mark(c, row, BRANCH + i * STEP, UP);
    mark(c, row, cell, DOWN);
    snprintf(line, sizeof(line), "mLSTM cell: %u heads, each C [%u, %u], n [%u], m", d->num_heads, d->head_qk, d->head_v,
             d->head_qk);
    centred(c, row + 1, cell, line);
    down(c, row + 2, row + 2, cell);
    line_part(c, row + 3, cell - 14, b, XL_MHNORM, ": LayerNorm");
    down(c, row + 4, row + 4, cell);
    across(c, row + 5, cell + 2, ogate);
    down(c, side, row + 4, ogate);
    mark(c, row + 5, ogate, UP);
    text(c, row + 5, cell - 1, "(x)");
    mark(c, row + 5, cell + 2, LEFT);
    text(c, row + 5, ogate + 2, "sigmoid");
    down(c, row + 6, row + 6, cell);
    line_part(c, row + 7, cell - 4, b, XL_OUT_PROJ, "");
    down(c, row + 8, row + 8, cell);
    join_stream(c, row + 9, cell);
    row += 11;
    leave_stream(c, row, b, XL_NORM_FFN);
    row = fan(c, row + 1, b, lower, (int)XL_COUNT(lower));
    across(c, row, BRANCH + 2, BRANCH + STEP);
    mark(c, row, BRANCH + 2, LEFT);
    mark(c, row, BRANCH + STEP, UP);
    text(c, row, BRANCH - 1, "(x)");
    text(c, row - 1, BRANCH - 5, "silu");
    down(c, row + 1, row + 1, BRANCH);
    line_part(c, row + 2, BRANCH - 4, b, XL_FFN_DOWN, "");
    down(c, row + 3, row + 3, BRANCH);
    join_stream(c, row + 4, BRANCH);
    c->rows = row + 7;

    for (int i = 1; i < c->rows - 1; i++) {
        if (c->cell[i][STREAM] == 0) down(c, i, i, STREAM);
    }
    across(c, 0, 0, WIDTH - 1);
    across(c, c->rows - 1, 0, WIDTH - 1);
    for (int side_column = 0; side_column < WIDTH; side_column += WIDTH - 1) {
        mark(c, 0, side_column, DOWN);
        mark(c, c->rows - 1, side_column, UP);
        down(c, 1, c->rows - 2, side_column);
    }
    mark(c, 0, STREAM, UP | DOWN);
    mark(c, c->rows - 1, STREAM, UP | DOWN);
    bool fused = b->weight[XL_Q].t == b->weight[XL_K].t;
    if (count == 1) {
        snprintf(line, sizeof(line), " block %u: mLSTM%s ", first, fused ? ", fused layout" : "");
    } else {
        snprintf(line, sizeof(line), " blocks %u-%u (x%u): mLSTM%s ", first, first + count - 1, count,
                 fused ? ", fused layout" : "");
    }
    text(c, 0, STREAM + 4, line);
}

/* A part outside the blocks, with a piece of the stream above it. */
static void draw_outside(canvas *c, const char *name, const xl_tensor *t, const char *note)
{
    char shape[XL_SHAPE_TEXT], line[160];
    down(c, 0, 0, STREAM);
    snprintf(line, sizeof(line), "%s %s %s%s", name, xl_shape_text(shape, t), xlstm_dtype_name(t->dtype), note);
    text(c, 1, STREAM - 4, line);
    c->rows = 2;
}

/* Drawn alike: the shapes of blocks are equal anyway. */
static bool same_block(const xl_block_wiring *a, const xl_block_wiring *b)
{
    for (int role = 0; role < XL_ROLES; role++) {
        const xl_slice *x = &a->weight[role], *y = &b->weight[role];
        if (x->t->dtype != y->t->dtype || x->row0 != y->row0) return false;
        if ((a->bias[role].t != NULL) != (b->bias[role].t != NULL)) return false;
    }
    return true;
}

void xl_wiring_draw(xl_text *out, const xl_wiring *wiring, bool unicode)
{
    canvas c = {.unicode = unicode, .rows = 1};
    text(&c, 0, STREAM - 4, "token ids");
    flush(out, &c);
    draw_outside(&c, "embedding", wiring->embedding, "");
    down(&c, 2, 2, STREAM);
    c.rows = 3;
    flush(out, &c);
    uint32_t n = wiring->dims.num_blocks;
    for (uint32_t first = 0, count; first < n; first += count) {
        count = 1;
        while (first + count < n && same_block(&wiring->blocks[first], &wiring->blocks[first + count])) count++;
        draw_block(&c, &wiring->dims, &wiring->blocks[first], first, count);
        flush(out, &c);
    }
    if (wiring->out_norm.t != NULL) {
        draw_outside(&c, "out_norm: RMSNorm", wiring->out_norm.t, wiring->out_norm_bias.t != NULL ? " + bias" : "");
        flush(out, &c);
    }
    draw_outside(&c, "lm_head", wiring->head, wiring->tied ? " (tied: the embedding)" : "");
    down(&c, 2, 2, STREAM);
    text(&c, 3, STREAM - 4, "logits");
    c.rows = 4;
    flush(out, &c);
}
