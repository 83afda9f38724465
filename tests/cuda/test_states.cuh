/*
 * test_states.cuh — states in the cuda backend: int8, values that are not finite, states that leave the device and come
 * back, many threads. Included once, by test_cuda.cu.
 */

/* ---- int8 states ------------------------------------------------------------------------------------------------ */

/* Against the float32 reference, which keeps int8 states, too. Where both round at the same moments (steps, and prompts
 * of one chunk) levels may differ by one, where a rounding to float32 fell on the other side, and rarely. */
static void compare_levels(const std::string &detail, const xl_state_layout *l, const std::vector<uint8_t> &a,
                           const std::vector<uint8_t> &b)
{
    size_t rows = (size_t)l->num_blocks * l->num_heads * l->head_qk, apart = 0, far = 0, dv = l->head_v;
    double scales = 0;
    for (uint32_t block = 0; block < l->num_blocks; block++) {
        for (size_t r = 0; r < (size_t)l->num_heads * l->head_qk; r++) {
            const uint8_t *x = a.data() + xl_state_c_offset(l, block, 0) + r * l->c_row_bytes,
                          *y = b.data() + xl_state_c_offset(l, block, 0) + r * l->c_row_bytes;
            for (size_t i = 0; i < dv; i++) {
                int d = abs((int8_t)x[i] - (int8_t)y[i]);
                apart += d == 1;
                far += d > 1;
            }
            float p, q;
            memcpy(&p, x + dv, 4);
            memcpy(&q, y + dv, 4);
            double d = fabs((double)p - q);
            if (!(d <= scales * q)) scales = q > 0 ? d / q : d;
        }
    }
    check("int8 levels", detail, (double)far, 0);
    check("int8 levels", detail + " by one", (double)apart / (double)(rows * dv), 5e-3);
    check("int8 scales", detail, scales, 1e-4);
    for (int part = 0; part < 3; part++) {
        check("int8 state", detail + " part " + std::to_string(part),
              distance(state_values(l, a, part), state_values(l, b, part)), part == 0 ? 2e-3 : 1e-4);
    }
}

static void test_int8()
{
    struct geometry {
        uint32_t heads, dq, dv, runs;
    } const geometries[] = {{4, 16, 32, 3},  {2, 96, 192, 40}, {3, 40, 72, 5},  {1, 256, 512, 1},
                            {2, 64, 36, 20}, {2, 25, 50, 3},   {1, 300, 64, 2}, {16, 64, 256, 3},
                            {2, 128, 48, 7}, {3, 64, 96, 2},   {1, 33, 16, 30}, {2, 32, 1000, 2},
                            {1, 7, 528, 9},  {1, 1, 1, 2},     {1, 5, 3000, 2}, {8, 256, 512, 2}};
    int before = checks;
    for (const geometry &g : geometries) {
        if (race && g.dq > 96) continue;
        xl_backend_options o = options_for(XLSTM_F32);
        o.num_heads = g.heads;
        o.head_qk = g.dq;
        o.head_v = g.dv;
        o.state = XLSTM_I8;
        o.max_runs = 64;
        twins t(o, true);
        std::vector<twin_store> s(g.runs);
        for (twin_store &one : s) {
            MUST(t.c->ops->store_new(t.c, &one.c, &err));
            MUST(t.r->ops->store_new(t.r, &one.r, &err));
        }
        uint64_t position = 0;
        const xl_state_layout *l = t.c->ops->layout(t.c);
        /* a prompt of a few tokens, then steps; every third run goes on with a few tokens in the midst of them */
        for (int round = 0; round < 6; round++) {
            uint32_t rows = 0;
            std::vector<xl_run> rc(g.runs), rr(g.runs);
            for (uint32_t i = 0; i < g.runs; i++) {
                uint32_t count = round == 0 ? 1 + i % 5 : round == 3 && i % 3 == 0 ? 2 : 1;
                rc[i] = {rows, count, position, s[i].c};
                rr[i] = {rows, count, position, s[i].r};
                rows += count;
            }
            position += 8; /* inside a chunk */
            twin_buffer q = t.buffer(rows, g.heads * g.dq), k = t.buffer(rows, g.heads * g.dq),
                        v = t.buffer(rows, g.heads * g.dv), gates = t.buffer(rows, 2 * g.heads),
                        h = t.buffer(rows + 1, g.heads * g.dv);
            t.fill(q, 1), t.fill(k, 1), t.fill(v, 1), t.fill(gates, 3, true), t.poison(h);
            std::vector<int32_t> ids(rows);
            xl_batch bc = {};
            bc.ids = ids.data();
            bc.rows = rows;
            bc.runs = rc.data();
            bc.n_runs = g.runs;
            bc.traced = true;
            xl_batch br = bc;
            br.runs = rr.data();
            std::string detail = "heads " + std::to_string(g.heads) + " dq " + std::to_string(g.dq) + " dv " +
                                 std::to_string(g.dv) + " runs " + std::to_string(g.runs) + " round " +
                                 std::to_string(round);
            t.pass(bc, br, [&](xl_backend *be, bool cuda) {
                auto place = [&](twin_buffer &b) { return cuda ? b.c : b.r; };
                for (uint32_t block = 0; block < 2; block++) {
                    xl_mlstm cell = {place(h), place(q), place(k), place(v), place(gates), block, 15.0f, 1e-6f, 5};
                    be->ops->mlstm(be, &cell);
                }
            });
            t.compare("int8 h", detail, h, rows, 1e-4);
            t.guard("int8 h", detail, h, rows);
            for (uint32_t i = 0; i < rows; i++) check("int8 fault", detail, t.fc[i], 0);
            for (uint32_t i = 0; i < g.runs; i++) {
                std::vector<uint8_t> a(l->total_bytes), b(l->total_bytes);
                MUST(t.c->ops->store_read(t.c, s[i].c, a.data(), &err));
                MUST(t.r->ops->store_read(t.r, s[i].r, b.data(), &err));
                compare_levels(detail + " run " + std::to_string(i), l, a, b);
                /* from here on both go on from the same bytes, so that rare steps of one level do not pile up */
                MUST(t.c->ops->store_write(t.c, s[i].c, b.data(), &err));
                MUST(t.c->ops->store_read(t.c, s[i].c, a.data(), &err));
                check("int8 write", detail, memcmp(a.data(), b.data(), a.size()) != 0, 0);
            }
            t.drop(q), t.drop(k), t.drop(v), t.drop(gates), t.drop(h);
        }
        for (twin_store &one : s) {
            t.c->ops->store_free(t.c, one.c);
            t.r->ops->store_free(t.r, one.r);
        }
    }
    printf("int8: %d checks, %d failures so far\n", checks - before, failures);
}

/* C of a state in the layout of another dtype, float32 or int8; n and m are float32 in both. */
static std::vector<uint8_t> convert_state(const xl_state_layout *to, const xl_state_layout *from,
                                          const std::vector<uint8_t> &bytes)
{
    std::vector<uint8_t> out(to->total_bytes);
    std::vector<float> c = state_values(from, bytes, 0);
    size_t dv = to->head_v, rows = (size_t)to->num_heads * to->head_qk;
    for (uint32_t b = 0; b < to->num_blocks; b++) {
        for (size_t r = 0; r < rows; r++) {
            uint8_t *row = out.data() + xl_state_c_offset(to, b, 0) + r * to->c_row_bytes;
            const float *x = c.data() + (b * rows + r) * dv;
            float top = 0;
            for (size_t i = 0; i < dv; i++) top = XL_MAX(top, fabsf(x[i]));
            float scale = top / 127.0f, inverse = scale > 0 ? 1.0f / scale : 0;
            if (to->dtype == XLSTM_I8) memcpy(row + dv, &scale, 4);
            for (size_t i = 0; i < dv; i++) {
                if (to->dtype == XLSTM_I8) row[i] = (uint8_t)(int8_t)rintf(x[i] * inverse);
                else memcpy(row + 4 * i, x + i, 4);
            }
        }
        memcpy(out.data() + xl_state_n_offset(to, b, 0), bytes.data() + xl_state_n_offset(from, b, 0),
               to->n_bytes + to->m_bytes);
    }
    return out;
}

/* Runs of several tokens run on unpacked C: h must be that of a float32 state with the same values, to the bit, and the
 * state afterwards that float32 state packed. */
static void test_int8_prompts()
{
    const uint32_t geometries[][4] = {{4, 16, 32, 64},  {2, 96, 192, 64}, {3, 40, 72, 16}, {1, 256, 512, 64},
                                      {2, 64, 36, 100}, {1, 300, 64, 64}, {2, 24, 50, 7},  {8, 64, 256, 64}};
    int before = checks;
    for (const uint32_t *g : geometries) {
        for (xlstm_dtype act : {XLSTM_F32, XLSTM_BF16}) {
            if (race && g[1] > 64) continue;
            xl_backend_options o = options_for(act);
            o.num_heads = g[0];
            o.head_qk = g[1];
            o.head_v = g[2];
            o.chunk_size = g[3];
            o.state = XLSTM_I8;
            twins t(o);
            o.state = XLSTM_F32;
            xl_backend *wide;
            MUST(xlstm_cuda_backend()->open(&wide, &o, &err));
            xl_backend *both[2] = {t.c, wide};
            const xl_state_layout *l[2] = {t.c->ops->layout(t.c), wide->ops->layout(wide)};
            const uint32_t counts[2][4] = {{2, 150, 17, 5}, {70, 16, 64, 130}};
            xl_store *s[2][4];
            for (int w = 0; w < 2; w++) {
                for (xl_store *&one : s[w]) MUST(both[w]->ops->store_new(both[w], &one, &err));
            }
            uint64_t position[4] = {};
            for (int round = 0; round < 2; round++) {
                std::string detail = std::string(name(act)) + " heads " + std::to_string(g[0]) + " dq " +
                                     std::to_string(g[1]) + " dv " + std::to_string(g[2]) + " round " +
                                     std::to_string(round);
                uint32_t rows = 0;
                for (uint32_t count : counts[round]) rows += count;
                twin_buffer q = t.buffer(rows, g[0] * g[1]), k = t.buffer(rows, g[0] * g[1]),
                            v = t.buffer(rows, g[0] * g[2]), gates = t.buffer(rows, 2 * g[0]),
                            h = t.buffer(rows, g[0] * g[2]);
                t.fill(q, 1), t.fill(k, 1), t.fill(v, 1), t.fill(gates, 3, true);
                std::vector<float> seen[2];
                std::vector<uint8_t> states[2][4];
                for (int w = 0; w < 2; w++) {
                    xl_run runs[4];
                    xl_batch batch = {};
                    std::vector<int32_t> ids(rows);
                    batch.ids = ids.data();
                    batch.runs = runs;
                    batch.n_runs = 4;
                    batch.traced = true;
                    for (int i = 0; i < 4; i++) {
                        runs[i] = {batch.rows, counts[round][i], position[i], s[w][i]};
                        batch.rows += counts[round][i];
                        if (w == 0) { /* the float32 state begins with what the int8 one stands for */
                            std::vector<uint8_t> bytes(l[0]->total_bytes);
                            MUST(t.c->ops->store_read(t.c, s[0][i], bytes.data(), &err));
                            bytes = convert_state(l[1], l[0], bytes);
                            MUST(wide->ops->store_write(wide, s[1][i], bytes.data(), &err));
                        }
                    }
                    bool replay;
                    t.poison(h);
                    MUST(both[w]->ops->begin(both[w], &batch, &replay, &err));
                    for (uint32_t block = 0; block < o.num_blocks; block++) {
                        xl_mlstm cell = {h.c, q.c, k.c, v.c, gates.c, block, 15.0f, 1e-6f, 5};
                        both[w]->ops->mlstm(both[w], &cell);
                    }
                    MUST(both[w]->ops->submit(both[w], t.fc.data(), &err));
                    seen[w] = t.read_c(h, rows * h.width);
                    for (int i = 0; i < 4; i++) {
                        states[w][i].resize(l[w]->total_bytes);
                        MUST(both[w]->ops->store_read(both[w], s[w][i], states[w][i].data(), &err));
                    }
                }
                check("int8 prompt h", detail, memcmp(seen[0].data(), seen[1].data(), seen[0].size() * sizeof(float)),
                      0);
                for (int i = 0; i < 4; i++) {
                    check("int8 prompt state", detail + " run " + std::to_string(i),
                          convert_state(l[0], l[1], states[1][i]) != states[0][i], 0);
                    position[i] += counts[round][i];
                }
                t.drop(q), t.drop(k), t.drop(v), t.drop(gates), t.drop(h);
            }
            for (int w = 0; w < 2; w++) {
                for (xl_store *one : s[w]) both[w]->ops->store_free(both[w], one);
            }
            wide->ops->close(wide);
        }
    }
    printf("int8 prompts: %d checks, %d failures so far\n", checks - before, failures);
}

/* More runs of several tokens than there is room to unpack: they take turns, and nothing changes. */
static void test_int8_turns()
{
    int before = checks;
    for (xlstm_dtype act : {XLSTM_F32, XLSTM_BF16}) {
        const uint32_t counts[] = {1, 3, 40, 20, 1, 2, 64, 17, 5, 33};
        const uint32_t n = XL_COUNT(counts);
        xl_backend_options o = options_for(act);
        o.state = XLSTM_I8;
        std::vector<uint8_t> states[2];
        std::vector<float> outputs[2];
        uint32_t rows = 0;
        for (uint32_t count : counts) rows += count;
        uint64_t start = seed;
        for (int turns = 0; turns < 2; turns++) {
            seed = start;
            twins t(o);
            if (turns == 1) cuda_of(t.c)->unpacked_runs = 3;
            twin_buffer q = t.buffer(rows, o.num_heads * o.head_qk), k = t.buffer(rows, o.num_heads * o.head_qk),
                        v = t.buffer(rows, o.num_heads * o.head_v), gates = t.buffer(rows, 2 * o.num_heads),
                        h = t.buffer(rows, o.num_heads * o.head_v);
            xl_store *s[n];
            xl_run runs[n];
            for (xl_store *&one : s) MUST(t.c->ops->store_new(t.c, &one, &err));
            for (int round = 0; round < 2; round++) {
                t.fill(q, 1), t.fill(k, 1), t.fill(v, 1), t.fill(gates, 3, true);
                std::vector<int32_t> ids(rows);
                xl_batch batch = {};
                batch.ids = ids.data();
                batch.runs = runs;
                batch.n_runs = n;
                for (uint32_t i = 0; i < n; i++) {
                    runs[i] = {batch.rows, counts[i], (uint64_t)round * counts[i], s[i]};
                    batch.rows += counts[i];
                }
                bool replay;
                MUST(t.c->ops->begin(t.c, &batch, &replay, &err));
                for (uint32_t block = 0; block < o.num_blocks && !replay; block++) {
                    xl_mlstm cell = {h.c, q.c, k.c, v.c, gates.c, block, 15.0f, 1e-6f, 5};
                    t.c->ops->mlstm(t.c, &cell);
                }
                MUST(t.c->ops->submit(t.c, t.fc.data(), &err));
                std::vector<float> out = t.read_c(h, rows * h.width);
                outputs[turns].insert(outputs[turns].end(), out.begin(), out.end());
            }
            for (xl_store *one : s) {
                std::vector<uint8_t> bytes(t.c->ops->layout(t.c)->total_bytes);
                MUST(t.c->ops->store_read(t.c, one, bytes.data(), &err));
                states[turns].insert(states[turns].end(), bytes.begin(), bytes.end());
                t.c->ops->store_free(t.c, one);
            }
            t.drop(q), t.drop(k), t.drop(v), t.drop(gates), t.drop(h);
        }
        check("int8 turns", std::string(name(act)) + " h", distance(outputs[1], outputs[0]), 1e-6);
        check("int8 turns", std::string(name(act)) + " states", states[0] != states[1], 0);
    }
    printf("int8 turns: %d checks, %d failures so far\n", checks - before, failures);
}

/* Values that are not finite: fault codes are the reference's whatever the state's format, and in an int8 state the scales
 * of their rows are not finite either. */
static void test_poison()
{
    int before = checks;
    for (uint32_t variant = 0; variant < 15; variant++) {
        const uint32_t dv = variant / 5 == 1 ? 20 : variant / 5 == 2 ? 128 : 32;
        const int what = (int)(variant % 5);
        for (xlstm_dtype state : {XLSTM_F32, XLSTM_BF16, XLSTM_I8}) {
            xl_backend_options o = options_for(XLSTM_F32);
            o.head_v = dv;
            if (dv == 128) o.head_qk = 64; /* with runs enough for the streaming kernel */
            o.num_heads = dv == 128 ? 80 : 4;
            o.state = state;
            twins t(o, true);
            const xl_state_layout *l = t.c->ops->layout(t.c);
            uint32_t rows = 2, NH = o.num_heads;
            twin_buffer q = t.buffer(rows, NH * o.head_qk), k = t.buffer(rows, NH * o.head_qk),
                        v = t.buffer(rows, NH * dv), gates = t.buffer(rows, 2 * NH), h = t.buffer(rows, NH * dv);
            twin_store s[2];
            xl_run rc[2], rr[2];
            for (uint32_t i = 0; i < 2; i++) {
                MUST(t.c->ops->store_new(t.c, &s[i].c, &err));
                MUST(t.r->ops->store_new(t.r, &s[i].r, &err));
                rc[i] = {i, 1, 5, s[i].c};
                rr[i] = {i, 1, 5, s[i].r};
            }
            t.fill(q, 1), t.fill(k, 1), t.fill(v, 1), t.fill(gates, 1, true);
            /* of row 1, head 1: a key, a value, the input gate; C or the denominator too large */
            size_t key = (size_t)(NH + 1) * o.head_qk + 3, value = (size_t)(NH + 1) * dv + 7;
            if (what == 0) t.set(k, key, NAN);
            if (what == 1) t.set(v, value, INFINITY);
            if (what == 2) t.set(gates, 2 * NH + 1, NAN);
            if (what == 3) t.set(k, key, 1e38f), t.set(v, value, 1e38f);
            if (what == 4) t.set(k, key, 3e38f), t.set(q, key, 1e6f), t.set(gates, 2 * NH + 1, 10);
            std::vector<int32_t> ids(rows);
            xl_batch bc = {};
            bc.ids = ids.data();
            bc.rows = rows;
            bc.runs = rc;
            bc.n_runs = 2;
            bc.traced = true;
            xl_batch br = bc;
            br.runs = rr;
            t.pass(bc, br, [&](xl_backend *be, bool cuda) {
                auto place = [&](twin_buffer &b) { return cuda ? b.c : b.r; };
                xl_mlstm cell = {place(h), place(q), place(k), place(v), place(gates), 0, 0, 1e-6f, 5};
                be->ops->mlstm(be, &cell);
            });
            std::string detail =
                std::string(name(state)) + " dv " + std::to_string(dv) + " case " + std::to_string(what);
            for (uint32_t i = 0; i < rows; i++)
                check("poison fault", detail + " row " + std::to_string(i), fabs((double)t.fc[i] - t.fr[i]), 0);
            std::vector<float> hc = t.read_c(h, rows * h.width), hr = t.read_r(h, rows * h.width);
            for (size_t i = 0; i < hc.size(); i++) {
                if (xl_is_finite(hc[i]) != xl_is_finite(hr[i]) || (xl_is_finite(hc[i]) && fabsf(hc[i] - hr[i]) > 1e-2))
                    check("poison h", detail + " at " + std::to_string(i), INFINITY, 0);
            }
            if (state == XLSTM_I8) {
                std::vector<uint8_t> a(l->total_bytes);
                size_t bad = 0, head = (size_t)o.head_qk * dv;
                MUST(t.c->ops->store_read(t.c, s[1].c, a.data(), &err));
                std::vector<float> c = state_values(l, a, 0);
                for (size_t i = 0; i < head; i++) bad += !xl_is_finite(c[head + i]);
                /* a bad key is in its row, a bad value and a bad gate in every row */
                check("poison C", detail, fabs((double)bad - (what == 1 || what == 2 ? (double)head : dv)), 0);
                MUST(t.c->ops->store_read(t.c, s[0].c, a.data(), &err));
                bad = 0;
                for (float x : state_values(l, a, 0)) bad += !xl_is_finite(x);
                check("poison C", detail + " neighbour", (double)bad, 0);
            }
            for (twin_store &one : s) {
                t.c->ops->store_free(t.c, one.c);
                t.r->ops->store_free(t.r, one.r);
            }
            t.drop(q), t.drop(k), t.drop(v), t.drop(gates), t.drop(h);
        }
    }
    printf("poison: %d checks, %d failures so far\n", checks - before, failures);
}

/* ---- states that leave the device ------------------------------------------------------------------------------- */

/* Seven sessions step, read prompts, and are copied, cleared, written, freed and made anew; returns every h and, at the
 * end, every state. With `limit` three places on the device serve them, which must not change a bit. */
static std::vector<uint8_t> live(xlstm_dtype state, uint32_t limit)
{
    const uint32_t n = 7, together = 3;
    xl_backend_options o = options_for(XLSTM_BF16);
    o.state = state;
    o.device_states = limit;
    twins t(o);
    const xl_backend_ops *ops = t.c->ops;
    std::string detail = std::string(name(state)) + (limit > 0 ? " limited" : "");
    size_t bytes = ops->layout(t.c)->total_bytes;
    std::vector<uint8_t> all, image(bytes);
    twin_buffer q = t.buffer(64, o.num_heads * o.head_qk), k = t.buffer(64, o.num_heads * o.head_qk),
                v = t.buffer(64, o.num_heads * o.head_v), gates = t.buffer(64, 2 * o.num_heads),
                h = t.buffer(64, o.num_heads * o.head_v);
    xl_store *s[n];
    uint64_t position[n] = {};
    bool replayed = false;
    check("spill", detail + " room before", ops->most_runs(t.c) < n, 0);
    for (xl_store *&one : s) MUST(ops->store_new(t.c, &one, &err));
    check("spill", detail + " room after", ops->most_runs(t.c) != (limit > 0 ? limit : UINT32_MAX), 0);
    for (uint32_t step = 0; step < 30; step++) {
        t.fill(q, 1), t.fill(k, 1), t.fill(v, 1), t.fill(gates, 3, true);
        xl_run runs[together];
        int32_t ids[64] = {};
        xl_batch batch = {};
        batch.ids = ids;
        batch.runs = runs;
        for (uint32_t i = 0; i < together; i++) {
            uint32_t at = (step + 2 * i) % n, count = step % 10 == 9 ? 1 + 18 * i : 1;
            runs[batch.n_runs++] = {batch.rows, count, position[at], s[at]};
            batch.rows += count;
            position[at] += count;
        }
        bool replay;
        MUST(ops->begin(t.c, &batch, &replay, &err));
        for (uint32_t block = 0; block < o.num_blocks && !replay; block++) {
            xl_mlstm cell = {h.c, q.c, k.c, v.c, gates.c, block, 15.0f, 1e-6f, 5};
            ops->mlstm(t.c, &cell);
        }
        replayed |= replay;
        MUST(ops->submit(t.c, t.fc.data(), &err));
        std::vector<float> out = t.read_c(h, batch.rows * h.width);
        all.insert(all.end(), (uint8_t *)out.data(), (uint8_t *)(out.data() + out.size()));
        /* of these, some are on the device and some are not, differently each time */
        uint32_t a = step % n, b = (step * 3 + 1) % n;
        if (step % 5 == 1 && a != b) MUST(ops->store_copy(t.c, s[a], s[b], &err));
        if (step % 7 == 2) MUST(ops->store_zero(t.c, s[b], &err));
        if (step % 5 == 3) {
            MUST(ops->store_read(t.c, s[b], image.data(), &err));
            MUST(ops->store_write(t.c, s[a], image.data(), &err));
        }
        if (step % 8 == 6) {
            ops->store_free(t.c, s[b]);
            if (step == 22) ops->store_free(t.c, s[(b + 1) % n]);
            MUST(ops->store_new(t.c, &s[b], &err));
            if (step == 22) MUST(ops->store_new(t.c, &s[(b + 1) % n], &err));
        }
    }
    check("spill", detail + " replayed", !replayed, 0);
    if (limit > 0) {
        xl_run runs[together + 1];
        int32_t ids[together + 1] = {};
        xl_batch batch = {};
        batch.ids = ids;
        batch.runs = runs;
        batch.rows = batch.n_runs = together + 1;
        for (uint32_t i = 0; i <= together; i++) runs[i] = {i, 1, 0, s[i]};
        bool replay;
        check("spill", detail + " too many", ops->begin(t.c, &batch, &replay, &err) != XLSTM_E_MEMORY, 0);
        if (state == XLSTM_F32) printf("as it should be: %s\n", err.message);
        check("spill", detail + " in host memory", cuda_of(t.c)->n_spilled != n - limit, 0);
    }
    for (xl_store *one : s) {
        MUST(ops->store_read(t.c, one, image.data(), &err));
        all.insert(all.end(), image.begin(), image.end());
        ops->store_free(t.c, one);
    }
    t.drop(q), t.drop(k), t.drop(v), t.drop(gates), t.drop(h);
    return all;
}

static void test_spill()
{
    int before = checks;
    for (xlstm_dtype state : {XLSTM_F32, XLSTM_BF16, XLSTM_I8}) {
        uint64_t start = seed;
        std::vector<uint8_t> free = live(state, 0);
        seed = start;
        check("spill", std::string(name(state)) + " bits", free != live(state, 3), 0);
    }
    /* a full device: other memory leaves room for a few states */
    xl_backend_options o = options_for(XLSTM_F32);
    o.num_heads = 8;
    o.head_qk = 256;
    o.head_v = 512;
    xl_backend *be;
    MUST(xlstm_cuda_backend()->open(&be, &o, &err));
    size_t free = 0, total = 0, bytes = be->ops->layout(be)->total_bytes;
    void *hog = nullptr;
    cudaMemGetInfo(&free, &total);
    size_t keep = XL_MIN((size_t)512 << 20, total / 32) + 5 * bytes;
    if (free > keep && cudaMalloc(&hog, free - keep) == cudaSuccess) {
        std::vector<xl_store *> s;
        std::vector<uint8_t> image(bytes), back(bytes);
        while (s.size() < 40 && (cuda_of(be)->n_spilled < 4 || s.size() < 10)) {
            xl_store *one;
            MUST(be->ops->store_new(be, &one, &err));
            for (size_t i = 0; i < bytes; i += 997) image[i] = (uint8_t)(i + s.size());
            MUST(be->ops->store_write(be, one, image.data(), &err));
            s.push_back(one);
        }
        check("spill", "a full device", cuda_of(be)->n_spilled < 4, 0);
        for (size_t at = 0; at < s.size(); at++) {
            for (size_t i = 0; i < bytes; i += 997) image[i] = (uint8_t)(i + at);
            MUST(be->ops->store_read(be, s[at], back.data(), &err));
            check("spill", "contents", image != back, 0);
            be->ops->store_free(be, s[at]);
        }
        cudaFree(hog);
    } else {
        printf("skip: the device is too full to be filled\n");
    }
    be->ops->close(be);
    printf("spill: %d checks, %d failures so far\n", checks - before, failures);
}

/* States of other sessions made, written, copied, cleared, read and freed until told to stop; counts what went wrong. */
static void bother(xl_backend *be, uint32_t mark, const std::atomic<bool> *stop, std::atomic<int> *bad)
{
    const xl_backend_ops *ops = be->ops;
    std::vector<uint8_t> image(ops->layout(be)->total_bytes), back(image.size());
    for (uint32_t turn = 0; !*stop || turn < 3; turn++) {
        xl_store *a = nullptr, *b = nullptr;
        for (size_t i = 0; i < image.size(); i++) image[i] = (uint8_t)(i * 7 + mark + turn);
        bool well = ops->store_new(be, &a, nullptr) == XLSTM_OK && ops->store_new(be, &b, nullptr) == XLSTM_OK &&
                    ops->store_write(be, a, image.data(), nullptr) == XLSTM_OK &&
                    ops->store_copy(be, b, a, nullptr) == XLSTM_OK &&
                    ops->store_read(be, a, image.data(), nullptr) == XLSTM_OK &&
                    ops->store_zero(be, a, nullptr) == XLSTM_OK &&
                    ops->store_read(be, b, back.data(), nullptr) == XLSTM_OK;
        *bad += !well || image != back;
        ops->store_free(be, a);
        ops->store_free(be, b);
    }
}

/* Passes of one thread, many of them recorded, with or without others at work on states of their own. */
static std::vector<uint8_t> pass_on(bool company)
{
    xl_backend_options o = options_for(XLSTM_F32);
    o.device_states = 3;
    twins t(o);
    const xl_backend_ops *ops = t.c->ops;
    std::atomic<bool> stop(false);
    std::atomic<int> bad(0);
    std::vector<std::thread> others;
    for (uint32_t i = 0; company && i < 4; i++) others.emplace_back(bother, t.c, 50 * i, &stop, &bad);
    xl_store *s[3];
    for (xl_store *&one : s) MUST(ops->store_new(t.c, &one, &err));
    twin_buffer q = t.buffer(3, o.num_heads * o.head_qk), v = t.buffer(3, o.num_heads * o.head_v),
                gates = t.buffer(3, 2 * o.num_heads), h = t.buffer(3, o.num_heads * o.head_v);
    t.fill(q, 1), t.fill(v, 1), t.fill(gates, 3, true);
    for (uint32_t step = 0; step < 40; step++) {
        xl_run runs[3];
        int32_t ids[3] = {};
        xl_batch batch = {};
        batch.ids = ids;
        batch.runs = runs;
        batch.rows = batch.n_runs = 1 + step % 3;
        for (uint32_t i = 0; i < batch.n_runs; i++) runs[i] = {i, 1, step, s[(step / 3 + i) % 3]};
        bool replay;
        MUST(ops->begin(t.c, &batch, &replay, &err));
        for (uint32_t block = 0; block < o.num_blocks && !replay; block++) {
            xl_mlstm cell = {h.c, q.c, q.c, v.c, gates.c, block, 15.0f, 1e-6f, 5};
            ops->mlstm(t.c, &cell);
        }
        MUST(ops->submit(t.c, t.fc.data(), &err));
    }
    std::vector<uint8_t> all, image(ops->layout(t.c)->total_bytes);
    for (xl_store *one : s) {
        MUST(ops->store_read(t.c, one, image.data(), &err));
        all.insert(all.end(), image.begin(), image.end());
    }
    stop = true;
    for (std::thread &other : others) other.join();
    check("threads", "states of others", bad, 0);
    for (xl_store *one : s) ops->store_free(t.c, one);
    t.drop(q), t.drop(v), t.drop(gates), t.drop(h);
    return all;
}

static void test_threads()
{
    int before = checks;
    uint64_t start = seed;
    std::vector<uint8_t> alone = pass_on(false);
    seed = start;
    check("threads", "bits", alone != pass_on(true), 0);
    printf("threads: %d checks, %d failures so far\n", checks - before, failures);
}

/* Passes on the second device while the first is busy. */
static void test_devices()
{
    int before = checks, found = 0;
    if (cudaGetDeviceCount(&found) != cudaSuccess || found < 2) {
        printf("skip: devices: needs two GPUs, found %d\n", found);
        return;
    }
    const uint32_t usual = gpu, other = usual == 0;
    uint64_t start = seed;
    std::vector<uint8_t> alone = pass_on(false);
    xl_backend_options o = options_for(XLSTM_F32);
    xl_backend *be;
    MUST(xlstm_cuda_backend()->open(&be, &o, &err));
    std::atomic<bool> stop(false);
    std::atomic<int> bad(0);
    std::vector<std::thread> busy;
    for (uint32_t i = 0; i < 2; i++) busy.emplace_back(bother, be, 50 * i, &stop, &bad);
    seed = start;
    gpu = other;
    check("devices", "bits", alone != pass_on(true), 0);
    gpu = usual;
    stop = true;
    for (std::thread &one : busy) one.join();
    check("devices", "states of the first", bad, 0);
    be->ops->close(be);
    printf("devices: %d checks, %d failures so far\n", checks - before, failures);
}
