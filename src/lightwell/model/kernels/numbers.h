/* What the C files here share: bfloat16, e^x, and a sum of products. */

#include <math.h>
#include <stdint.h>
#include <string.h>

static inline float widened(uint16_t h) {
    uint32_t bits = (uint32_t)h << 16;
    float x;
    memcpy(&x, &bits, 4);
    return x;
}

/* To the nearest, of two equally near ones to the even, as the processor rounds; not a number stays so. */
static inline uint16_t narrowed(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    uint32_t rounded = bits + 0x7fff + ((bits >> 16) & 1);
    uint32_t quiet_nan = bits | 0x00400000;
    return (uint16_t)(((bits & 0x7fffffff) > 0x7f800000 ? quiet_nan : rounded) >> 16);
}

/* e^x to about one part in 10^7: 2^n times a polynomial of what is left, |f| <= ln 2 / 2. Not a number stays so; from
   e^88 on it is infinity. */
static inline float exponential(float x) {
    float clipped = x < -80.0f ? -80.0f : x > 88.0f ? 88.0f : x; /* far from numbers too small for full speed */
    float n = rintf(clipped * 1.44269504f);
    float f = clipped - n * 0.693359375f + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * f + 1.3981999507e-3f;
    p = p * f + 8.3334519073e-3f;
    p = p * f + 4.1665795894e-2f;
    p = p * f + 1.6666665459e-1f;
    p = p * f + 5.0000001201e-1f;
    p = p * f * f + f + 1.0f;
    int32_t bits = ((int32_t)n + 127) << 23;
    float scale;
    memcpy(&scale, &bits, 4);
    return x > 88.0f ? INFINITY : p * scale;
}

static inline float dot(const float *restrict a, const float *restrict b, long n) {
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (long i = 0; i < n; i++) sum += a[i] * b[i];
    return sum;
}
