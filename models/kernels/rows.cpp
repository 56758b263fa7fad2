// Selection along rows.
#include "native.h"
#include "selection.h"

namespace {

#define DEFINE(T, SUFFIX)                                                       \
    EVERY_PROCESSOR void top_k_rows_##SUFFIX(const T* u, int64_t first, int64_t last, int64_t width, int64_t k,      \
                                             T* values, int64_t* indices) {     \
        for (int64_t n = first; n < last; n++)                                  \
            sparsefleet::top_k_row(u + n * width, width, k, values + n * k, indices + n * k);                        \
    }
DEFINE(float, f32)
DEFINE(double, f64)
#undef DEFINE

}  // namespace

#define DEFINE(T, SUFFIX)                                                       \
    EXPORT int64_t top_k_##SUFFIX(const T* u, int64_t rows, int64_t width, int64_t k, T* values, int64_t* indices,   \
                                  int64_t threads) {                            \
        sparsefleet::for_rows(rows, 256, threads, [&](int64_t first, int64_t last) {                                 \
            top_k_rows_##SUFFIX(u, first, last, width, k, values, indices);     \
        });                                                                     \
        return 0;                                                               \
    }
DEFINE(float, f32)
DEFINE(double, f64)
