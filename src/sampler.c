/*
 * sampler.c — from one row of logits to one token id: bias, penalties, temperature, top-k, top-p, min-p, draw.
 * Owns its scratch (taken at creation) and its random generator; knows neither models nor sessions. Layer 4.
 *
 * The rules, in the order applied:
 *   logit bias      logit[id] += bias
 *   penalties       for ids seen: logit > 0 ? logit / repetition : logit * repetition, then
 *                   logit -= frequency * count + presence
 *   temperature 0   the id with the largest logit, the lowest id on ties; no random number is drawn
 *   temperature T   weight = exp((logit - largest) / T)
 *   top-k           the k largest logits stay, of equal ones the lower ids
 *   top-p           the fewest largest weights whose sum reaches p of the sum after top-k, the crossing one included
 *   min-p           weights below min_p times the largest go
 *   draw            one uniform number a call, whatever the filters
 *
 * Ids whose logit is -inf have no weight and are never chosen. NaN and +inf are refused.
 *
 * Random numbers come from xoshiro256** seeded through splitmix64 (both by Blackman and Vigna, public domain); a draw
 * uses the upper 53 bits. The exponential is computed here in plain float arithmetic, so that the same seed and logits
 * choose the same ids on every machine, whatever its C library.
 */
#include "sampler.h"

#include <float.h>
#include <math.h>
#include <string.h>

typedef struct candidate {
    float value; /* logit, later weight */
    int32_t id;
} candidate;

struct xlstm_sampler {
    xlstm_sampler_options options; /* .bias points at this sampler's own copy */
    uint32_t n;                    /* ids 0 .. n-1 may be chosen */
    bool penalties;
    uint64_t random[4];
    size_t bytes; /* of the arena below, for copies */
    char *arena;  /* one block that holds every array */

    float *logits;         /* [n] after bias and penalties */
    candidate *candidates; /* [n] */
    xlstm_logit_bias *bias; /* [options.n_bias] */

    /* only with penalties: how often each id was seen, and the distinct ids seen */
    uint32_t *count; /* [n] */
    uint32_t *place; /* [n] index in seen while count > 0 */
    int32_t *seen;   /* [n] */
    uint32_t n_seen;
    int32_t *window; /* ring [options.penalty_window] of the last ids */
    uint32_t window_used, window_next;
};

/* ---- random numbers --------------------------------------------------------------------------------------------- */

static uint64_t rotate_left(uint64_t x, unsigned k)
{
    return (x << k) | (x >> (64 - k));
}

static void random_seed(uint64_t state[4], uint64_t seed)
{
    for (int i = 0; i < 4; i++) {
        seed += 0x9e3779b97f4a7c15u;
        uint64_t z = seed;
        z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
        z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
        state[i] = z ^ (z >> 31);
    }
}

/* Uniform in [0, 1), a multiple of 2^-53. */
static double random_uniform(uint64_t s[4])
{
    uint64_t result = rotate_left(s[1] * 5, 7) * 9;
    uint64_t t = s[1] << 17;
    s[2] ^= s[0];
    s[3] ^= s[1];
    s[1] ^= s[2];
    s[0] ^= s[3];
    s[2] ^= t;
    s[3] = rotate_left(s[3], 45);
    return (double)(result >> 11) * 0x1p-53;
}

/* ---- creation --------------------------------------------------------------------------------------------------- */

static int check_options(const xlstm_sampler_options *o, uint32_t n, xlstm_error *err)
{
    if (n == 0 || n > INT32_MAX)
        return xl_fail(err, XLSTM_E_ARGUMENT, "sampler: %u tokens to choose from, expected 1 to %d", n, INT32_MAX);
    if (!(o->temperature >= 0.0f) || isinf(o->temperature))
        return xl_fail(err, XLSTM_E_ARGUMENT, "temperature is %g, expected 0 (greedy) or more", (double)o->temperature);
    if (!(o->top_p >= 0.0f && o->top_p <= 1.0f))
        return xl_fail(err, XLSTM_E_ARGUMENT, "top_p is %g, expected 0 to 1", (double)o->top_p);
    if (!(o->min_p >= 0.0f && o->min_p <= 1.0f))
        return xl_fail(err, XLSTM_E_ARGUMENT, "min_p is %g, expected 0 to 1", (double)o->min_p);
    if (!(o->repetition_penalty >= 0.0f) || isinf(o->repetition_penalty))
        return xl_fail(err, XLSTM_E_ARGUMENT, "repetition_penalty is %g, expected more than 0 (1 is off)",
                       (double)o->repetition_penalty);
    if (!isfinite(o->frequency_penalty) || !isfinite(o->presence_penalty))
        return xl_fail(err, XLSTM_E_ARGUMENT, "frequency_penalty and presence_penalty must be finite numbers");
    for (size_t i = 0; i < o->n_bias; i++) {
        if (o->bias[i].id < 0 || (uint32_t)o->bias[i].id >= n)
            return xl_fail(err, XLSTM_E_ARGUMENT, "logit bias for id %d, expected 0 to %u", o->bias[i].id, n - 1);
        if (isnan(o->bias[i].bias) || o->bias[i].bias == INFINITY)
            return xl_fail(err, XLSTM_E_ARGUMENT, "logit bias of id %d is %g, expected a finite number or -inf",
                           o->bias[i].id, (double)o->bias[i].bias);
    }
    return XLSTM_OK;
}

/* Lays the arrays out in the arena; with a NULL arena only counts. False if the size overflows. */
static bool lay_out(xlstm_sampler *s, size_t *bytes)
{
    size_t at = 0;
    bool fits = true;
    struct {
        void **array;
        size_t n, size;
    } const parts[] = {
        {(void **)&s->logits, s->n, sizeof *s->logits},
        {(void **)&s->candidates, s->n, sizeof *s->candidates},
        {(void **)&s->bias, s->options.n_bias, sizeof *s->bias},
        {(void **)&s->count, s->penalties ? s->n : 0, sizeof *s->count},
        {(void **)&s->place, s->penalties ? s->n : 0, sizeof *s->place},
        {(void **)&s->seen, s->penalties ? s->n : 0, sizeof *s->seen},
        {(void **)&s->window, s->penalties ? s->options.penalty_window : 0, sizeof *s->window},
    };
    for (size_t i = 0; i < XL_COUNT(parts); i++) {
        size_t size = 0;
        fits = fits && xl_mul(&size, parts[i].n, parts[i].size) && xl_add(&size, size, XL_ALIGN - 1);
        if (!fits)
            return false;
        if (s->arena)
            *parts[i].array = s->arena + at;
        fits = xl_add(&at, at, size / XL_ALIGN * XL_ALIGN);
    }
    *bytes = at;
    return fits;
}

int xlstm_sampler_new(xlstm_sampler **out, uint32_t n_tokens, const xlstm_sampler_options *options, xlstm_error *err)
{
    *out = NULL;
    xlstm_sampler_options none = {0};
    if (!options)
        options = &none;
    int code = check_options(options, n_tokens, err);
    if (code)
        return code;
    xlstm_sampler *s = xl_calloc(1, sizeof *s, err);
    if (!s)
        return XLSTM_E_MEMORY;
    s->options = *options;
    s->n = n_tokens;
    if (s->options.repetition_penalty == 0.0f)
        s->options.repetition_penalty = 1.0f;
    if (s->options.top_k == 0 || s->options.top_k > n_tokens)
        s->options.top_k = n_tokens;
    s->penalties = s->options.repetition_penalty != 1.0f || s->options.frequency_penalty != 0.0f ||
                   s->options.presence_penalty != 0.0f;
    random_seed(s->random, options->seed);

    if (!lay_out(s, &s->bytes)) {
        xlstm_sampler_free(s);
        return xl_fail(err, XLSTM_E_ARGUMENT, "sampler: a penalty window of %u ids is too long",
                       options->penalty_window);
    }
    s->arena = xl_calloc(1, s->bytes, err);
    if (!s->arena) {
        xlstm_sampler_free(s);
        return XLSTM_E_MEMORY;
    }
    lay_out(s, &s->bytes);
    if (options->n_bias)
        memcpy(s->bias, options->bias, options->n_bias * sizeof *s->bias);
    s->options.bias = s->bias;
    *out = s;
    return XLSTM_OK;
}

int xlstm_sampler_copy(xlstm_sampler **out, const xlstm_sampler *sampler, xlstm_error *err)
{
    *out = NULL;
    xlstm_sampler *s = xl_alloc(sizeof *s, err);
    if (!s)
        return XLSTM_E_MEMORY;
    *s = *sampler;
    s->arena = xl_alloc(s->bytes, err);
    if (!s->arena) {
        xlstm_sampler_free(s);
        return XLSTM_E_MEMORY;
    }
    lay_out(s, &s->bytes);
    memcpy(s->arena, sampler->arena, s->bytes);
    s->options.bias = s->bias;
    *out = s;
    return XLSTM_OK;
}

void xlstm_sampler_free(xlstm_sampler *sampler)
{
    if (!sampler)
        return;
    xl_release(sampler->arena);
    xl_release(sampler);
}

/* ---- for choices made elsewhere --------------------------------------------------------------------------------- */

uint32_t xl_sampler_size(const xlstm_sampler *s)
{
    return s->n;
}

const xlstm_sampler_options *xl_sampler_plain(const xlstm_sampler *s)
{
    return s->penalties || s->options.n_bias > 0 ? NULL : &s->options;
}

double xl_sampler_draw(xlstm_sampler *s)
{
    return s->options.temperature > 0.0f ? random_uniform(s->random) : 0.0;
}

/* ---- penalties -------------------------------------------------------------------------------------------------- */

static void forget(xlstm_sampler *s, int32_t id)
{
    if (--s->count[id] > 0)
        return;
    int32_t last = s->seen[--s->n_seen];
    s->seen[s->place[id]] = last;
    s->place[last] = s->place[id];
}

void xlstm_sampler_accept(xlstm_sampler *s, int32_t id)
{
    if (!s->penalties || id < 0 || (uint32_t)id >= s->n)
        return;
    uint32_t length = s->options.penalty_window;
    if (length > 0) {
        if (s->window_used == length)
            forget(s, s->window[s->window_next]);
        else
            s->window_used++;
        s->window[s->window_next] = id;
        s->window_next = s->window_next + 1 == length ? 0 : s->window_next + 1;
    }
    if (s->count[id] == 0) {
        s->place[id] = s->n_seen;
        s->seen[s->n_seen++] = id;
    }
    if (s->count[id] < UINT32_MAX)
        s->count[id]++;
}

/* Finite results stay finite: only -inf may mean "forbidden". */
static float keep_finite(float x)
{
    return x > FLT_MAX ? FLT_MAX : x < -FLT_MAX ? -FLT_MAX : x;
}

static void adjust_logits(xlstm_sampler *s)
{
    const xlstm_sampler_options *o = &s->options;
    for (size_t i = 0; i < o->n_bias; i++) {
        float *logit = &s->logits[o->bias[i].id];
        if (o->bias[i].bias == -INFINITY)
            *logit = -INFINITY;
        else if (*logit != -INFINITY)
            *logit = keep_finite(*logit + o->bias[i].bias);
    }
    for (uint32_t i = 0; i < s->n_seen; i++) {
        int32_t id = s->seen[i];
        float x = s->logits[id];
        if (x == -INFINITY)
            continue;
        x = x > 0.0f ? x / o->repetition_penalty : x * o->repetition_penalty;
        x = keep_finite(x) - (o->frequency_penalty * (float)s->count[id] + o->presence_penalty);
        s->logits[id] = keep_finite(x);
    }
}

/* ---- choosing --------------------------------------------------------------------------------------------------- */

/* True if a ranks before b: larger value first, lower id among equals. A total order, so every selection is unique. */
static bool before(candidate a, candidate b)
{
    return a.value != b.value ? a.value > b.value : a.id < b.id;
}

/* Restores the heap below `at`; its root ranks last. */
static void sift_down(candidate *heap, size_t n, size_t at)
{
    candidate moving = heap[at];
    for (;;) {
        size_t child = 2 * at + 1;
        if (child >= n)
            break;
        if (child + 1 < n && before(heap[child], heap[child + 1]))
            child++;
        if (before(heap[child], moving))
            break;
        heap[at] = heap[child];
        at = child;
    }
    heap[at] = moving;
}

static inline uint32_t float_bits(float x)
{
    union {
        float value;
        uint32_t bits;
    } u = {.value = x};
    return u.bits;
}

static inline float bits_float(uint32_t bits)
{
    union {
        uint32_t bits;
        float value;
    } u = {.bits = bits};
    return u.value;
}

/*
 * e^x for x <= 0 (-inf too), relative error below 3e-7, 0 below -87: 2^k times a polynomial on [-ln2/2, ln2/2]. The
 * comparisons are on bits, because compilers do not vectorise a choice between floats while traps are to be respected.
 */
static inline float exp_negative(float x)
{
    const uint32_t limit = 0x42ae0000u; /* 87 */
    uint32_t magnitude = float_bits(x) & 0x7fffffffu;
    float y = -bits_float(magnitude < limit ? magnitude : limit);
    int32_t k = (int32_t)(y * 1.44269504f - 0.5f);
    float r = (y - (float)k * 0.693359375f) + (float)k * 2.12194440e-4f; /* y - k ln 2 in two steps */
    float p = 1.0f / 720.0f;
    p = p * r + 1.0f / 120.0f;
    p = p * r + 1.0f / 24.0f;
    p = p * r + 1.0f / 6.0f;
    p = p * r + 0.5f;
    p = p * r * r + r + 1.0f;
    uint32_t power = (uint32_t)(k + 127) << 23;
    return p * bits_float(magnitude > limit ? 0 : power);
}

/* Copies the logits, applies bias and penalties, finds the largest. Refuses NaN and +inf. */
static int prepare(float *largest, xlstm_sampler *s, const float *logits, xlstm_error *err)
{
    uint32_t bad = 0;
    for (uint32_t i = 0; i < s->n; i++)
        bad |= (logits[i] != logits[i]) | (logits[i] == INFINITY);
    if (bad) {
        uint32_t i = 0;
        while (!isnan(logits[i]) && logits[i] != INFINITY)
            i++;
        return xl_fail(err, XLSTM_E_NONFINITE, "the logit of token %u is %s", i, isnan(logits[i]) ? "NaN" : "+Inf");
    }
    memcpy(s->logits, logits, s->n * sizeof *logits);
    adjust_logits(s);
    float lane[16], best = -INFINITY; /* sixteen running maxima keep the loop free of one long dependency */
    for (int j = 0; j < 16; j++)
        lane[j] = -INFINITY;
    for (uint32_t i = 0; i + 16 <= s->n; i += 16)
        for (int j = 0; j < 16; j++)
            lane[j] = s->logits[i + (uint32_t)j] > lane[j] ? s->logits[i + (uint32_t)j] : lane[j];
    for (int j = 0; j < 16; j++)
        best = lane[j] > best ? lane[j] : best;
    for (uint32_t i = s->n / 16 * 16; i < s->n; i++)
        best = s->logits[i] > best ? s->logits[i] : best;
    if (best == -INFINITY)
        return xl_fail(err, XLSTM_E_ARGUMENT, "no token is left to choose: every logit is -Inf");
    *largest = best;
    return XLSTM_OK;
}

/* Fills candidates with the k largest logits, in id order. */
static void take_top_k(xlstm_sampler *s, size_t k)
{
    candidate *c = s->candidates;
    for (size_t i = 0; i < k; i++)
        c[i] = (candidate){s->logits[i], (int32_t)i};
    for (size_t i = k / 2; i-- > 0;)
        sift_down(c, k, i);
    for (size_t i = k; i < s->n; i++) {
        if (s->logits[i] > c[0].value) { /* an equal one has the higher id: it stays out */
            c[0] = (candidate){s->logits[i], (int32_t)i};
            sift_down(c, k, 0);
        }
    }
    candidate last = c[0];
    size_t n = 0;
    for (size_t i = 0; n < k; i++) {
        candidate next = {s->logits[i], (int32_t)i};
        if (next.value > last.value || (next.value == last.value && next.id <= last.id))
            c[n++] = next;
    }
}

/*
 * Keeps the fewest heaviest candidates whose weights reach `need`, in the order they had; returns how many. Weights are
 * not negative, so their bits sort as they do: the weight at the crossing is found 11, 11 and 10 bits at a time with
 * sums a bucket, in linear time whatever the weights. Of those equal to it the first ones stay: with candidates in id
 * order, the lower ids.
 */
static size_t take_top_p(candidate *c, size_t n, double need)
{
    static const unsigned widths[] = {11, 11, 10};
    double sums[1 << 11];
    double above = 0.0; /* sum of what is heavier than the range under search */
    uint32_t prefix = 0; /* leading bits of the weight at the crossing */
    unsigned shift = 32;
    for (size_t level = 0; level < XL_COUNT(widths); level++) {
        unsigned known = shift;
        shift -= widths[level];
        uint32_t mask = (1u << widths[level]) - 1, lightest = mask;
        memset(sums, 0, sizeof sums);
        for (size_t i = 0; i < n; i++) {
            uint32_t bits = float_bits(c[i].value);
            if (level > 0 && bits >> known != prefix)
                continue;
            uint32_t bucket = bits >> shift & mask;
            sums[bucket] += (double)c[i].value;
            lightest = XL_MIN(lightest, bucket);
        }
        uint32_t bucket = mask;
        while (bucket > lightest && above + sums[bucket] < need)
            above += sums[bucket--];
        prefix = prefix << widths[level] | bucket;
    }
    size_t kept = 0;
    for (size_t i = 0; i < n; i++) {
        uint32_t bits = float_bits(c[i].value);
        if (bits < prefix || (bits == prefix && above >= need))
            continue;
        if (bits == prefix)
            above += (double)c[i].value;
        c[kept++] = c[i];
    }
    return kept;
}

/* Turns the chosen logits into weights; returns how many candidates there are, in id order, and the weights' sum. */
static size_t weigh(double *total, xlstm_sampler *s, float largest)
{
    const xlstm_sampler_options *o = &s->options;
    candidate *c = s->candidates;
    size_t n = 0;
    double sum = 0.0;
    if (o->top_k < s->n) {
        take_top_k(s, o->top_k);
        for (n = 0; n < o->top_k; n++) {
            c[n].value = exp_negative((c[n].value - largest) / o->temperature);
            sum += (double)c[n].value;
        }
        *total = sum;
        return n;
    }
    float *weights = s->logits; /* in locals, so that the compiler sees that the stores change nothing else */
    const uint32_t all = s->n;
    const float temperature = o->temperature;
    for (uint32_t i = 0; i < all; i++)
        weights[i] = exp_negative((weights[i] - largest) / temperature);
    double part[4] = {0}; /* four sums run side by side */
    for (uint32_t i = 0; i < all; i++)
        part[i % 4] += (double)weights[i];
    sum = (part[0] + part[1]) + (part[2] + part[3]);
    /* What weighs less than (1 - p) / n of the sum is not in the nucleus: all such together weigh less than 1 - p. The
     * margin is for rounding in the sum. */
    float least = FLT_MIN;
    if (o->top_p > 0.0f && o->top_p < 1.0f)
        least = (float)(sum * (1.0 - (double)o->top_p) / (double)all * (1.0 - 1e-6));
    for (uint32_t i = 0; i < all; i++) {
        c[n] = (candidate){weights[i], (int32_t)i};
        n += weights[i] >= least;
    }
    *total = sum;
    return n;
}

int xlstm_sampler_choose(int32_t *id, xlstm_sampler *s, const float *logits, xlstm_error *err)
{
    const xlstm_sampler_options *o = &s->options;
    float largest = 0.0f;
    int code = prepare(&largest, s, logits, err);
    if (code)
        return code;
    if (o->temperature == 0.0f) {
        int32_t first = 0;
        while (s->logits[first] != largest)
            first++;
        *id = first;
        return XLSTM_OK;
    }

    candidate *c = s->candidates;
    double total = 0.0;
    size_t n = weigh(&total, s, largest);
    if (o->top_p > 0.0f && o->top_p < 1.0f)
        n = take_top_p(c, n, (double)o->top_p * total);
    if (o->min_p > 0.0f) { /* the largest weight is 1 */
        size_t rest = 0;
        for (size_t i = 0; i < n; i++)
            if (c[i].value >= o->min_p)
                c[rest++] = c[i];
        n = rest;
    }

    total = 0.0;
    for (size_t i = 0; i < n; i++)
        total += (double)c[i].value;
    double target = xl_sampler_draw(s) * total;
    double sum = 0.0;
    size_t chosen = 0;
    for (size_t i = 0; i < n && sum <= target; i++) {
        sum += (double)c[i].value;
        if (c[i].value > 0.0f) /* rounding may leave the target at the total: then the last with a weight */
            chosen = i;
    }
    *id = c[chosen].id;
    return XLSTM_OK;
}
