// The largest entries of a row.
#pragma once

#include "native.h"

namespace sparsefleet {

// Adds (value, index) to a list of the k largest, largest first, lower index first among equals.
template <class T>
INLINE void insert(T value, int64_t index, int64_t& held, int64_t k, T* values, int64_t* indices) {
    int64_t at = held < k ? held++ : k - 1;
    while (at > 0 && values[at - 1] < value) {
        values[at] = values[at - 1];
        indices[at] = indices[at - 1];
        at--;
    }
    values[at] = value;
    indices[at] = index;
}

// Goes on with such a list from u[first]; `held` are in it already.
// `least` is the smallest kept so far: whole blocks that hold nothing larger are passed over.
template <class T>
INLINE void scan(const T* u, int64_t first, int64_t width, int64_t held, int64_t k, T* values, int64_t* indices) {
    constexpr int64_t block = 16;
    int64_t i = first;
    for (; i < width && held < k; i++) insert(u[i], i, held, k, values, indices);
    for (; i + block <= width; i += block) {
        const T least = values[k - 1];
        int larger = 0;
#pragma omp simd reduction(| : larger)
        for (int64_t j = 0; j < block; j++) larger |= u[i + j] > least;
        if (larger)
            for (int64_t j = 0; j < block; j++)
                if (u[i + j] > values[k - 1]) insert(u[i + j], i + j, held, k, values, indices);
    }
    for (; i < width; i++)
        if (u[i] > values[k - 1]) insert(u[i], i, held, k, values, indices);
}

// The k largest of u[0 … width), largest first, lower index first among equals.
template <class T>
INLINE void top_k_row(const T* u, int64_t width, int64_t k, T* values, int64_t* indices) {
    scan(u, 0, width, 0, k, values, indices);
}

}  // namespace sparsefleet
