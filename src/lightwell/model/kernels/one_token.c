/* One new token through a whole model, on a CPU: each weight is read once, and nothing else takes time.

   A step of generation multiplies every matrix by one vector, so it takes as long as the weights take to arrive from
   memory. Here all its parts are one piece of work for a team of threads that meet five times in a layer; as single
   operations of PyTorch they would be two hundred calls. All is computed in float32.

   generation/step_in_c.py fills in these structures; generation/step.py is the same step in PyTorch. */

#include <omp.h>
#include <sched.h>
#include <stdatomic.h>

#include "numbers.h"

enum { FLOAT32, BFLOAT16, INT8 };
enum { TOGETHER = 4 }; /* rows of a matrix that are multiplied at once */
enum { LOOKS = 2000 };  /* at a meeting before the processor is offered to others */

typedef struct {
    const void *at;     /* (n, k), row by row */
    const float *scale; /* (n), of int8 alone: a row stands for its whole numbers times this */
    const float *bias;  /* (n), or NULL */
    long n, k;
    int kind;
} Matrix;

typedef struct {
    const float *gain, *bias; /* without a bias: RMSNorm */
    float eps;
} Norm;

typedef struct {
    Norm norm1, q_norm, k_norm, norm2; /* q_norm, k_norm of one head; gain NULL: none */
    Matrix qkv, out, gate, up, down;   /* gate.at NULL: GELU(up) instead of SiLU(gate) up */
    float *keys, *values;              /* (G, L, D) */
} Layer;

typedef struct {
    long C, H, G, D, L, n_layers; /* letters as in modern.py; L tokens have room in the cache */
    const Layer *layers;
    Norm norm;
    Matrix head;
} Model;

typedef struct {
    _Atomic int arrived, round;
    int threads;
} Meeting;

/* Wait until all threads are here. OpenMP's own barrier may put them to sleep each time. */
static void meet(Meeting *m) {
    int round = atomic_load(&m->round);
    if (atomic_fetch_add(&m->arrived, 1) == m->threads - 1) {
        atomic_store(&m->arrived, 0);
        atomic_fetch_add(&m->round, 1);
        return;
    }
    for (long looks = 0; atomic_load(&m->round) == round; looks++) {
        if (looks > LOOKS) sched_yield();
#ifdef __x86_64__
        __builtin_ia32_pause();
#endif
    }
}

/* Sixteen words of 4 bytes, of which the compiler makes what the processor has. */
typedef float Lanes __attribute__((vector_size(64)));
typedef int32_t Words __attribute__((vector_size(64)));
enum { LANES = 16 };
enum { AHEAD = 8192 }; /* bytes that are asked of memory before their turn: rows are too short for it to see a pattern */

static inline Lanes as_floats(Words bits) {
    Lanes x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

static inline float sum(Lanes x) {
    float total = 0;
    for (int i = 0; i < LANES; i++) total += x[i];
    return total;
}

/* Number p of those that share a word: one float, two halves, four bytes. */
static inline Lanes part_of_floats(Words w, int p) { return as_floats(w); }
static inline Lanes part_of_halves(Words w, int p) { return as_floats(p ? w & (int32_t)0xffff0000 : w << 16); }
static inline Lanes part_of_bytes(Words w, int p) { return __builtin_convertvector((w << (24 - 8 * p)) >> 24, Lanes); }

/* Columns that fill whole vectors of words with SHARE numbers each, and x in the order in which they are met there: the
   first numbers of all words, then the second ones. */
#define WHOLE(k, SHARE) ((k) - (k) % (LANES * (SHARE)))
static void in_order(const float *x, float *ordered, long whole, int share) {
    long words = whole / share;
    for (int p = 0; p < share; p++)
        for (long i = 0; i < words; i++) ordered[p * words + i] = x[share * i + p];
}

/* y[0 ... ROWS) = rows w of `k` numbers of type T, times x. */
#define PRODUCT(NAME, ROWS, T, SHARE, PART, WIDEN)                                                                    \
    static inline void NAME(const T *w, const float *x, const float *ordered, long k, float *y) {                     \
        long whole = WHOLE(k, SHARE), words = whole / SHARE;                                                          \
        Lanes sums[ROWS] = {0};                                                                                       \
        for (long i = 0; i < words; i += LANES)                                                                       \
            _Pragma("GCC unroll 4") for (int r = 0; r < ROWS; r++) {                                                  \
                Words w_i;                                                                                            \
                memcpy(&w_i, w + r * k + SHARE * i, sizeof w_i);                                                      \
                __builtin_prefetch((const char *)(w + r * k + SHARE * i) + AHEAD);                                    \
                _Pragma("GCC unroll 4") for (int p = 0; p < SHARE; p++) {                                             \
                    Lanes x_i;                                                                                        \
                    memcpy(&x_i, ordered + p * words + i, sizeof x_i);                                                \
                    sums[r] += PART(w_i, p) * x_i;                                                                    \
                }                                                                                                     \
            }                                                                                                         \
        for (int r = 0; r < ROWS; r++) {                                                                              \
            y[r] = sum(sums[r]);                                                                                      \
            for (long i = whole; i < k; i++) y[r] += WIDEN(w[r * k + i]) * x[i];                                      \
        }                                                                                                             \
    }
#define PRODUCTS(NAME, T, SHARE, WIDEN)                                                                               \
    PRODUCT(NAME##_together, TOGETHER, T, SHARE, part_of_##NAME, WIDEN)                                               \
    PRODUCT(NAME##_one, 1, T, SHARE, part_of_##NAME, WIDEN)

PRODUCTS(floats, float, 1, )
PRODUCTS(halves, uint16_t, 2, widened)
PRODUCTS(bytes, int8_t, 4, (float))

/* y[begin ... end) of y = W x + bias. */
static void product(const Matrix *w, const float *x, float *y, long begin, long end) {
    long k = w->k, n = begin;
    float ordered[k];
#define ROWS(NAME, T, SHARE)                                                                                          \
    in_order(x, ordered, WHOLE(k, SHARE), SHARE);                                                                     \
    for (; n + TOGETHER <= end; n += TOGETHER) NAME##_together((const T *)w->at + n * k, x, ordered, k, y + n);       \
    for (; n < end; n++) NAME##_one((const T *)w->at + n * k, x, ordered, k, y + n);
    if (w->kind == FLOAT32) {
        ROWS(floats, float, 1)
    } else if (w->kind == BFLOAT16) { /* rounded before and after, as quantize.py has it */
        float rounded[k];
        for (long i = 0; i < k; i++) rounded[i] = widened(narrowed(x[i]));
        x = rounded;
        ROWS(halves, uint16_t, 2)
        for (n = begin; n < end; n++) y[n] = widened(narrowed(y[n]));
    } else {
        ROWS(bytes, int8_t, 4)
        for (n = begin; n < end; n++) y[n] *= w->scale[n];
    }
    if (w->bias)
        for (n = begin; n < end; n++) y[n] += w->bias[n];
}

/* LayerNorm or RMSNorm of x, n numbers, to y (which may be x). */
static void normalise(const Norm *norm, const float *x, float *y, long n) {
    float mean = 0, squares = 0;
    if (norm->bias) {
#pragma omp simd reduction(+ : mean)
        for (long i = 0; i < n; i++) mean += x[i];
        mean /= n;
    }
#pragma omp simd reduction(+ : squares)
    for (long i = 0; i < n; i++) squares += (x[i] - mean) * (x[i] - mean);
    float scale = 1.0f / sqrtf(squares / n + norm->eps);
    for (long i = 0; i < n; i++) y[i] = (x[i] - mean) * scale * norm->gain[i];
    if (norm->bias)
        for (long i = 0; i < n; i++) y[i] += norm->bias[i];
}

/* The pairs (x[i], x[i + D/2]) turned by their angles. */
static void turn(float *x, const float *cos, const float *sin, long D) {
    for (long i = 0; i < D / 2; i++) {
        float a = x[i], b = x[i + D / 2];
        x[i] = a * cos[i] - b * sin[i];
        x[i + D / 2] = b * cos[i] + a * sin[i];
    }
}

/* The heads that share keys and values number g: both go into the cache at place S, and each query looks at all. */
static void attend(
    const Model *m, const Layer *layer, float *qkv, const float *cos, const float *sin, long S, long g, float *y) {
    long D = m->D, shared = m->H / m->G, first = g * m->L * D;
    float *k = qkv + (m->H + g) * D, *v = qkv + (m->H + m->G + g) * D, scores[S + 1];
    if (layer->k_norm.gain) normalise(&layer->k_norm, k, k, D);
    if (cos) turn(k, cos, sin, D);
    memcpy(layer->keys + first + S * D, k, D * sizeof(float));
    memcpy(layer->values + first + S * D, v, D * sizeof(float));
    for (long head = g * shared; head < (g + 1) * shared; head++) {
        float *q = qkv + head * D, *sum = y + head * D, highest = -INFINITY, total = 0, scale = 1.0f / sqrtf(D);
        if (layer->q_norm.gain) normalise(&layer->q_norm, q, q, D);
        if (cos) turn(q, cos, sin, D);
        for (long s = 0; s <= S; s++) scores[s] = scale * dot(q, layer->keys + first + s * D, D);
#pragma omp simd reduction(max : highest)
        for (long s = 0; s <= S; s++) highest = scores[s] > highest ? scores[s] : highest;
#pragma omp simd reduction(+ : total)
        for (long s = 0; s <= S; s++) total += scores[s] = exponential(scores[s] - highest);
        memset(sum, 0, D * sizeof(float));
        for (long s = 0; s <= S; s++) {
            const float *row = layer->values + first + s * D, share = scores[s] / total;
#pragma omp simd
            for (long i = 0; i < D; i++) sum[i] += share * row[i];
        }
    }
}

/* GELU in the tanh form, x / (1 + e^-2u), or silu(gate) x. */
static void activate(float *restrict x, const float *restrict gate, long begin, long end) {
    if (gate) {
        for (long i = begin; i < end; i++) x[i] *= gate[i] / (1.0f + exponential(-gate[i]));
        return;
    }
    for (long i = begin; i < end; i++) {
        float u = 0.7978845608f * (x[i] + 0.044715f * x[i] * x[i] * x[i]);
        x[i] /= 1.0f + exponential(-2.0f * u);
    }
}

/* The token after S others. x (C): its embedding, and overwritten; cos, sin (D / 2): the angles of place S, or NULL;
   logits (V); space: room for (H + G + G) D + H D + 2 F + C numbers, F those of the MLP. */
void one_token(
    const Model *m, float *x, const float *cos, const float *sin, long S, float *logits, float *space, int threads) {
    float *qkv = space, *y = qkv + (m->H + 2 * m->G) * m->D, *wide = y + m->H * m->D;
    Meeting meeting = {0, 0, 1};
#pragma omp parallel num_threads(threads)
    {
#pragma omp single
        meeting.threads = omp_get_num_threads();
        long t = omp_get_thread_num(), all = meeting.threads;
#define FROM(n) ((n) * t / all)
#define TO(n) ((n) * (t + 1) / all)
        long F = m->layers->up.n;
        float h[m->C], *gate = wide + F, *added = gate + F;
        for (const Layer *layer = m->layers; layer < m->layers + m->n_layers; layer++) {
            normalise(&layer->norm1, x, h, m->C); /* each thread for itself: shorter than a meeting */
            product(&layer->qkv, h, qkv, FROM(layer->qkv.n), TO(layer->qkv.n));
            meet(&meeting);
            for (long g = FROM(m->G); g < TO(m->G); g++) attend(m, layer, qkv, cos, sin, S, g, y);
            meet(&meeting);
            product(&layer->out, y, added, FROM(m->C), TO(m->C));
            for (long i = FROM(m->C); i < TO(m->C); i++) x[i] += added[i];
            meet(&meeting);
            normalise(&layer->norm2, x, h, m->C);
            product(&layer->up, h, wide, FROM(F), TO(F));
            if (layer->gate.at) product(&layer->gate, h, gate, FROM(F), TO(F));
            activate(wide, layer->gate.at ? gate : NULL, FROM(F), TO(F));
            meet(&meeting);
            product(&layer->down, wide, added, FROM(m->C), TO(m->C));
            for (long i = FROM(m->C); i < TO(m->C); i++) x[i] += added[i];
            meet(&meeting);
        }
        normalise(&m->norm, x, h, m->C);
        product(&m->head, h, logits, FROM(m->head.n), TO(m->head.n));
    }
}
