/*
 * session_store.c — thousands of idle sessions in a folder: FOLDER/index.db (SQLite, write-ahead log) and one immutable state
 * file each under FOLDER/states.
 *
 * Crash safety. A state is written to a file of a new random name and synced before the index points to it in a durable
 * transaction; the file it replaces is removed after that. Killed anywhere, the index names whole files; at worst a file
 * that nothing names is left, which expire sweeps up. Writers hold SQLite's write lock from before the file is written, so
 * that the sweep never meets a file on its way in. Readers use a second connection and wait for nobody, but up to
 * TOUCH_BUSY_MS for another process where a session long idle is used; a file that is replaced under them is looked up
 * again.
 */
#include "state.h"

#include <dirent.h>
#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <sqlite3.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { VERSION = 1, BLOB_DIGITS = 16, BUSY_MS = 60000, RETRIES = 20, TOUCHED = 64 };
/* Seconds between a session's use and that in the index: less than the first is not noted, more than the last at once. */
enum { TOUCH_LEAST = 60, TOUCH_MOST = 600, TOUCH_BUSY_MS = 100 };
#define TOUCH_DELAY 5.0 /* seconds that uses are gathered */

struct xlstm_store {
    char *folder, *index;
    sqlite3 *reader, *writer;
    sqlite3_stmt *lookup; /* of the reader */
    pthread_mutex_t read_lock, write_lock;
    struct {
        uint64_t id;
        int64_t used;
    } touched[TOUCHED]; /* uses that are not yet in the index; under read_lock */
    size_t n_touched;
    double first_touched; /* when the oldest of them was used */
};

/* ---- SQLite in this project's terms ----------------------------------------------------------------------------- */

static int db_fail(const xlstm_store *s, sqlite3 *db, xlstm_error *err)
{
    int code = sqlite3_errcode(db) & 0xff;
    xlstm_code kind = code == SQLITE_NOMEM ? XLSTM_E_MEMORY
                      : code == SQLITE_CORRUPT || code == SQLITE_NOTADB || code == SQLITE_ERROR ? XLSTM_E_FORMAT
                                                                                                : XLSTM_E_IO;
    return xl_fail(err, kind, "%s: %s", s->index, sqlite3_errmsg(db));
}

static int db_run(const xlstm_store *s, sqlite3 *db, const char *sql, xlstm_error *err)
{
    return sqlite3_exec(db, sql, NULL, NULL, NULL) == SQLITE_OK ? XLSTM_OK : db_fail(s, db, err);
}

static int db_prepare(const xlstm_store *s, sqlite3 *db, sqlite3_stmt **out, const char *sql, xlstm_error *err)
{
    return sqlite3_prepare_v2(db, sql, -1, out, NULL) == SQLITE_OK ? XLSTM_OK : db_fail(s, db, err);
}

/* Runs a statement that returns no rows and finalises it. */
static int db_finish(const xlstm_store *s, sqlite3 *db, sqlite3_stmt *statement, xlstm_error *err)
{
    int result = sqlite3_step(statement) == SQLITE_DONE ? XLSTM_OK : db_fail(s, db, err);
    sqlite3_finalize(statement);
    return result;
}

static int no_session(xlstm_error *err, const xlstm_store *s, uint64_t id)
{
    return xl_fail(err, XLSTM_E_ARGUMENT, "%s: there is no session %" PRIu64, s->folder, id);
}

/* ---- uses -------------------------------------------------------------------------------------------------------- */

/* Brings noted uses into the index, not durable. They are left for later while this handle's other threads write, unless it is
 * to `wait`, or another process does for longer than `busy_ms`. */
static void flush_touched(xlstm_store *s, bool wait, int busy_ms)
{
    if (wait)
        pthread_mutex_lock(&s->write_lock);
    else if (pthread_mutex_trylock(&s->write_lock) != 0)
        return;
    __typeof__(s->touched[0]) uses[TOUCHED];
    pthread_mutex_lock(&s->read_lock);
    size_t n = s->n_touched;
    memcpy(uses, s->touched, n * sizeof(*uses));
    pthread_mutex_unlock(&s->read_lock);
    sqlite3_stmt *q = NULL;
    sqlite3_busy_timeout(s->writer, busy_ms);
    bool done = n > 0 && db_run(s, s->writer, "PRAGMA synchronous = NORMAL; BEGIN IMMEDIATE", NULL) == XLSTM_OK;
    if (done) {
        if (db_prepare(s, s->writer, &q, "UPDATE session SET used = max(used, ?) WHERE id = ?", NULL) == XLSTM_OK) {
            for (size_t i = 0; i < n; i++) {
                sqlite3_bind_int64(q, 1, uses[i].used);
                sqlite3_bind_int64(q, 2, (sqlite3_int64)uses[i].id);
                (void)sqlite3_step(q);
                sqlite3_reset(q);
            }
        }
        sqlite3_finalize(q);
        if (db_run(s, s->writer, "COMMIT", NULL) != XLSTM_OK) (void)db_run(s, s->writer, "ROLLBACK", NULL);
    }
    sqlite3_busy_timeout(s->writer, BUSY_MS);
    if (done) {
        pthread_mutex_lock(&s->read_lock);
        s->n_touched -= n; /* others may have come meanwhile */
        memmove(s->touched, s->touched + n, s->n_touched * sizeof(*uses));
        pthread_mutex_unlock(&s->read_lock);
    }
    pthread_mutex_unlock(&s->write_lock);
}

/* Whether there was room to note a use. */
static bool note(xlstm_store *s, uint64_t id, int64_t now)
{
    pthread_mutex_lock(&s->read_lock);
    const bool room = s->n_touched < TOUCHED;
    if (room) {
        if (s->n_touched == 0) s->first_touched = xl_now();
        s->touched[s->n_touched].id = id;
        s->touched[s->n_touched++].used = now;
    }
    pthread_mutex_unlock(&s->read_lock);
    return room;
}

/* A session is used that the index says was `used` last. A write to the index may cost more than resuming, so uses are gathered,
 * but for those of sessions that look long idle. Where the index cannot be written for as many as there is room for, one is lost. */
static void touch(xlstm_store *s, uint64_t id, int64_t used)
{
    const int64_t now = time(NULL);
    if (now - used < TOUCH_LEAST) return;
    if (!note(s, id, now)) {
        flush_touched(s, false, TOUCH_BUSY_MS);
        (void)note(s, id, now);
    }
    pthread_mutex_lock(&s->read_lock);
    bool due = xl_now() - s->first_touched > TOUCH_DELAY;
    pthread_mutex_unlock(&s->read_lock);
    const bool urgent = now - used > TOUCH_MOST;
    if (urgent || due) flush_touched(s, false, urgent ? TOUCH_BUSY_MS : 0);
}

/* ---- opening ---------------------------------------------------------------------------------------------------- */

static const char schema[] =
    "BEGIN IMMEDIATE;"
    "CREATE TABLE IF NOT EXISTS session(id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT UNIQUE, parent INTEGER NOT NULL,"
    " position INTEGER NOT NULL, fingerprint INTEGER NOT NULL, bytes INTEGER NOT NULL, created INTEGER NOT NULL,"
    " used INTEGER NOT NULL, blob TEXT NOT NULL);"
    "CREATE INDEX IF NOT EXISTS session_used ON session(used);"
    "CREATE INDEX IF NOT EXISTS session_blob ON session(blob);"
    "PRAGMA user_version = 1;"
    "COMMIT";

static int connect_index(xlstm_store *s, sqlite3 **db, xlstm_error *err)
{
    int flags = SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE | SQLITE_OPEN_NOMUTEX;
    if (sqlite3_open_v2(s->index, db, flags, NULL) != SQLITE_OK) {
        return *db != NULL ? db_fail(s, *db, err) : xl_fail(err, XLSTM_E_MEMORY, "out of memory: SQLite cannot start");
    }
    sqlite3_busy_timeout(*db, BUSY_MS);
    return db_run(s, *db, "PRAGMA journal_mode = WAL; PRAGMA trusted_schema = OFF", err);
}

static int check_version(xlstm_store *s, xlstm_error *err)
{
    sqlite3_stmt *q;
    int result = db_prepare(s, s->writer, &q, "PRAGMA user_version", err);
    if (result != XLSTM_OK) return result;
    int version = sqlite3_step(q) == SQLITE_ROW ? sqlite3_column_int(q, 0) : -1;
    sqlite3_finalize(q);
    if (version == 0) return db_run(s, s->writer, schema, err);
    if (version == VERSION) return XLSTM_OK;
    if (version < 0) return db_fail(s, s->writer, err);
    return xl_fail(err, XLSTM_E_MISMATCH, "%s: session store version %d, expected %d", s->index, version, VERSION);
}

static int make_folder(const char *path, xlstm_error *err)
{
    if (mkdir(path, 0700) == 0 || errno == EEXIST) return XLSTM_OK;
    int code = errno;
    return xl_fail(err, code == ENOMEM ? XLSTM_E_MEMORY : XLSTM_E_IO, "%s: cannot make the folder: %s", path,
                   strerror(code));
}

int xlstm_store_open(xlstm_store **out, const char *folder, xlstm_error *err)
{
    *out = NULL;
    xlstm_store *s = xl_calloc(1, sizeof(*s), err);
    if (s == NULL) return XLSTM_E_MEMORY;
    pthread_mutex_init(&s->read_lock, NULL);
    pthread_mutex_init(&s->write_lock, NULL);
    s->folder = xl_strdup(folder, err);
    s->index = xl_join(folder, "index.db", err);
    char *states = xl_join(folder, "states", err);
    int result = s->folder != NULL && s->index != NULL && states != NULL ? XLSTM_OK : XLSTM_E_MEMORY;
    if (result == XLSTM_OK) result = make_folder(folder, err);
    if (result == XLSTM_OK) result = make_folder(states, err);
    if (result == XLSTM_OK) result = connect_index(s, &s->writer, err);
    if (result == XLSTM_OK) result = check_version(s, err);
    if (result == XLSTM_OK) result = connect_index(s, &s->reader, err);
    if (result == XLSTM_OK) {
        result = db_prepare(s, s->reader, &s->lookup, "SELECT blob, used FROM session WHERE id = ?", err);
    }
    xl_release(states);
    if (result != XLSTM_OK) {
        xlstm_store_close(s);
        return result;
    }
    *out = s;
    return XLSTM_OK;
}

void xlstm_store_close(xlstm_store *s)
{
    if (s == NULL) return;
    if (s->n_touched > 0) flush_touched(s, true, TOUCH_BUSY_MS);
    sqlite3_finalize(s->lookup);
    sqlite3_close(s->reader);
    sqlite3_close(s->writer);
    pthread_mutex_destroy(&s->read_lock);
    pthread_mutex_destroy(&s->write_lock);
    xl_release(s->folder);
    xl_release(s->index);
    xl_release(s);
}

/* ---- state files ------------------------------------------------------------------------------------------------ */

/* What the index says is not trusted to be a plain file name. */
static bool good_blob(const char *blob)
{
    return blob != NULL && strlen(blob) == BLOB_DIGITS && strspn(blob, "0123456789abcdef") == BLOB_DIGITS;
}

/* FOLDER/states/ab/ab12....xlstate; the middle folder is made if `make`. */
static int blob_path(char **out, const xlstm_store *s, const char *blob, bool make, xlstm_error *err)
{
    *out = NULL;
    if (!good_blob(blob)) {
        return xl_fail(err, XLSTM_E_FORMAT, "%s: a session has no proper state file name", s->index);
    }
    char *path = xl_printf(err, "%s/states/%.2s", s->folder, blob);
    if (path == NULL) return XLSTM_E_MEMORY;
    int result = make ? make_folder(path, err) : XLSTM_OK;
    if (result == XLSTM_OK && (*out = xl_printf(err, "%s/%s.xlstate", path, blob)) == NULL) result = XLSTM_E_MEMORY;
    xl_release(path);
    return result;
}

static void remove_blob(const xlstm_store *s, const char *blob)
{
    char *path;
    if (blob_path(&path, s, blob, false, NULL) == XLSTM_OK) (void)unlink(path);
    xl_release(path);
}

static int write_blob(const xlstm_store *s, char blob[BLOB_DIGITS + 1], const xlstm_state *state, xlstm_error *err)
{
    uint64_t name;
    sqlite3_randomness(sizeof(name), &name);
    snprintf(blob, BLOB_DIGITS + 1, "%016" PRIx64, name);
    char *path;
    int result = blob_path(&path, s, blob, true, err);
    if (result == XLSTM_OK) result = xlstm_state_save(state, path, NULL, err);
    xl_release(path);
    return result;
}

/* ---- writing ---------------------------------------------------------------------------------------------------- */

/* Takes both the process's and SQLite's write lock. Durable: the commit reaches the disk before it returns. */
static int begin(xlstm_store *s, xlstm_error *err)
{
    pthread_mutex_lock(&s->write_lock);
    int result = db_run(s, s->writer, "PRAGMA synchronous = FULL", err);
    if (result == XLSTM_OK) result = db_run(s, s->writer, "BEGIN IMMEDIATE", err);
    if (result != XLSTM_OK) pthread_mutex_unlock(&s->write_lock);
    return result;
}

static int end(xlstm_store *s, int result, xlstm_error *err)
{
    if (result == XLSTM_OK) result = db_run(s, s->writer, "COMMIT", err);
    if (result != XLSTM_OK) (void)sqlite3_exec(s->writer, "ROLLBACK", NULL, NULL, NULL);
    pthread_mutex_unlock(&s->write_lock);
    return result;
}

/* The blob of a session, freed with xl_release; for statements of the running transaction. */
static int blob_of(xlstm_store *s, uint64_t id, char **blob, xlstm_error *err)
{
    sqlite3_stmt *q;
    *blob = NULL;
    int result = db_prepare(s, s->writer, &q, "SELECT blob FROM session WHERE id = ?", err);
    if (result != XLSTM_OK) return result;
    sqlite3_bind_int64(q, 1, (sqlite3_int64)id);
    int step = sqlite3_step(q);
    const char *text = step == SQLITE_ROW ? (const char *)sqlite3_column_text(q, 0) : NULL;
    if (text != NULL) {
        *blob = xl_strdup(text, err);
        result = *blob != NULL ? XLSTM_OK : XLSTM_E_MEMORY;
    } else {
        result = step == SQLITE_DONE ? no_session(err, s, id) : db_fail(s, s->writer, err);
    }
    sqlite3_finalize(q);
    return result;
}

static bool blob_in_use(xlstm_store *s, const char *blob)
{
    sqlite3_stmt *q;
    if (db_prepare(s, s->writer, &q, "SELECT 1 FROM session WHERE blob = ? LIMIT 1", NULL) != XLSTM_OK) return true;
    sqlite3_bind_text(q, 1, blob, -1, SQLITE_STATIC);
    bool used = sqlite3_step(q) != SQLITE_DONE;
    sqlite3_finalize(q);
    return used;
}

static bool is_number(const char *name)
{
    return name[0] != '\0' && strspn(name, "0123456789") == strlen(name);
}

int xlstm_store_check_name(const char *name, xlstm_error *err)
{
    if (name[0] == '\0') return xl_fail(err, XLSTM_E_ARGUMENT, "the session name is empty");
    if (strlen(name) >= sizeof(((xlstm_store_entry *)0)->name)) {
        return xl_fail(err, XLSTM_E_ARGUMENT, "the session name has %zu bytes, expected at most %zu", strlen(name),
                       sizeof(((xlstm_store_entry *)0)->name) - 1);
    }
    for (const char *p = name; *p != '\0'; p++) {
        if ((unsigned char)*p < 0x20 || *p == 0x7f) {
            return xl_fail(err, XLSTM_E_ARGUMENT, "the session name holds a control character");
        }
    }
    if (is_number(name)) {
        return xl_fail(err, XLSTM_E_ARGUMENT,
                       "the session name is \"%s\", expected one with a letter in it: sessions are found by number, too", name);
    }
    return XLSTM_OK;
}

static void bind_name(sqlite3_stmt *q, int index, const char *name)
{
    if (name != NULL) {
        sqlite3_bind_text(q, index, name, -1, SQLITE_STATIC);
    } else {
        sqlite3_bind_null(q, index);
    }
}

/* A name that is taken deserves a message of its own. */
static int finish_named(xlstm_store *s, sqlite3_stmt *q, const char *name, xlstm_error *err)
{
    int step = sqlite3_step(q), result = XLSTM_OK;
    if (step == SQLITE_CONSTRAINT) {
        result = xl_fail(err, XLSTM_E_ARGUMENT, "%s: a session is named \"%s\" already", s->folder, name);
    } else if (step != SQLITE_DONE) {
        result = db_fail(s, s->writer, err);
    }
    sqlite3_finalize(q);
    return result;
}

int xlstm_store_create(uint64_t *id, xlstm_store *s, const xlstm_state *state, const char *name, xlstm_error *err)
{
    xlstm_state_info info;
    xlstm_state_get_info(state, &info);
    int result = name == NULL ? XLSTM_OK : xlstm_store_check_name(name, err);
    if (result == XLSTM_OK) result = begin(s, err);
    if (result != XLSTM_OK) return result;
    sqlite3_stmt *q;
    char blob[BLOB_DIGITS + 1] = "";
    result = db_prepare(s, s->writer, &q,
                        "INSERT INTO session(name, parent, position, fingerprint, bytes, created, used, blob) "
                        "VALUES(?, 0, ?, ?, ?, ?, ?, ?)", err);
    if (result == XLSTM_OK && (result = write_blob(s, blob, state, err)) != XLSTM_OK) sqlite3_finalize(q);
    if (result == XLSTM_OK) {
        bind_name(q, 1, name);
        sqlite3_bind_int64(q, 2, (sqlite3_int64)info.position);
        sqlite3_bind_int64(q, 3, (sqlite3_int64)info.fingerprint);
        sqlite3_bind_int64(q, 4, (sqlite3_int64)info.file_bytes);
        sqlite3_bind_int64(q, 5, time(NULL));
        sqlite3_bind_int64(q, 6, time(NULL));
        sqlite3_bind_text(q, 7, blob, -1, SQLITE_STATIC);
        result = finish_named(s, q, name, err);
    }
    if (result == XLSTM_OK) *id = (uint64_t)sqlite3_last_insert_rowid(s->writer);
    result = end(s, result, err);
    if (result != XLSTM_OK && blob[0] != '\0') remove_blob(s, blob);
    return result;
}

int xlstm_store_save(xlstm_store *s, uint64_t id, const xlstm_state *state, xlstm_error *err)
{
    xlstm_state_info info;
    xlstm_state_get_info(state, &info);
    int result = begin(s, err);
    if (result != XLSTM_OK) return result;
    sqlite3_stmt *q = NULL;
    char *old = NULL, blob[BLOB_DIGITS + 1] = "";
    result = blob_of(s, id, &old, err);
    if (result == XLSTM_OK) result = write_blob(s, blob, state, err);
    if (result == XLSTM_OK) {
        result = db_prepare(s, s->writer, &q,
                            "UPDATE session SET position = ?, fingerprint = ?, bytes = ?, used = ?, blob = ? WHERE id = ?",
                            err);
    }
    if (result == XLSTM_OK) {
        sqlite3_bind_int64(q, 1, (sqlite3_int64)info.position);
        sqlite3_bind_int64(q, 2, (sqlite3_int64)info.fingerprint);
        sqlite3_bind_int64(q, 3, (sqlite3_int64)info.file_bytes);
        sqlite3_bind_int64(q, 4, time(NULL));
        sqlite3_bind_text(q, 5, blob, -1, SQLITE_STATIC);
        sqlite3_bind_int64(q, 6, (sqlite3_int64)id);
        result = db_finish(s, s->writer, q, err);
    }
    bool old_in_use = old == NULL || blob_in_use(s, old);
    result = end(s, result, err);
    if (result != XLSTM_OK && blob[0] != '\0') remove_blob(s, blob);
    if (result == XLSTM_OK && !old_in_use) remove_blob(s, old);
    xl_release(old);
    return result;
}

int xlstm_store_fork(uint64_t *id, xlstm_store *s, uint64_t source, const char *name, xlstm_error *err)
{
    int result = name == NULL ? XLSTM_OK : xlstm_store_check_name(name, err);
    if (result == XLSTM_OK) result = begin(s, err);
    if (result != XLSTM_OK) return result;
    sqlite3_stmt *q;
    result = db_prepare(s, s->writer, &q,
                        "INSERT INTO session(name, parent, position, fingerprint, bytes, created, used, blob) "
                        "SELECT ?, id, position, fingerprint, bytes, ?, ?, blob FROM session WHERE id = ?", err);
    if (result == XLSTM_OK) {
        bind_name(q, 1, name);
        sqlite3_bind_int64(q, 2, time(NULL));
        sqlite3_bind_int64(q, 3, time(NULL));
        sqlite3_bind_int64(q, 4, (sqlite3_int64)source);
        result = finish_named(s, q, name, err);
    }
    if (result == XLSTM_OK && sqlite3_changes(s->writer) == 0) result = no_session(err, s, source);
    if (result == XLSTM_OK) *id = (uint64_t)sqlite3_last_insert_rowid(s->writer);
    return end(s, result, err);
}

int xlstm_store_rename(xlstm_store *s, uint64_t id, const char *name, xlstm_error *err)
{
    if (name != NULL && name[0] == '\0') name = NULL;
    int result = name == NULL ? XLSTM_OK : xlstm_store_check_name(name, err);
    if (result == XLSTM_OK) result = begin(s, err);
    if (result != XLSTM_OK) return result;
    sqlite3_stmt *q;
    result = db_prepare(s, s->writer, &q, "UPDATE session SET name = ? WHERE id = ?", err);
    if (result == XLSTM_OK) {
        bind_name(q, 1, name);
        sqlite3_bind_int64(q, 2, (sqlite3_int64)id);
        result = finish_named(s, q, name, err);
    }
    if (result == XLSTM_OK && sqlite3_changes(s->writer) == 0) result = no_session(err, s, id);
    return end(s, result, err);
}

/* ---- removing --------------------------------------------------------------------------------------------------- */

/* Deletes a row in the running transaction. *orphan: its file if no other session needs it, freed with xl_release. */
static int delete_row(xlstm_store *s, uint64_t id, char **orphan, xlstm_error *err)
{
    sqlite3_stmt *q;
    int result = blob_of(s, id, orphan, err);
    if (result == XLSTM_OK) result = db_prepare(s, s->writer, &q, "DELETE FROM session WHERE id = ?", err);
    if (result == XLSTM_OK) {
        sqlite3_bind_int64(q, 1, (sqlite3_int64)id);
        result = db_finish(s, s->writer, q, err);
    }
    if (*orphan != NULL && (result != XLSTM_OK || blob_in_use(s, *orphan))) {
        xl_release(*orphan);
        *orphan = NULL;
    }
    return result;
}

int xlstm_store_remove(xlstm_store *s, uint64_t id, xlstm_error *err)
{
    int result = begin(s, err);
    if (result != XLSTM_OK) return result;
    char *orphan = NULL;
    result = end(s, delete_row(s, id, &orphan, err), err);
    if (result == XLSTM_OK && orphan != NULL) remove_blob(s, orphan);
    xl_release(orphan);
    return result;
}

/* Removes the files in a folder of states that no session names, temporary ones included. Holds the write lock. */
static void sweep(xlstm_store *s, const char *folder)
{
    DIR *dir = opendir(folder);
    for (struct dirent *d; dir != NULL && (d = readdir(dir)) != NULL;) {
        char blob[BLOB_DIGITS + 1];
        if (strlen(d->d_name) < BLOB_DIGITS || d->d_name[0] == '.') continue;
        snprintf(blob, sizeof(blob), "%.*s", BLOB_DIGITS, d->d_name);
        const char *rest = d->d_name + BLOB_DIGITS;
        if (!good_blob(blob) || strncmp(rest, ".xlstate", 8) != 0) continue;
        bool temporary = rest[8] != '\0';
        if (!temporary && blob_in_use(s, blob)) continue;
        (void)unlinkat(dirfd(dir), d->d_name, 0);
    }
    if (dir != NULL) closedir(dir);
}

int xlstm_store_expire(size_t *removed, xlstm_store *s, int64_t seconds, xlstm_error *err)
{
    if (removed != NULL) *removed = 0;
    if (seconds < 0) return xl_fail(err, XLSTM_E_ARGUMENT, "expected seconds of 0 or more, found %lld", (long long)seconds);
    flush_touched(s, true, TOUCH_BUSY_MS);
    int result = begin(s, err);
    if (result != XLSTM_OK) return result;
    sqlite3_stmt *q;
    result = db_prepare(s, s->writer, &q, "DELETE FROM session WHERE used <= ?", err);
    if (result == XLSTM_OK) {
        sqlite3_bind_int64(q, 1, time(NULL) - seconds);
        result = db_finish(s, s->writer, q, err);
    }
    int changes = sqlite3_changes(s->writer);
    if (result == XLSTM_OK) result = db_run(s, s->writer, "COMMIT", err);
    if (result == XLSTM_OK) result = db_run(s, s->writer, "BEGIN IMMEDIATE", err);
    for (int i = 0; result == XLSTM_OK && i < 256; i++) {
        char *folder = xl_printf(err, "%s/states/%02x", s->folder, i);
        if (folder == NULL) result = XLSTM_E_MEMORY;
        if (folder != NULL) sweep(s, folder);
        xl_release(folder);
    }
    result = end(s, result, err);
    if (result == XLSTM_OK && removed != NULL) *removed = (size_t)changes;
    return result;
}

/* ---- reading ---------------------------------------------------------------------------------------------------- */

/* The file a session's state is in now; freed with xl_release. */
static int look_up(xlstm_store *s, uint64_t id, char **path, int64_t *used, xlstm_error *err)
{
    pthread_mutex_lock(&s->read_lock);
    sqlite3_bind_int64(s->lookup, 1, (sqlite3_int64)id);
    int step = sqlite3_step(s->lookup), result = XLSTM_OK;
    *path = NULL;
    if (step == SQLITE_ROW) {
        const char *blob = (const char *)sqlite3_column_text(s->lookup, 0);
        bool lost = blob == NULL && sqlite3_errcode(s->reader) == SQLITE_NOMEM;
        result = lost ? db_fail(s, s->reader, err) : blob_path(path, s, blob, false, err);
        *used = sqlite3_column_int64(s->lookup, 1);
    } else {
        result = step == SQLITE_DONE ? no_session(err, s, id) : db_fail(s, s->reader, err);
    }
    sqlite3_reset(s->lookup);
    pthread_mutex_unlock(&s->read_lock);
    return result;
}

int xlstm_store_load(xlstm_state **out, xlstm_store *s, xlstm_model *model, uint64_t id, bool verify, xlstm_error *err)
{
    *out = NULL;
    int result = XLSTM_OK;
    int64_t used = 0;
    /* Between the look-up and the opening, a writer may have put another file in its place; the next look-up finds it. */
    xlstm_error why = {0};
    for (int attempt = 0; attempt < RETRIES; attempt++) {
        char *path;
        result = look_up(s, id, &path, &used, err);
        if (result != XLSTM_OK) return result;
        result = xlstm_state_load(out, model, path, verify, &why);
        xl_release(path);
        if (result != XLSTM_E_IO) break;
    }
    if (result != XLSTM_OK && err != NULL) *err = why;
    if (result == XLSTM_OK) touch(s, id, used);
    return result;
}

#define COLUMNS "SELECT id, ifnull(name, ''), parent, position, fingerprint, bytes, created, used FROM session "

static void read_entry(sqlite3_stmt *q, xlstm_store_entry *e)
{
    *e = (xlstm_store_entry){.id = (uint64_t)sqlite3_column_int64(q, 0),
                             .parent = (uint64_t)sqlite3_column_int64(q, 2),
                             .position = (uint64_t)sqlite3_column_int64(q, 3),
                             .fingerprint = (uint64_t)sqlite3_column_int64(q, 4),
                             .bytes = (uint64_t)sqlite3_column_int64(q, 5),
                             .created = sqlite3_column_int64(q, 6),
                             .used = sqlite3_column_int64(q, 7)};
    const char *name = (const char *)sqlite3_column_text(q, 1);
    snprintf(e->name, sizeof(e->name), "%s", name != NULL ? name : "");
}

int xlstm_store_find(xlstm_store_entry *out, xlstm_store *s, const char *name, xlstm_error *err)
{
    sqlite3_stmt *q;
    unsigned long long id = is_number(name) ? strtoull(name, NULL, 10) : 0;
    if (id > INT64_MAX) id = 0;
    pthread_mutex_lock(&s->read_lock);
    int result = db_prepare(s, s->reader, &q, COLUMNS "WHERE name = ?1 OR id = ?2 ORDER BY name IS NOT ?1 LIMIT 1", err);
    if (result == XLSTM_OK) {
        sqlite3_bind_text(q, 1, name, -1, SQLITE_STATIC);
        sqlite3_bind_int64(q, 2, (sqlite3_int64)id);
        int step = sqlite3_step(q);
        if (step == SQLITE_ROW) {
            read_entry(q, out);
        } else if (step == SQLITE_DONE) {
            result = xl_fail(err, XLSTM_E_ARGUMENT, "%s: there is no session \"%s\"", s->folder, name);
        } else {
            result = db_fail(s, s->reader, err);
        }
        sqlite3_finalize(q);
    }
    pthread_mutex_unlock(&s->read_lock);
    return result;
}

int xlstm_store_list(xlstm_store_entry **out, size_t *n, xlstm_store *s, xlstm_error *err)
{
    sqlite3_stmt *q;
    xlstm_store_entry *entries = NULL;
    size_t count = 0, capacity = 0;
    *out = NULL;
    *n = 0;
    pthread_mutex_lock(&s->read_lock);
    int result = db_prepare(s, s->reader, &q, COLUMNS "ORDER BY used DESC, id DESC", err);
    int step = SQLITE_DONE;
    while (result == XLSTM_OK && (step = sqlite3_step(q)) == SQLITE_ROW) {
        if (count == capacity) {
            capacity = capacity != 0 ? 2 * capacity : 64;
            xlstm_store_entry *more = xl_grow(entries, capacity * sizeof(*entries), err);
            if (more == NULL) {
                result = XLSTM_E_MEMORY;
                break;
            }
            entries = more;
        }
        read_entry(q, &entries[count++]);
    }
    if (result == XLSTM_OK && step != SQLITE_DONE) result = db_fail(s, s->reader, err);
    sqlite3_finalize(q);
    pthread_mutex_unlock(&s->read_lock);
    if (result != XLSTM_OK) {
        xl_release(entries);
        return result;
    }
    *out = entries;
    *n = count;
    return XLSTM_OK;
}
