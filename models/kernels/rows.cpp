// Selection along rows.
#include "native.h"
#include "selection.h"

#include <cmath>
#include <limits>

namespace {

constexpr int64_t BLOCK = 16;

// A number that at least k entries of u reach, by taking the columns in `lanes` classes: the k-th largest of the
// classes' maxima. `maxima` [lanes] is scratch.
template <class T>
INLINE T lower_bound(const T* u, int64_t width, int64_t k, int64_t lanes, T* maxima) {
    // NaN is no number to reach: a row of too few numbers then gives a bound that all of them reach.
    for (int64_t j = 0; j < lanes; j++) maxima[j] = std::isnan(u[j]) ? -std::numeric_limits<T>::infinity() : u[j];
    int64_t i = lanes;
    for (; i + lanes <= width; i += lanes) {
#pragma omp simd
        for (int64_t j = 0; j < lanes; j++) maxima[j] = maxima[j] < u[i + j] ? u[i + j] : maxima[j];
    }
    for (int64_t j = 0; i + j < width; j++) maxima[j] = std::max(maxima[j], u[i + j]);
    std::nth_element(maxima, maxima + (k - 1), maxima + lanes, [](T a, T b) { return a > b; });
    return maxima[k - 1];
}

// `sparsefleet::top_k_row` for long rows: with `lanes`, most entries are below a bound that is known beforehand.
template <class T>
INLINE void top_k_row(const T* u, int64_t width, int64_t k, int64_t lanes, T* maxima, T* values, int64_t* indices) {
    int64_t held = 0, i = 0;
    if (lanes) {
        const T least = lower_bound(u, width, k, lanes, maxima);
        // Until k are held, those above the bound and those equal to it all come in.
        for (; i + BLOCK <= width && held < k; i += BLOCK) {
            int reached = 0;
#pragma omp simd reduction(| : reached)
            for (int64_t j = 0; j < BLOCK; j++) reached |= u[i + j] >= least;
            if (!reached) continue;
            for (int64_t j = 0; j < BLOCK; j++)
                if (u[i + j] >= least && (held < k || u[i + j] > values[k - 1]))
                    sparsefleet::insert(u[i + j], i + j, held, k, values, indices);
        }
        for (; i < width && held < k; i++)
            if (u[i] >= least) sparsefleet::insert(u[i], i, held, k, values, indices);
    }
    sparsefleet::scan(u, i, width, held, k, values, indices);
    for (; lanes && held < k && i >= width; held++) {
        values[held] = std::numeric_limits<T>::quiet_NaN();
        indices[held] = held;
    }
}

template <class T>
INLINE bool kept(T value, int64_t is_signed) {
    return is_signed ? value != T(0) : value > T(0);
}

template <class T>
INLINE int64_t count_row(const T* u, int64_t width, int64_t is_signed) {
    int32_t found = 0;
    if (is_signed) {
#pragma omp simd reduction(+ : found)
        for (int64_t i = 0; i < width; i++) found += u[i] != T(0);
    } else {
#pragma omp simd reduction(+ : found)
        for (int64_t i = 0; i < width; i++) found += u[i] > T(0);
    }
    return found;
}

template <class T>
INLINE void pack_row(const T* u, int64_t width, int64_t slots, int64_t is_signed, T* values, int64_t* indices) {
    int64_t held = 0, i = 0;
    auto take = [&](int64_t at) __attribute__((always_inline)) {
        if (kept(u[at], is_signed)) {
            values[held] = u[at];
            indices[held++] = at;
        }
    };
    for (; i + BLOCK <= width && held < slots; i += BLOCK) {
        int any = 0;
#pragma omp simd reduction(| : any)
        for (int64_t j = 0; j < BLOCK; j++) any |= is_signed ? u[i + j] != T(0) : u[i + j] > T(0);
        if (any)
            for (int64_t j = 0; j < BLOCK; j++) take(i + j);
    }
    for (; i < width && held < slots; i++) take(i);
    std::fill(values + held, values + slots, T(0));
    std::fill(indices + held, indices + slots, 0);
}

#define DEFINE(T, SUFFIX)                                                                                             \
    EVERY_PROCESSOR void top_k_rows_##SUFFIX(const T* u, int64_t first, int64_t last, int64_t width, int64_t k,       \
                                             T* values, int64_t* indices) {                                           \
        constexpr int64_t most = 1024;                                                                                \
        T maxima[most];                                                                                               \
        int64_t lanes = 64;                                                                                           \
        while (lanes < 4 * k && lanes < most) lanes *= 2;                                                             \
        if (lanes < 2 * k || width < 4 * lanes) lanes = 0;                                                            \
        for (int64_t n = first; n < last; n++)                                                                        \
            top_k_row(u + n * width, width, k, lanes, maxima, values + n * k, indices + n * k);                       \
    }                                                                                                                 \
    EVERY_PROCESSOR void count_rows_##SUFFIX(const T* u, int64_t first, int64_t last, int64_t width,                  \
                                             int64_t is_signed, int64_t* counts) {                                    \
        for (int64_t n = first; n < last; n++) counts[n] = count_row(u + n * width, width, is_signed);                \
    }                                                                                                                 \
    EVERY_PROCESSOR void pack_rows_##SUFFIX(const T* u, int64_t first, int64_t last, int64_t width, int64_t slots,    \
                                            int64_t is_signed, T* values, int64_t* indices) {                         \
        for (int64_t n = first; n < last; n++)                                                                        \
            pack_row(u + n * width, width, slots, is_signed, values + n * slots, indices + n * slots);                \
    }
DEFINE(float, f32)
DEFINE(double, f64)
#undef DEFINE

}  // namespace

#define DEFINE(T, SUFFIX)                                                                                             \
    EXPORT int64_t top_k_##SUFFIX(const T* u, int64_t rows, int64_t width, int64_t k, T* values, int64_t* indices,    \
                                  int64_t threads) {                                                                  \
        sparsefleet::for_rows(rows, 256, threads, [&](int64_t first, int64_t last) {                                  \
            top_k_rows_##SUFFIX(u, first, last, width, k, values, indices);                                           \
        });                                                                                                           \
        return 0;                                                                                                     \
    }                                                                                                                 \
    EXPORT int64_t count_##SUFFIX(const T* u, int64_t rows, int64_t width, int64_t is_signed, int64_t* counts,        \
                                  int64_t threads) {                                                                  \
        sparsefleet::for_rows(rows, 256, threads, [&](int64_t first, int64_t last) {                                  \
            count_rows_##SUFFIX(u, first, last, width, is_signed, counts);                                            \
        });                                                                                                           \
        return 0;                                                                                                     \
    }                                                                                                                 \
    EXPORT int64_t pack_##SUFFIX(const T* u, int64_t rows, int64_t width, int64_t slots, int64_t is_signed,           \
                                 T* values, int64_t* indices, int64_t threads) {                                      \
        sparsefleet::for_rows(rows, 256, threads, [&](int64_t first, int64_t last) {                                  \
            pack_rows_##SUFFIX(u, first, last, width, slots, is_signed, values, indices);                             \
        });                                                                                                           \
        return 0;                                                                                                     \
    }
DEFINE(float, f32)
DEFINE(double, f64)
