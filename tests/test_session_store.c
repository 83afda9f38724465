/*
 * test_session_store.c — sessions on disk: what is put in comes out, names and numbers, forks that share a file, expiry, files
 * that nobody needs; many readers beside a writer, several processes, writers killed at any moment, hostile indexes.
 */
#include "state_fixture.h"

#include <pthread.h>
#include <signal.h>
#include <sqlite3.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>

enum { STATES = 12 };
static const mk_model shape = {.vocab = VOCAB, .dim = 8, .blocks = 2, .heads = 2, .qk = 4, .v = 8, .ffn = 8, .chunk_size = 8};
static xlstm_model *model;
static xlstm_state *states[STATES]; /* after 1, 2, ... tokens */

static int set_up(void **unused)
{
    (void)unused;
    model = fx_model(&shape, XLSTM_F32, XLSTM_OFF);
    int32_t text[STATES];
    fx_tokens(text, STATES, 1);
    xlstm_session *s = fx_session(model);
    for (int i = 0; i < STATES; i++) {
        OK(xlstm_decode(s, text[i], &err));
        states[i] = fx_snapshot(s);
    }
    xlstm_session_free(s);
    return 0;
}

static int tear_down(void **unused)
{
    (void)unused;
    for (int i = 0; i < STATES; i++) xlstm_state_free(states[i]);
    xlstm_model_free(model);
    return 0;
}

static xlstm_store *open_store(const char *folder)
{
    xlstm_store *s = NULL;
    OK(xlstm_store_open(&s, folder, &err));
    return s;
}

static uint64_t create(xlstm_store *s, int state, const char *name)
{
    uint64_t id = 0;
    OK(xlstm_store_create(&id, s, states[state], name, &err));
    return id;
}

static void assert_holds(xlstm_store *s, uint64_t id, int state)
{
    xlstm_state *loaded = NULL;
    OK(xlstm_store_load(&loaded, s, model, id, true, &err));
    assert_true(fx_same_state(loaded, states[state]));
    xlstm_state_free(loaded);
}

static size_t files;
static int count_file(const char *path, const struct stat *st, int type, struct FTW *walk)
{
    (void)st;
    (void)walk;
    files += type == FTW_F && strstr(path, ".xlstate") != NULL;
    return 0;
}
static size_t count_files(const char *folder)
{
    files = 0;
    MK_CHECK(nftw(folder, count_file, 16, FTW_PHYS) == 0);
    return files;
}

static void test_life_of_a_session(void **unused)
{
    (void)unused;
    char *folder = mk_folder();
    xlstm_store *s = open_store(folder);
    uint64_t a = create(s, 0, "first"), b = create(s, 1, NULL), fork = 0;
    assert_true(a != b && a != 0 && b != 0);
    assert_holds(s, a, 0);
    assert_holds(s, b, 1);
    OK(xlstm_store_save(s, a, states[5], &err));
    assert_holds(s, a, 5);
    assert_int_equal(count_files(folder), 2); /* the file that was replaced is gone */
    OK(xlstm_store_fork(&fork, s, a, "second", &err));
    assert_holds(s, fork, 5);
    assert_int_equal(count_files(folder), 2); /* shared */
    OK(xlstm_store_save(s, a, states[6], &err));
    assert_holds(s, fork, 5);
    assert_holds(s, a, 6);
    assert_int_equal(count_files(folder), 3);
    xlstm_store_close(s);

    s = open_store(folder);
    assert_holds(s, fork, 5);
    xlstm_store_entry e, *list = NULL;
    size_t n = 0;
    OK(xlstm_store_find(&e, s, "second", &err));
    assert_true(e.id == fork && e.parent == a && e.position == 6 && e.fingerprint == model->info.fingerprint);
    assert_true(e.bytes > 4096 && e.created > 1600000000 && e.used >= e.created);
    OK(xlstm_store_find(&e, s, "2", &err));
    assert_int_equal(e.id, b);
    assert_string_equal(e.name, "");
    const char *const not_numbers[] = {" 2", "+2", "2 ", "-2", "", "0x2", "18446744073709551618"};
    for (size_t i = 0; i < XL_COUNT(not_numbers); i++) {
        REFUSED(xlstm_store_find(&e, s, not_numbers[i], &err), XLSTM_E_ARGUMENT, "there is no session");
    }
    OK(xlstm_store_list(&list, &n, s, &err));
    assert_int_equal(n, 3);
    xlstm_free(list);
    OK(xlstm_store_rename(s, fork, "", &err)); /* takes the name away */
    REFUSED(xlstm_store_find(&e, s, "second", &err), XLSTM_E_ARGUMENT, "no session \"second\"");
    OK(xlstm_store_rename(s, fork, "2nd", &err));
    OK(xlstm_store_rename(s, fork, NULL, &err));
    REFUSED(xlstm_store_find(&e, s, "2nd", &err), XLSTM_E_ARGUMENT, "no session \"2nd\"");

    /* refusals, by name */
    uint64_t id = 0;
    xlstm_state *loaded = NULL;
    char name[200];
    memset(name, 'n', sizeof(name));
    name[128] = '\0';
    REFUSED(xlstm_store_create(&id, s, states[0], "first", &err), XLSTM_E_ARGUMENT, "named \"first\" already");
    REFUSED(xlstm_store_rename(s, b, "first", &err), XLSTM_E_ARGUMENT, "named \"first\" already");
    REFUSED(xlstm_store_fork(&id, s, b, "first", &err), XLSTM_E_ARGUMENT, "named \"first\" already");
    REFUSED(xlstm_store_create(&id, s, states[0], name, &err), XLSTM_E_ARGUMENT, "128 bytes");
    REFUSED(xlstm_store_create(&id, s, states[0], "a\nb", &err), XLSTM_E_ARGUMENT, "control character");
    REFUSED(xlstm_store_check_name("12", &err), XLSTM_E_ARGUMENT, "with a letter in it");
    OK(xlstm_store_check_name("12 a", &err));
    REFUSED(xlstm_store_create(&id, s, states[0], "", &err), XLSTM_E_ARGUMENT, "empty");
    REFUSED(xlstm_store_fork(&id, s, b, "", &err), XLSTM_E_ARGUMENT, "empty");
    REFUSED(xlstm_store_create(&id, s, states[0], "1", &err), XLSTM_E_ARGUMENT, "\"1\", expected one with a letter");
    REFUSED(xlstm_store_fork(&id, s, b, "007", &err), XLSTM_E_ARGUMENT, "\"007\", expected one with a letter");
    REFUSED(xlstm_store_rename(s, b, "99", &err), XLSTM_E_ARGUMENT, "\"99\", expected one with a letter");
    REFUSED(xlstm_store_find(&e, s, "nobody", &err), XLSTM_E_ARGUMENT, "no session \"nobody\"");
    REFUSED(xlstm_store_load(&loaded, s, model, 99, true, &err), XLSTM_E_ARGUMENT, "no session 99");
    REFUSED(xlstm_store_save(s, 99, states[0], &err), XLSTM_E_ARGUMENT, "no session 99");
    REFUSED(xlstm_store_fork(&id, s, 99, NULL, &err), XLSTM_E_ARGUMENT, "no session 99");
    REFUSED(xlstm_store_rename(s, 99, "x", &err), XLSTM_E_ARGUMENT, "no session 99");
    REFUSED(xlstm_store_remove(s, 99, &err), XLSTM_E_ARGUMENT, "no session 99");
    assert_int_equal(count_files(folder), 3); /* refused writes leave nothing */
    mk_model twin = shape;
    twin.seed = 3;
    xlstm_model *other = fx_model(&twin, XLSTM_F32, XLSTM_OFF);
    REFUSED(xlstm_store_load(&loaded, s, other, a, true, &err), XLSTM_E_MISMATCH, "another model");
    xlstm_model_free(other);

    OK(xlstm_store_remove(s, a, &err));
    REFUSED(xlstm_store_load(&loaded, s, model, a, true, &err), XLSTM_E_ARGUMENT, "no session");
    assert_int_equal(count_files(folder), 2);
    assert_true(create(s, 0, "first") > fork); /* numbers are not used twice */
    xlstm_store_close(s);
    fx_remove_tree(folder);
}

static void run_sql(const char *folder, const char *sql)
{
    char *index = xl_join(folder, "index.db", NULL);
    sqlite3 *db;
    assert_int_equal(sqlite3_open(index, &db), SQLITE_OK);
    assert_int_equal(sqlite3_exec(db, sql, NULL, NULL, NULL), SQLITE_OK);
    sqlite3_close(db);
    free(index);
}

static void set_used(const char *folder, uint64_t id, int64_t used)
{
    char sql[100];
    snprintf(sql, sizeof(sql), "UPDATE session SET used = %lld WHERE id = %llu", (long long)used, (unsigned long long)id);
    run_sql(folder, sql);
}

/* Names that are numbers, from before they were refused, are still found, and go before numbers. */
static void test_old_names(void **unused)
{
    (void)unused;
    char *folder = mk_folder();
    xlstm_store *s = open_store(folder);
    uint64_t first = create(s, 0, NULL), second = create(s, 1, "second");
    run_sql(folder, "UPDATE session SET name = '1' WHERE name = 'second'");
    xlstm_store_entry e;
    OK(xlstm_store_find(&e, s, "1", &err));
    assert_int_equal(e.id, second);
    OK(xlstm_store_rename(s, second, NULL, &err));
    OK(xlstm_store_find(&e, s, "1", &err));
    assert_int_equal(e.id, first);
    xlstm_store_close(s);
    fx_remove_tree(folder);
}

static void test_expiry(void **unused)
{
    (void)unused;
    char *folder = mk_folder();
    xlstm_store *s = open_store(folder);
    uint64_t id[6], fork;
    for (int i = 0; i < 6; i++) id[i] = create(s, i, NULL);
    OK(xlstm_store_fork(&fork, s, id[0], NULL, &err));
    for (int i = 0; i < 3; i++) set_used(folder, id[i], time(NULL) - 1000);
    xlstm_store *other = open_store(folder);
    assert_holds(other, id[2], 2); /* used again, through another handle: stays */
    size_t wrong = 1;
    REFUSED(xlstm_store_expire(&wrong, s, -1, &err), XLSTM_E_ARGUMENT, "seconds of 0 or more");
    assert_int_equal(wrong, 0);
    /* leftovers of killed writers */
    char *orphan = NULL, *temporary = NULL;
    MK_CHECK(asprintf(&orphan, "%s/states/ab", folder) > 0);
    (void)mkdir(orphan, 0700); /* may be there */
    free(orphan);
    MK_CHECK(asprintf(&orphan, "%s/states/ab/ab00000000000000.xlstate", folder) > 0);
    MK_CHECK(asprintf(&temporary, "%s.Xa81bc", orphan) > 0);
    FILE *f = fopen(orphan, "wb");
    MK_CHECK(f != NULL && fclose(f) == 0);
    f = fopen(temporary, "wb");
    MK_CHECK(f != NULL && fclose(f) == 0);
    size_t removed = 0;
    OK(xlstm_store_expire(&removed, s, 500, &err));
    assert_int_equal(removed, 2);
    assert_int_equal(count_files(folder), 5); /* 2, 3, 4, 5, and 0's, which the fork needs */
    assert_holds(s, fork, 0);
    assert_holds(s, id[2], 2);
    xlstm_state *loaded = NULL;
    REFUSED(xlstm_store_load(&loaded, s, model, id[0], true, &err), XLSTM_E_ARGUMENT, "no session");
    OK(xlstm_store_expire(&removed, s, 1000000, &err));
    assert_int_equal(removed, 0);
    free(orphan);
    free(temporary);
    xlstm_store_close(other);
    xlstm_store_close(s);
    fx_remove_tree(folder);
}

/* ---- company ---------------------------------------------------------------------------------------------------- */

typedef struct visitor {
    xlstm_store *store;
    uint64_t id;
    bool writes;
    int loads;
    char problem[1024];
} visitor;

static void *visit(void *arg)
{
    visitor *v = arg;
    xlstm_error err = {0};
    for (int i = 0; i < 60 && v->problem[0] == '\0'; i++) {
        if (v->writes) {
            if (xlstm_store_save(v->store, v->id, states[i % STATES], &err) != XLSTM_OK) break;
            continue;
        }
        xlstm_state *loaded = NULL;
        if (xlstm_store_load(&loaded, v->store, model, v->id, true, &err) != XLSTM_OK) break;
        bool known = false;
        for (int k = 0; k < STATES; k++) known = known || fx_same_state(loaded, states[k]);
        if (!known) snprintf(v->problem, sizeof(v->problem), "a state that was never written");
        xlstm_state_free(loaded);
        v->loads++;
    }
    if (err.code != 0) snprintf(v->problem, sizeof(v->problem), "%s", err.message);
    return NULL;
}

/* Readers of a session that is replaced all the time, in one process with one store and with stores of their own. */
static void test_readers_beside_a_writer(void **unused)
{
    (void)unused;
    enum { VISITORS = 6 };
    char *folder = mk_folder();
    xlstm_store *stores[VISITORS] = {NULL};
    for (int i = 0; i < VISITORS; i++) stores[i] = i % 2 == 0 ? open_store(folder) : stores[i - 1];
    uint64_t id = create(stores[0], 0, "busy");
    visitor visitors[VISITORS];
    pthread_t threads[VISITORS];
    for (int i = 0; i < VISITORS; i++) {
        visitors[i] = (visitor){.store = stores[i], .id = id, .writes = i < 3};
        assert_int_equal(pthread_create(&threads[i], NULL, visit, &visitors[i]), 0);
    }
    for (int i = 0; i < VISITORS; i++) assert_int_equal(pthread_join(threads[i], NULL), 0);
    for (int i = 0; i < VISITORS; i++) {
        if (visitors[i].problem[0] != '\0') fail_msg("visitor %d: %s", i, visitors[i].problem);
        assert_int_equal(visitors[i].loads, visitors[i].writes ? 0 : 60);
    }
    assert_int_equal(count_files(folder), 1);
    for (int i = 0; i < VISITORS; i += 2) xlstm_store_close(stores[i]);
    fx_remove_tree(folder);
}

/* A process that creates, saves, forks and removes is killed at some moment; what is left must be whole. */
static void test_killed_writer(void **unused)
{
    (void)unused;
    char *folder = mk_folder();
    xlstm_store *s = open_store(folder);
    uint64_t stable = create(s, 3, "stable"), seed = 21;
    xlstm_store_close(s);
    for (int round = 0; round < 25; round++) {
        pid_t child = fork();
        assert_true(child >= 0);
        if (child == 0) {
            xlstm_store *mine = NULL;
            if (xlstm_store_open(&mine, folder, NULL) != XLSTM_OK) _exit(1);
            for (uint64_t i = 0;; i++) {
                uint64_t id = 0, twin = 0;
                if (xlstm_store_create(&id, mine, states[i % STATES], NULL, NULL) != XLSTM_OK) _exit(2);
                if (xlstm_store_save(mine, id, states[(i + 1) % STATES], NULL) != XLSTM_OK) _exit(3);
                if (xlstm_store_fork(&twin, mine, id, NULL, NULL) != XLSTM_OK) _exit(4);
                if (i % 2 == 0 && xlstm_store_remove(mine, id, NULL) != XLSTM_OK) _exit(5);
            }
        }
        struct timespec wait = {.tv_nsec = (long)(2000000 + mk_next(&seed) % 60000000)};
        nanosleep(&wait, NULL);
        assert_int_equal(kill(child, SIGKILL), 0);
        int status;
        assert_int_equal(waitpid(child, &status, 0), child);
        assert_true(WIFSIGNALED(status));
        s = open_store(folder);
        xlstm_store_entry *list = NULL;
        size_t n = 0;
        OK(xlstm_store_list(&list, &n, s, &err));
        for (size_t i = 0; i < n; i++) {
            xlstm_state *loaded = NULL;
            OK(xlstm_store_load(&loaded, s, model, list[i].id, true, &err));
            assert_int_equal(list[i].position, loaded->position);
            assert_true(fx_same_state(loaded, states[loaded->position - 1]));
            xlstm_state_free(loaded);
        }
        assert_holds(s, stable, 3);
        xlstm_free(list);
        OK(xlstm_store_expire(NULL, s, 1000, &err));
        assert_true(count_files(folder) <= n); /* the sweep took what the killed one left */
        xlstm_store_close(s);
    }
    fx_remove_tree(folder);
}

/* ---- hostile folders -------------------------------------------------------------------------------------------- */

static void test_hostile_index(void **unused)
{
    (void)unused;
    char *folder = mk_folder();
    xlstm_store *s = open_store(folder);
    uint64_t id = create(s, 3, "x");
    xlstm_store_close(s);
    xlstm_state *loaded = NULL;
    const char *const blobs[] = {"'../../../../etc/passwd'", "''", "x'00ff'", "'0123456789abcdeF'", "'0123456789abcdef0'", "7"};
    for (size_t i = 0; i < XL_COUNT(blobs); i++) {
        char sql[100];
        snprintf(sql, sizeof(sql), "UPDATE session SET blob = %s", blobs[i]);
        run_sql(folder, sql);
        s = open_store(folder);
        REFUSED(xlstm_store_load(&loaded, s, model, id, true, &err), XLSTM_E_FORMAT, "no proper state file name");
        OK(xlstm_store_remove(s, id, &err)); /* and nothing outside is removed */
        run_sql(folder, "INSERT INTO session VALUES(1, 'x', 0, 0, 0, 0, 0, 0, '')");
        xlstm_store_close(s);
    }
    run_sql(folder, "UPDATE session SET blob = '0123456789abcdef', name = hex(zeroblob(500)), position = 'text'");
    s = open_store(folder);
    REFUSED(xlstm_store_load(&loaded, s, model, id, true, &err), XLSTM_E_IO, "0123456789abcdef.xlstate");
    xlstm_store_entry *list = NULL;
    size_t n = 0;
    OK(xlstm_store_list(&list, &n, s, &err));
    assert_int_equal(n, 1);
    assert_int_equal(strlen(list[0].name), sizeof(list[0].name) - 1);
    xlstm_free(list);
    xlstm_store_close(s);
    run_sql(folder, "PRAGMA user_version = 7");
    REFUSED(xlstm_store_open(&s, folder, &err), XLSTM_E_MISMATCH, "session store version 7");
    run_sql(folder, "PRAGMA user_version = 1; DROP TABLE session");
    REFUSED(xlstm_store_open(&s, folder, &err), XLSTM_E_FORMAT, "no such table");
    char *index = xl_join(folder, "index.db", NULL);
    uint64_t seed = 1;
    char junk[5000];
    for (size_t i = 0; i < sizeof(junk); i++) junk[i] = (char)mk_next(&seed);
    mk_put_file(folder, "index.db", junk, sizeof(junk));
    REFUSED(xlstm_store_open(&s, folder, &err), XLSTM_E_FORMAT, index);
    REFUSED(xlstm_store_open(&s, "/dev/null/x", &err), XLSTM_E_IO, "/dev/null/x");
    assert_null(s);
    free(index);
    fx_remove_tree(folder);
}

/* A state file that cannot be made is a failure to write, asked for its message or not. */
static void test_no_room_for_states(void **unused)
{
    (void)unused;
    char *folder = mk_folder(), *path = xl_join(folder, "states", NULL);
    xlstm_store *s = open_store(folder);
    MK_CHECK(rmdir(path) == 0);
    mk_put_text(folder, "states", "");
    uint64_t id;
    REFUSED(xlstm_store_create(&id, s, states[0], NULL, &err), XLSTM_E_IO, "cannot make the folder");
    assert_int_equal(xlstm_store_create(&id, s, states[0], NULL, NULL), XLSTM_E_IO);
    xlstm_store_close(s);
    free(path);
    fx_remove_tree(folder);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_life_of_a_session),
        cmocka_unit_test(test_old_names),
        cmocka_unit_test(test_expiry),
        cmocka_unit_test(test_readers_beside_a_writer),
        cmocka_unit_test(test_killed_writer),
        cmocka_unit_test(test_hostile_index),
        cmocka_unit_test(test_no_room_for_states),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
