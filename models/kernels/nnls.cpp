// Non-negative least squares by coordinate descent, one row after the other.
#include "native.h"

#include <cmath>
#include <vector>

namespace {

// One visit of atom j: to its optimum given the others; returns how far the row moved along the atom.
template <class T>
INLINE T visit(int64_t j, int64_t atoms, const T* gram, T* code, T* slope) {
    const T own = gram[j * atoms + j];
    if (!(own > 0)) return 0;
    T next = code[j] + slope[j] / own;
    if (!(next > 0)) next = 0;
    const T step = next - code[j];
    if (step == 0) return 0;
    code[j] = next;
    const T* row = gram + j * atoms;
    for (int64_t i = 0; i < atoms; i++) slope[i] -= step * row[i];
    return std::abs(step) * std::sqrt(own);
}

// Sweeps over all atoms, and between them over those in use, until no atom moves by more than `limit`.
template <class T>
INLINE void solve(int64_t atoms, const T* gram, T limit, int64_t sweeps, T* code, T* slope, int64_t* used) {
    for (int64_t sweep = 0; sweep < sweeps; sweep++) {
        T moved = 0;
        for (int64_t j = 0; j < atoms; j++) moved = std::max(moved, visit(j, atoms, gram, code, slope));
        if (!(moved > limit)) return;
        int64_t count = 0;
        for (int64_t j = 0; j < atoms; j++)
            if (code[j] > 0) used[count++] = j;
        for (; sweep < sweeps && moved > limit; sweep++) {
            moved = 0;
            for (int64_t e = 0; e < count; e++) moved = std::max(moved, visit(used[e], atoms, gram, code, slope));
        }
    }
}

#define DEFINE(T, SUFFIX)                                                                                            \
    EVERY_PROCESSOR void nnls_part_##SUFFIX(const T* scores, const T* gram, const T* limits, int64_t first,          \
                                            int64_t last, int64_t atoms, int64_t sweeps, T* codes, T* slope,         \
                                            int64_t* used) {                                                         \
        for (int64_t n = first; n < last; n++) {                                                                     \
            T* code = codes + n * atoms;                                                                             \
            for (int64_t j = 0; j < atoms; j++) {                                                                    \
                code[j] = 0;                                                                                         \
                slope[j] = scores[n * atoms + j];                                                                    \
            }                                                                                                        \
            solve(atoms, gram, limits[n], sweeps, code, slope, used);                                                \
        }                                                                                                            \
    }
DEFINE(float, f32)
DEFINE(double, f64)
#undef DEFINE

}  // namespace

#define DEFINE(T, SUFFIX)                                                                                            \
    EXPORT int64_t nnls_##SUFFIX(const T* scores, const T* gram, const T* limits, int64_t rows, int64_t atoms,       \
                                 int64_t sweeps, T* codes, int64_t threads) {                                        \
        sparsefleet::for_rows(rows, 32, threads, [&](int64_t first, int64_t last) {                                  \
            std::vector<T> slope(atoms);                                                                             \
            std::vector<int64_t> used(atoms);                                                                        \
            nnls_part_##SUFFIX(scores, gram, limits, first, last, atoms, sweeps, codes, slope.data(), used.data());  \
        });                                                                                                          \
        return 0;                                                                                                    \
    }
DEFINE(float, f32)
DEFINE(double, f64)
