/*
 * test_sampling.cuh — choices made on the device against those of the sampler, id for id. Included once, by test_cuda.cu.
 */

/* A row of logits of some kind; from the first n of kinds 15 to 17 no id can be chosen. */
static void make_logits(std::vector<float> &row, uint32_t n, uint32_t kind)
{
    double spread = kind % 4 == 0 ? 0.01 : kind % 4 == 1 ? 1 : kind % 4 == 2 ? 3 : 12;
    for (size_t i = 0; i < row.size(); i++) {
        double x = normal() * spread;
        switch (kind) {
        case 4:
            x = floor(x * 2);
            break; /* many ties */
        case 5:
            x = 7.25;
            break; /* nothing but ties */
        case 6:
            x = i % 97 == 13 ? 20 : 0;
            break; /* a few large ones */
        case 7:
            x = uniform() < 0.97 ? -INFINITY : x;
            break; /* most forbidden */
        case 8:
            x = uniform() < 0.5 ? 0.0 : -0.0;
            break; /* the same number twice */
        case 9:
            x *= 1e38;
            break; /* differences overflow */
        case 10:
            x = (double)i * 1e-3;
            break; /* in order */
        case 11:
            x = -(double)i * 1e-3;
            break;
        case 12:
            x = 1 + floor(x * 4) * 0x1p-23;
            break; /* neighbours */
        case 13:
            x = i == row.size() / 3 ? 50 : -50;
            break; /* one alone */
        case 14:
            x *= 1e-39;
            break; /* subnormal */
        }
        row[i] = (float)x;
    }
    if (kind == 7) row[n / 2] = 1;
    if (kind == 15) row[n - 1] = NAN;
    if (kind == 16) row[n / 3] = INFINITY;
    if (kind == 17) std::fill(row.begin(), row.end(), -INFINITY);
    if (kind == 18 && n < row.size()) row[n] = NAN; /* nobody asks for it */
}

static xlstm_sampler_options random_rules(uint32_t n)
{
    const float temperatures[] = {0, 1e-6f, 0.1f, 0.7f, 1, 1, 1, 5, 1e6f},
                ps[] = {0, 0, 1e-8f, 0.1f, 0.5f, 0.9f, 0.999f, 0.9999999f}, mins[] = {0, 0, 0, 0.01f, 0.5f, 1};
    const uint32_t ks[] = {0, 0, 1, 2, 5, 40, 500, 1024, 1500, n > 1 ? n - 1 : 1};
    xlstm_sampler_options o = {};
    o.temperature = temperatures[(size_t)(uniform() * XL_COUNT(temperatures))];
    o.top_k = ks[(size_t)(uniform() * XL_COUNT(ks))];
    o.top_p = ps[(size_t)(uniform() * XL_COUNT(ps))];
    o.min_p = mins[(size_t)(uniform() * XL_COUNT(mins))];
    o.seed = (uint64_t)(uniform() * 1e15);
    return o;
}

/* Choices of the device against those of the sampler, from the same logits and random numbers. */
static void test_sample()
{
    int before = checks;
    for (uint32_t V : {1u, 2u, 31u, 33u, 100u, 1000u, 1023u, 1025u, 2049u, 4096u, 50257u, 50304u}) {
        if ((quick && V == 50257) || (race && V > 5000)) continue;
        const uint32_t rows = V > 5000 ? 150 : 70;
        xl_backend_options o = options_for(XLSTM_BF16);
        o.vocab_size = V;
        twins t(o);
        xl_store *store;
        MUST(t.c->ops->store_new(t.c, &store, &err));
        xl_buffer *logits;
        MUST(t.c->ops->buffer_new(t.c, &logits, rows, V, &err));
        logits->dtype = XLSTM_F32;
        for (int round = 0; round < (race ? 1 : quick ? 2 : 6); round++) {
            std::vector<float> values((size_t)rows * V), row(V);
            std::vector<xl_sample> samples;
            std::vector<int32_t> want, chosen;
            std::vector<std::string> details;
            std::vector<uint32_t> out;
            for (uint32_t r = 0; r < rows; r++) {
                uint32_t n = r % 5 == 4 ? V - V / 10 : V, kind = (r + (uint32_t)round) % 19;
                make_logits(row, n, kind);
                std::copy(row.begin(), row.end(), values.begin() + (size_t)r * V);
                out.push_back(r);
                if (r % 7 == 6) continue; /* nothing wanted */
                xlstm_sampler_options rules = random_rules(n);
                xlstm_sampler *host, *device;
                MUST(xlstm_sampler_new(&host, n, &rules, &err));
                MUST(xlstm_sampler_copy(&device, host, &err));
                const xlstm_sampler_options *plain = xl_sampler_plain(device);
                int32_t id = -1;
                if (xlstm_sampler_choose(&id, host, row.data(), &err) != XLSTM_OK) id = -1;
                want.push_back(id);
                samples.push_back(
                    {r, n, plain->top_k, plain->temperature, plain->top_p, plain->min_p, xl_sampler_draw(device)});
                char text[160];
                snprintf(text, sizeof(text), "V %u n %u kind %u T %g k %u p %.9g min %g u %.17g", V, n, kind,
                         rules.temperature, rules.top_k, rules.top_p, rules.min_p, samples.back().uniform);
                details.push_back(text);
                xlstm_sampler_free(host);
                xlstm_sampler_free(device);
            }
            cudaDeviceSynchronize();
            cudaMemcpy(logits->data, values.data(), values.size() * sizeof(float), cudaMemcpyHostToDevice);
            cudaDeviceSynchronize();
            chosen.assign(samples.size(), -7);
            plain_batch batch(rows, store, out, V);
            batch.b.samples = samples.data();
            batch.b.n_samples = (uint32_t)samples.size();
            batch.b.chosen = chosen.data();
            bool replay;
            MUST(t.c->ops->begin(t.c, &batch.b, &replay, &err));
            t.c->ops->sample(t.c, logits, V);
            MUST(t.c->ops->submit(t.c, t.fc.data(), &err));
            for (size_t i = 0; i < samples.size(); i++) {
                check("sample", details[i] + " chose " + std::to_string(chosen[i]) + " of " + std::to_string(want[i]),
                      chosen[i] != want[i], 0);
            }
            std::vector<float> after(values.size());
            MUST(t.c->ops->buffer_read(t.c, logits, 0, after.data(), after.size(), &err));
            check("sample", "logits untouched", memcmp(after.data(), values.data(), after.size() * sizeof(float)), 0);
        }
        t.c->ops->buffer_free(t.c, logits);
        t.c->ops->store_free(t.c, store);
    }
    printf("sample: %d checks, %d failures so far\n", checks - before, failures);
}
