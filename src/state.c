/*
 * state.c — snapshots of a session and their file format (docs/state-file.md). A snapshot is independent of the session
 * it came from; one loaded from a file reads straight from the mapping. What the values mean is left to state_math.c.
 */
#include "state.h"

/* ---- file layout ------------------------------------------------------------------------------------------------ */

enum { VERSION = 1, HEADER_BYTES = 4096, NOTE_MAX = 1023 };
static const char magic[8] = {'x', 'L', 'S', 'T', 'M', 's', 't', 'a'};

/* Little-endian, as are all hosts this library runs on (asserted below). */
typedef struct file_header {
    char magic[8];
    uint32_t version;
    uint32_t header_bytes; /* offset of the state; HEADER_BYTES */
    uint64_t file_bytes;
    uint64_t fingerprint, position, token_hash;
    uint32_t dtype; /* xlstm_dtype */
    uint32_t num_blocks, num_heads, head_qk, head_v, vocab_size;
    uint64_t state_bytes;
    uint64_t logits_bytes; /* 0 or vocab_size * 4; they follow the state */
    uint64_t body_hash;    /* XXH3-64 over everything after the header */
    uint32_t note_bytes;   /* at note, no NUL */
    uint32_t reserved;     /* 0 */
    uint64_t header_hash;  /* XXH3-64 over the header with this field 0 */
} file_header;
_Static_assert(sizeof(file_header) == 112, "the header has no padding");
_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "state files are little-endian");

typedef struct header_page {
    file_header h;
    char note[HEADER_BYTES - sizeof(file_header)];
} header_page;

static uint64_t header_hash(const header_page *page)
{
    header_page copy = *page;
    copy.h.header_hash = 0;
    return xl_hash(&copy, sizeof(copy), 0);
}

/* The state and, if there are any, the logits behind it. */
static uint64_t body_hash(const uint8_t *body, size_t n) { return xl_hash(body, n, 0); }

static int make_header(header_page *page, const xlstm_state *s, const char *note, xlstm_error *err)
{
    size_t note_bytes = note != NULL ? strlen(note) : strlen(s->note);
    *page = (header_page){0};
    if (note_bytes > NOTE_MAX) {
        return xl_fail(err, XLSTM_E_ARGUMENT, "the note has %zu bytes, expected at most %d", note_bytes, NOTE_MAX);
    }
    size_t logits_bytes = s->logits != NULL ? s->vocab_size * sizeof(float) : 0;
    *page = (header_page){.h = {.version = VERSION,
                                .header_bytes = HEADER_BYTES,
                                .file_bytes = HEADER_BYTES + s->layout.total_bytes + logits_bytes,
                                .fingerprint = s->fingerprint,
                                .position = s->position,
                                .token_hash = s->token_hash,
                                .dtype = s->layout.dtype,
                                .num_blocks = s->layout.num_blocks,
                                .num_heads = s->layout.num_heads,
                                .head_qk = s->layout.head_qk,
                                .head_v = s->layout.head_v,
                                .vocab_size = s->vocab_size,
                                .state_bytes = s->layout.total_bytes,
                                .logits_bytes = logits_bytes,
                                .body_hash = body_hash(s->bytes, s->layout.total_bytes + logits_bytes),
                                .note_bytes = (uint32_t)note_bytes}};
    memcpy(page->h.magic, magic, sizeof(magic));
    memcpy(page->note, note != NULL ? note : s->note, note_bytes);
    page->h.header_hash = header_hash(page);
    return XLSTM_OK;
}

/* Checks everything that needs no model; fills the layout. `name` is the file's, for messages. */
static int check_file(header_page *page, xl_state_layout *layout, const uint8_t *bytes, size_t size, bool verify,
                      const char *name, xlstm_error *err)
{
    if (size < sizeof(magic) || memcmp(bytes, magic, sizeof(magic)) != 0) {
        return xl_fail(err, XLSTM_E_FORMAT, "%s: not an xLSTM state file (wrong first bytes)", name);
    }
    if (size < HEADER_BYTES) {
        return xl_fail(err, XLSTM_E_FORMAT, "%s: truncated: %zu bytes, expected at least %d", name, size, HEADER_BYTES);
    }
    memcpy(page, bytes, sizeof(*page));
    const file_header *h = &page->h;
    if (h->version != VERSION) {
        return xl_fail(err, XLSTM_E_MISMATCH, "%s: state file version %u, expected %d; save it again with this program",
                       name, h->version, VERSION);
    }
    if (h->header_hash != header_hash(page)) {
        return xl_fail(err, XLSTM_E_FORMAT, "%s: damaged header (checksum differs)", name);
    }
    /* No sum below can wrap: the layout's total and the logits are far under 2^63. */
    xlstm_error shape;
    int result = xl_state_layout_make(layout, (xlstm_dtype)h->dtype, h->num_blocks, h->num_heads, h->head_qk, h->head_v,
                                      &shape);
    if (result != XLSTM_OK) return xl_fail(err, XLSTM_E_FORMAT, "%s: %s", name, shape.message);
    bool consistent = h->header_bytes == HEADER_BYTES && h->state_bytes == layout->total_bytes &&
                      (h->logits_bytes == 0 || h->logits_bytes == (uint64_t)h->vocab_size * sizeof(float)) &&
                      h->file_bytes == HEADER_BYTES + h->state_bytes + h->logits_bytes && h->note_bytes <= NOTE_MAX &&
                      memchr(page->note, '\0', h->note_bytes) == NULL && h->reserved == 0;
    if (!consistent) return xl_fail(err, XLSTM_E_FORMAT, "%s: the header contradicts itself", name);
    if (size != h->file_bytes) {
        return xl_fail(err, XLSTM_E_FORMAT, "%s: %s: %zu bytes, expected %llu", name,
                       size < h->file_bytes ? "truncated" : "surplus bytes", size, (unsigned long long)h->file_bytes);
    }
    if (verify && body_hash(bytes + HEADER_BYTES, size - HEADER_BYTES) != h->body_hash) {
        return xl_fail(err, XLSTM_E_FORMAT, "%s: damaged state (checksum differs)", name);
    }
    return XLSTM_OK;
}

/* Does a state fit a model? NULL: any. */
static int check_fit(const xlstm_model *m, const xl_state_layout *layout, uint64_t fingerprint, uint32_t vocab_size,
                     const char *name, xlstm_error *err)
{
    if (m == NULL) return XLSTM_OK;
    const xlstm_model_info *i = &m->info;
    if (m->backend == NULL) return xl_fail(err, XLSTM_E_ARGUMENT, "the model was opened with headers_only");
    const xl_state_layout *want = m->backend->ops->layout(m->backend);
    if (layout->num_blocks != want->num_blocks || layout->num_heads != want->num_heads ||
        layout->head_qk != want->head_qk || layout->head_v != want->head_v || vocab_size != i->vocab_size) {
        return xl_fail(err, XLSTM_E_MISMATCH,
                       "%s: state of another architecture: %u blocks, %u heads of %u x %u, vocabulary %u; the model has "
                       "%u, %u of %u x %u, %u",
                       name, layout->num_blocks, layout->num_heads, layout->head_qk, layout->head_v, vocab_size,
                       want->num_blocks, want->num_heads, want->head_qk, want->head_v, i->vocab_size);
    }
    if (fingerprint != i->fingerprint) {
        return xl_fail(err, XLSTM_E_MISMATCH,
                       "%s: state of another model: fingerprint %016llx, this model has %016llx; open the model that "
                       "made it",
                       name, (unsigned long long)fingerprint, (unsigned long long)i->fingerprint);
    }
    if (layout->dtype != want->dtype) {
        return xl_fail(err, XLSTM_E_MISMATCH, "%s: %s state, the model was opened for %s; use --state-dtype %s", name,
                       xlstm_dtype_name(layout->dtype), xlstm_dtype_name(want->dtype), xlstm_dtype_name(layout->dtype));
    }
    return XLSTM_OK;
}

static void fill_from_header(xlstm_state *s, const header_page *page, const xl_state_layout *layout,
                             const uint8_t *body)
{
    s->layout = *layout;
    s->fingerprint = page->h.fingerprint;
    s->position = page->h.position;
    s->token_hash = page->h.token_hash;
    s->vocab_size = page->h.vocab_size;
    s->bytes = body;
    s->logits = page->h.logits_bytes != 0 ? (const float *)(const void *)(body + layout->total_bytes) : NULL;
    memcpy(s->note, page->note, page->h.note_bytes);
    s->note[page->h.note_bytes] = '\0';
}

/* ---- snapshots -------------------------------------------------------------------------------------------------- */

int xl_state_new(xlstm_state **out, const xl_state_layout *layout, uint32_t vocab_size, bool logits, xlstm_error *err)
{
    *out = NULL;
    xlstm_state *s = xl_calloc(1, sizeof(*s), err);
    if (s == NULL) return XLSTM_E_MEMORY;
    s->map.fd = -1;
    s->layout = *layout;
    s->vocab_size = vocab_size;
    s->memory = xl_alloc(layout->total_bytes + (logits ? vocab_size * sizeof(float) : 0), err);
    if (s->memory == NULL) {
        xlstm_state_free(s);
        return XLSTM_E_MEMORY;
    }
    s->bytes = s->memory;
    if (logits) s->logits = (const float *)(const void *)(s->memory + layout->total_bytes);
    *out = s;
    return XLSTM_OK;
}

/* The logits of a state that was made with room for them. */
static void set_logits(xlstm_state *s, const float *logits)
{
    memcpy(s->memory + s->layout.total_bytes, logits, s->vocab_size * sizeof(float));
}

/* Everything but bytes and logits. */
static void copy_facts(xlstm_state *to, const xlstm_state *from)
{
    to->fingerprint = from->fingerprint;
    to->position = from->position;
    to->token_hash = from->token_hash;
    memcpy(to->note, from->note, sizeof(to->note));
}

int xl_state_like(xlstm_state **out, const xlstm_state *state, xlstm_dtype dtype, bool logits, xlstm_error *err)
{
    *out = NULL;
    const xl_state_layout *l = &state->layout;
    xl_state_layout layout;
    int result = xl_state_layout_make(&layout, dtype, l->num_blocks, l->num_heads, l->head_qk, l->head_v, err);
    if (result == XLSTM_OK) result = xl_state_new(out, &layout, state->vocab_size, logits, err);
    if (result != XLSTM_OK) return result;
    copy_facts(*out, state);
    if (logits) set_logits(*out, state->logits);
    return XLSTM_OK;
}

int xlstm_state_snapshot(xlstm_state **out, const xlstm_session *session, xlstm_error *err)
{
    *out = NULL;
    const xlstm_model *m = session->model;
    if (session->poisoned) {
        return xl_fail(err, XLSTM_E_NONFINITE,
                       "the session is poisoned by a non-finite value: its state is not saved; reset or restore it");
    }
    xlstm_state *s;
    int result = xl_state_new(&s, m->backend->ops->layout(m->backend), m->info.vocab_size, session->has_logits, err);
    if (result != XLSTM_OK) return result;
    result = m->backend->ops->store_read(m->backend, session->store, s->memory, err);
    if (result != XLSTM_OK) {
        xlstm_state_free(s);
        return result;
    }
    s->fingerprint = m->info.fingerprint;
    s->position = session->position;
    s->token_hash = session->token_hash;
    if (session->has_logits) set_logits(s, session->logits);
    *out = s;
    return XLSTM_OK;
}

int xlstm_state_restore(xlstm_session *session, const xlstm_state *state, xlstm_error *err)
{
    const xlstm_model *m = session->model;
    int result = check_fit(m, &state->layout, state->fingerprint, state->vocab_size, "state", err);
    if (result == XLSTM_OK) xl_map_fetch(&state->map);
    if (result == XLSTM_OK) result = m->backend->ops->store_write(m->backend, session->store, state->bytes, err);
    if (result != XLSTM_OK) return result;
    session->position = state->position;
    session->token_hash = state->token_hash;
    session->poisoned = false;
    session->has_logits = state->logits != NULL;
    if (session->has_logits) memcpy(session->logits, state->logits, state->vocab_size * sizeof(float));
    return XLSTM_OK;
}

int xlstm_state_copy(xlstm_state **out, const xlstm_state *state, xlstm_error *err)
{
    int result = xl_state_like(out, state, state->layout.dtype, state->logits != NULL, err);
    if (result == XLSTM_OK) memcpy((*out)->memory, state->bytes, state->layout.total_bytes);
    return result;
}

void xlstm_state_free(xlstm_state *state)
{
    if (state == NULL) return;
    xl_map_close(&state->map);
    xl_release(state->memory);
    xl_release(state);
}

/* ---- files ------------------------------------------------------------------------------------------------------ */

int xlstm_state_save(const xlstm_state *state, const char *path, const char *note, xlstm_error *err)
{
    header_page page;
    int result = make_header(&page, state, note, err);
    if (result != XLSTM_OK) return result;
    xl_writer w;
    if ((result = xl_writer_open(&w, path, err)) != XLSTM_OK) return result;
    result = xl_writer_put(&w, &page, sizeof(page), err);
    if (result == XLSTM_OK) {
        result = xl_writer_put(&w, state->bytes, page.h.state_bytes + page.h.logits_bytes, err);
    }
    if (result != XLSTM_OK) {
        xl_writer_abort(&w);
        return result;
    }
    return xl_writer_commit(&w, err);
}

int xlstm_state_load(xlstm_state **out, xlstm_model *model, const char *path, bool verify, xlstm_error *err)
{
    *out = NULL;
    xlstm_state *s = xl_calloc(1, sizeof(*s), err);
    if (s == NULL) return XLSTM_E_MEMORY;
    header_page page;
    xl_state_layout layout;
    int result = xl_map_open(&s->map, path, err);
    if (result == XLSTM_OK && verify) xl_map_fetch(&s->map);
    if (result == XLSTM_OK) result = check_file(&page, &layout, s->map.bytes, s->map.size, verify, path, err);
    if (result == XLSTM_OK) result = check_fit(model, &layout, page.h.fingerprint, page.h.vocab_size, path, err);
    if (result != XLSTM_OK) {
        xlstm_state_free(s);
        return result;
    }
    fill_from_header(s, &page, &layout, s->map.bytes + HEADER_BYTES);
    *out = s;
    return XLSTM_OK;
}

int xlstm_state_serialize(void **out, size_t *size, const xlstm_state *state, const char *note, xlstm_error *err)
{
    *out = NULL;
    header_page page;
    int result = make_header(&page, state, note, err);
    if (result != XLSTM_OK) return result;
    uint8_t *bytes = xl_alloc(page.h.file_bytes, err);
    if (bytes == NULL) return XLSTM_E_MEMORY;
    memcpy(bytes, &page, sizeof(page));
    memcpy(bytes + HEADER_BYTES, state->bytes, page.h.state_bytes + page.h.logits_bytes);
    *out = bytes;
    *size = page.h.file_bytes;
    return XLSTM_OK;
}

int xlstm_state_deserialize(xlstm_state **out, xlstm_model *model, const void *bytes, size_t size, xlstm_error *err)
{
    *out = NULL;
    header_page page;
    xl_state_layout layout;
    int result = check_file(&page, &layout, bytes, size, true, "state", err);
    if (result == XLSTM_OK) result = check_fit(model, &layout, page.h.fingerprint, page.h.vocab_size, "state", err);
    if (result != XLSTM_OK) return result;
    xlstm_state *s;
    result = xl_state_new(&s, &layout, page.h.vocab_size, page.h.logits_bytes != 0, err);
    if (result != XLSTM_OK) return result;
    memcpy(s->memory, (const uint8_t *)bytes + HEADER_BYTES, page.h.state_bytes + page.h.logits_bytes);
    fill_from_header(s, &page, &layout, s->memory);
    *out = s;
    return XLSTM_OK;
}

/* ---- questions -------------------------------------------------------------------------------------------------- */

void xlstm_state_get_info(const xlstm_state *s, xlstm_state_info *out)
{
    const xl_state_layout *l = &s->layout;
    size_t logits_bytes = s->logits != NULL ? s->vocab_size * sizeof(float) : 0;
    *out = (xlstm_state_info){.version = VERSION,
                              .num_blocks = l->num_blocks,
                              .num_heads = l->num_heads,
                              .qk_head_dim = l->head_qk,
                              .v_head_dim = l->head_v,
                              .vocab_size = s->vocab_size,
                              .dtype = l->dtype,
                              .fingerprint = s->fingerprint,
                              .position = s->position,
                              .token_hash = s->token_hash,
                              .state_bytes = l->total_bytes,
                              .file_bytes = HEADER_BYTES + l->total_bytes + logits_bytes,
                              .has_logits = s->logits != NULL};
    memcpy(out->note, s->note, sizeof(out->note));
}

const float *xlstm_state_logits(const xlstm_state *state) { return state->logits; }

int xlstm_state_describe(xlstm_state_info *out, const char *path, bool verify, xlstm_error *err)
{
    xlstm_state s = {.map = {.fd = -1}};
    header_page page;
    xl_state_layout layout;
    int result = xl_map_open(&s.map, path, err);
    if (result == XLSTM_OK && verify) xl_map_fetch(&s.map);
    if (result == XLSTM_OK) result = check_file(&page, &layout, s.map.bytes, s.map.size, verify, path, err);
    if (result == XLSTM_OK) {
        fill_from_header(&s, &page, &layout, s.map.bytes + HEADER_BYTES);
        xlstm_state_get_info(&s, out);
    }
    xl_map_close(&s.map);
    return result;
}
