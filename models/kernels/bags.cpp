// Products with sparse codes: a code of n rows has `width` slots each, (index, value); slots of value 0 are empty.
#include "native.h"

namespace {

constexpr int GROUP = 4;

// out += sum of `G` atoms, each times its value.
template <int G, class T>
INLINE void add_atoms(const T* const* atoms, const T* values, int64_t dim, T* out) {
#pragma omp simd
    for (int64_t d = 0; d < dim; d++) {
        T sum = out[d];
        for (int g = 0; g < G; g++) sum += values[g] * atoms[g][d];
        out[d] = sum;
    }
}

template <class T>
INLINE T inner(const T* a, const T* b, int64_t dim) {
    T sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t d = 0; d < dim; d++) sum += a[d] * b[d];
    return sum;
}

template <class T>
INLINE void decode_row(const T* values, const int64_t* indices, int64_t width, const T* decoder, int64_t dim, T* out) {
    const T* atoms[GROUP];
    T weights[GROUP];
    int held = 0;
    std::fill(out, out + dim, T(0));
    for (int64_t i = 0; i < width; i++) {
        if (values[i] == T(0)) continue;
        atoms[held] = decoder + indices[i] * dim;
        weights[held++] = values[i];
        if (held == GROUP) {
            add_atoms<GROUP>(atoms, weights, dim, out);
            held = 0;
        }
    }
    for (int i = 0; i < held; i++) add_atoms<1>(atoms + i, weights + i, dim, out);
}

// The entries of all rows in the order of their atoms (and of the rows within one).
template <class T>
INLINE void sort_entries(const T* values, const int64_t* indices, int64_t rows, int64_t width, int64_t atoms,
                         int64_t* ends, int32_t* at_row, T* at_value) {
    std::fill(ends, ends + atoms + 1, 0);
    for (int64_t i = 0; i < rows * width; i++) ends[indices[i] + 1] += values[i] != T(0);
    for (int64_t j = 0; j < atoms; j++) ends[j + 1] += ends[j];
    // ends[j] is where atom j begins; writing moves it to where it ends.
    for (int64_t n = 0; n < rows; n++)
        for (int64_t i = n * width; i < (n + 1) * width; i++)
            if (values[i] != T(0)) {
                const int64_t at = ends[indices[i]]++;
                at_row[at] = static_cast<int32_t>(n);
                at_value[at] = values[i];
            }
}

// Rows are met in no order that a processor could foresee.
template <class T>
INLINE void prefetch(const T* row, int64_t dim) {
#ifdef __GNUC__
    for (int64_t d = 0; d < dim; d += static_cast<int64_t>(64 / sizeof(T))) __builtin_prefetch(row + d);
#endif
}

// What `G` entries of one atom add to its gradients.
template <int G, class T>
INLINE void add_entries(const int32_t* rows, const T* values, const T* atom, const T* upstream, const T* inputs,
                        int64_t dim, int64_t in_dim, T slope, T* decoder, T* encoder, T* bias) {
    const T *ups[G], *ins[G];
    T deltas[G];
    for (int g = 0; g < G; g++) {
        ups[g] = upstream + rows[g] * dim;
        ins[g] = inputs + rows[g] * in_dim;
        deltas[g] = inner(atom, ups[g], dim) + slope;
        *bias += deltas[g];
    }
    add_atoms<G>(ups, values, dim, decoder);
    add_atoms<G>(ins, deltas, in_dim, encoder);
}

#define DEFINE(T, SUFFIX)                                                                                             \
    EVERY_PROCESSOR void decode_rows_##SUFFIX(const T* values, const int64_t* indices, int64_t first, int64_t last,   \
                                              int64_t width, const T* decoder, int64_t dim, T* out) {                 \
        for (int64_t n = first; n < last; n++)                                                                        \
            decode_row(values + n * width, indices + n * width, width, decoder, dim, out + n * dim);                  \
    }                                                                                                                 \
    EVERY_PROCESSOR void sort_##SUFFIX(const T* values, const int64_t* indices, int64_t rows, int64_t width,          \
                                       int64_t atoms, int64_t* ends, int32_t* at_row, T* at_value) {                  \
        sort_entries(values, indices, rows, width, atoms, ends, at_row, at_value);                                    \
    }                                                                                                                 \
    EVERY_PROCESSOR void gradient_atoms_##SUFFIX(int64_t first, int64_t last, const int64_t* ends,                    \
                                                 const int32_t* at_row, const T* at_value, const T* decoder,          \
                                                 const T* upstream, const T* inputs, int64_t dim, int64_t in_dim,     \
                                                 T slope, T* to_decoder, T* to_encoder, T* to_bias) {                 \
        const int64_t end = ends[last - 1];                                                                           \
        for (int64_t j = first; j < last; j++) {                                                                      \
            int64_t i = j ? ends[j - 1] : 0;                                                                          \
            const T* atom = decoder + j * dim;                                                                        \
            T *d = to_decoder + j * dim, *e = to_encoder + j * in_dim;                                                \
            for (; i + GROUP <= ends[j]; i += GROUP) {                                                                \
                for (int64_t g = i + GROUP; g < std::min(i + 2 * GROUP, end); g++) {                                  \
                    prefetch(upstream + at_row[g] * dim, dim);                                                        \
                    prefetch(inputs + at_row[g] * in_dim, in_dim);                                                    \
                }                                                                                                     \
                add_entries<GROUP>(at_row + i, at_value + i, atom, upstream, inputs, dim, in_dim, slope, d, e,        \
                                   to_bias + j);                                                                      \
            }                                                                                                         \
            for (; i < ends[j]; i++)                                                                                  \
                add_entries<1>(at_row + i, at_value + i, atom, upstream, inputs, dim, in_dim, slope, d, e,            \
                               to_bias + j);                                                                          \
        }                                                                                                             \
    }
DEFINE(float, f32)
DEFINE(double, f64)
#undef DEFINE

}  // namespace

#define DEFINE(T, SUFFIX)                                                                                             \
    EXPORT int64_t decode_##SUFFIX(const T* values, const int64_t* indices, int64_t rows, int64_t width,              \
                                   const T* decoder, int64_t dim, T* out, int64_t threads) {                          \
        sparsefleet::for_rows(rows, 64, threads, [&](int64_t first, int64_t last) {                                   \
            decode_rows_##SUFFIX(values, indices, first, last, width, decoder, dim, out);                             \
        });                                                                                                           \
        return 0;                                                                                                     \
    }                                                                                                                 \
    EXPORT int64_t code_gradients_##SUFFIX(const T* values, const int64_t* indices, int64_t rows, int64_t width,      \
                                           int64_t atoms, const T* decoder, const T* upstream, const T* inputs,       \
                                           int64_t dim, int64_t in_dim, double slope, int64_t* ends, int32_t* at_row, \
                                           T* at_value, T* to_decoder, T* to_encoder, T* to_bias, int64_t threads) {  \
        sort_##SUFFIX(values, indices, rows, width, atoms, ends, at_row, at_value);                                   \
        sparsefleet::for_rows(atoms, 64, threads, [&](int64_t first, int64_t last) {                                  \
            gradient_atoms_##SUFFIX(first, last, ends, at_row, at_value, decoder, upstream, inputs, dim, in_dim,      \
                                    static_cast<T>(slope), to_decoder, to_encoder, to_bias);                          \
        });                                                                                                           \
        return 0;                                                                                                     \
    }
DEFINE(float, f32)
DEFINE(double, f64)
