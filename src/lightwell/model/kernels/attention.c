/* Causal attention in float32 on a CPU, a head at a time, which stays in the processor's cache: scores of some queries
   are made, turned into weights and used up before the next ones, and made once more in the backward pass
   (FlashAttention, Dao et al. 2022). Next to nothing is computed of what no query may see.

   A head's numbers of a token lie together; how far apart tokens, heads and sequences are is told by strides.
   fused.py calls this file and says what it is the twin of. */

#include <omp.h>

#include "numbers.h"

/* Products are made in tiles of ROWS x PANEL sums, as many as the processor's registers hold. */
#ifdef __AVX512F__
enum { LANES = 16, ROWS = 8 };
#else
enum { LANES = 8, ROWS = 4 };
#endif
enum { PANEL = 2 * LANES, QUERIES = 64, APART = 16 };
typedef float Lanes __attribute__((vector_size(4 * LANES), aligned(4)));

typedef struct {
    float *at;
    long batch, head, token; /* strides, in numbers */
} Heads;

typedef struct {
    long B, H, T, D;
} Sizes;

static inline float *of_head(Heads x, Sizes s, long number) {
    return x.at + number / s.H * x.batch + number % s.H * x.head;
}

static inline long up_to(long multiple, long n) {
    return (n + multiple - 1) / multiple * multiple;
}

static inline long least(long a, long b) {
    return a < b ? a : b;
}

/* c = a b, or with `more` c += a b: a (ROWS, n) with steps of `down` and `along`, b (n, PANEL); c's rows are `width`
   apart. */
static inline void tile(
    const float *a, long down, long along, const float *b, long n, float *c, long width, int more) {
    Lanes sum[ROWS][2];
#pragma GCC unroll 8
    for (int i = 0; i < ROWS; i++) sum[i][0] = sum[i][1] = (Lanes){0};
    for (long k = 0; k < n; k++) {
        Lanes left = *(const Lanes *)(b + k * PANEL), right = *(const Lanes *)(b + k * PANEL + LANES);
#pragma GCC unroll 8
        for (int i = 0; i < ROWS; i++) {
            sum[i][0] += a[i * down + k * along] * left;
            sum[i][1] += a[i * down + k * along] * right;
        }
    }
#pragma GCC unroll 8
    for (int i = 0; i < ROWS; i++) {
        Lanes *to = (Lanes *)(c + i * width);
        to[0] = more ? to[0] + sum[i][0] : sum[i][0];
        to[1] = more ? to[1] + sum[i][1] : sum[i][1];
    }
}

/* x (rows, n) times `factor` without gaps, zeros from there to QUERIES rows. */
static void in_rows(const float *x, long stride, long rows, long n, float factor, float *to) {
    for (long t = 0; t < rows; t++)
        for (long i = 0; i < n; i++) to[t * n + i] = factor * x[t * stride + i];
    memset(to + rows * n, 0, (QUERIES - rows) * n * sizeof(float));
}

/* x (rows, n) times `factor` in panels: the first PANEL numbers of all rows, the next ones, with zeros after rows and
   numbers to `height` rows and whole panels. */
static void in_panels(const float *x, long stride, long rows, long n, float factor, float *to, long height) {
    for (long first = 0; first < n; first += PANEL, to += height * PANEL) {
        long some = least(PANEL, n - first);
        if (some < PANEL || rows < height) memset(to, 0, height * PANEL * sizeof(float));
        for (long t = 0; t < rows; t++)
            for (long i = 0; i < some; i++) to[t * PANEL + i] = factor * x[t * stride + first + i];
    }
}

/* The transpose of x (rows, n) in panels (n, PANEL) of so many rows each, zeros after them. */
static void in_panels_across(const float *x, long stride, long rows, long n, float *to) {
    for (long first = 0; first < rows; first += PANEL, to += n * PANEL) {
        long some = least(PANEL, rows - first);
        if (some < PANEL) memset(to, 0, n * PANEL * sizeof(float));
        for (long i = 0; i < n; i++)
            for (long t = 0; t < some; t++) to[i * PANEL + t] = x[(first + t) * stride + i];
    }
}

/* For some queries from the `first` on, (rows, D), products with all that they may see: `seen` holds the keys, or the
   values, across. out (QUERIES, wide). */
static inline void scores_of(
    const float *queries, const float *seen, long first, long rows, long D, float *out, long wide) {
    for (long j = 0; j < first + rows; j += PANEL)
        for (long t = j < first ? 0 : j - first; t < rows; t += ROWS) /* earlier queries do not see it */
            tile(queries + t * D, D, 1, seen + j * D, D, out + t * wide + j, wide, 0);
}

/* out (QUERIES, n) = weights (rows, what they may see) x, where x is in panels of T rows. */
static inline void weighted(
    const float *weights, const float *x, long first, long rows, long T, long n, float *out, long wide) {
    for (long i = 0; i < n; i += PANEL, x += T * PANEL)
        for (long t = 0; t < rows; t += ROWS)
            tile(weights + t * wide, wide, 1, x, first + t + ROWS, out + t * n + i, n, 0);
}

/* to (T, n) += transpose of weights, times x (rows, n) in panels of QUERIES rows: what these queries leave to all that
   they may see. */
static inline void left_behind(
    const float *weights, const float *x, long first, long rows, long n, float *to, long wide) {
    for (long j = 0; j < first + rows; j += ROWS) {
        long from = j < first ? 0 : j - first;
        for (long i = 0; i < n; i += PANEL)
            tile(weights + from * wide + j, 1, wide, x + i * QUERIES + from * PANEL, rows - from, to + j * n + i, n, 1);
    }
}

/* Numbers that each thread needs to work with. */
long attention_room(long T, long D) {
    long tall = up_to(QUERIES, T), full = up_to(PANEL, D);
    return 2 * tall * D + 3 * tall * full + QUERIES * (2 * (tall + APART) + 2 * D + 3 * full);
}

/* y = softmax(scale q k^T) v, each query with itself and what comes before. logsum (B, H, T): the logarithm of the sum
   that softmax divides by. room (threads, attention_room). */
void attention(
    Heads q, Heads k, Heads v, Heads y, float *logsum, float scale, Sizes s, float *room, int threads) {
    long T = s.T, D = s.D, tall = up_to(QUERIES, T), full = up_to(PANEL, D), wide = tall + APART;
    long each = attention_room(T, D);
#pragma omp parallel for num_threads(threads) schedule(dynamic)
    for (long head = 0; head < s.B * s.H; head++) {
        float *keys = room + omp_get_thread_num() * each, *values = keys + tall * D, *weights = values + tall * full;
        float *queries = weights + QUERIES * wide, *out = queries + QUERIES * D;
        in_panels_across(of_head(k, s, head), k.token, T, D, keys);
        in_panels(of_head(v, s, head), v.token, T, D, 1, values, tall);
        for (long first = 0; first < T; first += QUERIES) {
            long n = least(QUERIES, T - first), rows = up_to(ROWS, n);
            float shares[QUERIES];
            in_rows(of_head(q, s, head) + first * q.token, q.token, n, D, scale, queries);
            scores_of(queries, keys, first, rows, D, weights, wide);
            for (long t = 0; t < rows; t++) {
                long sees = first + t + 1, all = up_to(PANEL, sees);
                float *row = weights + t * wide, highest = -INFINITY, sum = 0;
                for (long j = sees; j < all; j++) row[j] = -INFINITY;
#pragma omp simd reduction(max : highest)
                for (long j = 0; j < all; j++) highest = row[j] > highest ? row[j] : highest;
#pragma omp simd reduction(+ : sum)
                for (long j = 0; j < all; j++) sum += row[j] = exponential(row[j] - highest);
                for (long j = sees; j < all; j++) row[j] = 0;
                shares[t] = 1 / sum;
                if (t < n) logsum[head * T + first + t] = highest + logf(sum);
            }
            weighted(weights, values, first, rows, tall, full, out, wide);
            for (long t = 0; t < n; t++) {
                float *to = of_head(y, s, head) + (first + t) * y.token;
                for (long i = 0; i < D; i++) to[i] = shares[t] * out[t * full + i];
            }
        }
    }
}

/* With the weights P, dP = g v^T and dS = P (dP - sum of g y):  d_v = P^T g,  d_q = scale dS k,  d_k = scale dS^T q. */
void attention_backward(
    Heads g, Heads q, Heads k, Heads v, Heads y, const float *logsum, float scale, Sizes s, Heads d_q, Heads d_k,
    Heads d_v, float *room, int threads) {
    long T = s.T, D = s.D, tall = up_to(QUERIES, T), full = up_to(PANEL, D), wide = tall + APART;
    long each = attention_room(T, D);
#pragma omp parallel for num_threads(threads) schedule(dynamic)
    for (long head = 0; head < s.B * s.H; head++) {
        float *across_k = room + omp_get_thread_num() * each, *across_v = across_k + tall * D;
        float *keys = across_v + tall * D, *sum_k = keys + tall * full, *sum_v = sum_k + tall * full;
        float *weights = sum_v + tall * full, *slopes = weights + QUERIES * wide;
        float *queries = slopes + QUERIES * wide, *above = queries + QUERIES * D;
        float *queries_b = above + QUERIES * D, *above_b = queries_b + QUERIES * full, *out = above_b + QUERIES * full;
        in_panels_across(of_head(k, s, head), k.token, T, D, across_k);
        in_panels_across(of_head(v, s, head), v.token, T, D, across_v);
        in_panels(of_head(k, s, head), k.token, T, D, scale, keys, tall);
        memset(sum_k, 0, tall * full * sizeof(float));
        memset(sum_v, 0, tall * full * sizeof(float));
        for (long first = 0; first < T; first += QUERIES) {
            long n = least(QUERIES, T - first), rows = up_to(ROWS, n);
            const float *q_here = of_head(q, s, head) + first * q.token;
            const float *g_here = of_head(g, s, head) + first * g.token;
            in_rows(q_here, q.token, n, D, scale, queries);
            in_panels(q_here, q.token, n, D, scale, queries_b, QUERIES);
            in_rows(g_here, g.token, n, D, 1, above);
            in_panels(g_here, g.token, n, D, 1, above_b, QUERIES);
            scores_of(queries, across_k, first, rows, D, weights, wide);
            scores_of(above, across_v, first, rows, D, slopes, wide);
            for (long t = 0; t < rows; t++) {
                long sees = first + t + 1, all = up_to(PANEL, sees);
                float *p = weights + t * wide, *d = slopes + t * wide;
                float down = t < n ? logsum[head * T + first + t] : INFINITY;
                float along = t < n ? dot(above + t * D, of_head(y, s, head) + (first + t) * y.token, D) : 0;
                for (long j = 0; j < all; j++) {
                    p[j] = exponential(p[j] - down);
                    d[j] = p[j] * (d[j] - along);
                }
                for (long j = sees; j < all; j++) p[j] = d[j] = 0;
            }
            left_behind(weights, above_b, first, rows, full, sum_v, wide);
            left_behind(slopes, queries_b, first, rows, full, sum_k, wide);
            weighted(slopes, keys, first, rows, tall, full, out, wide);
            for (long t = 0; t < n; t++)
                memcpy(of_head(d_q, s, head) + (first + t) * d_q.token, out + t * full, D * sizeof(float));
        }
        for (long t = 0; t < T; t++) {
            memcpy(of_head(d_k, s, head) + t * d_k.token, sum_k + t * full, D * sizeof(float));
            memcpy(of_head(d_v, s, head) + t * d_v.token, sum_v + t * full, D * sizeof(float));
        }
    }
}
