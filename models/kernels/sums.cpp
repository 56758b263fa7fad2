// Sums over sparse codes, and the update of a few atoms in turn.
#include "native.h"

#include <cmath>

namespace {

// moments[i, j] += a_i a_j for the atoms i in [first, last) of every row's code.
template <class T>
INLINE void moments_of(const int32_t* indices, const T* values, int64_t rows, int64_t k, int64_t atoms, int64_t first,
                       int64_t last, double* moments) {
    for (int64_t n = 0; n < rows; n++) {
        const int32_t* index = indices + n * k;
        const T* value = values + n * k;
        for (int64_t e = 0; e < k; e++) {
            if (index[e] < first || index[e] >= last) continue;
            const double weight = value[e];
            double* row = moments + index[e] * atoms;
            for (int64_t f = 0; f < k; f++)
                if (index[f] >= 0) row[index[f]] += weight * value[f];
        }
    }
}

// cross[i, c] += a_i x_c for the columns c in [first, last).
template <class T>
INLINE void cross_of(const T* x, const int32_t* indices, const T* values, int64_t rows, int64_t dim, int64_t k,
                     int64_t first, int64_t last, double* cross) {
    for (int64_t n = 0; n < rows; n++) {
        const T* point = x + n * dim;
        for (int64_t e = 0; e < k; e++) {
            if (indices[n * k + e] < 0) continue;
            const double weight = values[n * k + e];
            double* row = cross + indices[n * k + e] * dim;
            for (int64_t c = first; c < last; c++) row[c] += weight * point[c];
        }
    }
}

#define DEFINE(T, SUFFIX)                                                                                            \
    EVERY_PROCESSOR void moments_part_##SUFFIX(const int32_t* indices, const T* values, int64_t rows, int64_t k,     \
                                               int64_t atoms, int64_t first, int64_t last, double* moments) {        \
        moments_of(indices, values, rows, k, atoms, first, last, moments);                                           \
    }                                                                                                                \
    EVERY_PROCESSOR void cross_part_##SUFFIX(const T* x, const int32_t* indices, const T* values, int64_t rows,      \
                                             int64_t dim, int64_t k, int64_t first, int64_t last, double* cross) {   \
        cross_of(x, indices, values, rows, dim, k, first, last, cross);                                              \
    }
DEFINE(float, f32)
DEFINE(double, f64)
#undef DEFINE

// Atoms of one block, one after the other; residual[i] = cross[i] - sum_j moments[i, j] atom[j] is kept up to date.
EVERY_PROCESSOR int64_t sweep(double* atoms, const double* moments, double* residual, int64_t count, int64_t dim,
                              int64_t length, int64_t nonnegative, double least) {
    int64_t moved = 0;
    for (int64_t j = 0; j < count; j++) {
        const double own = moments[j * count + j];
        double* atom = atoms + j * dim;
        double* change = residual + j * dim;
        if (!(own > least)) continue;
        double square = 0;
        for (int64_t c = 0; c < dim; c++) {
            double value = atom[c] + change[c] / own;
            if (nonnegative && value < 0) value = 0;
            change[c] = value;
            square += value * value;
        }
        // length: 0 unit, 1 at most unit, 2 any; what would vanish on the sphere stays.
        if (length != 2 && !(square > 1e-24)) continue;
        const double scale = length == 2 || (length == 1 && square <= 1) ? 1 : 1 / std::sqrt(square);
        for (int64_t c = 0; c < dim; c++) {
            const double value = change[c] * scale;
            change[c] = value - atom[c];
            atom[c] = value;
        }
        for (int64_t i = j + 1; i < count; i++) {
            const double weight = moments[i * count + j];
            double* other = residual + i * dim;
            if (weight != 0)
                for (int64_t c = 0; c < dim; c++) other[c] -= weight * change[c];
        }
        moved++;
    }
    return moved;
}

}  // namespace

#define DEFINE(T, SUFFIX)                                                                                            \
    EXPORT int64_t code_moments_##SUFFIX(const T* values, const int32_t* indices, int64_t rows, int64_t k,           \
                                         int64_t atoms, double* moments, int64_t threads) {                          \
        sparsefleet::for_rows(atoms, (atoms + threads - 1) / threads, threads, [&](int64_t first, int64_t last) {    \
            moments_part_##SUFFIX(indices, values, rows, k, atoms, first, last, moments);                            \
        });                                                                                                          \
        return 0;                                                                                                    \
    }                                                                                                                \
    EXPORT int64_t code_cross_##SUFFIX(const T* x, const int32_t* indices, const T* values, int64_t rows,            \
                                       int64_t dim, int64_t k, double* cross, int64_t threads) {                     \
        sparsefleet::for_rows(dim, (dim + threads - 1) / threads, threads, [&](int64_t first, int64_t last) {        \
            cross_part_##SUFFIX(x, indices, values, rows, dim, k, first, last, cross);                               \
        });                                                                                                          \
        return 0;                                                                                                    \
    }
DEFINE(float, f32)
DEFINE(double, f64)

EXPORT int64_t sweep_block_f64(double* atoms, const double* moments, double* residual, int64_t count, int64_t dim,
                               int64_t length, int64_t nonnegative, double least, int64_t threads) {
    (void)threads;
    return sweep(atoms, moments, residual, count, dim, length, nonnegative, least);
}
