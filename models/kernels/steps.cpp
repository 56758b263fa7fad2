// One step of Adam on matrices whose rows are atoms, in one pass over memory.
#include "native.h"

#include <cmath>

namespace {

struct Constants {
    double beta1, beta2, rate, root_bias2, eps, factor;
};

template <class T>
INLINE void project_row(const T* gradient, const T* value, int64_t dim, T* along, double* squares) {
    T dot = 0;
#pragma omp simd reduction(+ : dot)
    for (int64_t d = 0; d < dim; d++) dot += gradient[d] * value[d];
    T sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t d = 0; d < dim; d++) {
        const T left = gradient[d] - dot * value[d];
        sum += left * left;
    }
    *along = dot;
    *squares = static_cast<double>(sum);
}

// `along`: what to take away of the gradient in the direction of the row, and that the result has norm 1; or null.
template <class T>
INLINE void adam_row(const T* value, const T* first, const T* second, const T* gradient, const T* along, int64_t dim,
                     const Constants& c, T* new_value, T* new_first, T* new_second) {
    const T keep1 = static_cast<T>(1 - c.beta1), beta2 = static_cast<T>(c.beta2), keep2 = static_cast<T>(1 - c.beta2);
    const T rate = static_cast<T>(c.rate), root = static_cast<T>(1 / c.root_bias2), eps = static_cast<T>(c.eps);
    const T factor = static_cast<T>(c.factor), back = along ? *along : T(0);
    T squares = 0;
#pragma omp simd reduction(+ : squares)
    for (int64_t d = 0; d < dim; d++) {
        const T g = (gradient[d] - back * value[d]) * factor;
        const T m = first[d] + keep1 * (g - first[d]);
        const T v = beta2 * second[d] + keep2 * g * g;
        const T w = value[d] - rate * m / (std::sqrt(v) * root + eps);
        new_first[d] = m;
        new_second[d] = v;
        new_value[d] = w;
        squares += w * w;
    }
    if (!along || !(squares > T(0))) return;
    const T scale = 1 / std::sqrt(squares);
#pragma omp simd
    for (int64_t d = 0; d < dim; d++) new_value[d] *= scale;
}

#define DEFINE(T, SUFFIX)                                                                                             \
    EVERY_PROCESSOR void project_rows_##SUFFIX(const T* gradient, const T* value, int64_t first, int64_t last,        \
                                               int64_t dim, T* along, double* squares) {                              \
        for (int64_t j = first; j < last; j++)                                                                        \
            project_row(gradient + j * dim, value + j * dim, dim, along + j, squares + j);                            \
    }                                                                                                                 \
    EVERY_PROCESSOR void adam_rows_##SUFFIX(const T* value, const T* m, const T* v, const T* gradient, const T* along, \
                                            int64_t first, int64_t last, int64_t dim, const Constants& constants,     \
                                            T* new_value, T* new_m, T* new_v) {                                       \
        for (int64_t j = first; j < last; j++) {                                                                      \
            const int64_t at = j * dim;                                                                               \
            adam_row(value + at, m + at, v + at, gradient + at, along ? along + j : nullptr, dim, constants,          \
                     new_value + at, new_m + at, new_v + at);                                                         \
        }                                                                                                             \
    }
DEFINE(float, f32)
DEFINE(double, f64)
#undef DEFINE

}  // namespace

#define DEFINE(T, SUFFIX)                                                                                             \
    EXPORT int64_t project_##SUFFIX(const T* gradient, const T* value, int64_t rows, int64_t dim, T* along,           \
                                    double* squares, int64_t threads) {                                               \
        sparsefleet::for_rows(rows, 256, threads, [&](int64_t first, int64_t last) {                                  \
            project_rows_##SUFFIX(gradient, value, first, last, dim, along, squares);                                 \
        });                                                                                                           \
        return 0;                                                                                                     \
    }                                                                                                                 \
    EXPORT int64_t adam_##SUFFIX(const T* value, const T* m, const T* v, const T* gradient, const T* along,           \
                                 int64_t unit, int64_t rows, int64_t dim, double beta1, double beta2, double rate,    \
                                 double root_bias2, double eps, double factor, T* new_value, T* new_m, T* new_v,      \
                                 int64_t threads) {                                                                   \
        const Constants constants = {beta1, beta2, rate, root_bias2, eps, factor};                                    \
        sparsefleet::for_rows(rows, 256, threads, [&](int64_t first, int64_t last) {                                  \
            adam_rows_##SUFFIX(value, m, v, gradient, unit ? along : nullptr, first, last, dim, constants, new_value, \
                               new_m, new_v);                                                                         \
        });                                                                                                           \
        return 0;                                                                                                     \
    }
DEFINE(float, f32)
DEFINE(double, f64)
