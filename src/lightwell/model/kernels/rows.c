/* Whole rows at a time, on a CPU: what PyTorch would do in several passes over memory, done in one.

   Every array lies row by row without gaps, in float32, or in bfloat16 where its `half` is not 0; all is computed in
   float32. Rows are shared among the threads of PyTorch's own pool. Sums over rows (the gradients of gains) are made in
   PARTS that do not depend on how many threads there are, and added up by the caller: equal bits on any number of them.

   fused.py calls this file and says what each function is the twin of. */

#include "numbers.h"

typedef struct {
    void *at;
    int half;
} Numbers;

static inline void load(float *restrict row, Numbers from, long begin, long n) {
    if (from.half) {
        const uint16_t *restrict p = (const uint16_t *)from.at + begin;
        for (long i = 0; i < n; i++) row[i] = widened(p[i]);
    } else {
        memcpy(row, (const float *)from.at + begin, n * sizeof(float));
    }
}

static inline void store(Numbers to, long begin, const float *restrict row, long n) {
    if (to.half) {
        uint16_t *restrict p = (uint16_t *)to.at + begin;
        for (long i = 0; i < n; i++) p[i] = narrowed(row[i]);
    } else {
        memcpy((float *)to.at + begin, row, n * sizeof(float));
    }
}

enum { PARTS = 16, IGNORE = -100 };

/* n or a little more, so that no single numbers are left after those that the processor takes together. */
static inline long up_to_lanes(long n, long most) {
    long full = (n + 15) / 16 * 16;
    return full < most ? full : most;
}

/* y = x r w with r = 1 / sqrt(mean(x^2) + eps). x, y (rows, n), w (n), r (rows). */
void rms_norm(Numbers x, const float *w, float eps, Numbers y, float *r, long rows, long n, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (long t = 0; t < rows; t++) {
        float row[n];
        load(row, x, t * n, n);
        r[t] = 1.0f / sqrtf(dot(row, row, n) / n + eps);
        float scale = r[t];
#pragma omp simd
        for (long i = 0; i < n; i++) row[i] = row[i] * scale * w[i];
        store(y, t * n, row, n);
    }
}

/* With u = x r and h = g w:  dx = r (h - u mean(h u)),  dw = sum over rows of g u, in PARTS. Works on one row. */
static inline void rms_norm_row_backward(
    float *restrict g, const float *restrict x, float r, const float *restrict w, float *restrict d_w, long n) {
    float along = 0;
#pragma omp simd reduction(+ : along)
    for (long i = 0; i < n; i++) {
        float gu = g[i] * x[i] * r;
        d_w[i] += gu;
        along += gu * w[i];
    }
    along /= n;
#pragma omp simd
    for (long i = 0; i < n; i++) g[i] = r * (g[i] * w[i] - x[i] * r * along);
}

void rms_norm_backward(
    Numbers g, Numbers x, const float *r, const float *w, Numbers d_x, float *d_w, long rows, long n, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (long part = 0; part < PARTS; part++) {
        float d_rows[n], row[n];
        for (long t = rows * part / PARTS; t < rows * (part + 1) / PARTS; t++) {
            load(d_rows, g, t * n, n);
            load(row, x, t * n, n);
            rms_norm_row_backward(d_rows, row, r[t], w, d_w + part * n, n);
            store(d_x, t * n, d_rows, n);
        }
    }
}

/* The heads of queries (H) and keys (G), of D numbers each, normalised (gains w_q, w_k) and turned by their position's
   angles; those of values (G) as they are. B sequences of T tokens.
   qkv (B, T, (H + G + G) D); cos, sin (T, D / 2); q (B, H, T, D); k, v (B, G, T, D); r (B, T, H + G). */
void heads(
    Numbers qkv, const float *w_q, const float *w_k, const float *cos, const float *sin, float eps, Numbers q, Numbers k,
    Numbers v, float *r, long B, long T, long H, long G, long D, int threads) {
    long half = D / 2, width = (H + G + G) * D;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (long token = 0; token < B * T; token++) {
        long b = token / T, t = token % T;
        const float *c = cos + t * half, *s = sin + t * half;
        float row[width], turned[D];
        load(row, qkv, token * width, width);
        for (long head = 0; head < H + G; head++) {
            const float *x = row + head * D, *w = head < H ? w_q : w_k;
            float scale = r[token * (H + G) + head] = 1.0f / sqrtf(dot(x, x, D) / D + eps);
#pragma omp simd
            for (long i = 0; i < half; i++) {
                float a = x[i] * scale * w[i], b = x[i + half] * scale * w[i + half];
                turned[i] = a * c[i] - b * s[i];
                turned[i + half] = b * c[i] + a * s[i];
            }
            if (head < H)
                store(q, ((b * H + head) * T + t) * D, turned, D);
            else
                store(k, ((b * G + head - H) * T + t) * D, turned, D);
        }
        for (long head = 0; head < G; head++) store(v, ((b * G + head) * T + t) * D, row + (H + G + head) * D, D);
    }
}

/* Turned back, then as in rms_norm_backward. d_w_q, d_w_k (PARTS, D). */
void heads_backward(
    Numbers g_q, Numbers g_k, Numbers g_v, Numbers qkv, const float *r, const float *w_q, const float *w_k,
    const float *cos, const float *sin, Numbers d_qkv, float *d_w_q, float *d_w_k, long B, long T, long H, long G, long D,
    int threads) {
    long half = D / 2, width = (H + G + G) * D;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (long part = 0; part < PARTS; part++) {
        float row[width], d_row[width];
        for (long token = B * T * part / PARTS; token < B * T * (part + 1) / PARTS; token++) {
            long b = token / T, t = token % T;
            const float *c = cos + t * half, *s = sin + t * half;
            load(row, qkv, token * width, width);
            for (long head = 0; head < H; head++) load(d_row + head * D, g_q, ((b * H + head) * T + t) * D, D);
            for (long head = 0; head < G; head++) {
                load(d_row + (H + head) * D, g_k, ((b * G + head) * T + t) * D, D);
                load(d_row + (H + G + head) * D, g_v, ((b * G + head) * T + t) * D, D);
            }
            for (long head = 0; head < H + G; head++) {
                float *g = d_row + head * D, *d_w = (head < H ? d_w_q : d_w_k) + part * D;
#pragma omp simd
                for (long i = 0; i < half; i++) {
                    float a = g[i], b = g[i + half];
                    g[i] = a * c[i] + b * s[i];
                    g[i + half] = b * c[i] - a * s[i];
                }
                rms_norm_row_backward(g, row + head * D, r[token * (H + G) + head], head < H ? w_q : w_k, d_w, D);
            }
            store(d_qkv, token * width, d_row, width);
        }
    }
}

/* Scores of causal attention to its weights, in their place: of R queries, the last of T tokens, softmax of `scale` times
   what query r may see, its first T - R + r + 1 numbers, zeros after them. scores (matrices, R, T). */
void causal_softmax(Numbers scores, float scale, long matrices, long R, long T, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (long t = 0; t < matrices * R; t++) {
        long n = T - R + t % R + 1, full = up_to_lanes(n, T);
        float row[T], highest = -INFINITY, sum = 0;
        load(row, scores, t * T, n);
        for (long i = n; i < full; i++) row[i] = -INFINITY;
#pragma omp simd reduction(max : highest)
        for (long i = 0; i < full; i++) highest = row[i] > highest ? row[i] : highest;
#pragma omp simd reduction(+ : sum)
        for (long i = 0; i < full; i++) sum += row[i] = exponential(scale * (row[i] - highest));
        float share = 1.0f / sum;
        for (long i = 0; i < full; i++) row[i] *= share;
        for (long i = n; i < T; i++) row[i] = 0;
        store(scores, t * T, row, T);
    }
}

/* From the weights P and their gradient g to the gradient of the scores, in the place of g:
   scale P (g - sum over the row of P g). */
void causal_softmax_backward(Numbers weights, Numbers g, float scale, long matrices, long R, long T, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (long t = 0; t < matrices * R; t++) {
        long n = up_to_lanes(T - R + t % R + 1, T); /* the weights after it are 0 */
        float p[T], d[T];
        load(p, weights, t * T, n);
        load(d, g, t * T, n);
        float along = dot(p, d, n);
        for (long i = 0; i < n; i++) d[i] = scale * p[i] * (d[i] - along);
        for (long i = n; i < T; i++) d[i] = 0;
        store(g, t * T, d, T);
    }
}

/* y = silu(gate) up, with silu(x) = x / (1 + e^-x). All (rows, n). */
void swiglu(Numbers gate, Numbers up, Numbers y, long rows, long n, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (long t = 0; t < rows; t++) {
        float a[n], b[n];
        load(a, gate, t * n, n);
        load(b, up, t * n, n);
        for (long i = 0; i < n; i++) a[i] = a[i] / (1.0f + exponential(-a[i])) * b[i];
        store(y, t * n, a, n);
    }
}

/* With s = 1 / (1 + e^-gate):  d gate = g up s (1 + gate (1 - s)),  d up = g gate s. */
void swiglu_backward(Numbers g, Numbers gate, Numbers up, Numbers d_gate, Numbers d_up, long rows, long n, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (long t = 0; t < rows; t++) {
        float d[n], a[n], b[n];
        load(d, g, t * n, n);
        load(a, gate, t * n, n);
        load(b, up, t * n, n);
        for (long i = 0; i < n; i++) {
            float s = 1.0f / (1.0f + exponential(-a[i]));
            float d_a = d[i] * b[i] * s * (1.0f + a[i] * (1.0f - s));
            b[i] = d[i] * a[i] * s;
            a[i] = d_a;
        }
        store(d_gate, t * n, a, n);
        store(d_up, t * n, b, n);
    }
}

/* GPT-2's GELU: y = x s with s = 1 / (1 + e^-2u) and u = sqrt(2 / pi) (x + 0.044715 x^3), which is the same as
   x (1 + tanh u) / 2. All (rows, n). */
static const float GELU = 1.5957691216057308f /* 2 sqrt(2 / pi) */, GELU_CUBE = 0.044715f;

void gelu(Numbers x, Numbers y, long rows, long n, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (long t = 0; t < rows; t++) {
        float a[n];
        load(a, x, t * n, n);
        for (long i = 0; i < n; i++) a[i] /= 1.0f + exponential(-GELU * a[i] * (1.0f + GELU_CUBE * a[i] * a[i]));
        store(y, t * n, a, n);
    }
}

/* d x = g s (1 + x (1 - s) 2 du/dx). */
void gelu_backward(Numbers g, Numbers x, Numbers d_x, long rows, long n, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (long t = 0; t < rows; t++) {
        float d[n], a[n];
        load(d, g, t * n, n);
        load(a, x, t * n, n);
        for (long i = 0; i < n; i++) {
            float square = a[i] * a[i];
            float s = 1.0f / (1.0f + exponential(-GELU * a[i] * (1.0f + GELU_CUBE * square)));
            float slope = s * (1.0f + a[i] * (1.0f - s) * GELU * (1.0f + 3.0f * GELU_CUBE * square));
            d[i] *= s == 0 ? 0 : slope; /* far down the cube is infinite */
        }
        store(d_x, t * n, d, n);
    }
}

/* From logits (rows, n) to what the backward pass wants of them, in their place: softmax(logits), less 1 at the target;
   zeros where it is IGNORE and does not count. loss (rows): -log softmax(logits)[target], or 0; NaN where there is no
   such target. */
void softmax_less_target(Numbers logits, const int64_t *target, float *loss, long rows, long n, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (long t = 0; t < rows; t++) {
        float row[n];
        loss[t] = target[t] == IGNORE ? 0 : NAN;
        if (target[t] < 0 || target[t] >= n) {
            memset(row, 0, n * sizeof(float));
        } else {
            load(row, logits, t * n, n);
            float highest = -INFINITY, sum = 0;
#pragma omp simd reduction(max : highest)
            for (long i = 0; i < n; i++) highest = row[i] > highest ? row[i] : highest;
            float at_target = row[target[t]] - highest;
#pragma omp simd reduction(+ : sum)
            for (long i = 0; i < n; i++) sum += row[i] = exponential(row[i] - highest);
            loss[t] = logf(sum) - at_target;
            float scale = 1.0f / sum;
            for (long i = 0; i < n; i++) row[i] *= scale;
            row[target[t]] -= 1.0f;
        }
        store(logits, t * n, row, n);
    }
}
